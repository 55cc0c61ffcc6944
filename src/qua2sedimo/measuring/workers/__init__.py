"""Jobs run by this process or by Ray actors, with retries."""

from qua2sedimo.measuring.workers.cluster import RayWorkers, Shares, shares
from qua2sedimo.measuring.workers.jobs import ATTEMPTS, Job, Outcome, Work, run_here

__all__ = ["ATTEMPTS", "Job", "Outcome", "RayWorkers", "Shares", "Work", "run_here", "shares"]
