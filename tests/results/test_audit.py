"""The record of messages: what is sealed is found again, and whatever is done to it is found too.

An edit of a file is drawn by hypothesis; that a chain breaks is asserted of every edit but those that the module says a
chain cannot show (a tail that is cut off at a line's end), and of these once a head is known.
"""

from __future__ import annotations

import hashlib
import json

import pytest
from audit_helpers import OTHER, chain_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfm.results.audit import LARGEST, START, Audit, Break, canonical, read_chain, verify

TEXTS = st.text(st.characters(codec=None), max_size=12)  # lone surrogates, controls and line separators too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(1 - LARGEST, LARGEST - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(TEXTS, VALUES, max_size=4)
in_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


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
