"""The commands, grouped by what they are for; each parses, calls Study, prints."""
