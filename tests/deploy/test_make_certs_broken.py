"""docker/make-certs.sh after a call that failed: the next one makes what is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from containers import ROOT

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(
        not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="needs openssl, ssh-keygen"
    ),
]


def make(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), str(ROOT / "docker/make-certs.sh")]
    return subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("broken", [{"AUTHORITY_DAYS": "ten"}, {"DAYS": "ten"}])
def test_a_failed_call_leaves_no_half_and_the_next_one_makes_all(tmp_path: Path, broken: dict[str, str]) -> None:
    failed = make(tmp_path, "coordinator", "c.example.org", **broken)
    assert failed.returncode == 2 and "make-certs.sh: openssl: " in failed.stderr
    certs = tmp_path / "certs"
    authority = sorted(file.name for file in certs.rglob("ca.*"))
    assert authority == ([] if "AUTHORITY_DAYS" in broken else ["ca.crt", "ca.key"])
    assert not list(certs.glob(".new*")) and not list(certs.rglob("server.*"))
    (certs / "authority").mkdir(exist_ok=True)
    done = make(tmp_path, "coordinator", "c.example.org")
    assert done.returncode == 0, done.stderr
    verify = ["openssl", "verify", "-CAfile", certs / "authority/ca.crt", certs / "coordinator/server.crt"]
    subprocess.run(verify, check=True, capture_output=True)


@pytest.mark.parametrize("half", ["ca.key", "ca.crt"])
def test_half_of_an_authority_is_never_overwritten(tmp_path: Path, half: str) -> None:
    authority = tmp_path / "certs" / "authority"
    authority.mkdir(parents=True)
    (authority / half).write_text("of before")
    failed = make(tmp_path, "coordinator", "c.example.org")
    assert failed.returncode == 2
    assert f"certs/authority/{half} is but half of an authority: move certs/authority away" in failed.stderr
    assert (authority / half).read_text() == "of before"
