"""Where a run runs: `local` (this process), `flower` (`flwr run`: Flower's Ray simulation, or deployed sites)."""

from fedfm.engines.running import CHECKS, load, resume, run

__all__ = ["CHECKS", "load", "resume", "run"]
