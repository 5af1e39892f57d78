"""What breaks at the coordinator, with real processes: who notices, what is lost, and how the run goes on.

One network of three real sites serves all tests of this file. The strategy is SCAFFOLD and the heads are private, so
that every site has something of its own to lose; whatever happens, the end is that of the local run, to the bit.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from deployment import CONNECTION, PATIENCE, Deployment
from real_data import SITES, read_json, real_config, write_config, write_sources
from site_files import start_site

import fedfm

pytestmark = pytest.mark.deploy
ROUNDS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("coordinator")


@pytest.fixture(scope="module")
def config(place: Path):
    sources = write_sources(place / "data")
    return real_config(place, sources, f"rounds={ROUNDS}", "strategy.name=scaffold", 'sharing."head.*"=private')


@pytest.fixture(scope="module")
def local(config):
    """run.json and metrics of the local engine."""
    return fedfm.run(config, f"runs.folder={Path(config.runs.folder).with_name('local')}")


@pytest.fixture(scope="module")
def net(place: Path, config):
    with Deployment(place / "net") as net:
        for site, domain in SITES.items():
            start_site(net, site, domain, place / "data" / site, min_examples=1)
        for site in SITES:
            net.wait_for(lambda site=site: "ready to work" in net.log(site, 400), "the site to be ready", site)
        yield net


def words(place: Path, config) -> list[str]:
    file = write_config(config, place / "run.toml")
    return ["run", str(file), "engine.name=flower", f"engine.superlink={CONNECTION}"]


def run_folders(config) -> set[Path]:
    return {file.parent for file in Path(config.runs.folder).glob("*/run.json")}


def events(folder: Path) -> list[dict]:
    file = folder / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def in_round(number: int) -> Callable[[Path], bool]:
    """Are the sites at work in that round?"""
    return lambda folder: any(e["event"] == "phase" and e["round"] == number for e in events(folder))


class Started:
    """A `fedfm run` of its own, waited for until its run has come to a moment."""

    def __init__(self, net: Deployment, place: Path, config, moment: Callable[[Path], bool]):
        before = run_folders(config)
        self.process = net.start_fedfm(*words(place, config))
        deadline = time.monotonic() + PATIENCE
        while not (fresh := run_folders(config) - before) or not moment(next(iter(fresh))):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.1)
        self.folder = next(iter(fresh))

    def end(self) -> tuple[int, str, str]:
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output, errors


def assert_whole(folder: Path, local) -> None:
    """The run ended as if nothing had happened: weights, tables, and no word twice in them."""
    info = read_json(folder / "run.json")
    assert info["status"] == "finished"
    assert info["final_weights_sha256"] == local.info["final_weights_sha256"]
    keys = ["round", "scope", "name", "split", "metric", "model"]
    left, right = (
        run.metrics.sort_values(keys, ignore_index=True)[[*keys, "num_examples"]] for run in (fedfm.Run(folder), local)
    )
    assert left.equals(right)
    assert fedfm.Run(folder).rounds["round"].tolist() == list(range(ROUNDS + 1))


def server_app(net: Deployment) -> psutil.Process:
    below = psutil.Process(net.processes["superexec"].pid).children(recursive=True)
    (found,) = (child for child in below if "serverapp" in " ".join(child.cmdline()))
    return found


def flower_status(net: Deployment) -> list[str]:
    """Of all runs, the newest first."""
    return [run["status"] for run in net.flwr("list", CONNECTION)["runs"]]


def test_a_run_across_sites_is_watched_to_its_end(net, place, config, local):
    """The table, exit code 0, the folder as the last line; one wave a round, and one for the end."""
    done = net.fedfm(*words(place, config))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert_whole(folder, local)
    assert [e["round"] for e in events(folder) if e["event"] == "phase"] == [*range(1, ROUNDS + 1), ROUNDS]
    print("\nseconds of the rounds:", fedfm.Run(folder).rounds["seconds"].tolist()[1:])
    table = [line for line in done.stdout.splitlines() if line[:5].strip().isdigit()]
    assert [int(line[:5]) for line in table] == list(range(ROUNDS + 1))
    assert not (folder / "flower").exists()
    assert not (folder / "checkpoint" / "sites").exists()  # what is private lies at the sites


def test_a_killed_server_app_fails_the_run_which_is_resumed(net, place, config, local):
    started = Started(net, place, config, in_round(2))
    server_app(net).kill()
    code, _, errors = started.end()
    assert code == 1
    assert "error[FM502]" in errors and "Traceback" not in errors
    assert "the Flower run failed: No heartbeat received from the task" in errors
    assert read_json(started.folder / "run.json")["status"] == "failed"
    done = net.fedfm("resume", started.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(started.folder)
    assert_whole(started.folder, local)


def test_a_killed_superlink_is_started_again_and_the_run_goes_on_by_itself(net, place, config, local):
    started = Started(net, place, config, in_round(2))
    net.kill("superlink")
    time.sleep(5.0)
    net.start_superlink()
    code, output, errors = started.end()
    assert code == 0, output + errors
    assert_whole(started.folder, local)


def test_a_run_outlives_the_command_that_started_it_and_is_watched_again(net, place, config, local):
    """SIGKILL, as after a lost connection: the run goes on. Resume hands in nothing new."""
    started = Started(net, place, config, in_round(1))
    started.process.kill()
    started.end()
    runs = len(flower_status(net))
    done = net.fedfm("resume", started.folder)
    assert done.returncode == 0, done.stderr
    assert len(flower_status(net)) == runs
    assert_whole(started.folder, local)
    assert (started.folder / "report.html").exists()


def test_ctrl_c_stops_the_run_at_the_sites_and_resume_goes_on(net, place, config, local):
    started = Started(net, place, config, in_round(2))
    os.kill(started.process.pid, signal.SIGINT)
    code, _, errors = started.end()
    assert code == 1
    assert "stopped" in errors and f"fedfm resume {started.folder}" in errors and "Traceback" not in errors
    assert read_json(started.folder / "run.json")["status"] == "interrupted"
    assert flower_status(net)[0] == "finished:stopped"
    done = net.fedfm("resume", started.folder)
    assert done.returncode == 0, done.stderr
    assert_whole(started.folder, local)


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder that only one process sees needs a mount of its own")
def test_a_server_app_that_does_not_see_the_folder_says_so(net, place, config):
    hidden = place / "hidden"
    hidden.mkdir()
    command = f'mount -t tmpfs none {hidden} && exec "$@"'
    file = write_config(config, place / "hidden.toml")
    done = net.fedfm(
        "run", file, "engine.name=flower", f"engine.superlink={CONNECTION}", f"runs.folder={hidden}",
        under=["unshare", "--mount", "sh", "-c", command, "sh"],
    )  # fmt: skip
    assert done.returncode == 1
    assert "the ServerApp does not see the folder of the run" in done.stderr
    assert "give `fedfm run` and flower-superexec one disk" in done.stderr


def test_nothing_is_left_behind(net):
    """ServerApps have ended with their runs."""
    below = psutil.Process(net.processes["superexec"].pid).children(recursive=True)
    alive = [child for child in below if child.status() != psutil.STATUS_ZOMBIE]
    assert alive == []
