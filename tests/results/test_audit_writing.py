"""Who writes the record of messages is killed, fills the disk or is one of many: the record stays whole."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audit_helpers import chain_of

from fedfm.errors import AuditError, UserError
from fedfm.results.audit import Audit, read_chain, verify


@pytest.mark.parametrize("cut", [1, 20, 200])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_torn_end_is_told_healed_and_kept(tmp_path, before, cut):
    path = tmp_path / "audit.jsonl"
    lines = chain_of(path, before + 1)
    torn = lines[-1][:-cut] if cut > 1 else lines[-1][:-2]
    path.write_bytes(b"".join(lines[:-1]) + torn)
    assert verify(path).line == before + 1
    assert "has no end" in verify(path).what
    Audit(path).add("order-in", round=9)
    assert path.read_bytes().startswith(b"".join(lines[:-1]) + torn + b"\n")  # nothing was taken away
    chain = read_chain(path)
    assert chain.broken is None
    *_, told, last = chain.entries.values()
    assert (told.kind, told.fields["bytes"]) == ("torn", len(torn))
    assert last.fields == {"round": 9}
    raw = path.read_bytes()
    path.write_bytes(raw.replace(torn, torn[:-1] + b"#"))  # what was torn is sealed as well
    assert verify(path).line == before + 1
    path.write_bytes(raw.replace(torn + b"\n", b""))
    assert verify(path).line == before + 1


def test_an_end_that_lacks_its_line_end_alone_is_an_entry(tmp_path):
    path = tmp_path / "audit.jsonl"
    whole = b"".join(chain_of(path, 3))
    path.write_bytes(whole[:-1])
    assert verify(path).line == 3
    Audit(path).add("note")
    assert verify(path) is None
    assert path.read_bytes().startswith(whole)
    assert len(read_chain(path).entries) == 4


def test_a_writer_that_is_killed_while_it_heals_is_healed_too(tmp_path):
    """The second kill comes after any number of bytes of what the healing writes."""
    path = tmp_path / "audit.jsonl"
    lines = chain_of(path, 3)
    torn = b"".join(lines[:2]) + lines[2][:50]
    path.write_bytes(torn)
    Audit(path).add("note")
    healing = path.read_bytes()[len(torn) :]
    for written in (0, 1, 2, *range(7, len(healing), 19), len(healing)):
        path.write_bytes(torn + healing[:written])
        if written == 1:  # one byte of one write: the one end that reads as an edit, and is held to be one
            with pytest.raises(AuditError, match="the last line of the record is damaged"):
                Audit(path).add("note")
            continue
        Audit(path).add("note", after="both")
        chain = read_chain(path)
        assert chain.broken is None, written
        assert list(chain.entries.values())[-1].fields == {"after": "both"}
        assert path.read_bytes().startswith(torn + healing[:written])


def test_nothing_is_added_to_a_record_whose_last_line_was_changed(tmp_path):
    path = tmp_path / "audit.jsonl"
    lines = chain_of(path, 3)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"round":2', b'"round":3')]))
    before = path.read_bytes()
    with pytest.raises(AuditError, match="damaged") as caught:
        Audit(path).add("note")
    assert "move the file aside" in str(caught.value)
    assert path.read_bytes() == before


def test_long_lines_do_not_hide_the_last_one(tmp_path):
    """The end is read in blocks; a line may be longer than many of them."""
    audit = Audit(tmp_path / "audit.jsonl")
    for size in (10, 300_000, 70_000, 10, 10, 10):
        audit.add("note", text="x" * size)
    assert verify(audit.path) is None
    with open(audit.path, "ab") as file:
        file.write(b"y" * 200_000)
    audit.add("note")
    assert verify(audit.path) is None


def test_a_file_that_is_not_there_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        verify(tmp_path / "none.jsonl")


def _write_many(path: Path, name: str, count: int) -> None:
    for number in range(count):
        Audit(path).add("note", name=name, number=number, text="x" * 3000)


def test_several_processes_write_one_chain(tmp_path):
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(path, name, 25)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    chain = read_chain(path)
    assert chain.broken is None
    for name in "abcd":
        numbers = [e.fields["number"] for e in chain.entries.values() if e.fields["name"] == name]
        assert numbers == list(range(25))


def _write_to_a_full_disk(path: Path, answers) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, resource.RLIM_INFINITY))
    try:
        Audit(path).add("note", text="x" * 500)
    except AuditError as error:
        answers.put(str(error))
    os._exit(0)


def test_a_disk_that_is_full_is_told_and_the_record_stays_whole(tmp_path):
    """The size of a file is limited by the system for a process: the write gets 100 bytes in and then fails."""
    path = tmp_path / "audit.jsonl"
    before = b"".join(chain_of(path, 2))
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    worker = context.Process(target=_write_to_a_full_disk, args=(path, answers))
    worker.start()
    worker.join()
    assert "the record of messages cannot be written: File too large" in (said := answers.get())
    assert "without a record no message leaves" in said
    assert path.read_bytes() == before


KILLED = """
import sys
from pathlib import Path
from fedfm.results.audit import Audit
number = 0
while True:
    Audit(Path(sys.argv[1])).add("note", number=number, text="x" * 20_000)
    print(number, flush=True)
    number += 1
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_record_that_goes_on(tmp_path):
    """SIGKILL at any moment, twenty times over: every line that was confirmed is there, in one chain."""
    path, confirmed = tmp_path / "audit.jsonl", 0
    for turn in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        process.stdout.readline()
        time.sleep(0.01 + 0.003 * turn)
        process.send_signal(signal.SIGKILL)
        confirmed += 1 + len(process.stdout.read().splitlines())
        process.stdout.close()
        process.wait()
    Audit(path).add("end")
    chain = read_chain(path)
    assert chain.broken is None
    notes = [entry for entry in chain.entries.values() if entry.kind == "note"]
    assert confirmed <= len(notes) <= confirmed + 20
