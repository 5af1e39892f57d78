"""The ray engine: long-lived workers, each with the body loaded once, behind the same Grid as the local engine.

Messages, client app and round loop are those of the local engine; a message's work is done by one of `engine.workers`
Ray actors. The weights of a round go into the object store once for each domain. A worker that dies is replaced and its
orders are done again. What is private to sites, and what is cached, lies in the run's folder: on a cluster of several
machines the folder of `runs.folder` must be one that all of them see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from time import perf_counter
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict

from fedfm.config import RunConfig
from fedfm.engines.local import CLIENT_RAISED, LocalGrid
from fedfm.engines.placing import Paces, longest_first, take
from fedfm.errors import EngineError
from fedfm.federation.flower_private import name_message, take_identity
from fedfm.results.environment import usable_cores
from fedfm.results.run_folder import Listen, RunFolder

IN_FLIGHT = 2  # orders that a worker holds: while it does one, the next is there
DEATHS = 3  # workers that an order may take with it before it is given up
WAIT_SECONDS = 1.0
OBJECT_STORE_BYTES = 256 * 2**20
START_SECONDS = 180.0  # in which a worker must have imported what it needs


def run_on_ray(config: RunConfig, folder: RunFolder, listen: Listen) -> None:
    """Start workers on this machine, or in the cluster at `engine.address`, and run; nothing of ours is left behind."""
    import ray

    from fedfm.federation.rounds import RoundLoop

    cores = usable_cores()
    if not config.engine.address and config.engine.workers > cores:
        message = f"{config.engine.workers} workers share {cores} cores: engine.workers={cores} would be faster"
        listen(folder.event("warning", message=message))
    start_ray(config)
    try:
        RoundLoop(RayGrid(config), config, folder, listen).run()
    finally:
        ray.shutdown()  # of a cluster that was there before this only leaves


def start_ray(config: RunConfig) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if config.engine.address:
            ray.init(address=config.engine.address, **quiet)
        else:
            store = OBJECT_STORE_BYTES
            cores = {"num_cpus": config.engine.workers, "object_store_memory": store}
            ray.init(address="local", include_dashboard=False, **cores, **quiet)  # whatever else runs on this machine
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        mend = 'engine.address="" starts Ray here; `ray status` says whether a cluster answers'
        raise EngineError(f"Ray does not start: {error}", where="engine.address", mend=mend) from None


class Worker:
    """What runs in a Ray actor: the client app of all sites, with its caches."""

    def __init__(self, threads: int, domains: int, app: Any):
        import torch

        from fedfm.federation.client_app import app as client_app

        torch.set_num_threads(threads)
        take_identity()
        self.app = app or client_app
        self.context = Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {}, 0)
        self.most = domains + 1  # records of weights: those of this round, and no old ones that would fill the store
        self.weights: dict[Any, ArrayRecord] = {}

    def ready(self) -> int:
        """The worker's process id."""
        return os.getpid()

    def work(self, kind: str, group: str, parts: dict[str, Any], weights: list) -> tuple[RecordDict | None, str, float]:
        """Do one order: its reply's content, or why there is none, and the seconds it took.

        `weights` holds a reference, not the record: it is fetched once and kept for the orders that share it.
        """
        started = perf_counter()
        content = RecordDict(parts)
        if weights:
            content["weights"] = self._fetch(weights[0])
        message = Message(content, 1, kind, group_id=group)
        name_message(message, "order")
        try:
            reply = self.app(message, self.context)
        except Exception as error:  # whatever a site does wrong must not end the run of the others
            return None, f"{type(error).__name__}: {error}", perf_counter() - started
        if reply.has_error():
            return None, reply.error.reason, perf_counter() - started
        return reply.content, "", perf_counter() - started

    def _fetch(self, reference) -> ArrayRecord:
        import ray

        if reference not in self.weights:
            while len(self.weights) >= self.most:
                self.weights.pop(next(iter(self.weights)))
            self.weights[reference] = ray.get(reference)
        return self.weights[reference]


class RayGrid(LocalGrid):
    """A Grid whose messages are worked on by Ray actors; needs a Ray that is running. `app`: another client app."""

    def __init__(self, config: RunConfig, app: Any = None):
        super().__init__(app, 1)
        self._config = config
        self._workers = [self._new_worker() for _ in range(config.engine.workers)]
        self._await_workers()
        self._in_flight: list[dict[Any, str]] = [{} for _ in self._workers]  # of each worker: future -> message
        self._paces = Paces()
        self._seconds: dict[str, float] = {}
        self._queues = longest_first({}, len(self._workers))
        self._deaths: dict[str, int] = {}
        self._references: dict[int, tuple[ArrayRecord, Any]] = {}

    def _new_worker(self) -> Any:
        import ray

        engine = self._config.engine
        threads = {name: str(engine.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        quiet = {n: v for n, v in os.environ.items() if n.startswith(("HF_", "FLWR_", "TRANSFORMERS_", "TOKENIZERS_"))}
        options = {"num_cpus": 1, "num_gpus": engine.gpus_per_worker, "runtime_env": {"env_vars": quiet | threads}}
        return ray.remote(Worker).options(**options).remote(engine.threads, len(self._config.domains), self._app)

    def _await_workers(self) -> None:
        """Raises EngineError where a worker cannot be placed, or does not come up."""
        import ray

        where, mend = "engine.workers", "fewer engine.workers, or less engine.gpus-per-worker"
        try:
            ray.get([worker.ready.remote() for worker in self._workers], timeout=START_SECONDS)
        except ray.exceptions.GetTimeoutError:
            what = f"not all of {len(self._workers)} workers have found a place within {START_SECONDS:.0f} s"
            raise EngineError(what, where=where, mend=mend) from None
        except ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[-1]
            raise EngineError(f"a worker does not start: {first}", where=where) from None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = list(super().push_messages(messages))
        self._references = {}  # those of the last round; workers keep what they still use
        in_flight = {name for held in self._in_flight for name in held.values()}
        for name in self._seconds.keys() - in_flight:
            del self._waiting[name]  # given up by the round before, and never begun
        self._seconds = {name: self._seconds[name] for name in in_flight}
        self._seconds |= {name: self._paces.seconds(*_kind_and_work(self._waiting[name])) for name in names}
        self._queues = longest_first({name: self._seconds[name] for name in names}, len(self._workers))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        import ray

        self._hand_out()
        futures = [future for held in self._in_flight for future in held]
        done, _ = ray.wait(futures, timeout=WAIT_SECONDS) if futures else ([], [])
        replies = [reply for future in done if (reply := self._collect(future)) is not None]
        self._hand_out()
        return replies

    def _hand_out(self) -> None:
        for worker, held in enumerate(self._in_flight):
            while len(held) < IN_FLIGHT and (name := take(self._queues, worker, self._seconds)) is not None:
                message = self._waiting[name]
                parts = {key: part for key, part in message.content.items() if key != "weights"}
                meta = message.metadata
                weights = self._reference(message.content["weights"]) if "weights" in message.content else []
                future = self._workers[worker].work.remote(meta.message_type, meta.group_id, parts, weights)
                held[future] = name

    def _reference(self, record: ArrayRecord) -> list:
        """Where the object store holds a record: put there once, however many messages share it."""
        import ray

        if id(record) not in self._references:
            self._references[id(record)] = record, ray.put(record)
        return [self._references[id(record)][1]]

    def _collect(self, future: Any) -> Message | None:
        """The reply to one order; None where its worker has died and the order waits for another."""
        import ray

        worker = next(i for i, held in enumerate(self._in_flight) if future in held)
        try:
            content, reason, seconds = ray.get(future)
        except ray.exceptions.RayTaskError as error:  # the worker lives: what it was given or gave cannot be moved
            content, reason, seconds = None, str(error).strip().splitlines()[-1], 0.0
        except ray.exceptions.RayError as error:
            return self._bury(worker, error)
        name = self._in_flight[worker].pop(future)
        message = self._waiting.pop(name)
        self._seconds.pop(name)
        self._paces.learn(*_kind_and_work(message), seconds)
        if content is None:
            return Message(Error(CLIENT_RAISED, reason), reply_to=message)
        return Message(content, reply_to=message)

    def _bury(self, worker: int, error: Exception) -> Message | None:
        """Put a new worker in the place of a dead one; an order that has taken several with it is answered for it."""
        names = list(self._in_flight[worker].values())
        self._in_flight[worker] = {}
        self._workers[worker] = self._new_worker()
        first, *others = names  # a worker does its orders one by one: the oldest was being done
        self._queues[worker].extendleft(reversed(others))
        self._deaths[first] = self._deaths.get(first, 0) + 1
        if self._deaths[first] < DEATHS:
            self._queues[worker].appendleft(first)
            return None
        message = self._waiting.pop(first)
        self._seconds.pop(first)
        reason = f"{DEATHS} workers died while they did this ({type(error).__name__}); is there too little memory?"
        return Message(Error(CLIENT_RAISED, reason), reply_to=message)


def _kind_and_work(message: Message) -> tuple[str, float]:
    order = message.content["order"]
    return f"{message.metadata.message_type} {order.get('card', '')}", float(order.get("work", 1.0))
