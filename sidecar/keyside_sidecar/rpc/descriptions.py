"""What the audit log says of an action, from its request and its answer: facts, never a secret.

Field by field, by name: a field that nobody listed here is not recorded (I7).
"""

from __future__ import annotations

import hashlib
from datetime import UTC
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from keyside.timestamps import format_timestamp
from keyside.v1 import access_pb2
from keyside_sidecar.rpc import methods

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyside_sidecar.rpc.guard import Call
    from keyside_sidecar.rpc.methods import Method

    Describe = Callable[[Any], dict[str, object]]


def describe_request(method: Method, request: Any) -> dict[str, object]:
    """Return the facts that an action's records begin with."""
    return _REQUESTS[method.path](request)


def describe_response(method: Method, response: Any) -> dict[str, object]:
    """Return the facts that the record of an action's outcome adds."""
    describe = _RESPONSES.get(method.path)
    return {} if describe is None else describe(response)


def describe_data_key(call: Call, request: Any, response: Any) -> dict[str, object]:
    """Return what the log says of a data key that was asked for; of its wrapped form, the digest.

    Args:
        call: The call.
        request: A request of GenerateDataKey or DecryptDataKey.
        response: Its answer; None where there is none.
    """
    facts: dict[str, object] = {}
    if call.header is not None:
        facts["version"] = int(call.header.version_number)
        facts["digest"] = hashlib.sha256(call.header.raw).hexdigest()
    elif response is not None:
        facts["version"] = response.version.number
        facts["digest"] = hashlib.sha256(response.wrapped).hexdigest()
    details: dict[str, object] = {}
    if getattr(request, "wrapped_only", False):
        details["wrapped_only"] = True
    if response is not None:
        details["max_age_s"] = response.max_age.seconds
        for name in ("max_messages", "max_bytes"):
            if value := getattr(response, name, 0):
                details[name] = value
    return {**facts, "details": details} if details else facts


def _of_rotation(request: Any) -> dict[str, object]:
    details: dict[str, object] = {"compromised": request.compromised}
    if request.expected_current:
        details["expected_current"] = request.expected_current
    return {"details": details}


def _of_version(request: Any) -> dict[str, object]:
    return {"version": request.number}


def _of_access_request(request: Any) -> dict[str, object]:
    return {"details": _describe_asked(request)}


def _of_decision(request: Any) -> dict[str, object]:
    said = getattr(request, "comment", "") or getattr(request, "reason", "")
    return {"access": request.id, **({"details": {"comment": said}} if said else {})}


def _told_of_rotation(response: Any) -> dict[str, object]:
    return {
        "version": response.version.number,
        "details": {
            "previous": response.previous.number,
            "unacknowledged": _name_processes(response.unacknowledged),
        },
    }


def _told_of_version(response: Any) -> dict[str, object]:
    state = type(response.version).DESCRIPTOR.fields_by_name["state"].enum_type
    name = state.values_by_number[response.version.state].name
    details: dict[str, object] = {"state": name.removeprefix("KEY_VERSION_STATE_")}
    if late := _name_processes(getattr(response, "unacknowledged", ())):
        details["unacknowledged"] = late
    if response.version.HasField("destroy_in"):
        details["destroy_in_s"] = response.version.destroy_in.seconds
    return {"details": details}


def _told_of_access(response: Any) -> dict[str, object]:
    found = response.request
    details: dict[str, object] = {
        "state": _name_enum(access_pb2.AccessState, found.state, "ACCESS_STATE_"),
        "requester": {"uid": found.requester.uid, "account": found.requester.account},
    }
    if found.HasField("expires_at"):
        details["expires_at"] = format_timestamp(found.expires_at.ToDatetime(UTC))
    if found.end_reason:
        details["end_reason"] = found.end_reason
    return {"access": found.id, "key": found.key, "details": details}


def _describe_asked(request: Any) -> dict[str, object]:
    """Return what a requester asks for; the password is not among it."""
    asked: dict[str, object] = {
        "why": request.reason,
        "duration_s": request.duration.seconds,
        "operations": [
            _name_enum(access_pb2.AccessOperation, number, "ACCESS_OPERATION_").lower()
            for number in request.operations
        ],
    }
    if request.ticket:
        asked["ticket"] = request.ticket
    if request.versions:
        asked["versions"] = [[one.first, one.last] for one in request.versions]
    if request.context:
        asked["context"] = dict(request.context)
    if request.max_uses:
        asked["max_uses"] = request.max_uses
    return asked


def _name_enum(kind: Any, number: int, prefix: str) -> str:
    found = kind.DESCRIPTOR.values_by_number.get(number)
    return found.name.removeprefix(prefix) if found is not None else str(number)


def _name_processes(processes: Any) -> list[str]:
    return [f"{process.host}/{process.pid}" for process in processes]


_REQUESTS: Final[Mapping[str, Describe]] = MappingProxyType(
    {
        methods.ROTATE_KEY.path: _of_rotation,
        methods.DISABLE_VERSION.path: _of_version,
        methods.ENABLE_VERSION.path: _of_version,
        methods.DESTROY_VERSION.path: _of_version,
        methods.CANCEL_DESTROY_VERSION.path: _of_version,
        methods.REQUEST_ACCESS.path: _of_access_request,
        methods.APPROVE_ACCESS.path: _of_decision,
        methods.DENY_ACCESS.path: _of_decision,
        methods.CANCEL_ACCESS.path: _of_decision,
        methods.ACTIVATE_ACCESS.path: _of_decision,
        methods.REVOKE_ACCESS.path: _of_decision,
    }
)
_RESPONSES: Final[Mapping[str, Describe]] = MappingProxyType(
    {
        methods.ROTATE_KEY.path: _told_of_rotation,
        methods.DISABLE_VERSION.path: _told_of_version,
        methods.ENABLE_VERSION.path: _told_of_version,
        methods.DESTROY_VERSION.path: _told_of_version,
        methods.CANCEL_DESTROY_VERSION.path: _told_of_version,
        methods.REQUEST_ACCESS.path: _told_of_access,
        methods.APPROVE_ACCESS.path: _told_of_access,
        methods.DENY_ACCESS.path: _told_of_access,
        methods.CANCEL_ACCESS.path: _told_of_access,
        methods.ACTIVATE_ACCESS.path: _told_of_access,
        methods.REVOKE_ACCESS.path: _told_of_access,
    }
)
