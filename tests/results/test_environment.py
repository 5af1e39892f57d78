"""Versions, hardware, commit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from fedfm.results import environment as module
from fedfm.results.environment import PACKAGES, environment


def test_versions_are_those_installed_and_the_whole_is_json():
    found = json.loads(json.dumps(environment()))
    assert set(found["versions"]) == {"python", *PACKAGES}
    assert found["versions"]["torch"] == metadata.version("torch")
    assert 1 <= found["hardware"]["cores"] <= os.cpu_count()
    assert found["hardware"]["memory_bytes"] > 1e8


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("surely-not-installed",))
    assert environment()["versions"]["surely-not-installed"] is None


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from fedfm.results.environment import environment; environment(); "
        "print([m for m in ('torch', 'flwr', 'ray', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_source_tree(tmp_path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert module._commit(tmp_path) is None
    git("init")
    assert module._commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    commit = git("rev-parse", "HEAD")
    assert module._commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert module._commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "inside").mkdir()
    assert module._commit(tmp_path / "inside") is None
