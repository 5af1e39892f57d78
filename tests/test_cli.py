"""The command line: exit codes, what goes to which stream, the last line, the form of errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedfm
from fedfm.cli import main

TEXT_ONLY = '[domains.finance]\ntask = "text-classification"\nmax-examples = 24\n'


@pytest.fixture
def config(tmp_path, monkeypatch) -> str:
    """The name of a small configuration in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text("rounds = 1\n" + TEXT_ONLY, encoding="utf-8")
    return "tiny.toml"


def info(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))


# ---- run and resume --------------------------------------------------------------------------------------------------


def test_run_prints_the_folder_last_and_resume_leaves_a_finished_run_as_it_is(config, capsys):
    assert main(["run", config, "--quiet", "seed=3", "data-root=a=b"]) == 0
    out, err = capsys.readouterr()
    folder = out.splitlines()[-1]
    assert (out, err) == (f"{folder}\n", "")
    assert info(folder)["status"] == "finished"
    assert info(folder)["seed"] == 3
    before = {file: file.stat().st_mtime_ns for file in Path(folder).rglob("*")}
    assert main(["resume", folder]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == folder
    assert {file: file.stat().st_mtime_ns for file in Path(folder).rglob("*")} == before
    assert main(["run", "--show", f"{folder}/config.toml"]) == 0
    assert capsys.readouterr().out == (Path(folder) / "config.toml").read_text(encoding="utf-8")


def test_the_config_of_a_run_folder_runs_again_to_the_same_weights(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedfm.engines.running.leave_report", lambda folder: None)  # seconds, and not the point here
    assert main(["run", str(tiny_run / "config.toml"), "runs.folder=again"]) == 0
    folder = capsys.readouterr().out.splitlines()[-1]
    assert folder.startswith("again/")
    assert info(folder)["final_weights_sha256"] == info(tiny_run)["final_weights_sha256"]
    assert info(folder)["final"] == info(tiny_run)["final"]


def test_the_options_of_run_stand_anywhere(config, capsys):
    shown = []
    for words in (["--show", config, "rounds=3"], [config, "--show", "rounds=3"], [config, "rounds=3", "--show"]):
        assert main(["run", *words]) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1
    read = tomllib.loads(shown[0])
    assert read["rounds"] == 3
    assert fedfm.load_config(read) == fedfm.load_config(config, "rounds=3")


def test_an_impossible_rate_fails_with_a_sentence_and_leaves_a_folder(config, capsys):
    assert main(["run", config, "rounds=4", "local.learning-rate=1e30", "local.optimizer=sgd"]) == 1
    out, err = capsys.readouterr()
    (folder,) = Path("runs").iterdir()
    assert err.startswith("error[FM501] the run failed\n  round 1: 0 usable updates")
    assert f"fedfm resume {folder}" in err
    assert "Traceback" not in out + err
    assert "left out: it says that update-norm is" in out
    assert info(folder)["status"] == "failed"
    assert info(folder)["reason"].startswith("round 1: 0 usable updates")
    run = fedfm.Run(folder)
    assert run.rounds["round"].tolist() == [0]
    assert set(run.metrics["round"]) == {0}
    assert main(["resume", str(folder), "--quiet"]) == 1  # from round 0, to the same end
    assert capsys.readouterr().err.count("round 1: 0 usable updates") == 1


@pytest.mark.parametrize("command", [["resume"], ["predict", "x", "--domain", "finance"], ["export", "x"]])
def test_what_is_no_run_folder(command, tmp_path, capsys):
    name, *others = command
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main([name, str(folder), *others]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error[FM100] wrong input\n")
        assert str(folder) in err
        assert "mend: " in err


def test_resume_of_a_folder_whose_config_was_damaged(config, capsys):
    folder = Path("run")
    folder.mkdir()
    (folder / "run.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    assert main(["resume", "run"]) == 2
    assert "run/config.toml: cannot read the configuration: No such file" in capsys.readouterr().err
    (folder / "config.toml").write_text("rounds = \n", encoding="utf-8")
    assert main(["resume", "run"]) == 2
    assert "run/config.toml, line 1: not valid TOML" in capsys.readouterr().err
    (folder / "config.toml").write_text("rounds = 0\n", encoding="utf-8")
    assert main(["resume", "run"]) == 2
    assert "run/config.toml, line 1, rounds: must be at least 1, got 0" in capsys.readouterr().err


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_errors_go_to_standard_error_all_at_once_in_one_form(config, capsys):
    assert main(["run", config, "rounds=five", "strategy.name=fedproxx"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error[FM101] wrong input: 2 problems",
        '  command line, rounds: must be a whole number, got "five"',
        "    mend: the default is rounds = 5",
        '  command line, strategy.name: unknown strategy "fedproxx". did you mean "fedprox"?',
        f"    mend: known: {', '.join(fedfm.strategies.STRATEGIES)}",
    ]
    assert not Path("runs").exists()


def test_debug_shows_where_an_error_was_raised(config, capsys):
    assert main(["run", "--debug", config, "rounds=0"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "error[FM101] wrong input" in err


def test_a_fault_of_fedfm_is_called_one(config, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("fedfm.engines.run", broken)
    assert main(["run", config]) == 1
    assert capsys.readouterr().err == (
        "error[FM000] ZeroDivisionError: division by zero\n"
        "  this is a fault of fedfm, not of your input; --debug shows where it happened\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(["run", config, "--debug"])


@pytest.mark.parametrize(
    ("words", "said", "mend"),
    [
        (["rum"], "No such command 'rum'.", "fedfm --help"),
        (["run"], "Missing argument 'CONFIG'.", "fedfm run --help"),
        (["run", "x.toml", "--rounds=3"], "No such option '--rounds'", "settings have no dashes: rounds=3"),
        (["run", "x.toml", "-rounds=3"], "No such option '-r'", "settings have no dashes: rounds=3"),
        (["run", "x.toml", "--qiet"], "Did you mean '--quiet'?", "fedfm run --help"),
        (["run", "rounds=3"], "rounds=3: cannot read the configuration", "the configuration file comes first"),
        (["predict", "x"], "Missing argument 'INPUT...'.", "fedfm predict --help"),
    ],
)
def test_wrong_words(words, said, mend, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error[FM10")
    assert said.replace("'", "").replace('"', "") in err.replace("'", "").replace('"', "")
    assert mend in err


def test_an_override_may_begin_with_a_dash_after_two_of_them(config, capsys):
    assert main(["run", config, "--", "-x=3"]) == 2
    assert "command line, -x: unknown key." in capsys.readouterr().err


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedfm {fedfm.__version__}\n"
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in ("run", "resume", "compare", "report", "predict", "explain", "export", "data", "doctor", "list"):
        assert f"\n  {command} " in printed
    assert "..." not in printed.partition("Commands:")[2], "a sentence is cut"
    assert "\\[" not in printed
    assert main([]) == 2


# ---- data check ------------------------------------------------------------------------------------------------------


def test_data_check_counts_and_refuses(tmp_path, capsys):
    for split in ("train", "test"):
        rows = "".join(f"{label},{label} news {i}{split}\n" for i in range(3) for label in ("up", "down"))
        (tmp_path / f"{split}.csv").write_text("label,text\n" + rows, encoding="utf-8")
    assert main(["data", "check", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "text-classification" in printed
    assert "up" in printed
    assert "sha256" in printed
    assert main(["data", "check", str(tmp_path), "--label-column", "labl"]) == 2
    assert 'did you mean "label"?' in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path), "--task", "text"]) == 2
    assert 'unknown task "text".' in capsys.readouterr().err


# ---- real processes --------------------------------------------------------------------------------------------------


def start(folder: Path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fedfm", *words], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_in_a_run_says_how_to_go_on_and_resume_finishes(config, tmp_path):
    """Stopped after round 2; the resumed run has the weights of one that was never stopped."""
    with start(tmp_path, "run", config, "rounds=15", "runs.folder=whole") as whole:
        assert whole.communicate(timeout=300)[1] == ""
    with start(tmp_path, "run", config, "rounds=15") as process:
        next(line for line in process.stdout if line.startswith("    2 "))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    (folder,) = (tmp_path / "runs").iterdir()
    assert process.returncode == 1
    assert err.splitlines() == ["stopped", f"go on with: fedfm resume runs/{folder.name}"]
    assert info(folder)["status"] == "interrupted"
    assert 3 <= len(fedfm.Run(folder).rounds) < 16
    with start(tmp_path, "resume", f"runs/{folder.name}") as resumed:
        out, err = resumed.communicate(timeout=300)
    assert (resumed.returncode, err) == (0, "")
    assert out.splitlines()[-1] == f"runs/{folder.name}"
    assert info(folder)["status"] == "finished"
    (other,) = (tmp_path / "whole").iterdir()
    assert info(folder)["final_weights_sha256"] == info(other)["final_weights_sha256"]


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    with start(tmp_path, "list") as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode in (0, 1)
