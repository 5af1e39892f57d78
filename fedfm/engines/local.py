"""The local engine: an in-process Grid, one node that holds all sites, no server, no sockets, no waiting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedfm.federation.flower_private import Run, name_message, take_identity

CLIENT_RAISED = 2  # Flower's code for an exception in a ClientApp


class LocalGrid(Grid):
    """Runs a ClientApp in this process, one message at a time, when its reply is pulled.

    Pushing stores the messages; each `pull_messages` does the work of one of them and returns its reply. The caller
    thus holds one reply at a time, however many sites a round has. An exception in the app becomes an error reply.
    """

    def __init__(self, client_app: ClientApp, num_nodes: int = 1):
        take_identity()
        self._app = client_app
        self._waiting: dict[str, Message] = {}
        self._count = 0
        self._contexts = {
            node: Context(1, node, {"partition-id": node - 1, "num-partitions": num_nodes}, RecordDict(), {}, 0)
            for node in range(1, num_nodes + 1)
        }

    def set_run(self, run: Run) -> None:
        """Nothing: this grid serves one run."""

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            self._count += 1
            name = f"local-{self._count}"
            name_message(message, name)
            self._waiting[name] = message
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        name = next((name for name in message_ids if name in self._waiting), None)
        return [] if name is None else [self._work(self._waiting.pop(name))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            yield from self.pull_messages(self.push_messages([message]))

    def _work(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # whatever a site does wrong must not end the run of the others
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(CLIENT_RAISED, reason), reply_to=message)
