"""Between this package's values and the protos' messages; the only place that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from keyside._translate import translate_item
from keyside.errors import InvalidArgument
from keyside.facts import (
    Caller,
    Key,
    KeyStatus,
    KeyVersion,
    KeyVersionState,
    Problem,
    RolloverPolicy,
    Rotation,
    Serving,
    Severity,
    SidecarProcess,
    Status,
    VersionChange,
    VersionUsage,
)
from keyside.names import parse_key_name
from keyside.v1 import encryption_pb2, keys_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

MAX_PAGE_SIZE: Final = 1000
MAX_VERSION: Final = 2**32 - 1

_VersionRequest = TypeVar(
    "_VersionRequest",
    keys_pb2.DisableVersionRequest,
    keys_pb2.EnableVersionRequest,
    keys_pb2.DestroyVersionRequest,
    keys_pb2.CancelDestroyVersionRequest,
)


class ChangeMessage(Protocol):
    """What the answers to the changes of a version have in common."""

    @property
    def version(self) -> keys_pb2.KeyVersion:
        """The version now."""

    @property
    def unacknowledged(self) -> Iterable[keys_pb2.SidecarProcess]:
        """Who has not acknowledged."""


def encrypt_request(
    key: str, plaintext: bytes | bytearray | memoryview, context: Mapping[str, str] | None
) -> encryption_pb2.EncryptRequest:
    """Build an EncryptRequest.

    Raises:
        InvalidArgument: A value is of another type, or the key's name is not valid.
    """
    return encryption_pb2.EncryptRequest(
        key=parse_key_name(key),
        plaintext=as_bytes("plaintext", plaintext),
        context=as_context(context),
    )


def decrypt_request(
    envelope: bytes | bytearray | memoryview, context: Mapping[str, str] | None
) -> encryption_pb2.DecryptRequest:
    """Build a DecryptRequest.

    Raises:
        InvalidArgument: A value is of another type.
    """
    return encryption_pb2.DecryptRequest(
        envelope=as_bytes("envelope", envelope), context=as_context(context)
    )


def rewrap_request(envelope: bytes | bytearray | memoryview) -> encryption_pb2.RewrapRequest:
    """Build a RewrapRequest.

    Raises:
        InvalidArgument: The envelope is of another type.
    """
    return encryption_pb2.RewrapRequest(envelope=as_bytes("envelope", envelope))


def reencrypt_request(
    envelope: bytes | bytearray | memoryview, context: Mapping[str, str] | None
) -> encryption_pb2.ReencryptRequest:
    """Build a ReencryptRequest.

    Raises:
        InvalidArgument: A value is of another type.
    """
    return encryption_pb2.ReencryptRequest(
        envelope=as_bytes("envelope", envelope), context=as_context(context)
    )


def get_key_request(name: str, page_size: int, page_token: str = "") -> keys_pb2.GetKeyRequest:
    """Build a GetKeyRequest.

    Raises:
        InvalidArgument: The name is not valid, or the page's size is not 1 to 1,000.
    """
    if not isinstance(page_size, int) or not 1 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument(f"page_size is a number from 1 to {MAX_PAGE_SIZE}")
    return keys_pb2.GetKeyRequest(
        name=parse_key_name(name), page_size=page_size, page_token=page_token
    )


def rotate_request(
    name: str, expected_current: int | None, *, compromised: bool
) -> keys_pb2.RotateKeyRequest:
    """Build a RotateKeyRequest.

    Raises:
        InvalidArgument: The name is not valid, or the number is no version's.
    """
    if expected_current is not None:
        _check_number("expected_current", expected_current)
    return keys_pb2.RotateKeyRequest(
        name=parse_key_name(name),
        expected_current=expected_current or 0,
        compromised=bool(compromised),
    )


def version_request(kind: type[_VersionRequest], name: str, number: int) -> _VersionRequest:
    """Build a request of that kind, about one version.

    Raises:
        InvalidArgument: The name is not valid, or the number is no version's.
    """
    _check_number("number", number)
    return kind(name=parse_key_name(name), number=number)


def read_key(message: keys_pb2.Key) -> Key:
    """Return the proto's key as a value."""
    return Key(
        name=message.name,
        current_version=message.current_version,
        version_count=message.version_count,
        created_at=read_time(message.created_at, given=message.HasField("created_at")),
        rotated_at=read_time(message.rotated_at, given=message.HasField("rotated_at")),
        suite=message.suite,
        pending_version=message.pending_version or None,
        rollover=_read_policy(message.rollover) if message.HasField("rollover") else None,
        next_rollover_at=read_time(
            message.next_rollover_at, given=message.HasField("next_rollover_at")
        ),
        change_refused=(
            translate_item(message.change_refused) if message.HasField("change_refused") else None
        ),
    )


def read_version(message: keys_pb2.KeyVersion) -> KeyVersion:
    """Return the proto's key version as a value."""
    has = message.HasField
    return KeyVersion(
        number=message.number,
        id=message.id.hex(),
        state=_state(message.state),
        created_at=read_time(message.created_at, given=has("created_at")),
        activated_at=read_time(message.activated_at, given=has("activated_at")),
        archived_at=read_time(message.archived_at, given=has("archived_at")),
        made_by_uid=message.made_by_uid if has("made_by_uid") else None,
        disabled_at=read_time(message.disabled_at, given=has("disabled_at")),
        disabled_by_uid=message.disabled_by_uid if has("disabled_by_uid") else None,
        destroy_requested_at=read_time(
            message.destroy_requested_at, given=has("destroy_requested_at")
        ),
        destroy_requested_by_uid=(
            message.destroy_requested_by_uid if has("destroy_requested_by_uid") else None
        ),
        destroy_in=read_duration(message.destroy_in) if has("destroy_in") else None,
        destroyed_at=read_time(message.destroyed_at, given=has("destroyed_at")),
        usage=_read_usage(message.usage) if has("usage") else None,
    )


def read_rotation(message: keys_pb2.RotateKeyResponse) -> Rotation:
    """Return what the rollover did."""
    return Rotation(
        read_key(message.key),
        read_version(message.version),
        read_version(message.previous),
        _read_processes(message.unacknowledged),
    )


def read_change(message: ChangeMessage) -> VersionChange:
    """Return what a change of one version did."""
    return VersionChange(read_version(message.version), _read_processes(message.unacknowledged))


def read_cancellation(message: keys_pb2.CancelDestroyVersionResponse) -> VersionChange:
    """Return what calling a destruction off did."""
    return VersionChange(read_version(message.version))


def read_status(message: status_pb2.GetStatusResponse) -> Status:
    """Return the proto's status as a value."""
    return Status(
        serving=_serving(message.serving),
        version=message.version,
        started_at=read_time(message.started_at, given=message.HasField("started_at")),
        problems=tuple(
            Problem(
                reason=problem.reason,
                summary=problem.summary,
                remedy=problem.remedy,
                since=read_time(problem.since, given=problem.HasField("since")),
                blocking=problem.blocking,
                severity=_severity(problem.severity),
            )
            for problem in message.problems
        ),
        you=_read_caller(message.you) if message.HasField("you") else None,
        keys=tuple(KeyStatus(key.name, key.current_version, key.ready) for key in message.keys),
    )


def _read_policy(message: keys_pb2.RolloverPolicy) -> RolloverPolicy:
    return RolloverPolicy(
        rotate_every=read_duration(message.rotate_every),
        rotate_after_messages=message.rotate_after_messages or None,
        rotate_after_bytes=message.rotate_after_bytes or None,
        propagation=read_duration(message.propagation),
    )


def _read_usage(message: keys_pb2.VersionUsage) -> VersionUsage:
    return VersionUsage(
        last_sealed_at=read_time(message.last_sealed_at, given=message.HasField("last_sealed_at")),
        last_opened_at=read_time(message.last_opened_at, given=message.HasField("last_opened_at")),
        messages=message.messages,
        plaintext_bytes=message.plaintext_bytes,
    )


def _read_processes(messages: Iterable[keys_pb2.SidecarProcess]) -> tuple[SidecarProcess, ...]:
    return tuple(
        SidecarProcess(one.host, one.pid, read_time(one.seen_at, given=one.HasField("seen_at")))
        for one in messages
    )


def _read_caller(message: status_pb2.CallerIdentity) -> Caller:
    return Caller(
        pid=message.pid,
        uid=message.uid,
        gid=message.gid,
        account=message.account,
        login_uid=message.login_uid if message.HasField("login_uid") else None,
        refused=message.refused,
        remedy=message.remedy,
    )


def _state(number: keys_pb2.KeyVersionState.ValueType) -> KeyVersionState:
    try:
        name = keys_pb2.KeyVersionState.Name(number)
        return KeyVersionState[name.removeprefix("KEY_VERSION_STATE_")]
    except (KeyError, ValueError):
        return KeyVersionState.UNKNOWN


def _serving(number: status_pb2.Serving.ValueType) -> Serving:
    try:
        return Serving[status_pb2.Serving.Name(number).removeprefix("SERVING_")]
    except (KeyError, ValueError):
        return Serving.UNKNOWN


def _severity(number: status_pb2.ProblemSeverity.ValueType) -> Severity:
    try:
        name = status_pb2.ProblemSeverity.Name(number)
        return Severity[name.removeprefix("PROBLEM_SEVERITY_")]
    except (KeyError, ValueError):
        return Severity.UNKNOWN


def read_time(message: Timestamp, *, given: bool) -> datetime | None:
    """Return the proto's time in UTC; ``None`` where it was not given or is beyond all dates."""
    try:
        return message.ToDatetime(tzinfo=UTC) if given else None
    except (ValueError, OverflowError):
        return None


def read_duration(message: Duration) -> timedelta:
    """Return the proto's duration, or the longest where it is longer than that."""
    try:
        return message.ToTimedelta()
    except (ValueError, OverflowError):
        return timedelta.max


def _check_number(field: str, number: int) -> None:
    if not isinstance(number, int) or not 1 <= number <= MAX_VERSION:
        raise InvalidArgument(f"{field} is a version's number, 1 or more")


def as_bytes(field: str, value: bytes | bytearray | memoryview) -> bytes:
    """Return a value's bytes.

    Raises:
        InvalidArgument: It is of another type.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise InvalidArgument(f"{field} is bytes, not {type(value).__name__}")


def as_context(context: Mapping[str, str] | None) -> dict[str, str]:
    """Return a context's pairs; the sidecar knows their bounds.

    Raises:
        InvalidArgument: It is no mapping of valid text to valid text.
    """
    if context is not None and not isinstance(context, Mapping):
        raise InvalidArgument(f"context maps text to text; it is no {type(context).__name__}")
    pairs = dict(context or {})
    for name, value in pairs.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidArgument("context maps text to text")
        try:
            name.encode()
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument("context holds text that is not valid Unicode") from None
    return pairs
