"""The names of flwr 1.41 that are not public, all of them, in one file (`flwr` is pinned to 1.41.x for their sake)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS as PUSH_SECONDS
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "PUSH_SECONDS", "Run", "Tasks", "is_lost_push", "is_trouble_of_superlink", "name_message", "play", "take_identity",
    "trusted_record",
]  # fmt: skip
R = TypeVar("R", ConfigRecord, MetricRecord)


def take_identity() -> None:
    """Let this process build messages: outside a Flower task `Message(...)` refuses for lack of a run id."""
    if TaskIdentity._run_id is None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def name_message(message: Message, name: str) -> None:
    """Give a message the id that a SuperLink would have given it."""
    message.metadata.__dict__["_message_id"] = name


def trusted_record(kind: type[R], fields: dict[str, Any]) -> R:
    """A record of fields whose types are known to be right.

    Flower's own constructor looks at every value, at thirty of them for each site of a simulation. What is wrong would
    still be found where the record becomes bytes.
    """
    record = kind()
    record.__dict__["_data"] = fields
    return record


def is_trouble_of_superlink(error: Exception) -> bool:
    """An answer of status 5xx, which Flower's client hands on as the error of its HTTP library (httpx)."""
    return type(error).__name__ == "HTTPStatusError" and error.response.status_code >= 500


def is_lost_push(error: Exception) -> bool:
    """A SuperLink that ended while messages were handed in, and is there again, does not take the rest of them."""
    return isinstance(error, ObjectPushError)


class Tasks:
    """What a SuperNode in process isolation has to do, from its Runtime API at `address` (host:port, plain HTTP on
    loopback); `secret` is that of its --superexec-auth-secret-file."""

    def __init__(self, address: str, secret: bytes):
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
        from flwr.supercore.retry import make_simple_http_retry_invoker
        from flwr.supercore.runtime import RuntimeHttpClient

        self.client = RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(
                    master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
                ),
            ],
            retry_invoker=make_simple_http_retry_invoker(),
        )

    def take(self) -> tuple[str, str] | None:
        """Kind (such as "flwr-clientapp") and token of the next task; None where there is nothing to do."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        found = self.client.AcquireTask(AcquireTaskRequest(supported_task_types=set(TaskType)))
        return (found.task.type, found.token) if found.HasField("task") and found.token else None


def play(address: str, token: str, app_for: Callable[[bytes], ClientApp]) -> None:
    """Do a task as Flower's own `flwr-clientapp` does, with the app that `app_for` has for its bundle.

    Two steps of Flower's are taken out: it would unpack the bundle, put its folder first on `sys.path`, and import the
    app from there. Raises SystemExit at the end, as Flower's command does.
    """
    from flwr.supernode.runtime import run_clientapp as flower

    chosen: list[ClientApp] = []
    replaced = {
        "install_from_fab": lambda content, skip_prompt: chosen.append(app_for(content)),
        "get_load_client_app_fn": lambda **_: lambda fab_id, fab_version, fab_hash: chosen[0],
    }
    for name, function in replaced.items():
        if not hasattr(flower, name):
            raise RuntimeError(f"this Flower has no {name}: fedfm is written for flwr 1.41")
        setattr(flower, name, function)
    flower.run_clientapp(address, token, insecure=True, parent_pid=os.getppid())
