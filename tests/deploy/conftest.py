"""Fixtures of containers: the image is built once a session."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from containers import ROOT, Podman, context_of, missing


@pytest.fixture(scope="session")
def podman(tmp_path_factory) -> Podman:
    if reason := missing():
        pytest.skip(reason)
    return Podman(tmp_path_factory.mktemp("podman"))


@pytest.fixture(scope="session")
def image(podman: Podman, tmp_path_factory) -> str:
    """The image of this tree; FEDFM_TEST_IMAGE names one that is built already, of which tests of builds say less."""
    if named := os.environ.get("FEDFM_TEST_IMAGE"):
        return named
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    context: Path = context_of(tmp_path_factory.mktemp("context") / "tree")
    return podman.image(context, commit or "unknown")
