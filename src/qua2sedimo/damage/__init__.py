"""The one model of damage: what each option of each layer adds to the images' error, and how sure that is."""

from qua2sedimo.damage.columns import Features, option_features
from qua2sedimo.damage.model import ALONE, DECIBEL, DamageModel, Observations, fit_damage, fit_gain

__all__ = [
    "ALONE",
    "DECIBEL",
    "DamageModel",
    "Features",
    "Observations",
    "fit_damage",
    "fit_gain",
    "option_features",
]
