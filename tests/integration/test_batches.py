"""Batches and data keys through the whole sidecar: its socket, its log, and others beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.caller import Callers, callers_of, read_status
from support.sidecar import OTHER_UID, SERVICE_UID, Sidecar, running_sidecar
from support.waiting import eventually

from keyside.envelope import DataKey, PayloadSealer, cut_wrapping_header, suite_by_name
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.access.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SERVICE = "/keyside.v1.EncryptionService/"
KEY = "mail-credentials"
MIB = 1 << 20


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(settings='max_batch_bytes = "2MiB"') as running:
        yield running


@pytest.fixture
def callers(sidecar: Sidecar) -> Iterator[Callers]:
    with callers_of(sidecar.socket) as started:
        yield started


def records(sidecar: Sidecar, event: str) -> list[dict[str, Any]]:
    """Return the log's records of an event."""
    lines = map(json.loads, sidecar.audit_log.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def await_records(sidecar: Sidecar, event: str, count: int) -> list[dict[str, Any]]:
    """Return the records of an event when there are so many; they are written behind."""
    return eventually(lambda: records(sidecar, event), lambda found: len(found) >= count)


def of_texts(*texts: bytes, key: str = KEY) -> pb.BatchEncryptRequest:
    items = [pb.BatchEncryptItem(key=key, plaintext=text, context={"n": "1"}) for text in texts]
    return pb.BatchEncryptRequest(items=items)


def test_a_batch_there_and_back_leaves_a_record_each(sidecar: Sidecar, callers: Callers) -> None:
    """Items under a key of another service are refused one by one, in the record as well."""
    caller = callers.start(SERVICE_UID)
    request = of_texts(*(b"text %d" % n for n in range(500)))
    request.items[7].key = "payroll"
    request.items[8].key = "payrolls"
    sealed = caller.call(SERVICE + "BatchEncrypt", request).parse(pb.BatchEncryptResponse).results
    assert len(sealed) == 500
    refused = [result for result in sealed if result.HasField("status")]
    assert refused == [sealed[7], sealed[8]]
    assert sealed[7] == sealed[8], "unknown and forbidden look alike"
    told = read_status(sealed[7].status)
    assert told.outcome == ("PERMISSION_DENIED", "NOT_ALLOWED")
    assert (told.text, told.remedy, told.domain) == (*Reason.NOT_ALLOWED.value, "keyside")
    envelopes = [result.envelope for result in sealed if result.envelope]
    items = [pb.BatchDecryptItem(envelope=one, context={"n": "1"}) for one in envelopes]
    asked = pb.BatchDecryptRequest(items=items)
    opened = caller.call(SERVICE + "BatchDecrypt", asked).parse(pb.BatchDecryptResponse).results
    expected = [b"text %d" % n for n in range(500) if n not in {7, 8}]
    assert [result.plaintext for result in opened] == expected
    moved = caller.call(
        SERVICE + "BatchRewrap",
        pb.BatchRewrapRequest(items=[pb.BatchRewrapItem(envelope=one) for one in envelopes]),
    ).parse(pb.BatchRewrapResponse)
    assert len({cut_wrapping_header(result.envelope) for result in moved.results}) == 1
    (record,) = await_records(sidecar, "encryption.batch_encrypt", 1)
    assert (record["outcome"], record["count"], record["key"]) == ("partial", 500, KEY)
    assert record["caller"]["uid"] == SERVICE_UID
    assert record["details"] == {
        "items": [{"key": KEY, "version": 1, "count": 498}],
        "refused": 2,
        "failed": 0,
        "reasons": {"NOT_ALLOWED": 2},
    }
    for event in ("encryption.batch_decrypt", "encryption.batch_rewrap"):
        (record,) = await_records(sidecar, event, 1)
        assert (record["outcome"], record["count"], record["version"]) == ("ok", 498, 1)
    assert b"text" not in sidecar.audit_log.read_bytes()


def test_a_batch_over_its_limits_is_told_both(sidecar: Sidecar, callers: Callers) -> None:
    caller = callers.start(SERVICE_UID)
    for request in (of_texts(*[b""] * 10_001), of_texts(MIB * b"x", MIB * b"x", b"x")):
        refused = caller.call(SERVICE + "BatchEncrypt", request)
        assert (refused.code, refused.field) == ("INVALID_ARGUMENT", "items")
        assert "10000 items and 2097152 bytes" in refused.text
    just = caller.call(SERVICE + "BatchEncrypt", of_texts(MIB * b"x", MIB * b"x"))
    results = just.parse(pb.BatchEncryptResponse).results
    assert [result.HasField("status") for result in results] == [False, False]
    last = await_records(sidecar, "encryption.batch_encrypt", 3)[-2]
    assert (last["outcome"], last["reason"], last["count"]) == ("failed", "INVALID_ARGUMENT", 3)


def test_other_calls_take_no_messages_as_long_as_a_batch_s(callers: Callers) -> None:
    caller = callers.start(SERVICE_UID)
    request = pb.EncryptRequest(key=KEY, plaintext=bytes(2 * MIB))
    refused = caller.call(SERVICE + "Encrypt", request)
    assert refused.outcome == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert str(MIB + 64 * 1024) in refused.text


def test_data_keys_are_given_where_policy_allows_them(sidecar: Sidecar, callers: Callers) -> None:
    """What is sealed under one outside the sidecar opens inside; each is on the record."""
    caller, other = callers.start(SERVICE_UID), callers.start(OTHER_UID)
    given = caller.call(SERVICE + "GenerateDataKey", pb.GenerateDataKeyRequest(key=KEY)).parse(
        pb.GenerateDataKeyResponse
    )
    sealer = PayloadSealer(DataKey(given.plaintext), suite_by_name(given.suite))
    envelope = given.wrapped + sealer.seal(b"local", {})
    opened = caller.call(SERVICE + "Decrypt", pb.DecryptRequest(envelope=envelope))
    assert opened.parse(pb.DecryptResponse).plaintext == b"local"
    again = caller.call(
        SERVICE + "DecryptDataKey", pb.DecryptDataKeyRequest(wrapped=envelope)
    ).parse(pb.DecryptDataKeyResponse)
    assert again.plaintext == given.plaintext
    assert again.max_age.seconds == given.max_age.seconds == 300
    for path, request in (
        ("GenerateDataKey", pb.GenerateDataKeyRequest(key="payroll")),
        ("DecryptDataKey", pb.DecryptDataKeyRequest(wrapped=seal_as(other, "payroll"))),
    ):
        refused = other.call(SERVICE + path, request)
        assert refused.outcome == ("PERMISSION_DENIED", "DATA_KEYS_NOT_ALLOWED")
        assert (refused.text, refused.remedy) == Reason.DATA_KEYS_NOT_ALLOWED.value
    (made,) = await_records(sidecar, "encryption.generate_data_key", 1)
    (unwrapped,) = await_records(sidecar, "encryption.decrypt_data_key", 1)
    assert made["digest"] == unwrapped["digest"]
    assert made["details"]["max_messages"] == given.max_messages
    assert given.plaintext.hex() not in sidecar.audit_log.read_text()


def seal_as(caller: Any, key: str) -> bytes:
    """Return an envelope under another key."""
    answer = caller.call(SERVICE + "Encrypt", pb.EncryptRequest(key=key, plaintext=b"text"))
    envelope: bytes = answer.parse(pb.EncryptResponse).envelope
    return envelope


def test_long_batches_hold_up_no_short_call(sidecar: Sidecar) -> None:
    """Beside two streams of batches of 10,000 items, a call takes milliseconds."""
    code = """
import statistics, threading, time, grpc
from keyside.v1 import encryption_pb2 as pb
def method(channel, name, kind):
    return channel.unary_unary(
        "/keyside.v1.EncryptionService/" + name,
        request_serializer=lambda data: data,
        response_deserializer=kind,
    )
target = "unix:" + os.environ["KEYSIDE_SOCKET"]
items = [pb.BatchEncryptItem(key="mail-credentials", plaintext=bytes(64))] * 10_000
batch = pb.BatchEncryptRequest(items=items).SerializeToString()
over = threading.Event()
answered = []
def stream():
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.insecure_channel(target, options=options)
    call = method(channel, "BatchEncrypt", lambda data: data)
    while not over.is_set():
        answered.append(len(call(batch, timeout=60)))
threads = [threading.Thread(target=stream) for _ in range(2)]
for thread in threads: thread.start()
call = method(grpc.insecure_channel(target), "Encrypt", pb.EncryptResponse.FromString)
one = pb.EncryptRequest(key="mail-credentials", plaintext=bytes(64)).SerializeToString()
while not answered: time.sleep(0.01)
took = []
ends = time.monotonic() + 2
while time.monotonic() < ends:
    began = time.perf_counter()
    call(one, timeout=60)
    took.append(time.perf_counter() - began)
    time.sleep(0.002)
over.set()
for thread in threads: thread.join()
print(len(answered), statistics.median(took))
"""
    done = sidecar.call(code)
    batches, median_s = done.stdout.split()
    assert int(batches) >= 4, done.stderr
    # A whole batch takes 60 ms or more, and the other one's as long again.
    assert float(median_s) < 0.03
