"""What is said of wrong configurations: every mistake, where it stands, and the likely right word."""

from __future__ import annotations

import pytest
from config_helpers import DOMAIN_A, problems, write

from fedfm import load_config as load_checked
from fedfm.config import load_config
from fedfm.errors import ConfigError

# ---- wrong keys and values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("round = 3", 'line 1, round: unknown key. did you mean "rounds"?'),
        ("[lokal]\nepochs = 1", 'line 1, lokal: unknown table. did you mean "local"?'),
        ("learning-rate = 1.0", 'line 1, learning-rate: unknown key. did you mean "local.learning-rate"?'),
        ("[local]\nbatch_size = 3", 'line 2, local.batch_size: unknown key. did you mean "batch-size"?'),
        ("rounds = 0", "line 1, rounds: must be at least 1, got 0"),
        ("rounds = 2.0", "line 1, rounds: must be a whole number, got 2.0"),
        ('rounds = "5"', 'line 1, rounds: must be a whole number, got "5"'),
        ("rounds = true", "line 1, rounds: must be a whole number, got true"),
        ("seed = -1", "line 1, seed: must be at least 0, got -1"),
        ("local.learning-rate = nan", "line 1, local.learning-rate: must be a finite number, got NaN"),
        ("local.learning-rate = -1", "line 1, local.learning-rate: must be greater than 0, got -1"),
        ("local.learning-rate = true", "line 1, local.learning-rate: must be a number, got true"),
        ("local.momentum = 1.0", "line 1, local.momentum: must be less than 1, got 1.0"),
        ("sampling.fraction = 1.5", "line 1, sampling.fraction: must be at most 1, got 1.5"),
        ('local.augment = "yes"', 'line 1, local.augment: must be true or false, got "yes"'),
        ("body.name = 5", "line 1, body.name: must be a text, in quotes, got 5"),
        ("body.lora-targets = []", "line 1, body.lora-targets: must not be empty, got []"),
        ("body = 5", "line 1, body: must be a table, got 5"),
        ("body.lora-rank = 1000000000", "line 1, body.lora-rank: must be at most 16384, got 1000000000"),
        (DOMAIN_A + "sites = 1000000000000", "line 3, domains.a.sites: must be at most 100000, got 1000000000000"),
        ('data-root = "a\\u0000b"', "line 1, data-root: the text holds a zero byte"),
        ('body.tuning = "lore"', 'line 1, body.tuning: "lore" is not known here. did you mean "lora"?'),
        ('engine.device = "gpu"', 'line 1, engine.device: must be auto, cpu, cuda, cuda:1 or mps, got "gpu"'),
        ('[sharing]\n"*B" = "domian"', 'line 2, sharing."*B": "domian" is not known here. did you mean "domain"?'),
        ("sharing = 4", "line 1, sharing: must be a table, got 4"),
        ("[domains]", "line 1, domains: must not be empty, got a table"),
        ("[domains.a]", 'line 1, domains.a.task: "task" is missing'),
        (DOMAIN_A + "sites = 0", "line 3, domains.a.sites: must be at least 1, got 0"),
        (DOMAIN_A + "local.epoch = 2", 'line 3, domains.a.local.epoch: unknown key. did you mean "epochs"?'),
        (DOMAIN_A + "local.epochs = 0", "line 3, domains.a.local.epochs: must be at least 1, got 0"),
        (DOMAIN_A + "[[domains.a.site]]", 'line 3, domains.a.site[1].name: "name" is missing'),
        ('[early-stopping]\nmetric = "wurst"', 'line 2, early-stopping.metric: "wurst" is not known here. did you mean '
         '"worst"? Known: mean, worst, medical, finance, ner'),
    ],
)  # fmt: skip
def test_one_wrong_thing(text, problem, tmp_path):
    assert problems(write(tmp_path, text)) == [f"run.toml, {problem}"]


@pytest.mark.parametrize(
    "name", ["shared", "private", "federation", "mean", "worst", "a b", "-a", "ä", "a" * 65], ids=ascii
)
def test_names_that_no_domain_can_have(name, tmp_path):
    (problem,) = problems(write(tmp_path, f'[domains."{name}"]\ntask = "text-classification"'))
    words = "shared, domain, private, federation, mean, worst"
    assert problem.endswith(f'"{name}" cannot name a domain: up to 64 letters, digits, - and _, and none of {words}')


@pytest.mark.parametrize("value", ["[" * 3000, "1" * 6000], ids=["brackets", "digits"])
def test_values_that_no_reader_of_toml_can_hold(value, tmp_path):
    (problem,) = problems(write(tmp_path, f"seed = {value}"))
    assert problem.startswith("run.toml")
    with pytest.raises(ConfigError, match="must be a whole number"):
        load_config({}, [f"seed={value}"])


def test_whom_a_list_of_sites_may_name(tmp_path):
    (problem,) = problems(write(tmp_path, '[sampling]\nwithout = ["ner-9"]'))
    assert 'no site "ner-9".' in problem
    assert problem.endswith("Sites: finance-1, finance-2, medical-1, medical-2, ner-1, ner-2")


def test_site_tables_and_their_number(tmp_path):
    tables = '[[domains.a.site]]\nname = "x"\n[[domains.a.site]]\nname = "y"\nsource = "y.csv"\n'
    number, source = problems(write(tmp_path, DOMAIN_A + "sites = 3\n" + tables))
    assert number == "run.toml, line 3, domains.a.sites: sites = 3, but there are 2 [[site]] tables"
    what = 'site "x" has no source: either every [[site]] table has its own, or none has'
    assert source == f"run.toml, line 4, domains.a.site: {what}"


def test_two_sites_of_one_name(tmp_path):
    text = DOMAIN_A + '[[domains.a.site]]\nname = "b-1"\n[domains.b]\ntask = "text-classification"\n'
    assert problems(write(tmp_path, text)) == [
        'run.toml, line 5, domains.b: two sites are named "b-1" (domains a and b)'
    ]


def test_a_wrong_value_comes_with_the_default(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, 'local.clip-norm = "x"'))
    meaning = "largest gradient norm of a site; 0: no clipping"
    assert caught.value.problems[0].mend == f"the default is clip-norm = 0.0; {meaning}"


def test_everything_wrong_is_told_at_once_from_top_to_bottom(tmp_path):
    """Keys, values, looks over several keys, and the checks of strategy, body and engine; nothing hides another."""
    text = """
rounds = "five"
body.name = "nowhere"
[engine]
workers = 2
[strategy]
name = "fedavg"
proximal-mu = 0.1
[domains.a]
tsk = "text-classification"
[domains.shared]
task = "text-classification"
[early-stopping]
metric = "b"
"""
    found = problems(write(tmp_path, text), "seed=x", load=load_checked)
    assert [problem.partition(":")[0].removeprefix("run.toml, ") for problem in found] == [
        "command line, seed", "line 2, rounds", "line 3, body.name", "line 5, engine.workers",
        "line 8, strategy.proximal-mu", "line 9, domains.a.task", "line 10, domains.a.tsk", "line 11, domains.shared",
        "line 14, early-stopping.metric",
    ]  # fmt: skip
    assert 'strategy "fedavg" has no such key. "fedprox" has it.' in found[4]


def test_the_keys_of_an_unknown_strategy_are_not_judged():
    assert problems({"strategy": {"name": 5, "proximal-mu": 0.1}}, load=load_checked) == [
        "configuration, strategy.name: must be a text, in quotes, got 5"
    ]
    assert problems({"strategy": {"name": "fedproxx"}}, load=load_checked) == [
        'configuration, strategy.name: unknown strategy "fedproxx". did you mean "fedprox"?'
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("engine.name=flower", "engine.sites-at-once=4"), "Flower sends every site an order of its own"),
        (("engine.name=flower", "engine.sites-at-once=auto"), "Flower sends every site an order of its own"),
        (("engine.workers=2",), "the local engine is one process"),
        (("engine.sites-at-once=0",), 'must be "auto" or a whole number of at least 1, got 0'),
        (("engine.sites-at-once=many",), 'must be "auto" or a whole number of at least 1, got "many"'),
    ],
)
def test_what_an_engine_cannot_do_is_refused(words, message):
    (found,) = problems({}, *words, load=load_checked)
    assert message in found
