"""One account that takes all it can get, or sends what it should not, harms nobody else."""

from __future__ import annotations

import itertools
import os
import select
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from support.caller import Answer, Caller, Callers, callers_of
from support.peers import TIMEOUT_S, connect_as, is_closed, read_to_end
from support.sidecar import (
    ENCRYPT_ONLY_UID,
    SERVICE_UID,
    Sidecar,
    running_sidecar,
)

from keyside.v1 import encryption_pb2, keys_pb2

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from google.protobuf.message import Message

pytestmark = pytest.mark.root

STRANGER_UID = 64206
# One for each test that uses up an account's share, so that none has to wait for another's end.
CROWD_UIDS = (64211, 64212, 64213)
STRANGER_UIDS = (64221, 64222, 64223)
# More than fit between supervisor and worker at once, and fewer than this process may open.
MAX_CONNECTIONS = 300
MAX_CALLS = 8
MAX_PLAINTEXT_BYTES = 4096
MIB = 1 << 20

ENCRYPT = "/keyside.v1.EncryptionService/Encrypt"
DECRYPT = "/keyside.v1.EncryptionService/Decrypt"
GET_KEY = "/keyside.v1.KeyService/GetKey"
GET_STATUS = "/keyside.v1.StatusService/GetStatus"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
ENCRYPT_REQUEST = encryption_pb2.EncryptRequest(key="mail-credentials", plaintext=b"a token")

OK = ("OK", "")
NOT_ALLOWED = ("PERMISSION_DENIED", "NOT_ALLOWED")
TOO_MANY_CALLS = ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP2_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
HTTP2_PING = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + b"12345678"
JUNK = {
    "zeros": bytes(MIB),
    "text": b"hello?\n" * 1000,
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": bytes.fromhex("160301 00a5 010000a1 0303") + bytes(range(160)),
    "half a preface": HTTP2_PREFACE[:10],
    "preface and text": HTTP2_PREFACE + b"hello?\n" * 1000,
    "a frame too long": HTTP2_PREFACE + HTTP2_SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "headers that are none": HTTP2_PREFACE
    + HTTP2_SETTINGS
    + bytes((0, 0, 4, 1, 5, 0, 0, 0, 1))
    + b"\xff\xff\xff\xff",
    "many pings": HTTP2_PREFACE + HTTP2_SETTINGS + HTTP2_PING * 10_000,
}
# After these, the rest of a longer message could still come.
MAY_STAY_OPEN = {"half a preface"}


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    settings = f"""
max_connections = {2 * MAX_CONNECTIONS}
max_connections_per_uid = {MAX_CONNECTIONS}
max_calls_per_uid = {MAX_CALLS}
max_plaintext_bytes = {MAX_PLAINTEXT_BYTES}
"""
    with running_sidecar(settings=settings) as running:
        yield running


@pytest.fixture
def callers(sidecar: Sidecar) -> Iterator[Callers]:
    with callers_of(sidecar.socket) as started:
        yield started


@dataclass(frozen=True)
class Others:
    """Callers that go on through all of this, with a new connection for each call."""

    by_uid: dict[int, Caller]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def encrypt(self, uid: int = ENCRYPT_ONLY_UID) -> Answer:
        """Return what comes of a call."""
        channel = str(next(self.numbers))
        answer = self.by_uid[uid].call(ENCRYPT, ENCRYPT_REQUEST, channel=channel)
        self.by_uid[uid].do("close", channel=channel)
        return answer

    def wait_until_served(self, uid: int = ENCRYPT_ONLY_UID) -> None:
        """Wait until the sidecar has noticed what an account has let go of."""
        deadline = time.monotonic() + TIMEOUT_S
        while (answer := self.encrypt(uid)).outcome != OK:
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)


@pytest.fixture(scope="module")
def others(sidecar: Sidecar) -> Iterator[Others]:
    with callers_of(sidecar.socket) as started:
        yield Others({uid: started.start(uid) for uid in (SERVICE_UID, ENCRYPT_ONLY_UID)})


class Peers:
    """Connections without gRPC on them."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._path = sidecar.socket
        self._open: list[socket.socket] = []

    def connect(self, uid: int, count: int) -> list[socket.socket]:
        """Return so many new ones."""
        made = [connect_as(uid, self._path) for _ in range(count)]
        self._open += made
        return made

    def close(self) -> None:
        """Close all there are."""
        while self._open:
            self._open.pop().close()


@pytest.fixture
def peers(sidecar: Sidecar) -> Iterator[Peers]:
    made = Peers(sidecar)
    yield made
    made.close()


def wait_until_closed(connection: socket.socket) -> None:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    assert poll.poll(TIMEOUT_S * 1000), "the connection was not closed"


@pytest.mark.parametrize("greedy", [SERVICE_UID, CROWD_UIDS[0]])
def test_silent_connections_take_up_one_account_s_share_only(
    sidecar: Sidecar, others: Others, peers: Peers, greedy: int
) -> None:
    workers = sidecar.workers()
    log_bytes = sidecar.log.stat().st_size
    held = peers.connect(greedy, MAX_CONNECTIONS)
    beyond = peers.connect(greedy, 100)
    for connection in beyond:
        wait_until_closed(connection)
    assert not any(map(is_closed, held))
    assert others.encrypt().outcome == OK
    if greedy == SERVICE_UID:
        assert others.encrypt(greedy).code == "UNAVAILABLE"
        peers.close()
        others.wait_until_served(greedy)
    assert sidecar.workers() == workers
    assert sidecar.log.stat().st_size - log_bytes < 10_000, "each connection is in the log"


def test_connections_wait_for_a_worker_that_is_busy(
    sidecar: Sidecar, callers: Callers, peers: Peers
) -> None:
    """However many come at once: none is lost, of the greedy one nor of others."""
    other = callers.start(ENCRYPT_ONLY_UID)
    (worker,) = sidecar.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        held = peers.connect(CROWD_UIDS[1], MAX_CONNECTIONS)
        (beyond,) = peers.connect(CROWD_UIDS[1], 1)
        other.begin("call", path=ENCRYPT, data="")
        wait_until_closed(beyond)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert other.finish()["code"] == "INVALID_ARGUMENT", "an empty request got its answer"
    assert not any(map(is_closed, held))


def test_connections_that_wait_for_a_first_worker_count_as_well(
    sidecar: Sidecar, others: Others, peers: Peers
) -> None:
    (worker,) = sidecar.workers()
    os.kill(worker, signal.SIGKILL)
    while worker in sidecar.workers():
        time.sleep(0.01)
    peers.connect(CROWD_UIDS[2], MAX_CONNECTIONS)
    for connection in peers.connect(CROWD_UIDS[2], 100):
        wait_until_closed(connection)
    others.wait_until_served()


def test_calls_in_flight_take_up_one_account_s_share_only(callers: Callers, others: Others) -> None:
    caller = callers.start(SERVICE_UID)
    assert caller.do("hold", path=WATCH, count=6) == {"codes": {"OK": 6}}
    held = caller.do("hold", path=WATCH, count=6, channel="second")
    assert held == {"codes": {"OK": 2, " ".join(TOO_MANY_CALLS): 4}}
    refused = caller.call(ENCRYPT, ENCRYPT_REQUEST, channel="third")
    assert refused.outcome == TOO_MANY_CALLS
    assert "max_calls_per_uid" in refused.remedy
    assert caller.call(CHECK).outcome == TOO_MANY_CALLS
    assert others.encrypt().outcome == OK
    caller.do("release")
    others.wait_until_served(SERVICE_UID)


def test_what_strangers_keep_open_takes_nothing_from_services(
    callers: Callers, others: Others
) -> None:
    """However many uids they have; and a probe of theirs is answered all the same."""
    for uid in STRANGER_UIDS:
        stranger = callers.start(uid)
        held = stranger.do("hold", path=WATCH, count=4)["codes"]
        held_too = stranger.do("hold", path=WATCH, count=4, channel="second")["codes"]
        assert held == {"OK": 4}
        assert held_too == {" ".join(TOO_MANY_CALLS): 4}
        assert stranger.call(CHECK).outcome == OK
        assert stranger.call(ENCRYPT, ENCRYPT_REQUEST).outcome == NOT_ALLOWED
    assert others.encrypt().outcome == OK


def request(**settings: object) -> encryption_pb2.EncryptRequest:
    fields: dict[str, object] = {"key": "mail-credentials", "plaintext": b"a token"}
    return encryption_pb2.EncryptRequest(**fields | settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "message", "field", "limit"),
    [
        (ENCRYPT, request(plaintext=bytes(MAX_PLAINTEXT_BYTES + 1)), "plaintext", "4096"),
        (ENCRYPT, request(context={str(n): "" for n in range(33)}), "context", "32"),
        (ENCRYPT, request(context={"n" * 129: ""}), "context", "128"),
        (ENCRYPT, request(context={"n": "v" * 1025}), "context", "1024"),
        (DECRYPT, None, "context", "1024"),
        (ENCRYPT, request(key="k" * 64), "key", "63"),
        (
            GET_KEY,
            keys_pb2.GetKeyRequest(name="mail-credentials", page_size=1001),
            "page_size",
            "1000",
        ),
    ],
    ids=["plaintext", "pairs", "name", "value", "on opening", "key", "page"],
)
def test_what_is_too_large_is_told_the_limit(
    callers: Callers, path: str, message: Message | None, field: str, limit: str
) -> None:
    """In words, and as a BadRequest that names the field."""
    caller = callers.start(SERVICE_UID)
    if message is None:
        made = caller.call(ENCRYPT, ENCRYPT_REQUEST).parse(encryption_pb2.EncryptResponse)
        message = encryption_pb2.DecryptRequest(envelope=made.envelope, context={"n": "v" * 1025})
    refused = caller.call(path, message)
    assert refused.code == "INVALID_ARGUMENT"
    assert refused.field == field
    assert limit in refused.text.replace(",", "")


@pytest.mark.parametrize("uid", [SERVICE_UID, STRANGER_UID])
def test_what_grpc_finds_too_large_is_told_the_limit(callers: Callers, uid: int) -> None:
    """Before anything is parsed; the connection goes on."""
    caller = callers.start(uid)
    size = 17 * MIB if uid == SERVICE_UID else 8192
    refused = caller.call(GET_STATUS, bytes(size), raw=True)
    assert refused.code == "RESOURCE_EXHAUSTED"
    assert f"({size} vs. " in refused.text
    refused = caller.call(GET_STATUS, metadata=[("x-large", "x" * 100_000)])
    assert refused.code == "RESOURCE_EXHAUSTED"
    assert "metadata size exceeds" in refused.text
    assert caller.call(GET_STATUS).code == "OK"


def test_a_stranger_s_large_request_is_refused_unread(callers: Callers) -> None:
    stranger = callers.start(STRANGER_UID)
    for _ in range(5):
        answer = stranger.call(ENCRYPT, request(plaintext=bytes(8 * MIB)))
        assert answer.outcome == NOT_ALLOWED
    assert stranger.call(GET_STATUS).code == "OK"


@pytest.mark.parametrize("uid", [STRANGER_UID, SERVICE_UID])
@pytest.mark.parametrize("kind", JUNK)
def test_what_is_no_http2_harms_nobody(
    sidecar: Sidecar, others: Others, peers: Peers, kind: str, uid: int
) -> None:
    workers = sidecar.workers()
    steady = others.by_uid[SERVICE_UID]
    assert steady.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
    log_bytes = sidecar.log.stat().st_size
    junk = peers.connect(uid, 3)
    for connection in junk:
        try:
            connection.sendall(JUNK[kind])
        except ConnectionError:
            continue  # closed already
    assert steady.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
    if kind not in MAY_STAY_OPEN:
        for connection in junk:
            read_to_end(connection)
    peers.close()
    assert others.encrypt().outcome == OK
    assert steady.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
    assert sidecar.workers() == workers
    with sidecar.log.open("rb") as log:
        log.seek(log_bytes)
        assert b"level=error" not in log.read()


def test_a_message_that_does_not_come_ends_its_call(sidecar: Sidecar) -> None:
    """Calls whose message never ends do end: a stranger's within seconds."""
    code = """
import time, grpc
channel = grpc.insecure_channel("unix:" + os.environ["KEYSIDE_SOCKET"])
def never():
    time.sleep(30)
    yield b""
calls = [
    channel.stream_unary("/keyside.v1.StatusService/GetStatus").future(never()) for _ in range(6)
]
started = time.monotonic()
for call in calls:
    print(call.code().name, call.details())
print("in time", time.monotonic() - started < 15, flush=True)
os._exit(0)
"""
    done = sidecar.call(code, uid=SERVICE_UID + 1000)
    lines = done.stdout.splitlines()
    assert lines == [
        *["INVALID_ARGUMENT request: did not arrive within 2 s"] * 6,
        "in time True",
    ], done.stdout + done.stderr
