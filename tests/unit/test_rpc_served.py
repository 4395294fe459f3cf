"""The record of a served call says what the slow way says of it, to the byte."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from keyside.envelope import VersionKey, parse_wrapping_header, seal, suite_by_name
from keyside.names import KeyName, VersionNumber
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.access.policy import Subject
from keyside_sidecar.audit.records import build_body
from keyside_sidecar.peer.connection import Connection
from keyside_sidecar.peer.credential import PeerCredential
from keyside_sidecar.rpc import methods
from keyside_sidecar.rpc.guard import Call
from keyside_sidecar.rpc.served import write_served

KEY = KeyName("mail-credentials")
VERSION = VersionKey(KEY, VersionNumber(7), bytes(16), bytes(range(32)))
ENVELOPE = seal(VERSION, b"a token", {"b": "1", 'a"\u2028': "2"}, suite_by_name("AES-256-GCM"))
CALLER: dict[str, object] = {"pid": 1, "uid": 2, "gid": 3, "account": 'mé"l', "exe": "/a b\\c"}


def describe(_connection: Connection) -> dict[str, object]:
    return CALLER


def call(*, header: bool) -> Call:
    connection = Connection(1, PeerCredential(1, 2, 3))
    parsed = parse_wrapping_header(ENVELOPE) if header else None
    return Call(connection, Subject(2, frozenset({3})), KEY, parsed)


@pytest.mark.parametrize("context", [{}, {"b": "1", 'a"\u2028': "2"}])
@pytest.mark.parametrize("method", [methods.ENCRYPT, methods.DECRYPT])
def test_both_ways_make_the_same_record(method: methods.Method, context: dict[str, str]) -> None:
    request: Any
    response: Any
    if method is methods.ENCRYPT:
        request = pb.EncryptRequest(key=KEY, plaintext=b"a token", context=context)
        response = pb.EncryptResponse(envelope=ENVELOPE)
    else:
        request = pb.DecryptRequest(envelope=ENVELOPE, context=context)
        response = pb.DecryptResponse(plaintext=b"a token")
    response.version.number = 7
    record = {
        "event": method.event,
        "caller": CALLER,
        "key": KEY,
        "digest": hashlib.sha256(ENVELOPE).hexdigest(),
        "version": 7,
        "context": sorted(context) or None,
        "outcome": "ok",
    }
    text = write_served(call(header=method is methods.DECRYPT), method, request, response, describe)
    slow = build_body(record, "x-1", "now", 99)
    assert f'"id":"x-1","time":"now",{text},"worker":99' == slow


def test_the_caller_is_described_anew_with_each_answer_of_the_name_service() -> None:
    one = call(header=False)
    request = pb.EncryptRequest(key=KEY)
    response = pb.EncryptResponse(envelope=ENVELOPE)
    asked: list[Connection] = []

    def count(connection: Connection) -> dict[str, object]:
        asked.append(connection)
        return CALLER

    for basis, times in ((None, 1), (None, 1), ("an answer", 2), ("an answer", 2), ("next", 3)):
        one.connection.subject_basis = basis
        write_served(one, methods.ENCRYPT, request, response, count)
        assert len(asked) == times


def test_what_could_be_too_long_is_left_to_the_slow_way() -> None:
    request = pb.EncryptRequest(key=KEY, context={f"{'n' * 100}{n}": "" for n in range(10)})
    response = pb.EncryptResponse(envelope=ENVELOPE)
    assert write_served(call(header=False), methods.ENCRYPT, request, response, describe) is None
    assert write_served(call(header=True), methods.REWRAP, request, response, describe) is None
