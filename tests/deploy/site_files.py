"""Real sites for tests: their site.toml, and `fedfm site run` as a process of a deployment."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import tomli_w
from deployment import Deployment


def write_site(folder: Path, site: str, domain: str, source: Path, address: str, ca: Path, key: Path, **allow: Any):
    """A site.toml whose state lies beside it; `allow`: its keys, with underscores."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "site": site,
        "domain": domain,
        "source": str(source),
        "state": "state",
        "coordinator": {"address": address, "root-certificates": str(ca), "private-key": str(key)},
        "allow": {name.replace("_", "-"): value for name, value in allow.items()},
    }
    file = folder / "site.toml"
    file.write_text(tomli_w.dumps(settings), encoding="utf-8")
    return file


def put(file: Path, key: str, value: str) -> None:
    """Give a key that the file has another text."""
    lines = file.read_text(encoding="utf-8").split("\n")
    assert sum(line.startswith(f"{key} =") for line in lines) == 1
    fresh = [f'{key} = "{value}"' if line.startswith(f"{key} =") else line for line in lines]
    file.write_text("\n".join(fresh), encoding="utf-8")


def start_site(
    net: Deployment, site: str, domain: str, source: Path, key: Path | None = None, **allow: Any
) -> subprocess.Popen:
    """`fedfm site run` below the deployment's folder, with a key that is registered where none is given."""
    key = key or (net.keys / site if (net.keys / site).exists() else net.register(site))
    file = write_site(net.folder / site, site, domain, source, net.address, net.certificates.ca, key, **allow)
    return net.spawn(site, "fedfm", "site", "run", file)


def state_of(net: Deployment, site: str) -> Path:
    return net.folder / site / "state"
