"""`fedfm audit`: exit codes and words of verify, the page for who answers for a site's data, the page of the run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from fedfm.cli import main
from fedfm.config.site import load_site_settings
from fedfm.federation.auditing import note_start
from fedfm.results.audit import Audit, read_chain
from fedfm.results.run_folder import RunFolder
from fedfm.results.run_report import write_run_report

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from recorded_sites import run_recorded


@pytest.fixture(scope="module")
def files(tmp_path_factory, small_data) -> tuple[Path, Path]:
    """The records of medical-1 and of the coordinator, of one run."""
    grid, done = run_recorded(tmp_path_factory.mktemp("recorded"))
    settings = grid.folders[1] / "site.toml"
    (grid.folders[1] / "ca.crt").write_text("of a test")
    note_start(load_site_settings(settings), {"FLWR_TELEMETRY_ENABLED": "0"})
    return grid.folders[1] / "state" / "audit.jsonl", done.folder.path / "audit.jsonl"


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def test_two_whole_records_agree_in_either_order(files, capsys):
    for pair in (files, files[::-1]):
        assert main(["audit", "verify", *map(str, pair)]) == 0
        out = capsys.readouterr().out.splitlines()
        for file, line in zip(pair, out[:2], strict=True):
            chain = read_chain(file)
            assert line == f"{file}: {len(chain.entries)} lines, intact, head {chain.head}"
        assert out[2:] == ["8 messages crossed, and both records say the same of each"]


EDITS = {
    "a changed byte": (lambda lines: [*lines[:4], lines[4].replace(b"e", b"f", 1), *lines[5:]], "broken at line 5"),
    "a removed line": (lambda lines: lines[:3] + lines[4:], "broken at line 4"),
    "an inserted line": (lambda lines: [*lines[:6], lines[2], *lines[6:]], "broken at line 7"),
    "reordered lines": (lambda lines: [*lines[:7], lines[8], lines[7], *lines[9:]], "broken at line 8"),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("whose", [0, 1])
def test_an_edit_is_told_with_its_line_and_exit_code_1(files, tmp_path, capsys, edit, whose):
    change, said = EDITS[edit]
    copy = tmp_path / "audit.jsonl"
    copy.write_bytes(b"".join(change(lines_of(files[whose]))))
    assert main(["audit", "verify", str(copy)]) == 1
    assert f"{copy}: {said}: " in capsys.readouterr().out
    assert main(["audit", "verify", str(copy), str(files[1 - whose])]) == 1


def test_a_removed_last_line_is_seen_by_the_other_side_and_by_the_head(files, tmp_path, capsys):
    site, coordinator = files
    head = read_chain(site).head
    copy = tmp_path / "audit.jsonl"
    copy.write_bytes(b"".join(lines_of(site)[:-2]))  # the last line is of the start, which no message tells
    assert main(["audit", "verify", str(copy)]) == 0  # a chain alone does not show it
    assert main(["audit", "verify", str(copy), "--head", head]) == 1
    assert "the end was cut off" in capsys.readouterr().out
    assert main(["audit", "verify", str(copy), str(coordinator)]) == 1
    assert "disagreement: coordinator, line " in capsys.readouterr().out
    run = tmp_path / "run"  # the coordinator's: run.json has the head
    run.mkdir()
    (run / "run.json").write_bytes((coordinator.parent / "run.json").read_bytes())
    (run / "audit.jsonl").write_bytes(b"".join(lines_of(coordinator)[:-1]))
    assert main(["audit", "verify", str(run / "audit.jsonl")]) == 1


def test_a_file_that_is_none_is_wrong_input(files, tmp_path, capsys):
    assert main(["audit", "verify", str(tmp_path / "none.jsonl")]) == 2
    assert main(["audit", "verify", str(files[0]), "--head", "abc"]) == 2
    assert main(["audit", "verify", str(files[0]), str(files[0])]) == 2
    assert "both files are the record of a site" in capsys.readouterr().err


def test_a_torn_line_that_was_kept_is_told(files, tmp_path, capsys):
    copy = tmp_path / "audit.jsonl"
    copy.write_bytes(b"".join(lines_of(files[0]))[:-40])
    assert main(["audit", "verify", str(copy)]) == 1
    assert "it has no end" in capsys.readouterr().out
    Audit(copy).add("note")
    assert main(["audit", "verify", str(copy)]) == 0
    assert "a killed writer left" in capsys.readouterr().out


def test_the_sites_page_tells_all_that_left_and_needs_nothing_else(files, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["audit", "report", str(files[0]), "--out", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    html = page.read_text(encoding="utf-8")
    chain = read_chain(files[0])
    sent = [entry for entry in chain.entries.values() if entry.kind.endswith("-out")]
    assert len(sent) == 4
    for entry in sent:
        assert entry.fields["sha256"] in html
        assert entry.fields["peer"] in html
        for name, *_ in entry.fields.get("tensors", ()):
            assert name in html
    assert chain.head in html
    assert "the record is intact" in html
    assert "medical-1 sent 1 card, 2 updates, 1 tally" in html
    assert "By construction no message holds an example" in html
    for words in ("telemetry", "mounted read-only", "(TLS)", "container image", "number of the user"):
        assert words in html
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", html)
    assert "<script" not in html


def test_the_page_of_a_broken_record_says_where(files, tmp_path, capsys):
    copy = tmp_path / "audit.jsonl"
    copy.write_bytes(b"".join(EDITS["a changed byte"][0](lines_of(files[0]))))
    page = tmp_path / "page.html"
    assert main(["audit", "report", str(copy), "--out", str(page)]) == 1
    assert "The record is broken at line 5" in page.read_text(encoding="utf-8")


def test_the_page_of_the_run_shows_what_left_each_site(files):
    html = write_run_report(RunFolder(files[1].parent)).read_text(encoding="utf-8")
    chain = read_chain(files[1])
    assert chain.head in html
    assert "the record is intact" in html
    for entry in chain.entries.values():
        if entry.kind in ("update-in", "tally-in"):
            assert entry.fields["sha256"] in html
    assert "every message of medical-1" in html


def test_the_image_of_the_container_is_recorded(files, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDFM_IMAGE", "fedfm:1@sha256:abc")
    settings = load_site_settings(files[0].parents[1] / "site.toml")
    elsewhere = settings.model_copy(update={"state": str(tmp_path)})
    note_start(elsewhere, {})
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["fields"]["image"] == "fedfm:1@sha256:abc"
    assert json.loads(line)["fields"]["telemetry"] == "on"
