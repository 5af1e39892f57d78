"""Coordinator and sites on hosts of their own: the local engine's weights; what a cut link and a full disk cost."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from deployment import CONNECTION, COORDINATOR
from hosts import MISSING, Hosts
from real_data import SITES, read_json, real_config, write_config, write_sources
from site_files import start_site, state_of

import fedfm
from fedfm.results.agreement import agree
from fedfm.results.audit import read_chain

pytestmark = [pytest.mark.deploy, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
ROUNDS = 10  # of the run that is broken: a round takes ten seconds, a site that comes back takes thirty
RUN = ("engine.name=flower", f"engine.superlink={CONNECTION}")


def start_sites(net: Hosts, sources: dict[str, Path]) -> None:
    for site, domain in SITES.items():
        start_site(net, site, domain, sources[site], min_examples=1)
    for site in SITES:
        net.wait_for(lambda site=site: "ready to work" in net.log(site, 400), "the site to be ready", site)


def events_of(folder: Path) -> list[dict]:
    (run,) = (folder / "runs").iterdir() if (folder / "runs").exists() else (None,)
    file = run and run / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []


def has_finished(folder: Path, number: int) -> bool:
    return any(e["event"] == "round-finished" and e["round"] >= number for e in events_of(folder))


def test_three_hosts_give_the_weights_of_the_local_engine_and_open_no_port(tmp_path):
    sources = write_sources(tmp_path / "data")
    config = real_config(tmp_path, sources)
    local = fedfm.run(config, f"runs.folder={tmp_path / 'local'}", report=False)
    with Hosts(tmp_path / "net", list(SITES)) as net:
        start_sites(net, sources)
        for site in SITES:
            assert all(address.startswith("127.0.0.1:") for address in net.listening(site)), net.listening(site)
        assert net.listening(COORDINATOR) == [net.address]
        done = net.fedfm("run", write_config(config, tmp_path / "run.toml"), *RUN)
        assert done.returncode == 0, done.stdout + done.stderr
        run = Path(done.stdout.splitlines()[-1])
        assert read_json(run / "run.json")["final_weights_sha256"] == local.info["final_weights_sha256"]
        for site in SITES:
            found = agree(read_chain(state_of(net, site) / "audit.jsonl"), read_chain(run / "audit.jsonl"))
            assert (found.differences, found.lost) == ([], [])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MiB at the place of a site's folder."""
    place = tmp_path / "net" / "bank-one"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "fedfm-test", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_cut_link_and_a_full_disk_cost_those_sites_rounds_and_no_others(tmp_path, small_disk):
    sources = write_sources(tmp_path / "data")
    config = real_config(tmp_path, sources, f"rounds={ROUNDS}", "engine.train-timeout=40", "engine.wait=60")
    with Hosts(tmp_path / "net", list(SITES)) as net:
        start_sites(net, sources)
        with net.start_fedfm("run", write_config(config, tmp_path / "run.toml"), *RUN) as command:
            net.wait_for(lambda: has_finished(tmp_path, 1), "the first round")
            net.cut("st-mary")
            free = shutil.disk_usage(small_disk).free
            (small_disk / "filler").write_bytes(b"\0" * (free - free % 4096))
            net.wait_for(lambda: left_out(tmp_path).keys() >= {"st-mary", "bank-one"}, "both to be missed")
            net.mend("st-mary")
            (small_disk / "filler").unlink()
            output, errors = command.communicate(timeout=900)
    assert command.returncode == 0, output + errors
    run = Path(output.splitlines()[-1])
    assert read_json(run / "run.json")["status"] == "finished"
    missed = left_out(tmp_path)
    assert "newsroom" not in missed
    assert any("is full" in reason or "keeps no record" in reason for reason in missed["bank-one"].values()), missed
    trained = {site: rounds_of(run, site) for site in SITES}
    assert trained["newsroom"] == set(range(1, ROUNDS + 1))
    for site in ("st-mary", "bank-one"):
        assert 1 in trained[site]
        told = trained[site] | missed[site].keys() | away(tmp_path, site)
        assert told >= set(range(1, max(trained[site]) + 1)), f"{site}: {trained[site]}, {missed[site]}"
        assert max(trained[site]) > min(missed[site]), f"{site} never came back: {trained[site]}, {missed[site]}"


def left_out(folder: Path) -> dict[str, dict[int, str]]:
    """Site -> round -> why its update was not used."""
    found: dict[str, dict[int, str]] = {}
    for event in events_of(folder):
        if event["event"] == "update-left-out":
            found.setdefault(event["site"], {})[event["round"]] = event["reason"]
    return found


def away(folder: Path, site: str) -> set[int]:
    """The rounds that began while the site was told to be gone: it was not asked."""
    found, is_gone = set(), False
    for event in events_of(folder):
        if event["event"] in ("site-left", "site-joined") and event["site"] == site:
            is_gone = event["event"] == "site-left"
        elif event["event"] == "phase" and event["phase"] == "train" and is_gone:
            found.add(event["round"])
    return found


def rounds_of(run: Path, site: str) -> set[int]:
    """The rounds that a site has trained in."""
    table = fedfm.Run(run).metrics
    return set(table.query("name == @site and split == 'train' and metric == 'loss'")["round"])
