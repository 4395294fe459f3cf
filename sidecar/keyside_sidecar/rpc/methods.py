"""Every RPC that the sidecar answers, and the operation that policy is asked about.

An RPC that has no row here does not exist for any caller: gRPC answers UNIMPLEMENTED. A row whose
operation policy does not list is refused (access/policy.py).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from keyside_sidecar.access.policy import Operation


class KeyFrom(enum.Enum):
    """Where a request names the key that it is about."""

    NOWHERE = enum.auto()
    KEY_FIELD = enum.auto()
    NAME_FIELD = enum.auto()
    ENVELOPE = enum.auto()
    WRAPPED_FIELD = enum.auto()
    # Each item of a batch names its own, in the field that its RPC for one item has.
    ITEMS = enum.auto()


class Kept(enum.Enum):
    """What the audit log keeps of an RPC, beside refusals, which it keeps of all."""

    NOTHING = enum.auto()
    # One record, written behind: a service's call.
    CALL = enum.auto()
    # What is asked for, before it takes effect, and its outcome, before anything is answered (I8).
    ACTION = enum.auto()


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC.

    Args:
        service: The full service name, such as ``keyside.v1.KeyService``.
        name: The RPC's name.
        operation: What policy is asked about.
        key_from: Where the request names its key.
        public: Answered on connections of callers who are allowed nothing, too.
        kept: What the audit log keeps of it.
        event: What the audit log calls it; empty where it keeps nothing.
        grantable: A grant may allow it to a person.
    """

    service: str
    name: str
    operation: Operation
    key_from: KeyFrom = KeyFrom.NOWHERE
    public: bool = False
    kept: Kept = Kept.NOTHING
    event: str = ""
    grantable: bool = False

    @property
    def path(self) -> str:
        """The RPC's full name, as gRPC spells it."""
        return f"/{self.service}/{self.name}"


ENCRYPTION_SERVICE: Final = "keyside.v1.EncryptionService"
KEY_SERVICE: Final = "keyside.v1.KeyService"
ACCESS_SERVICE: Final = "keyside.v1.AccessService"
AUDIT_SERVICE: Final = "keyside.v1.AuditService"
STATUS_SERVICE: Final = "keyside.v1.StatusService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
REFLECTION_SERVICE: Final = "grpc.reflection.v1alpha.ServerReflection"


def _encryption(
    name: str, operation: Operation, key_from: KeyFrom, *, grantable: bool = False
) -> Method:
    event = f"encryption.{operation.name.lower()}"
    return Method(
        ENCRYPTION_SERVICE,
        name,
        operation,
        key_from,
        kept=Kept.CALL,
        event=event,
        grantable=grantable,
    )


def _batch(name: str, operation: Operation) -> Method:
    return Method(
        ENCRYPTION_SERVICE,
        name,
        operation,
        KeyFrom.ITEMS,
        kept=Kept.CALL,
        event=f"encryption.batch_{operation.name.lower()}",
        grantable=True,
    )


def _change_of_key(name: str, operation: Operation, event: str) -> Method:
    return Method(
        KEY_SERVICE, name, operation, KeyFrom.NAME_FIELD, kept=Kept.ACTION, event=f"key.{event}"
    )


def _access(
    name: str, operation: Operation, event: str, key_from: KeyFrom = KeyFrom.NOWHERE
) -> Method:
    return Method(
        ACCESS_SERVICE, name, operation, key_from, kept=Kept.ACTION, event=f"access.{event}"
    )


ENCRYPT: Final = _encryption("Encrypt", Operation.ENCRYPT, KeyFrom.KEY_FIELD, grantable=True)
DECRYPT: Final = _encryption("Decrypt", Operation.DECRYPT, KeyFrom.ENVELOPE, grantable=True)
REWRAP: Final = _encryption("Rewrap", Operation.REWRAP, KeyFrom.ENVELOPE, grantable=True)
REENCRYPT: Final = _encryption("Reencrypt", Operation.REENCRYPT, KeyFrom.ENVELOPE)
BATCH_ENCRYPT: Final = _batch("BatchEncrypt", Operation.ENCRYPT)
BATCH_DECRYPT: Final = _batch("BatchDecrypt", Operation.DECRYPT)
BATCH_REWRAP: Final = _batch("BatchRewrap", Operation.REWRAP)
GENERATE_DATA_KEY: Final = _encryption(
    "GenerateDataKey", Operation.GENERATE_DATA_KEY, KeyFrom.KEY_FIELD
)
DECRYPT_DATA_KEY: Final = _encryption(
    "DecryptDataKey", Operation.DECRYPT_DATA_KEY, KeyFrom.WRAPPED_FIELD
)
LIST_KEYS: Final = Method(KEY_SERVICE, "ListKeys", Operation.LIST_KEYS)
GET_KEY: Final = Method(KEY_SERVICE, "GetKey", Operation.DESCRIBE_KEY, KeyFrom.NAME_FIELD)
ROTATE_KEY: Final = _change_of_key("RotateKey", Operation.ROTATE_KEY, "rotate")
DISABLE_VERSION: Final = _change_of_key("DisableVersion", Operation.DISABLE_VERSION, "disable")
ENABLE_VERSION: Final = _change_of_key("EnableVersion", Operation.ENABLE_VERSION, "enable")
DESTROY_VERSION: Final = _change_of_key("DestroyVersion", Operation.DESTROY_VERSION, "destroy")
CANCEL_DESTROY_VERSION: Final = _change_of_key(
    "CancelDestroyVersion", Operation.CANCEL_DESTROY_VERSION, "cancel_destroy"
)
REQUEST_ACCESS: Final = _access(
    "RequestAccess", Operation.REQUEST_ACCESS, "request", KeyFrom.KEY_FIELD
)
CHECK_ACCESS_REQUEST: Final = Method(
    ACCESS_SERVICE, "CheckAccessRequest", Operation.REQUEST_ACCESS, KeyFrom.KEY_FIELD
)
LIST_ACCESS: Final = Method(ACCESS_SERVICE, "ListAccess", Operation.LIST_ACCESS)
GET_ACCESS: Final = Method(ACCESS_SERVICE, "GetAccess", Operation.LIST_ACCESS)
APPROVE_ACCESS: Final = _access("ApproveAccess", Operation.DECIDE_ACCESS, "approve")
DENY_ACCESS: Final = _access("DenyAccess", Operation.DECIDE_ACCESS, "deny")
CANCEL_ACCESS: Final = _access("CancelAccess", Operation.CANCEL_ACCESS, "cancel")
ACTIVATE_ACCESS: Final = _access("ActivateAccess", Operation.ACTIVATE_ACCESS, "activate")
REVOKE_ACCESS: Final = _access("RevokeAccess", Operation.REVOKE_ACCESS, "revoke")
SEARCH_RECORDS: Final = Method(AUDIT_SERVICE, "SearchRecords", Operation.READ_AUDIT)
GET_CHECKPOINT: Final = Method(AUDIT_SERVICE, "GetCheckpoint", Operation.READ_AUDIT)
GET_STATUS: Final = Method(STATUS_SERVICE, "GetStatus", Operation.GET_STATUS, public=True)
HEALTH_CHECK: Final = Method(HEALTH_SERVICE, "Check", Operation.HEALTH, public=True)
HEALTH_LIST: Final = Method(HEALTH_SERVICE, "List", Operation.HEALTH, public=True)
HEALTH_WATCH: Final = Method(HEALTH_SERVICE, "Watch", Operation.HEALTH, public=True)
REFLECTION: Final = Method(REFLECTION_SERVICE, "ServerReflectionInfo", Operation.REFLECT)

METHODS: Final = (
    ENCRYPT,
    DECRYPT,
    REWRAP,
    REENCRYPT,
    BATCH_ENCRYPT,
    BATCH_DECRYPT,
    BATCH_REWRAP,
    GENERATE_DATA_KEY,
    DECRYPT_DATA_KEY,
    LIST_KEYS,
    GET_KEY,
    ROTATE_KEY,
    DISABLE_VERSION,
    ENABLE_VERSION,
    DESTROY_VERSION,
    CANCEL_DESTROY_VERSION,
    REQUEST_ACCESS,
    CHECK_ACCESS_REQUEST,
    LIST_ACCESS,
    GET_ACCESS,
    APPROVE_ACCESS,
    DENY_ACCESS,
    CANCEL_ACCESS,
    ACTIVATE_ACCESS,
    REVOKE_ACCESS,
    SEARCH_RECORDS,
    GET_CHECKPOINT,
    GET_STATUS,
    HEALTH_CHECK,
    HEALTH_LIST,
    HEALTH_WATCH,
    REFLECTION,
)
