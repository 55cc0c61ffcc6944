"""How files and numbers are written."""
