"""What the sidecar tells about keys, as JSON (docs/cli.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.cli.tables import format_time

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from keyside.facts import Key, KeyVersion, SidecarProcess


def key_facts(key: Key) -> dict[str, object]:
    """Return a key's facts."""
    policy = key.rollover
    return {
        "name": key.name,
        "current_version": key.current_version,
        "version_count": key.version_count,
        "created_at": format_time(key.created_at) or None,
        "rotated_at": format_time(key.rotated_at) or None,
        "suite": key.suite,
        "pending_version": key.pending_version,
        "rollover": policy
        and {
            "rotate_every_s": _seconds(policy.rotate_every),
            "rotate_after_messages": policy.rotate_after_messages,
            "rotate_after_bytes": policy.rotate_after_bytes,
            "propagation_s": _seconds(policy.propagation),
        },
        "next_rollover_at": format_time(key.next_rollover_at) or None,
    }


def version_facts(version: KeyVersion) -> dict[str, object]:
    """Return a version's facts."""
    usage = version.usage
    return {
        "number": version.number,
        "id": version.id,
        "state": version.state.value,
        "created_at": format_time(version.created_at) or None,
        "activated_at": format_time(version.activated_at) or None,
        "archived_at": format_time(version.archived_at) or None,
        "made_by_uid": version.made_by_uid,
        "disabled_at": format_time(version.disabled_at) or None,
        "disabled_by_uid": version.disabled_by_uid,
        "destroy_requested_at": format_time(version.destroy_requested_at) or None,
        "destroy_requested_by_uid": version.destroy_requested_by_uid,
        "destroy_in_s": None if version.destroy_in is None else _seconds(version.destroy_in),
        "destroyed_at": format_time(version.destroyed_at) or None,
        "usage": usage
        and {
            "last_sealed_at": format_time(usage.last_sealed_at) or None,
            "last_opened_at": format_time(usage.last_opened_at) or None,
            "messages": usage.messages,
            "plaintext_bytes": usage.plaintext_bytes,
        },
    }


def process_facts(processes: Iterable[SidecarProcess]) -> list[dict[str, object]]:
    """Return the facts of sidecars' processes."""
    return [
        {
            "host": process.host,
            "pid": process.pid,
            "seen_at": format_time(process.seen_at) or None,
        }
        for process in processes
    ]


def _seconds(duration: timedelta) -> int:
    return int(duration.total_seconds())
