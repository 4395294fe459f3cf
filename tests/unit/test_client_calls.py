"""The client's calls to a real gRPC server on a real socket: values, errors, deadlines."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.unit.sidecar_double import STARTED_S, VERSION_COUNT, Double, Failure

import keyside
from keyside import errors
from keyside.v1 import keys_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

SECRET = b"plaintext-that-must-not-show"


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    tmp_path.chmod(0o700)
    with Double(tmp_path / "k.sock") as running:
        yield running


@pytest.fixture
def client(double: Double) -> Iterator[keyside.Client]:
    with keyside.Client(double.socket) as made:
        yield made


def run(double: Double, use: Callable[[keyside.AsyncClient], Awaitable[Any]], **given: Any) -> Any:
    """Run ``use`` with an AsyncClient."""

    async def go() -> Any:
        async with keyside.AsyncClient(double.socket, **given) as client:
            return await use(client)

    return asyncio.run(go())


def test_encrypt_decrypt_and_rewrap_carry_bytes_and_context(client: keyside.Client) -> None:
    envelope = client.encrypt("mail", bytearray(b"abc"), {"b": "2", "a": ""})
    assert envelope == b"KS:a=;b=2;:cba"
    assert client.decrypt(memoryview(envelope)) == b"abc"
    assert client.rewrap(envelope) == b"KT:a=;b=2;:cba"
    assert client.reencrypt(bytearray(envelope), {"b": "2"}) == b"KR:a=;b=2;:cba"


def test_the_async_client_has_the_same_surface_and_answers(double: Double) -> None:
    async def use(client: keyside.AsyncClient) -> None:
        envelope = await client.encrypt("mail", b"abc", {"a": "1"})
        assert await client.decrypt(envelope, {"a": "1"}) == b"abc"
        assert (await client.rewrap(envelope)).startswith(b"KT")
        assert (await client.reencrypt(envelope, {"a": "1"})).startswith(b"KR")
        assert [key.name for key in await client.list_keys()] == ["mail", "payroll"]
        assert (await client.get_key("mail")).version_count == VERSION_COUNT
        numbers = [version.number async for version in client.iter_versions("mail")]
        assert numbers == list(range(VERSION_COUNT, 0, -1))
        assert (await client.rotate_key("mail", 250)).version.number == VERSION_COUNT + 1
        assert (await client.rotate_key("mail", 250, compromised=True)).key.name == "mail"
        for change in (
            await client.disable_version("mail", 3),
            await client.enable_version("mail", 3),
            await client.destroy_version("mail", 3),
            await client.cancel_destroy_version("mail", 3),
        ):
            assert (change.version.number, change.unacknowledged) == (3, ())
        assert (await client.status()).is_serving

    run(double, use)
    sync = {name for name in dir(keyside.Client) if not name.startswith("_")}
    assert sync == {name for name in dir(keyside.AsyncClient) if not name.startswith("_")}


def test_everything_that_the_package_exports_is_there() -> None:
    assert set(keyside.__all__) <= set(dir(keyside))
    assert all(getattr(keyside, name) is not None for name in keyside.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        keyside.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_facts_are_frozen_values_with_utc_times(client: keyside.Client) -> None:
    key = client.get_key("mail")
    assert key.created_at == datetime.fromtimestamp(STARTED_S, UTC)
    assert key.rotated_at is None
    status = client.status()
    assert status.serving is keyside.Serving.YES
    assert status.you is not None
    assert status.you.login_uid is None
    with pytest.raises(AttributeError):
        key.name = "other"  # type: ignore[misc]


def test_versions_come_newest_first_over_all_pages(client: keyside.Client, double: Double) -> None:
    versions = list(client.iter_versions("mail", page_size=100))
    assert [version.number for version in versions] == list(range(VERSION_COUNT, 0, -1))
    assert versions[0].id == VERSION_COUNT.to_bytes(16).hex()
    assert versions[0].state is keyside.KeyVersionState.ARCHIVED
    assert double.calls == ["GetKey"] * 3


def test_versions_and_keys_carry_all_that_the_sidecar_tells(
    client: keyside.Client, double: Double
) -> None:
    message = keys_pb2.KeyVersion(
        number=3,
        state=keys_pb2.KEY_VERSION_STATE_DISABLED,
        made_by_uid=0,
        disabled_by_uid=1000,
        destroy_requested_by_uid=1001,
    )
    for name in ("disabled_at", "destroy_requested_at", "destroyed_at"):
        getattr(message, name).seconds = STARTED_S
    message.destroy_in.seconds = 60
    message.usage.messages = 5
    message.usage.last_opened_at.seconds = STARTED_S
    double.versions = [message]
    double.key.pending_version = 251
    double.key.rollover.rotate_every.seconds = 3600
    double.key.rollover.rotate_after_bytes = 7
    started = datetime.fromtimestamp(STARTED_S, UTC)
    (version,) = client.iter_versions("mail")
    assert version == keyside.KeyVersion(
        number=3,
        id="",
        state=keyside.KeyVersionState.DISABLED,
        created_at=None,
        activated_at=None,
        archived_at=None,
        made_by_uid=0,
        disabled_at=started,
        disabled_by_uid=1000,
        destroy_requested_at=started,
        destroy_requested_by_uid=1001,
        destroy_in=timedelta(seconds=60),
        destroyed_at=started,
        usage=keyside.VersionUsage(None, started, 5, 0),
    )
    key = client.get_key("mail")
    assert (key.pending_version, key.next_rollover_at) == (251, None)
    assert key.rollover == keyside.RolloverPolicy(timedelta(hours=1), None, 7, timedelta(0))


def test_changes_name_who_has_not_acknowledged(client: keyside.Client, double: Double) -> None:
    late = keys_pb2.SidecarProcess(host="alpha", pid=11)
    late.seen_at.seconds = STARTED_S
    double.unacknowledged = [late]
    expected = (keyside.SidecarProcess("alpha", 11, datetime.fromtimestamp(STARTED_S, UTC)),)
    assert client.rotate_key("mail", 250, compromised=True).unacknowledged == expected
    assert client.disable_version("mail", 3).unacknowledged == expected
    assert client.enable_version("mail", 3).unacknowledged == expected
    destroyed = client.destroy_version("mail", 3)
    assert destroyed.unacknowledged == expected
    assert destroyed.version.destroy_in == timedelta(days=7)
    assert client.cancel_destroy_version("mail", 3).unacknowledged == ()


@pytest.mark.parametrize(
    ("failure", "kind", "reason"),
    [
        (("INVALID_ARGUMENT", "ENVELOPE_REJECTED"), errors.EnvelopeRejected, "ENVELOPE_REJECTED"),
        (("INVALID_ARGUMENT", "INVALID_ARGUMENT"), errors.InvalidArgument, "INVALID_ARGUMENT"),
        (("PERMISSION_DENIED", "NOT_ALLOWED"), errors.NotPermitted, "NOT_ALLOWED"),
        (("PERMISSION_DENIED", "PEER_PERSON_LOGIN"), errors.NotPermitted, "PEER_PERSON_LOGIN"),
        (("UNAUTHENTICATED", "PEER_PID_ZERO"), errors.NotIdentified, "PEER_PID_ZERO"),
        (("FAILED_PRECONDITION", "VERSION_DISABLED"), errors.VersionUnusable, "VERSION_DISABLED"),
        (("FAILED_PRECONDITION", "VERSION_DESTROYED"), errors.VersionUnusable, "VERSION_DESTROYED"),
        (("FAILED_PRECONDITION", "VERSION_IN_USE"), errors.WrongVersionState, "VERSION_IN_USE"),
        (("FAILED_PRECONDITION", "VERSION_STATE"), errors.WrongVersionState, "VERSION_STATE"),
        (("NOT_FOUND", "VERSION_NOT_FOUND"), errors.NoSuchVersion, "VERSION_NOT_FOUND"),
        (("NOT_FOUND", "NEW_ONE"), errors.UnexpectedAnswer, "NEW_ONE"),
        (("FAILED_PRECONDITION", "NEW_ONE"), errors.UnexpectedAnswer, "NEW_ONE"),
        (("ABORTED", "ROTATION_CONFLICT"), errors.Conflict, "ROTATION_CONFLICT"),
        (("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"), errors.LimitExceeded, "TOO_MANY_CALLS"),
        (("UNIMPLEMENTED", "METHOD_UNKNOWN"), errors.UnexpectedAnswer, "METHOD_UNKNOWN"),
        (("INTERNAL", "INTERNAL"), errors.UnexpectedAnswer, "INTERNAL"),
    ],
)
def test_a_status_becomes_its_own_error(
    client: keyside.Client,
    double: Double,
    failure: tuple[str, str],
    kind: type[errors.KeysideError],
    reason: str,
) -> None:
    code, given = failure
    metadata = {"remedy": "do this", "request_id": "r-1"}

    def fail() -> Failure:
        return Failure(grpc.StatusCode[code], "the text", reason=given, metadata=metadata)

    double.failures = [fail()]
    with pytest.raises(errors.KeysideError) as caught:
        client.encrypt("mail", SECRET)
    double.failures = [fail()]
    with pytest.raises(kind) as caught_async:
        run(double, lambda c: c.encrypt("mail", SECRET))
    for error in (caught.value, caught_async.value):
        assert type(error) is kind
        assert (error.code, error.reason, error.remedy) == (code, reason, "do this")
        assert (str(error), error.request_id) == ("the text", "r-1")
        assert error.__context__ is None
    assert double.calls == ["Encrypt", "Encrypt"]
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


def test_field_violations_are_named(client: keyside.Client, double: Double) -> None:
    double.failures = [
        Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            "the request is not valid",
            reason="INVALID_ARGUMENT",
            violations={"plaintext": "has 2 bytes; at most 1"},
        )
    ]
    with pytest.raises(errors.InvalidArgument, match="plaintext: has 2 bytes; at most 1") as caught:
        client.encrypt("mail", b"ab")
    assert caught.value.violations == (("plaintext", "has 2 bytes; at most 1"),)


@pytest.mark.parametrize(
    "failure",
    [
        Failure(grpc.StatusCode.UNKNOWN, f"Exception calling application: {SECRET!r}"),
        Failure(grpc.StatusCode.PERMISSION_DENIED, repr(SECRET), reason="X", domain="elsewhere"),
        Failure(grpc.StatusCode.INTERNAL, repr(SECRET), packed=b"\xff\xff\xff"),
    ],
)
def test_text_that_is_not_the_sidecars_own_is_not_shown(
    client: keyside.Client, double: Double, failure: Failure
) -> None:
    """I7: gRPC puts an unhandled exception's own text into the status."""
    double.failures = [failure]
    with pytest.raises(errors.UnexpectedAnswer) as caught:
        client.encrypt("mail", SECRET)
    assert "must-not-show" not in f"{caught.value!r} {caught.value} {caught.value.remedy}"
    assert caught.value.code == failure.code.name


def test_secrets_are_not_in_reprs(double: Double) -> None:
    """I7: a client's repr names its socket and nothing else."""
    client = keyside.Client(double.socket)
    assert repr(client) == f"<keyside.Client unix:{double.socket}>"
    assert repr(keyside.AsyncClient(double.socket)) == f"<keyside.AsyncClient unix:{double.socket}>"


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.encrypt("Mail", b""),
        lambda c: c.encrypt("mail", "text"),
        lambda c: c.encrypt("mail", b"", {"a": 1}),
        lambda c: c.encrypt("mail", b"", {"a": "\udcff"}),
        lambda c: c.encrypt("mail", b"", "ab"),
        lambda c: c.encrypt("mail", b"", timeout_s=0),
        lambda c: c.encrypt("mail", b"", timeout_s=float("inf")),
        lambda c: c.decrypt(None),
        lambda c: c.rotate_key("mail", 0),
        lambda c: c.iter_versions("mail", page_size=1001),
        lambda c: c.reencrypt("text"),
        lambda c: c.disable_version("mail", 0),
        lambda c: c.enable_version("Mail", 1),
        lambda c: c.destroy_version("mail", 2**32),
        lambda c: c.cancel_destroy_version("mail", "1"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_sent(
    client: keyside.Client, double: Double, call: Callable[[keyside.Client], object]
) -> None:
    with pytest.raises(errors.InvalidArgument):
        call(client)
    assert double.calls == []


def test_a_message_within_the_clients_size_reaches_the_sidecar(
    client: keyside.Client,
) -> None:
    assert len(client.encrypt("mail", bytes(17 * 1024 * 1024))) > 17 * 1024 * 1024
    with pytest.raises(errors.LimitExceeded) as caught:
        client.encrypt("mail", bytes(19 * 1024 * 1024))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


def test_every_call_has_a_deadline(double: Double) -> None:
    double.delay_s = 1.0
    begun = time.monotonic()
    with (
        keyside.Client(double.socket, timeout_s=0.2) as client,
        pytest.raises(errors.DeadlineExceeded, match=r"no answer within 0\.2 s"),
    ):
        client.decrypt(b"x")
    with pytest.raises(errors.DeadlineExceeded):
        run(double, lambda c: c.decrypt(b"x", timeout_s=0.2))
    assert time.monotonic() - begun < 2


def test_a_closed_client_says_so(double: Double) -> None:
    client = keyside.Client(double.socket)
    client.status()
    client.close()
    client.close()
    with pytest.raises(errors.ClosedClient):
        client.status()

    async def use(client: keyside.AsyncClient) -> None:
        await client.status()
        await client.close()
        with pytest.raises(errors.ClosedClient):
            await client.status()

    run(double, use)


def test_closing_ends_calls_under_way_with_closed_client(double: Double) -> None:
    double.delay_s = 1.0
    client = keyside.Client(double.socket)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            client.status()
        except errors.KeysideError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    double.entered.wait(5)
    client.close()
    thread.join(5)
    assert [type(error) for error in caught] == [errors.ClosedClient]

    async def use(client: keyside.AsyncClient) -> None:
        double.entered.clear()
        task = asyncio.create_task(client.status())
        await asyncio.to_thread(double.entered.wait, 5)
        await client.close()
        with pytest.raises(errors.ClosedClient):
            await task

    run(double, use)


def test_a_cancelled_task_stays_cancelled(double: Double) -> None:
    double.delay_s = 0.5

    async def use(client: keyside.AsyncClient) -> None:
        task = asyncio.create_task(client.status())
        await asyncio.to_thread(double.entered.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(double, use)


def test_an_async_client_belongs_to_one_event_loop(double: Double) -> None:
    client = keyside.AsyncClient(double.socket)

    async def use_and_close() -> None:
        await client.status()
        await client.close()

    asyncio.run(use_and_close())
    with pytest.raises(errors.ClosedClient) as caught:
        asyncio.run(use_and_close())
    assert caught.value.reason == "OTHER_LOOP"


def test_threads_share_a_client(client: keyside.Client) -> None:
    answers: list[bytes] = []

    def work(number: int) -> None:
        for _ in range(20):
            envelope = client.encrypt("mail", b"%d" % number)
            answers.append(client.decrypt(envelope))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == sorted(b"%d" % number for number in range(8) for _ in range(20))
