"""[update]: what a site sends is small, is what the server reads, and what was not sent is not lost."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from federation_helpers import TEXTS, Recorder, outcome, tiny, train_federation

from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.messages import split_more
from fedfm.federation.rounds import RoundLoop
from fedfm.federation.workbench import Workbench
from fedfm.results.run_folder import RunFolder

FORMS = {
    "fp16": 2,
    "qsgd8": 4,
    "qsgd4": 8,
    "qsgd2": 16,
    "sign": 32,
    "top-k": 40,
}  # and by how much it is smaller, about


def config_for(folder, *more: str):
    return tiny(folder, "rounds=2", *more, finance={**TEXTS, "sites": 3})


def run_together(config):
    folder = RunFolder.create(config)
    RoundLoop(LocalGrid(app), config, folder).run()
    return outcome(folder)


@pytest.mark.parametrize("form", FORMS)
def test_the_bytes_are_those_of_what_is_sent_and_a_pack_counts_the_same(tmp_path, form):
    more = (f"update.compress={form}", "engine.dtype=float64")
    recorder = Recorder()
    alone = train_federation(config_for(tmp_path / "a", *more), recorder)
    for _, _, up in recorder.of("train"):
        own, encoded = split_more(up)
        assert not own
        assert set(encoded) == {"encoded"}
    plain = train_federation(config_for(tmp_path / "b", "engine.dtype=float64"))
    sizes = [done.folder.rounds["bytes_up"].tolist()[1] for done in (plain, alone)]
    assert sizes[1] < sizes[0]
    together = run_together(config_for(tmp_path / "c", *more, "engine.sites-at-once=3"))
    left, right = (done.folder.rounds["bytes_up"].tolist() for done in (alone, together))
    assert left == right
    for name, value in alone.weights.items():
        np.testing.assert_allclose(together.weights[name], value, rtol=0, atol=1e-9, err_msg=name)


def test_what_was_not_sent_comes_later(tmp_path):
    """Two rounds of learning rates near zero after one of real work: with feedback the rest of the first arrives."""
    more = ("update.compress=top-k", "update.top-k=0.3", "rounds=1")
    kept = run_together(config_for(tmp_path / "a", *more))
    private = kept.private()
    assert len(private) == 3  # each site keeps its error
    lost = run_together(config_for(tmp_path / "b", *more, "update.error-feedback=false"))
    assert not lost.private()
    assert kept.sha256 == lost.sha256  # in the first round there is nothing to add
    second = [
        run_together(config_for(tmp_path / name, "rounds=2", *more[:2], feedback)).sha256
        for name, feedback in (("c", "update.error-feedback=true"), ("d", "update.error-feedback=false"))
    ]
    assert second[0] != second[1]


def test_what_was_not_sent_of_a_tensor_waits_for_a_round_that_shares_it(tmp_path):
    """RoLoRA sends B in odd rounds and A in even ones."""
    more = ("strategy.name=rolora", "body.tuning=lora", "update.compress=top-k", "update.top-k=0.5")
    recorder = Recorder()
    config = config_for(tmp_path, *more)
    done = train_federation(config, recorder)
    columns = Workbench(config, recorder.of("train")[0][0].card, 1).matrix.unflatten
    for site in ("finance-1", "finance-2", "finance-3"):
        files = [done.private()[f"{site}/{number:06d}.safetensors"] for number in (1, 2)]
        before, after = (columns(safetensors.numpy.load(file)["error>"]) for file in files)
        of_a, of_b = ([name for name in before if name.endswith(end)] for end in ("lora_A", "lora_B"))
        assert not any(before[name].any() for name in of_a)
        assert any(after[name].any() for name in of_a)
        assert any(before[name].any() for name in of_b)
        for name in of_b:
            assert np.array_equal(after[name], before[name])


def test_a_clip_bounds_what_moves_the_weights(tmp_path):
    """Three sites of norm at most 0.01: the mean is no longer, and without the clip it is."""
    moves = []
    for clip in ("0.01", "0.0"):
        done = run_together(config_for(tmp_path / clip, "rounds=1", f"update.clip={clip}", "engine.dtype=float64"))
        start = run_together(config_for(tmp_path / f"s{clip}", "rounds=1", "update.clip=1e-12", "engine.dtype=float64"))
        gaps = [np.square(done.weights[n] - start.weights[n]).sum() for n in done.weights]
        moves.append(float(np.sqrt(sum(gaps))))
    assert moves[0] <= 0.01 + 1e-9
    assert moves[1] > 0.02


def test_noise_is_drawn_by_seed_round_and_site(tmp_path):
    more = ("update.noise=0.01", "rounds=1")
    seeds = {"a": 0, "b": 0, "c": 1}
    first, again, other = (run_together(config_for(tmp_path / n, *more, f"seed={s}")) for n, s in seeds.items())
    assert first.sha256 == again.sha256 != other.sha256


def test_an_update_that_cannot_be_read_is_left_out(tmp_path):
    from federation_helpers import Spoiler

    def cut(arrays):
        return {name: value for name, value in arrays.items() if not name.endswith("#norm")}

    done = train_federation(config_for(tmp_path, "update.compress=qsgd4"), Spoiler("finance-1", cut))
    (event,) = done.events("update-left-out")
    assert "its compressed update cannot be read" in event["reason"]
