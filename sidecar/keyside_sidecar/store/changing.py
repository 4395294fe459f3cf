"""What can be done to keys and versions, each as one transaction.

Which state leads where is drawn in ``keys/states.py``. Every function raises what
``Session.changing`` raises, and then nothing was changed; ``KeyError`` means that there is no such
key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.errors import (
    NoSuchVersion,
    RotationConflict,
    VersionInUse,
    WrongState,
)
from keyside_sidecar.store.material import describe_key, describe_version
from keyside_sidecar.store.records import (
    ChangedVersion,
    OpenedVersion,
    StoredRotation,
    VersionState,
    to_microseconds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from keyside.names import KeyName
    from keyside_sidecar.store.change import Draft
    from keyside_sidecar.store.session import Session

    Row = Mapping[str, Any]

_MICROSECONDS: Final = 1_000_000
_UNSCHEDULED: Final = {
    "destroy_requested_at": None,
    "destroy_requested_by_uid": None,
    "destroy_due": None,
    "destroy_not_before": None,
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a change was decided upon; if it is no longer so, nothing is changed.

    Args:
        current_number: Must be the current version.
        pending_number: Must be the successor that exists already; None for that there is none.
    """

    current_number: int
    pending_number: int | None


def create_key(
    session: Session, name: KeyName, now: datetime, made_by_uid: int | None = None
) -> bool:
    """Make a key with version 1, unless it exists; of several calls at once, one does.

    Returns:
        Whether it was this call that made it.

    Raises:
        CustodyError: What was wrapped did not unwrap; nothing was changed.
    """
    with session.reading() as (_, snapshot):
        if name in snapshot.keys:
            return False
    with session.changing() as draft:
        if name in draft.snapshot.keys:
            return False
        wrapping = draft.reader.wrapping
        observed_us = draft.observed_us
        version, material = wrapping.make_version(name, 1, now, made_by_uid, observed_us)
        key = {"name": name, "created_at": version["created_at"]}
        draft.change.add_key(key | {"current_number": 1, "last_number": 1}, version)
        draft.finish(name)
        wrapping.require_opens(draft.current, material)
    return True


def rotate(
    session: Session,
    name: KeyName,
    *,
    actor_uid: int | None,
    expected_current: int,
    now: datetime,
    compromised: bool = False,
) -> StoredRotation:
    """Make another version current, and archive the one that was: both, or neither (I10).

    A successor that exists already is taken, whatever its age; otherwise one is made.

    Args:
        session: The store's.
        name: The key.
        actor_uid: The operator's uid.
        expected_current: The number that must be current; 0 for whichever is.
        now: The time, aware.
        compromised: Disable the version that was current, and a successor that exists already:
            whoever knows the one may know the other. The new one is made afresh.

    Raises:
        RotationConflict: Another version is current; nothing was changed.
        CustodyError: The new version did not unwrap; nothing was changed.
    """
    with session.changing() as draft:
        key = draft.snapshot.keys[name]
        if expected_current not in (0, key["current_number"]):
            raise RotationConflict(name, expected_current, key["current_number"])
        if key["pending_number"] is None or compromised:
            return _rotate_to_new(draft, name, actor_uid, now, compromised=compromised)
        return _activate(draft, name, now)


def roll_over(session: Session, name: KeyName, expected: Expected, now: datetime) -> StoredRotation:
    """Do what :func:`rotate` does, if the key is still as it was when that was decided.

    Raises:
        RotationConflict: Someone else has changed it; nothing was changed.
        CustodyError: The new version did not unwrap; nothing was changed.
    """
    with session.changing() as draft:
        _require(draft, name, expected)
        if expected.pending_number is None:
            return _rotate_to_new(draft, name, None, now, compromised=False)
        return _activate(draft, name, now)


def make_pending(session: Session, name: KeyName, expected: Expected, now: datetime) -> None:
    """Make a successor that becomes current later.

    Raises:
        RotationConflict: Someone else has changed the key; nothing was changed.
        CustodyError: What was wrapped did not unwrap; nothing was changed.
    """
    with session.changing() as draft:
        key = _require(draft, name, expected)
        number = key["last_number"] + 1
        wrapping = draft.reader.wrapping
        observed_us = draft.observed_us
        version, material = wrapping.make_version(
            name, number, now, None, observed_us, pending=True
        )
        draft.change.change_key(
            key, {"last_number": number, "pending_number": number}, added=[version]
        )
        draft.finish(name)
        wrapping.require_opens(draft.reader.read_version(draft.key, draft.index, number), material)


def disable(
    session: Session, name: KeyName, number: int, *, actor_uid: int, now: datetime
) -> ChangedVersion:
    """Refuse a version until it is enabled again. One that is disabled already stays as it is.

    Raises:
        NoSuchVersion: The key has no such version.
        VersionInUse: It is the current one.
        WrongState: It is destroyed.
    """
    with session.changing() as draft:
        row = _find(draft, name, number)
        _refuse_destroyed(row)
        if row["state"] == VersionState.CURRENT:
            raise VersionInUse(name, number)
        if row["state"] == VersionState.DISABLED:
            return _unchanged(row)
        return _set(draft, name, row, _disabled(actor_uid, now))


def enable(session: Session, name: KeyName, number: int) -> ChangedVersion:
    """Let a disabled version open envelopes again. One that is not disabled stays as it is.

    Raises:
        NoSuchVersion: The key has no such version.
        WrongState: It is destroyed, or is going to be.
    """
    with session.changing() as draft:
        row = _find(draft, name, number)
        _refuse_destroyed(row)
        if row["destroy_due"] is not None:
            raise WrongState(
                name,
                number,
                row["state"],
                "is going to be destroyed",
                "call that off first: keyside keys cancel-destroy",
            )
        if row["state"] != VersionState.DISABLED:
            return _unchanged(row)
        enabled = {"state": str(VersionState.ARCHIVED)}
        return _set(draft, name, row, enabled | {"disabled_at": None, "disabled_by_uid": None})


def schedule_destruction(
    session: Session, name: KeyName, number: int, *, actor_uid: int, now: datetime, after_s: float
) -> ChangedVersion:
    """Disable a version, and have it destroyed later. A schedule that exists stays as it is.

    Args:
        session: The store's.
        name: The key.
        number: The version.
        actor_uid: The operator's uid.
        now: The time, aware.
        after_s: So much observed time ahead, and so much by the wall clock, in seconds.

    Raises:
        NoSuchVersion: The key has no such version.
        VersionInUse: It is the current one.
        WrongState: It is destroyed.
    """
    with session.changing() as draft:
        row = _find(draft, name, number)
        _refuse_destroyed(row)
        if row["state"] == VersionState.CURRENT:
            raise VersionInUse(name, number)
        if row["destroy_due"] is not None:
            return _unchanged(row)
        scheduled = {
            "destroy_requested_at": to_microseconds(now),
            "destroy_requested_by_uid": actor_uid,
            "destroy_due": draft.observed_us + round(after_s * _MICROSECONDS),
            "destroy_not_before": to_microseconds(now) + round(after_s * _MICROSECONDS),
        }
        if row["state"] != VersionState.DISABLED:
            scheduled |= _disabled(actor_uid, now)
        return _set(draft, name, row, scheduled)


def cancel_destruction(session: Session, name: KeyName, number: int) -> ChangedVersion:
    """Call a scheduled destruction off; the version stays disabled.

    Raises:
        NoSuchVersion: The key has no such version.
        WrongState: Nothing is scheduled, or it is destroyed.
    """
    with session.changing() as draft:
        row = _find(draft, name, number)
        _refuse_destroyed(row)
        if row["destroy_due"] is None:
            raise WrongState(
                name,
                number,
                row["state"],
                "is not going to be destroyed",
                "there is nothing to call off",
            )
        return _set(draft, name, row, _UNSCHEDULED)


def destroy_if_due(session: Session, name: KeyName, number: int, now: datetime) -> bool:
    """Destroy a version's material for ever, if its schedule says so by now.

    Returns:
        Whether it was this call that destroyed it.
    """
    with session.changing() as draft:
        row = _find(draft, name, number)
        due = row["destroy_due"]
        if (
            row["state"] != VersionState.DISABLED
            or due is None
            or draft.observed_us < due
            or to_microseconds(now) < row["destroy_not_before"]
        ):
            return False
        gone = {
            "state": str(VersionState.DESTROYED),
            "wrapped": None,
            "root_key_id": None,
            "destroy_due": None,
            "destroy_not_before": None,
            "destroyed_at": to_microseconds(now),
        }
        _set(draft, name, row, gone)
    session.database.scrub()
    return True


def _rotate_to_new(
    draft: Draft, name: KeyName, actor_uid: int | None, now: datetime, *, compromised: bool
) -> StoredRotation:
    key = draft.snapshot.keys[name]
    index = draft.reader.read_index(key)
    current = draft.reader.read_version(key, index, key["current_number"])
    number = key["last_number"] + 1
    version, material = draft.reader.wrapping.make_version(
        name, number, now, actor_uid, draft.observed_us
    )
    changes: dict[str, Any] = {"current_number": number, "last_number": number}
    replaced: dict[str, Any] = _archived(now)
    rows = [(current, replaced)]
    if compromised:
        replaced |= _disabled(actor_uid, now)
        if key["pending_number"] is not None:
            pending = draft.reader.read_version(key, index, key["pending_number"])
            rows.append((pending, _disabled(actor_uid, now)))
            changes["pending_number"] = None
    draft.change.change_key(key, changes, replaced=rows, added=[version])
    draft.finish(name)
    opened = draft.reader.wrapping.require_opens(draft.current, material)
    return _describe_rotation(draft, opened, {**current, **replaced})


def _activate(draft: Draft, name: KeyName, now: datetime) -> StoredRotation:
    key = draft.snapshot.keys[name]
    index = draft.reader.read_index(key)
    current = draft.reader.read_version(key, index, key["current_number"])
    number = key["pending_number"]
    pending = draft.reader.read_version(key, index, number)
    activated = {
        "state": str(VersionState.CURRENT),
        "activated_at": to_microseconds(now),
        "activated_observed": draft.observed_us,
    }
    archived = _archived(now)
    draft.change.change_key(
        key,
        {"current_number": number, "pending_number": None},
        replaced=[(current, archived), (pending, activated)],
    )
    draft.finish(name)
    # Nothing becomes current that does not open.
    opened = draft.reader.wrapping.open_version(draft.current)
    return _describe_rotation(draft, opened, {**current, **archived})


def _describe_rotation(draft: Draft, opened: OpenedVersion, previous: Row) -> StoredRotation:
    return StoredRotation(
        describe_key(draft.key, draft.current),
        opened,
        describe_version(previous),
        draft.change.generation,
    )


def _archived(now: datetime) -> dict[str, Any]:
    return {"state": str(VersionState.ARCHIVED), "archived_at": to_microseconds(now)}


def _disabled(actor_uid: int | None, now: datetime) -> dict[str, Any]:
    return {
        "state": str(VersionState.DISABLED),
        "disabled_at": to_microseconds(now),
        "disabled_by_uid": actor_uid,
    }


def _require(draft: Draft, name: KeyName, expected: Expected) -> Row:
    key = draft.snapshot.keys[name]
    found = key["current_number"], key["pending_number"]
    if found != (expected.current_number, expected.pending_number):
        raise RotationConflict(name, expected.current_number, key["current_number"])
    return key


def _find(draft: Draft, name: KeyName, number: int) -> Row:
    key = draft.snapshot.keys[name]
    if not 1 <= number <= key["last_number"]:
        raise NoSuchVersion(name, number)
    return draft.reader.read_version(key, draft.reader.read_index(key), number)


def _set(draft: Draft, name: KeyName, row: Row, columns: Row) -> ChangedVersion:
    key = draft.snapshot.keys[name]
    of_key: dict[str, Any] = {}
    if key["pending_number"] == row["number"]:
        of_key["pending_number"] = None
    scheduled = {**row, **columns}["destroy_due"] is not None
    count = (key["scheduled_count"] or 0) + scheduled - (row["destroy_due"] is not None)
    of_key["scheduled_count"] = count or None
    draft.change.change_key(key, of_key, replaced=[(row, columns)])
    draft.finish(name)
    changed = describe_version({**row, **columns})
    return ChangedVersion(changed, draft.change.generation)


def _unchanged(row: Row) -> ChangedVersion:
    return ChangedVersion(describe_version(row), row["generation"])


def _refuse_destroyed(row: Row) -> None:
    if row["state"] == VersionState.DESTROYED:
        raise WrongState(
            row["key_name"],
            row["number"],
            row["state"],
            "is destroyed",
            "nothing brings it back, unless a backup from before its destruction is restored",
        )
