"""The model card of an export: README.md for the hub."""
