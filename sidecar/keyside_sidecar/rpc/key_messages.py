"""Keys and versions as keyside.v1's messages."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from keyside.v1 import keys_pb2 as pb
from keyside_sidecar.errors import Refused
from keyside_sidecar.rpc.status import describe_failure

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from keyside_sidecar.access.reasons import Reason
    from keyside_sidecar.keys import (
        KeyInfo,
        RolloverPolicy,
        SidecarInfo,
        VersionInfo,
        VersionUsage,
    )


def make_key(
    info: KeyInfo,
    *,
    suite: str,
    policy: RolloverPolicy,
    next_rollover_at: datetime,
    change_refused: Reason | None = None,
) -> pb.Key:
    """Return a key's message.

    Args:
        info: What the store says of it.
        suite: What seals fresh data.
        policy: When it rolls over.
        next_rollover_at: When its age will roll it over.
        change_refused: Why whoever asks may not change it; None where they may.
    """
    return pb.Key(
        name=info.name,
        current_version=info.current_number,
        version_count=info.version_count,
        created_at=_make_timestamp(info.created_at),
        rotated_at=_make_timestamp(info.rotated_at),
        suite=suite,
        pending_version=info.pending_number or 0,
        rollover=pb.RolloverPolicy(
            rotate_every=_make_duration(policy.rotate_every_s),
            rotate_after_messages=policy.rotate_after_messages or 0,
            rotate_after_bytes=policy.rotate_after_bytes or 0,
            propagation=_make_duration(policy.propagation_s),
        ),
        next_rollover_at=_make_timestamp(next_rollover_at),
        change_refused=change_refused and describe_failure(Refused(change_refused), "").status(),
    )


def make_version(
    info: VersionInfo, *, observed_s: float, usage: VersionUsage | None = None
) -> pb.KeyVersion:
    """Return a version's message.

    Args:
        info: What the store says of it.
        observed_s: The store's observed time, in seconds.
        usage: How much it was used; None for not asked.
    """
    message = pb.KeyVersion(
        number=info.number,
        id=info.version_id,
        state=pb.KeyVersionState.Value(f"KEY_VERSION_STATE_{info.state}"),
        created_at=_make_timestamp(info.created_at),
        activated_at=_make_timestamp(info.activated_at),
        archived_at=_make_timestamp(info.archived_at),
        made_by_uid=info.made_by_uid,
        disabled_at=_make_timestamp(info.disabled_at),
        disabled_by_uid=info.disabled_by_uid,
        destroy_requested_at=_make_timestamp(info.destroy_requested_at),
        destroy_requested_by_uid=info.destroy_requested_by_uid,
        destroyed_at=_make_timestamp(info.destroyed_at),
    )
    if info.destroy_due_s is not None:
        message.destroy_in.CopyFrom(_make_duration(max(0.0, info.destroy_due_s - observed_s)))
    if usage is not None:
        message.usage.CopyFrom(
            pb.VersionUsage(
                last_sealed_at=_make_timestamp(usage.last_sealed_at),
                last_opened_at=_make_timestamp(usage.last_opened_at),
                messages=usage.messages,
                plaintext_bytes=usage.plaintext_bytes,
            )
        )
    return message


def make_processes(sidecars: Iterable[SidecarInfo]) -> list[pb.SidecarProcess]:
    """Return the messages of processes that have not acknowledged a change."""
    return [
        pb.SidecarProcess(
            host=sidecar.host, pid=sidecar.pid, seen_at=_make_timestamp(sidecar.seen_at)
        )
        for sidecar in sidecars
    ]


def _make_timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _make_duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
