"""keyside.v1.KeyService: shows keys, and changes them for operators.

An answer to a change shows no usage: what has been done is not to fail on a further question.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from keyside.names import KeyName
from keyside.v1 import keys_pb2 as pb
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.keys import VersionUsage
from keyside_sidecar.keys.rollover import Moment, compute_next_rollover
from keyside_sidecar.log import event
from keyside_sidecar.rpc.key_messages import make_key, make_processes, make_version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.config import Config
    from keyside_sidecar.keys import KeyInfo, Keyring, SidecarInfo, VersionInfo
    from keyside_sidecar.rpc.guard import Call

_log = logging.getLogger(__name__)

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000


class KeyServicer:
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

    async def list_keys(self, call: Call, _request: pb.ListKeysRequest) -> pb.ListKeysResponse:
        """List the keys that the caller may see.

        Raises:
            StoreUnavailable: The store is away.
        """
        keys = []
        for name in sorted(self._policy.visible_keys(call.subject)):
            info = await self._keyring.describe(KeyName(name))
            keys.append(self._key(info, await self._find_current(info), call))
        return pb.ListKeysResponse(keys=keys)

    async def get_key(self, call: Call, request: pb.GetKeyRequest) -> pb.GetKeyResponse:
        """Show a key and a page of its versions, newest first.

        Raises:
            BadRequest: The page size or token is not valid.
            StoreUnavailable: The store is away.
        """
        name = _key_of(call)
        if request.page_size > _MAX_PAGE:
            raise BadRequest("page_size", f"is {request.page_size}; at most {_MAX_PAGE}")
        limit = request.page_size or _DEFAULT_PAGE
        before = _parse_page_token(request.page_token)
        info = await self._keyring.describe(name)
        current = await self._find_current(info)
        versions = await self._keyring.versions(name, before=before, limit=limit)
        usage = await self._keyring.read_usage(name, [version.number for version in versions])
        more = len(versions) == limit and versions[-1].number > 1
        return pb.GetKeyResponse(
            key=self._key(info, current, call),
            versions=[
                self._version(version, usage.get(version.number, VersionUsage()))
                for version in versions
            ],
            next_page_token=str(versions[-1].number) if more else "",
        )

    async def rotate_key(self, call: Call, request: pb.RotateKeyRequest) -> pb.RotateKeyResponse:
        """Make another version current, and archive its predecessor or disable it.

        Raises:
            RotationConflict: ``expected_current`` is not the current version.
            StoreUnavailable: The store is away; nothing was changed, or the rotation is whole.
        """
        _announce("rotate", call, compromised=request.compromised)
        rotation = await self._keyring.rotate(
            _key_of(call),
            actor_uid=call.connection.credential.uid,
            expected_current=request.expected_current,
            compromised=request.compromised,
        )
        _report(
            "key rotated",
            call,
            rotation.version,
            level=logging.WARNING if request.compromised else logging.INFO,
            previous=rotation.previous.number,
            compromised=request.compromised,
            unacknowledged=_name(rotation.unacknowledged),
        )
        return pb.RotateKeyResponse(
            key=self._key(rotation.key, rotation.version, call),
            version=self._version(rotation.version),
            previous=self._version(rotation.previous),
            unacknowledged=make_processes(rotation.unacknowledged),
        )

    async def disable_version(
        self, call: Call, request: pb.DisableVersionRequest
    ) -> pb.DisableVersionResponse:
        """Refuse a version everywhere.

        Raises:
            BadRequest: The number is no version's.
            NoSuchVersion: The key has no such version.
            VersionInUse: It is the current one.
            WrongState: It is destroyed.
            StoreUnavailable: The store is away; nothing was changed, or all of it was.
        """
        number = _require_number(request.number)
        uid = call.connection.credential.uid
        _announce("disable", call, version=number)
        change = await self._keyring.disable(_key_of(call), number, actor_uid=uid)
        late = change.unacknowledged
        _report("version disabled", call, change.version, unacknowledged=_name(late))
        return pb.DisableVersionResponse(
            version=self._version(change.version), unacknowledged=make_processes(late)
        )

    async def enable_version(
        self, call: Call, request: pb.EnableVersionRequest
    ) -> pb.EnableVersionResponse:
        """Let a disabled version decrypt again.

        Raises:
            BadRequest: The number is no version's.
            NoSuchVersion: The key has no such version.
            WrongState: It is destroyed, or going to be.
            StoreUnavailable: The store is away; nothing was changed, or all of it was.
        """
        number = _require_number(request.number)
        uid = call.connection.credential.uid
        _announce("enable", call, version=number)
        change = await self._keyring.enable(_key_of(call), number, actor_uid=uid)
        late = change.unacknowledged
        _report("version enabled", call, change.version, unacknowledged=_name(late))
        return pb.EnableVersionResponse(
            version=self._version(change.version), unacknowledged=make_processes(late)
        )

    async def destroy_version(
        self, call: Call, request: pb.DestroyVersionRequest
    ) -> pb.DestroyVersionResponse:
        """Disable a version now, and have it destroyed later (I5).

        Raises:
            BadRequest: The number is no version's.
            NoSuchVersion: The key has no such version.
            VersionInUse: It is the current one.
            WrongState: It is destroyed.
            StoreUnavailable: The store is away; nothing was changed, or all of it was.
        """
        number = _require_number(request.number)
        uid = call.connection.credential.uid
        _announce("destroy", call, version=number)
        change = await self._keyring.schedule_destruction(_key_of(call), number, actor_uid=uid)
        late = change.unacknowledged
        message = self._version(change.version)
        _report(
            "destruction scheduled",
            call,
            change.version,
            level=logging.WARNING,
            in_s=message.destroy_in.seconds,
            unacknowledged=_name(late),
        )
        return pb.DestroyVersionResponse(version=message, unacknowledged=make_processes(late))

    async def cancel_destroy_version(
        self, call: Call, request: pb.CancelDestroyVersionRequest
    ) -> pb.CancelDestroyVersionResponse:
        """Call a scheduled destruction off.

        Raises:
            BadRequest: The number is no version's.
            NoSuchVersion: The key has no such version.
            WrongState: Nothing is scheduled.
            StoreUnavailable: The store is away; nothing was changed, or all of it was.
        """
        number = _require_number(request.number)
        uid = call.connection.credential.uid
        _announce("cancel destruction", call, version=number)
        change = await self._keyring.cancel_destruction(_key_of(call), number, actor_uid=uid)
        _report("destruction cancelled", call, change.version)
        return pb.CancelDestroyVersionResponse(version=self._version(change.version))

    async def _find_current(self, info: KeyInfo) -> VersionInfo:
        """Return the current version's facts: those in memory, unless they are of another one."""
        loaded = self._keyring.loaded(info.name)
        if loaded is not None and loaded.current.info.number == info.current_number:
            return loaded.current.info
        before = info.current_number + 1
        (current,) = await self._keyring.versions(info.name, before=before, limit=1)
        return current

    def _key(self, info: KeyInfo, current: VersionInfo, call: Call) -> pb.Key:
        policy = self._keyring.rules(info.name).rollover
        moment = Moment(self._clock.now(), self._keyring.observed_s())
        return make_key(
            info,
            suite=self._config.keys[info.name].suite,
            policy=policy,
            next_rollover_at=compute_next_rollover(policy, current, moment),
            change_refused=self._policy.decide(call.subject, Operation.ROTATE_KEY, info.name),
        )

    def _version(self, info: VersionInfo, usage: VersionUsage | None = None) -> pb.KeyVersion:
        return make_version(info, observed_s=self._keyring.observed_s(), usage=usage)


def _key_of(call: Call) -> KeyName:
    assert call.key is not None  # noqa: S101  (the guard has read it from the request)
    return call.key


def _require_number(number: int) -> int:
    if number < 1:
        raise BadRequest("number", "is missing, or 0; versions are numbered from 1")
    return number


def _announce(what: str, call: Call, **facts: object) -> None:
    """Log who asks for a change, before it is made: its outcome may never be known here."""
    credential = call.connection.credential
    event(
        _log,
        logging.INFO,
        "key change requested",
        change=what,
        key=call.key,
        **facts,
        uid=credential.uid,
        login_uid=credential.login_uid,
        pid=credential.pid,
    )


def _report(
    what: str, call: Call, version: VersionInfo, *, level: int = logging.INFO, **facts: object
) -> None:
    """Log what an operator has changed."""
    credential = call.connection.credential
    event(
        _log,
        level,
        what,
        key=version.key_name,
        version=version.number,
        uid=credential.uid,
        login_uid=credential.login_uid,
        pid=credential.pid,
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
