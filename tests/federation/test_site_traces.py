"""What of a site's data stays on its own disk after a run, and who can read it."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from federation_helpers import TEXTS, tiny, train_federation
from site_helpers import real_sites

from fedfm.engines import supernode
from fedfm.federation.messages import read_order
from fedfm.federation.site_disk import drop_other_caches, run_folder

SITES = {"finance-1": "finance", "finance-2": "finance"}


def test_what_frozen_layers_made_of_the_data_goes_with_the_scores_of_the_test(tmp_path):
    seen = []

    def look(site, message):
        if message.metadata.message_type != "query" and site == "finance-1":
            order, _ = read_order(message)
            folder = run_folder(tmp_path / site, order.folder)
            seen.append((order.split or "train", sorted(file.name for file in folder.rglob("cache/**/*.npy"))))

    config = tiny(tmp_path / "runs", "rounds=2", 'sharing."head.*"=private', "body.tuning=head", finance=TEXTS)
    done = train_federation(config, real_sites(tmp_path, SITES, look))
    assert any(files for _, files in seen), seen  # while it ran
    for site in SITES:
        folder = run_folder(tmp_path / site, str(done.folder.path))
        assert not (folder / "cache").exists()
        assert list((folder / "checkpoint").rglob("*.safetensors"))  # the site's own tensors stay


def test_an_order_of_another_run_ends_what_a_killed_one_left(tmp_path):
    state = tmp_path / "finance-1"
    for name in ("killed", "finished"):
        cache = run_folder(state, name) / "cache" / "finance"
        cache.mkdir(parents=True)
        (cache / "a.npy").write_bytes(b"of texts")
        (cache.parents[1] / "data.json").write_text("{}")
    drop_other_caches(run_folder(state, "finished"))
    assert not (state / "runs" / "killed" / "cache").exists()
    assert (state / "runs" / "killed" / "data.json").exists()
    assert (state / "runs" / "finished" / "cache").exists()
    train_federation(tiny(tmp_path / "runs", finance=TEXTS), real_sites(tmp_path, SITES))
    assert not list(state.rglob("*.npy"))


def test_nobody_else_can_read_the_state_of_a_site_that_runs(tmp_path, monkeypatch):
    """An old state folder too, and what the processes below write."""
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    before = os.umask(0)
    os.umask(before)
    script = "from pathlib import Path; Path('written').write_text('x'); Path('folder').mkdir()"
    monkeypatch.setattr(supernode, "wait_for_coordinator", lambda settings, say, stopped: None)
    monkeypatch.setattr(supernode, "note_start", lambda settings, environment: None)
    monkeypatch.setattr(supernode, "worker_command", lambda *_: [sys.executable, "-c", f"{script}; input()"])
    stops: list[threading.Event] = []

    def command(settings, file, address, secret):
        def stop_once_written() -> None:
            while not (Path(secret).parent / "folder").exists():
                time.sleep(0.02)
            stops[0].set()

        threading.Thread(target=stop_once_written, daemon=True).start()
        return [sys.executable, "-c", "import time; time.sleep(60)"]

    monkeypatch.setattr(supernode, "supernode_command", command)
    whole = supernode._run_processes
    monkeypatch.setattr(supernode, "_run_processes", lambda *words: (stops.append(words[-1]), whole(*words)))
    supernode.run_site(SimpleNamespace(state=str(state)), tmp_path / "site.toml", lambda words: None)
    modes = {str(file.relative_to(tmp_path)): stat.S_IMODE(file.stat().st_mode) for file in [state, *state.rglob("*")]}
    assert modes["state"] == modes["state/flower"] == modes["state/flower/folder"] == 0o700
    assert modes["state/flower/written"] == 0o600
    assert os.umask(before) == before  # of this process: as it was
