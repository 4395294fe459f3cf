"""What a helper is forked for, how it ends, and the exit code that tells the supervisor."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal

Purpose = Literal["authenticate", "account"]


@dataclass(frozen=True, slots=True)
class Errand:
    """What a worker wants asked of PAM.

    Args:
        uid: About whose account.
        purpose: ``"authenticate"``: password, then account management; ``"account"``: account
            management alone, without a password.
    """

    uid: int
    purpose: Purpose


class Outcome(enum.Enum):
    """How an authentication, or the check of an account, has ended."""

    OK = "ok"
    DENIED = "denied"
    LOCKED = "locked"
    EXPIRED = "expired"
    PASSWORD_EXPIRED = "password_expired"  # noqa: S105  (no password)
    UNKNOWN_ACCOUNT = "unknown_account"
    LIMITED = "limited"
    BUSY = "busy"
    UNAVAILABLE = "unavailable"


class Fault(enum.Enum):
    """Why authentication does not work here; the value says so in the log."""

    NO_SERVICE = "PAM has no service of that name"
    SHADOW_UNREADABLE = "the shadow file may not be read"
    NAME_SERVICE_AWAY = "the name service is away"
    PAM_FAILED = "PAM or one of its modules failed"
    NO_PASSWORD_ARRIVED = "the worker sent no whole password"  # noqa: S105  (no password)


REMEDIES: Final = {
    Fault.NO_SERVICE: "make it: keysided files install pam/keyside (where pam_service has another "
    "name than keyside: keysided files show pam/keyside > /etc/pam.d/NAME)",
    Fault.SHADOW_UNREADABLE: "start the sidecar as root with [sidecar] user set, or let its "
    "account into the group shadow where the host has one",
    Fault.NAME_SERVICE_AWAY: "restore the directory service",
    Fault.PAM_FAILED: "see what the module says in the system's log (authpriv)",
    Fault.NO_PASSWORD_ARRIVED: "see whether the worker has ended",
}

# Apart from 0, 1 and 70, and from what a shell makes of signals: a module that calls exit(), or
# Python's own failures, must not pass for an answer.
_FIRST_OUTCOME_CODE: Final = 40
_FIRST_FAULT_CODE: Final = 60
_ENDINGS: Final = tuple(Outcome)
_FAULTS: Final = tuple(Fault)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the helper found.

    Args:
        outcome: How it ended.
        fault: With UNAVAILABLE, why; None where the helper crashed or hung.
    """

    outcome: Outcome
    fault: Fault | None = None

    @property
    def exit_code(self) -> int:
        """What the helper ends with."""
        if self.fault is not None:
            return _FIRST_FAULT_CODE + _FAULTS.index(self.fault)
        return _FIRST_OUTCOME_CODE + _ENDINGS.index(self.outcome)


def read_exit_code(code: int) -> Verdict:
    """Return what a helper found; UNAVAILABLE without a fault where it ended in any other way."""
    for verdict in (
        *(Verdict(outcome) for outcome in _ENDINGS if outcome is not Outcome.UNAVAILABLE),
        *(Verdict(Outcome.UNAVAILABLE, fault) for fault in _FAULTS),
    ):
        if verdict.exit_code == code:
            return verdict
    return Verdict(Outcome.UNAVAILABLE)
