"""site.toml: what it may hold, where its paths lead, and what is said of one that is wrong."""

from __future__ import annotations

import pytest

from fedfm.config.site import load_site_settings
from fedfm.errors import ConfigError

GOOD = """
site = "st-mary"
domain = "medical"
source = "data/scans"
[coordinator]
address = "coordinator.example.org:8000"
root-certificates = "certs/ca.crt"
private-key = "/run/secrets/st-mary"
"""


def load(tmp_path, text):
    file = tmp_path / "site.toml"
    file.write_text(text, encoding="utf-8")
    return load_site_settings(file)


@pytest.mark.parametrize("folder", ['a"b', "a\\b", "a\nb"], ids=["quote", "backslash", "line end"])
def test_a_path_that_cannot_be_told_to_flower(tmp_path, folder):
    (tmp_path / folder).mkdir()
    with pytest.raises(ConfigError, match="which cannot be told to Flower's SuperNode"):
        load(tmp_path / folder, GOOD)
    (tmp_path / "a b ä").mkdir()
    assert load(tmp_path / "a b ä", GOOD).site == "st-mary"


def test_defaults_and_paths_from_the_files_folder(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    settings = load(tmp_path, GOOD)
    assert settings.source == str(tmp_path / "data/scans")
    assert settings.state == str(tmp_path / "state")
    assert settings.coordinator.root_certificates == str(tmp_path / "certs/ca.crt")
    assert settings.coordinator.private_key == "/run/secrets/st-mary"
    assert settings.coordinator.host_and_port == ("coordinator.example.org", 8000)
    assert (settings.text_column, settings.label_column) == ("text", "label")
    assert settings.allow.model_dump(by_alias=True) == {
        "strategies": (), "tunings": ("head", "layernorm", "lora"), "max-rounds": 100, "min-examples": 10,
        "groups": ("shared", "domain"), "max-releases": 0, "require-noise": False, "min-examples-per-label": 2.0,
        "max-message-mib": 256.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.1:8000", "10.0.0.1"), ("[fd00::1]:8000", "fd00::1"), ("localhost:1", "localhost")],
)
def test_addresses(tmp_path, address, host):
    settings = load(tmp_path, GOOD.replace("coordinator.example.org:8000", address))
    assert settings.coordinator.host_and_port[0] == host


@pytest.mark.parametrize("address", ["https://a:8000", "a", "a:0", "a:70000", "a:8000/v1", "fd00::1:8000x", ""])
def test_what_is_no_address(tmp_path, address):
    with pytest.raises(ConfigError, match=r"line 6, coordinator\.address: must be host:port"):
        load(tmp_path, GOOD.replace("coordinator.example.org:8000", address))


def test_all_mistakes_at_once_with_lines_and_guesses(tmp_path):
    text = """site = "st mary"
domain = 3
sorce = "x"
[coordinator]
adress = "a:1"
[allow]
tunings = ["lora", "ful"]
max-round = 3
min-examples = 0
groups = ["private"]
"""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    said = str(caught.value).replace(f"{tmp_path}/site.toml, ", "")
    for sentence in (
        'source: "source" is missing',
        "line 1, site: must be a word of up to 64 letters",
        "line 2, domain: must be a text",
        'line 3, sorce: unknown key. did you mean "source"?',
        'line 4, coordinator.address: "address" is missing',
        'line 5, coordinator.adress: unknown key. did you mean "address"?',
        'line 7, allow.tunings[2]: "ful" is not known here. did you mean "full"?',
        'line 8, allow.max-round: unknown key. did you mean "max-rounds"?',
        "line 9, allow.min-examples: must be at least 1, got 0",
        'line 10, allow.groups[1]: "private" is not known here.',
    ):
        assert sentence in said, said


def test_a_file_that_is_not_there_and_one_that_is_no_toml(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_site_settings(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="line 2"):
        load(tmp_path, "site = 'a'\nsource = b\n")
