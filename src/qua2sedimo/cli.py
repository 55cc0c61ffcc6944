"""The entry point of the command line; the commands are in :mod:`qua2sedimo.commands`."""

from __future__ import annotations

import sys

from qua2sedimo import commands  # noqa: F401 - importing them makes the commands known
from qua2sedimo.commands.app import app
from qua2sedimo.errors import Qua2SeDiMoError, Stopped


def main() -> None:
    """Run the command line; problems with the input end it with one clear message and status 1."""
    from rich.console import Console

    errors = Console(stderr=True)
    try:
        app(standalone_mode=True)
    except Qua2SeDiMoError as error:
        errors.print(f"[bold red]error:[/bold red] {_plain(error.message)}", highlight=False, soft_wrap=True)
        if error.remedy:
            errors.print(f"[dim]→[/dim] {_plain(error.remedy)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except Stopped:
        errors.print("\nStopped. Nothing measured is lost: run the same command again to go on.")
        sys.exit(130)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
