"""Status: what is wrong and since when, and who the sidecar thinks that the caller is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from keyside.names import KeyName
from keyside_sidecar.services.shapes import AboutNothing
from keyside_sidecar.serving import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.access.reasons import Reason
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.services.shapes import Facts
    from keyside_sidecar.serving import Problem, ServingBoard


class Serving(enum.Enum):
    """What the sidecar does now."""

    STARTING = enum.auto()
    YES = enum.auto()
    DEGRADED = enum.auto()
    DRAINING = enum.auto()
    NO = enum.auto()


@dataclass(frozen=True, slots=True)
class GetStatus(AboutNothing):
    """Say what is wrong."""


@dataclass(frozen=True, slots=True)
class KeyReadiness:
    """A key, and its current version's number; None where that is not in memory."""

    name: KeyName
    current_number: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """What is wrong, as far as a caller may know.

    Args:
        serving: What the sidecar does.
        version: The program's; ``""`` for a stranger.
        started_at: When it was started.
        problems: What is wrong.
        is_insider: The caller is allowed something, and may know more.
        caller: Who the sidecar thinks that the caller is …
        refused: … and why it is refused everything, or encryption; None where it isn't.
        keys: The keys that the caller may see.
    """

    serving: Serving
    version: str
    started_at: datetime
    problems: Sequence[Problem]
    is_insider: bool
    caller: Caller
    refused: Reason | None
    keys: Sequence[KeyReadiness]

    def facts(self) -> Facts:
        """Return nothing."""
        return {}


class StatusService:
    """Says how the sidecar is.

    Args:
        board: What is wrong.
        policy: For the keys that the caller may see.
        keyring: For those keys' versions.
    """

    def __init__(self, board: ServingBoard, policy: Policy, keyring: Keyring) -> None:
        self._board = board
        self._policy = policy
        self._keyring = keyring
        self._version = version("keyside")

    async def get_status(self, caller: Caller, _command: GetStatus) -> Status:
        """Say what is wrong. A stranger sees no key facts."""
        insider = self._policy.is_allowed_anything(caller)
        return Status(
            self._find_serving(),
            self._version if insider else "",
            self._board.started_at,
            tuple(self._board.problems()),
            insider,
            caller,
            caller.standing or caller.person,
            [
                KeyReadiness(KeyName(name), self._keyring.current_number(KeyName(name)))
                for name in sorted(self._policy.visible_keys(caller))
            ],
        )

    def _find_serving(self) -> Serving:
        if self._board.phase is Phase.STARTING:
            return Serving.STARTING
        if self._board.phase is Phase.DRAINING:
            return Serving.DRAINING
        if not self._board.serves_encryption():
            return Serving.NO
        return Serving.DEGRADED if self._board.is_degraded() else Serving.YES
