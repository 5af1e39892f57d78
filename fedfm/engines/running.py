"""Start and resume runs on any engine, and leave a run folder that says how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfm.config import RunConfig, load_config
from fedfm.errors import ConfigError, FedfmError, Problem
from fedfm.models.body import check_body
from fedfm.results.figures import draw_figures
from fedfm.results.run_folder import RunFolder
from fedfm.strategies import check_strategy

Listen = Callable[[dict[str, Any]], None]


def check_engine(config: RunConfig) -> list[Problem]:
    """What the engines of this version cannot do."""
    problems = []
    if config.engine.name not in ENGINES:
        known = ", ".join(ENGINES)
        problems.append(Problem(f'engine "{config.engine.name}" is not built yet', "engine.name", f"known: {known}"))
    if config.engine.sites_at_once > 1:
        problems.append(Problem("more than one site at once is not built yet", "engine.sites-at-once", "use 1"))
    if config.engine.workers > 1:
        problems.append(Problem("more than one worker is not built yet", "engine.workers", "use 1"))
    return problems


CHECKS = (check_strategy, check_body, check_engine)


def load(source: str | Path | Mapping[str, Any] | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """A configuration that this installation can run. Raises ConfigError with every problem."""
    data = source.to_dict() if isinstance(source, RunConfig) else source
    return load_config(data, overrides, CHECKS)


def run(config: RunConfig, listen: Listen = lambda event: None) -> RunFolder:
    """Run from the start, in a new folder under `runs.folder`."""
    quiet_libraries()
    return _run_in(RunFolder.create(config), config, listen)


def resume(path: str | Path, listen: Listen = lambda event: None) -> RunFolder:
    """Go on with a run from its last checkpoint; a finished run is left as it is. Raises UserError."""
    quiet_libraries()
    folder = RunFolder.open(path)
    if folder.info.get("status") in ("finished", "early-stopped"):
        return folder
    return _run_in(folder, load_config(folder.path / "config.toml", (), CHECKS), listen)


def _run_in(folder: RunFolder, config: RunConfig, listen: Listen) -> RunFolder:
    try:
        ENGINES[config.engine.name](config, folder, listen)
    except KeyboardInterrupt:
        folder.update(status="interrupted", reason="stopped by the user")
        raise
    except BaseException as error:
        reason = str(error) if isinstance(error, FedfmError) else f"{type(error).__name__}: {error}"
        folder.update(status="failed", reason=reason)
        folder.event("run-failed", reason=reason)
        raise
    draw_figures(folder)
    return folder


def _local(config: RunConfig, folder: RunFolder, listen: Listen) -> None:
    from fedfm.engines.local import LocalGrid
    from fedfm.federation.client_app import app
    from fedfm.federation.rounds import RoundLoop

    RoundLoop(LocalGrid(app, len(config.sites())), config, folder, listen).run()


def _flower(config: RunConfig, folder: RunFolder, listen: Listen) -> None:
    from fedfm.engines.flower import run_on_flower

    run_on_flower(config, folder, listen)


ENGINES: dict[str, Callable[[RunConfig, RunFolder, Listen], None]] = {"local": _local, "flower": _flower}

QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """No telemetry, no look-ups, no progress bars of other libraries; a value that the user has set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
