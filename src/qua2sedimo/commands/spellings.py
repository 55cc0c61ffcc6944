"""Options by their earlier names: understood for one version, with a notice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Command → earlier name of an option → its name.
EARLIER: Mapping[str, Mapping[str, str]] = {
    "evaluate": {"--images": "--fresh-images"},
    "frontier": {"--images": "--fresh-images"},
    "generate": {"--to": "--out"},
    "inspect": {"--set": "--options"},
    "measure": {"--configs": "--configurations"},
    "plan": {"--configs": "--configurations"},
    "report": {"--images": "--fresh-images"},
    "search": {"--images": "--image-budget"},
}


def current(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(The words of a command line with options by their present names, a notice for each that had an earlier one)."""
    command = next((word for word in words if not word.startswith("-")), "")
    names, found, notices = dict(EARLIER.get(command, {})), [], []
    if command == "inspect" and _names_a_layer(words):
        names["--options"] = "--details"
    for word in words:
        name, equals, value = word.partition("=")
        if name in names:
            what = " LAYER" if name == "--options" else ""  # which has another meaning now
            notices.append(
                f"{name}{what} of `{command}` is now called {names[name]}{what}; the former goes with the next version."
            )
            word = names[name] + equals + value
        found.append(word)
    return found, list(dict.fromkeys(notices))


def _names_a_layer(words: Sequence[str]) -> bool:
    """Whether --options of `inspect` is meant as it once was: beside --set, or with neither a set nor an option."""
    from qua2sedimo.options import OPTION_SETS  # heavy to import; no other command needs it here
    from qua2sedimo.quantizers import METHODS

    pairs = [word.partition("=")[::2] if "=" in word else (word, after) for word, after in zip(words, [*words[1:], ""])]
    values = [value for name, value in pairs if name == "--options"]
    old = [v for v in values if v not in OPTION_SETS and v.split(",")[0].strip().rpartition("-")[0] not in METHODS]
    return bool(old) or any(name == "--set" for name, _ in pairs)
