"""The ledger of images: which image may be used for what. Nothing is judged on an image that something learned from.

Image *i* of a study has noise of its own, a function of the study's seed and *i* alone
(:meth:`qua2sedimo.images.generate.Generation.noise`), so a use of images is a block of numbers. The blocks do not
overlap, whatever a study asks for: a request that does not fit its block is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from qua2sedimo.errors import Qua2SeDiMoError


@dataclass(frozen=True)
class Use:
    """A use of images, and its block: numbers ``first`` to ``first + size``.

    ``learns``: a model may be fitted to measurements on these images. On the others configurations are judged:
    compared with each other, reported, or both; no model ever sees these measurements.
    """

    name: str
    first: int
    size: int
    learns: bool = False

    def images(self, count: int, skip: int = 0) -> range:
        """``count`` images of the block, behind its first ``skip``.

        Raises :class:`Qua2SeDiMoError` if the block does not hold so many.
        """
        if skip + count > self.size:
            raise Qua2SeDiMoError(
                f"{skip + count:,} images asked for {self.name}, which has {self.size:,} of its own",
                "Ask for fewer: images of other uses would be judged by what was learned from them.",
            )
        return range(self.first + skip, self.first + skip + count)

    def __contains__(self, image: int) -> bool:
        return self.first <= image < self.first + self.size


#: Random configurations, layers alone, rounds of a search: what models are fitted to.
LEARNING = Use("learning", 0, 10_000, learns=True)
#: The finalists of a search, by which its choice is made.
FINALS = Use("the final of a search", 10_000, 10_000)
#: Points of the frontier.
FRONTIER = Use("the frontier", 20_000, 10_000)
#: Candidates that the predictor proposed for a budget, by which the choice is made.
CANDIDATES = Use("candidates", 30_000, 20_000)
#: The comparison with uniform quantization; half of it full precision with other noise, for set metrics.
COMPARISON = Use("the comparison", 100_000, 100_000)
#: What set metrics compare measured images with: full precision with noise that no configuration has.
SET_REFERENCES = Use("references of set metrics", 200_000, 100_000)
#: An exported model against the one it came from.
EVALUATION = Use("the evaluation of an export", 300_000, 100_000)

USES = (LEARNING, FINALS, FRONTIER, CANDIDATES, COMPARISON, SET_REFERENCES, EVALUATION)

#: The use that each role of records belongs to.
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
