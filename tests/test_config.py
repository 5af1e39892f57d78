"""Keys, defaults, places, overrides, and what is said of wrong ones."""

from __future__ import annotations

import tomllib

import pytest
from config_helpers import DOMAIN_A, problems, write

from fedfm.config import RunConfig, load_config
from fedfm.config.places import dotted, key_lines
from fedfm.errors import ConfigError

DOMAIN = {
    "source": "generated", "sites": 2, "partition": "iid", "alpha": 0.5, "minimum-per-site": 2, "classes-per-site": 2,
    "sigma": 1.0, "weight": 1.0, "max-examples": 0, "text-column": "text", "label-column": "label", "image-size": 0,
    "strict-tags": False, "lora-rank": 0, "minimum-sites": 0, "local": {}, "site": [],
}  # fmt: skip
EVERY_KEY = {  # a change here is a change of the contract with every configuration file in the world
    "seed": 0,
    "rounds": 5,
    "data-root": ".",
    "engine": {
        "name": "local", "sites-at-once": 1, "workers": 1, "gpus-per-worker": 0.0, "address": "", "device": "auto",
        "threads": 1, "dtype": "float32", "feature-cache": 1024, "timeout": 3600.0,
        "train-timeout": 0.0, "evaluate-timeout": 0.0, "wait": 120.0, "superlink": "",
    },
    "body": {
        "name": "tiny", "tuning": "lora", "layers": 0, "trainable-layers": 0, "weights": "pretrained", "lora-rank": 8,
        "lora-alpha": 16.0,
        "domain-lora-rank": 0,
        "lora-targets": ["all-linear"], "image-adapter": "stem", "image-tokens": 16,
    },
    "strategy": {"name": "fedavg", "server-learning-rate": 1.0},
    "sharing": {},
    "sampling": {"fraction": 1.0, "per-domain-minimum": 1, "without": [], "minimum-sites": 1},
    "screening": {"max-norm": 0.0},
    "local": {
        "epochs": 1, "batch-size": 16, "optimizer": "adamw", "learning-rate": 5e-4, "head-learning-rate": 1e-3,
        "momentum": 0.0, "weight-decay": 0.0, "clip-norm": 0.0, "schedule": "constant", "max-length": 64,
        "augment": False, "length-buckets": False,
    },
    "evaluation": {"every": 1},
    "update": {"clip": 0.0, "noise": 0.0, "compress": "none", "top-k": 0.01, "error-feedback": True},
    "simulation": {
        "seconds-per-step": 0.0, "bandwidth": 0.0, "latency": 0.0, "spread": 0.0, "speeds": {}, "bandwidths": {},
        "drop-out": 0.0, "stragglers": 0.0, "partial-work": "strategy", "joins": {}, "leaves": {},
        "attack": "none", "attackers": 0, "attack-scale": 10.0,
    },
    "early-stopping": {"patience": 0, "metric": "mean"},
    "domains": {
        "medical": {"task": "image-classification", **DOMAIN},
        "finance": {"task": "text-classification", **DOMAIN},
        "ner": {"task": "token-classification", **DOMAIN},
    },
    "tracking": {"to": [], "project": "fedfm"}, "runs": {"folder": "runs"},
}  # fmt: skip

DESIGN = """
seed = 0
rounds = 5
data-root = "."
engine = { name = "local", sites-at-once = 1, workers = 1, device = "auto" }
body = { name = "tiny", tuning = "lora", layers = 0, lora-rank = 8 }
strategy = { name = "fedavg", server-learning-rate = 1.0 }
sharing = {}
sampling = { fraction = 1.0, per-domain-minimum = 1 }
local.epochs = 1
local.batch-size = 16
local.optimizer = "adamw"
local.learning-rate = 5e-4
local.head-learning-rate = 1e-3
local.max-length = 64
early-stopping = { patience = 0, metric = "mean" }
runs = { folder = "runs" }
[domains]
finance = { task = "text-classification", source = "generated", sites = 2 }
ner = { task = "token-classification", source = "generated", sites = 2 }
[domains.medical]
task = "image-classification"
source = "generated"
sites = 2
partition = "iid"
alpha = 0.5
weight = 1.0
max-examples = 0
"""
# ---- keys and defaults -----------------------------------------------------------------------------------------------


def test_every_key_and_its_default():
    assert RunConfig().to_dict() == EVERY_KEY
    assert load_config({}) == RunConfig()


def test_design_and_code_agree():
    """The block of DESIGN.md, section 4, is the default configuration: keys, values, types."""

    def inside(part, whole, path=()):
        for key, value in part.items():
            assert key in whole, (*path, key)
            if isinstance(value, dict):
                inside(value, whole[key], (*path, key))
            else:
                assert (value, type(value)) == (whole[key], type(whole[key])), (*path, key)

    inside(tomllib.loads(DESIGN), EVERY_KEY)
    assert load_config(tomllib.loads(DESIGN)) == RunConfig()


@pytest.mark.parametrize(
    "text",
    [
        "",
        'strategy = { name = "fedprox", proximal-mu = 0.1 }',
        '[sharing]\n"*lora_B*" = "domain"\n"body.*" = "shared"\n"head.*" = "private"',
        DOMAIN_A + '[[domains.a.site]]\nname = "x"\nsource = "x.csv"\n[[domains.a.site]]\nname = "y"\nsource = "y.csv"',
        DOMAIN_A + "".join(f'[[domains.a.site]]\nname = "{name}"\n' for name in "xyz"),  # not the default number
        DOMAIN_A + "sites = 3\n[domains.a.local]\nepochs = 4\nlearning-rate = 1",
        'body.lora-targets = ["query", "value"]\nbody.name = "a \\"b\\" \\\\ ü"',
    ],
)
def test_what_is_shown_is_read_again_as_the_same(text, tmp_path):
    config = load_config(write(tmp_path, text))
    again = load_config(write(tmp_path, config.to_toml()))
    assert again == config
    assert again.sha256() == config.sha256()
    assert list(again.sharing) == list(config.sharing)  # the first pattern that matches wins
    assert load_config(config.to_dict()) == config


def test_a_domain_overrides_single_keys_of_local(tmp_path):
    text = "[local]\nepochs = 2\nmax-length = 32\n" + DOMAIN_A + "local = { max-length = 96 }"
    config = load_config(write(tmp_path, text))
    assert config.local_for("a").max_length == 96
    assert config.local_for("a").epochs == 2
    assert config.local.max_length == 32


@pytest.mark.parametrize(
    ("examples", "share", "steps"), [(5, 1.0, 9), (4, 1.0, 6), (5, 0.4, 4), (5, 0.01, 1), (0, 1.0, 0), (0, 0.4, 0)]
)
def test_local_steps_are_those_of_every_epoch_and_a_stragglers_at_least_one(examples, share, steps):
    """Three epochs in batches of two: 3 * 3 of five examples, 3 * 2 of four."""
    assert load_config({"local": {"epochs": 3, "batch-size": 2}}).local.steps(examples, share) == steps


def test_sites_are_named_after_their_domain_and_sort_as_they_count(tmp_path):
    config = load_config(write(tmp_path, DOMAIN_A + "sites = 11"))
    assert list(config.sites())[:2] == ["a-01", "a-02"]
    assert list(config.sites())[-1] == "a-11"


# ---- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("rounds=3", lambda c: c.rounds == 3),
        ("rounds = 3", lambda c: c.rounds == 3),
        ("local.learning-rate=1", lambda c: c.local.learning_rate == 1.0),
        ("local.learning-rate=.5", lambda c: c.local.learning_rate == 0.5),
        ("local.learning-rate=3e-4", lambda c: c.local.learning_rate == 3e-4),
        ("data-root=../shared/data", lambda c: c.data_root == "../shared/data"),
        ("data-root=with spaces = and signs # too", lambda c: c.data_root == "with spaces = and signs # too"),
        ("data-root=", lambda c: c.data_root == ""),
        ("data-root=2026-11-22", lambda c: c.data_root == "2026-11-22"),
        ('data-root="5"', lambda c: c.data_root == "5"),
        ("local.augment=true", lambda c: c.local.augment is True),
        ('body.lora-targets=["query", "value"]', lambda c: c.body.lora_targets == ("query", "value")),
        ('sharing."*lora_B*"=domain', lambda c: c.sharing == {"*lora_B*": "domain"}),
        ('sharing."a=b"=private', lambda c: c.sharing == {"a=b": "private"}),
        ('sampling={fraction=0.5}', lambda c: c.sampling.fraction == 0.5 and c.sampling.minimum_sites == 1),
        ("strategy.proximal-mu=0.1", lambda c: c.strategy.own_keys == {"proximal-mu": 0.1}),
    ],
)  # fmt: skip
def test_overrides(override, read):
    assert read(load_config({}, [override]))


def test_the_last_override_wins_and_beats_the_file(tmp_path):
    assert load_config(write(tmp_path, "rounds = 2"), ["rounds=3", "rounds=4"]).rounds == 4


def test_overrides_change_the_default_domains_where_the_file_names_none(tmp_path):
    config = load_config(write(tmp_path, "rounds = 2"), ["domains.medical.sites=3", "domains.ner.max-examples=9"])
    assert list(config.domains) == ["medical", "finance", "ner"]
    assert [len(config.domains[d].site_names(d)) for d in config.domains] == [3, 2, 2]
    assert config.domains["ner"].max_examples == 9
    named = load_config(write(tmp_path, DOMAIN_A), ["domains.a.sites=3"])
    assert list(named.domains) == ["a"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("rounds", 'command line: "rounds" is not of the form key=value'),
        ("=3", 'command line: cannot read the key of "=3"'),
        ("#a=3", 'command line: cannot read the key of "#a=3"'),
        ("sharing.*lora_B*=domain", 'command line: cannot read the key of "sharing.*lora_B*=domain"'),
        ("rounds=five", 'command line, rounds: must be a whole number, got "five"'),
        ("rounds=1\nseed=3", 'command line, rounds: must be a whole number, got "1\\nseed=3"'),
        ("rounds.x=3", "command line, rounds: must be a whole number, got a table"),
        ("body.lora-targets=query", 'command line, body.lora-targets: must be a list, got "query"'),
        ("domains.a.task=text", 'command line, domains.a.task: "text" is not known here.'),
        ("domains.new.sites=2", 'command line, domains.new.task: "task" is missing'),
    ],
)
def test_wrong_overrides(override, problem, tmp_path):
    assert problems(write(tmp_path, "rounds = 2\n" + DOMAIN_A), override) == [problem]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_that_are_none(tmp_path):
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    (tmp_path / "bytes.toml").write_bytes(b"seed = 0 # \xff")
    for name, what, mend in [
        ("nowhere.toml", "cannot read the configuration: No such file or directory", "give the path of a TOML file"),
        ("rounds=3", "cannot read", "the configuration file comes first: fedfm run CONFIG"),
        (".", "cannot read the configuration: Is a directory", "the configuration of this run is"),
        ("bytes.toml", "not UTF-8 text (byte 11)", ""),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name)
        assert what in caught.value.problems[0].what
        assert mend in caught.value.problems[0].mend


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed = 0\nname = tiny", "run.toml, line 2: not valid TOML: Invalid value"),
        ("[sharing]\n*lora_B* = 'domain'", "run.toml, line 2: not valid TOML: Invalid statement"),
        ("rounds = 1\nrounds = 2", "run.toml, line 2: not valid TOML: Cannot overwrite a value"),
        ("[body]\n[body]", "run.toml, line 2: not valid TOML: Cannot declare ('body',) twice"),
    ],
)
def test_no_toml(text, problem, tmp_path):
    assert problems(write(tmp_path, text)) == [problem]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 1\r\nrounds = 'x'\r\n")
    assert problems(file) == ['run.toml, line 2, rounds: must be a whole number, got "x"']


def test_lines_of_keys():
    text = '''# [not] = "a table"
a.b = 1  # c = 2
"q.r" = """
x = 1
[y]
"""
list = [
  1,
]
inline = { u = 1, v = { w = 2 } }
[ t . "u v" ] # comment
k = 1
[[t.site]]
name = "one"

[[t.site]]
name = "two"
[t.site.deep]
z = 1
'''
    assert key_lines(text) == {
        ("a",): 2, ("a", "b"): 2, ("q.r",): 3, ("list",): 7,
        ("inline",): 10, ("inline", "u"): 10, ("inline", "v"): 10, ("inline", "v", "w"): 10,
        ("t", "u v"): 11, ("t", "u v", "k"): 12,
        ("t", "site", 0): 13, ("t", "site", 0, "name"): 14, ("t", "site", 1): 16, ("t", "site", 1, "name"): 17,
        ("t", "site", 1, "deep"): 18, ("t", "site", 1, "deep", "z"): 19,
    }  # fmt: skip
    assert dotted(("t", "u v", "site", 1, "name")) == 't."u v".site[2].name'
