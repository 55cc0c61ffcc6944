"""The embedded trained denoisers, and how each was trained."""

from qua2sedimo.zoo.entries import ENTRIES, ZooEntry, input_score, load, reference_images

__all__ = ["ENTRIES", "ZooEntry", "input_score", "load", "reference_images"]
