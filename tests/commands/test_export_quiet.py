"""`fedfm export` in a process of its own: what it leaves on the screen."""

from __future__ import annotations

import os
import subprocess
import sys

from fedfm.engines.running import QUIET


def test_export_prints_its_folder_and_nothing_of_other_libraries(tiny_run, tmp_path):
    """They read what silences them once, when they are imported, and this process has imported them already."""
    clean = {name: value for name, value in os.environ.items() if name not in QUIET}
    command = "import sys; from fedfm.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", command, "export", str(tiny_run), str(tmp_path / "out")]
    done = subprocess.run(words, env=clean, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'out'}\n", "")
