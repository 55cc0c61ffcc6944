"""The choice for a budget, as stored in a study folder."""

from __future__ import annotations

import json
import re
import shlex
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import STRICT, Document, MaybeFloat
from qua2sedimo.formats.files import file_digest, unwritable
from qua2sedimo.formats.locks import alone
from qua2sedimo.formats.sealed import save_tensors
from qua2sedimo.formats.temporary import temporary_folder
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.quantizers import METHODS, QuantizedWeight
from qua2sedimo.search import Budget, Constraints

#: File name of a choice: the budget's amount and unit, and a checksum of its constraints.
_NAME = re.compile(r"(?P<amount>[\d.e+-]+?)(-(?P<unit>bytes|ratio))?(?P<constrained>-[0-9a-f]{8})?")


class Candidate(BaseModel):
    """A configuration measured for a budget: its proposer, the predicted objective, and the measured metrics.

    ``predicted`` is NaN if the proposer predicts nothing.
    """

    model_config = ConfigDict(**STRICT, frozen=True)

    origin: str
    configuration: Configuration
    average_bits: float
    predicted: MaybeFloat
    measured: dict[str, float]


#: Fields that a choice copies from its best candidate.
_SHARED = {"average_bits", "origin", "predicted", "measured"}


class Choice(Document):
    """The best measured configuration under a budget, and the candidates it was selected from.

    ``owner`` identifies the fit or search behind the choice. ``budget_bytes``: the exact budget in packed bytes.
    ``objective``: the objective that ``predicted`` refers to, if it is not the study's. ``p_value``: a test of the best
    against the second best, paired by image; None if there is no second, or the objective has no per-image values.
    ``images``: the image budget of a search. ``judged_on``: first image and number of images that all candidates were
    compared on; None after a search. ``polished``: checksum of the file NAME.safetensors with weights that were rounded
    again in sequence (:mod:`qua2sedimo.sequential`); None if the weights are those of the bank.
    """

    remedy: ClassVar[str] = "Move it out of choices/ and choose or search again."

    format: Literal[2] = 2
    owner: str
    budget: Budget
    budget_bytes: int
    constraints: Constraints = Constraints()
    configuration: Configuration
    average_bits: float
    nbytes: int
    origin: str
    predicted: MaybeFloat
    measured: dict[str, float]
    candidates: list[Candidate]
    objective: str | None = None
    p_value: float | None = None
    images: int | None = None
    judged_on: tuple[int, int] | None = None
    polished: str | None = None

    @classmethod
    def of(
        cls, best: Candidate, space: SearchSpace, owner: str, budget: Budget | None = None, **more: Any
    ) -> Choice:  # fmt: skip
        """The choice of ``best`` for a budget, by default its own size. ``more``: other fields."""
        nbytes = space.nbytes(best.configuration)
        budget = budget or Budget(float(nbytes), "bytes")
        more = {"candidates": [best], **best.model_dump(include=_SHARED), **more}
        return cls(
            owner=owner, budget=budget, budget_bytes=budget.nbytes(space.weights), configuration=best.configuration,
            nbytes=nbytes, **more,
        )  # fmt: skip

    @property
    def bits_asked(self) -> float:
        """The budget in average bits."""
        if self.budget.unit == "bits":
            return self.budget.amount
        return self.average_bits * self.budget_bytes / self.nbytes

    @property
    def asked(self) -> str:
        """The request in words."""
        limits = f" with {self.constraints.name}" if self.constraints.name else ""
        return self.objective if self.objective is not None else f"{self.budget}{limits}"

    @property
    def flags(self) -> str:
        """Command-line options for the same request."""
        if self.objective is not None:
            return f"--objective {shlex.quote(self.objective)}"
        amount = f"{self.budget.amount:.0f}B" if self.budget.unit == "bytes" else f"{self.budget.amount:.12g}"
        return " ".join([f"--{self.budget.unit} {amount}", *map(shlex.quote, self.constraints.flags)])

    @property
    def name(self) -> str:
        """The file name without its extension."""
        if self.objective is not None:
            return objective_name(self.objective)
        return choice_name(self.budget, self.constraints)

    @classmethod
    def upgraded(cls, content: dict[str, Any], path: Path) -> dict[str, Any]:
        """Format 1 lacks the exact budget, which is taken from the file's name, and the constraints.

        Raises :class:`Qua2SeDiMoError` for a choice that was made under constraints.
        """
        if content.get("format") != 1:
            return content
        try:
            content = dict(content)
            asked, of_objective = content.pop("bits_asked"), path.stem.startswith("objective-")
            named = None if of_objective else _NAME.fullmatch(path.stem)
            if named and named["constrained"]:
                raise Qua2SeDiMoError(f"{path} is of format 1, which does not record its constraints", cls.remedy)
            budget = {"amount": float(named["amount"]), "unit": named["unit"] or "bits"} if named else {"amount": asked}
            weights = round(8 * content["nbytes"] / content["average_bits"])
            if of_objective:
                content["objective"] = content["owner"].split(" ", 3)[3]
            return {**content, "format": 2, "budget": budget, "budget_bytes": Budget(**budget).nbytes(weights)}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise Qua2SeDiMoError(f"{path} is damaged: {error!r}", cls.remedy) from error


def choice_name(budget: Budget, constraints: Constraints | None = None) -> str:
    """File name of the choice for a budget; constraints add their checksum."""
    return budget.name + (constraints.suffix if constraints else "")


def objective_name(text: str) -> str:
    """File name of the choice for an objective."""
    return f"objective-{zlib.crc32(''.join(text.split()).encode()):08x}"


def differences(a: Mapping[str, Option], b: Mapping[str, Option]) -> list[tuple[str, Option | None, Option | None]]:
    """(layer, its option in a, in b) where they differ; None where a layer stays in 16 bits."""
    return [(layer, a.get(layer), b.get(layer)) for layer in dict.fromkeys([*a, *b]) if a.get(layer) != b.get(layer)]


def save_choice(folder: Path, choice: Choice, values: Mapping[str, QuantizedWeight] | None = None) -> Choice:
    """Write a choice, and its polished weights if there are ``values``; returns it with their checksum.

    The choice is written last, and weights that it replaces are removed then: a kill leaves the old choice or the new.
    """
    with alone(folder):
        if values:
            choice = choice.model_copy(update={"polished": save_values(folder, choice.name, values)})
        path = folder / f"{choice.name}.json"
        choice.save(path)
        of_choice = re.compile(re.escape(choice.name) + r"-[0-9a-f]{16}\.safetensors")
        for file in folder.glob("*.safetensors"):
            if of_choice.fullmatch(file.name) and file != values_file(folder, choice.name, choice.polished or ""):
                file.unlink(missing_ok=True)
    return choice


def values_file(folder: Path, name: str, checksum: str) -> Path:
    """Where polished weights are; earlier versions had one name for all of a choice."""
    own, former = folder / f"{name}-{checksum}.safetensors", folder / f"{name}.safetensors"
    return former if former.exists() and not own.exists() else own


def save_values(folder: Path, name: str, values: Mapping[str, QuantizedWeight]) -> str:
    """Write quantized weights by unit to NAME-CHECKSUM.safetensors; returns the file's checksum."""
    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, list[Any]] = {}
    for unit, value in values.items():
        about[unit] = [value.method, value.number, list(value.shape), str(value.dtype).removeprefix("torch.")]
        tensors[f"{unit}|codes"] = value.codes.cpu().contiguous()
        tensors |= {f"{unit}|{name}": t.cpu().contiguous() for name, t in value.parameters.items()}
    path = folder / f"{name}.safetensors"
    try:
        with temporary_folder(folder) as temporary:
            save_tensors(temporary / path.name, tensors, {"units": about})
            checksum = file_digest(temporary / path.name)
            (temporary / path.name).replace(folder / f"{name}-{checksum}.safetensors")
    except OSError as error:
        raise unwritable(path, error) from error
    return checksum


def load_values(folder: Path, name: str, checksum: str) -> dict[str, QuantizedWeight]:
    """What :func:`save_values` wrote; raises :class:`Qua2SeDiMoError` if the file is missing or differs."""
    path = values_file(folder, name, checksum)
    if file_digest(path) != checksum:
        raise Qua2SeDiMoError(
            f"{path} is missing or damaged: its checksum differs from the choice's",
            "Move the choice and this file away, and make the choice again.",
        )
    with safe_open(path, "pt") as handle:
        about = json.loads((handle.metadata() or {})["about"])
        about = about.get("units", about)  # earlier versions had nothing else
        return {
            unit: QuantizedWeight(
                method, number, tuple(shape), getattr(torch, dtype), handle.get_tensor(f"{unit}|codes"),
                {p: handle.get_tensor(f"{unit}|{p}") for p in METHODS[method].parameter_shapes(tuple(shape), number)},
            )
            for unit, (method, number, shape, dtype) in about.items()
        }  # fmt: skip
