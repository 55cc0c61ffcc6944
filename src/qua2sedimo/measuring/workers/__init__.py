"""Jobs done by this process or by Ray actors, tried again when they fail."""

from qua2sedimo.measuring.workers.cluster import RayWorkers, Shares, shares
from qua2sedimo.measuring.workers.jobs import ATTEMPTS, Job, Outcome, Work, run_here

__all__ = ["ATTEMPTS", "Job", "Outcome", "RayWorkers", "Shares", "Work", "run_here", "shares"]
