"""A run on a SuperLink that is there, against a script that plays `flwr`; tests/deploy has the real one."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from fedfm.config import load_config as read_config
from fedfm.engines import flower_cli, flower_deployment, load_config
from fedfm.engines.flower import run_on_flower
from fedfm.errors import ConfigError, EngineError, TooFewSitesError
from fedfm.results.run_folder import RunFolder
from fedfm.results.screen import Screen

FAKE_FLWR = """
import json, os, sys, time
from pathlib import Path
home = Path(os.environ["FLWR_HOME"])
with (home / "commands").open("a") as file:
    print(" ".join(word for word in sys.argv[1:3] if "/" not in word), file=file)
def say(**answer):
    print(json.dumps(answer))
if (home / "away").exists() and sys.argv[1] != "log":
    left = int((home / "away").read_text())
    (home / "away").write_text(str(left - 1)) if left > 1 else (home / "away").unlink()
    say(success=False, **{"error-message": "Using SuperLink: net\\nConnection to the SuperLink is unavailable. Please"})
elif sys.argv[1] == "run":
    say(success=True, **{"run-id": "17"})
elif sys.argv[1] == "log":
    print((home / "log").read_text() if (home / "log").exists() else "INFO: it runs")
    time.sleep(0.2)
elif sys.argv[1] == "stop":
    (home / "status").write_text("finished:stopped")
    say(success=True)
else:
    status = (home / "status").read_text() if (home / "status").exists() else "finished:completed"
    say(success=True, runs=[{"status": status, "status-details": "N/A"}])
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FLWR_HOME with a connection "net", and a script in flwr's place that is told by files there what to do."""
    script = tmp_path / "flwr"
    script.write_text(f"#!{sys.executable} -S\n{FAKE_FLWR}")
    script.chmod(0o755)
    monkeypatch.setattr(flower_cli, "script", lambda name: str(tmp_path / name))
    monkeypatch.setattr(flower_deployment, "POLL_SECONDS", 0.05)
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text('[superlink]\ndefault = "net"\n[superlink.net]\naddress = "127.0.0.1:9"\n')
    monkeypatch.setenv("FLWR_HOME", str(home))
    return home


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    domains = {"finance": {"task": "text-classification"}}
    data = {"runs": {"folder": str(tmp_path / "runs")}, "domains": domains}
    return RunFolder.create(read_config(data, ["engine.name=flower", "engine.superlink=net"]))


@contextmanager
def saying_something(folder: RunFolder) -> Iterator[None]:
    """The run tells an event as soon as somebody follows it."""
    original = flower_cli.SuperLink.follow

    def follow(self, *words):
        folder.event("phase")
        return original(self, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower_cli.SuperLink, "follow", follow)
        yield


def go(folder: RunFolder, listen=lambda event: None) -> None:
    run_on_flower(folder.config, folder, listen)


def commands(home: Path) -> list[str]:
    return (home / "commands").read_text().split("\n")[:-1]


def test_a_run_is_handed_in_watched_and_cleaned_up(home: Path, folder: RunFolder) -> None:
    """`log` is what a ServerApp writes: its events come through."""
    heard = []
    folder.event("before")

    def listen(event):
        heard.append(event["event"])

    (home / "log").write_text("INFO")
    original = flower_cli.SuperLink.record

    def record(self, run_id):
        if not heard:
            folder.event("run-started")
        return original(self, run_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower_cli.SuperLink, "record", record)
        go(folder, listen)
    assert heard == ["run-started"]
    assert commands(home) == ["run", "log 17", "list net"]
    assert not (folder.path / "flower").exists()


def test_a_server_app_that_wrote_nothing_did_not_see_the_folder(home: Path, folder: RunFolder) -> None:
    (home / "status").write_text("finished:failed")
    (home / "log").write_text(f"UserError: {folder.path}: there is no such folder")
    with pytest.raises(EngineError) as caught:
        go(folder)
    assert f"the ServerApp does not see the folder of the run, {folder.path}" in str(caught.value)
    assert "runs.folder must be the same place for both" in str(caught.value)


def test_the_reason_of_a_failed_run_is_the_one_in_its_folder(home: Path, folder: RunFolder) -> None:
    (home / "status").write_text("finished:failed")
    folder.fail(TooFewSitesError("round 3: 1 usable updates"))
    with pytest.raises(TooFewSitesError, match="round 3: 1 usable updates"):
        go(folder)


def test_a_server_app_that_was_killed_fails_the_run_with_its_log(home: Path, folder: RunFolder) -> None:
    (home / "status").write_text("finished:failed")
    (home / "log").write_text("ERROR: killed")
    with pytest.raises(EngineError, match=r"the Flower run failed: no reason given\nERROR: killed"):
        go(folder)
    assert (folder.path / "flower" / "run.log").exists()  # kept to look at


def test_a_superlink_that_cannot_be_reached(home: Path, folder: RunFolder) -> None:
    (home / "away").write_text("1")
    with pytest.raises(EngineError) as caught:
        go(folder)
    assert 'the SuperLink "net" cannot be reached' in str(caught.value)
    assert "flwr supernode list net" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_superlink_that_is_away_for_a_while_is_waited_for(home: Path, folder: RunFolder) -> None:
    """It answers the third question; as long as engine.timeout the run is not given up."""
    folder.event("run-started")

    def listen(event):
        raise AssertionError

    original = flower_cli.SuperLink.submit

    def submit(self, *words):
        run_id = original(self, *words)
        (home / "away").write_text("2")
        folder.event("phase")
        return run_id

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower_cli.SuperLink, "submit", submit)
        go(folder)
    assert commands(home).count("list net") == 3


def test_a_run_that_is_still_there_is_watched_and_not_handed_in_again(home: Path, folder: RunFolder) -> None:
    """As after a kill of the command: Flower says that it runs, then that it is done."""
    work = folder.path / "flower"
    work.mkdir()
    (work / "submitted.json").write_text(json.dumps({"superlink": "net", "run-id": "17"}))
    (home / "status").write_text("running")
    heard = []

    def end(event):
        heard.append(event["event"])
        (home / "status").write_text("finished:completed")

    with saying_something(folder):
        go(folder, end)
    assert heard == ["phase"]
    assert "run" not in [command.split()[0] for command in commands(home)]


def test_who_watches_a_run_again_sees_the_header_and_the_columns_of_one_who_saw_it_begin(
    home: Path, folder: RunFolder
) -> None:
    """How the run began last is told once more: earlier rounds are not, nor how it began before it was resumed."""
    work = folder.path / "flower"
    work.mkdir()
    (work / "submitted.json").write_text(json.dumps({"superlink": "net", "run-id": "17"}))
    (home / "status").write_text("running")
    for rounds in (7, 9):
        folder.event("run-started", run="one", rounds=rounds, sites={"a": "finance"}, primary={"finance": "accuracy"})
        folder.event("round-finished", round=1, scores={"finance": 0.25})
    page, heard = Console(file=io.StringIO(), width=100), []

    def end(event):
        heard.append((event["event"], event.get("rounds")))
        screen.handle(event)
        if event["event"] == "phase":
            folder.event("round-finished", round=2, scores={"finance": 0.5}, mean=0.5, worst=0.5, seconds=1.0)
            (home / "status").write_text("finished:completed")

    with Screen(page) as screen, saying_something(folder):
        go(folder, end)
    assert heard == [("run-started", 9), ("phase", None), ("round-finished", None)]
    text = page.file.getvalue()
    assert "run one" in text and "9 rounds" in text and "accuracy" in text
    assert "0.500" in text and "0.250" not in text


def test_ctrl_c_stops_the_run_at_the_sites(home: Path, folder: RunFolder) -> None:
    (home / "status").write_text("running")

    def interrupt(event):
        raise KeyboardInterrupt

    with saying_something(folder), pytest.raises(KeyboardInterrupt) as caught:
        go(folder, interrupt)
    assert caught.value.__notes__ == ["the run is stopped at the sites; what they compute now is thrown away"]
    assert "stop 17" in commands(home)


def test_what_sites_across_machines_cannot_do_is_told_at_once(home: Path, tmp_path: Path) -> None:
    words = (
        "engine.name=flower", "engine.superlink=nett", "strategy.name=centralised", "simulation.drop-out=0.5",
        "engine.sites-at-once=2",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_config({"domains": {"finance": {"task": "text-classification"}}}, *words)
    said = str(caught.value)
    assert 'has no connection "nett". did you mean "net"?' in said
    assert "centralised pools the data of sites, which stay where they are" in said
    assert "sites across machines do not play drop-outs, attackers or a clock" in said
    assert "engine.sites-at-once" in said
    with pytest.raises(ConfigError, match="the local engine has no SuperLink"):
        load_config({}, "engine.superlink=net")


def test_a_home_without_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r'add to it: \[superlink\.net\] address = "HOST:PORT"'):
        load_config({}, "engine.name=flower", "engine.superlink=net")


def test_a_missing_certificate_is_told_before_anything_is_made(home: Path, tmp_path: Path) -> None:
    file, authority = home / "config.toml", tmp_path / "ca.crt"
    file.write_text(f'{file.read_text()}root-certificates = "{authority}"\n')
    words = ("engine.name=flower", "engine.superlink=net")
    data = {"domains": {"finance": {"task": "text-classification"}}}
    with pytest.raises(ConfigError, match=r'root-certificates of the connection "net" in .* is no file'):
        load_config(data, *words)
    authority.touch()
    assert load_config(data, *words).engine.superlink == "net"
