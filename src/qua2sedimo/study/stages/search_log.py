"""What a search decided so far, written before anything is measured by it: interrupted, it ends as it would have."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from qua2sedimo.formats.document import STRICT, Document, MaybeFloat
from qua2sedimo.options import Configuration
from qua2sedimo.search import Budget, Constraints
from qua2sedimo.study.choices import choice_name
from qua2sedimo.study.workspace import Workspace


class Round(BaseModel):
    """One round, in dB: images spent before it, the expected quality of the best measured candidate, the expected gain
    from knowing the true model, and the standard error of a difference of two candidates in the final.

    ``configurations`` are measured in it, each on images from one of ``starts``; none: the rounds have ended.
    """

    model_config = ConfigDict(**STRICT, frozen=True)

    number: int
    spent: int
    best: MaybeFloat
    expected_gain: float
    noise: float
    configurations: list[Configuration]
    starts: list[int]


class Finals(BaseModel):
    """The finalists, their expected quality in dB, and the images that were spent before they were measured."""

    model_config = ConfigDict(**STRICT, frozen=True)

    configurations: list[Configuration]
    expected: list[float]
    spent: int


class Compared(BaseModel):
    """The last comparison, in dB on the same ``images``: what was found by measuring, and by gradients alone.

    ``gain``: the median over images of the former's gain over the latter, which decides.
    """

    model_config = ConfigDict(**STRICT, frozen=True)

    measured: float
    gradients: float
    gain: float
    images: int


class SearchLog(Document):
    """search/NAME.json, for the search of choices/NAME.json with ``images`` images.

    ``owner`` identifies search space, weights and protocol; ``singles``: whether layers are measured alone.
    ``polished``: for each configuration of the last comparison, by digest, the checksum of its polished weights in this
    folder, "" if polishing was not kept.
    """

    remedy: ClassVar[str] = "Move it away: the search begins its rounds anew, and uses what was measured."

    format: Literal[1] = 1
    owner: str
    images: int
    singles: bool
    rounds: list[Round] = Field(default_factory=list)
    finals: Finals | None = None
    polished: dict[str, str] = Field(default_factory=dict)
    compared: Compared | None = None

    @property
    def rounds_ended(self) -> bool:
        return bool(self.rounds) and not self.rounds[-1].configurations

    @classmethod
    def of(cls, path: Path, owner: str, images: int | None = None) -> SearchLog | None:
        """The log of this owner's search with ``images`` images, if one was begun; without ``images``, with any."""
        found = cls.load(path) if path.exists() else None
        return found if found is not None and found.owner == owner and images in (None, found.images) else None


def log_path(study: Workspace, budget: Budget, constraints: Constraints | None = None) -> Path:
    return study.folder / "search" / f"{choice_name(budget, constraints)}.json"
