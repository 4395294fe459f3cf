"""keyside.v1.KeyService: shows keys, and rolls them over for operators."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp

from keyside.names import KeyName
from keyside.v1 import keys_pb2 as pb
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from datetime import datetime

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.config import Config
    from keyside_sidecar.keys import KeyInfo, Keyring, VersionInfo
    from keyside_sidecar.rpc.guard import Call

_log = logging.getLogger(__name__)

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000


class KeyServicer:
    """Answers about keys and rotates them.

    Args:
        config: For each key's suite.
        policy: For the keys that a caller may see.
        keyring: The key versions.
    """

    def __init__(self, config: Config, policy: Policy, keyring: Keyring) -> None:
        self._config = config
        self._policy = policy
        self._keyring = keyring

    async def list_keys(self, call: Call, _request: pb.ListKeysRequest) -> pb.ListKeysResponse:
        """List the keys that the caller may see.

        Raises:
            StoreUnavailable: The store is away.
        """
        names = sorted(self._policy.visible_keys(call.subject))
        infos = [await self._keyring.describe(KeyName(name)) for name in names]
        return pb.ListKeysResponse(keys=[self._key(info) for info in infos])

    async def get_key(self, call: Call, request: pb.GetKeyRequest) -> pb.GetKeyResponse:
        """Show a key and a page of its versions, newest first.

        Raises:
            BadRequest: The page size or token is not valid.
            StoreUnavailable: The store is away.
        """
        assert call.key is not None  # noqa: S101  (the guard has read it from the request)
        if request.page_size > _MAX_PAGE:
            raise BadRequest("page_size", f"is {request.page_size}; at most {_MAX_PAGE}")
        limit = request.page_size or _DEFAULT_PAGE
        before = _parse_page_token(request.page_token)
        info = await self._keyring.describe(call.key)
        versions = await self._keyring.versions(call.key, before=before, limit=limit)
        more = len(versions) == limit and versions[-1].number > 1
        return pb.GetKeyResponse(
            key=self._key(info),
            versions=[_version(version) for version in versions],
            next_page_token=str(versions[-1].number) if more else "",
        )

    async def rotate_key(self, call: Call, request: pb.RotateKeyRequest) -> pb.RotateKeyResponse:
        """Make a new current version and archive its predecessor.

        Raises:
            RotationConflict: ``expected_current`` is not the current version.
            StoreUnavailable: The store is away; nothing was changed, or the rotation is whole.
        """
        assert call.key is not None  # noqa: S101
        credential = call.connection.credential
        rotation = await self._keyring.rotate(
            call.key, actor_uid=credential.uid, expected_current=request.expected_current
        )
        event(
            _log,
            logging.INFO,
            "key rotated",
            key=call.key,
            version=rotation.version.number,
            previous=rotation.previous.number,
            uid=credential.uid,
            login_uid=credential.login_uid,
            pid=credential.pid,
        )
        return pb.RotateKeyResponse(
            key=self._key(rotation.key),
            version=_version(rotation.version),
            previous=_version(rotation.previous),
        )

    def _key(self, info: KeyInfo) -> pb.Key:
        return pb.Key(
            name=info.name,
            current_version=info.current_number,
            version_count=info.version_count,
            created_at=_timestamp(info.created_at),
            rotated_at=_timestamp(info.rotated_at),
            suite=self._config.keys[info.name].suite,
        )


def _version(info: VersionInfo) -> pb.KeyVersion:
    return pb.KeyVersion(
        number=info.number,
        id=info.version_id,
        state=pb.KeyVersionState.Value(f"KEY_VERSION_STATE_{info.state}"),
        created_at=_timestamp(info.created_at),
        activated_at=_timestamp(info.activated_at),
        archived_at=_timestamp(info.archived_at),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _parse_page_token(token: str) -> int | None:
    if not token:
        return None
    if not (token.isascii() and token.isdecimal() and len(token) <= 10):  # noqa: PLR2004
        raise BadRequest("page_token", "is not one that this service gave")
    return int(token)
