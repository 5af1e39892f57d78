"""What crosses between a site and its coordinator, as each of the two writes it into its own audit.jsonl.

Both describe a message by the same functions, from the message itself. What goes out is sealed before it goes, and
takes the digest of its line along; who gets it writes that digest down as `head`. Each side thus holds witness of the
other's record up to the last message that came, ends included (`results.agreement` compares the two).

    out, in of           fields beside flower_run, run, round, phase, site, domain, peer
    query                config (sha256 of the configuration that the coordinator sends)
    order                config, tensors [[name, shape, dtype, bytes], ...], bytes, sha256 of the tensors
    card                 bytes, sha256 of the text; at the site also card, the text itself
    update, tally        tensors, bytes, sha256, numbers {name: [text of each site's]}, left_out {site: reason}
    refusal              reasons

Lines of one side: `joined` (how a site was started), `refused` (a bundle, by a site), `failed` (a site's app),
`no-answer`, `late` and `unreadable` (answers, at the coordinator), `left-out` (an update that was not used).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from fedfm import __version__
from fedfm.arrays import sha256
from fedfm.config.site import SiteSettings
from fedfm.errors import AuditError, FedfmError, RunError
from fedfm.federation.keys import fingerprint, fingerprint_of_file
from fedfm.federation.messages import from_record, order_of, read_query, size_of, write_problem
from fedfm.federation.real_site import settings_of
from fedfm.results import agreement
from fedfm.results.audit import Audit

WITNESS = "audit"  # the record of a message that holds the digest of its line in the sender's file
MAIN = ("weights", "arrays")  # the record of tensors that every order, and every answer, has
Facts = dict[str, Any]


def facts_of(message: Message) -> Facts:
    """What a query or an order is about: the same at both ends."""
    about = {"flower_run": str(message.metadata.run_id), "run": "", "round": 0, "phase": "query", "site": ""}
    if message.metadata.message_type == "query":
        return about | {"domain": "", "config": _sha256(read_query(message))}
    order = order_of(message)
    return about | {
        "run": Path(order.folder).name, "round": order.round, "phase": order.split or "train",
        "site": "+".join(order.sites), "domain": order.card.domain, "config": _sha256(order.config),
    }  # fmt: skip


def kind_of(message: Message, reply: Message | None = None) -> str:
    """ "query" or "order"; of a reply "card", "update", "tally" or "refusal"."""
    kind = message.metadata.message_type
    if reply is None:
        return "query" if kind == "query" else "order"
    if "problem" in reply.content:
        return "refusal"
    return {"query": "card", "train": "update", "evaluate": "tally"}[kind]


def contents(content: RecordDict, kind: str) -> Facts:
    """What a message of a kind holds: tensors by name, shape, dtype and size, a digest, and what is told beside."""
    if kind == "query":
        return {}
    if kind == "refusal":
        problems = json.loads(str(content["problem"]["problems"]))
        return {"reasons": [str(problem["what"]) for problem in problems]}
    if kind == "card":
        text = str(content["cards"]["json"])
        return {"bytes": len(text.encode()), "sha256": _sha256(text)}
    held = tensors_of(content.array_records)
    if kind != "order":
        parts = [name.removesuffix("meta") for name in content if name.endswith("meta")]  # "", and what stands beside
        held["numbers"] = {
            f"{part}{name}": [repr(float(value)) for value in values]
            for part in parts
            for name, values in content[f"{part}metrics"].items()
        }
        held["left_out"] = {
            f"{part}{site}": str(reason)
            for part in parts
            for site, reason in zip(content[f"{part}meta"]["left-out"], content[f"{part}meta"]["reasons"], strict=True)
        }
    return held


def tensors_of(records: Mapping[str, ArrayRecord]) -> Facts:
    """The tensors of the records of a message; those beside the main record have its name before theirs."""
    arrays = {
        ("" if record in MAIN else record.removesuffix("arrays")) + name: value
        for record, tensors in records.items()
        for name, value in from_record(tensors).items()
    }
    listed = [[name, list(map(int, a.shape)), str(a.dtype), int(a.nbytes)] for name, a in sorted(arrays.items())]
    return {"tensors": listed, "bytes": sum(map(size_of, records.values())), "sha256": sha256(arrays)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _head_of(content: RecordDict) -> str:
    """The sender's witness; "" where it gives none that can be one."""
    head = str(content[WITNESS].get("head", "")) if WITNESS in content else ""
    return head if len(head) == 64 and head.isascii() else ""


# ---- at a site ------------------------------------------------------------------------------------------------------


def audited(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A mod of the ClientApp: at a real site each message is on the disk before it is worked on, or sent."""
    try:
        record = record_of(context)
        about = record.received(message) if record else {}
    except FedfmError as error:
        return _unrecorded(error, message)
    if record is None:
        return call_next(message, context)
    try:
        reply = call_next(message, context)
    except Exception as error:
        record.audit.add("failed", **about, reason=type(error).__name__)
        raise  # Flower tells the coordinator
    try:
        return record.sent(about, message, reply)
    except AuditError as error:
        return _unrecorded(error, message)


def _unrecorded(error: FedfmError, message: Message) -> Message:
    """Without a record nothing leaves a site, this sentence apart."""
    print(f"fedfm: {error}", file=sys.stderr, flush=True)
    what = f"{agreement.NO_RECORD}: {error.problems[0].what}"
    return write_problem(RunError(what, mend="at the site: fedfm site check"), message)


def note_refusal(message: Message, context: Context, reason: str) -> None:
    """Record that a message was refused unread, as one with a bundle that carries code is. It is refused all the same
    where that cannot be recorded."""
    with suppress(FedfmError):
        if record := record_of(context):
            run, kind = str(message.metadata.run_id), message.metadata.message_type
            record.audit.add("refused", flower_run=run, message=kind, peer=record.peer, reason=reason)


def note_start(settings: SiteSettings, environment: Mapping[str, str]) -> None:
    """Record how a site is run, for who reads its record later. `environment`: of Flower's processes."""
    link, source = settings.coordinator, Path(settings.source)
    telemetry = "off" if environment.get("FLWR_TELEMETRY_ENABLED") == "0" else "on"
    read_only = source.exists() and bool(os.statvfs(source).f_flag & os.ST_RDONLY)
    authority = hashlib.sha256(Path(link.root_certificates).read_bytes()).hexdigest()
    allow = {name: str(value) if isinstance(value, float) else value for name, value in settings.allow}
    Audit(Path(settings.state) / "audit.jsonl").add(
        "joined", fedfm=__version__, flower=version("flwr"), image=os.environ.get("FEDFM_IMAGE", ""),
        coordinator=link.address, tls=True, authority_sha256=authority, telemetry=telemetry,
        data_read_only=read_only, user=os.getuid(), allow=allow, site=settings.site, domain=settings.domain,
        peer=fingerprint_of_file(Path(link.private_key)),
    )  # fmt: skip


def record_of(context: Context) -> SiteRecord | None:
    """The record of the site whose settings the node configuration names; None in a simulation. Raises FedfmError."""
    settings = settings_of(context)
    if settings is None:
        return None
    return SiteRecord(
        Audit(Path(settings.state) / "audit.jsonl"), fingerprint_of_file(Path(settings.coordinator.private_key))
    )


@dataclass(frozen=True)
class SiteRecord:
    """What a site writes of its messages. `peer`: the fingerprint of its own key, by which the coordinator knows it."""

    audit: Audit
    peer: str

    def received(self, message: Message) -> Facts:
        """Seal what came; what it is about, for the line of its answer."""
        try:
            about, kind = facts_of(message) | {"peer": self.peer}, kind_of(message)
            held = contents(message.content, kind)
        except Exception as error:  # of another version of fedfm, or of somebody else
            self.audit.add("unreadable", peer=self.peer, reason=f"{type(error).__name__}: {error}")
            raise RunError("a message of the coordinator cannot be read") from None
        self.audit.add(f"{kind}-in", **about, **held, head=_head_of(message.content))
        del about["config"]
        return about

    def sent(self, about: Facts, message: Message, reply: Message) -> Message:
        """Seal what is about to go; the reply, with its witness."""
        kind = kind_of(message, reply)
        held = contents(reply.content, kind)
        if kind == "card":  # labels and counts, which no digest tells who asks later what has left
            held["card"] = str(reply.content["cards"]["json"])
        entry = self.audit.add(f"{kind}-out", **about, **held)
        reply.content[WITNESS] = ConfigRecord({"head": entry.sha256})
        return reply


# ---- at the coordinator ---------------------------------------------------------------------------------------------


@dataclass
class CoordinatorRecord:
    """What the coordinator writes of its messages; nothing where `audit` is None, as in a simulation."""

    audit: Audit | None = None
    grid: Grid | None = None
    head: str = ""
    _peers: dict[int, str] = field(default_factory=dict)

    def going_out(self, messages: Iterable[Message]) -> None:
        """Seal messages that are about to be sent, and give each its witness. Their tensors are digested once."""
        if self.audit is None:
            return
        known: dict[int, Facts] = {}  # of records, which live as long as the messages that share them
        for message in messages:
            about, records = facts_of(message), message.content.array_records
            held = known.setdefault(id(records["weights"]), tensors_of(records)) if records else {}
            peer = self.peer(message.metadata.dst_node_id)
            self._add(f"{kind_of(message)}-out", **about, peer=peer, **held)
            message.content[WITNESS] = ConfigRecord({"head": self.head})

    def came_in(self, message: Message, reply: Message | None, problem: FedfmError | None) -> None:
        """Seal the answer to a message: None where there is none. `problem`: why it cannot be used, where it cannot."""
        if self.audit is None:
            return
        about = facts_of(message) | {"peer": self.peer(message.metadata.dst_node_id)}
        del about["config"]
        if reply is None or reply.has_error():
            self._add("no-answer", **about, reason=str(problem))
            return
        kind, head = kind_of(message, reply), _head_of(reply.content)
        try:
            held = contents(reply.content, kind) if problem is None or kind == "refusal" else None
        except Exception:  # a refusal that is none
            held = None
        if held is None:
            self._add("unreadable", **about, reason=str(problem), bytes=size_of(reply.content), head=head)
        else:
            self._add(f"{kind}-in", **about, **held, head=head)

    def left_out(self, round: int, site: str, domain: str, reason: str) -> None:
        """Seal that a site's update was not used."""
        if self.audit is not None:
            self._add("left-out", round=round, site=site, domain=domain, reason=reason)

    def late(self, round: int, site: str, phase: str) -> None:
        """Seal that an answer came after it was given up, and was thrown away."""
        if self.audit is not None:
            self._add("late", round=round, site=site, phase=phase, reason="it came too late, and is not used")

    def _add(self, kind: str, **fields: Any) -> None:
        self.head = self.audit.add(kind, **fields).sha256

    def peer(self, node: int) -> str:
        """The fingerprint of the key by which a SuperLink knows a node; without keys, the number of the node."""
        if node not in self._peers:
            self._peers |= {info.node_id: fingerprint(info.public_key) for info in self.grid.get_nodes()}
        return self._peers.get(node) or f"node {node}"


UNRECORDED = CoordinatorRecord()  # of a simulation
