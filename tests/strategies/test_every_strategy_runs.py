"""Three domains, two sites each, two rounds, with every strategy of the table: finite, resumes, K sites as one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fedfm.engines import load_config
from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder
from fedfm.strategies import STRATEGIES

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import IMAGES, TEXTS, WORDS, outcome

pytestmark = pytest.mark.usefixtures("small_data")

TOLERANCE = {"cagrad": 1e-7}  # its step comes from an iterative solver, which magnifies the last digits
UNEQUAL = {"partition": "quantity", "sites": 2}


class StoppedError(Exception):
    """A run that ends in the middle, as a killed one does."""


def go(config, folder: RunFolder | None = None, listen=lambda event: None):
    """The run on one node that holds all sites, or what is left of it in `folder`."""
    folder = folder or RunFolder.create(config)
    RoundLoop(LocalGrid(app), config, folder, listen).run()
    return outcome(folder)


def config_for(name: str, folder: Path, *more: str):
    data = {
        "rounds": 2,
        "runs": {"folder": str(folder)},
        "body": {"layers": 1, "image-tokens": 4, "tuning": "lora", "lora-rank": 2},
        "local": {"batch-size": 4, "max-length": 16},
        "engine": {"dtype": "float64"},
        "strategy": {"name": name},
        "domains": {"medical": IMAGES | UNEQUAL, "finance": TEXTS | UNEQUAL, "ner": WORDS | UNEQUAL},
    }
    return load_config(data, *more)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_rounds_alone_and_two_at_once_stopped_and_resumed(name, tmp_path):
    """float64: 1e-10 between one site at a time and two at once, the second stopped after its first round."""
    alone = go(config_for(name, tmp_path / "a"))

    def stop(event) -> None:
        if event["event"] == "phase" and event["round"] == 2 and event["phase"] == "train":
            raise StoppedError

    config = config_for(name, tmp_path / "b", "engine.sites-at-once=2")
    folder = RunFolder.create(config)
    with pytest.raises(StoppedError):
        go(config, folder, stop)
    together = go(load_config(folder.path / "config.toml"), folder)
    assert alone.weights.keys() == together.weights.keys()
    for tensor, value in alone.weights.items():
        assert np.isfinite(value).all(), tensor
        np.testing.assert_allclose(
            together.weights[tensor], value, rtol=0, atol=TOLERANCE.get(name, 1e-10), err_msg=tensor
        )
    columns = ["bytes_down", "bytes_up", "sites_asked", "sites_used", "sites_dropped"]
    assert together.folder.rounds[columns].equals(alone.folder.rounds[columns])
    has_own = bool(together.private()) or STRATEGIES[name].tunes_after or STRATEGIES[name].groups_sites
    for done in (alone, together):
        final = [done.folder.info["final"], done.folder.info["final_personal"] or {}]
        assert all(np.isfinite(v) for scores in final for values in scores.values() for v in values.values())
        assert set(done.folder.metrics["model"]) <= ({"global", "personal"} if has_own else {"global"})
    order = ["round", "scope", "name", "split", "metric", "model"]
    told = "metric != 'cosine_to_mean'"  # of single updates, which a pack does not send
    left, right = (done.folder.metrics.query(told).sort_values(order)["value"] for done in (alone, together))
    np.testing.assert_allclose(left, right, rtol=0, atol=max(1e-8, 10 * TOLERANCE.get(name, 0)))
