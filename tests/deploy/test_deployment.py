"""Three sites of three domains as processes behind TLS and keys: the same weights as the local engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployment import CONNECTION, Deployment
from real_data import SITES, read_json, real_config, write_config, write_sources

import fedfm

pytestmark = pytest.mark.deploy


def test_three_sites_give_the_weights_of_the_local_engine(tmp_path: Path) -> None:
    config = real_config(tmp_path, write_sources(tmp_path / "data"))
    local = fedfm.run(config)
    with Deployment(tmp_path / "net") as net:
        for site, domain in SITES.items():
            net.start_site(site, domain)
        file = write_config(config, tmp_path / "run.toml")
        done = net.fedfm("run", file, "engine.name=flower", f"engine.superlink={CONNECTION}")
        assert done.returncode == 0, done.stdout + done.stderr
        folder = Path(done.stdout.splitlines()[-1])
        assert read_json(folder / "run.json")["final_weights_sha256"] == local.info["final_weights_sha256"]
    assert net.left_over() == []
