"""Rows: what there is to say of an RPC beside its messages, and how a row becomes one that serves.

An RPC is its line in the proto, its row, ``read_…`` and ``write_…`` beside the row, and the
service's method of the same name; nothing else has to be told of it. An RPC without a row does not
exist for any caller: it is answered UNIMPLEMENTED. A row whose operation policy does not list is
refused to everybody (access/policy.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from keyside_sidecar.errors import BadRequest
from keyside_sidecar.server.call import Keeps, UnaryRpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
    from google.protobuf.message import Message

    from keyside_sidecar.access.policy import Operation


@dataclass(frozen=True, slots=True)
class Row:
    """One RPC.

    Args:
        name: The RPC's name, such as ``RotateKey``.
        operation: What policy is asked about.
        event: What the audit log calls it; empty where it keeps nothing.
        keeps: What the audit log keeps of it.
        grantable: A grant may allow it to a person.
        public: Answered on connections of callers who are allowed nothing, too.
    """

    name: str
    operation: Operation
    event: str = ""
    keeps: Keeps = Keeps.NOTHING
    grantable: bool = False
    public: bool = False

    @property
    def method(self) -> str:
        """What the service's method is called, and ``read_`` and ``write_`` end with."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.name).lower()


def bind(
    descriptor: ServiceDescriptor, rows: Iterable[Row], messages: ModuleType, service: object
) -> Iterator[UnaryRpc]:
    """Give the RPCs of rows with one request and one response.

    Args:
        descriptor: The service's, from its proto.
        rows: Its rows.
        messages: Has ``read_…`` and ``write_…`` for each of them.
        service: Has a method for each.
    """
    for row in rows:
        method = descriptor.methods_by_name[row.name]
        yield UnaryRpc(
            **describe(descriptor, row),
            decode=make_decoder(method),
            read=getattr(messages, f"read_{row.method}"),
            serve=getattr(service, row.method),
            write=partial(_serialise, getattr(messages, f"write_{row.method}")),
        )


def describe(descriptor: ServiceDescriptor, row: Row) -> dict[str, Any]:
    """Return what every kind of RPC has of its row."""
    return {
        "service": descriptor.full_name,
        "name": row.name,
        "operation": row.operation,
        "event": row.event,
        "keeps": row.keeps,
        "grantable": row.grantable,
        "public": row.public,
    }


def make_decoder(method: MethodDescriptor) -> Callable[[bytes], Message]:
    """Return what makes a request's message of its bytes."""
    kind = GetMessageClass(method.input_type)

    def decode(data: bytes) -> Message:
        try:
            return kind.FromString(data)
        except DecodeError:
            raise BadRequest("request", f"is not a {method.input_type.full_name}") from None

    return decode


def _serialise(write: Callable[[Any], Message], result: object) -> bytes:
    return write(result).SerializeToString()
