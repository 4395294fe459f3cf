"""Calls on their way through the pipeline, and the row that says how an RPC is answered."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyside_sidecar.access.policy import Operation
    from keyside_sidecar.elevation.office import PendingUse
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.server.pipeline.stream import Stream
    from keyside_sidecar.services.batch import Batch, Outcome, Sink
    from keyside_sidecar.services.shapes import Command


class Keeps(enum.Enum):
    """What the audit log keeps of an RPC, beside refusals, which it keeps of all."""

    NOTHING = enum.auto()
    # One record, written behind: a service's call.
    CALL = enum.auto()
    # What is asked for, before it takes effect, and its outcome, before anything is answered (I8).
    ACTION = enum.auto()


@dataclass(frozen=True, slots=True, eq=False)
class Rpc:
    """One RPC, as far as every kind of them has it.

    Args:
        service: The full service name, such as ``keyside.v1.KeyService``.
        name: The RPC's name.
        operation: What policy is asked about.
        public: Answered on connections of callers who are allowed nothing, too.
        keeps: What the audit log keeps of it.
        event: What the audit log calls it; empty where it keeps nothing.
        grantable: A grant may allow it to a person.
        decode: Makes the message of its bytes.
        read: Makes the command of the message.
    """

    service: str
    name: str
    operation: Operation
    public: bool
    keeps: Keeps
    event: str
    grantable: bool
    decode: Callable[[bytes], Any]
    read: Callable[[Any], Any]

    @property
    def path(self) -> str:
        """The RPC's full name, as gRPC spells it."""
        return f"/{self.service}/{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class UnaryRpc(Rpc):
    """One request, one response.

    Args:
        serve: Carries a command out.
        write: Makes a response's bytes of the result.
    """

    serve: Callable[[Caller, Any], Awaitable[Any]]
    write: Callable[[Any], bytes]


class ResponseSink(Protocol):
    """Makes a batch's response of its items' outcomes."""

    def add(self, outcome: Outcome) -> None:
        """Take the next item's outcome."""

    def end_turn(self) -> None:
        """Serialise what was added."""

    def serialise(self) -> bytes:
        """Return the whole response, serialised."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchRpc(Rpc):
    """Many items in one request, each of which answers for itself.

    Args:
        serve: Carries a command out, and gives each item's outcome to a sink.
        require_countable: Refuses a message with too much in it before it is parsed.
        make_sink: Returns what makes the response.
    """

    serve: Callable[[Caller, Batch, Any, Sink], Awaitable[None]]
    require_countable: Callable[[bytes], Awaitable[None]]
    make_sink: Callable[[], ResponseSink]


@dataclass(frozen=True, slots=True, eq=False)
class StreamRpc(Rpc):
    """Messages that come, or go, one by one; about no key.

    Args:
        converse: Takes and sends them.
    """

    converse: Callable[[Stream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class UnaryCall:
    """A call that is allowed: by policy, or by a grant.

    Args:
        rpc: Its row.
        caller: Who calls.
        command: What is asked for.
        use: The grant that allows it; None: policy does.
    """

    rpc: UnaryRpc
    caller: Caller
    command: Command
    use: PendingUse | None = None


@dataclass(frozen=True, slots=True)
class BatchCall:
    """A batch of which at least some items may be allowed: by policy, or by a grant.

    Args:
        rpc: Its row.
        caller: Who calls.
        command: What is asked for.
        batch: How items are judged, and what became of them.
        use: The grant that allows what policy does not; None: there is none.
    """

    rpc: BatchRpc
    caller: Caller
    command: Command
    batch: Batch
    use: PendingUse | None = None


Call: TypeAlias = "UnaryCall | BatchCall"


class Exchange(Protocol):
    """A call as the transport has it."""

    @property
    def connection(self) -> Connection | None:
        """The connection that it came on, or None where that is not known (I2)."""

    def find_credential(self) -> str | None:
        """Return the temporary credential that came with it; None where there is none."""

    def read(self) -> Awaitable[object]:
        """Return its next message's bytes; something else where there is none."""

    def write(self, message: bytes) -> Awaitable[None]:
        """Send a message of the answer; for streams."""
