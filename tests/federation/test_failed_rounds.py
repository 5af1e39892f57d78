"""Too few sites answer, or none scores: the run fails, keeps what it has, and can be resumed."""

from __future__ import annotations

import pytest
from bad_site_helpers import BAD, SPOILT
from federation_helpers import Spoiler, events, outcome, tiny, train_federation
from flwr.app import Message
from safetensors.numpy import load_file

from fedfm import engines
from fedfm.arrays import sha256
from fedfm.engines import running
from fedfm.engines.local import LocalGrid
from fedfm.errors import RunError, TooFewSitesError
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_order
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder


@pytest.fixture
def engine(monkeypatch):
    """`fedfm.run` with the local engine over another node app, and no figures; a function that sets the app."""

    def use(node_app) -> None:
        def run_local(config, folder, listen):
            RoundLoop(LocalGrid(node_app, len(config.sites())), config, folder, listen).run()

        monkeypatch.setitem(running.ENGINES, "local", run_local)

    monkeypatch.setattr(running, "leave_report", lambda folder: None)
    monkeypatch.setattr(running, "leave_report_of_failure", lambda folder: None)
    return use


def test_all_rows_are_on_disk_before_a_run_says_that_it_has_ended(tmp_path, monkeypatch):
    """Who is killed right after that is not taken up again."""
    real, seen = RunFolder.update, []

    def watching(self, **fields):
        real(self, **fields)
        if fields.get("status") == "finished":
            seen.append(((self.path / "metrics.csv").read_bytes(), (self.path / "sent.csv").read_bytes()))

    monkeypatch.setattr(RunFolder, "update", watching)
    done = train_federation(tiny(tmp_path))
    assert seen == [((done.folder.path / "metrics.csv").read_bytes(), (done.folder.path / "sent.csv").read_bytes())]
    assert b",test," in seen[0][0]


def test_too_few_usable_sites_end_the_run_with_a_checkpoint_that_can_be_resumed(tmp_path, engine):
    """Round 2 of 3 loses two of six sites, the minimum is five; mended, the resumed run ends as a clean one."""
    config = tiny(tmp_path, "rounds=3", "sampling.minimum-sites=5")

    def node_app(message: Message, context) -> Message:
        for site in ("medical-2", BAD):
            if message.metadata.message_type == "train" and read_order(message)[0].sites == (site,):
                return Spoiler(site, SPOILT["NaN"][0], round=2)(message, context)
        return app(message, context)

    engine(node_app)
    with pytest.raises(TooFewSitesError) as caught:
        engines.run(config)
    assert isinstance(caught.value, RunError)
    assert caught.value.exit_code == 1
    (path,) = (found for found in tmp_path.iterdir() if found.is_dir())
    message = str(caught.value)
    assert f"; {BAD} was left out: " in message  # the first of them, with its reason
    assert "round 2: 4 usable updates, the minimum is 5 (sampling.minimum-sites)" in message
    assert f"`fedfm resume {path}` goes on after round 1" in message
    folder = RunFolder.open(path)
    assert folder.info["status"] == "failed"
    assert folder.info["error"] == "TooFewSitesError"
    assert "4 usable updates" in folder.info["reason"]
    assert "4 usable updates" in events(folder, "run-failed")[0]["reason"]
    assert [event["site"] for event in events(folder, "update-left-out")] == [BAD, "medical-2"]

    engine(app)
    resumed = engines.resume(path)
    assert resumed.info["status"] == "finished"
    assert resumed.info["reason"] is None
    assert resumed.info["final_weights_sha256"] == train_federation(config).sha256
    assert resumed.rounds["round"].tolist() == [0, 1, 2, 3]
    assert sha256(outcome(folder).weights) == resumed.info["final_weights_sha256"]
    assert engines.resume(path).info == resumed.info  # a finished run is left as it is


def test_a_run_whose_test_nobody_scores_has_not_finished_and_resume_asks_again(tmp_path, engine):
    """All sites fail when they are to score the test: nothing is lost, and nothing is called finished."""
    config = tiny(tmp_path)

    def node_app(message: Message, context) -> Message:
        if message.metadata.message_type == "evaluate" and read_order(message)[0].split == "test":
            raise OSError("disk gone")
        return app(message, context)

    engine(node_app)
    with pytest.raises(RunError, match="no site has scored its test"):
        engines.run(config)
    (path,) = (found for found in tmp_path.iterdir() if found.is_dir())
    info = RunFolder.open(path).info
    assert (info["status"], info["final_round"]) == ("failed", 1)
    assert sha256(load_file(path / "model" / "weights.safetensors")) == info["final_weights_sha256"]

    engine(app)
    resumed = engines.resume(path)
    whole = train_federation(config)
    assert resumed.info["status"] == "finished"
    assert resumed.info["final"] == whole.folder.info["final"] != {}
    assert resumed.info["final_weights_sha256"] == whole.sha256
