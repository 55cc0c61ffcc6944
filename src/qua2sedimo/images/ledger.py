"""The ledger of images: which image may be used for what, so that nothing is evaluated on images it was fitted to.

The noise of image *i* is a function of the study's seed and *i* alone
(:meth:`qua2sedimo.images.generate.Generation.noise`), so each use of images has a block of image numbers. Blocks never
overlap: a request that does not fit into its block is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from qua2sedimo.errors import Qua2SeDiMoError


@dataclass(frozen=True)
class Use:
    """A use of images, and its block of image numbers: ``first`` to ``first + size``, exclusive.

    ``learns``: models may be fitted to measurements on these images. All other blocks only evaluate configurations, for
    selection or for a report; no model is fitted to them.
    """

    name: str
    first: int
    size: int
    learns: bool = False

    def images(self, count: int, skip: int = 0) -> range:
        """``count`` images of the block, after its first ``skip``; raises :class:`Qua2SeDiMoError` beyond its end."""
        if skip + count > self.size:
            raise Qua2SeDiMoError(
                f"{skip + count:,} images requested for {self.name}, which has {self.size:,}",
                "Request fewer: images of other uses are reserved for learning or for evaluation.",
            )
        return range(self.first + skip, self.first + skip + count)

    def __contains__(self, image: int) -> bool:
        return self.first <= image < self.first + self.size


#: Random configurations, single layers, rounds of a search: what models are fitted to.
LEARNING = Use("learning", 0, 10_000, learns=True)
#: What calibration statistics are taken from, in full precision; no configuration is measured on them.
OBSERVED = Use("observation", 50_000, 50_000, learns=True)
#: The finalists of a search, among which it selects its choice.
FINALS = Use("the final of a search", 10_000, 10_000)
#: Points of the frontier.
FRONTIER = Use("the frontier", 20_000, 10_000)
#: The predictor's candidates for a budget, among which the choice is selected.
CANDIDATES = Use("candidates", 30_000, 20_000)
#: The comparison with uniform quantization; its second half is full precision with other noise, for set metrics.
COMPARISON = Use("the comparison", 100_000, 100_000)
#: Full-precision images that set metrics compare with while measuring; no configuration uses their noise.
SET_REFERENCES = Use("references of set metrics", 200_000, 100_000)
#: An exported model compared with the original.
EVALUATION = Use("the evaluation of an export", 300_000, 100_000)

USES = (LEARNING, OBSERVED, FINALS, FRONTIER, CANDIDATES, COMPARISON, SET_REFERENCES, EVALUATION)

#: Role of records → its use of images.
USE_OF_ROLE: dict[str, Use] = {
    "sample": LEARNING,
    "single": LEARNING,
    "round": LEARNING,
    "final": FINALS,
    "frontier": FRONTIER,
    "candidate": CANDIDATES,
}


def check_use(role: str, images: range) -> None:
    """Raise :class:`Qua2SeDiMoError` unless measurements of this role may be made on these images."""
    use = USE_OF_ROLE[role]
    if len(images) and not (images[0] in use and images[-1] in use):
        raise Qua2SeDiMoError(
            f"images {images.start} to {images.stop - 1} are not for {use.name}, which has {use.first} to "
            f"{use.first + use.size - 1}",
            "Take them from qua2sedimo.images.ledger.",
        )
