"""The family of errors: what each carries, and that it survives the way between processes."""

from __future__ import annotations

import pickle

import pytest

from fedfm import errors
from fedfm.errors import ConfigError, FedfmError, Problem, RunError, UserError, did_you_mean

FAMILY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FedfmError)]


def test_codes_differ_and_exit_codes_follow_the_branch():
    assert len({kind.code for kind in FAMILY}) == len(FAMILY)
    for kind in FAMILY:
        assert kind.exit_code == (2 if issubclass(kind, UserError) else 1)
        assert f"{kind.__name__}" in errors.__doc__, "the tree at the top of errors.py lacks it"
    assert all(issubclass(kind, UserError | RunError) for kind in FAMILY if kind is not FedfmError)


def test_what_where_and_how_to_mend():
    error = ConfigError("no such key", where="run.toml, line 3", mend="remove it")
    assert str(error) == "run.toml, line 3: no such key\n    mend: remove it"
    assert str(ConfigError("no such key")) == "no such key"
    assert str(ConfigError([Problem("a", "x"), Problem("b", mend="c")])) == "x: a\nb\n    mend: c"


@pytest.mark.parametrize("kind", FAMILY)
def test_errors_cross_process_borders(kind):
    error = pickle.loads(pickle.dumps(kind([Problem("a", "b", "c"), Problem("d")])))
    assert type(error) is kind
    assert error.problems == (Problem("a", "b", "c"), Problem("d"))


@pytest.mark.parametrize(
    ("word", "guess"),
    [("fedproxx", "fedprox"), ("FedProx", "fedprox"), ("proximal_mu", "proximal-mu"), ("zzz", ""), ("", "")],
)
def test_did_you_mean(word, guess):
    found = did_you_mean(word, ["fedavg", "fedprox", "proximal-mu"])
    assert found == (f' did you mean "{guess}"?' if guess else "")
