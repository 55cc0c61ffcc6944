"""Files as they lie on disk: whole or absent, checksummed, strict and versioned."""
