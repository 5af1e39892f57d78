"""A strategy object of Flower's in a run of ours: the weights of our own rule, and a sentence where it cannot work."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp import strategy as flower
from safetensors.numpy import load_file

from fedfm import run
from fedfm.errors import ConfigError, RunError

ONE = {"finance": {"task": "text-classification", "max-examples": 24, "sites": 3}}


def weights_of(folder, domains=ONE, strategy=None, **own):
    data = {
        "rounds": 2, "runs": {"folder": str(folder)}, "body": {"layers": 1}, "domains": domains,
        "engine": {"dtype": "float64"}, "strategy": own, "local": {"batch-size": 4, "max-length": 16},
    }  # fmt: skip
    done = run(data, strategy=strategy)
    return load_file(done.folder / "model" / "weights.safetensors")


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        (lambda: flower.FedAvg(), {"name": "fedavg"}),
        (lambda: flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.7),
         {"name": "fedavgm", "server-learning-rate": 0.5, "server-momentum": 0.7}),
        (lambda: flower.FedAdam(eta=0.01, eta_l=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3),
         {"name": "fedadam", "form": "flower"}),
        (lambda: flower.FedMedian(), {"name": "median"}),
    ],
    ids=lambda value: value.get("name") if isinstance(value, dict) else "",
)  # fmt: skip
def test_flowers_object_and_our_rule_make_the_same_run(theirs, own, tmp_path):
    ours, flowers = weights_of(tmp_path / "a", **own), weights_of(tmp_path / "b", strategy=theirs())
    assert ours.keys() == flowers.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(flowers[name], value, rtol=0, atol=1e-9, err_msg=name)


def test_unlike_domains_are_refused_with_the_reason(tmp_path):
    two = ONE | {"ner": {"task": "token-classification", "max-examples": 12, "sites": 2}}
    with pytest.raises(RunError, match="the same tensors of every site"):
        weights_of(tmp_path, two, flower.FedAvg())


def test_another_engine_and_another_thing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="works in this process only"):
        run({"engine": {"name": "ray"}}, strategy=flower.FedAvg())
    with pytest.raises(TypeError, match="neither a strategy"):
        run({}, "rounds=1", f"runs.folder={tmp_path}", strategy=3)
    assert not list(tmp_path.iterdir())  # no run has begun
