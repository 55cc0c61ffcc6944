"""From measured configurations to a network whose embedding norms are scores."""

from qua2sedimo.predictor.encoding import Encoding
from qua2sedimo.predictor.ensemble import Ensemble, fit_ensemble
from qua2sedimo.predictor.network import GATv2, HopNetwork
from qua2sedimo.predictor.training import FitSettings

__all__ = ["Encoding", "Ensemble", "FitSettings", "GATv2", "HopNetwork", "fit_ensemble"]
