"""What may be wrong with a worker's parts, as ``status`` and health tell it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from keyside.names import KeyName
from keyside.quantities import count_of
from keyside_sidecar.log import event
from keyside_sidecar.serving import Problem
from keyside_sidecar.severity import severity_of
from keyside_sidecar.weaknesses import find_person_logins_off, find_pidfd_fallback

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.config import Config
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.keys.root_key_watch import RootKeyWatch
    from keyside_sidecar.peer.membership import Membership
    from keyside_sidecar.serving import ServingBoard
    from keyside_sidecar.weaknesses import Weakness

_log: Final = logging.getLogger(__name__)


def describe_weaknesses(board: ServingBoard, config: Config) -> None:
    """Put on the board what the configuration and this kernel weaken for the whole run."""
    for weakness in (*find_person_logins_off(config), *find_pidfd_fallback()):
        add_weakness(board, weakness)


def add_weakness(board: ServingBoard, weakness: Weakness) -> None:
    """Put a weakness on the board, and say so in the log."""
    board.add_standing(weakness.reason, weakness.summary, weakness.remedy)
    event(
        _log,
        severity_of(weakness.reason).log_level,
        "weakened",
        reason=weakness.reason,
        summary=weakness.summary,
        what_to_do=weakness.remedy,
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
            f"of {count_of(len(config.keys), 'key')}, {len(missing):,} "
            f"{'has' if len(missing) == 1 else 'have'} no current version in memory",
            "see the sidecar's log for the store or the root key",
            problem.since if problem is not None else board.started_at,
            blocks_encryption=True,
            summary_for_strangers="not every key is in memory",
        )


def list_root_key_problems(watch: RootKeyWatch) -> Iterable[Problem]:
    """Yield that the root key in use may be nowhere but in memory: an alarm that blocks nothing."""
    found = watch.problem
    if found is not None:
        yield Problem(
            found.reason,
            found.summary,
            found.remedy,
            found.since,
            summary_for_strangers=found.strangers,
            is_alarm=True,
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
