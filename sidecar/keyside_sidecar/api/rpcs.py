"""All RPCs: every service's rows, and how they are bound to what serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside_sidecar.api import health, reflection
from keyside_sidecar.api.rows import bind
from keyside_sidecar.api.v1 import access, audit, batches, encryption, keys, overview

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import ServiceDescriptor

    from keyside_sidecar.api.rows import Row
    from keyside_sidecar.server.call import Rpc
    from keyside_sidecar.services import Services

# Each service's descriptor, its rows, and the field of Services that serves them.
_PLAIN: Final = (
    (encryption.SERVICE, encryption.ROWS, encryption, "encryption"),
    (encryption.SERVICE, encryption.DATA_KEY_ROWS, encryption, "data_keys"),
    (keys.SERVICE, keys.ROWS, keys, "keys"),
    (access.SERVICE, access.ROWS, access, "access"),
    (audit.SERVICE, audit.ROWS, audit, "audit"),
    (overview.SERVICE, overview.ROWS, overview, "status"),
)


def list_rows() -> Iterator[tuple[str, Row]]:
    """Give every RPC's full name and its row."""
    services: list[tuple[ServiceDescriptor, tuple[Row, ...]]] = [
        *((descriptor, rows) for descriptor, rows, _, _ in _PLAIN),
        (batches.SERVICE, batches.ROWS),
        (health.SERVICE, health.ROWS),
        (reflection.SERVICE, reflection.ROWS),
    ]
    for descriptor, rows in services:
        for row in rows:
            yield f"/{descriptor.full_name}/{row.name}", row


def bind_all(services: Services, *, with_reflection: bool) -> Iterator[Rpc]:
    """Give every RPC, bound to what serves it.

    Args:
        services: What serves.
        with_reflection: Whether they are shown to callers that ask.
    """
    for descriptor, rows, messages, field in _PLAIN:
        yield from bind(descriptor, rows, messages, getattr(services, field))
    yield from batches.bind_batches(services.batches, services.turns, services.max_batch_bytes)
    yield from health.Health(services.board).bind()
    if with_reflection:
        yield reflection.bind_reflection({path.split("/")[1] for path, _ in list_rows()})
