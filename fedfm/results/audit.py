"""A record of messages that cannot be changed unseen: `audit.jsonl`, one JSON object a line, each sealed over the last.

    {"fields": {...}, "kind": "update-out", "prev_sha256": "...", "seq": 7, "sha256": "...", "time": "...Z"}

`sha256` is that of the line without it, and `prev_sha256` that of the line before. A line is written in the one form
that its content has: keys sorted, no spaces, ASCII (other characters as \\u escapes, exactly as they came: texts that
look alike may differ), whole numbers below 2^53, and no other numbers: a float has as many texts as there are
languages, so that it goes in as text. A line in another form is no line of ours, however equal it is as JSON. So one
changed byte, and one line that is taken out, put in or moved, break the chain at a line that `verify` names.

What a chain alone cannot show is that its last lines are cut off. Who holds the digest of its head from before sees
it: `run.json` and the report have that of the coordinator's, the messages between a site and its coordinator carry
each one's to the other (see `agreement.py`), and `verify` takes such digests as `heads`.

Any number of processes may add; one at a time holds the file. A line is on the disk before its message leaves. A
process that is killed while it writes leaves a torn end: it stays in the file as it is, and the next line, of kind
`torn`, seals what it was. The file is only ever appended to, and may be kept on a medium that allows nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from fedfm.errors import AuditError, UserError

START = "0" * 64  # what the first line names as the one before it
LARGEST = 2**53  # whole numbers beyond it are not the same in every reader of JSON
BLOCK = 2**16
TORN = "torn"


@dataclass(frozen=True)
class Entry:
    """One line. `fields`: texts, whole numbers, booleans, None, and lists and mappings of them."""

    seq: int
    time: str
    kind: str
    fields: Mapping[str, Any]
    prev_sha256: str
    sha256: str

    @property
    def text(self) -> str:
        """The line, without its end."""
        return canonical(asdict(self))


@dataclass(frozen=True)
class Break:
    """Where a chain breaks: the first line (from 1) that cannot be what was written, and why."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


@dataclass
class Chain:
    """What a file holds up to its first break: line -> entry. `broken` is None where there is none."""

    entries: dict[int, Entry] = field(default_factory=dict)
    broken: Break | None = None

    @property
    def head(self) -> str:
        """The digest of the last entry, which stands for all before it."""
        return next(reversed(self.entries.values())).sha256 if self.entries else START


@dataclass(frozen=True)
class Audit:
    """The record at `path`; holds no state of its own, so that the processes of a site agree on it."""

    path: Path

    def add(self, kind: str, /, **fields: Any) -> Entry:
        """Seal one line and put it on the disk. Raises AuditError where it cannot: then its message must not leave.

        Raises TypeError or ValueError for fields that have no one form in JSON (see `Entry`).
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+", buffering=0) as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it ends
                last, loose, start = _end_of(file, self.path)
                entries = []
                if loose:
                    last = seal(last, TORN, bytes=len(loose), sha256=hashlib.sha256(loose).hexdigest())
                    entries.append(last)
                entries.append(seal(last, kind, **fields))
                text = start + "".join(f"{entry.text}\n" for entry in entries)
                _append(file, text.encode("ascii"))
        except OSError as error:
            what = f"the record of messages cannot be written: {error.strerror or error}"
            mend = "without a record no message leaves; make room on the disk, or give a folder that can be written to"
            raise AuditError(what, where=str(self.path), mend=mend) from None
        return entries[-1]


def seal(last: Entry | None, kind: str, /, **fields: Any) -> Entry:
    """The entry that comes after `last`."""
    seq, previous = (last.seq + 1, last.sha256) if last else (0, START)
    body = {"seq": seq, "time": _now(), "kind": kind, "fields": fields, "prev_sha256": previous}
    return Entry(**body, sha256=_digest(body))


def canonical(value: Any) -> str:
    """The one text of a value. Raises TypeError or ValueError where there is none."""
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def read_chain(path: Path, heads: Iterable[str] = ()) -> Chain:
    """The entries of a file as far as they hold together. Raises UserError where there is no such file.

    `heads`: digests of entries that others have been told of, and that must be there.
    """
    if not Path(path).is_file():
        raise UserError("there is no such file", where=str(path), mend="give the audit.jsonl of a site or of a run")
    chain, loose, line = Chain(), [], 0
    with open(path, "rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                what = "it has no end: its writer was killed (the next message will say so), or bytes were changed"
                chain.broken = Break(line, what)
                return chain
            entry = _parsed(raw[:-1])
            if isinstance(entry, str):
                loose.append((line, raw, entry))
                continue
            chain.broken = _misplaced(entry, line, chain, loose)
            if chain.broken:
                return chain
            chain.entries[line] = entry
            loose.clear()
    if loose:
        chain.broken = Break(loose[0][0], loose[0][2])
    else:
        known = {entry.sha256 for entry in chain.entries.values()}
        if missing := next((head for head in heads if head not in known), ""):
            chain.broken = Break(line + 1, f"the end was cut off: {missing[:16]}..., once its head, is no longer there")
    return chain


def verify(path: Path, heads: Iterable[str] = ()) -> Break | None:
    """The first break of the chain in a file, None where there is none. Arguments and errors: see `read_chain`."""
    return read_chain(path, heads).broken


def _misplaced(entry: Entry, line: int, chain: Chain, loose: list[tuple[int, bytes, str]]) -> Break | None:
    """Why an entry cannot stand here. `loose`: the lines before it that are none, which only a torn end may leave."""
    if loose:
        torn = b"".join(raw for _, raw, _ in loose)[:-1]  # the end of its last line came with the entry that seals it
        if entry.kind != TORN or entry.fields.get("sha256") != hashlib.sha256(torn).hexdigest():
            return Break(loose[0][0], loose[0][2])
    elif entry.kind == TORN:
        return Break(line, "the torn line that it tells of is gone")
    expected = len(chain.entries)
    if entry.seq != expected:
        return Break(
            line, f"here belongs number {expected}, and it is number {entry.seq}: lines are gone, new or moved"
        )
    if entry.prev_sha256 != chain.head:
        return Break(line, "it was sealed over another line than the one before it")
    return None


def _parsed(line: bytes) -> Entry | str:
    """The entry that a line is, or why it is none."""
    try:
        body = json.loads(line.decode("ascii"))
        written = canonical(body).encode("ascii") == line
    except (ValueError, TypeError, RecursionError):
        return "it is no entry of a record: its bytes are damaged"
    if not isinstance(body, dict) or body.keys() != Entry.__dataclass_fields__.keys():
        return "it is no entry of a record: other keys than an entry has"
    entry = Entry(**body)
    if not isinstance(entry.fields, dict) or not isinstance(entry.kind, str) or type(entry.seq) is not int:
        return "it is no entry of a record: a value of another type than an entry has"
    if not written or _digest(body) != entry.sha256:
        return "its content is not what was sealed"
    return entry


def _digest(body: Mapping[str, Any]) -> str:
    text = canonical({key: value for key, value in body.items() if key != "sha256"})
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _check(value: Any) -> None:
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if not -LARGEST < value < LARGEST:
            raise ValueError(f"{value} is not the same number in every reader of JSON: write it as text")
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
    elif isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key of a record is a text")
        for item in value.values():
            _check(item)
    else:
        raise TypeError(f"{type(value).__name__} has no one form in JSON: write it as text")


def _end_of(file: io.FileIO, path: Path) -> tuple[Entry | None, bytes, str]:
    """The last entry, what a killed writer left after it, and how a new line starts. Raises AuditError if damaged.

    An entry that lacks nothing but its line end counts as written.
    """
    size = file.seek(0, os.SEEK_END)
    length, lines = 0, [b""]
    while length < size and len(lines) < 4:  # an entry, a torn line, the torn line that was to tell of it, and its end
        length = min(size, max(2 * length, BLOCK))
        file.seek(size - length)
        lines = file.read(length).split(b"\n")
    *whole, rest = lines
    if isinstance(entry := _parsed(rest), Entry):
        return entry, b"", "\n"
    for back in range(1, min(len(whole), 3 if rest else 1) + 1):
        if isinstance(entry := _parsed(whole[-back]), Entry):
            return entry, b"\n".join(lines[len(lines) - back :]), "\n" if rest else ""
    if length == size and len(whole) <= bool(rest):  # nothing, or torn from the first line on
        return None, b"\n".join(lines), "\n" if rest else ""
    mend = "move the file aside and keep it, as it shows what was done to it; a new record begins with the next message"
    raise AuditError("the last line of the record is damaged", where=str(path), mend=mend)


def _append(file: io.FileIO, data: bytes) -> None:
    """Write and wait until the disk has it; where there is no room for all of it nothing is left of it."""
    size = file.seek(0, os.SEEK_END)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(size)
        raise
    if not size and os.name == "posix":  # the new name itself must reach the disk
        folder = os.open(os.path.dirname(file.name) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
