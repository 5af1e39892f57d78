"""Sites and coordinator as processes behind TLS: their records agree, and name a site by the key that it came with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from deployment import CONNECTION, Deployment
from real_data import read_json, real_config, write_config, write_sources
from site_files import start_site, state_of

from fedfm.federation.keys import fingerprint_of_file
from fedfm.results.agreement import agree
from fedfm.results.audit import read_chain, verify

pytestmark = pytest.mark.deploy
SITES = {"st-mary": "medical", "bank-one": "finance"}


def verify_by_command(*files: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "fedfm", "audit", "verify", *files], capture_output=True, text=True)


def test_the_records_of_a_deployed_run_agree(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "data", SITES)
    config = real_config(tmp_path, sources, "rounds=1", sites=SITES)
    with Deployment(tmp_path / "net") as net:
        for site, domain in SITES.items():
            start_site(net, site, domain, sources[site], min_examples=1)
        done = net.fedfm("run", write_config(config, tmp_path / "run.toml"), "engine.name=flower",
                         f"engine.superlink={CONNECTION}")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    run = Path(done.stdout.splitlines()[-1])
    coordinator = read_chain(run / "audit.jsonl", [read_json(run / "run.json")["audit_sha256"]])
    assert coordinator.broken is None
    for site in SITES:
        file = state_of(net, site) / "audit.jsonl"
        assert verify(file) is None
        found = agree(chain := read_chain(file), coordinator)
        assert (found.differences, found.lost) == ([], [])
        kinds = [entry.kind for entry in chain.entries.values()]
        assert kinds[:3] == ["joined", "query-in", "card-out"]
        assert found.crossed == len(kinds) - 1 >= 6  # query, card, and an order and its answer in two waves
        own = fingerprint_of_file(net.keys / site)
        assert {entry.fields["peer"] for entry in chain.entries.values()} == {own}
        assert own in {entry.fields["peer"] for entry in coordinator.entries.values()}
        both = verify_by_command(file, run / "audit.jsonl")
        assert both.returncode == 0, both.stdout + both.stderr
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:-1]))
        cut = verify_by_command(file, run / "audit.jsonl")
        assert cut.returncode == 1
        assert "the site's record of sending it is not there" in cut.stdout
