"""The flower engine: the two apps under `flwr run`, simulated here or (engine.superlink) at sites across machines."""

from __future__ import annotations

import shutil
from pathlib import Path

import tomli_w

from fedfm import __version__, errors
from fedfm.config import RunConfig
from fedfm.engines.flower_cli import FlowerOutcome
from fedfm.engines.flower_deployment import run_on_superlink
from fedfm.engines.flower_simulation import Simulation, run_flower_app
from fedfm.errors import EngineError
from fedfm.results.run_folder import Listen, RunFolder
from fedfm.results.screen import EventTail

SERVER_APP = "fedfm.federation.server_app:app"
CLIENT_APP = "fedfm.federation.client_app:app"


def run_on_flower(config: RunConfig, folder: RunFolder, listen: Listen) -> None:
    """Submit the run, pass on its events while it goes, and raise what made it fail.

    Flower brings no result back from a ServerApp: it writes to the run folder, whose events are read here.
    """
    path = folder.path.resolve()
    events = path / "events.jsonl"
    tail = EventTail(events, events.stat().st_size if events.exists() else 0)
    began_at = tail.position

    def pass_on() -> None:
        for event in tail.read():
            listen(event)

    def tell_start_again() -> None:
        """Who watches a run again has not heard how it began: what the screen's header and columns are made of."""
        if events.exists() and (started := tail.last("run-started")):
            listen(started)

    work = path / "flower"
    app = write_app(work / "app")
    run_config = {"config": config.to_toml(), "run-folder": str(path)}
    if config.engine.superlink:
        outcome = run_on_superlink(
            app, run_config, config.engine.superlink, folder, work_folder=work, patience=config.engine.timeout,
            on_poll=pass_on, on_return=tell_start_again,
        )  # fmt: skip
    else:
        nodes = Simulation(len(config.sites()), workers=config.engine.workers)
        outcome = run_flower_app(
            app, run_config, nodes, work_folder=work, threads=config.engine.threads, on_poll=pass_on
        )
    pass_on()
    info = folder.info
    if info["status"] == "failed" and "error" in info:
        raise getattr(errors, info["error"], EngineError)(info["reason"])
    if tail.position == began_at:
        _raise_unseen(outcome, path)
    outcome.raise_if_unfinished()
    shutil.rmtree(work)  # Flower's own database and logs; a run that failed keeps them


def _raise_unseen(outcome: FlowerOutcome, folder: Path) -> None:
    """Raises EngineError: the ServerApp has ended without a word in the run's folder."""
    if "there is no such folder" in outcome.log_tail or outcome.status == "completed":
        what = f"the ServerApp does not see the folder of the run, {folder}"
        mend = "give `fedfm run` and flower-superexec one disk: runs.folder must be the same place for both"
        raise EngineError(what, where="runs.folder", mend=mend)


def write_app(folder: Path) -> Path:
    """A Flower app that carries no code: both components are those of the installed fedfm."""
    folder.mkdir(parents=True, exist_ok=True)
    components = {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
    config = {"config": "", "overrides": "", "run-folder": ""}
    app = {"publisher": "fedfm", "fab-include": ["LICENSE"], "components": components, "config": config}
    about = {"name": "fedfm-run", "description": "A run of fedfm, without code", "version": __version__}
    project = about | {"license": "Apache-2.0", "dependencies": []}
    (folder / "pyproject.toml").write_text(
        tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}}), encoding="utf-8"
    )
    (folder / "LICENSE").write_text("Apache-2.0\n", encoding="utf-8")
    return folder
