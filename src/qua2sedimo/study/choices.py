"""The choice made for a budget, as it is kept in a study folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_document, write_json
from qua2sedimo.options import Configuration, Option

FORMAT = 1
_REMEDY = "Delete it and run `qua2sedimo choose` again."


@dataclass(frozen=True)
class Candidate:
    """A configuration that was measured for a budget: who proposed it, and its objective predicted and measured."""

    origin: str
    configuration: Configuration
    average_bits: float
    predicted: float
    measured: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """The best measured configuration under a budget, and the candidates it was chosen from.

    ``p_value`` is that of the best against the second best measured, paired on the images both were measured on; None
    if there is no second, or the objective has no value of a single image. ``images`` is how many a search was given.
    """

    bits_asked: float
    configuration: Configuration
    average_bits: float
    nbytes: int
    origin: str
    predicted: float
    measured: dict[str, float]
    candidates: list[Candidate]
    p_value: float | None = None
    images: int | None = None

    def save(self, path: Path, owner: str) -> None:
        """Write the choice; ``owner`` names the fit it rests on."""
        rows = [{**vars(c), "configuration": _plain(c.configuration)} for c in self.candidates]
        content = {**vars(self), "configuration": _plain(self.configuration), "candidates": rows}
        write_json(path, {"format": FORMAT, "owner": owner, **content})

    @classmethod
    def load(cls, path: Path) -> tuple[Choice, str]:
        """(choice, owner) of a file; a damaged one is an error that names it."""
        content = read_document(path, FORMAT, _REMEDY)
        try:
            content.pop("format")
            owner = str(content.pop("owner"))
            rows = [Candidate(**{**c, "configuration": _parsed(c["configuration"])}) for c in content["candidates"]]
            configuration = _parsed(content["configuration"])
            return cls(**{**content, "configuration": configuration, "candidates": rows}), owner
        except (KeyError, TypeError, AttributeError) as error:
            raise Qua2SeDiMoError(f"{path} is damaged: {error!r}", _REMEDY) from error


def differences(a: Mapping[str, Option], b: Mapping[str, Option]) -> list[tuple[str, Option | None, Option | None]]:
    """(layer, its option in a, in b) where they differ; None where a layer stays in 16 bits."""
    return [(layer, a.get(layer), b.get(layer)) for layer in dict.fromkeys([*a, *b]) if a.get(layer) != b.get(layer)]


def _plain(configuration: Configuration) -> dict[str, str]:
    return {layer: str(option) for layer, option in configuration.items()}


def _parsed(content: dict[str, str]) -> Configuration:
    return Configuration.from_json(json.dumps(content))
