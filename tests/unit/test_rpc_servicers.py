"""What KeyService and EncryptionService make of the keyring; here on a real store."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.api_scene import make_caller, serve
from tests.unit.made_store import BANK, MAIL, NOW, MadeStore, make_store

from keyside.errors import EnvelopeRejected, InvalidArgument
from keyside.names import KeyName, VersionNumber
from keyside.v1 import encryption_pb2, keys_pb2
from keyside_sidecar.access.policy import KeyPolicy, Policy, ResolvedPrincipals
from keyside_sidecar.api.v1 import encryption as encryption_messages
from keyside_sidecar.api.v1 import keys as key_messages
from keyside_sidecar.config import parse_config
from keyside_sidecar.errors import (
    BadRequest,
    NoSuchVersion,
    RotationConflict,
    VersionDisabled,
    VersionInUse,
    WrongState,
)
from keyside_sidecar.keys import Keyring, KeyRules, RolloverPolicy, presence
from keyside_sidecar.services.encryption import EncryptionService
from keyside_sidecar.services.failures import describe_failure
from keyside_sidecar.services.keys import KeyService, view_version
from keyside_sidecar.services.versions import Versions
from keyside_sidecar.store import VersionInfo, VersionState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

OPERATOR_UID = 1010
DAY = 86_400.0
RULES = KeyRules(RolloverPolicy(30 * DAY, 5_000, None, 60.0), 14 * DAY)
CONFIG = parse_config(
    f"""\
[sidecar]
socket = "/run/keyside.sock"
max_plaintext_bytes = 64
[store]
url = "sqlite:////keyside.db"
[root_key]
provider = "file"
path = "/root.key"
[audit]
path = "/audit.jsonl"
[keys.{MAIL}]
allow_users = [1001]
suite = "ChaCha20-Poly1305"
[keys.{BANK}]
allow_users = [1001]
""".encode(),
    Path("keyside.toml"),
)
ANYBODY = KeyPolicy(ResolvedPrincipals())
POLICY = Policy(
    operators=ResolvedPrincipals(uids=frozenset({OPERATOR_UID})),
    keys={MAIL: ANYBODY, BANK: ANYBODY},
)

CALLER = make_caller(OPERATOR_UID, login_uid=77)


@dataclass
class SetClock:
    """Stands still until it is set; what passes, passes at once."""

    at: datetime = NOW
    passed_s: float = 0.0

    def now(self) -> datetime:
        """Return the time that was set."""
        return self.at

    def monotonic_s(self) -> float:
        """Return the seconds that were let pass."""
        return self.passed_s


@dataclass
class Scene:
    """Both servicers over one keyring."""

    keyring: Keyring
    clock: SetClock
    keys: KeyService = field(init=False)
    encryption: EncryptionService = field(init=False)

    def __post_init__(self) -> None:
        self.keys = KeyService(CONFIG, POLICY, self.keyring, self.clock)
        self.encryption = EncryptionService(CONFIG, Versions(self.keyring, self.clock))

    async def ask(self, method: str, request: Any) -> Any:
        """Return the response to a call of KeyService."""
        return await serve(key_messages, self.keys, method, CALLER, request)

    async def use(self, method: str, request: Any) -> Any:
        """Return the response to a call of EncryptionService."""
        return await serve(encryption_messages, self.encryption, method, CALLER, request)

    async def show(self, **request: Any) -> keys_pb2.GetKeyResponse:
        """Return what GetKey says of MAIL."""
        response: keys_pb2.GetKeyResponse = await self.ask(
            "get_key", keys_pb2.GetKeyRequest(name=MAIL, **request)
        )
        return response

    async def rotate(self, **request: Any) -> keys_pb2.RotateKeyResponse:
        """Roll MAIL over."""
        message = keys_pb2.RotateKeyRequest(name=MAIL, **request)
        response: keys_pb2.RotateKeyResponse = await self.ask("rotate_key", message)
        return response

    async def disable(self, number: int) -> keys_pb2.DisableVersionResponse:
        """Disable a version of MAIL; and so on below."""
        message = keys_pb2.DisableVersionRequest(name=MAIL, number=number)
        response: keys_pb2.DisableVersionResponse = await self.ask("disable_version", message)
        return response

    async def enable(self, number: int) -> keys_pb2.EnableVersionResponse:
        """Enable."""
        message = keys_pb2.EnableVersionRequest(name=MAIL, number=number)
        response: keys_pb2.EnableVersionResponse = await self.ask("enable_version", message)
        return response

    async def destroy(self, number: int) -> keys_pb2.DestroyVersionResponse:
        """Schedule destruction."""
        message = keys_pb2.DestroyVersionRequest(name=MAIL, number=number)
        response: keys_pb2.DestroyVersionResponse = await self.ask("destroy_version", message)
        return response

    async def cancel(self, number: int) -> keys_pb2.CancelDestroyVersionResponse:
        """Call destruction off."""
        message = keys_pb2.CancelDestroyVersionRequest(name=MAIL, number=number)
        response: keys_pb2.CancelDestroyVersionResponse = await self.ask(
            "cancel_destroy_version", message
        )
        return response

    async def encrypt(self, plaintext: bytes, context: dict[str, str] | None = None) -> bytes:
        """Return an envelope."""
        request = encryption_pb2.EncryptRequest(key=MAIL, plaintext=plaintext, context=context)
        envelope: bytes = (await self.use("encrypt", request)).envelope
        return envelope

    async def decrypt(self, envelope: bytes, context: dict[str, str] | None = None) -> bytes:
        """Return a plaintext."""
        request = encryption_pb2.DecryptRequest(envelope=envelope, context=context)
        plaintext: bytes = (await self.use("decrypt", request)).plaintext
        return plaintext

    async def reencrypt(
        self, envelope: bytes, context: dict[str, str] | None = None
    ) -> encryption_pb2.ReencryptResponse:
        """Re-encrypt."""
        request = encryption_pb2.ReencryptRequest(envelope=envelope, context=context)
        response: encryption_pb2.ReencryptResponse = await self.use("reencrypt", request)
        return response

    async def read_usage(self) -> dict[int, keys_pb2.VersionUsage]:
        """Return what is shown of use, after the store was told of all."""
        await self.keyring.flush_usage()
        return {version.number: version.usage for version in (await self.show()).versions}


@pytest.fixture
def made(tmp_path: Path) -> MadeStore:
    tmp_path.chmod(0o700)
    return make_store(tmp_path)


@asynccontextmanager
async def scene_of(made: MadeStore) -> AsyncIterator[Scene]:
    clock = SetClock()
    rules = {MAIL: RULES}
    keyring = Keyring(made.open(), [MAIL, BANK], clock=clock, poll_interval_s=0.02, rules=rules)
    await keyring.start()
    try:
        yield Scene(keyring, clock)
    finally:
        await keyring.stop()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def list_events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, dict[str, Any]]]:
    """Return what KeyService has logged: event, level, facts."""
    return [
        (record.message, record.levelno, record.__dict__["facts"])
        for record in caplog.records
        if record.name == "keyside_sidecar.services.keys"
        and record.message != "key change requested"
    ]


State = keys_pb2.KeyVersionState


def state_of(version: keys_pb2.KeyVersion) -> str:
    return State.Name(version.state).removeprefix("KEY_VERSION_STATE_")


# --- showing


def test_a_key_shows_its_policy_and_its_next_rollover(made: MadeStore) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            key = (await scene.show()).key
            assert (key.name, key.current_version, key.pending_version) == (MAIL, 1, 0)
            assert key.suite == "ChaCha20-Poly1305"
            assert key.rollover.rotate_every.ToTimedelta() == timedelta(days=30)
            assert key.rollover.propagation.ToTimedelta() == timedelta(seconds=60)
            assert (key.rollover.rotate_after_messages, key.rollover.rotate_after_bytes) == (
                5_000,
                0,
            )
            assert key.next_rollover_at.ToDatetime(UTC) == NOW + timedelta(days=30)
            scene.clock.at = NOW + timedelta(days=10)
            assert (await scene.show()).key.next_rollover_at == key.next_rollover_at
            listed = await scene.ask("list_keys", keys_pb2.ListKeysRequest())
            assert [item.name for item in listed.keys] == [BANK, MAIL]
            assert listed.keys[1] == key

    run(scenario())


def test_a_successor_that_waits_is_shown(made: MadeStore) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            scene.clock.at = NOW + timedelta(days=30, seconds=-50)
            async with asyncio.timeout(20):
                while not (shown := await scene.show()).key.pending_version:
                    await asyncio.sleep(0.02)
            assert (shown.key.current_version, shown.key.pending_version) == (1, 2)
            pending, current = shown.versions
            assert (state_of(pending), state_of(current)) == ("PENDING", "CURRENT")
            assert not pending.HasField("activated_at")
            assert not pending.HasField("made_by_uid"), "no operator made it"

    run(scenario())


def test_a_key_whose_news_has_not_arrived_is_shown_as_the_store_has_it(made: MadeStore) -> None:
    """What is in memory is of the version before; the answer is not a mixture."""

    async def scenario() -> None:
        clock = SetClock(NOW + timedelta(days=2))
        keyring = Keyring(made.open(), [MAIL], clock=clock, poll_interval_s=3600, rules={})
        await keyring.start()
        try:
            scene = Scene(keyring, clock)
            other = made.open()
            other.rotate(MAIL, actor_uid=5, expected_current=0, now=NOW + timedelta(days=1))
            other.close()
            key = (await scene.show()).key
            assert key.current_version == 2
            assert key.next_rollover_at.ToDatetime(UTC) == NOW + timedelta(days=1 + 90)
        finally:
            await keyring.stop()

    run(scenario())


def test_use_is_shown_for_the_whole_page_with_one_question(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            envelope = await scene.encrypt(b"secret")
            for _ in range(4):
                await scene.rotate()
            await scene.keyring.flush_usage()
            scene.clock.at = NOW + timedelta(hours=3)
            assert await scene.decrypt(envelope) == b"secret"
            await scene.keyring.flush_usage()
            asked: list[list[int]] = []
            read = scene.keyring.read_usage

            async def note(key: KeyName, numbers: Any) -> Any:
                asked.append(list(numbers))
                return await read(key, numbers)

            monkeypatch.setattr(scene.keyring, "read_usage", note)
            page = await scene.show(page_size=3)
            rest = await scene.show(page_size=3, page_token=page.next_page_token)
            assert asked == [[5, 4, 3], [2, 1]]
            first = rest.versions[1].usage
            assert first.messages >= 1
            assert first.plaintext_bytes >= 6
            assert first.last_sealed_at.ToDatetime(UTC) == NOW
            assert first.last_opened_at.ToDatetime(UTC) == NOW + timedelta(hours=3)
            for version in (*page.versions, rest.versions[0]):
                assert version.HasField("usage")
                assert version.usage == keys_pb2.VersionUsage()

    run(scenario())


@pytest.mark.parametrize(("observed_s", "left_s"), [(0, 100), (99.5, 0.5), (100, 0), (1e9, 0)])
def test_what_is_left_until_destruction_is_never_below_nothing(
    observed_s: float, left_s: float
) -> None:
    info = VersionInfo(
        MAIL, VersionNumber(1), bytes(16), VersionState.DISABLED, NOW, destroy_due_s=100.0
    )
    message = key_messages.make_version(view_version(info, observed_s))
    assert message.HasField("destroy_in")
    assert message.destroy_in.ToTimedelta() == timedelta(seconds=left_s)
    assert not message.HasField("usage")


# --- changing


def test_each_change_of_a_version_is_answered_and_logged(
    made: MadeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Who, what, which version: the operator's uid, login and process too."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with scene_of(made) as scene:
            assert (await scene.rotate(expected_current=1)).version.made_by_uid == OPERATOR_UID
            disabled = (await scene.disable(1)).version
            assert (state_of(disabled), disabled.disabled_by_uid) == ("DISABLED", OPERATOR_UID)
            assert disabled.disabled_at.ToDatetime(UTC) == NOW
            assert state_of((await scene.enable(1)).version) == "ARCHIVED"
            destroyed = (await scene.destroy(1)).version
            assert (state_of(destroyed), destroyed.disabled_by_uid) == ("DISABLED", OPERATOR_UID)
            assert destroyed.destroy_in.ToTimedelta() == timedelta(days=14)
            assert destroyed.destroy_requested_by_uid == OPERATOR_UID
            assert destroyed.destroy_requested_at.ToDatetime(UTC) == NOW
            kept = (await scene.cancel(1)).version
            assert state_of(kept) == "DISABLED"
            assert not kept.HasField("destroy_in")
            assert not kept.HasField("destroy_requested_by_uid")
            assert (await scene.show()).versions[1].disabled_by_uid == OPERATOR_UID

    run(scenario())
    events = list_events(caplog)
    assert [(what, level, facts["version"]) for what, level, facts in events] == [
        ("key rotated", logging.INFO, 2),
        ("version disabled", logging.INFO, 1),
        ("version enabled", logging.INFO, 1),
        ("destruction scheduled", logging.WARNING, 1),
        ("destruction cancelled", logging.INFO, 1),
    ]
    for _, _, facts in events:
        who = {"key": MAIL, "uid": OPERATOR_UID, "login_uid": 77, "pid": 4711}
        assert {name: facts[name] for name in who} == who
    assert events[0][2]["previous"] == 1
    assert events[3][2]["in_s"] == 14 * DAY


def test_what_may_have_leaked_is_disabled_by_the_rotation(
    made: MadeStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            envelope = await scene.encrypt(b"secret")
            done = await scene.rotate(compromised=True)
            assert (state_of(done.version), state_of(done.previous)) == ("CURRENT", "DISABLED")
            assert done.previous.disabled_by_uid == OPERATOR_UID
            assert list(done.unacknowledged) == []
            assert done.key.current_version == 2
            with pytest.raises(VersionDisabled):
                await scene.decrypt(envelope)

    run(scenario())
    (entry,) = list_events(caplog)
    assert entry[:2] == ("key rotated", logging.WARNING)
    assert entry[2]["compromised"] is True


def test_processes_that_have_not_taken_a_change_in_are_named(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here it is a second keyring that looks once an hour."""
    monkeypatch.setattr(presence, "_WAIT_S", 0.2)
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with scene_of(made) as scene:
            deaf = Keyring(made.open(), [MAIL], clock=scene.clock, poll_interval_s=3600)
            await deaf.start()
            try:
                await scene.rotate()
                answers: list[Any] = [
                    await scene.disable(1),
                    await scene.enable(1),
                    await scene.destroy(1),
                    await scene.rotate(compromised=True),
                ]
                own = presence.describe_self()
                for answer in answers:
                    (late,) = answer.unacknowledged
                    assert (late.host, late.pid) == (own.host, own.pid)
                    seen_at = late.seen_at.ToDatetime(UTC)
                    assert abs(datetime.now(UTC) - seen_at) < timedelta(minutes=1)
                logged = [facts["unacknowledged"] for _, _, facts in list_events(caplog)]
                assert logged == [[], *[[f"{own.host}/{own.pid}"]] * len(answers)]
            finally:
                await deaf.stop()

    run(scenario())


def test_what_can_not_be_done_is_refused_and_changes_nothing(
    made: MadeStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            await scene.rotate()
            await scene.disable(1)
            await scene.destroy(1)
            before = await scene.show()
            caplog.clear()
            for change in (scene.disable, scene.enable, scene.destroy, scene.cancel):
                with pytest.raises(BadRequest) as missing:
                    await change(0)
                assert missing.value.field == "number"
                for number in (3, 2**32 - 1):
                    with pytest.raises(NoSuchVersion):
                        await change(number)
            for change in (scene.disable, scene.destroy):
                with pytest.raises(VersionInUse):
                    await change(2)
            with pytest.raises(WrongState):
                await scene.enable(1)
            with pytest.raises(WrongState):
                await scene.cancel(2)
            with pytest.raises(RotationConflict):
                await scene.rotate(expected_current=1, compromised=True)
            assert list_events(caplog) == []
            assert await scene.show() == before

    run(scenario())


@pytest.mark.parametrize(
    ("error", "code", "reason", "text"),
    [
        (NoSuchVersion(MAIL, 9), "NOT_FOUND", "VERSION_NOT_FOUND", f"{MAIL} has no version 9"),
        (
            VersionInUse(MAIL, 9),
            "FAILED_PRECONDITION",
            "VERSION_IN_USE",
            f"version 9 of {MAIL} is the current one",
        ),
        (
            WrongState(MAIL, 9, "DESTROYED", "is destroyed", "restore a backup"),
            "FAILED_PRECONDITION",
            "VERSION_STATE",
            f"version 9 of {MAIL} is destroyed",
        ),
    ],
)
def test_refusals_of_changes_have_their_status(
    error: Exception, code: str, reason: str, text: str
) -> None:
    failure = describe_failure(error, "/keyside.v1.KeyService/EnableVersion")
    assert (failure.code.name, failure.reason, failure.text) == (code, reason, text)
    assert failure.remedy


# --- encrypting


def test_use_is_counted_where_something_was_sealed_or_opened(made: MadeStore) -> None:
    """Rewrapping opens the old header and makes an envelope under the new version."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            envelope = await scene.encrypt(b"secret")
            await scene.rotate()
            usage = await scene.read_usage()
            assert usage[1].messages >= 1
            assert not usage[1].HasField("last_opened_at")
            assert usage[2].messages == 0
            request = encryption_pb2.RewrapRequest(envelope=envelope)
            await scene.use("rewrap", request)
            usage = await scene.read_usage()
            assert usage[1].HasField("last_opened_at")
            assert usage[2].messages >= 1, "an envelope under it was made"
            await scene.reencrypt(envelope)
            usage = await scene.read_usage()
            assert usage[2].messages >= 2
            assert usage[2].HasField("last_sealed_at")

    run(scenario())


def test_what_does_not_open_is_no_use_and_is_not_sealed_anew(made: MadeStore) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            envelope = await scene.encrypt(b"secret", {"record": "1"})
            await scene.rotate()
            for context in ({"record": "2"}, {}):
                with pytest.raises(EnvelopeRejected):
                    await scene.decrypt(envelope, context)
                with pytest.raises(EnvelopeRejected):
                    await scene.reencrypt(envelope, context)
            with pytest.raises(EnvelopeRejected):
                await scene.reencrypt(envelope[:-1], {"record": "1"})
            with pytest.raises(InvalidArgument):
                await scene.reencrypt(envelope, {"": "1"})
            usage = await scene.read_usage()
            assert not usage[1].HasField("last_opened_at")
            assert usage[2] == keys_pb2.VersionUsage()

    run(scenario())


def test_reencrypting_gives_a_new_data_key_under_the_current_version(made: MadeStore) -> None:
    """So the version that sealed it before, and its data key, are no longer of use."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            context = {"record": "1"}
            envelope = await scene.encrypt(b"secret", context)
            await scene.rotate()
            rewrapped = await scene.use("rewrap", encryption_pb2.RewrapRequest(envelope=envelope))
            answer = await scene.reencrypt(envelope, context)
            assert (answer.previous.number, answer.version.number) == (1, 2)
            assert answer.version.key == MAIL
            payload = envelope[-16:]
            assert rewrapped.envelope.endswith(payload), "rewrapping carries the payload over"
            assert not answer.envelope.endswith(payload)
            await scene.disable(1)
            assert await scene.decrypt(answer.envelope, context) == b"secret"
            with pytest.raises(VersionDisabled):
                await scene.reencrypt(envelope, context)
            again = await scene.reencrypt(answer.envelope, context)
            assert (again.previous.number, again.version.number) == (2, 2)
            assert again.envelope != answer.envelope

    run(scenario())


def test_a_plaintext_over_the_limit_is_refused_before_it_is_counted(made: MadeStore) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            with pytest.raises(BadRequest, match="has 65 bytes; at most 64"):
                await scene.encrypt(b"x" * 65)
            assert (await scene.read_usage())[1] == keys_pb2.VersionUsage()
            assert await scene.decrypt(await scene.encrypt(b"x" * 64)) == b"x" * 64

    run(scenario())
