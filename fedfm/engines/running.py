"""Start and resume runs on any engine, and leave a run folder that says how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import pandas as pd

from fedfm import config as config_module
from fedfm.config import RunConfig
from fedfm.engines.flower_deployment import check_deployment
from fedfm.engines.reporting import leave_report, leave_report_of_failure
from fedfm.errors import ConfigError, Problem
from fedfm.models.body import NAMED_BODIES, check_body
from fedfm.profiling import phase, profile
from fedfm.results.run_folder import Listen, RunFolder
from fedfm.results.trackers import check_trackers, tracked
from fedfm.strategies import check_strategy, prepared


def ignore(event: dict[str, Any]) -> None:
    """The listener that does not."""


def check_engine(config: RunConfig) -> list[Problem]:
    """What the chosen engine cannot do."""
    engine, problems = config.engine, []
    if engine.sites_at_once != 1 and engine.name == "flower":
        what = "Flower sends every site an order of its own, so that no two sites can share a batch"
        problems.append(Problem(what, "engine.sites-at-once", 'use 1, or engine.name = "local" or "ray"'))
    if engine.workers > 1 and engine.name == "local":
        what = "the local engine is one process"
        problems.append(Problem(what, "engine.workers", 'use 1, or engine.name = "ray"'))
    return problems + (check_deployment(config) if engine.superlink else [])


CHECKS = (check_strategy, check_body, check_engine, check_trackers)


@dataclass(frozen=True)
class Run:
    """A run that has ended, read from its folder."""

    folder: Path

    @property
    def rounds(self) -> pd.DataFrame:
        """One row a round: seconds, bytes, sites asked, used and left out, training loss."""
        return RunFolder.open(self.folder).rounds

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a score: round, scope (site, domain, federation), name, domain, split, metric, value, examples."""
        return RunFolder.open(self.folder).metrics

    @property
    def info(self) -> dict[str, Any]:
        """run.json: status, versions, hardware, data digests, `final` scores on test, `final_weights_sha256`."""
        return RunFolder.open(self.folder).info


@phase("load")
def load_config(source: str | Path | Mapping[str, Any] | RunConfig, *overrides: str) -> RunConfig:
    """A configuration that this installation can run. Raises ConfigError with every problem."""
    data = source.to_dict() if isinstance(source, RunConfig) else source
    return prepared(config_module.load_config(data, overrides, CHECKS))


def run(
    source: str | Path | Mapping[str, Any] | RunConfig,
    *overrides: str,
    listen: Listen = ignore,
    strategy: Any = None,
    report: bool = True,
) -> Run:
    """Run a configuration with `key=value` overrides from the start, in a new folder under `runs.folder`.

    `listen` is called with every event of the run (see fedfm.results.screen). Raises UserError where the input is
    wrong, RunError where the run could not go on; the folder then says so and can be resumed.

    report: draw figures and write report.html at the end; `fedfm report` does it later.

    `strategy`: an object in place of what [strategy] names, for the server half: any `flwr.serverapp.strategy.Strategy`
    (one domain, engine `local`; not to be resumed).
    """
    quiet_libraries()
    config = anchored(load_config(source, *overrides))
    if strategy is not None:
        from fedfm.federation.flower_strategy import as_ours

        strategy = as_ours(strategy)
        if config.engine.name != "local":
            what = "a strategy object works in this process only"
            raise ConfigError([Problem(what, "engine.name", 'engine.name = "local"')])
    check_device(config)
    return _run_in(RunFolder.create(config), config, listen, report, strategy)


def run_profiled(
    source: str | Path | Mapping[str, Any] | RunConfig, *overrides: str, listen: Listen = ignore
) -> tuple[Run, dict[str, Any]]:
    """As `run` on the local engine, and where the time went: `profile.json` and `timeline.json` in the run's folder."""
    if load_config(source, *overrides).engine.name != "local":
        what = "a profile is taken of one process"
        raise ConfigError(what, where="--profile", mend='engine.name = "local"')
    with profile() as taken:
        done = run(source, *overrides, listen=listen)
        taken.write(done.folder)
        return done, taken.summary()


def resume(folder: str | Path, listen: Listen = ignore, report: bool = True) -> Run:
    """Go on with a run from its last checkpoint; a finished run is left as it is. `report` as for `run`.

    Raises UserError.
    """
    quiet_libraries()
    opened = RunFolder.open(folder)
    if opened.info.get("status") in ("finished", "early-stopped"):
        if report and not (opened.path / "report.html").exists():  # the command that would have left it was killed
            leave_report(opened)
        return Run(opened.path)
    config = load_config(opened.path / "config.toml")
    if not config.engine.superlink:  # there a run that is still alive is watched again
        with opened.lock():  # a run that is still alive must not be told that it failed
            pass
    check_device(config)
    return _run_in(opened, config, listen, report)


def check_device(config: RunConfig) -> None:
    """Raises ConfigError where sites are to work on a device that this machine has not. Elsewhere, on a cluster or
    across machines, each machine sees for itself."""
    elsewhere = config.engine.superlink or config.engine.address
    if config.engine.device not in ("auto", "cpu") and not elsewhere:  # torch takes seconds to import
        from fedfm.models.devices import pick_device

        pick_device(config.engine.device)


def anchored(config: RunConfig) -> RunConfig:
    """Relative folders made absolute, so that a run can be resumed, and its sites can work, from anywhere."""
    sources = [d.source for d in config.domains.values()]
    sources += [site.source for d in config.domains.values() for site in d.site]
    if any(source not in ("", "generated") for source in sources):
        config = config.model_copy(update={"data_root": os.path.realpath(config.data_root)})
    if config.body.name not in NAMED_BODIES and Path(config.body.name).is_dir():
        body = config.body.model_copy(update={"name": str(Path(config.body.name).resolve())})
        config = config.model_copy(update={"body": body})
    return config


def _run_in(folder: RunFolder, config: RunConfig, listen: Listen, report: bool, strategy: Any = None) -> Run:
    try:
        with tracked(folder, config, listen) as told:
            if strategy is None:
                ENGINES[config.engine.name](config, folder, told)
            else:
                _local(config, folder, told, strategy)
    except KeyboardInterrupt as stop:
        folder.update(status="interrupted", reason="stopped by the user")
        stop.add_note(f"go on with: fedfm resume {folder.path}")
        raise
    except BaseException as error:
        folder.fail(error)
        if report:
            leave_report_of_failure(folder)
        raise
    if report:
        leave_report(folder)
    return Run(folder.path)


_ONE_AT_A_TIME = RLock()  # threads of this process have one torch, one cache of data; a run may start another within it


def _local(config: RunConfig, folder: RunFolder, listen: Listen, strategy: Any = None) -> None:
    with _ONE_AT_A_TIME:
        with phase("load"):
            from fedfm.engines.local import LocalGrid
            from fedfm.federation.client_app import app
            from fedfm.federation.rounds import RoundLoop
            from fedfm.federation.site_data import forget_data
            from fedfm.federation.workbench import forget_workbenches
            from fedfm.models.devices import users_settings_kept

            forget_data()
            forget_workbenches()
        with users_settings_kept():
            RoundLoop(LocalGrid(app), config, folder, listen, strategy).run()


def _ray(config: RunConfig, folder: RunFolder, listen: Listen) -> None:
    from fedfm.engines.ray_engine import run_on_ray

    run_on_ray(config, folder, listen)


def _flower(config: RunConfig, folder: RunFolder, listen: Listen) -> None:
    from fedfm.engines.flower import run_on_flower

    run_on_flower(config, folder, listen)


ENGINES: dict[str, Callable[[RunConfig, RunFolder, Listen], None]] = {
    "local": _local,
    "ray": _ray,
    "flower": _flower,
}

QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_ERROR_REPORTING": "false",
}


def quiet_libraries() -> None:
    """No telemetry, no look-ups, no progress bars of other libraries; a value that the user has set stays.

    To be called before they are imported: some read these once, then.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
