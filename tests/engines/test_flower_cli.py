"""`flwr run` under supervision: fast tests against scripts that play Flower, slow ones against Flower itself."""

from __future__ import annotations

import json
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest
from engine_helpers import processes_of

from fedfm.engines import flower_cli, flower_simulation
from fedfm.engines.flower_cli import FlowerOutcome, flower_environment, tail
from fedfm.engines.flower_simulation import Simulation, run_flower_app
from fedfm.errors import EngineError

FAKE_SUPERLINK = """
import http.server, os, sys, time
if os.environ.get("FAKE_START") == "slow":
    time.sleep(60)
port = int(sys.argv[sys.argv.index("--port") + 1])
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers()
    def log_message(self, *args): pass
try:
    server = http.server.HTTPServer(("127.0.0.1", port), Health)
except OSError:
    sys.exit(f"[Errno 98] error while attempting to bind on address ('127.0.0.1', {port}): address already in use")
if os.environ.get("FAKE_END"):
    server.timeout = 1.5
    server.handle_request(), server.handle_request()
    sys.exit("out of memory")
server.serve_forever()
"""
FAKE_FLWR = """
import json, os, sys, time
from pathlib import Path
with Path(os.environ["FLWR_HOME"], "commands").open("a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if sys.argv[1] == "log":
    print("\\x1b[91mERROR\\x1b[0m : the log\\nValueError: toy failure", flush=True)
    time.sleep(30 if os.environ.get("FAKE_END") else 0.3)
elif sys.argv[1] == "run" and os.environ.get("FAKE_RUN") == "refused":
    print(json.dumps({"success": False, "error-message": "\\nKey 'x' is not present\\n"}))
elif sys.argv[1] == "run" and os.environ.get("FAKE_RUN") == "crash":
    sys.exit("Traceback: crashed")
elif sys.argv[1] == "run":
    print(json.dumps({"success": True, "run-id": "17"}))
else:
    ended = {"status": os.environ["FAKE_STATUS"], "status-details": os.environ["FAKE_DETAIL"]}
    print(json.dumps({"success": True, "runs": [ended]}))
"""


@pytest.fixture
def fake_flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts in Flower's place, told by FAKE_* variables what to do; the folder to work in."""
    scripts = {"flwr": FAKE_FLWR, "flower-superlink": FAKE_SUPERLINK}
    for name, code in scripts.items():
        script = tmp_path / name
        script.write_text(f"#!{sys.executable} -S\n{code}")
        script.chmod(0o755)
    monkeypatch.setattr(flower_cli, "script", lambda name: str(tmp_path / name))
    monkeypatch.setenv("FAKE_STATUS", "finished:completed")
    monkeypatch.setenv("FAKE_DETAIL", "N/A")
    return tmp_path / "work"


def run_fake(work_folder: Path, **options) -> FlowerOutcome:
    config = {"text": "a = 'x'\n", "n": 3}
    return run_flower_app(
        work_folder / "app", config, Simulation(6, 2), work_folder=work_folder, poll_seconds=0.05, **options
    )


def test_a_run_is_submitted_followed_and_cleaned_up(fake_flower: Path) -> None:
    polls: list[int] = []
    outcome = run_fake(fake_flower, on_poll=lambda: polls.append(1))
    assert (outcome.status, outcome.run_id, outcome.detail) == ("completed", "17", "")
    assert outcome.log_tail == "ERROR : the log\nValueError: toy failure"
    assert len(polls) >= 2
    assert processes_of(fake_flower) == []
    outcome.raise_if_unfinished()
    home = fake_flower / "flower"
    submitted, *others = [json.loads(line) for line in (home / "commands").read_text().splitlines()]
    options = "num-supernodes=6 init-args-num-cpus=2 client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    assert submitted == [
        *("run", str(fake_flower / "app"), "local", "--run-config", str(home / "run-config.toml")),
        *("--federation-config", options, "--format", "json"),
    ]
    assert [command[0] for command in others] == ["log", "list"]


def test_a_failed_run_is_told_with_its_log(fake_flower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_STATUS", "finished:failed")
    monkeypatch.setenv("FAKE_DETAIL", "Simulation failed with exception: toy failure")
    outcome = run_fake(fake_flower)
    assert outcome.status == "failed"
    with pytest.raises(EngineError) as caught:
        outcome.raise_if_unfinished()
    assert "the Flower run failed: Simulation failed with exception: toy failure" in str(caught.value)
    assert "ValueError: toy failure" in str(caught.value)
    assert caught.value.problems[0].where == str(fake_flower / "run.log")


@pytest.mark.parametrize(("how", "reason"), [("refused", "Key 'x' is not present"), ("crash", "Traceback: crashed")])
def test_an_app_that_flower_refuses(fake_flower: Path, monkeypatch, how: str, reason: str) -> None:
    monkeypatch.setenv("FAKE_RUN", how)
    with pytest.raises(EngineError, match=f"flwr refused: {reason}"):
        run_fake(fake_flower)
    assert processes_of(fake_flower) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_an_interruption(fake_flower: Path, error: type[BaseException]) -> None:
    def interrupt() -> None:
        until = time.monotonic() + 20
        while len(processes_of(fake_flower)) < 3:  # lifeline, SuperLink, reader of the log, which may just be starting
            assert time.monotonic() < until
            time.sleep(0.05)
        raise error("now")

    with pytest.raises(error, match="now"):
        run_fake(fake_flower, on_poll=interrupt)
    assert processes_of(fake_flower) == []


def test_a_superlink_that_ends_early_ends_the_run(fake_flower: Path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_END", "1")
    with pytest.raises(
        EngineError, match=r"(?s)ended in the middle of the run \(exit status 1\):\n.*out of memory"
    ) as caught:
        run_fake(fake_flower)
    assert caught.value.problems[0].where == str(fake_flower / "superlink.log")


def test_a_superlink_that_does_not_start_in_time(fake_flower: Path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_START", "slow")
    with pytest.raises(EngineError, match=r"SuperLink did not start \(no answer within 0.5 s\)"):
        run_fake(fake_flower, start_seconds=0.5)
    assert processes_of(fake_flower) == []


def test_another_port_is_tried_when_one_is_taken(fake_flower: Path, monkeypatch) -> None:
    free = flower_simulation.free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1]]
        monkeypatch.setattr(flower_simulation, "free_port", lambda: ports.pop() if ports else free())
        assert run_fake(fake_flower).status == "completed"
        monkeypatch.setattr(flower_simulation, "free_port", lambda: taken.getsockname()[1])
        with pytest.raises(EngineError, match=r"(?s)did not start \(exit status 1\).*address already in use"):
            run_fake(fake_flower)


def test_a_missing_flower_is_told_with_its_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(EngineError) as caught:
        run_fake(tmp_path / "work")
    assert str(caught.value) == (
        f'{tmp_path / "bin"}: Flower\'s command "flower-superlink" is missing\n'
        '    mend: python -m pip install "flwr[simulation]" into this environment'
    )


def test_the_environment_stays_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "intern")
    environment = flower_environment(tmp_path, threads=3)
    assert "RAY_ADDRESS" not in environment
    assert environment["HF_HUB_OFFLINE"] == "0"
    assert environment["TRANSFORMERS_OFFLINE"] == "1"
    assert environment["no_proxy"] == "intern,127.0.0.1,localhost"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["FLWR_HOME"] == str(tmp_path)


def test_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert tail(log) == ""
    log.write_text("".join(f"\x1b[92mline {number}\x1b[0m\n" for number in range(50)) + "\n")
    assert tail(log, 2) == "line 48\nline 49"


# --- with Flower and Ray themselves -----------------------------------------------------------------------------------

TOY_APP = """
import os, sys, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.query("where")
def where(message, context):
    place = ConfigRecord({"partition": int(context.node_config["partition-id"]), "cwd": os.getcwd()})
    return Message(RecordDict({"place": place}), reply_to=message)

@server.main()
def main(grid, context):
    config = context.run_config
    while len(nodes := list(grid.get_node_ids())) < 3:
        time.sleep(0.1)
    queries = [Message(content=RecordDict(), message_type="query.where", dst_node_id=node) for node in nodes]
    replies = [reply.content["place"] for reply in grid.send_and_receive(queries)]
    places = sorted((place["partition"], place["cwd"]) for place in replies)
    Path("places.txt").write_text(repr(places))
    Path("text.txt").write_text(config["text"])
    if config["then"] == "fail":
        raise ValueError("toy failure")
    if config["then"] == "wait":
        time.sleep(60)
"""
TOY_PROJECT = """
[project]
name = "toy"
version = "0.1.0"
description = "an app without code: its components are an installed package's"
license = "MIT"
dependencies = []

[tool.flwr.app]
publisher = "fedfm"
fab-include = ["LICENSE"]

[tool.flwr.app.components]
serverapp = "fedfm_toy.app:server"
clientapp = "fedfm_toy.app:client"

[tool.flwr.app.config]
text = ""
then = ""
"""
TEXT = textwrap.dedent("""\
    seed = 0
    [sharing]
    "*lora_B*" = "domain"   # 'quotes', "quotes" and = signs
    """)


@pytest.fixture
def toy_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package, app = tmp_path / "site-packages" / "fedfm_toy", tmp_path / "app"
    for folder in (package, app):
        folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "app.py").write_text(TOY_APP)
    (app / "pyproject.toml").write_text(TOY_PROJECT)
    (app / "LICENSE").write_text("MIT")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return app


def run_toy(app: Path, then: str, **options) -> FlowerOutcome:
    config = {"text": TEXT, "then": then}
    return run_flower_app(app, config, Simulation(3, workers=2), work_folder=app.parent / "work", **options)


@pytest.mark.slow
@pytest.mark.parametrize(("then", "status"), [("end", "completed"), ("fail", "failed")])
def test_flower_runs_a_code_free_app(toy_app: Path, then: str, status: str) -> None:
    outcome = run_toy(toy_app, then)
    work = toy_app.parent / "work"
    assert outcome.status == status, outcome.log_tail
    assert (work / "text.txt").read_text() == TEXT
    assert (work / "places.txt").read_text() == repr([(partition, str(work)) for partition in range(3)])
    assert processes_of(work) == []
    if then == "fail":
        assert outcome.detail == "Simulation failed with exception: toy failure"
        assert "ValueError: toy failure" in outcome.log_tail


@pytest.mark.slow
def test_flower_is_ended_in_the_middle(toy_app: Path) -> None:
    places = toy_app.parent / "work" / "places.txt"

    def interrupt_when_under_way() -> None:
        if places.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_toy(toy_app, "wait", on_poll=interrupt_when_under_way)
    assert processes_of(toy_app.parent) == []
