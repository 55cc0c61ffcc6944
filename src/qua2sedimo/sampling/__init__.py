"""Which configurations to measure: sequences that are functions of (seed, number) alone.

====================  =============================================================================================
``spread``            average bits uniform over the range, layers drawn independently
``stratified``        average bits evenly spaced; random mix of methods, layers correlated; some uniform configurations
``near``              near the frontier, by the damage that is expected before anything is measured
``paper``             a share p ~ U(0, 1) of low widths, methods uniform (Qua²SeDiMo, section 4)
``singles``           one layer at a low or a middle width, the others in full precision
``list``              configurations from a file
====================  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.sampling.independent import paper, spread
from qua2sedimo.sampling.listed import read_list
from qua2sedimo.sampling.near import near
from qua2sedimo.sampling.singles import single, single_count
from qua2sedimo.sampling.stratified import stratified

SAMPLERS = ("spread", "stratified", "near", "paper", "singles", "list")


@dataclass(frozen=True)
class Sampler:
    """One of :data:`SAMPLERS` over a search space; calling it with a number returns that configuration.

    ``bits``: range of average bits, clipped to what the space can reach. ``layers``: block and operation of each unit,
    within which ``stratified`` and ``near`` correlate layers. ``listed``: the configurations of ``list``. ``damage``:
    what each option is expected to do, for ``near``.
    """

    name: str
    space: SearchSpace
    seed: int
    bits: tuple[float, float]
    layers: Mapping[str, WeightLayer] | None = None
    listed: Sequence[Configuration] = ()
    damage: Callable[[], Mapping[str, Mapping[Option, float]]] | None = None

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise Qua2SeDiMoError(f"unknown sampler '{self.name}'; known: {', '.join(SAMPLERS)}")

    @property
    def count(self) -> int | None:
        """Number of configurations; None if it is unlimited."""
        if self.name == "list":
            return len(self.listed)
        return single_count(self.space) if self.name == "singles" else None

    def require(self, configurations: int) -> None:
        """Raise :class:`Qua2SeDiMoError` if there are fewer configurations."""
        count = self.count
        if count is not None and configurations > count:
            raise Qua2SeDiMoError(
                f"sampler '{self.name}' has {count} configurations, {configurations} were asked for",
                "Ask for fewer, or sample with 'stratified'.",
            )

    def __call__(self, number: int) -> Configuration:
        """Configuration ``number``; raises :class:`Qua2SeDiMoError` beyond the last."""
        self.require(number + 1)
        if self.name == "list":
            return self.listed[number]
        if self.name == "singles":
            return single(self.space, self.seed, number)
        if self.name == "stratified":
            return stratified(self.space, self.seed, number, self.range, _groups(self.space, self.layers))
        if self.name == "near":
            if self.damage is None:
                raise Qua2SeDiMoError("sampler 'near' needs to know the expected damage of each option")
            groups = _groups(self.space, self.layers)
            return near(self.space, self.seed, number, self.range, self.damage(), groups)
        if self.name == "paper":
            return paper(self.space, self.seed, number)
        return spread(self.space, self.seed, number, self.range)

    @property
    def range(self) -> tuple[float, float]:
        """The range of average bits, clipped to what the space can reach."""
        low, high = (8 * n / self.space.weights for n in self.space.byte_range())
        return min(max(self.bits[0], low), high), min(max(self.bits[1], low), high)


def sample(space: SearchSpace, sampler: str, seed: int, number: int, bits: tuple[float, float]) -> Configuration:
    """Configuration ``number`` in the sequence of ``seed``, for a sampler that needs only the space."""
    return Sampler(sampler, space, seed, bits)(number)


def _groups(space: SearchSpace, layers: Mapping[str, WeightLayer] | None) -> tuple[list[str], list[str]]:
    if layers is None:  # every layer a group of its own
        return list(space.layers), list(space.layers)
    return [layers[name].block for name in space.layers], [layers[name].operation for name in space.layers]


__all__ = ["SAMPLERS", "Sampler", "read_list", "sample"]
