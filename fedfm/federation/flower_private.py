"""The names of flwr 1.41 that are not public, all of them, in one file (`flwr` is pinned to 1.41.x for their sake)."""

from __future__ import annotations

from flwr.app import Message
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "name_message", "take_identity"]


def take_identity() -> None:
    """Let this process build messages: outside a Flower task `Message(...)` refuses for lack of a run id."""
    if TaskIdentity._run_id is None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def name_message(message: Message, name: str) -> None:
    """Give a message the id that a SuperLink would have given it."""
    message.metadata.__dict__["_message_id"] = name
