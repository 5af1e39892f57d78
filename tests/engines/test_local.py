"""The in-process grid: what the round loop relies on, message by message."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedfm.engines import ENGINES, load_config
from fedfm.engines.local import CLIENT_RAISED, LocalGrid
from fedfm.results.run_folder import RunFolder


class Toy:
    """A ClientApp that counts in its node's state, adds one in place to what it is sent, and fails where told to."""

    def __init__(self, failing_node: int = 0):
        self.worked: list[int] = []
        self.app = ClientApp()

        @self.app.train()
        def train(message: Message, context) -> Message:
            self.worked.append(context.node_id)
            if context.node_id == failing_node:
                raise ValueError("no such file: lungs.npz")
            visits = int(context.state["visits"]["count"]) if "visits" in context.state else 0
            context.state["visits"] = ConfigRecord({"count": visits + 1})
            values = message.content["weights"]["w"].numpy()
            values += 1
            place = {name: int(value) for name, value in context.node_config.items()}
            told = ConfigRecord({"visits": visits + 1, "sum": float(values.sum()), **place})
            return Message(RecordDict({"told": told}), reply_to=message)


def orders(grid: LocalGrid, *nodes: int, weights: ArrayRecord | None = None) -> list[Message]:
    record = weights or ArrayRecord({"w": Array(np.zeros(3, np.float32))}, keep_input=True)
    return [grid.create_message(RecordDict({"weights": record}), "train", node, "1") for node in nodes]


def told(reply: Message) -> dict:
    return dict(reply.content["told"])


def test_nodes_are_numbered_and_know_their_part() -> None:
    grid = LocalGrid(Toy().app, 3)
    assert list(grid.get_node_ids()) == [1, 2, 3]
    replies = list(grid.send_and_receive(orders(grid, 1, 2, 3)))
    assert [told(reply)["partition-id"] for reply in replies] == [0, 1, 2]
    assert {told(reply)["num-partitions"] for reply in replies} == {3}


def test_a_pull_works_on_one_message_and_a_push_on_none() -> None:
    toy = Toy()
    grid = LocalGrid(toy.app, 3)
    names = list(grid.push_messages(orders(grid, 2, 1, 3)))
    assert toy.worked == []
    for number in (1, 2, 3):
        replies = list(grid.pull_messages(names))
        assert len(replies) == 1
        assert toy.worked == [2, 1, 3][:number]  # in the order in which they were pushed
        assert replies[0].metadata.reply_to_message_id == names[number - 1]
    assert list(grid.pull_messages(names)) == []  # each reply is given once
    assert toy.worked == [2, 1, 3]


def test_only_what_is_asked_for_is_worked_on() -> None:
    toy = Toy()
    grid = LocalGrid(toy.app, 2)
    first, second = grid.push_messages(orders(grid, 1, 2))
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([second])] == [second]
    assert list(grid.pull_messages(["local-99"])) == []
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([second, first])] == [first]
    assert toy.worked == [2, 1]


def test_names_of_messages_are_never_used_twice() -> None:
    grid = LocalGrid(Toy().app, 2)
    names = [name for _ in range(3) for name in grid.push_messages(orders(grid, 1, 2))]
    assert len(set(names)) == 6


def test_an_exception_becomes_an_error_reply_and_the_others_go_on() -> None:
    toy = Toy(failing_node=2)
    grid = LocalGrid(toy.app, 3)
    names = list(grid.push_messages(orders(grid, 1, 2, 3)))
    fine, bad, also_fine = (next(iter(grid.pull_messages(names))) for _ in names)
    assert not fine.has_error()
    assert not also_fine.has_error()
    assert bad.has_error()
    assert bad.error.code == CLIENT_RAISED == 2
    assert "no such file: lungs.npz" in bad.error.reason
    assert "ValueError" in bad.error.reason
    assert bad.metadata.reply_to_message_id == names[1]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_program_is_obeyed(raised: type[BaseException]) -> None:
    def stop(message: Message, context) -> Message:
        raise raised

    grid = LocalGrid(stop, 1)
    names = list(grid.push_messages(orders(grid, 1)))
    with pytest.raises(raised):
        grid.pull_messages(names)


def test_a_node_keeps_its_state_between_messages_and_to_itself() -> None:
    grid = LocalGrid(Toy().app, 2)
    replies = list(grid.send_and_receive(orders(grid, 1, 1, 2)))
    assert [told(reply)["visits"] for reply in replies] == [1, 2, 1]


def test_what_one_site_does_to_its_weights_does_not_reach_the_next() -> None:
    """One record is sent to many sites; each adds 1 to 3 zeros, so that every sum is 3 and the sent values stay 0."""
    grid = LocalGrid(Toy().app, 3)
    record = ArrayRecord({"w": Array(np.zeros(3, np.float32))}, keep_input=True)
    replies = list(grid.send_and_receive(orders(grid, 1, 2, 3, weights=record)))
    assert [told(reply)["sum"] for reply in replies] == [3.0, 3.0, 3.0]
    assert not record["w"].numpy().any()


def test_the_next_run_of_a_process_reads_a_changed_file_again(tmp_path) -> None:
    """And says once of a source that three sites share what all of them would say."""
    domain = {"task": "text-classification", "source": str(tmp_path / "news.csv"), "sites": 3}
    config = load_config({"rounds": 1, "body": {"layers": 1}, "domains": {"bank": domain}})
    seen, warned = [], []
    for count in (40, 60):
        rows = [f"{'' if i == 9 else f'text {i}'},{'ab'[i % 2]}" for i in range(count)]
        (tmp_path / "news.csv").write_text("\n".join(["text,label", *rows]))
        folder = RunFolder.create(config, tmp_path / "runs")
        ENGINES["local"](config, folder, lambda event: warned.append(event) if event["event"] == "warning" else None)
        seen.append(sum(sum(site["label_counts"]["train"].values()) for site in folder.info["sites"].values()))
    assert seen == [28, 42]
    assert {event["message"] for event in warned} == {
        f"bank: 1 text is empty (first: {tmp_path / 'news.csv'}, line 11)"
    }
    assert len(warned) == 2
