"""A Flower App on a SuperLink that is there, with sites across machines: hand it in, watch it, stop it at the sites.

The connection is one of Flower's own config.toml. ServerApp (started by flower-superexec at the coordinator) and this
process share the run's folder. What becomes of a run does not hang on this process: when it is killed, the run goes on,
and `fedfm resume` watches it again. Ctrl-C is another matter: it stops the run.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from fedfm.config import RunConfig
from fedfm.config.simulation import SimulationConfig
from fedfm.engines.flower_cli import ConfigValue, FlowerOutcome, SuperLink, flower_environment
from fedfm.errors import EngineError, Problem, UserError, did_you_mean
from fedfm.results.files import replace_text
from fedfm.results.run_folder import RunFolder
from fedfm.strategies import STRATEGIES

POLL_SECONDS = 0.5
STOP_SECONDS = 60.0  # until a ServerApp that was told to stop has let go of the run's folder


def run_on_superlink(
    app_folder: Path,
    run_config: Mapping[str, ConfigValue],
    name: str,
    folder: RunFolder,
    *,
    work_folder: Path,
    patience: float,
    on_poll: Callable[[], None],
    on_return: Callable[[], None] = lambda: None,
) -> FlowerOutcome:
    """Run the Flower App in `app_folder` on the SuperLink `name`, or go on to watch it where it still runs: then
    `on_return` is called first.

    For `patience` seconds without an answer of the SuperLink the run is not given up: it goes on when that is back.
    Raises EngineError when Flower refuses the app, or the SuperLink cannot be reached.
    """
    superlink = SuperLink(name, flower_environment(flower_home(), threads=1))
    note = work_folder / "submitted.json"
    run_id = _still_running(superlink, note)
    if run_id:
        on_return()
    else:
        run_id = superlink.submit(app_folder, run_config, work_folder / "run-config.toml")
        replace_text(note, json.dumps({"superlink": name, "run-id": run_id}))
    try:
        return superlink.follow(run_id, work_folder / "run.log", on_poll, POLL_SECONDS, patience)
    except KeyboardInterrupt as stop:
        stop.add_note(_stop(superlink, run_id, folder))
        raise


def flower_home() -> Path:
    """Where Flower's config.toml lies, as Flower finds it."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")


def check_deployment(config: RunConfig) -> list[Problem]:
    """What sites across machines cannot do, and whether Flower's config.toml knows their SuperLink."""
    problems = _check_connection(config.engine.superlink) if config.engine.name == "flower" else []
    if config.engine.name != "flower":
        what = f"the {config.engine.name} engine has no SuperLink"
        problems.append(Problem(what, "engine.superlink", 'engine.name = "flower"'))
    if (kind := STRATEGIES.get(config.strategy.name)) and kind.pools:
        what = f"{config.strategy.name} pools the data of sites, which stay where they are"
        problems.append(Problem(what, "strategy.name", "bounds are for the engines that simulate"))
    if config.simulation != SimulationConfig():
        what = "sites across machines do not play drop-outs, attackers or a clock"
        problems.append(Problem(what, "simulation", "leave [simulation] out, or engine.superlink"))
    return problems


def _check_connection(name: str) -> list[Problem]:
    file = flower_home() / "config.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("superlink", {})
    except FileNotFoundError:
        table = {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        return [Problem(f"Flower's {file} cannot be read: {error}", "engine.superlink", "correct that file")]
    known = sorted(key for key, value in table.items() if isinstance(value, dict))
    if name in known:
        authority = table[name].get("root-certificates")
        if authority is None or Path(str(authority)).is_file():  # from here, as Flower reads it
            return []
        what = f'root-certificates of the connection "{name}" in {file} is no file: {authority}'
        return [Problem(what, "engine.superlink", "give the authority's certificate")]
    what = f'{file} has no connection "{name}".{did_you_mean(name, known)}'
    mend = (
        f"its connections are {', '.join(known)}" if known else f'add to it: [superlink.{name}] address = "HOST:PORT"'
    )
    return [Problem(what, "engine.superlink", mend)]


def _still_running(superlink: SuperLink, note: Path) -> str:
    """The id of the run that was handed in before, where it has not ended; "" otherwise."""
    if not note.exists():
        return ""
    run_id = str(json.loads(note.read_text(encoding="utf-8"))["run-id"])
    try:
        return "" if superlink.record(run_id)["status"].startswith("finished:") else run_id
    except EngineError as error:  # a SuperLink that lost its database has no such run; one that is away has no answer
        if "not found" in str(error).lower():
            return ""
        raise


def _stop(superlink: SuperLink, run_id: str, folder: RunFolder) -> str:
    """Stop a run and wait until its ServerApp has let go of the folder; a sentence about how that went."""
    try:
        superlink.stop(run_id)
    except EngineError as error:
        return f"the SuperLink could not be told to stop, and the run may go on: {error}"
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            with folder.lock():
                return "the run is stopped at the sites; what they compute now is thrown away"
        except UserError:
            time.sleep(0.2)
    return f"the run is stopped, but its ServerApp still writes to {folder.path}"
