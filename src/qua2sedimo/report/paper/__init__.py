"""The figures as files for papers and model cards, with captions."""
