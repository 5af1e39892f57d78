"""The README is run: its commands, its configuration, its Python; and its tables are those of the code."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedfm
from fedfm.cli import main
from fedfm.config import RunConfig
from fedfm.config.models import DomainConfig
from fedfm.engines import ENGINES
from fedfm.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- (runnable|file: \S+) -->\n```(\w+)\n(.*?)```", re.DOTALL)


def blocks(mark: str, language: str) -> list[str]:
    return [text for found, kind, text in BLOCK.findall(README) if found == mark and kind == language]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mine.toml` as the README has it, and small data of the kinds that it names."""
    folder = tmp_path_factory.mktemp("readme")
    (text,) = blocks("file: mine.toml", "toml")
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    data, rng = folder / "data", np.random.default_rng(0)
    for label, brightness in {"clear": 60, "opaque": 180}.items():
        (data / "scans" / label).mkdir(parents=True)
        for number in range(16):
            pixels = np.clip(rng.normal(brightness, 30, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(data / "scans" / label / f"{number}.png")
    sayings = [("profit rose", "good"), ("the plant was shut down", "bad")]
    rows = [f"{saying} in year {number},{label}" for number in range(30) for saying, label in sayings]
    (data / "headlines.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    sentences = [f"we\tO\nsaw\tO\nBRCA{number}\tB-GENE\n" for number in range(30)]
    (data / "genes.conll").write_text("\n".join(sentences), encoding="utf-8")
    return folder


def command(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """What `fedfm WORDS` prints; it must end well."""
    monkeypatch.setattr(sys, "argv", ["fedfm", *words])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    output, complaint = capsys.readouterr()
    assert code == 0, complaint
    return output


def test_every_command_works_on_files_as_described(workspace: Path, monkeypatch, capsys) -> None:
    """In the order of the README; RUN stands for the folder that the last `fedfm run` printed last."""
    monkeypatch.chdir(workspace)
    lines = [line for text in blocks("runnable", "console") for line in text.splitlines()]
    assert len(lines) >= 8
    printed, run = {}, ""
    for line in lines:
        prompt, program, *words = shlex.split(line)
        assert (prompt, program) == ("$", "fedfm"), line
        words = [run if word == "RUN" else word for word in words]
        printed[line] = command(words, monkeypatch, capsys)
        if words[0] == "run":
            run = printed[line].splitlines()[-1]
            assert json.loads(Path(run, "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    (predicted,) = (text for line, text in printed.items() if " predict " in line)
    labels, _, texts = zip(*(row.split("\t") for row in predicted.splitlines()), strict=True)
    assert set(labels) <= {"good", "bad"}
    assert texts == ("Profit rose by a third", "The plant was shut down")
    assert (workspace / "exported" / "adapter" / "adapter_config.json").exists()


def test_the_files_of_a_run_folder_are_those_that_are_listed(workspace: Path) -> None:
    data, runs = workspace / "data", workspace / "one"
    run = fedfm.run(workspace / "mine.toml", f"data-root={data}", f"runs.folder={runs}", "rounds=1")
    listed = set(re.findall(r"^RUN/(\S+?)/? ", README, re.MULTILINE))
    assert {file.name for file in run.folder.iterdir()} == listed


def test_the_python_works(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    (text,) = blocks("runnable", "python")
    names: dict = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names["run"].info["status"] == "finished"
    assert len(names["run"].rounds) == 4  # round 0, before training, and three
    assert names["model"].predict(["profit rose in year 3"])[0] in ("good", "bad")


def flattened(table: dict, prefix: str) -> dict:
    flat = {}
    for name, value in table.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def test_the_table_of_the_configuration_is_whole_and_true() -> None:
    """Every key with its default; [sharing], site tables and local overrides of a domain have rows of their own."""
    whole = RunConfig().to_dict() | {"domains": {}}
    domain = DomainConfig(task="text-classification").model_dump(mode="json", by_alias=True, exclude={"local", "site"})
    keys = flattened(whole, "") | flattened(domain, "domains.NAME.") | {"domains.NAME.task": None}
    rows = re.findall(r"^\| `([\w.-]+)` \| (?:`(.*?)`)? ?\|", README.partition("## Configuration")[2], re.MULTILINE)
    told = {key: json.loads(default) if default else None for key, default in rows}
    assert told.pop("domains.NAME.local.KEY") is None
    assert told == keys


def test_other_tables_name_what_there_is() -> None:
    def first_cells(title: str) -> list[str]:
        section = README.partition(f"## {title}\n")[2].partition("\n## ")[0]
        return re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)

    assert first_cells("Engines") == list(ENGINES)
    assert first_cells("Strategies") == list(STRATEGIES)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_the_table_of_strategies_is_written_by_its_script() -> None:
    import subprocess
    import sys

    script = Path(__file__).parents[1] / "scripts" / "strategy_table.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
