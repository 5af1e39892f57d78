"""The coordinator's side as a Flower app: `flwr run .`, or the `flower` engine, which adds a live table.

[tool.flwr.app.config] in pyproject.toml is a run's configuration as Flower likes it: flat keys, each with a default. On
top of it `overrides` takes fedfm's own `key=value` words, and `config` a whole configuration as TOML text, which then
replaces the flat keys. `run-folder` names a folder that was made before; without it a new one is made.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfm.config import RunConfig, load_config
from fedfm.results.figures import draw_figures
from fedfm.results.run_folder import RunFolder
from fedfm.results.screen import Screen
from fedfm.strategies import check_strategy

OWN_KEYS = ("config", "overrides", "run-folder")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run. What goes wrong is written to the run folder and raised, so that Flower's status says failed."""
    from fedfm.federation.rounds import RoundLoop

    config = read_run_config(context.run_config)
    config = config.replace("engine.name=flower")  # whatever engine the configuration was written for
    given = str(context.run_config.get("run-folder", ""))
    folder = RunFolder.open(given) if given else RunFolder.create(config)
    try:
        with Screen(quiet=bool(given)) as screen:  # under the flower engine the caller shows the run
            RoundLoop(grid, config, folder, screen.handle).run()
    except Exception as error:
        folder.fail(error)
        raise
    if not given:
        draw_figures(folder)
        print(Path(folder.path).resolve())


def read_run_config(flat: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from Flower's flat run config. Raises ConfigError."""
    text = str(flat.get("config", ""))
    nested: dict[str, Any] = tomllib.loads(text) if text else {}
    if not text:
        for key, value in flat.items():
            if key not in OWN_KEYS:
                parts = 1 if key.startswith("sharing.") else -1  # the patterns of [sharing] have dots of their own
                *tables, last = key.split(".", parts)
                place = nested
                for table in tables:
                    place = place.setdefault(table, {})
                place[last] = value
    return load_config(nested, shlex.split(str(flat.get("overrides", ""))), (check_strategy,))
