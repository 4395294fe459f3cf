"""The record of a served call says what the slow way says of it, to the byte."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyside.envelope import VersionKey, parse_wrapping_header, seal, suite_by_name
from keyside.names import KeyName, VersionNumber
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.audit.records import build_body
from keyside_sidecar.peer.caller import Caller
from keyside_sidecar.server.call import Keeps, UnaryCall, UnaryRpc
from keyside_sidecar.server.pipeline.record import Recorder
from keyside_sidecar.services.encryption import Open, Opened, Rewrap, Seal, Sealed

if TYPE_CHECKING:
    from datetime import datetime

    from keyside_sidecar.services.shapes import Command, Result

KEY = KeyName("mail-credentials")
VERSION = VersionKey(KEY, VersionNumber(7), bytes(16), bytes(range(32)))
ENVELOPE = seal(VERSION, b"a token", {"b": "1", 'a"\u2028': "2"}, suite_by_name("AES-256-GCM"))
HEADER = parse_wrapping_header(ENVELOPE)
CALLER = Caller(1, 2, 3, account='mé"l', exe="/a b\\c")
SEALED = Sealed(ENVELOPE, VERSION)
OPENED = Opened(b"a token", VERSION)


class Log:
    """Takes what the recorder of calls writes."""

    takes_each = True

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.records: list[dict[str, Any]] = []

    def require_service_calls(self) -> None:
        """Take everything."""

    def note_text(self, fields: str) -> None:
        self.texts.append(fields)

    def note(self, record: dict[str, Any]) -> None:
        self.records.append(record)


class StandingClock:
    """Shows one time for ever."""

    def now(self) -> datetime:
        raise NotImplementedError

    def monotonic_s(self) -> float:
        return 0.0


def record(recorder: Recorder, caller: Caller, command: Command, result: Result) -> None:
    """Record an answered call."""
    is_seal = isinstance(command, Seal)
    rpc = UnaryRpc(
        "keyside.v1.EncryptionService",
        "Encrypt" if is_seal else "Decrypt",
        Operation.ENCRYPT if is_seal else Operation.DECRYPT,
        public=False,
        keeps=Keeps.CALL,
        event="encryption.encrypt" if is_seal else "encryption.decrypt",
        grantable=True,
        decode=bytes,
        read=bytes,
        serve=print,  # type: ignore[arg-type]
        write=bytes,
    )

    async def scenario() -> None:
        entry = recorder.open(UnaryCall(rpc, caller, command))
        await entry.begin()
        await entry.end(result)

    asyncio.run(scenario())


def make_recorder(log: Log) -> Recorder:
    return Recorder(log, lambda: ("", 0), StandingClock())  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [{}, {"b": "1", 'a"\u2028': "2"}])
@pytest.mark.parametrize("event", ["encryption.encrypt", "encryption.decrypt"])
def test_both_ways_make_the_same_record(event: str, context: dict[str, str]) -> None:
    log = Log()
    if event == "encryption.encrypt":
        record(make_recorder(log), CALLER, Seal(KEY, b"a token", context), SEALED)
    else:
        record(make_recorder(log), CALLER, Open(HEADER, ENVELOPE, context), OPENED)
    wanted = {
        "event": event,
        "caller": {"pid": 1, "uid": 2, "gid": 3, "account": 'mé"l', "exe": "/a b\\c"},
        "key": KEY,
        "digest": hashlib.sha256(ENVELOPE).hexdigest(),
        "version": 7,
        "context": sorted(context) or None,
        "outcome": "ok",
    }
    slow = build_body(wanted, "x-1", "now", 99)
    (text,) = log.texts
    assert f'"id":"x-1","time":"now",{text},"worker":99' == slow


def test_the_slow_way_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each record has to be made by itself, it holds the same facts."""
    log = Log()
    monkeypatch.setattr(log, "takes_each", False)
    record(make_recorder(log), CALLER, Seal(KEY, b"a token", {"b": "1"}), SEALED)
    (found,) = log.records
    assert found == {
        "event": "encryption.encrypt",
        "caller": CALLER.describe(),
        "key": KEY,
        "digest": hashlib.sha256(ENVELOPE).hexdigest(),
        "version": 7,
        "context": ["b"],
        "outcome": "ok",
    }


def test_the_caller_is_described_anew_with_each_answer_of_the_name_service() -> None:
    """A new answer is a new value; what was made of the former one goes with it."""
    log = Log()
    recorder = make_recorder(log)
    one = replace(CALLER, account="former")
    for _ in range(2):
        record(recorder, one, Seal(KEY, b"", {}), SEALED)
    assert len(recorder._described) == 1
    record(recorder, replace(one, account="latter"), Seal(KEY, b"", {}), SEALED)
    assert ["former" in text for text in log.texts] == [True, True, False]
    assert "latter" in log.texts[2]
    del one
    assert not recorder._described, "nothing is kept of callers that are gone"


def test_what_could_be_too_long_is_left_to_the_slow_way() -> None:
    log = Log()
    context = {f"{'n' * 100}{n}": "" for n in range(10)}
    record(make_recorder(log), CALLER, Seal(KEY, b"", context), SEALED)
    record(make_recorder(log), CALLER, Rewrap(HEADER, ENVELOPE), SEALED)
    assert not log.texts
    assert len(log.records) == 2
