"""Grants of this account's own that a refused call could have used, and how to use them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keyside.access_facts import AccessState
from keyside.cli.credential_files import CREDENTIAL_VARIABLE
from keyside.cli.tables import format_time
from keyside.errors import KeysideError

if TYPE_CHECKING:
    from keyside.access_facts import AccessRequest
    from keyside.cli.connection import Connection

_ORDER = (AccessState.ACTIVE, AccessState.APPROVED, AccessState.PENDING)


def describe_way(connection: Connection, operation: str, key: str | None) -> str:
    """Return what to do where this account has access or has asked for it; ``""`` for neither.

    Args:
        connection: Where the sidecar is.
        operation: What was refused: ``"decrypt"``, ``"rewrap"`` or ``"encrypt"``.
        key: The key's name; ``None`` where it can't be told.
    """
    if key is None:
        return ""
    try:
        with connection.open(retry=False) as client:
            own = [one for one in client.list_access() if _fits(one, operation, key)]
    except KeysideError:  # who may ask for no access may list none either
        return ""
    return _describe(min(own, key=lambda one: _ORDER.index(one.state))) if own else ""


def _fits(request: AccessRequest, operation: str, key: str) -> bool:
    return (
        request.key == key
        and request.requester.uid == os.geteuid()
        and request.state in _ORDER
        and operation in {one.value.lower() for one in request.operations}
    )


def _describe(request: AccessRequest) -> str:
    if request.state is AccessState.ACTIVE:
        return (
            f"you have a grant, {request.id}, active until {format_time(request.expires_at)}: name "
            "the file that keyside access activate kept its credential in: --credential-file FILE, "
            f"or {CREDENTIAL_VARIABLE}=FILE"
        )
    if request.state is AccessState.APPROVED:
        return f"your request {request.id} is approved: keyside access activate {request.id}"
    return f"your request {request.id} waits for approval: keyside access show {request.id}"
