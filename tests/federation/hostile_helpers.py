"""What a site that means harm answers with, made byte by byte, and runs in which one such site takes part."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from federation_helpers import IMAGES, TEXTS, Outcome, outcome, tiny
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedfm.engines.local import LocalGrid
from fedfm.errors import DataError
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_order, write_problem
from fedfm.federation.rounds import RoundLoop
from fedfm.federation.wire import to_record
from fedfm.results.run_folder import RunFolder

BAD = "finance-2"
Attack = Callable[[Message], RecordDict]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def with_arrays(change: Callable[[ArrayRecord], None]) -> Attack:
    def attack(reply: Message) -> RecordDict:
        change(reply.content["arrays"])
        return reply.content

    return attack


def with_array(array: Callable[[Array], Array]) -> Attack:
    """The first tensor of the update becomes something else."""

    def change(record: ArrayRecord) -> None:
        name = min(record)
        record[name] = array(record[name])

    return with_arrays(change)


def with_numbers(**numbers: float) -> Attack:
    def attack(reply: Message) -> RecordDict:
        told = {name.replace("_", "-"): [float(value)] for name, value in numbers.items()}
        reply.content["metrics"] = MetricRecord({**reply.content["metrics"], **told})
        return reply.content

    return attack


def with_record(name: str, record) -> Attack:
    def attack(reply: Message) -> RecordDict:
        reply.content[name] = record(reply.content) if callable(record) else record
        return reply.content

    return attack


def more(name: str, values: np.ndarray) -> Attack:
    return with_arrays(lambda record: record.update({name: to_record({name: values})[name]}))


def hostile(play: Callable[[int, Message, Message], Message]):
    """A node app whose bad site answers its training order of round r with `play(r, order message, honest reply)`."""

    def node_app(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "train" and (order := read_order(message)[0]).sites == (BAD,):
            return play(order.round, message, reply)
        return reply

    return node_app


def run_with(folder: Path, node_app, rounds: int, *overrides: str, images: bool = False) -> Outcome:
    """The coordinator keeps a record of the messages, as it does across machines."""
    images = {"medical": IMAGES | {"sites": 1, "max-examples": 12}} if images else {}
    config = tiny(folder, f"rounds={rounds}", *overrides, finance=TEXTS | {"sites": 2}, **images)
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"superlink": "net"})})
    run = RunFolder.create(config)
    RoundLoop(LocalGrid(node_app, len(config.sites())), config, run).run()
    return outcome(run)


def refusing(round: int, message: Message, reply: Message) -> Message:
    """The site has nothing to do with the run: what the run must come to whatever it sends."""
    return write_problem(DataError("no"), message)
