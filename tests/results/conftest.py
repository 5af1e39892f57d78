"""Run folders to read, resume and draw."""

from __future__ import annotations

import pytest
from fake_run import write_run

from fedfm.results.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return write_run(tmp_path / "runs")
