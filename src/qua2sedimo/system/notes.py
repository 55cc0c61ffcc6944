"""Remarks about what the program decided by itself, such as which files it reads.

They go to the logger ``qua2sedimo``, which the command line prints, and Python prints to stderr by default.
"""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("qua2sedimo")


def note(text: str) -> None:
    """Tell the user ``text``; nothing has to be done about it."""
    LOGGER.warning(text)
