"""What cannot be had or written is a sentence before any work is done: devices, files, folders, tests."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch

from fedfm import compare, run
from fedfm.cli import main
from fedfm.errors import ConfigError, DataError, UserError
from fedfm.models.devices import pick_device


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["explain", "RUN", "-d", "finance", "profit rose", "--out", "TMP/nowhere/x.html"], "there is no such folder"),
        (["explain", "RUN", "-d", "finance", "profit rose", "--out", "TMP"], "this is a folder, not a file"),
        (["audit", "report", "TMP/file", "--out", "TMP/nowhere/x.html"], "there is no such folder"),
        (["resume", "a" * 300], "a path longer than the file system knows"),
        (
            ["compare", "RUN/config.toml", "rounds=1,2", "runs.folder=p,q"],
            "several values of a key that changes no run",
        ),
        (["export", "RUN", "TMP/file/x"], "the destination cannot be made: Not a directory"),
        (["export", "RUN", "TMP/file"], "the destination is a file"),
        (["data", "check", "--image-size", "-3", "TMP"], "-3 is not in the range 0<=x<=4096"),
        (["run", "RUN/config.toml", "runs.folder="], "runs.folder: must not be empty"),
        (["run", "RUN/config.toml", "domains.medical.image-size=60000"], "must be at most 4096, got 60000"),
        (["run", "RUN/config.toml", "engine.device=cuda:77"], 'engine.device: "cuda:77" cannot be had on this machine'),
    ],
)
def test_wrong_input_is_told_at_once(tiny_run, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    words = [word.replace("RUN", str(tiny_run)).replace("TMP", str(tmp_path)) for word in words]
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    from fedfm.results.files import require_place

    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="this user may not write there"):
        require_place(tmp_path / "x.html")


def test_devices(monkeypatch):
    """With two GPUs there is a cuda:1 and no cuda:2."""
    assert pick_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(ConfigError, match="its GPUs are 0 to 1"):
        pick_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ConfigError, match="cannot be had on this machine"):
            pick_device(name)


def test_a_full_disk_is_told_as_one(monkeypatch, capsys):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/report.html")

    monkeypatch.setattr("fedfm.commands.report.report", full)
    assert main(["report", "runs/x"]) == 1
    told = capsys.readouterr().err
    assert "runs/x/report.html: No space left on device" in told and "FM000" not in told


def test_a_reader_that_has_read_enough_ends_a_command_quietly():
    listing = subprocess.Popen(
        [sys.executable, "-c", "import sys; from fedfm.cli import main; sys.exit(main(['list']))"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    listing.stdout.close()  # before it has printed anything
    assert listing.stderr.read() == b""
    listing.stderr.close()
    assert listing.wait() == 1


def write_texts(folder, test: int) -> dict:
    folder.mkdir()
    for split, count in (("train", 16), ("validation", 4), ("test", test)):
        rows = [f"profit {('fell', 'rose')[i % 2]} {i},{('down', 'up')[i % 2]}\n" for i in range(count)]
        (folder / f"{split}.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    return {"task": "text-classification", "source": str(folder)}


def test_a_comparison_without_test_examples_says_so(tmp_path):
    config = {"rounds": 1, "runs": {"folder": str(tmp_path / "runs")}}
    config |= {"domains": {"news": write_texts(tmp_path / "news", test=0)}}
    with pytest.raises(DataError, match="nothing to compare: no site of any run has test examples"):
        compare(config, {"seed": [0, 1]})
    assert run(config, report=False).info["status"] == "finished"  # which has nothing to test, and says nothing else
