"""The entry point of the command line; the commands are in :mod:`qua2sedimo.commands`."""

from __future__ import annotations

import sys

from qua2sedimo import commands  # noqa: F401 - importing them makes the commands known
from qua2sedimo.commands.app import app
from qua2sedimo.errors import Qua2SeDiMoError, Stopped
from qua2sedimo.system.memory import within_memory
from qua2sedimo.terminal.console import errors, say_error, show_notes


def main() -> None:
    """Run the command line; a problem with the input ends it with one clear message and status 1."""
    show_notes()
    try:
        with within_memory("this does not fit into memory"):
            app(standalone_mode=True)
    except Qua2SeDiMoError as error:
        say_error(error)
        sys.exit(1)
    except Stopped:
        errors.print("\nStopped. Every finished measurement is kept: run the same command again to resume.")
        sys.exit(130)


if __name__ == "__main__":
    main()
