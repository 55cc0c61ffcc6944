"""What the options of every layer change in the denoiser's output, to first order, in each of several calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.sealed import load_tensors, save_tensors
from qua2sedimo.options import Option, SearchSpace

_REMEDY = "Move the file away; `qua2sedimo quantize STUDY` makes it again."


@dataclass(frozen=True, eq=False)
class OptionChanges:
    """``of``: for each layer that was weighed, fp32 [options, calls], the change of a call's guided output, times
    random signs, by each of the layer's options in ``space``. ``complete``: whether no other layer can be weighed.

    Changes of layers add: the mean over calls of the square of their sum is the squared change of the output that a
    configuration is expected to make.
    """

    space: SearchSpace
    of: Mapping[str, torch.Tensor]
    complete: bool

    def mean_squares(self, layer: str) -> dict[Option, float]:
        """The squared change of the output that is expected of every option of a layer."""
        return dict(zip(self.space.options[layer], self.of[layer].double().square().mean(dim=1).tolist()))

    def save(self, path: Path, owner: str) -> None:
        """Write the file; ``owner`` names the bank that holds the options."""
        about = {"owner": owner, "complete": self.complete, "options": _listed(self.space)}
        save_tensors(path, {f"{self.space.layers.index(layer):04d}": of for layer, of in self.of.items()}, about)

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
        return cls(space, {space.layers[int(place)]: of for place, of in tensors.items()}, bool(about["complete"]))


def _listed(space: SearchSpace) -> list[list[str]]:
    return [[str(option) for option in space.options[layer]] for layer in space.layers]
