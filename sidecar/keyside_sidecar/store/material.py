"""Key material on its way into and out of rows: made, wrapped, unwrapped."""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Any, Final

from keyside.envelope import VersionKey
from keyside.names import KeyName, VersionNumber
from keyside_sidecar.errors import CustodyError
from keyside_sidecar.store.authentication import bind_material
from keyside_sidecar.store.records import (
    KeyInfo,
    OpenedVersion,
    VersionInfo,
    VersionState,
    from_microseconds,
    to_microseconds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from keyside_sidecar.custody import Custodian

    Row = Mapping[str, Any]

_MATERIAL_LENGTH: Final = 32
_VERSION_ID_LENGTH: Final = 16


class Wrapping:
    """Wraps and unwraps the material of one store's versions, each bound to its place there.

    Args:
        custodian: Keeps the root key.
        store_id: 16 bytes.
    """

    def __init__(self, custodian: Custodian, store_id: bytes) -> None:
        self._custodian = custodian
        self._store_id = store_id

    def make_version(
        self,
        name: KeyName,
        number: int,
        now: datetime,
        made_by_uid: int | None,
        observed_us: int,
        *,
        pending: bool = False,
    ) -> tuple[Row, bytes]:
        """Return a new version's columns, and its material for :meth:`require_opens`.

        Args:
            name: Its key.
            number: Its number.
            now: The time, aware.
            made_by_uid: The operator's uid; None where the sidecar makes it by itself.
            observed_us: The store's observed time, in microseconds.
            pending: It is not current yet.

        Raises:
            CustodianUnavailable: The custodian can't be reached.
        """
        material = os.urandom(_MATERIAL_LENGTH)
        version_id = os.urandom(_VERSION_ID_LENGTH)
        binding = bind_material(self._store_id, name, number, version_id)
        moment = to_microseconds(now)
        row = {
            "key_name": name,
            "number": number,
            "version_id": version_id,
            "state": str(VersionState.PENDING if pending else VersionState.CURRENT),
            "wrapped": self._custodian.wrap(material, binding),
            "root_key_id": self._custodian.key_id,
            "created_at": moment,
            "activated_at": None if pending else moment,
            "made_by_uid": made_by_uid,
            "created_observed": observed_us,
            "activated_observed": None if pending else observed_us,
        }
        return row, material

    def open_version(self, row: Row) -> OpenedVersion:
        """Return the version that a checked row holds.

        Raises:
            CustodyError: It does not unwrap.
        """
        info = describe_version(row)
        if row["wrapped"] is None:
            return OpenedVersion(info, None)
        binding = bind_material(self._store_id, info.key_name, info.number, info.version_id)
        material = self._custodian.unwrap(row["wrapped"], binding)
        key = VersionKey(info.key_name, info.number, info.version_id, material)
        return OpenedVersion(info, key)

    def require_opens(self, row: Row, material: bytes) -> OpenedVersion:
        """Return the version that a row holds, if it is the one that was made.

        To be asked of what was read back, before it is committed: a version that can't be opened
        later would lose all that is sealed under it.

        Raises:
            CustodyError: It isn't, or doesn't open.
        """
        opened = self.open_version(row)
        if opened.material is None or not hmac.compare_digest(opened.material.material, material):
            raise CustodyError(
                "a new key version did not unwrap to what was wrapped; it was not stored",
                remedy="check this host's memory and the root key's custodian",
            )
        return opened


def describe_key(key: Row, current: Row) -> KeyInfo:
    """Return what checked rows of a key and of its current version say."""
    return KeyInfo(
        name=KeyName(key["name"]),
        current_number=VersionNumber(key["current_number"]),
        version_count=key["last_number"],
        created_at=from_microseconds(key["created_at"]),
        rotated_at=from_microseconds(current["activated_at"]),
        pending_number=None
        if key["pending_number"] is None
        else VersionNumber(key["pending_number"]),
    )


def describe_version(row: Row) -> VersionInfo:
    """Return what a checked row of a version says."""
    return VersionInfo(
        key_name=KeyName(row["key_name"]),
        number=VersionNumber(row["number"]),
        version_id=row["version_id"],
        state=VersionState(row["state"]),
        created_at=from_microseconds(row["created_at"]),
        activated_at=_moment(row["activated_at"]),
        archived_at=_moment(row["archived_at"]),
        made_by_uid=row["made_by_uid"],
        created_observed_s=_seconds(row["created_observed"]),
        activated_observed_s=_seconds(row["activated_observed"]),
        disabled_at=_moment(row["disabled_at"]),
        disabled_by_uid=row["disabled_by_uid"],
        destroy_requested_at=_moment(row["destroy_requested_at"]),
        destroy_requested_by_uid=row["destroy_requested_by_uid"],
        destroy_due_s=_seconds(row["destroy_due"]),
        destroyed_at=_moment(row["destroyed_at"]),
    )


def _moment(value: int | None) -> datetime | None:
    return None if value is None else from_microseconds(value)


def _seconds(value_us: int | None) -> float | None:
    return None if value_us is None else value_us / 1_000_000
