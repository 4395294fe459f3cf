"""What a caller's process runs: gRPC calls, as it is told on standard input.

Run as ``python -c TEXT TARGET``, so that the account it runs under need not be able to read this
file. Each line in is a JSON object, and so is each line out. ``caller.py`` is the other side.
"""

from __future__ import annotations

import base64
import collections
import itertools
import json
import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from keyside.v1 import (
    access_pb2,
    access_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    encryption_pb2,
    encryption_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
)
from keyside.v1 import status_pb2 as keyside_status_pb2
from keyside.v1 import status_pb2_grpc as keyside_status_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOS: tuple[tuple[Any, Any], ...] = (
    (encryption_pb2, encryption_pb2_grpc),
    (keys_pb2, keys_pb2_grpc),
    (access_pb2, access_pb2_grpc),
    (audit_pb2, audit_pb2_grpc),
    (keyside_status_pb2, keyside_status_pb2_grpc),
    (health_pb2, health_pb2_grpc),
    (reflection_pb2, reflection_pb2_grpc),
)
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # Reconnects at once: a test that has to wait for gRPC's pauses takes longer and shows no more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
    # This one is how long an attempt may take.
    ("grpc.min_reconnect_backoff_ms", 20_000),
    ("grpc.max_receive_message_length", -1),
]


class Channels:
    """The channels that this process has open, by name."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._open: dict[str, Any] = {}

    def find(self, name: str, options: list[tuple[str, Any]] | None = None) -> Any:
        """Return the channel of that name, made if there is none."""
        if name not in self._open:
            all_options = [*OPTIONS, *map(tuple, options or [])]
            self._open[name] = grpc.insecure_channel(self._target, options=all_options)
        return self._open[name]

    def close(self, channel: str) -> dict[str, Any]:
        """Close a channel."""
        self._open.pop(channel).close()
        return {}


def start_call(channel: Any, path: str, data: bytes, **settings: Any) -> tuple[Any, bool]:
    """Begin a call through the generated stub; a method that no proto has is called as unary.

    Returns:
        The call, and whether it answers with a stream.
    """
    _, service, name = path.split("/")
    for messages, stubs in PROTOS:
        found = messages.DESCRIPTOR.services_by_name.get(service.rpartition(".")[2])
        if found is None or found.full_name != service or name not in found.methods_by_name:
            continue
        method = found.methods_by_name[name]
        request = message_factory.GetMessageClass(method.input_type).FromString(data)
        call = getattr(getattr(stubs, f"{found.name}Stub")(channel), name)
        if method.client_streaming:
            return call(endless(request), **settings), True
        if method.server_streaming:
            return call(request, **settings), True
        return call.future(request, **settings), False
    return channel.unary_unary(path).future(data, **settings), False


def endless(request: Any) -> Iterator[Any]:
    """Give one request, and keep the stream open."""
    yield request
    threading.Event().wait()


def call_once(
    channels: Channels, path: str, data: str, *, raw: bool = False, **settings: Any
) -> dict[str, Any]:
    """Make one call; of a stream take the first answer.

    Args:
        channels: This process's channels.
        path: The RPC's full name.
        data: The request in base64.
        raw: Send it without looking; it may be no message.
        settings: ``channel`` (its name), ``options`` (of a new channel), ``metadata``,
            ``timeout_s``.
    """
    started_s = time.monotonic()
    opened = channels.find(settings.get("channel", ""), settings.get("options"))
    arguments = {
        "timeout": settings.get("timeout_s", 20.0),
        "metadata": [tuple(pair) for pair in settings.get("metadata", ())],
    }
    sent = base64.b64decode(data)
    if raw:
        call, streams = opened.unary_unary(path).future(sent, **arguments), False
    else:
        call, streams = start_call(opened, path, sent, **arguments)
    try:
        answer = next(call) if streams else call.result()
        call.cancel()
    except grpc.RpcError as error:
        return describe_error(error) | {"started_s": started_s, "ended_s": time.monotonic()}
    message = answer if isinstance(answer, bytes) else answer.SerializeToString()
    return {
        "code": "OK",
        "data": base64.b64encode(message).decode(),
        "started_s": started_s,
        "ended_s": time.monotonic(),
    }


def describe_error(error: Any) -> dict[str, Any]:
    """Return a status with its details."""
    described = {"code": error.code().name, "text": error.details()}
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                bad = error_details_pb2.BadRequest()
                if packed.Unpack(info):
                    described |= {
                        "reason": info.reason,
                        "domain": info.domain,
                        "remedy": info.metadata["remedy"],
                    }
                elif packed.Unpack(bad):
                    described["field"] = bad.field_violations[0].field
    return described


class Held:
    """Streams kept open, so that they count as calls in flight."""

    def __init__(self) -> None:
        self._calls: list[Any] = []

    def hold(self, channels: Channels, path: str, count: int, channel: str = "") -> dict[str, Any]:
        """Open streams and wait for each one's first answer; return the codes."""
        codes: collections.Counter[str] = collections.Counter()
        for _ in range(count):
            call, _streams = start_call(channels.find(channel), path, b"", timeout=120)
            try:
                next(call)
            except grpc.RpcError as error:
                described = describe_error(error)
                codes[f"{described['code']} {described.get('reason', '')}".strip()] += 1
            else:
                codes["OK"] += 1
                self._calls.append(call)
        return {"codes": codes}

    def next_code(self) -> dict[str, Any]:
        """Wait for the first held stream's next answer or end."""
        try:
            next(self._calls[0])
        except grpc.RpcError as error:
            return describe_error(error)
        except StopIteration:
            return {"code": "ENDED"}
        return {"code": "OK"}

    def release(self) -> dict[str, Any]:
        """End them all."""
        for call in self._calls:
            call.cancel()
        self._calls.clear()
        return {}


class Conversation:
    """One stream of questions and answers, kept open."""

    def __init__(self) -> None:
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: Any = None

    def ask(self, channels: Channels) -> dict[str, Any]:
        """Ask the reflection service for its services once more."""
        if self._answers is None:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channels.find(""))
            self._answers = stub.ServerReflectionInfo(iter(self._questions.get, None))
        self._questions.put(reflection_pb2.ServerReflectionRequest(list_services=""))
        try:
            next(self._answers)
        except grpc.RpcError as error:
            return describe_error(error)
        return {"code": "OK"}


def storm(target: str, connections: int, rounds: int, calls: int) -> dict[str, Any]:
    """Ask who the sidecar thinks this is, over and over, on connections that come and go.

    Returns:
        How often each (pid, uid) was the answer, and how often each error.
    """
    answers: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def run() -> None:
        mine: collections.Counter[str] = collections.Counter()
        for _ in range(rounds):
            with grpc.insecure_channel(target, options=OPTIONS) as channel:
                ask = keyside_status_pb2_grpc.StatusServiceStub(channel).GetStatus
                for _ in range(calls):
                    try:
                        you = ask(keyside_status_pb2.GetStatusRequest(), timeout=30).you
                    except grpc.RpcError as error:
                        mine[str(describe_error(error))] += 1
                    else:
                        mine[f"{you.pid} {you.uid}"] += 1
        with lock:
            answers.update(mine)

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"answers": answers}


class PackageClient:
    """``keyside.Client`` in the same process."""

    def __init__(self, target: str) -> None:
        import keyside

        self._errors: Any = keyside.KeysideError
        self._client = keyside.Client(
            target, expected_owner=int(os.environ["KEYSIDE_TEST_OWNER"]), timeout_s=10
        )

    def encrypt(self, key: str) -> dict[str, Any]:
        """Encrypt a few bytes; return the error's reason, or ""."""
        try:
            self._client.encrypt(key, b"through the package")
        except self._errors as error:
            return {"reason": error.reason}
        return {"reason": ""}


def main() -> None:
    """Do what is asked until there are no more requests."""
    target = sys.argv[1]
    channels, held, conversation = Channels(target), Held(), Conversation()
    package = PackageClient(target) if target.startswith("unix:") else None
    actions: dict[str, Any] = {
        "call": lambda **arguments: call_once(channels, **arguments),
        "hold": lambda **arguments: held.hold(channels, **arguments),
        "next": held.next_code,
        "release": held.release,
        "ask": lambda: conversation.ask(channels),
        "close": channels.close,
        "storm": lambda **arguments: storm(target, **arguments),
        "encrypt": lambda key: package.encrypt(key) if package else {},
    }
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for number in itertools.count():
        line = sys.stdin.readline()
        if not line:
            break
        request = json.loads(line)
        answer = actions[request.pop("action")](**request)
        print(json.dumps({"number": number, **answer}), flush=True)
    os._exit(0)  # a stream that is still open would keep the interpreter from ending


if __name__ == "__main__":
    main()
