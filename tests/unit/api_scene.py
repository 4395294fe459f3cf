"""Calls of keyside.v1 as messages, without the pipeline: read, serve, write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyside_sidecar.peer.caller import Caller

if TYPE_CHECKING:
    from types import ModuleType

    from keyside_sidecar.access.reasons import Reason


async def serve(
    messages: ModuleType, service: object, method: str, caller: Caller, request: Any
) -> Any:
    """Return the response to a request.

    Args:
        messages: Has ``read_…`` and ``write_…``.
        service: What serves it.
        method: Its method's name.
        caller: Who calls.
        request: The request.
    """
    command = getattr(messages, f"read_{method}")(request)
    result = await getattr(service, method)(caller, command)
    return getattr(messages, f"write_{method}")(result)


def make_caller(
    uid: int,
    *,
    gids: frozenset[int] = frozenset(),
    account: str = "",
    person: Reason | None = None,
    borrowed: Reason | None = None,
    login_uid: int | None = None,
) -> Caller:
    """Return a caller as it is when its account's groups are known."""
    return Caller(
        4711,
        uid,
        uid,
        login_uid=login_uid,
        account=account,
        gids=gids,
        person=person,
        borrowed=borrowed,
    )
