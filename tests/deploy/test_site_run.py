"""`fedfm site run` as real processes behind TLS and keys: the same weights, breaks, and who does not get in."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from certificates import write_certificates, write_site_key
from deployment import CONNECTION, OFFLINE_SECONDS, Deployment, script
from real_data import SITES, read_json, real_config, write_config, write_reports, write_sources
from site_files import start_site, state_of, write_site

import fedfm
from fedfm.federation.site_disk import Releases, run_folder

pytestmark = pytest.mark.deploy


def ready(net: Deployment, site: str) -> bool:
    log = net.log(site, 400)
    return "ready to work" in log and "SuperNode ID" in log


def events(folder: Path, kind: str) -> list[dict]:
    import json

    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_three_real_sites_give_the_weights_of_the_local_engine(tmp_path):
    """Their data are read-only, the configuration names sources that nobody has; what is private stays at the site."""
    sources = write_sources(tmp_path / "data")
    for file in (tmp_path / "data").rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    config = real_config(tmp_path, sources, 'sharing."head.*"=private')
    local = fedfm.run(config)
    with Deployment(tmp_path / "net") as net:
        for site, domain in SITES.items():
            start_site(net, site, domain, sources[site], min_examples=1)
        for site in SITES:
            net.wait_for(lambda site=site: ready(net, site), "the site to be ready", site)
        text = config.to_toml().replace(str(tmp_path / "data"), "/nowhere")
        file = tmp_path / "run.toml"
        file.write_text(text, encoding="utf-8")
        done = net.fedfm("run", file, "engine.name=flower", f"engine.superlink={CONNECTION}")
        assert done.returncode == 0, done.stdout + done.stderr
        folder = Path(done.stdout.splitlines()[-1])
        assert read_json(folder / "run.json")["final_weights_sha256"] == local.info["final_weights_sha256"]
        assert list((folder / "checkpoint").rglob("sites/*")) == []
        for site in SITES:
            kept = run_folder(state_of(net, site), str(folder)) / "checkpoint" / "sites" / site
            theirs = local.folder / "checkpoint" / "sites" / site
            names = sorted(file.name for file in theirs.iterdir())
            assert len(names) == 2 and sorted(file.name for file in kept.iterdir()) == names
            assert all((kept / name).read_bytes() == (theirs / name).read_bytes() for name in names)
            assert Releases(state_of(net, site)).count() == 2
            assert not (state_of(net, site) / "flower" / "apps").exists()  # no bundle was unpacked
        _end_well(net, "st-mary")
        _end_at_once(net, "bank-one")
    assert net.left_over() == []


def _end_well(net: Deployment, site: str) -> None:
    """SIGTERM: exit code 0, the SuperLink knows at once, nothing is left."""
    process = net.processes[site]
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 4  # two lifelines, SuperNode, worker
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert net.log(site, 3).endswith("fedfm: stopped")
    assert not [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert net.online() == len(SITES) - 1


def _end_at_once(net: Deployment, site: str) -> None:
    """SIGKILL of `fedfm site run` alone: the lifelines end the rest."""
    process = net.processes[site]
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone = lambda: not [c for c in below if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]  # noqa: E731
    net.wait_for(gone, "what the site has started to end", seconds=60)


MODULE = """
import os
from pathlib import Path
place = "site" if "/bank-one/" in os.environ.get("FLWR_HOME", "") else "coordinator"
Path({mark!r} + place).write_text("this code ran there")
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
app = ClientApp()
"""
SERVER = """
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    nodes = list(grid.get_node_ids())
    said = []
    for kind in ("query", "train", "evaluate"):
        messages = [Message(content=RecordDict(), message_type=kind, dst_node_id=node) for node in nodes]
        for reply in grid.send_and_receive(messages, timeout=300):
            error = reply.error if reply.has_error() else None
            said.append(f"{{kind}} {{error.code}} {{error.reason}}" if error else f"{{kind}} ok")
    Path({out!r}).write_text("\\n".join(said))
"""


def test_code_from_the_network_does_not_run_at_a_site(tmp_path):
    """A bundle with a package named fedfm, and one with other components; in the same run of the same processes."""
    sources = write_sources(tmp_path / "data", {"bank-one": "finance"})
    mark, out = tmp_path / "ran-at-", tmp_path / "said"
    with Deployment(tmp_path / "net") as net:
        start_site(net, "bank-one", "finance", sources["bank-one"], min_examples=1)
        net.wait_for(lambda: ready(net, "bank-one"), "the site to be ready", "bank-one")
        for number, client in enumerate(("fedfm.federation.client_app:app", "evil.client:app")):
            app = _app_with_code(tmp_path / f"app{number}", client, mark, out)
            run = net.flwr("run", app, CONNECTION)["run-id"]
            net.wait_for(out.exists, "the run to hear from the site", "bank-one")
            lines = out.read_text(encoding="utf-8").splitlines()
            assert [line.split()[:2] for line in lines] == [["query", "7"], ["train", "7"], ["evaluate", "7"]], lines
            assert all("runs only the code of its own fedfm, and refuses this bundle: it carries" in x for x in lines)
            assert f"fedfm: refused a train message of run {run}" in net.log("bank-one", 200)
            out.unlink()
        assert mark.with_name("ran-at-coordinator").exists()  # `flwr run` itself imports packages: the mark works
        assert not mark.with_name("ran-at-site").exists()
        assert net.processes["bank-one"].poll() is None  # and it works on
        config = real_config(tmp_path, sources, "rounds=1", sites={"bank-one": "finance"})
        file = write_config(config, tmp_path / "run.toml")
        done = net.fedfm("run", file, "engine.name=flower", f"engine.superlink={CONNECTION}")
        assert done.returncode == 0, done.stdout + done.stderr
    assert net.left_over() == []


def _app_with_code(folder: Path, client: str, mark: Path, out: Path) -> Path:
    """A Flower app whose ClientApp, wherever it is imported from, would leave `mark`."""
    module = folder.joinpath(*client.partition(":")[0].split(".")).with_suffix(".py")
    module.parent.mkdir(parents=True)
    for package in module.relative_to(folder).parents[:-1]:
        (folder / package / "__init__.py").write_text(MODULE.format(mark=str(mark)), encoding="utf-8")
    module.write_text(MODULE.format(mark=str(mark)), encoding="utf-8")
    (folder / "coordinator.py").write_text(SERVER.format(out=str(out)), encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "evil"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "evil"\n[tool.flwr.app.components]\n'
        f'serverapp = "coordinator:app"\nclientapp = "{client}"\n',
        encoding="utf-8",
    )
    return folder


def test_who_does_not_get_in_and_what_is_said(tmp_path):
    """An unregistered key, the key of another process, a wrong authority: each ends with its sentence and exit code."""
    source = write_reports(tmp_path / "reports")
    with Deployment(tmp_path / "net") as net:
        start_site(net, "bank-one", "finance", source, min_examples=1)
        net.wait_for(lambda: ready(net, "bank-one"), "the site to be ready", "bank-one")
        stranger, _ = write_site_key(tmp_path / "stranger-key")
        other = write_certificates(tmp_path / "other-authority", ["localhost"], ["127.0.0.1"])
        cases = {
            # Flower tells a site whose key is unknown what it tells a second process of a known one
            "stranger": (stranger, net.certificates.ca, "its key is not registered", 1),
            "twin": (net.keys / "bank-one", net.certificates.ca, "another process uses it", 1),
            "astray": (net.keys / "bank-one", other.ca, "not signed by the authority in root-certificates", 2),
        }
        for name, (key, ca, sentence, code) in cases.items():
            file = write_site(tmp_path / name, "bank-one", "finance", source, net.address, ca, key)
            done = subprocess.run(
                [script("fedfm"), "site", "run", str(file)], env=net.environment, capture_output=True, text=True
            )
            assert (done.returncode, sentence in done.stderr) == (code, True), done.stdout + done.stderr
            assert "mend: " in done.stderr
        assert net.processes["bank-one"].poll() is None
        assert net.online() == 1


def test_a_coordinator_that_is_away_is_waited_for(tmp_path):
    source = write_reports(tmp_path / "reports")
    with Deployment(tmp_path / "net") as net:
        net.register("bank-one")
        net.kill("superlink")
        start_site(net, "bank-one", "finance", source, min_examples=1)
        waiting = f"waiting for the coordinator {net.address}: nothing listens there"
        net.wait_for(lambda: waiting in net.log("bank-one"), "the site to say that it waits", "bank-one")
        net.start_superlink()
        net.wait_for(lambda: ready(net, "bank-one"), "the site to be ready", "bank-one")
        assert net.log("bank-one", 400).count("waiting for") == 1


def test_a_site_that_is_killed_and_comes_back_goes_on_with_what_it_kept(tmp_path):
    """Killed in a round and started again: refused until the SuperLink has missed it, then in, with its own disk."""
    sources = write_sources(tmp_path / "data")
    with Deployment(tmp_path / "net") as net:
        for site, domain in SITES.items():
            start_site(net, site, domain, sources[site], min_examples=1)
        for site in SITES:
            net.wait_for(lambda site=site: ready(net, site), "the site to be ready", site)
        config = real_config(tmp_path, sources, "rounds=5", 'sharing."head.*"=private')
        file = write_config(config, tmp_path / "run.toml")
        running = net.start_fedfm("run", file, "engine.name=flower", f"engine.superlink={CONNECTION}")
        counted = lambda: Releases(state_of(net, "bank-one")).count() >= 1  # noqa: E731
        net.wait_for(counted, "the first update of the site", "bank-one")
        net.kill("bank-one")
        deadline = time.monotonic() + 4 * OFFLINE_SECONDS
        while True:  # as systemd or the container would
            start_site(net, "bank-one", "finance", sources["bank-one"], min_examples=1)
            process = net.processes["bank-one"]
            net.wait_for(lambda p=process: p.poll() is not None or ready(net, "bank-one"), "the site to come back")
            if process.poll() is None:
                break
            assert process.returncode == 1
            assert "was killed less than a minute ago" in net.log("bank-one")
            assert time.monotonic() < deadline
            (net.logs / "bank-one.log").unlink()
        output, errors = running.communicate(timeout=600)
        assert running.returncode == 0, output + errors
        folder = Path(output.splitlines()[-1])
        lost = {event["round"] for event in events(folder, "update-left-out")}
        assert {event["site"] for event in events(folder, "update-left-out")} <= {"bank-one"}
        assert len(lost) < 5
        kept = run_folder(state_of(net, "bank-one"), str(folder)) / "checkpoint" / "sites" / "bank-one"
        assert (kept / "000001.safetensors").exists()
    assert net.left_over() == []
