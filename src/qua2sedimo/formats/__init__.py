"""File formats: atomic writes, documents, tables, safetensors headers, checksums, sizes as text."""
