"""What the options of every layer change in the denoiser's output, in each of several calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.sealed import load_tensors, save_tensors
from qua2sedimo.options import Option, SearchSpace

_REMEDY = "Move the file away; `qua2sedimo quantize STUDY` makes it again."


@dataclass(frozen=True, eq=False)
class LayerChanges:
    """``values``: fp32 [options, calls], the change of a call's guided output by each option: to first order, times
    random signs; or where ``measured``, its norm, measured for one option and scaled for the others by the error of the
    layer's output. ``places``: how far along its sampling each call is, 0 in the first step to 1 in the last."""

    values: torch.Tensor
    places: Sequence[float]
    measured: bool = False

    @property
    def mean_squares(self) -> list[float]:
        """The squared change of the output that is expected of every option."""
        return [float(of) for of in self.values.double().square().mean(dim=1)]


@dataclass(frozen=True, eq=False)
class OptionChanges:
    """``of``: the changes of each layer that was weighed, its options as in ``space``. ``complete``: whether no other
    layer can be weighed."""

    space: SearchSpace
    of: Mapping[str, LayerChanges]
    complete: bool

    @property
    def source(self) -> str:
        """Where the changes come from, in words; "" if there are none."""
        ways = {changes.measured for changes in self.of.values()}
        if ways == {True}:
            return "layers changed one by one"
        return "gradients, and layers changed one by one" if len(ways) > 1 else "gradients" if ways else ""

    def mean_squares(self, layer: str) -> dict[Option, float]:
        """The squared change of the output that is expected of every option of a layer."""
        return dict(zip(self.space.options[layer], self.of[layer].mean_squares))

    def save(self, path: Path, owner: str) -> None:
        """Write the file; ``owner`` names the bank that holds the options."""
        measured = [self.space.layers.index(layer) for layer, changes in self.of.items() if changes.measured]
        about = {"owner": owner, "complete": self.complete, "options": _listed(self.space), "measured": measured}
        tensors: dict[str, torch.Tensor] = {}
        for layer, changes in self.of.items():
            place = f"{self.space.layers.index(layer):04d}"
            tensors |= {place: changes.values, f"{place}.places": torch.tensor(changes.places)}
        save_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: Path, space: SearchSpace, owner: str) -> OptionChanges:
        """Read what :meth:`save` wrote; nothing, and not complete, if there is no file.

        Raises :class:`Qua2SeDiMoError` if it is damaged, or of another bank.
        """
        if not path.exists():
            return cls(space, {}, False)
        tensors, about = load_tensors(path, _REMEDY)
        if about.get("owner") != owner or about.get("options") != _listed(space):
            raise Qua2SeDiMoError(f"{path} was made for another bank", _REMEDY)
        try:
            measured = {int(i) for i in about.get("measured", ())}
            found = {
                space.layers[int(name)]: LayerChanges(of, tensors[f"{name}.places"].tolist(), int(name) in measured)
                for name, of in tensors.items()
                if "." not in name
            }
            return cls(space, found, bool(about["complete"]))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise Qua2SeDiMoError(f"{path} is damaged: {error!r}", _REMEDY) from error


def _listed(space: SearchSpace) -> list[list[str]]:
    return [[str(option) for option in space.options[layer]] for layer in space.layers]
