"""The zoo: small trained pipelines that are part of the package, and the code that trained them."""

from qua2sedimo.zoo.entries import ENTRIES, ZooEntry, input_score, load, reference_images

__all__ = ["ENTRIES", "ZooEntry", "input_score", "load", "reference_images"]
