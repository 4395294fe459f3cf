"""What may be wrong with a worker's parts, as ``status`` and health tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.names import KeyName
from keyside_sidecar.peer.pidfd import kernel_gives_peer_pidfd
from keyside_sidecar.serving import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.config import Config
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.peer.membership import Membership
    from keyside_sidecar.serving import ServingBoard


def describe_weaknesses(board: ServingBoard, config: Config) -> None:
    """Put on the board what the configuration and this kernel weaken for the whole run."""
    if config.identity.person_logins == "off":
        board.add_standing(
            "PERSON_LOGINS_OFF",
            "people's own processes are served like services",
            'set identity.person_logins = "refuse" outside a developer\'s machine',
        )
    if not kernel_gives_peer_pidfd():
        board.add_standing(
            "PEER_PIDFD_FALLBACK",
            "this kernel has no SO_PEERPIDFD; callers' processes are found by number",
            "use Linux 6.5 or newer",
        )


def list_keyring_problems(
    keyring: Keyring, config: Config, board: ServingBoard
) -> Iterable[Problem]:
    """Yield what is wrong with the store and the keys."""
    missing = [name for name in config.keys if keyring.current_number(KeyName(name)) is None]
    problem = keyring.store_problem
    if problem is not None:
        yield Problem(
            problem.reason,
            problem.summary,
            f"{problem.remedy}; what is in memory goes on being served meanwhile",
            problem.since,
            blocks_keys=True,
            is_alarm=problem.reason == "STORE_TAMPERED",
            summary_for_strangers="the key store can't be used or trusted",
        )
    for notice in keyring.problems():
        yield Problem(
            notice.reason,
            notice.summary,
            notice.remedy,
            notice.since,
            summary_for_strangers=notice.strangers,
        )
    if missing:
        yield Problem(
            "KEYS_NOT_READY",
            f"{len(missing)} of {len(config.keys)} keys have no current version in memory",
            "see the sidecar's log for the store or the root key",
            problem.since if problem is not None else board.started_at,
            blocks_encryption=True,
            summary_for_strangers="not every key is in memory",
        )


def list_audit_problems(audit: AuditSender) -> Iterable[Problem]:
    """Yield what keeps the audit log from being written (I8)."""
    problem = audit.problem
    if problem is not None:
        yield Problem(
            problem.reason,
            problem.summary,
            problem.remedy,
            problem.since,
            blocks_encryption=problem.refuses_service_calls,
            blocks_keys=True,
            is_alarm=True,
            summary_for_strangers="the audit log can't be written to",
        )


def list_membership_problems(membership: Membership) -> Iterable[Problem]:
    """Yield whether the name service is away."""
    since = membership.outage_since
    if since is not None:
        yield Problem(
            "NAME_SERVICE_UNAVAILABLE",
            "the name service that knows accounts' groups is away",
            "restore it; accounts looked up lately are served until membership_stale_max",
            since,
        )
