"""The records that a site and its coordinator keep of one run: they hold, agree, and show what is done to them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from federation_helpers import IMAGES, TEXTS, outcome, tiny
from flwr.app import Context, Message, RecordDict
from recorded_sites import SITES, make_site, public_key, run_recorded

from fedfm.arrays import sha256
from fedfm.engines.local import LocalGrid
from fedfm.federation import auditing
from fedfm.federation.auditing import CoordinatorRecord
from fedfm.federation.client_app import app
from fedfm.federation.flower_private import take_identity
from fedfm.federation.keys import fingerprint, fingerprint_of_file
from fedfm.federation.messages import read_answer, read_order
from fedfm.federation.rounds import RoundLoop
from fedfm.results.agreement import agree, tell_apart
from fedfm.results.audit import Audit, read_chain, seal, verify
from fedfm.results.run_folder import RunFolder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, small_data):
    return run_recorded(tmp_path_factory.mktemp("recorded"))


def kinds(chain) -> list[str]:
    return [entry.kind for entry in chain.entries.values()]


def test_both_ends_record_every_message_and_agree(recorded):
    """For a site: a query and its card, then orders and answers of two rounds, whose scores ride on the updates, and
    of the last scores."""
    grid, done = recorded
    coordinator = read_chain(done.folder.path / "audit.jsonl")
    assert coordinator.broken is None
    for node in SITES:
        site = grid.chain(node)
        assert site.broken is None
        expected = ["query-in", "card-out"]
        for answer in ("update", "update", "tally"):
            expected += ["order-in", f"{answer}-out"]
        assert kinds(site) == expected
        found = agree(site, coordinator)
        assert (found.crossed, found.differences, found.lost) == (len(expected), [], [])
        assert tell_apart(coordinator, site) == (site, coordinator) == tell_apart(site, coordinator)
    assert len(coordinator.entries) == 2 * len(expected)


def test_a_line_says_what_was_in_the_message(tmp_path):
    """Against the messages themselves, caught on their way and read by Flower's own reader."""
    seen = []

    def watching(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "train":
            seen.append((read_order(message), reply.content))
        return reply

    grid, done = run_recorded(tmp_path, watching)
    (_, received), content = next(pair for pair in seen if pair[0][0].sites == ("finance-1",))
    entries = list(grid.chain(2).entries.values())
    came = next(e.fields for e in entries if e.kind == "order-in" and e.fields["phase"] == "train")
    sent = next(e.fields for e in entries if e.kind == "update-out")
    assert came["sha256"] == sha256(received)
    arrays = {name: array.numpy() for name, array in content["arrays"].items()}
    tally = content["validation/global:arrays"]  # of round 0, which came along
    arrays |= {f"validation/global:{name}": array.numpy() for name, array in tally.items()}
    assert sent["sha256"] == sha256(arrays)
    assert sent["tensors"] == [[n, list(a.shape), str(a.dtype), a.nbytes] for n, a in sorted(arrays.items())]
    assert sent["numbers"]["num-examples"] == [repr(content["metrics"]["num-examples"][0])]
    assert sent["numbers"]["validation/global:num-examples"]
    about = ("run", "round", "site", "domain")
    assert [sent[name] for name in about] == [done.folder.path.name, 1, "finance-1", "finance"]
    assert sent["bytes"] >= sum(a.nbytes for a in arrays.values())
    assert sent["peer"] == fingerprint(public_key(grid.folders[2]))


def test_the_record_takes_the_place_of_sent_csv_and_its_head_is_in_run_json(recorded):
    _, done = recorded
    assert not (done.folder.path / "sent.csv").exists()
    chain = read_chain(done.folder.path / "audit.jsonl")
    assert done.folder.info["audit_sha256"] == chain.head


def test_a_record_changes_no_weight(recorded, tmp_path):
    data = {"medical": {**IMAGES, "sites": 1}, "finance": {**TEXTS, "sites": 1}}
    folder = RunFolder.create(tiny(tmp_path / "runs", "rounds=2", **data))
    RoundLoop(LocalGrid(app, 2), folder.config, folder).run()
    assert outcome(folder).sha256 == recorded[1].sha256
    assert not (folder.path / "audit.jsonl").exists()
    assert len(folder.sent) == 12


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path):
    make_site(tmp_path / "site", "a", "b")
    key = tmp_path / "site" / "key"
    key.chmod(0o600)
    try:
        public = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not there")
    (tmp_path / "key.pub").write_text(public)
    said = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True, check=True)
    assert said.stdout.split()[1] == fingerprint_of_file(key) == fingerprint(public_key(tmp_path / "site"))
    assert fingerprint(b"no key") == ""


def rewritten(entries: list, change) -> list[str]:
    """The chain sealed anew from the first line on, as its owner could: each entry's (kind, fields) after `change`."""
    last, lines = None, []
    for number, entry in enumerate(entries):
        kept = change(number, entry.kind, dict(entry.fields))
        if kept is not None:
            last = seal(last, kept[0], **kept[1])
            lines.append(last.text)
    return lines


FORGERIES = {
    "another digest": lambda n, kind, f: (kind, f | {"sha256": "0" * 64} if kind.startswith("update") else f),
    "a line left out": lambda n, kind, f: None if kind.startswith("update") and f["round"] == 2 else (kind, f),
    "another round": lambda n, kind, f: (kind, f | {"round": 1} if f.get("round") == 2 else f),
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("whose", ["site", "coordinator"])
def test_a_record_that_its_owner_forges_whole_disagrees_with_the_other(recorded, tmp_path, forgery, whose):
    grid, done = recorded
    files = {"site": grid.folders[2] / "state" / "audit.jsonl", "coordinator": done.folder.path / "audit.jsonl"}
    chains = {name: read_chain(file) for name, file in files.items()}
    entries = list(chains[whose].entries.values())
    forged = tmp_path / "audit.jsonl"
    forged.write_text("\n".join(rewritten(entries, FORGERIES[forgery])) + "\n", encoding="ascii")
    assert verify(forged) is None  # it holds together
    chains[whose] = read_chain(forged)
    assert agree(chains["site"], chains["coordinator"]).differences


def test_the_end_that_one_side_cuts_off_is_missed_by_the_other(recorded, tmp_path):
    """The site's last line is the tally of the test, which the coordinator has taken in."""
    grid, done = recorded
    coordinator = read_chain(done.folder.path / "audit.jsonl")
    lines = (grid.folders[1] / "state" / "audit.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "audit.jsonl"
    cut.write_bytes(b"".join(lines[:-1]))
    (difference,) = agree(read_chain(cut), coordinator).differences
    assert "the site's record of sending it is not there" in str(difference)
    assert coordinator.entries[difference.line].kind == "tally-in"

    lines = (done.folder.path / "audit.jsonl").read_bytes().splitlines(keepends=True)
    last_order = max(
        n for n, e in coordinator.entries.items() if e.kind == "order-out" and e.fields["site"] == "medical-1"
    )
    cut.write_bytes(b"".join(lines[: last_order - 1]))
    found = agree(grid.chain(1), read_chain(cut))
    assert [d.where for d in found.differences] == ["site"]
    assert len(found.lost) == 1  # the tally, which nobody has taken in any more
    assert verify(cut, [done.folder.info["audit_sha256"]]) is not None


def test_refusals_and_failures_are_recorded_at_both_ends(tmp_path):
    def stingy(message: Message, context: Context) -> Message:
        settings = Path(str(context.node_config["settings"]))
        if message.metadata.message_type == "train" and context.node_id == 2 and read_order(message)[0].round == 1:
            settings.write_text(settings.read_text().replace("min-examples = 1", "min-examples = 1000"))
        reply = app(message, context)
        settings.write_text(settings.read_text().replace("min-examples = 1000", "min-examples = 1"))
        return reply

    grid, done = run_recorded(tmp_path, stingy)
    coordinator = read_chain(done.folder.path / "audit.jsonl")
    (out,) = [e for e in grid.chain(2).entries.values() if e.kind == "refusal-out"]
    (came,) = [e for e in coordinator.entries.values() if e.kind == "refusal-in"]
    (left,) = [e for e in coordinator.entries.values() if e.kind == "left-out"]
    assert came.fields["reasons"] == out.fields["reasons"]
    assert "fewer than the 1000 that it demands" in out.fields["reasons"][0]
    assert (left.fields["round"], left.fields["site"]) == (1, "finance-1")
    assert agree(grid.chain(2), coordinator).differences == []


def test_nothing_leaves_a_site_that_cannot_record_it(tmp_path):
    """For one message there is a folder in the place of its record: the update stays, the run goes on."""

    def blocked(message: Message, context: Context) -> Message:
        place = Path(str(context.node_config["settings"])).parent / "state" / "audit.jsonl"
        if message.metadata.message_type == "train" and context.node_id == 1 and read_order(message)[0].round == 1:
            kept = place.rename(place.with_name("aside"))
            place.mkdir()
            reply = app(message, context)
            place.rmdir()
            kept.rename(place)
            assert "arrays" not in reply.content
            return reply
        return app(message, context)

    _, done = run_recorded(tmp_path, blocked)
    ((number, site, reason),) = [(e["round"], e["site"], e["reason"]) for e in done.events("update-left-out")]
    assert (number, site) == (1, "medical-1")
    assert "the site keeps no record of its messages, and so sends nothing" in reason
    assert str(tmp_path) not in reason
    assert done.folder.info["status"] == "finished"


def test_an_app_that_fails_is_recorded_by_its_error_alone(tmp_path, monkeypatch):
    def broken(order, received):
        raise MemoryError("patient 17 does not fit")

    monkeypatch.setattr("fedfm.federation.site.train", broken)
    with pytest.raises(Exception, match="0 usable updates"):
        run_recorded(tmp_path)
    text = (tmp_path / "medical-1" / "state" / "audit.jsonl").read_text()
    (refused,) = [entry for line in text.splitlines() if (entry := json.loads(line))["kind"] == "refusal-out"]
    (reason,) = refused["fields"]["reasons"]
    assert "failed (MemoryError)" in reason
    assert "patient 17" not in text
    (run,) = (tmp_path / "runs").iterdir()
    assert "refusal-in" in kinds(read_chain(run / "audit.jsonl"))
    assert "patient 17" not in (run / "audit.jsonl").read_text()


def test_a_simulation_keeps_no_record_and_pays_nothing(monkeypatch):
    """The mod looks at the node configuration and calls the app; the coordinator's hooks return at once."""
    record = CoordinatorRecord()
    monkeypatch.setattr(auditing, "facts_of", lambda message: pytest.fail("described"))
    record.going_out([object()])
    record.came_in(object(), None, None)
    record.left_out(1, "a", "b", "c")
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {}, 0)
    assert auditing.audited("message", context, lambda message, _: message) == "message"


def test_a_message_of_another_hand_is_recorded_and_answered_with_a_sentence(tmp_path):
    settings = make_site(tmp_path / "a", "a", "medical")

    take_identity()
    context = Context(1, 1, {"site": "a", "domain": "medical", "settings": str(settings)}, RecordDict(), {}, 0)
    message = Message(RecordDict(), 1, "train")
    answer = read_answer(app(message, context))
    assert "cannot be read" in str(answer.problem)
    (entry,) = read_chain(tmp_path / "a" / "state" / "audit.jsonl").entries.values()
    assert entry.kind == "unreadable"
    assert Audit(tmp_path / "a" / "state" / "audit.jsonl").add("note").seq == 1


@pytest.mark.parametrize("field", ["sha256", "bytes", "tensors", "numbers", "left_out", "round", "site", "run", "peer"])
def test_a_receiver_that_says_something_else_of_a_message_is_named_with_what_differs(recorded, tmp_path, field):
    """The coordinator's last line is of a tally: nothing that it sent comes after, so nothing else disagrees."""
    grid, done = recorded
    entries = list(read_chain(done.folder.path / "audit.jsonl").entries.values())
    number = max(n for n, entry in enumerate(entries) if entry.kind == "tally-in")
    node = next(node for node, (site, _) in SITES.items() if site == entries[number].fields["site"])
    other = {"round": 7, "bytes": 1, "peer": "SHA256:x"}.get(field, "other")
    forged = tmp_path / "audit.jsonl"
    changed = rewritten_from(entries, number, field, other)
    forged.write_text("\n".join(changed) + "\n", encoding="ascii")
    found = agree(grid.chain(node), read_chain(forged))
    if field == "peer":  # by its key the message is another site's: this one has sent it, and it was not taken in
        assert (found.differences, len(found.lost)) == ([], 1)
    else:
        (difference,) = found.differences
        assert (difference.where, difference.line) == ("coordinator", number + 1)
        assert str(difference).endswith(f" in {field}")


def rewritten_from(entries: list, number: int, field: str, value) -> list[str]:
    """The lines of a chain with one field changed, sealed anew from there on; those before stay as they are."""
    lines, last = [entry.text for entry in entries[:number]], entries[number - 1]
    for entry in entries[number:]:
        fields = dict(entry.fields) | ({field: value} if entry is entries[number] else {})
        last = seal(last, entry.kind, **fields)
        lines.append(last.text)
    return lines
