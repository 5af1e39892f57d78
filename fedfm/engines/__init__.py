"""Where a run runs: `local` (this process), `flower` (`flwr run`: Flower's Ray simulation, or deployed sites)."""

from fedfm.engines.running import ENGINES, Run, load_config, resume, run

__all__ = ["ENGINES", "Run", "load_config", "resume", "run"]
