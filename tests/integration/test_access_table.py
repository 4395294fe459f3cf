"""Every RPC as every class of caller: one table (I2, I3, I4), and nothing that is not in it.

The sidecars judge people's logins (``person_logins = "refuse"``); each caller's login uid is set,
or taken away, when it starts.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from support.caller import OVERFLOW_ID, Answer, Caller, callers_of, read_status
from support.peers import calls_through, lending, paused, private_sockets
from support.sidecar import (
    AUDITOR_UID,
    ENCRYPT_ONLY_UID,
    OPERATOR_UID,
    OTHER_UID,
    SERVICE_GID,
    SERVICE_UID,
    SIDECAR_GID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
)

from keyside.v1 import access_pb2, audit_pb2, encryption_pb2, keys_pb2, status_pb2
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.api.rpcs import list_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message

pytestmark = pytest.mark.root

STRANGER_UID = 64206
PERSON_UID = 64207
# Not mapped in the user namespace that one of the sidecars runs in.
OUTSIDE_ID = 64290
MAPPED_IDS = ("0-0", "64200-64289")
REFUSED_GROUPS = range(100_000, 100_000 + 8193)

ENCRYPT = "/keyside.v1.EncryptionService/Encrypt"
DECRYPT = "/keyside.v1.EncryptionService/Decrypt"
REWRAP = "/keyside.v1.EncryptionService/Rewrap"
REENCRYPT = "/keyside.v1.EncryptionService/Reencrypt"
BATCH_ENCRYPT = "/keyside.v1.EncryptionService/BatchEncrypt"
BATCH_DECRYPT = "/keyside.v1.EncryptionService/BatchDecrypt"
BATCH_REWRAP = "/keyside.v1.EncryptionService/BatchRewrap"
GENERATE_DATA_KEY = "/keyside.v1.EncryptionService/GenerateDataKey"
DECRYPT_DATA_KEY = "/keyside.v1.EncryptionService/DecryptDataKey"
LIST_KEYS = "/keyside.v1.KeyService/ListKeys"
GET_KEY = "/keyside.v1.KeyService/GetKey"
ROTATE_KEY = "/keyside.v1.KeyService/RotateKey"
DISABLE = "/keyside.v1.KeyService/DisableVersion"
ENABLE = "/keyside.v1.KeyService/EnableVersion"
DESTROY = "/keyside.v1.KeyService/DestroyVersion"
CANCEL_DESTROY = "/keyside.v1.KeyService/CancelDestroyVersion"
REQUEST = "/keyside.v1.AccessService/RequestAccess"
CHECK_REQUEST = "/keyside.v1.AccessService/CheckAccessRequest"
LIST_ACCESS = "/keyside.v1.AccessService/ListAccess"
GET_ACCESS = "/keyside.v1.AccessService/GetAccess"
APPROVE = "/keyside.v1.AccessService/ApproveAccess"
DENY = "/keyside.v1.AccessService/DenyAccess"
CANCEL = "/keyside.v1.AccessService/CancelAccess"
ACTIVATE = "/keyside.v1.AccessService/ActivateAccess"
REVOKE = "/keyside.v1.AccessService/RevokeAccess"
SEARCH = "/keyside.v1.AuditService/SearchRecords"
CHECKPOINT = "/keyside.v1.AuditService/GetCheckpoint"
GET_STATUS = "/keyside.v1.StatusService/GetStatus"
CHECK = "/grpc.health.v1.Health/Check"
LIST = "/grpc.health.v1.Health/List"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NO_SUCH_RPC = "/keyside.v1.KeyService/ExportKey"
NO_SUCH_REQUEST = "ar-aaaaaaaaaaaa"

COLUMNS = (
    *(LIST_KEYS, GET_KEY, ROTATE_KEY, DISABLE, ENABLE, DESTROY, CANCEL_DESTROY),
    *(REQUEST, CHECK_REQUEST, LIST_ACCESS, GET_ACCESS, APPROVE, DENY, CANCEL, ACTIVATE, REVOKE),
    *(SEARCH, CHECKPOINT),
    *(BATCH_ENCRYPT, BATCH_DECRYPT, BATCH_REWRAP, GENERATE_DATA_KEY, DECRYPT_DATA_KEY),
    *(ENCRYPT, DECRYPT, REWRAP, REENCRYPT, GET_STATUS, CHECK, LIST, WATCH, REFLECT, NO_SUCH_RPC),
)
OF_A_KEY = (
    *(ENCRYPT, DECRYPT, REWRAP, REENCRYPT, GET_KEY),
    *(BATCH_ENCRYPT, BATCH_DECRYPT, BATCH_REWRAP, GENERATE_DATA_KEY, DECRYPT_DATA_KEY),
    *(ROTATE_KEY, DISABLE, DESTROY, CANCEL_DESTROY, ENABLE),
)
# "yes", or why not; "absent" is what gRPC says of a method that does not exist. The last column is
# what GetStatus tells the caller about itself. Calls are made in the order of ``requests``.
KEY_TABLE = """
                  List   Get    Rotate Disab. Enable Destr. Cancel
----------------- ------ ------ ------ ------ ------ ------ ------
allowed-service   yes    yes    not-op not-op not-op not-op not-op
encrypt-only      yes    yes    not-op not-op not-op not-op not-op
other-service     yes    no     not-op not-op not-op not-op not-op
stranger          no     no     no     no     no     no     no
root              no     no     no     no     no     no     no
operator          yes    yes    yes    yes    yes    yes    yes
operator-service  yes    yes    yes    yes    yes    yes    yes
auditor           yes    yes    not-op not-op not-op not-op not-op
auditor-service   yes    yes    not-op not-op not-op not-op not-op
person-service    person person person person person person person
person-operator   yes    yes    yes    yes    yes    yes    yes
person-auditor    yes    yes    not-op not-op not-op not-op not-op
overflow-uid      o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid
overflow-gid      o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid
too-many-groups   unread unread unread unread unread unread unread
ended             ended  ended  ended  ended  ended  ended  ended
unknown-address   who    who    who    who    who    who    who
unknown-public    who    who    who    who    who    who    who
service-inside    yes    yes    not-op not-op not-op not-op not-op
unmapped-uid      o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid
unmapped-gid      o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid
session-id-alone  person person person person person person person
pid-zero          pid-0  pid-0  pid-0  pid-0  pid-0  pid-0  pid-0
login-unreadable  login  login  login  login  login  login  login
no-account        nobody nobody nobody nobody nobody nobody nobody
"""
# Without [elevation] nobody asks or decides; test_elevation.py has the table of those who may.
ACCESS_TABLE = """
                  Reque. CheckR List   Get    Appro. Deny   Cancel Activ. Revoke Search Check.
----------------- ------ ------ ------ ------ ------ ------ ------ ------ ------ ------ ------
allowed-service   not-rq not-rq no     no     not-ap not-ap not-rq not-rq no     yes    no
encrypt-only      not-rq not-rq no     no     not-ap not-ap not-rq not-rq no     yes    no
other-service     not-rq not-rq no     no     not-ap not-ap not-rq not-rq no     yes    no
stranger          no     no     no     no     no     no     no     no     no     no     no
root              no     no     no     no     no     no     no     no     no     no     no
operator          op     op     yes    unk    not-ap not-ap not-rq op     unk    yes    yes
operator-service  op     op     yes    unk    not-ap not-ap not-rq op     unk    yes    yes
auditor           not-rq not-rq yes    unk    not-ap not-ap not-rq not-rq no     yes    yes
auditor-service   not-rq not-rq yes    unk    not-ap not-ap not-rq not-rq no     yes    yes
person-service    person person person person person person person person person person person
person-operator   op     op     yes    unk    not-ap not-ap not-rq op     unk    yes    yes
person-auditor    not-rq not-rq yes    unk    not-ap not-ap not-rq not-rq no     yes    yes
overflow-uid      o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid
overflow-gid      o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid
too-many-groups   unread unread unread unread unread unread unread unread unread unread unread
ended             ended  ended  ended  ended  ended  ended  ended  ended  ended  ended  ended
unknown-address   who    who    who    who    who    who    who    who    who    who    who
unknown-public    who    who    who    who    who    who    who    who    who    who    who
service-inside    not-rq not-rq no     no     not-ap not-ap not-rq not-rq no     yes    no
unmapped-uid      o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid  o-uid
unmapped-gid      o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid  o-gid
session-id-alone  person person person person person person person person person person person
pid-zero          pid-0  pid-0  pid-0  pid-0  pid-0  pid-0  pid-0  pid-0  pid-0  pid-0  pid-0
login-unreadable  login  login  login  login  login  login  login  login  login  login  login
no-account        nobody nobody nobody nobody nobody nobody nobody nobody nobody nobody nobody
"""
# What an item of a batch is told counts as what the batch is told.
BATCH_TABLE = """
                  BEncr. BDecr. BRewr. GenDK. DecDK.
----------------- ------ ------ ------ ------ ------
allowed-service   yes    yes    yes    yes    yes
encrypt-only      yes    no     no     yes    no
other-service     no     no     no     no     no
stranger          no     no     no     no     no
root              no     no     no     no     no
operator          op     op     op     op     op
operator-service  op     op     op     op     op
auditor           no     no     no     no     no
auditor-service   yes    yes    yes    yes    yes
person-service    person person person person person
person-operator   op     op     op     op     op
person-auditor    person person person person person
overflow-uid      o-uid  o-uid  o-uid  o-uid  o-uid
overflow-gid      o-gid  o-gid  o-gid  o-gid  o-gid
too-many-groups   unread unread unread unread unread
ended             ended  ended  ended  ended  ended
unknown-address   who    who    who    who    who
unknown-public    who    who    who    who    who
service-inside    yes    yes    yes    yes    yes
unmapped-uid      o-uid  o-uid  o-uid  o-uid  o-uid
unmapped-gid      o-gid  o-gid  o-gid  o-gid  o-gid
session-id-alone  person person person person person
pid-zero          pid-0  pid-0  pid-0  pid-0  pid-0
login-unreadable  login  login  login  login  login
no-account        nobody nobody nobody nobody nobody
"""
ENCRYPTION_TABLE = """
                  Encr.  Decr.  Rewr.  Reenc. Status C.  L.  W.  Refl.  other  told
----------------- ------ ------ ------ ------ ------ --- --- --- ------ ------ ------
allowed-service   yes    yes    yes    yes    yes    yes yes yes yes    absent -
encrypt-only      yes    no     no     no     yes    yes yes yes yes    absent -
other-service     no     no     no     no     yes    yes yes yes yes    absent -
stranger          no     no     no     no     yes    yes yes yes no     no     -
root              no     no     no     no     yes    yes yes yes no     no     -
operator          op     op     op     op     yes    yes yes yes yes    absent -
operator-service  op     op     op     op     yes    yes yes yes yes    absent -
auditor           no     no     no     no     yes    yes yes yes yes    absent -
auditor-service   yes    yes    yes    yes    yes    yes yes yes yes    absent -
person-service    person person person person yes    yes yes yes person person person
person-operator   op     op     op     op     yes    yes yes yes yes    absent person
person-auditor    person person person person yes    yes yes yes yes    absent person
overflow-uid      o-uid  o-uid  o-uid  o-uid  yes    yes yes yes o-uid  o-uid  o-uid
overflow-gid      o-gid  o-gid  o-gid  o-gid  yes    yes yes yes o-gid  o-gid  o-gid
too-many-groups   unread unread unread unread yes    yes yes yes unread unread unread
ended             ended  ended  ended  ended  yes    yes yes yes ended  ended  ended
unknown-address   who    who    who    who    who    who who who who    absent -
unknown-public    who    who    who    who    who    who who who who    who    -
service-inside    yes    yes    yes    yes    yes    yes yes yes absent absent -
unmapped-uid      o-uid  o-uid  o-uid  o-uid  yes    yes yes yes o-uid  o-uid  o-uid
unmapped-gid      o-gid  o-gid  o-gid  o-gid  yes    yes yes yes o-gid  o-gid  o-gid
session-id-alone  person person person person yes    yes yes yes person person person
pid-zero          pid-0  pid-0  pid-0  pid-0  yes    yes yes yes pid-0  pid-0  pid-0
login-unreadable  login  login  login  login  yes    yes yes yes login  login  login
no-account        nobody nobody nobody nobody yes    yes yes yes nobody nobody nobody
"""
OUTCOMES = {
    "yes": ("OK", ""),
    "absent": ("UNIMPLEMENTED", ""),
    "no": ("PERMISSION_DENIED", "NOT_ALLOWED"),
    "op": ("PERMISSION_DENIED", "OPERATOR_MAY_NOT_USE_KEYS"),
    "not-op": ("PERMISSION_DENIED", "NOT_AN_OPERATOR"),
    "not-rq": ("PERMISSION_DENIED", "NOT_A_REQUESTER"),
    "not-ap": ("PERMISSION_DENIED", "NOT_AN_APPROVER"),
    "unk": ("NOT_FOUND", "ACCESS_NOT_FOUND"),
    "person": ("PERMISSION_DENIED", "PEER_PERSON_LOGIN"),
    "login": ("PERMISSION_DENIED", "PEER_LOGIN_UNREADABLE"),
    "who": ("UNAUTHENTICATED", "PEER_UNKNOWN"),
    "unread": ("UNAUTHENTICATED", "PEER_CREDENTIAL_UNREADABLE"),
    "pid-0": ("UNAUTHENTICATED", "PEER_PID_ZERO"),
    "o-uid": ("UNAUTHENTICATED", "PEER_OVERFLOW_UID"),
    "o-gid": ("UNAUTHENTICATED", "PEER_OVERFLOW_GID"),
    "ended": ("UNAUTHENTICATED", "PEER_ENDED"),
    "nobody": ("UNAUTHENTICATED", "ACCOUNT_UNKNOWN"),
}
SHOWN_ELSEWHERE = {
    "NAME_SERVICE_UNAVAILABLE": "test_name_service_live.py",
    "TOO_MANY_CALLS": "test_limits.py",
    "PEER_NOT_UNIX": "tests/unit/test_peer_credential.py: no such peer can reach a Unix socket",
    "LOGIN_OF_ANOTHER": "test_elevation.py",
    "TOO_OFTEN": "test_elevation.py",
    "CREDENTIAL_REFUSED": "test_elevation.py",
    "GRANT_ENDED": "test_elevation.py",
    "GRANT_SCOPE": "test_elevation.py",
    "DATA_KEYS_NOT_ALLOWED": "test_batches.py",
    "METHOD_UNKNOWN": "tests/unit/test_policy.py: what policy says of an operation without a rule",
}


def read_rows(table: str) -> dict[str, list[str]]:
    """Return a table's rows: the class of caller, and its cells."""
    return {name: cells for name, *cells in map(str.split, table.splitlines()[3:])}


KEY_ROWS = read_rows(KEY_TABLE)
ACCESS_ROWS = read_rows(ACCESS_TABLE)
BATCH_ROWS = read_rows(BATCH_TABLE)
ROWS = {
    name: [*KEY_ROWS[name], *ACCESS_ROWS[name], *BATCH_ROWS[name], *cells]
    for name, cells in read_rows(ENCRYPTION_TABLE).items()
}

BOTH = ["mail-credentials", "payroll"]
VISIBLE_KEYS = {
    **dict.fromkeys(("allowed-service", "encrypt-only", "service-inside"), BOTH[:1]),
    "auditor-service": BOTH,
    "other-service": BOTH[1:],
    **dict.fromkeys(("operator", "operator-service", "person-operator"), BOTH),
    **dict.fromkeys(("auditor", "person-auditor"), BOTH),
}

REFUSE_PEOPLE = 'membership = "process"\nperson_logins = "refuse"'
ACCOUNT_MODE = 'membership = "account"\nperson_logins = "refuse"'


@dataclass(frozen=True)
class Kind:
    """One class of caller: which sidecar it calls, and as whom.

    Args:
        sidecar: One of ``SIDECARS``.
        ids: For ``Callers.start``.
        way: How it gets to the sidecar, where that is not by its socket.
    """

    sidecar: str
    ids: dict[str, Any]
    way: str = ""


def plain(uid: int, *groups: int, **ids: Any) -> Kind:
    return Kind("plain", {"uid": uid, "groups": groups, **ids})


KINDS = {
    "allowed-service": plain(SERVICE_UID),
    "encrypt-only": plain(ENCRYPT_ONLY_UID),
    "other-service": plain(OTHER_UID),
    "stranger": plain(STRANGER_UID),
    "root": plain(0),
    "operator": plain(OPERATOR_UID, gid=STRANGER_UID),
    "operator-service": plain(OPERATOR_UID, SERVICE_GID),
    "auditor": plain(AUDITOR_UID),
    "auditor-service": plain(AUDITOR_UID, SERVICE_GID),
    "person-service": plain(SERVICE_UID, login=PERSON_UID),
    "person-operator": plain(OPERATOR_UID, login=PERSON_UID),
    "person-auditor": plain(AUDITOR_UID, login=PERSON_UID),
    "overflow-uid": plain(OVERFLOW_ID, SERVICE_GID, gid=SERVICE_GID),
    "overflow-gid": plain(SERVICE_UID, OVERFLOW_ID),
    "too-many-groups": plain(SERVICE_UID, *REFUSED_GROUPS),
    "ended": Kind("plain", {"uid": SERVICE_UID}, way="ended"),
    "unknown-address": Kind("plain", {"uid": SIDECAR_UID}, way="m0"),
    "unknown-public": Kind("plain", {"uid": SIDECAR_UID}, way="p"),
    "service-inside": Kind("user namespace", {"uid": SERVICE_UID}),
    "unmapped-uid": Kind("user namespace", {"uid": OUTSIDE_ID, "gid": SERVICE_GID}),
    "unmapped-gid": Kind("user namespace", {"uid": SERVICE_UID, "groups": [OUTSIDE_ID]}),
    "session-id-alone": Kind("user namespace", {"uid": SERVICE_UID, "login": OUTSIDE_ID}),
    "pid-zero": Kind("PID namespace", {"uid": SERVICE_UID}),
    "login-unreadable": Kind("PID namespace", {"uid": SERVICE_UID}, way="nsenter"),
    "no-account": Kind("account mode", {"uid": SERVICE_UID}),
}

AS_SIDECAR = f"setpriv --reuid={SIDECAR_UID} --regid={SIDECAR_GID} --clear-groups".split()
SIDECARS: dict[str, dict[str, Any]] = {
    "plain": {"identity": REFUSE_PEOPLE, "settings": "workers = 2\nreflection = true"},
    "user namespace": {
        "identity": REFUSE_PEOPLE,
        "account": "",
        "launcher": [
            *(sys.executable, str(Path(__file__).parent / "support" / "user_namespace.py")),
            *(str(SIDECAR_UID), str(SIDECAR_GID), *MAPPED_IDS, "--"),
        ],
    },
    # Of the processes in its own PID namespace it can't read those of others: proc hides them.
    "PID namespace": {
        "identity": REFUSE_PEOPLE,
        "account": "",
        "launcher": [
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"),
            *('mount -o remount,hidepid=2 /proc; exec "$@"', "sh", *AS_SIDECAR),
        ],
    },
    "account mode": {"identity": ACCOUNT_MODE},
}


@dataclass
class Sidecars:
    """The sidecars of this file, each started when it is first needed."""

    stack: contextlib.ExitStack
    started: dict[str, Sidecar] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=dict)

    def find(self, name: str) -> Sidecar:
        """Return the sidecar of that name."""
        if name not in self.started:
            self.started[name] = self.stack.enter_context(running_sidecar(**SIDECARS[name]))
        return self.started[name]

    def caller(self, name: str) -> Caller:
        """Return the caller of one class, which keeps its connection."""
        if name not in self.callers:
            self.callers[name] = start_caller(KINDS[name], self)
        return self.callers[name]


@pytest.fixture(scope="module")
def sidecars() -> Iterator[Sidecars]:
    with contextlib.ExitStack() as stack:
        yield Sidecars(stack)


@pytest.fixture(scope="module")
def envelope(sidecars: Sidecars) -> bytes:
    """An envelope under mail-credentials, for callers that can't make one."""
    return encrypt(sidecars.caller("allowed-service"))


def start_caller(kind: Kind, sidecars: Sidecars) -> Caller:
    """Start a caller of one class; it ends with the sidecars."""
    sidecar, stack, settings = sidecars.find(kind.sidecar), sidecars.stack, dict(kind.ids)
    callers = stack.enter_context(callers_of(sidecar.socket))
    if kind.way == "ended":
        # It ends while its connection waits to be accepted; whoever holds it then, calls.
        with paused(sidecar):
            lender = stack.enter_context(lending(sidecar.socket, SERVICE_UID, SERVICE_GID))
            lender.end_connector()
        settings["target"] = stack.enter_context(calls_through(lender.connection))
    elif kind.way == "nsenter":
        assert sidecar.process is not None
        children = Path(f"/proc/{sidecar.process.pid}/task/{sidecar.process.pid}/children")
        inside = children.read_text().split()[0]
        settings["prefix"] = ["nsenter", f"--pid=/proc/{inside}/ns/pid"]
    elif kind.way:
        path = next(path for path in private_sockets(sidecar) if path.name == kind.way)
        settings["target"] = f"unix:{path}"
    return callers.start(settings.pop("uid"), **settings)


def requests(envelope: bytes, key: str = "mail-credentials") -> dict[str, Message | bytes]:
    """Return one valid request for every RPC, in an order that leaves version 1 enabled."""
    return {
        ENCRYPT: encryption_pb2.EncryptRequest(key=key, plaintext=b"a token"),
        DECRYPT: encryption_pb2.DecryptRequest(envelope=envelope),
        REWRAP: encryption_pb2.RewrapRequest(envelope=envelope),
        REENCRYPT: encryption_pb2.ReencryptRequest(envelope=envelope),
        BATCH_ENCRYPT: encryption_pb2.BatchEncryptRequest(
            items=[encryption_pb2.BatchEncryptItem(key=key, plaintext=b"a token")]
        ),
        BATCH_DECRYPT: encryption_pb2.BatchDecryptRequest(
            items=[encryption_pb2.BatchDecryptItem(envelope=envelope)]
        ),
        BATCH_REWRAP: encryption_pb2.BatchRewrapRequest(
            items=[encryption_pb2.BatchRewrapItem(envelope=envelope)]
        ),
        GENERATE_DATA_KEY: encryption_pb2.GenerateDataKeyRequest(key=key),
        DECRYPT_DATA_KEY: encryption_pb2.DecryptDataKeyRequest(wrapped=envelope),
        LIST_KEYS: keys_pb2.ListKeysRequest(),
        GET_KEY: keys_pb2.GetKeyRequest(name=key),
        ROTATE_KEY: keys_pb2.RotateKeyRequest(name=key),
        DISABLE: keys_pb2.DisableVersionRequest(name=key, number=1),
        DESTROY: keys_pb2.DestroyVersionRequest(name=key, number=1),
        CANCEL_DESTROY: keys_pb2.CancelDestroyVersionRequest(name=key, number=1),
        ENABLE: keys_pb2.EnableVersionRequest(name=key, number=1),
        REQUEST: access_pb2.RequestAccessRequest(key=key, reason="why", password=b"guess"),
        CHECK_REQUEST: access_pb2.CheckAccessRequestRequest(key=key, reason="why"),
        LIST_ACCESS: access_pb2.ListAccessRequest(),
        GET_ACCESS: access_pb2.GetAccessRequest(id=NO_SUCH_REQUEST),
        APPROVE: access_pb2.ApproveAccessRequest(id=NO_SUCH_REQUEST, password=b"guess"),
        DENY: access_pb2.DenyAccessRequest(id=NO_SUCH_REQUEST, reason="no", password=b"guess"),
        CANCEL: access_pb2.CancelAccessRequest(id=NO_SUCH_REQUEST),
        ACTIVATE: access_pb2.ActivateAccessRequest(id=NO_SUCH_REQUEST, password=b"guess"),
        REVOKE: access_pb2.RevokeAccessRequest(id=NO_SUCH_REQUEST),
        SEARCH: audit_pb2.SearchRecordsRequest(),
        CHECKPOINT: audit_pb2.GetCheckpointRequest(),
        GET_STATUS: status_pb2.GetStatusRequest(),
        CHECK: health_pb2.HealthCheckRequest(),
        LIST: b"",
        WATCH: health_pb2.HealthCheckRequest(),
        REFLECT: reflection_pb2.ServerReflectionRequest(list_services=""),
        NO_SUCH_RPC: keys_pb2.GetKeyRequest(name=key),
    }


RESPONSES: dict[str, type[Any]] = {
    BATCH_ENCRYPT: encryption_pb2.BatchEncryptResponse,
    BATCH_DECRYPT: encryption_pb2.BatchDecryptResponse,
    BATCH_REWRAP: encryption_pb2.BatchRewrapResponse,
}


def look_into_batch(path: str, answer: Answer) -> Answer:
    """Return what the only item of a batch was told, where the batch was answered."""
    if path not in RESPONSES or answer.code != "OK":
        return answer
    (result,) = answer.parse(RESPONSES[path]).results
    if not result.HasField("status"):
        return answer
    assert result == type(result)(status=result.status), "nothing beside the refusal"
    return read_status(result.status)


def encrypt(caller: Caller) -> bytes:
    """Return an envelope made by a caller that may."""
    request = encryption_pb2.EncryptRequest(key="mail-credentials", plaintext=b"a token")
    return caller.call(ENCRYPT, request).parse(encryption_pb2.EncryptResponse).envelope


@pytest.mark.parametrize("name", ROWS)
def test_every_rpc_as_every_class_of_caller(sidecars: Sidecars, envelope: bytes, name: str) -> None:
    """Each call ends as the table says; a refusal has its text and remedy and brings no data."""
    *cells, told = ROWS[name]
    expected = dict(zip(COLUMNS, (OUTCOMES[cell] for cell in cells), strict=True))
    caller = sidecars.caller(name)
    if expected[ENCRYPT] == expected[DECRYPT] == OUTCOMES["yes"]:
        envelope = encrypt(caller)  # each sidecar has a store of its own
    answers = {
        path: look_into_batch(path, caller.call(path, request))
        for path, request in requests(envelope).items()
    }
    assert {path: answer.outcome for path, answer in answers.items()} == expected
    for answer in answers.values():
        if answer.reason in Reason.__members__:
            reason = Reason[answer.reason]
            assert (answer.text, answer.remedy, answer.domain) == (*reason.value, "keyside")
            assert answer.data == b""
    if answers[DECRYPT].code == "OK":
        opened = answers[DECRYPT].parse(encryption_pb2.DecryptResponse)
        assert opened.plaintext == b"a token"
        renewed = answers[REENCRYPT].parse(encryption_pb2.ReencryptResponse).envelope
        again = caller.call(DECRYPT, encryption_pb2.DecryptRequest(envelope=renewed))
        assert again.parse(encryption_pb2.DecryptResponse).plaintext == b"a token"
    if answers[LIST_KEYS].code == "OK":
        listed = answers[LIST_KEYS].parse(keys_pb2.ListKeysResponse)
        assert [key.name for key in listed.keys] == VISIBLE_KEYS[name]
    if answers[GET_STATUS].code == "OK":
        status = answers[GET_STATUS].parse(status_pb2.GetStatusResponse)
        assert [key.name for key in status.keys] == VISIBLE_KEYS.get(name, [])
        assert status.you.refused == OUTCOMES.get(told, ("", ""))[1]
        assert bool(status.version) == (name in VISIBLE_KEYS)


@pytest.mark.parametrize("name", [name for name in ROWS if KINDS[name].sidecar == "plain"])
def test_i11_unknown_and_forbidden_keys_look_alike(
    sidecars: Sidecars, envelope: bytes, name: str
) -> None:
    """To the letter."""
    renamed = envelope.replace(b"mail-credentials", b"mail-credentialz", 1)
    forbidden, unknown = requests(envelope), requests(renamed, "mail-credentialz")
    caller = sidecars.caller(name)
    for path in OF_A_KEY:
        refused = look_into_batch(path, caller.call(path, forbidden[path]))
        if refused.code != "OK":
            other = look_into_batch(path, caller.call(path, unknown[path]))
            assert (other.outcome, other.text) == (refused.outcome, refused.text)


@pytest.mark.parametrize("name", ["stranger", "person-service", "overflow-uid", "ended"])
def test_nothing_is_parsed_for_a_caller_who_is_allowed_nothing(
    sidecars: Sidecars, name: str
) -> None:
    """Bytes that are no message get the same refusal."""
    expected = OUTCOMES[ROWS[name][0]]
    for path in (LIST_KEYS, *OF_A_KEY):
        answer = sidecars.caller(name).call(path, b"\xff\xff\xff", raw=True)
        assert answer.outcome == expected


def test_i6_strangers_are_told_that_something_is_wrong_and_not_what() -> None:
    """Here a row of the store was changed by hand."""
    with running_sidecar() as sidecar, callers_of(sidecar.socket) as callers:
        operator, stranger = callers.start(OPERATOR_UID), callers.start(STRANGER_UID)
        with contextlib.closing(sqlite3.connect(sidecar.store)) as store, store:
            store.execute("UPDATE key_versions SET made_by_uid = 1 WHERE key_name = 'payroll'")
        deadline = time.monotonic() + 30
        while not (found := find_problem(operator, "STORE_TAMPERED")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "payroll" in found.summary
        told = find_problem(stranger, "STORE_TAMPERED")
        assert told is not None
        assert told.blocking
        assert told.since.ToSeconds() > 0
        for fact in ("payroll", "version", str(sidecar.directory)):
            assert fact not in told.summary + told.remedy


def find_problem(caller: Caller, reason: str) -> status_pb2.Problem | None:
    """Return what status tells a caller about one problem."""
    status = caller.call(GET_STATUS).parse(status_pb2.GetStatusResponse)
    return next((item for item in status.problems if item.reason == reason), None)


def test_each_class_of_caller_has_a_row() -> None:
    assert list(KINDS) == list(ROWS) == list(KEY_ROWS)
    assert list(ROWS) == list(ACCESS_ROWS) == list(BATCH_ROWS)


def test_each_reason_for_a_refusal_is_shown() -> None:
    shown = {OUTCOMES[cell][1] for row in ROWS.values() for cell in row[:-1]}
    shown -= {"", "ACCESS_NOT_FOUND"}  # what a request's state does not allow is no refusal of who
    assert shown | set(SHOWN_ELSEWHERE) == set(Reason.__members__)
    assert not shown & set(SHOWN_ELSEWHERE)


def test_each_rpc_has_a_column_and_is_listed() -> None:
    """A new RPC is denied until it stands in the list of methods, and untested until here."""
    described = {path for service in find_services() for path in describe_methods(service)}
    assert described == {path for path, _row in list_rows()}
    assert described | {NO_SUCH_RPC} == set(COLUMNS)


def find_services() -> Iterator[ServiceDescriptor]:
    """Return every service: all of keyside.v1's protos, and the two that gRPC defines."""
    import importlib
    import pkgutil

    import keyside.v1

    names = [module.name for module in pkgutil.iter_modules(keyside.v1.__path__)]
    protos = [
        importlib.import_module(f"keyside.v1.{name}") for name in names if name.endswith("_pb2")
    ]
    assert len(protos) >= 3
    for module in (*protos, health_pb2, reflection_pb2):
        yield from module.DESCRIPTOR.services_by_name.values()


def describe_methods(service: ServiceDescriptor) -> list[str]:
    return [f"/{service.full_name}/{method.name}" for method in service.methods]
