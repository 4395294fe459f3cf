"""Keys: shown to whoever may see them, and changed for operators.

An answer to a change shows no usage: what has been done is not to fail on a further question.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyside.names import KeyName
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.errors import BadRequest, Refused
from keyside_sidecar.keys import VersionUsage
from keyside_sidecar.keys.rollover import Moment, compute_next_rollover
from keyside_sidecar.log import event
from keyside_sidecar.services.failures import Failure, describe_failure
from keyside_sidecar.services.shapes import AboutKey, AboutNothing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.config import Config
    from keyside_sidecar.keys import KeyInfo, Keyring, RolloverPolicy, SidecarInfo, VersionInfo
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.services.shapes import Facts

_log = logging.getLogger(__name__)

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class ListKeys(AboutNothing):
    """List the keys that the caller may see."""


@dataclass(frozen=True, slots=True)
class GetKey(AboutKey):
    """Show a key and a page of its versions, newest first.

    Args:
        page_size: How many; 0 for the usual number.
        page_token: Where the page begins; ``""`` for the newest.
    """

    page_size: int
    page_token: str


@dataclass(frozen=True, slots=True)
class RotateKey(AboutKey):
    """Make another version current.

    Args:
        expected_current: Refuse if the current version is another one; 0 for any.
        compromised: Disable the version that was current.
    """

    expected_current: int
    compromised: bool

    def facts(self) -> Facts:
        """Return what was asked for."""
        details: Facts = {"compromised": self.compromised}
        if self.expected_current:
            details["expected_current"] = self.expected_current
        return {"details": details}


@dataclass(frozen=True, slots=True)
class AboutVersion(AboutKey):
    """A change of one version.

    Args:
        number: Its number; 0 is none.
    """

    number: int

    def facts(self) -> Facts:
        """Return the version's number."""
        return {"version": self.number}


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key as a caller is shown it.

    Args:
        info: What the store says of it.
        suite: What seals fresh data.
        rollover: When it rolls over.
        next_rollover_at: When its age will roll it over.
        change_refused: Why the caller may not change it; None where they may.
    """

    info: KeyInfo
    suite: str
    rollover: RolloverPolicy
    next_rollover_at: datetime
    change_refused: Failure | None


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version as a caller is shown it.

    Args:
        info: What the store says of it.
        destroy_in_s: In how many seconds of observed time it will be destroyed; None: it won't be.
        usage: How much it was used; None for not asked.
    """

    info: VersionInfo
    destroy_in_s: float | None
    usage: VersionUsage | None = None


@dataclass(frozen=True, slots=True)
class KeyList:
    """All keys that the caller may see."""

    keys: Sequence[KeyView]

    def facts(self) -> Facts:
        """Return nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A key and a page of its versions; the next page's token, or ``""``."""

    key: KeyView
    versions: Sequence[VersionView]
    next_page_token: str

    def facts(self) -> Facts:
        """Return nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class RotatedKey:
    """A key after a rotation.

    Args:
        key: The key.
        version: The version that is current now.
        previous: The one that it replaced.
        unacknowledged: The processes that may still use what a compromised rotation disabled.
    """

    key: KeyView
    version: VersionView
    previous: VersionView
    unacknowledged: Sequence[SidecarInfo]

    def facts(self) -> Facts:
        """Return both versions' numbers, and who has not acknowledged it."""
        return {
            "version": int(self.version.info.number),
            "details": {
                "previous": int(self.previous.info.number),
                "unacknowledged": _name(self.unacknowledged),
            },
        }


@dataclass(frozen=True, slots=True)
class ChangedVersion:
    """A version after a change.

    Args:
        version: The version.
        unacknowledged: The processes that have not taken the change in.
    """

    version: VersionView
    unacknowledged: Sequence[SidecarInfo] = ()

    def facts(self) -> Facts:
        """Return the version's state, when it will be destroyed, and who does not know yet."""
        details: Facts = {"state": str(self.version.info.state)}
        if late := _name(self.unacknowledged):
            details["unacknowledged"] = late
        if self.version.destroy_in_s is not None:
            details["destroy_in_s"] = int(self.version.destroy_in_s)
        return {"details": details}


class KeyService:
    """Answers about keys, and changes them.

    Args:
        config: For each key's suite.
        policy: For the keys that a caller may see.
        keyring: The key versions.
        clock: For when keys roll over.
    """

    def __init__(self, config: Config, policy: Policy, keyring: Keyring, clock: Clock) -> None:
        self._config = config
        self._policy = policy
        self._keyring = keyring
        self._clock = clock

    async def list_keys(self, caller: Caller, _command: ListKeys) -> KeyList:
        """List the keys that the caller may see.

        Raises:
            StoreUnavailable: The store is away.
        """
        keys = []
        for name in sorted(self._policy.visible_keys(caller)):
            info = await self._keyring.describe(KeyName(name))
            keys.append(self._view(info, await self._find_current(info), caller))
        return KeyList(keys)

    async def get_key(self, caller: Caller, command: GetKey) -> KeyPage:
        """Show a key and a page of its versions, newest first.

        Raises:
            BadRequest: The page size or token is not valid.
            StoreUnavailable: The store is away.
        """
        name = command.key
        if command.page_size > _MAX_PAGE:
            raise BadRequest("page_size", f"is {command.page_size}; at most {_MAX_PAGE}")
        limit = command.page_size or _DEFAULT_PAGE
        before = _parse_page_token(command.page_token)
        info = await self._keyring.describe(name)
        current = await self._find_current(info)
        versions = await self._keyring.versions(name, before=before, limit=limit)
        usage = await self._keyring.read_usage(name, [version.number for version in versions])
        more = len(versions) == limit and versions[-1].number > 1
        return KeyPage(
            self._view(info, current, caller),
            [
                self._view_version(version, usage.get(version.number, VersionUsage()))
                for version in versions
            ],
            str(versions[-1].number) if more else "",
        )

    async def rotate_key(self, caller: Caller, command: RotateKey) -> RotatedKey:
        """Make another version current, and archive its predecessor or disable it.

        Raises:
            RotationConflict: ``expected_current`` is not the current version.
            StoreUnavailable: The store is away; nothing was changed, or the rotation is whole.
        """
        _announce("rotate", caller, command.key, compromised=command.compromised)
        rotation = await self._keyring.rotate(
            command.key,
            actor_uid=caller.uid,
            expected_current=command.expected_current,
            compromised=command.compromised,
        )
        _report(
            "key rotated",
            caller,
            rotation.version,
            level=logging.WARNING if command.compromised else logging.INFO,
            previous=rotation.previous.number,
            compromised=command.compromised,
            unacknowledged=_name(rotation.unacknowledged),
        )
        return RotatedKey(
            self._view(rotation.key, rotation.version, caller),
            self._view_version(rotation.version),
            self._view_version(rotation.previous),
            rotation.unacknowledged,
        )

    async def disable_version(self, caller: Caller, command: AboutVersion) -> ChangedVersion:
        """Refuse a version everywhere.

        Raises:
            BadRequest: The number is no version's.
            NoSuchVersion: The key has no such version.
            VersionInUse: It is the current one.
            WrongState: It is destroyed.
            StoreUnavailable: The store is away; nothing was changed, or all of it was.
        """
        number = _require_number(command)
        _announce("disable", caller, command.key, version=number)
        change = await self._keyring.disable(command.key, number, actor_uid=caller.uid)
        late = change.unacknowledged
        _report("version disabled", caller, change.version, unacknowledged=_name(late))
        return ChangedVersion(self._view_version(change.version), late)

    async def enable_version(self, caller: Caller, command: AboutVersion) -> ChangedVersion:
        """Let a disabled version decrypt again.

        Raises:
            BadRequest: The number is no version's.
            NoSuchVersion: The key has no such version.
            WrongState: It is destroyed, or going to be.
            StoreUnavailable: The store is away; nothing was changed, or all of it was.
        """
        number = _require_number(command)
        _announce("enable", caller, command.key, version=number)
        change = await self._keyring.enable(command.key, number, actor_uid=caller.uid)
        late = change.unacknowledged
        _report("version enabled", caller, change.version, unacknowledged=_name(late))
        return ChangedVersion(self._view_version(change.version), late)

    async def destroy_version(self, caller: Caller, command: AboutVersion) -> ChangedVersion:
        """Disable a version now, and have it destroyed later (I5).

        Raises:
            BadRequest: The number is no version's.
            NoSuchVersion: The key has no such version.
            VersionInUse: It is the current one.
            WrongState: It is destroyed.
            StoreUnavailable: The store is away; nothing was changed, or all of it was.
        """
        number = _require_number(command)
        _announce("destroy", caller, command.key, version=number)
        change = await self._keyring.schedule_destruction(command.key, number, actor_uid=caller.uid)
        late, view = change.unacknowledged, self._view_version(change.version)
        _report(
            "destruction scheduled",
            caller,
            change.version,
            level=logging.WARNING,
            in_s=int(view.destroy_in_s or 0),
            unacknowledged=_name(late),
        )
        return ChangedVersion(view, late)

    async def cancel_destroy_version(self, caller: Caller, command: AboutVersion) -> ChangedVersion:
        """Call a scheduled destruction off.

        Raises:
            BadRequest: The number is no version's.
            NoSuchVersion: The key has no such version.
            WrongState: Nothing is scheduled.
            StoreUnavailable: The store is away; nothing was changed, or all of it was.
        """
        number = _require_number(command)
        _announce("cancel destruction", caller, command.key, version=number)
        change = await self._keyring.cancel_destruction(command.key, number, actor_uid=caller.uid)
        _report("destruction cancelled", caller, change.version)
        return ChangedVersion(self._view_version(change.version))

    async def _find_current(self, info: KeyInfo) -> VersionInfo:
        """Return the current version's facts: those in memory, unless they are of another one."""
        loaded = self._keyring.loaded(info.name)
        if loaded is not None and loaded.current.info.number == info.current_number:
            return loaded.current.info
        before = info.current_number + 1
        (current,) = await self._keyring.versions(info.name, before=before, limit=1)
        return current

    def _view(self, info: KeyInfo, current: VersionInfo, caller: Caller) -> KeyView:
        policy = self._keyring.rules(info.name).rollover
        moment = Moment(self._clock.now(), self._keyring.observed_s())
        refused = self._policy.decide(caller, Operation.ROTATE_KEY, info.name)
        return KeyView(
            info,
            self._config.keys[info.name].suite,
            policy,
            compute_next_rollover(policy, current, moment),
            None if refused is None else describe_failure(Refused(refused), ""),
        )

    def _view_version(self, info: VersionInfo, usage: VersionUsage | None = None) -> VersionView:
        return view_version(info, self._keyring.observed_s(), usage)


def view_version(
    info: VersionInfo, observed_s: float, usage: VersionUsage | None = None
) -> VersionView:
    """Return a version as it is shown.

    Args:
        info: What the store says of it.
        observed_s: The store's observed time, in seconds.
        usage: How much it was used; None for not asked.
    """
    due_s = info.destroy_due_s
    return VersionView(info, None if due_s is None else max(0.0, due_s - observed_s), usage)


def _require_number(command: AboutVersion) -> int:
    if command.number < 1:
        raise BadRequest("number", "is missing, or 0; versions are numbered from 1")
    return command.number


def _announce(what: str, caller: Caller, key: KeyName, **facts: object) -> None:
    """Log who asks for a change, before it is made: its outcome may never be known here."""
    event(
        _log,
        logging.INFO,
        "key change requested",
        change=what,
        key=key,
        **facts,
        uid=caller.uid,
        login_uid=caller.login_uid,
        pid=caller.pid,
    )


def _report(
    what: str, caller: Caller, version: VersionInfo, *, level: int = logging.INFO, **facts: object
) -> None:
    """Log what an operator has changed."""
    event(
        _log,
        level,
        what,
        key=version.key_name,
        version=version.number,
        uid=caller.uid,
        login_uid=caller.login_uid,
        pid=caller.pid,
        **facts,
    )


def _name(sidecars: Iterable[SidecarInfo]) -> list[str]:
    return [f"{sidecar.host}/{sidecar.pid}" for sidecar in sidecars]


def _parse_page_token(token: str) -> int | None:
    if not token:
        return None
    if not (token.isascii() and token.isdecimal() and len(token) <= 10):  # noqa: PLR2004
        raise BadRequest("page_token", "is not one that this service gave")
    return int(token)
