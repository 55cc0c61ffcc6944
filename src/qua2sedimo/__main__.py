"""``python -m qua2sedimo`` is the command ``qua2sedimo``."""

from qua2sedimo.cli import main

if __name__ == "__main__":
    main()
