"""Do the records of a site and of its coordinator agree on what crossed between them?

Whoever gets a message writes down the digest of the line by which its sender sealed it (`head`). So every line `...-in`
of one file names one line `...-out` of the other, and that line must be there and say the same. A line that is named
and missing was taken out, rewritten, or cut off with the end of its file. A line `...-out` that nobody names is a
message that was lost, or came too late to be taken: it is told, and is no disagreement. So is the one refusal that a
site may send without a line of its own, the sentence that it can write none (`NO_RECORD`).

Compared is what both sides know of a message, not when it was sent or where in a file it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedfm.errors import UserError
from fedfm.results.audit import Chain, Entry

ABOUT = ("flower_run", "run", "round", "phase", "site", "domain")
HELD = ("config", "tensors", "bytes", "sha256", "numbers", "left_out", "reasons")
MESSAGES = ("query", "order", "card", "update", "tally", "refusal")  # a line "left-out" is of none that was sent
IN, OUT = {f"{kind}-in" for kind in MESSAGES}, {f"{kind}-out" for kind in MESSAGES}
NO_RECORD = "the site keeps no record of its messages, and so sends nothing"  # how that sentence begins


@dataclass(frozen=True)
class Difference:
    """What does not agree: `where` is "site" or "coordinator", `line` that of its file."""

    where: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.where}, line {self.line}: {self.what}"


@dataclass
class Agreement:
    """`crossed`: messages on which both sides agree. `lost`: what was sent and not taken in. `unrecorded`: refusals of
    a site that could not write its record."""

    crossed: int = 0
    differences: list[Difference] = field(default_factory=list)
    lost: list[Difference] = field(default_factory=list)
    unrecorded: list[Difference] = field(default_factory=list)


def agree(site: Chain, coordinator: Chain) -> Agreement:
    """Compare two records, of which the first is that of one site. Both must be intact (`audit.verify`)."""
    found = Agreement()
    peers = {entry.fields["peer"] for entry in site.entries.values() if entry.fields.get("peer")}
    names = {entry.fields["site"] for entry in site.entries.values() if entry.fields.get("site")}
    runs = {entry.fields.get("flower_run") for entry in coordinator.entries.values()}
    ours = {line: e for line, e in site.entries.items() if e.fields.get("flower_run") in runs}
    theirs = {line: e for line, e in coordinator.entries.items() if _is_of(e, peers, names)}
    for here, sender, receiver, everything in (
        ("coordinator", ours, theirs, site), ("site", theirs, ours, coordinator),
    ):  # fmt: skip
        _match(found, here, sender, receiver, everything)
    return found


def tell_apart(first: Chain, second: Chain) -> tuple[Chain, Chain]:
    """The two records, the site's first. Raises UserError where they are not one of each kind."""
    roles = [_is_coordinators(chain) for chain in (first, second)]
    if roles[0] == roles[1]:
        whose = "a coordinator" if roles[0] else "a site"
        raise UserError(f"both files are the record of {whose}", mend="give one of a site and one of a run folder")
    return (second, first) if roles[0] else (first, second)


def _is_coordinators(chain: Chain) -> bool:
    return any(entry.kind in ("query-out", "order-out") for entry in chain.entries.values())


def _is_of(entry: Entry, peers: set[str], names: set[str]) -> bool:
    """Is a coordinator's entry about this site? By key where keys are known, else by name."""
    peer, site = str(entry.fields.get("peer", "")), entry.fields.get("site")
    return peer in peers if peer.startswith("SHA256:") and peers else site in names


def _match(
    found: Agreement, here: str, sender: Mapping[int, Entry], receiver: Mapping[int, Entry], everything: Chain
) -> None:
    """What `here` has taken in against what the other side has sent."""
    there = {"site": "coordinator", "coordinator": "site"}[here]
    sent = {entry.sha256: (line, entry) for line, entry in everything.entries.items() if entry.kind in OUT}
    taken = set()
    for line, entry in receiver.items():
        head = entry.fields.get("head")
        if head:
            taken.add(head)
        if entry.kind not in IN:
            continue
        kind = entry.kind.removesuffix("-in")
        if not head and is_unrecorded(entry):
            found.unrecorded.append(Difference(here, line, entry.fields["reasons"][0]))
            continue
        if head not in sent:
            what = f"it has taken in {_named(kind, entry)}, and the {there}'s record of sending it is not there"
            found.differences.append(Difference(here, line, what))
            continue
        other_line, other = sent[head]
        if unlike := [*_unlike(kind, entry, other)]:
            what = f"{_named(kind, entry)} differs from line {other_line} of the {there} in {', '.join(unlike)}"
            found.differences.append(Difference(here, line, what))
        else:
            found.crossed += 1
    for line, entry in sender.items():
        if entry.kind in OUT and entry.sha256 not in taken:
            what = f"{_named(entry.kind.removesuffix('-out'), entry)} was sent, and the {here} has not taken it in"
            found.lost.append(Difference(there, line, what))


def is_unrecorded(entry: Entry) -> bool:
    """Is it the refusal of a site that could not write its record? It holds nothing but its sentence."""
    reasons = entry.fields.get("reasons") or [""]
    return entry.kind == "refusal-in" and len(reasons) == 1 and str(reasons[0]).startswith(NO_RECORD)


def _unlike(kind: str, entry: Entry, other: Entry) -> Iterable[str]:
    if other.kind != f"{kind}-out":
        yield f"kind ({other.kind})"
    for name in (*ABOUT, *HELD):
        if entry.fields.get(name) != other.fields.get(name):
            yield name
    keys = [str(one.fields.get("peer", "")) for one in (entry, other)]
    if keys[0] != keys[1] and all(key.startswith("SHA256:") for key in keys):
        yield "peer"


def _named(kind: str, entry: Entry) -> str:
    fields: Mapping[str, Any] = entry.fields
    about = f" of round {fields.get('round')}, {fields.get('phase')}" if kind in ("order", "update", "tally") else ""
    return f"a message ({kind}{about})"
