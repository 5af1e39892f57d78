"""What left each site, from the record of messages: a section of a run's report, and a site's own page for printing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedfm.results.audit import TORN, Chain, Entry
from fedfm.results.lines import in_bytes
from fedfm.results.page import folded, page, paragraph, table

CANNOT_LEAVE = (
    "By construction no message holds an example, its place in the data, or the frozen body: an update is the change "
    "of the tensors that train and are shared, after all local steps of a round (which the coordinator may order to be "
    "one), beside it go the mean loss, the numbers of examples and steps, the norm of the update, the share of texts "
    "that were cut, and seconds; a tally is sums and counts over a whole split (of images it also holds their class "
    "probabilities, sorted within each class, for an exact AUC); a card, sent once, says the site's labels, how many "
    "examples it holds of each, mean and deviation of the words of its texts, the size of its images, how many "
    "warnings its data have, and a digest of them."
)
WHAT_IT_IS = {
    "card": "what the site says of itself, once a run: labels, numbers of examples and words, a digest of its data",
    "update": "the change of the trained tensors after a round of local training, and its loss and sizes",
    "tally": "counts of right and wrong predictions over a whole split",
    "refusal": "a sentence that says why the site did not do what it was asked",
}
HEAD = (
    "The head stands for the whole record up to it. Copied to paper or to another machine it shows later whether lines "
    "were cut off the end: fedfm audit verify FILE --head DIGEST."
)

ASIDE = ("no-answer", "late", "unreadable", "refusal-in", "left-out")


def left_each_site(chain: Chain) -> str:
    """HTML for the report of a run, from its coordinator's record."""
    arrived = [(line, entry) for line, entry in chain.entries.items() if _arrived(entry)]
    sites = {e.fields["peer"]: e.fields["site"] for _, e in arrived if e.fields["site"]}
    rows = {}
    for _, entry in arrived:
        site = sites.get(entry.fields["peer"], "")
        row = rows.setdefault(
            (site, _what(entry)), {"site": site, "what": _what(entry), "messages": 0, "tensors": 0, "bytes": 0}
        )
        row["messages"] += 1
        row["tensors"] = max(row["tensors"], len(entry.fields.get("tensors", ())))
        row["bytes"] += entry.fields.get("bytes", 0)
        row["key"] = entry.fields["peer"]
    html = _state(chain) + paragraph(CANNOT_LEAVE) + table([rows[key] for key in sorted(rows)])
    for peer, site in sorted(sites.items(), key=lambda item: item[1]):
        own = [_row(line, entry) for line, entry in arrived if entry.fields["peer"] == peer]
        html += folded(f"every message of {site}", table(own))
    aside = [_aside(line, entry) for line, entry in chain.entries.items() if entry.kind in ASIDE]
    return html + folded("messages that came to nothing", table(aside))


def site_page(chain: Chain) -> str:
    """One HTML file, without network or script, for who answers for a site's data, from the site's own record."""
    sent = [(line, entry) for line, entry in chain.entries.items() if entry.kind.endswith("-out")]
    came = [(line, entry) for line, entry in chain.entries.items() if entry.kind.endswith("-in")]
    names = [entry.fields["site"] for entry in chain.entries.values() if entry.fields.get("site")]
    site = names[-1] if names else "this site"
    sections = [
        ("record", "Is the record whole?", _state(chain)),
        ("sent", "Everything that left this site", _sent(sent)),
        ("cannot", "What cannot leave", paragraph(CANNOT_LEAVE)),
        ("site", "This site", _site(chain, sent)),
        ("came", "What came in", folded("every message", table([_row(line, entry) for line, entry in came]))),
        ("events", "Refused and failed", _events(chain) or paragraph("Nothing.")),
    ]
    return page(f"What left {site}", _lead(site, sent), sections)


def _lead(site: str, sent: list[tuple[int, Entry]]) -> str:
    if not sent:
        return f"No message has left {site}."
    counts = Counter(entry.kind.removesuffix("-out") for _, entry in sent)
    listed = ", ".join(f"{_many(counts[kind], kind)}" for kind in WHAT_IT_IS if counts[kind])
    total = in_bytes(float(sum(entry.fields.get("bytes", 0) for _, entry in sent)))
    runs = {entry.fields.get("run") for _, entry in sent} - {"", None}
    first, last = sent[0][1].time[:16].replace("T", " "), sent[-1][1].time[:16].replace("T", " ")
    return f"From {first} to {last} UTC, in {_many(len(runs), 'run')}, {site} sent {listed}: {total} in all."


def _many(count: int, word: str) -> str:
    plural = {"tally": "tallies"}.get(word, f"{word}s")
    return f"{count} {word if count == 1 else plural}"


def _state(chain: Chain) -> str:
    torn = [line for line, entry in chain.entries.items() if entry.kind == TORN]
    html = ""
    if chain.broken:
        html += paragraph(f"The record is broken at {chain.broken}. What follows is from the lines before.", "bad")
    else:
        html += paragraph(f"{len(chain.entries)} lines, each sealed over the one before: the record is intact.")
    if torn:
        listed = ", ".join(map(str, torn))
        html += paragraph(f"A program was killed while it wrote; what it left was kept and sealed (lines {listed}).")
    return html + table([{"head": chain.head}]) + paragraph(HEAD, "note")


def _sent(sent: list[tuple[int, Entry]]) -> str:
    kinds = [{"what": kind, "is": words} for kind, words in WHAT_IT_IS.items()]
    tensors: dict[str, dict[str, Any]] = {}
    for _, entry in sent:
        for name, shape, dtype, size in entry.fields.get("tensors", ()):
            key = f"{_what(entry)} {name}"
            row = tensors.setdefault(
                key,
                {"what": _what(entry), "tensor": name, "shape": str(shape), "type": dtype, "bytes": size, "sent": 0},
            )
            row["sent"] += 1
    return (
        table([_row(line, entry) for line, entry in sent])
        + paragraph("sha256: over names and values of the tensors; the coordinator's record has the same.", "note")
        + folded("what the words mean", table(kinds))
        + folded("what the site has told of itself", table(_cards(sent)))
        + folded("the tensors by name, and how often each was sent", table(tensors.values()))
        + folded("the numbers that were told beside them", table(_numbers(sent)))
    )


def _cards(sent: Iterable[tuple[int, Entry]]) -> list[dict[str, Any]]:
    """A row for each thing that a card says; cards of records from before they were written down have none."""
    return [
        {"line": line, "what": name.replace("_", " "), "is": json.dumps(value, ensure_ascii=False)}
        for line, entry in sent
        for card in json.loads(entry.fields.get("card", "[]"))
        for name, value in card.items()
    ]


def _numbers(sent: Iterable[tuple[int, Entry]]) -> list[dict[str, Any]]:
    return [
        {
            "line": line,
            "what": _what(entry),
            **{name: ", ".join(told) for name, told in entry.fields["numbers"].items()},
        }
        for line, entry in sent
        if entry.fields.get("numbers")
    ]


def _site(chain: Chain, sent: list[tuple[int, Entry]]) -> str:
    """What the last start of the site wrote of itself, in words."""
    starts = [entry for entry in chain.entries.values() if entry.kind == "joined"]
    keys = sorted({entry.fields["peer"] for _, entry in sent})
    rows = [{"what": "keys with which it sent", "is": ", ".join(keys) or "none"}]
    if starts:
        rows += [{"what": WORDS.get(name, name), "is": _plain(value)} for name, value in starts[-1].fields.items()]
    said = "" if starts else paragraph("The record does not say how the site was started: fedfm site run writes that.")
    ports = (
        "The site opens connections to the coordinator; it listens on its own loopback only, and no port need be open."
    )
    return table(rows) + said + paragraph(ports, "note")


WORDS = {
    "fedfm": "version of fedfm, whose code is in the image or environment, never in a message",
    "flower": "version of Flower",
    "image": "container image",
    "coordinator": "coordinator",
    "tls": "connection encrypted and the coordinator's certificate checked (TLS)",
    "authority_sha256": "digest of the certificate that it is checked against",
    "telemetry": "telemetry",
    "data_read_only": "data are on a file system that is mounted read-only",
    "user": "number of the user that the site runs as",
    "allow": "what the site allows",
    "peer": "key of the site at its last start",
    "site": "name of the site",
    "domain": "domain",
}


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "all"
    return str(value) or "not told"


def _events(chain: Chain) -> str:
    kinds = ("refusal-out", "refused", "failed", "unreadable")
    return table([_aside(line, entry) for line, entry in chain.entries.items() if entry.kind in kinds])


def _arrived(entry: Entry) -> bool:
    return entry.kind.endswith("-in") and "peer" in entry.fields


def _what(entry: Entry) -> str:
    kind = entry.kind.rpartition("-")[0]
    return f"tally of {entry.fields['phase']}" if kind == "tally" else kind


def _row(line: int, entry: Entry) -> dict[str, Any]:
    fields = entry.fields
    return {
        "line": line, "time (UTC)": entry.time[:19].replace("T", " "), "run": fields.get("run", ""),
        "round": fields.get("round"), "what": _what(entry), "tensors": len(fields.get("tensors", ())),
        "bytes": fields.get("bytes"), "sha256": fields.get("sha256", ""),
    }  # fmt: skip


def _aside(line: int, entry: Entry) -> dict[str, Any]:
    fields = entry.fields
    reason = fields.get("reason") or "; ".join(fields.get("reasons", ()))
    about = {"round": fields.get("round"), "phase": fields.get("phase", ""), "site": fields.get("site", "")}
    return {"line": line, "time (UTC)": entry.time[:19].replace("T", " "), "what": entry.kind, **about, "why": reason}


def write_site_page(chain: Chain, target: Path) -> Path:
    """Write `site_page` to `target`."""
    target.write_text(site_page(chain), encoding="utf-8")
    return target
