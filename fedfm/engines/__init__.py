"""Where a run runs.

`local`: this process; `ray`: workers on this machine or a cluster; `flower`: `flwr run`, that is Flower's own Ray
simulation, or deployed sites.
"""

from fedfm.engines.running import ENGINES, Run, load_config, resume, run, run_profiled

__all__ = ["ENGINES", "Run", "load_config", "resume", "run", "run_profiled"]
