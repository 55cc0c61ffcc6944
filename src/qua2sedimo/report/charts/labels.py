"""Where a label stands beside its mark, so that labels do not cover marks or each other."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]

#: Offset in pixels and text alignment of each place.
PLACES = {"right": (13, 0, "left"), "left": (-13, 0, "right"), "above": (0, -16, "center"), "below": (0, 17, "center")}
LIMIT = 180  # pixels after which a label is cut


def label_places(
    marks: Sequence[tuple[float, float]], labels: Sequence[str], width: float = 640, height: float = 340
) -> list[str]:
    """For each mark, the place where its label stays in the plot and covers no mark and no earlier label.

    Without such a place the first one; ``""`` without a label. ``width`` and ``height`` of the plot are approximate
    pixels.
    """
    if not marks:
        return []
    left, bottom = min(x for x, _ in marks), min(y for _, y in marks)
    across, up = max(x for x, _ in marks) - left or 1.0, max(y for _, y in marks) - bottom or 1.0
    spots = [((x - left) / across * width, (y - bottom) / up * height) for x, y in marks]
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for (x, y), label in zip(spots, labels) if label]
    places = []
    for (x, y), label in zip(spots, labels):
        if not label:
            places.append("")
            continue
        boxes = _boxes(x, y, min(LIMIT, 6.6 * len(label)))
        inside = {place: box for place, box in boxes.items() if box[0] > -20 and box[2] < width + 6}
        boxes = inside or boxes
        free = [place for place, box in boxes.items() if not any(_meet(box, other) for other in taken)]
        places.append(free[0] if free else next(iter(boxes)))
        taken.append(boxes[places[-1]])
    return places


def _boxes(x: float, y: float, wide: float) -> dict[str, Box]:
    return {
        "right": (x + 9, y - 8, x + 13 + wide, y + 8),
        "left": (x - 13 - wide, y - 8, x - 9, y + 8),
        "above": (x - wide / 2, y + 8, x + wide / 2, y + 24),
        "below": (x - wide / 2, y - 24, x + wide / 2, y - 8),
    }


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
