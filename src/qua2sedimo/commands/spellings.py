"""Options by their earlier names: understood for one version, with a notice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Command → earlier name of an option → its name.
EARLIER: Mapping[str, Mapping[str, str]] = {
    "generate": {"--to": "--out"},
    "inspect": {"--set": "--options"},
    "measure": {"--configs": "--configurations"},
    "plan": {"--configs": "--configurations"},
    "search": {"--images": "--image-budget"},
}


def current(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(The words of a command line with options by their present names, a notice for each that had an earlier one)."""
    command = next((word for word in words if not word.startswith("-")), "")
    names, found, notices = dict(EARLIER.get(command, {})), [], []
    if command == "inspect" and any(word.partition("=")[0] == "--set" for word in words):
        names["--options"] = "--details"  # which named a layer beside --set
    for word in words:
        name, equals, value = word.partition("=")
        if name in names:
            notices.append(f"{name} of `{command}` is now called {names[name]}; {name} goes with the next version.")
            word = names[name] + equals + value
        found.append(word)
    return found, list(dict.fromkeys(notices))
