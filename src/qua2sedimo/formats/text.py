"""Sizes in bytes, commands, and text that every reader takes, for the terminal, the report and messages."""

from __future__ import annotations

import re
import shlex

#: What XML 1.0 forbids (control characters, halves of surrogate pairs, two that are none), what prints as nothing, and
#: the two separators of lines that end a text in older JavaScript, as in the expressions of charts.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def command(*words: object) -> str:
    """A command of this program to copy into a shell: ``command("fit", folder)`` → ``qua2sedimo fit 'my study'``."""
    return shlex.join(["qua2sedimo", *map(str, words)])


def size_text(nbytes: float) -> str:
    """A size to three significant digits, such as ``12.3 MB``, in decimal units, as disks and model hubs use."""
    for unit, one in _UNITS:
        if nbytes >= 0.9995 * one:  # 999.9 kB would read 1e+03 kB
            return f"{nbytes / one:#.3g}".rstrip(".") + f" {unit}"
    return f"{nbytes:.0f} bytes"


def printable(text: str) -> str:
    """The text with U+FFFD for each character that cannot be drawn or written in XML, HTML or UTF-8."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and end if it has more than ``most`` characters, with what is left out counted."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"


def short_size(nbytes: float) -> str:
    """A size in at most five characters, for narrow columns: ``640``, ``1.2k``, ``590k``, ``3.1M``."""
    for unit, one in _UNITS:
        if nbytes >= 0.9995 * one:
            return f"{nbytes / one:.{1 if nbytes < 9.95 * one else 0}f}{unit[0]}"
    return f"{nbytes:.0f}"
