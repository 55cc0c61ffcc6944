"""The vocabulary of the avatar captions: attributes, their phrases, and parsing a prompt into attributes."""

from __future__ import annotations

import random
from collections.abc import Mapping

#: Attribute → its values. A picture has one value of each attribute; "none" means absent.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair length": ("short", "long"),
    "hair colour": ("blond", "sandy", "brown", "auburn", "black", "blue", "red", "green"),
    "glasses": ("none", "dark", "light"),
    "top": ("sky", "blue", "navy", "mint", "green", "coral", "red", "cream", "yellow"),
    "hat": ("none", "brown", "blue", "grey", "green", "pink", "purple", "red"),
    "beard": ("none", "beard"),
    "skin": ("pale", "fair", "tan", "dark"),
    "mouth": ("smile", "frown"),
    "background": ("white", "grey", "blue", "green", "yellow", "pink", "purple", "orange", "black"),
}

#: Index for a value that is not visible in the picture (hair under a hat).
HIDDEN = -1

Attributes = Mapping[str, str]


def phrases(attributes: Attributes) -> list[str]:
    """Each attribute as a phrase, for example ["short red hair", "dark glasses", "green top"]."""
    said = []
    hair = [attributes[key] for key in ("hair length", "hair colour") if key in attributes]
    if hair:
        said.append(" ".join([*hair, "hair"]))
    if "glasses" in attributes:
        said.append("no glasses" if attributes["glasses"] == "none" else f"{attributes['glasses']} glasses")
    if "top" in attributes:
        said.append(f"{attributes['top']} top")
    if attributes.get("hat", "none") != "none":
        said.append(f"{attributes['hat']} hat")
    if attributes.get("beard", "none") != "none":
        said.append("beard")
    said.extend(f"{attributes[key]} {key}" for key in ("skin", "background") if key in attributes)
    if "mouth" in attributes:
        said.append(attributes["mouth"])
    return said


def caption(attributes: Attributes, chance: random.Random, empty: float = 0.12) -> str:
    """A training caption: some phrases dropped, the others slightly shuffled; "" with probability ``empty``."""
    if chance.random() < empty:
        return ""
    keep = 1.0 if chance.random() < 0.4 else chance.uniform(0.4, 1.0)
    kept = {key: value for key, value in attributes.items() if chance.random() < keep}
    said = phrases(kept)
    order = sorted(range(len(said)), key=lambda place: place + chance.uniform(0, 3))
    return ", ".join(said[place] for place in order)


def varied_captions(count: int, seed: int = 0) -> list[str]:
    """``count`` different captions of random attributes, written as in training."""
    chance = random.Random(f"varied captions {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        attributes = {name: chance.choice(values) for name, values in ATTRIBUTES.items()}
        said = caption(attributes, chance, empty=0.0)
        if said:
            found[said] = None
    return list(found)


def parse(prompt: str) -> dict[str, str]:
    """The attributes in a prompt: each comma-separated phrase is recognised by its last word; others are ignored.

    >>> parse("short red hair, dark glasses, smile")
    {'hair length': 'short', 'hair colour': 'red', 'glasses': 'dark', 'mouth': 'smile'}
    """
    found: dict[str, str] = {}
    for phrase in prompt.lower().split(","):
        words = phrase.split()
        if not words:
            continue
        *adjectives, noun = words
        if noun in ATTRIBUTES["mouth"]:
            found["mouth"] = noun
        elif noun == "beard":
            found["beard"] = "none" if "no" in adjectives else "beard"
        elif noun == "hair":
            for word in adjectives:
                for key in ("hair length", "hair colour"):
                    if word in ATTRIBUTES[key]:
                        found[key] = word
        elif noun in ATTRIBUTES:
            for word in adjectives:
                value = "none" if word == "no" else word
                if value in ATTRIBUTES[noun]:
                    found[noun] = value
    return found


def vocabulary() -> list[str]:
    """Every word a caption can hold, in a fixed order."""
    words = {"no", "hair", "glasses", "top", "hat", "beard", "skin", "background"}
    for values in ATTRIBUTES.values():
        words.update(values)
    return sorted(words - {"none"})
