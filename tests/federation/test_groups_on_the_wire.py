"""Which tensors travel to whom, seen in the real messages of real rounds."""

from __future__ import annotations

import numpy as np
import pytest
from federation_helpers import TEXTS, Recorder, same, tiny, train_federation

from fedfm.arrays import group_of, num_bytes
from fedfm.errors import ConfigError
from fedfm.models.body import load_body


def shared_of(arrays):
    return {name: value for name, value in arrays.items() if group_of(name) == "shared"}


def test_a_round_of_finance_sites_only_leaves_the_other_domains_bit_identical(tmp_path):
    """One of five finance sites is sampled (0.2 * 5), none of two others (0.2 * 2 rounds to 0)."""
    config = tiny(
        tmp_path, "domains.finance.sites=5", "sampling.fraction=0.2", "sampling.per-domain-minimum=0", "rounds=2",
        "domains.finance.max-examples=20",
    )  # fmt: skip
    recorder = Recorder()
    after = train_federation(config, recorder)
    assert {order.card.domain for order, *_ in recorder.of("train")} == {"finance"}
    before = {}
    for order, down, _ in recorder.of("evaluate"):
        if order.round == 0:
            before |= down
    assert same(before, after.weights, "medical/")
    assert same(before, after.weights, "ner/")
    for group in ("finance/", "shared/"):
        assert not same(before, after.weights, group)
    assert after.folder.rounds["sites_used"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("tuning", ["head", "layernorm", "lora", "full"])
def test_a_site_is_sent_shared_and_its_own_group_and_nothing_frozen(tmp_path, tuning):
    recorder = Recorder()
    config = tiny(tmp_path, f"body.tuning={tuning}")
    train_federation(config, recorder)
    trained_sites = set()
    for order, down, up in recorder.of("train"):
        trained_sites.update(order.sites)
        assert {group_of(name) for name in down} <= {"shared", order.card.domain}
        assert up.keys() == down.keys()  # the change of what was sent, no more and no less
        if tuning != "full":
            learnt = ("lora_A", "lora_B") if tuning == "lora" else ("LayerNorm.weight", "LayerNorm.bias")
            assert all(name.endswith(learnt) for name in shared_of(down))
            assert bool(shared_of(down)) == (tuning != "head")
            assert num_bytes(shared_of(down)) < 0.2 * num_bytes(state_of_the_body(config))
    assert trained_sites == set(config.sites())
    for order, down, _ in recorder.of("evaluate"):
        assert {group_of(name) for name in down} <= {"shared", order.card.domain}


def state_of_the_body(config):
    return {name: value.numpy() for name, value in load_body(config).model.state_dict().items() if value.dim()}


def test_an_image_site_and_a_text_site_are_sent_the_same_shared_tensors(tmp_path):
    recorder = Recorder()
    train_federation(tiny(tmp_path, "rounds=2"), recorder)
    for number in (1, 2):
        sent = {order.sites[0]: shared_of(down) for order, down, _ in recorder.of("train") if order.round == number}
        reference = sent["medical-1"]
        assert reference
        assert len(sent) == 6
        assert all(same(reference, other) for other in sent.values())


def test_patterns_move_tensors_between_groups_and_private_ones_never_travel(tmp_path):
    sharing = ('sharing."*lora_B*"=domain', 'sharing."head*"=private')
    recorder = Recorder()
    done = train_federation(tiny(tmp_path, "rounds=2", *sharing), recorder)
    messages = [(order, down) for kind in ("train", "evaluate") for order, down, _ in recorder.of(kind)]
    for order, down in messages:
        assert not any("head" in name for name in down)
        for name in down:
            if "lora" in name:
                assert group_of(name) == (order.card.domain if name.endswith("lora_B") else "shared")
    for _, _, up in recorder.of("train"):
        assert not any("head" in name for name in up)
    assert not any("head" in name or name.startswith("private/") for name in done.weights)
    assert sorted(done.private()) == [
        f"{d}-{n}/{r:06d}.safetensors" for d in ("finance", "medical", "ner") for n in (1, 2) for r in (1, 2)
    ]


def test_private_heads_differ_between_sites_and_go_on_from_round_to_round(tmp_path):
    """After round 2 a head stands where two rounds took it: not where one round from its start would."""
    from safetensors.numpy import load

    kept = train_federation(tiny(tmp_path, "rounds=2", 'sharing."head*"=private')).private()
    first, second = (load(kept[f"ner-1/{r:06d}.safetensors"]) for r in (1, 2))
    other = load(kept["ner-2/000002.safetensors"])
    assert first.keys() == {"head.weight", "head.bias"}
    assert not same(second, other)
    assert np.abs(second["head.bias"]).max() > 0
    gone = [np.linalg.norm(later["head.bias"]) for later in (first, second)]
    assert gone[1] > 1.3 * gone[0]  # the bias starts at 0 and AdamW moves it some 1e-3 a step


def test_a_site_alone_gets_back_what_it_trained(tmp_path):
    """One site: what the server holds after a round is what that site keeps when everything is private to it.

    The change that travels has a sign and a start; w + (trained - w) = trained up to one rounding in float64.
    """
    from safetensors.numpy import load

    config = tiny(tmp_path, "engine.dtype=float64", finance={**TEXTS, "sites": 1})
    federated = train_federation(config).weights
    kept = load(train_federation(config.replace('sharing."*"=private')).private()["finance-1/000001.safetensors"])
    assert {name.partition("/")[2] for name in federated} == kept.keys()
    for name, value in federated.items():
        assert np.abs(value - kept[name.partition("/")[2]]).max() < 1e-14, name


def test_everything_private_is_local_training(tmp_path):
    """The control "every site on its own": nothing travels, and it still trains, scores and ends."""
    recorder = Recorder()
    done = train_federation(tiny(tmp_path, 'sharing."*"=private'), recorder)
    assert all(not down for _, down, _ in recorder.of("train"))
    assert done.weights == {}
    assert len(done.private()) == 6


def test_a_head_cannot_be_shared_by_domains_of_unlike_shapes(tmp_path):
    with pytest.raises(ConfigError) as caught:
        train_federation(tiny(tmp_path, 'sharing."head*"=shared'))
    assert "head.weight" in str(caught.value)
    assert "sharing" in str(caught.value)
    assert '"domain"' in str(caught.value)
