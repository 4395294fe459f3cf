"""Weaknesses of a host and a configuration: what ``keysided check`` and ``status`` tell alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keyside_sidecar.peer.pidfd import kernel_gives_peer_pidfd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside_sidecar.config import Config


@dataclass(frozen=True, slots=True)
class Weakness:
    """Something that holds for a whole run and blocks nothing.

    Args:
        reason: A constant of severity.py's table.
        summary: One sentence.
        remedy: What to do about it.
    """

    reason: str
    summary: str
    remedy: str


def describe_unlocked_memory(why: str) -> Weakness:
    """Return what it means that key material is not locked into memory: swap makes it grave.

    Args:
        why: Why it is not.
    """
    if _has_swap():
        return Weakness(
            "KEYS_MAY_BE_SWAPPED",
            f"memory is not locked and the host has swap: keys may be written to it ({why})",
            "set LimitMEMLOCK=infinity in the service's unit, or encrypt the swap",
        )
    return Weakness(
        "MEMORY_NOT_LOCKED",
        f"memory is not locked; the host has no swap that keys could be written to ({why})",
        "set LimitMEMLOCK=infinity in the service's unit before the host gets swap",
    )


def find_person_logins_off(config: Config) -> Iterator[Weakness]:
    """Yield what it means that people's processes are served, where they are."""
    if config.identity.person_logins == "off":
        yield Weakness(
            "PERSON_LOGINS_OFF",
            "people's own processes are served like services",
            'set identity.person_logins = "refuse" outside a developer\'s machine',
        )


def find_pidfd_fallback() -> Iterator[Weakness]:
    """Yield what it means that the kernel does not hand over callers' processes."""
    if not kernel_gives_peer_pidfd():
        yield Weakness(
            "PEER_PIDFD_FALLBACK",
            "this kernel has no SO_PEERPIDFD; callers' processes are found by number",
            "use Linux 6.5 or newer",
        )


def _has_swap() -> bool:
    try:
        return len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) > 1
    except (OSError, ValueError):
        return True
