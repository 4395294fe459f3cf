"""A store that is older than its own audit log: somebody has put a backup back (I10).

What the log has seen of the store is compared with the store before anything is served from it. A
store that is behind, or another one, is refused until an operator accepts it on the record
(``keysided serve --accept-rollback``): requests and grants in it may have been revoked or spent
since, and so all of them end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from keyside_sidecar.access.requests import EndReason
from keyside_sidecar.errors import StartupError
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.elevation.office import AccessOffice
    from keyside_sidecar.keys import Keyring

_log = logging.getLogger(__name__)

_ATTACH_S: Final = 10.0
_EX_CONFIG: Final = 78
_EVENT: Final = "store.rollback_accepted"


async def check_store_age(
    keyring: Keyring, audit: AuditSender, office: AccessOffice, *, accept: bool
) -> None:
    """Refuse a store that is older than the log knows it, or another one, unless that is accepted.

    Args:
        keyring: Has the store, and has not been started.
        audit: Knows what the log has seen.
        office: Ends requests and grants.
        accept: An operator has said that the store is to be used as it is. All requests and grants
            end then, also where the log sees nothing wrong: a new host's log has seen nothing yet.

    Raises:
        StartupError: It is refused; says what to do.
        AuditUnavailable: The log can't be asked or written.
        StoreError: The store is away, or fails its checks.
    """
    await audit.wait_attached(_ATTACH_S)
    meta = await keyring.look(keyring.store.read_meta)
    store_id = meta.store_id.hex()
    logged_id, logged = audit.anchor or (store_id, 0)
    is_sound = store_id == logged_id and meta.generation >= logged
    if is_sound and not accept:
        return
    what = (
        "the store is not the one that the audit log is about"
        if store_id != logged_id
        else f"the store is at generation {meta.generation}, and its audit log has seen {logged}"
    )
    if store_id == logged_id and not is_sound:
        what += ": an older copy was put back"
    if not accept:
        raise StartupError(
            what,
            remedy="put the newest copy back; if there is none, keysided serve --accept-rollback "
            "uses this one: that is recorded, and ends all requests for access and all grants",
            exit_code=_EX_CONFIG,
        )
    event(_log, logging.WARNING, "older store accepted", why=what)
    details: dict[str, object] = {"seen_store_id": logged_id, "seen_generation": logged}
    await audit.record({"event": _EVENT, "phase": "intent", "details": details})
    count = await office.end_all(EndReason.STORE_ROLLED_BACK, "the store was put back")
    # What the log goes by from here on; not before everything has ended.
    now = await keyring.look(keyring.store.read_meta)
    details |= {"store_id": store_id, "store_generation": now.generation, "ended": count}
    await audit.record({"event": _EVENT, "phase": "outcome", "outcome": "ok", "details": details})
