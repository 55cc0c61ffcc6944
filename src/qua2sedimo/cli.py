"""The entry point of the command line; the commands are in :mod:`qua2sedimo.commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qua2sedimo import commands  # noqa: F401 - importing them makes the commands known
from qua2sedimo.commands.app import app
from qua2sedimo.commands.spellings import current
from qua2sedimo.errors import Qua2SeDiMoError, Stopped
from qua2sedimo.system.memory import within_memory
from qua2sedimo.terminal.console import errors, say_error, show_notes


def main() -> None:
    """Run the command line; a problem with the input ends it with one clear message and status 1."""
    show_notes()
    words, notices = current(sys.argv[1:])
    try:
        _refuse_broken_text(sys.argv)
        with within_memory("this does not fit into memory"):
            app(words, standalone_mode=True)
    except Qua2SeDiMoError as error:
        say_error(error)
        sys.exit(1)
    except OSError as error:  # of a file or the network that nothing else explained
        where = f"{error.filename}: " if error.filename else ""
        say_error(Qua2SeDiMoError(f"{where}{error.strerror or error}", "Check this place, then run it again."))
        sys.exit(1)
    except Stopped:
        errors.print("\nStopped. Every finished measurement is kept: run the same command again to resume.")
        sys.exit(130)
    finally:
        for notice in notices:
            errors.print(notice, soft_wrap=True, markup=False)


def _refuse_broken_text(arguments: Sequence[str]) -> None:
    """Raise :class:`Qua2SeDiMoError` for an argument that is no text in UTF-8: it could not be stored or printed."""
    for number, text in enumerate(arguments):
        if any("\ud800" <= character <= "\udfff" for character in text):
            shown = text.encode("utf-8", "replace").decode()
            raise Qua2SeDiMoError(f"argument {number} is not valid UTF-8: {shown[:80]}", "Give it in UTF-8.")


if __name__ == "__main__":
    main()
