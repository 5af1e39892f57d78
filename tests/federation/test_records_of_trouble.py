"""What two records say of a run in which not all went well: no honest site is accused."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, Message
from recorded_sites import SITES, run_recorded

from fedfm.cli import main
from fedfm.errors import Problem
from fedfm.federation import policy, site
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_order
from fedfm.results.agreement import NO_RECORD, agree
from fedfm.results.audit import read_chain, seal


def in_round_one(message: Message, context: Context) -> bool:
    """Is it medical-1's training of the first round?"""
    is_train = message.metadata.message_type == "train" and context.node_id == 1
    return is_train and read_order(message)[0].round == 1


def without_place(message: Message, context: Context, when_working: bool) -> Message:
    """Answered while there is a folder where the record belongs: from the start, or from when the work begins."""
    place = Path(str(context.node_config["settings"])).parent / "state" / "audit.jsonl"
    kept = place.with_name("aside")

    def block() -> None:
        place.rename(kept)
        place.mkdir()

    if not when_working:
        block()
        reply = app(message, context)
    else:
        whole = site.train
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(site, "train", lambda order, received: (block(), whole(order, received))[1])
            reply = app(message, context)
    place.rmdir()
    kept.rename(place)
    return reply


@pytest.mark.parametrize("when_working", [False, True])
def test_a_site_that_could_not_write_its_record_is_told_and_counted_and_not_accused(tmp_path, capsys, when_working):
    def trouble(message: Message, context: Context) -> Message:
        return (
            without_place(message, context, when_working) if in_round_one(message, context) else app(message, context)
        )

    grid, done = run_recorded(tmp_path, trouble)
    coordinator = done.folder.path / "audit.jsonl"
    found = agree(grid.chain(1), read_chain(coordinator))
    assert found.differences == []
    (refusal,) = found.unrecorded
    assert refusal.where == "coordinator" and refusal.what.startswith(NO_RECORD)
    assert len(found.lost) == (0 if when_working else 1)  # an order that the site could not write down
    assert agree(grid.chain(2), read_chain(coordinator)).unrecorded == []
    assert main(["audit", "verify", str(grid.folders[1] / "state" / "audit.jsonl"), str(coordinator)]) == 0
    said = capsys.readouterr().out
    assert f"  without a record: coordinator, line {refusal.line}: {NO_RECORD}" in said
    assert "1 refusal of a site that could not write its record" in said


def test_an_update_that_was_not_used_is_no_message_that_was_lost(tmp_path):
    """Its line "left-out" at the coordinator ends as the kinds of messages do."""

    def stingy(message: Message, context: Context) -> Message:
        with pytest.MonkeyPatch.context() as patch:
            if in_round_one(message, context):
                patch.setattr(policy, "problems_of_answer", lambda *_: [Problem("not today")])
            return app(message, context)

    grid, done = run_recorded(tmp_path, stingy)
    chain = read_chain(done.folder.path / "audit.jsonl")
    assert "left-out" in {entry.kind for entry in chain.entries.values()}
    for node in SITES:
        found = agree(grid.chain(node), chain)
        assert (found.differences, found.lost, found.unrecorded) == ([], [], [])


def test_any_other_answer_without_a_line_of_its_sender_is_a_difference(tmp_path):
    """A refusal of other words, and an update that comes with the sentence."""
    grid, done = run_recorded(tmp_path)
    entries = list(read_chain(done.folder.path / "audit.jsonl").entries.values())
    for kind, reasons in (("refusal-in", ["no"]), ("refusal-in", [NO_RECORD, "b"]), ("update-in", [NO_RECORD])):
        fields = {**entries[-1].fields, "reasons": reasons, "head": "", "site": SITES[1][0]}
        peer = grid.chain(1).entries[1].fields["peer"]
        forged = tmp_path / "audit.jsonl"
        lines = [*entries, seal(entries[-1], kind, **fields | {"peer": peer})]
        forged.write_text("\n".join(entry.text for entry in lines) + "\n", encoding="ascii")
        found = agree(grid.chain(1), read_chain(forged))
        assert len(found.differences) == 1 and found.unrecorded == []
