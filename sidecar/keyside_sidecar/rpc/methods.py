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


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC.

    Args:
        service: The full service name, such as ``keyside.v1.KeyService``.
        name: The RPC's name.
        operation: What policy is asked about.
        key_from: Where the request names its key.
        public: Answered on connections of callers who are allowed nothing, too.
    """

    service: str
    name: str
    operation: Operation
    key_from: KeyFrom = KeyFrom.NOWHERE
    public: bool = False

    @property
    def path(self) -> str:
        """The RPC's full name, as gRPC spells it."""
        return f"/{self.service}/{self.name}"


ENCRYPTION_SERVICE: Final = "keyside.v1.EncryptionService"
KEY_SERVICE: Final = "keyside.v1.KeyService"
STATUS_SERVICE: Final = "keyside.v1.StatusService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
REFLECTION_SERVICE: Final = "grpc.reflection.v1alpha.ServerReflection"

ENCRYPT: Final = Method(ENCRYPTION_SERVICE, "Encrypt", Operation.ENCRYPT, KeyFrom.KEY_FIELD)
DECRYPT: Final = Method(ENCRYPTION_SERVICE, "Decrypt", Operation.DECRYPT, KeyFrom.ENVELOPE)
REWRAP: Final = Method(ENCRYPTION_SERVICE, "Rewrap", Operation.REWRAP, KeyFrom.ENVELOPE)
REENCRYPT: Final = Method(ENCRYPTION_SERVICE, "Reencrypt", Operation.REENCRYPT, KeyFrom.ENVELOPE)
LIST_KEYS: Final = Method(KEY_SERVICE, "ListKeys", Operation.LIST_KEYS)
GET_KEY: Final = Method(KEY_SERVICE, "GetKey", Operation.DESCRIBE_KEY, KeyFrom.NAME_FIELD)
ROTATE_KEY: Final = Method(KEY_SERVICE, "RotateKey", Operation.ROTATE_KEY, KeyFrom.NAME_FIELD)
DISABLE_VERSION: Final = Method(
    KEY_SERVICE, "DisableVersion", Operation.DISABLE_VERSION, KeyFrom.NAME_FIELD
)
ENABLE_VERSION: Final = Method(
    KEY_SERVICE, "EnableVersion", Operation.ENABLE_VERSION, KeyFrom.NAME_FIELD
)
DESTROY_VERSION: Final = Method(
    KEY_SERVICE, "DestroyVersion", Operation.DESTROY_VERSION, KeyFrom.NAME_FIELD
)
CANCEL_DESTROY_VERSION: Final = Method(
    KEY_SERVICE, "CancelDestroyVersion", Operation.CANCEL_DESTROY_VERSION, KeyFrom.NAME_FIELD
)
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
    LIST_KEYS,
    GET_KEY,
    ROTATE_KEY,
    DISABLE_VERSION,
    ENABLE_VERSION,
    DESTROY_VERSION,
    CANCEL_DESTROY_VERSION,
    GET_STATUS,
    HEALTH_CHECK,
    HEALTH_LIST,
    HEALTH_WATCH,
    REFLECTION,
)
