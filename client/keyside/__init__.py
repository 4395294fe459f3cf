"""Keyside's client: encryption through the sidecar on this host, without holding keys.

    import keyside

    with keyside.Client() as client:
        envelope = client.encrypt("mail-credentials", token, {"account": "42"})
        token = client.decrypt(envelope, {"account": "42"})

What can go wrong is in ``keyside.errors``; the classes are also here. Importing this package
imports nothing else: gRPC is loaded when a client makes its first call, so that a pre-forking
server may import it and create clients before it forks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyside import envelope, errors
    from keyside.access_facts import (
        AccessAction,
        AccessApproval,
        AccessLevel,
        AccessOperation,
        AccessProspect,
        AccessRequest,
        AccessState,
        AccessStory,
        AccessUse,
        ActivatedAccess,
        AuditRecord,
        Person,
        VersionRange,
    )
    from keyside.aio import AsyncClient
    from keyside.batch_results import BatchResult, OpenedResult, SealedResult
    from keyside.client import Client
    from keyside.credential import Credential
    from keyside.data_keys import IssuedDataKey, OpenedDataKey
    from keyside.errors import (
        AccessRefused,
        AuthenticationFailed,
        ClosedClient,
        Conflict,
        DeadlineExceeded,
        EnvelopeRejected,
        InvalidArgument,
        KeysideError,
        LimitExceeded,
        NoSuchRecord,
        NoSuchRequest,
        NoSuchVersion,
        NotIdentified,
        NotPermitted,
        Unavailable,
        UnexpectedAnswer,
        UntrustedSocket,
        VersionUnusable,
        WrongVersionState,
    )
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
    from keyside.files import open  # noqa: A004  (what it is to files that are not sealed)
    from keyside.local import LocalCipher
    from keyside.local_aio import AsyncLocalCipher
    from keyside.undumpable import make_undumpable

    __version__: str

__all__ = [
    "AccessAction",
    "AccessApproval",
    "AccessLevel",
    "AccessOperation",
    "AccessProspect",
    "AccessRefused",
    "AccessRequest",
    "AccessState",
    "AccessStory",
    "AccessUse",
    "ActivatedAccess",
    "AsyncClient",
    "AsyncLocalCipher",
    "AuditRecord",
    "AuthenticationFailed",
    "BatchResult",
    "Caller",
    "Client",
    "ClosedClient",
    "Conflict",
    "Credential",
    "DeadlineExceeded",
    "EnvelopeRejected",
    "InvalidArgument",
    "IssuedDataKey",
    "Key",
    "KeyStatus",
    "KeyVersion",
    "KeyVersionState",
    "KeysideError",
    "LimitExceeded",
    "LocalCipher",
    "NoSuchRecord",
    "NoSuchRequest",
    "NoSuchVersion",
    "NotIdentified",
    "NotPermitted",
    "OpenedDataKey",
    "OpenedResult",
    "Person",
    "Problem",
    "RolloverPolicy",
    "Rotation",
    "SealedResult",
    "Serving",
    "Severity",
    "SidecarProcess",
    "Status",
    "Unavailable",
    "UnexpectedAnswer",
    "UntrustedSocket",
    "VersionChange",
    "VersionRange",
    "VersionUnusable",
    "VersionUsage",
    "WrongVersionState",
    "__version__",
    "envelope",
    "errors",
    "make_undumpable",
    "open",
]

_FACTS: Final = frozenset(
    {
        "Caller",
        "Key",
        "KeyStatus",
        "KeyVersion",
        "KeyVersionState",
        "Problem",
        "RolloverPolicy",
        "Rotation",
        "Serving",
        "Severity",
        "SidecarProcess",
        "Status",
        "VersionChange",
        "VersionUsage",
    }
)
_ACCESS_FACTS: Final = frozenset(
    {
        "AccessAction",
        "AccessApproval",
        "AccessLevel",
        "AccessOperation",
        "AccessProspect",
        "AccessRequest",
        "AccessState",
        "AccessStory",
        "AccessUse",
        "ActivatedAccess",
        "AuditRecord",
        "Person",
        "VersionRange",
    }
)
_MODULES: Final = frozenset({"envelope", "errors"})
_PLACES: Final = {
    "Client": "keyside.client",
    "AsyncClient": "keyside.aio",
    "Credential": "keyside.credential",
    "BatchResult": "keyside.batch_results",
    "OpenedResult": "keyside.batch_results",
    "SealedResult": "keyside.batch_results",
    "IssuedDataKey": "keyside.data_keys",
    "OpenedDataKey": "keyside.data_keys",
    "LocalCipher": "keyside.local",
    "AsyncLocalCipher": "keyside.local_aio",
    "make_undumpable": "keyside.undumpable",
    "open": "keyside.files",
    **dict.fromkeys(_ACCESS_FACTS, "keyside.access_facts"),
    **dict.fromkeys(_FACTS, "keyside.facts"),
}


def _find_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("keyside")
    except metadata.PackageNotFoundError:  # a source tree on the import path
        return "0+unknown"


if not TYPE_CHECKING:  # so that a misspelt name is still an error to a type checker

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return importlib.import_module(f"keyside.{name}")
        if name not in __all__:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        value: object
        if name == "__version__":
            value = _find_version()
        else:
            place = _PLACES.get(name, "keyside.errors")
            value = getattr(importlib.import_module(place), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
