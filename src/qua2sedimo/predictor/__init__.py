"""From measured configurations to a network whose embedding norms are scores."""

from qua2sedimo.predictor.additive import AdditiveModel, fit_additive, relative_errors
from qua2sedimo.predictor.damage import Alone
from qua2sedimo.predictor.encoding import Encoding
from qua2sedimo.predictor.ensemble import Ensemble, fit_ensemble
from qua2sedimo.predictor.network import GATv2, HopNetwork
from qua2sedimo.predictor.training import FitSettings

__all__ = [
    "AdditiveModel",
    "Alone",
    "Encoding",
    "Ensemble",
    "FitSettings",
    "GATv2",
    "HopNetwork",
    "fit_additive",
    "fit_ensemble",
    "relative_errors",
]
