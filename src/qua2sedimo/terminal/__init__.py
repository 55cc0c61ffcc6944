"""What the command line prints: tables, progress and errors, one module a subject."""
