"""The record of messages: what is sealed is found again, and whatever is done to it is found too.

An edit of a file is drawn by hypothesis; that a chain breaks is asserted of every edit but those that the module says a
chain cannot show (a tail that is cut off at a line's end), and of these once a head is known.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfm.errors import AuditError, UserError
from fedfm.results.audit import LARGEST, START, Audit, Break, canonical, read_chain, seal, verify

TEXTS = st.text(st.characters(codec=None), max_size=12)  # lone surrogates, controls and line separators too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(1 - LARGEST, LARGEST - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(TEXTS, VALUES, max_size=4)
in_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


def sealed(count: int, site: str) -> list[bytes]:
    entries = []
    for number in range(count):
        tensors = [["shared/a", [2, 3], "float32", 24]]
        entries.append(seal(entries[-1] if entries else None, "update-out", round=number, site=site, tensors=tensors))
    return [entry.text.encode() + b"\n" for entry in entries]


LINES = sealed(6, "st-märy")
OTHER = sealed(6, "st-luke")


def chain_of(path: Path, count: int = 6) -> list[bytes]:
    """Make `path` a file of `count` entries, as `Audit.add` writes them; its lines with their ends."""
    path.write_bytes(b"".join(LINES[:count]))
    return LINES[:count]


@settings(in_folder, max_examples=30)  # each line waits for the disk
@given(rows=st.lists(FIELDS, max_size=4))
def test_what_is_added_is_read_back_and_holds_together(tmp_path, rows):
    path = tmp_path / "audit.jsonl"
    path.unlink(missing_ok=True)
    path.touch()
    added = [Audit(path).add("note", **row) for row in rows]
    chain = read_chain(path)
    assert chain.broken is None
    assert [canonical(entry.fields) for entry in chain.entries.values()] == [canonical(row) for row in rows]
    assert list(chain.entries) == list(range(1, len(rows) + 1))
    assert chain.head == (added[-1].sha256 if rows else START)
    assert path.read_bytes().isascii()


def test_a_line_can_be_checked_without_fedfm(tmp_path):
    """As the docstring says it: SHA-256 of the line without its own digest, keys sorted, no spaces."""
    (line, second) = chain_of(tmp_path / "audit.jsonl", 2)
    body = json.loads(line)
    sha = body.pop("sha256")
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == sha
    assert body["prev_sha256"] == "0" * 64
    assert json.loads(second)["prev_sha256"] == sha


@in_folder
@given(data=st.data())
def test_one_changed_byte_is_found(tmp_path, data):
    path = tmp_path / "audit.jsonl"
    raw = bytearray(b"".join(chain_of(path)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[place]))
    line = 1 + bytes(raw[:place]).count(b"\n")
    path.write_bytes(raw)
    broken = verify(path)
    assert isinstance(broken, Break)
    assert broken.line == line


@in_folder
@given(data=st.data())
def test_bytes_put_in_or_taken_out_are_found(tmp_path, data):
    path = tmp_path / "audit.jsonl"
    raw = b"".join(chain_of(path))
    start = data.draw(st.integers(0, len(raw) - 1))
    stop = data.draw(st.integers(start, min(len(raw) - 1, start + 400)))  # the last byte stays: no cut tail
    fresh = data.draw(st.binary(max_size=20))
    edited = raw[:start] + fresh + raw[stop:]
    path.write_bytes(edited)
    assert (verify(path) is None) == (edited == raw)


@in_folder
@given(data=st.data())
def test_a_line_taken_out_put_in_or_moved_is_found_where_it_happened(tmp_path, data):
    path = tmp_path / "audit.jsonl"
    lines = chain_of(path)
    kind = data.draw(st.sampled_from(["taken out", "twice", "moved", "from another chain"]))
    place = data.draw(st.integers(0, len(lines) - 2))
    if kind == "taken out":
        edited = lines[:place] + lines[place + 1 :]
    elif kind == "twice":
        edited = [*lines[: place + 1], lines[place], *lines[place + 1 :]]
        place += 1
    elif kind == "moved":
        other = data.draw(st.integers(place + 1, len(lines) - 1))
        edited = list(lines)
        edited[place], edited[other] = lines[other], lines[place]
    else:
        edited = [*lines[:place], OTHER[place], *lines[place + 1 :]]
        place = max(place, 1)  # a first line may be any: it is the second that was not sealed over it
    path.write_bytes(b"".join(edited))
    assert verify(path).line == place + 1


@pytest.mark.parametrize("gone", [1, 3, 6])
def test_a_tail_that_is_cut_off_is_found_by_who_knows_the_head(tmp_path, gone):
    path = tmp_path / "audit.jsonl"
    lines = chain_of(path)
    head = read_chain(path).head
    assert verify(path, [head]) is None
    path.write_bytes(b"".join(lines[:-gone]))
    assert verify(path) is None  # the chain alone cannot know
    assert verify(path, [head]).line == 6 - gone + 1
    assert "the end was cut off" in str(verify(path, [head]))
    Audit(path).add("note")  # nor does going on hide it
    assert "the end was cut off" in str(verify(path, [head]))


def test_the_same_content_in_another_form_is_found(tmp_path):
    """Spaces, another order of keys, an escape for a plain character, a key twice: equal as JSON, not as written."""
    path = tmp_path / "audit.jsonl"
    (line,) = chain_of(path, 1)
    body = json.loads(line)
    forms = [
        json.dumps(body, sort_keys=True), json.dumps(dict(reversed(body.items())), separators=(",", ":")),
        line.decode().strip().replace("update", "\\u0075pdate"), json.dumps(body, ensure_ascii=False, sort_keys=True),
        line.decode().strip()[:-1] + ',"kind":"update-out"}', line.decode().strip() + " ",
        line.decode().strip().replace('"round":0', '"round":-0'), line.decode().strip() + "\r",
        line.decode().strip().replace('"round":0', '"round":0.0'),
    ]  # fmt: skip
    for form in forms:
        path.write_bytes(form.encode() + b"\n")
        assert verify(path).line == 1, form


@pytest.mark.parametrize("junk", [b"", b"{}", b"[]", b"null", b"nan", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_lines_that_are_none_are_told_and_nothing_worse(tmp_path, junk):
    path = tmp_path / "audit.jsonl"
    lines = chain_of(path)
    path.write_bytes(b"".join([*lines[:2], junk + b"\n", *lines[2:]]))
    assert verify(path).line == 3
    assert len(read_chain(path).entries) == 2


@pytest.mark.parametrize("value", [0.5, float("nan"), 2**53, -(2**60), {1: 2}, b"x", {"a": [object()]}])
def test_what_has_no_one_text_is_refused_and_leaves_no_line(tmp_path, value):
    audit = Audit(tmp_path / "audit.jsonl")
    with pytest.raises((TypeError, ValueError)):
        audit.add("note", value=value)
    audit.add("note", value=1)
    assert [entry.fields for entry in read_chain(audit.path).entries.values()] == [{"value": 1}]


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
