"""What is private follows its own gradient: what a strategy sends down does not concern it, and a refused round leaves
nothing behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from federation_helpers import IMAGES, TEXTS, tiny, train_federation
from safetensors.numpy import load

from fedfm.errors import TooFewSitesError
from fedfm.federation.checkpoint import load_checkpoint, save_checkpoint
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_order
from fedfm.results.run_folder import RunFolder

ALONE = {**TEXTS, "max-examples": 12, "sites": 1}
PLAIN = ("rounds=4", "engine.dtype=float64", "local.optimizer=sgd", "body.tuning=head", 'sharing."head.*"=private')


def last_head(outcome) -> np.ndarray:
    return load(list(outcome.private().values())[-1])["head.weight"]


@pytest.mark.parametrize("strategy", ["scaffold", "feddyn", "fedprox"])
def test_of_one_site_with_a_private_head_every_correction_is_fedavg(strategy, tmp_path):
    """SCAFFOLD's control variate of the head has no counterpart at the server: it would cancel the head's gradient."""
    expected = last_head(train_federation(tiny(tmp_path / "fedavg", *PLAIN, news=ALONE)))
    found = last_head(train_federation(tiny(tmp_path / strategy, *PLAIN, f"strategy.name={strategy}", news=ALONE)))
    assert np.abs(found - expected).max() < 1e-12


def test_ifca_tries_its_models_with_each_sites_own_head(tmp_path):
    trained = train_federation(tiny(tmp_path, *PLAIN, "strategy.name=ifca", news=ALONE))
    expected = last_head(train_federation(tiny(tmp_path / "fedavg", *PLAIN, news=ALONE)))
    assert np.abs(last_head(trained) - expected).max() < 1e-12  # the heads of both candidates are the site's own


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_refused_update_leaves_no_trace_at_its_site(at_once, tmp_path):
    config = tiny(
        tmp_path, "strategy.name=fedper", "screening.max-norm=1e-9", f"engine.sites-at-once={at_once}",
        news={**TEXTS, "sites": 2},
    )  # fmt: skip
    folder = RunFolder.create(config)
    with pytest.raises(TooFewSitesError):
        train_federation(config, folder=folder)
    assert not list((folder.path / "checkpoint").rglob("sites/**/*.safetensors"))


def without_an_answer(site: str, round: int, is_there: bool):
    """A node app whose `site` does not answer in a round: it has trained and its answer is lost, or it never was."""

    def node_app(message, context):
        if message.metadata.message_type == "train":
            order, _ = read_order(message)
            if (order.sites, order.round) == ((site,), round):
                if is_there:
                    app(message, context)
                raise ConnectionError("the line is dead")
        return app(message, context)

    return node_app


@pytest.mark.parametrize("how", [("strategy.name=scaffold",), ("strategy.name=fedper",), ("strategy.name=ditto",)])
def test_what_a_site_kept_of_an_update_that_was_lost_counts_for_nothing(how, tmp_path):
    """A site cannot know that its answer never came: the next order says of which round the last one was used."""
    config = tiny(tmp_path, "rounds=3", "engine.sites-at-once=1", *how, news={**TEXTS, "sites": 2})
    lost, gone = (train_federation(config, without_an_answer("news-2", 2, there)) for there in (True, False))
    assert lost.folder.rounds["sites_used"].tolist() == [0, 2, 1, 2]
    assert lost.sha256 == gone.sha256
    assert lost.private() == gone.private()
    assert lost.folder.info["final_personal"] == gone.folder.info["final_personal"]
    aside = [file.name for file in lost.folder.path.rglob("*.unused")]
    assert aside == ["000002.unused"]


def test_after_a_resume_too_a_lost_update_counts_for_nothing(tmp_path):
    """Lost in the last round before the kill: the checkpoint knows what was used, whatever became of the tables."""
    config = tiny(tmp_path, "rounds=3", "engine.sites-at-once=1", "strategy.name=scaffold", news={**TEXTS, "sites": 2})
    found = []
    for there in (True, False):
        folder = RunFolder.create(config)

        def killed(event):
            if event["event"] == "phase" and event.get("round") == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_federation(config, without_an_answer("news-2", 2, there), folder, killed)
        file = folder.path / "checkpoint" / "state.safetensors"
        assert load_checkpoint(file).used == {"news-1": 2, "news-2": 1}
        (folder.path / "metrics.csv").unlink()
        found.append(train_federation(config, folder=folder))
    assert found[0].sha256 == found[1].sha256


def test_a_checkpoint_of_an_older_version_sets_nothing_aside(tmp_path):
    """It does not say what was used: all that its sites kept counts."""
    config = tiny(tmp_path, "rounds=3", "strategy.name=scaffold", news={**TEXTS, "sites": 2})
    whole, folder = train_federation(config), RunFolder.create(config)

    def killed(event):
        if event["event"] == "phase" and event.get("round") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_federation(config, folder=folder, listen=killed)
    file = folder.path / "checkpoint" / "state.safetensors"
    save_checkpoint(file, replace(load_checkpoint(file), used=None))
    assert load_checkpoint(file).used is None
    resumed = train_federation(config, folder=folder)
    assert resumed.sha256 == whole.sha256
    assert resumed.private() == whole.private()
    assert not list(folder.path.rglob("*.unused"))


@pytest.mark.parametrize("strategy", ["q-fedavg", "cfl", "fednova", "scaffold", "feddyn", "afl", "ifca"])
def test_a_shared_tensor_that_one_domain_alone_has_is_trained(strategy, tmp_path):
    """With tuning `full` the text embedding is shared, and images do not pass it."""
    more = ["body.tuning=full", "strategy.momentum=0"] if strategy == "fednova" else ["body.tuning=full"]
    config = tiny(tmp_path, f"strategy.name={strategy}", *more, medical={**IMAGES, "sites": 1}, news=ALONE)
    weights = train_federation(config).weights
    assert all(np.isfinite(value).all() for value in weights.values())
    assert any("embeddings" in name for name in weights)
