"""Batches of keyside.v1: items as the service reads them, and outcomes as results."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message_factory import GetMessageClass

from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.api.rows import Row, describe, make_decoder
from keyside_sidecar.api.v1.contexts import copy_context, make_reference
from keyside_sidecar.api.v1.item_count import require_countable
from keyside_sidecar.api.v1.status import make_status
from keyside_sidecar.server.call import BatchRpc, Keeps
from keyside_sidecar.services.batches import OpenMany, RewrapMany, SealMany
from keyside_sidecar.services.encryption import Opened, Renewed, Sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from google.protobuf.message import Message
    from google.rpc.status_pb2 import Status

    from keyside.envelope import VersionKey
    from keyside_sidecar.services.batch import Outcome
    from keyside_sidecar.services.batches import BatchService
    from keyside_sidecar.services.failures import Failure
    from keyside_sidecar.services.turns import Turns


def _row(name: str, operation: Operation) -> Row:
    event = f"encryption.batch_{operation.name.lower()}"
    return Row(name, operation, event, Keeps.CALL, grantable=True)


SERVICE: Final = pb.DESCRIPTOR.services_by_name["EncryptionService"]
ROWS: Final = (
    _row("BatchEncrypt", Operation.ENCRYPT),
    _row("BatchDecrypt", Operation.DECRYPT),
    _row("BatchRewrap", Operation.REWRAP),
)


def bind_batches(service: BatchService, turns: Turns, max_batch_bytes: int) -> Iterator[BatchRpc]:
    """Give the RPCs of batches.

    Args:
        service: Carries them out.
        turns: Says when items are counted.
        max_batch_bytes: How much a batch's items may have in all, to be told.
    """
    for row in ROWS:
        method = SERVICE.methods_by_name[row.name]
        yield BatchRpc(
            **describe(SERVICE, row),
            decode=make_decoder(method),
            read=globals()[f"read_{row.method}"],
            serve=getattr(service, row.method),
            require_countable=partial(
                require_countable,
                request_type=GetMessageClass(method.input_type),
                max_batch_bytes=max_batch_bytes,
                turns=turns,
            ),
            make_sink=partial(ResultSink, GetMessageClass(method.output_type)),
        )


class MessageItems:
    """The items of a batch's message, each read when it is asked for."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def key(self, place: int) -> str:
        """Return the name of an item's key."""
        name: str = self._items[place].key
        return name

    def plaintext(self, place: int) -> bytes:
        """Return an item's plaintext."""
        plaintext: bytes = self._items[place].plaintext
        return plaintext

    def envelope(self, place: int) -> bytes:
        """Return an item's envelope."""
        envelope: bytes = self._items[place].envelope
        return envelope

    def context(self, place: int) -> Mapping[str, str]:
        """Return an item's context."""
        return copy_context(self._items[place].context)


def read_batch_encrypt(request: pb.BatchEncryptRequest) -> SealMany:
    """Return what is asked for."""
    return SealMany(MessageItems(request.items))


def read_batch_decrypt(request: pb.BatchDecryptRequest) -> OpenMany:
    """Return what is asked for."""
    return OpenMany(MessageItems(request.items))


def read_batch_rewrap(request: pb.BatchRewrapRequest) -> RewrapMany:
    """Return what is asked for."""
    return RewrapMany(MessageItems(request.items))


class ResultSink:
    """Makes a batch's response of what becomes of its items, and serialises it a turn at a time.

    Messages with one repeated field may be put one behind the other.

    Args:
        response: The response's type; its field ``results`` takes the items' results.
    """

    def __init__(self, response: Callable[[], Message]) -> None:
        self._parts: list[bytes] = []
        self._message: Any = response()
        self._references: dict[VersionKey, pb.KeyVersionRef] = {}
        self._statuses: dict[Failure, Status] = {}

    def add(self, outcome: Outcome) -> None:
        """Take the next item's outcome."""
        result = self._message.results.add()
        if isinstance(outcome, Opened):
            result.plaintext = outcome.plaintext
            result.version.CopyFrom(self._refer_to(outcome.version))
        elif isinstance(outcome, Sealed):
            result.envelope = outcome.envelope
            result.version.CopyFrom(self._refer_to(outcome.version))
        elif isinstance(outcome, Renewed):
            result.envelope = outcome.envelope
            result.previous.CopyFrom(self._refer_to(outcome.previous))
            result.version.CopyFrom(self._refer_to(outcome.version))
        else:
            result.status.CopyFrom(self._tell(outcome))

    def end_turn(self) -> None:
        """Serialise what was added."""
        self._parts.append(self._message.SerializeToString())
        self._message.Clear()

    def serialise(self) -> bytes:
        """Return the whole response, serialised; the last turn has ended."""
        return b"".join(self._parts)

    def _refer_to(self, version: VersionKey) -> pb.KeyVersionRef:
        found = self._references.get(version)
        if found is None:
            found = self._references[version] = make_reference(version)
        return found

    def _tell(self, failure: Failure) -> Status:
        found = self._statuses.get(failure)
        if found is None:
            found = self._statuses[failure] = make_status(failure)
        return found
