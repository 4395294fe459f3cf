"""keyside.v1.KeyService as messages: requests to commands, results to responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.v1 import keys_pb2 as pb
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.api.rows import Row
from keyside_sidecar.api.v1.status import make_status
from keyside_sidecar.api.v1.times import make_duration, make_timestamp
from keyside_sidecar.server.call import Keeps
from keyside_sidecar.services.batches import read_key
from keyside_sidecar.services.keys import AboutVersion, GetKey, ListKeys, RotateKey

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from keyside_sidecar.keys import SidecarInfo
    from keyside_sidecar.services.keys import (
        ChangedVersion,
        KeyList,
        KeyPage,
        KeyView,
        RotatedKey,
        VersionView,
    )

    _AboutVersion: TypeAlias = (
        pb.DisableVersionRequest
        | pb.EnableVersionRequest
        | pb.DestroyVersionRequest
        | pb.CancelDestroyVersionRequest
    )


def _change(name: str, operation: Operation, event: str) -> Row:
    return Row(name, operation, f"key.{event}", Keeps.ACTION)


SERVICE: Final = pb.DESCRIPTOR.services_by_name["KeyService"]
ROWS: Final = (
    Row("ListKeys", Operation.LIST_KEYS),
    Row("GetKey", Operation.DESCRIBE_KEY),
    _change("RotateKey", Operation.ROTATE_KEY, "rotate"),
    _change("DisableVersion", Operation.DISABLE_VERSION, "disable"),
    _change("EnableVersion", Operation.ENABLE_VERSION, "enable"),
    _change("DestroyVersion", Operation.DESTROY_VERSION, "destroy"),
    _change("CancelDestroyVersion", Operation.CANCEL_DESTROY_VERSION, "cancel_destroy"),
)


def read_list_keys(_request: pb.ListKeysRequest) -> ListKeys:
    """Return what is asked for."""
    return ListKeys()


def write_list_keys(found: KeyList) -> pb.ListKeysResponse:
    """Return the response."""
    return pb.ListKeysResponse(keys=[_make_key(key) for key in found.keys])


def read_get_key(request: pb.GetKeyRequest) -> GetKey:
    """Return what is asked for.

    Raises:
        BadRequest: The key is none.
    """
    return GetKey(read_key(request.name, "name"), request.page_size, request.page_token)


def write_get_key(page: KeyPage) -> pb.GetKeyResponse:
    """Return the response."""
    return pb.GetKeyResponse(
        key=_make_key(page.key),
        versions=[make_version(version) for version in page.versions],
        next_page_token=page.next_page_token,
    )


def read_rotate_key(request: pb.RotateKeyRequest) -> RotateKey:
    """Return what is asked for.

    Raises:
        BadRequest: The key is none.
    """
    return RotateKey(read_key(request.name, "name"), request.expected_current, request.compromised)


def write_rotate_key(rotated: RotatedKey) -> pb.RotateKeyResponse:
    """Return the response."""
    return pb.RotateKeyResponse(
        key=_make_key(rotated.key),
        version=make_version(rotated.version),
        previous=make_version(rotated.previous),
        unacknowledged=_make_processes(rotated.unacknowledged),
    )


def _read_version(request: _AboutVersion) -> AboutVersion:
    """Return what is asked for.

    Raises:
        BadRequest: The key is none.
    """
    return AboutVersion(read_key(request.name, "name"), request.number)


read_disable_version = _read_version
read_enable_version = _read_version
read_destroy_version = _read_version
read_cancel_destroy_version = _read_version


def write_disable_version(changed: ChangedVersion) -> pb.DisableVersionResponse:
    """Return the response."""
    return pb.DisableVersionResponse(
        version=make_version(changed.version),
        unacknowledged=_make_processes(changed.unacknowledged),
    )


def write_enable_version(changed: ChangedVersion) -> pb.EnableVersionResponse:
    """Return the response."""
    return pb.EnableVersionResponse(
        version=make_version(changed.version),
        unacknowledged=_make_processes(changed.unacknowledged),
    )


def write_destroy_version(changed: ChangedVersion) -> pb.DestroyVersionResponse:
    """Return the response."""
    return pb.DestroyVersionResponse(
        version=make_version(changed.version),
        unacknowledged=_make_processes(changed.unacknowledged),
    )


def write_cancel_destroy_version(changed: ChangedVersion) -> pb.CancelDestroyVersionResponse:
    """Return the response."""
    return pb.CancelDestroyVersionResponse(version=make_version(changed.version))


def _make_key(key: KeyView) -> pb.Key:
    info = key.info
    refused = key.change_refused
    return pb.Key(
        name=info.name,
        current_version=info.current_number,
        version_count=info.version_count,
        created_at=make_timestamp(info.created_at),
        rotated_at=make_timestamp(info.rotated_at),
        suite=key.suite,
        pending_version=info.pending_number or 0,
        rollover=pb.RolloverPolicy(
            rotate_every=make_duration(key.rollover.rotate_every_s),
            rotate_after_messages=key.rollover.rotate_after_messages or 0,
            rotate_after_bytes=key.rollover.rotate_after_bytes or 0,
            propagation=make_duration(key.rollover.propagation_s),
        ),
        next_rollover_at=make_timestamp(key.next_rollover_at),
        change_refused=None if refused is None else make_status(refused),
    )


def make_version(version: VersionView) -> pb.KeyVersion:
    """Return a version's message."""
    info, usage = version.info, version.usage
    message = pb.KeyVersion(
        number=info.number,
        id=info.version_id,
        state=pb.KeyVersionState.Value(f"KEY_VERSION_STATE_{info.state}"),
        created_at=make_timestamp(info.created_at),
        activated_at=make_timestamp(info.activated_at),
        archived_at=make_timestamp(info.archived_at),
        made_by_uid=info.made_by_uid,
        disabled_at=make_timestamp(info.disabled_at),
        disabled_by_uid=info.disabled_by_uid,
        destroy_requested_at=make_timestamp(info.destroy_requested_at),
        destroy_requested_by_uid=info.destroy_requested_by_uid,
        destroyed_at=make_timestamp(info.destroyed_at),
    )
    if version.destroy_in_s is not None:
        message.destroy_in.CopyFrom(make_duration(version.destroy_in_s))
    if usage is not None:
        message.usage.CopyFrom(
            pb.VersionUsage(
                last_sealed_at=make_timestamp(usage.last_sealed_at),
                last_opened_at=make_timestamp(usage.last_opened_at),
                messages=usage.messages,
                plaintext_bytes=usage.plaintext_bytes,
            )
        )
    return message


def _make_processes(sidecars: Iterable[SidecarInfo]) -> list[pb.SidecarProcess]:
    """Return the messages of processes that have not acknowledged a change."""
    return [
        pb.SidecarProcess(
            host=sidecar.host, pid=sidecar.pid, seen_at=make_timestamp(sidecar.seen_at)
        )
        for sidecar in sidecars
    ]
