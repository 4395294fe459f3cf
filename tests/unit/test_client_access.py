"""The client's calls for access and audit: what is sent, what comes back, what is never shown."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.unit.access_double import (
    ASKED_S,
    CREDENTIAL,
    ID,
    NOW_S,
    OTHER_ID,
    approve,
    make_record,
    make_request,
)
from tests.unit.sidecar_double import Double, Failure

import keyside
from keyside import errors
from keyside.v1 import access_pb2, audit_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSWORD = "correct horse \u00e4"
HALF_AN_HOUR = timedelta(minutes=30)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    tmp_path.chmod(0o700)
    with Double(tmp_path / "k.sock") as running:
        running.access[ID] = make_request()
        yield running


@pytest.fixture
def client(double: Double) -> Iterator[keyside.Client]:
    with keyside.Client(double.socket) as made:
        yield made


def ask(client: keyside.Client, **given: Any) -> keyside.AccessRequest:
    return client.request_access(
        given.pop("key", "mail"),
        **{"reason": "why", "duration": HALF_AN_HOUR, "password": PASSWORD, **given},
    )


def test_a_request_carries_all_that_is_asked(client: keyside.Client, double: Double) -> None:
    made = ask(
        client,
        ticket="T",
        operations=[keyside.AccessOperation.DECRYPT, keyside.AccessOperation.REWRAP],
        versions=[keyside.VersionRange(3, 5), 7],
        context={"a": "1"},
        max_uses=2,
    )
    (sent,) = double.asked
    expected = access_pb2.RequestAccessRequest(
        key="mail",
        reason="why",
        ticket="T",
        operations=[1, 2],  # type: ignore[list-item]
        versions=[
            access_pb2.VersionRange(first=3, last=5),
            access_pb2.VersionRange(first=7, last=7),
        ],
        context={"a": "1"},
        max_uses=2,
        password=PASSWORD.encode(),
    )
    expected.duration.seconds = 1800
    assert sent == expected
    assert (made.id, made.state) == (ID, keyside.AccessState.PENDING)


def test_a_request_is_read_with_all_its_facts(client: keyside.Client, double: Double) -> None:
    approve(double.access[ID], 0, "bob", comment="fine")
    approve(double.access[ID], 1, "carol", struck="LEFT_GROUP")
    double.access[ID].state = access_pb2.ACCESS_STATE_CLOSING
    double.access[ID].ended_at.seconds = ASKED_S
    double.access[ID].end_reason = "REVOKED"
    double.access[ID].ended_by.uid = 0
    double.access[ID].used = 3
    double.uses = [
        access_pb2.AccessUse(
            operation=access_pb2.ACCESS_OPERATION_DECRYPT,
            key="mail",
            version=4,
            envelope_sha256=b"\xab" * 32,
            context={"account": "42"},
        )
    ]
    double.uses[0].used_at.seconds = ASKED_S
    asked = datetime.fromtimestamp(ASKED_S, UTC)
    story = client.get_access(ID)
    found = story.request
    assert found == keyside.AccessRequest(
        id=ID,
        key="mail",
        requester=keyside.Person(1001, "anna"),
        host="host-1",
        reason="mails of user 42 do not arrive",
        ticket="INC-42",
        operations=(keyside.AccessOperation.DECRYPT,),
        versions=(keyside.VersionRange(3, 5), keyside.VersionRange(7, 7)),
        context={"account": "42"},
        max_uses=10,
        duration=HALF_AN_HOUR,
        state=keyside.AccessState.CLOSING,
        created_at=asked,
        decide_by=datetime.fromtimestamp(NOW_S, UTC),
        approved_at=None,
        activate_by=None,
        activated_at=None,
        expires_at=None,
        ended_at=asked,
        end_reason="REVOKED",
        ended_by=keyside.Person(0, ""),
        end_comment="",
        levels=found.levels,
        used=3,
    )
    assert found.is_over
    managers, legal = found.levels
    assert (managers.group, managers.is_complete, managers.approvals_given) == ("managers", True, 1)
    assert (legal.is_complete, legal.approvals_given) == (False, 0)
    assert legal.approvals[0].struck == "LEFT_GROUP"
    assert story.uses == (
        keyside.AccessUse(
            asked, keyside.AccessOperation.DECRYPT, "mail", 4, "ab" * 32, {"account": "42"}
        ),
    )


def test_what_a_later_sidecar_says_is_read_as_unknown(
    client: keyside.Client, double: Double
) -> None:
    double.access[ID].state = 99  # type: ignore[assignment]
    double.access[ID].operations.append(99)  # type: ignore[arg-type]
    found = client.get_access(ID).request
    assert found.state is keyside.AccessState.UNKNOWN
    assert found.operations[1] is keyside.AccessOperation.UNKNOWN
    assert not found.is_over


def test_lists_go_over_all_pages(client: keyside.Client, double: Double) -> None:
    double.access[OTHER_ID] = make_request(OTHER_ID, state=access_pb2.ACCESS_STATE_ENDED)
    double.page = 1
    assert [one.id for one in client.list_access()] == [ID]
    assert [one.id for one in client.list_access(include_ended=True)] == [ID, OTHER_ID]
    double.records = [make_record(number, "access.use") for number in range(1, 4)]
    newest_first = client.search_audit()
    assert [record.sequence for record in newest_first] == [3, 2, 1]
    assert [record.sequence for record in client.search_audit(oldest_first=True)] == [1, 2, 3]


def test_filters_are_sent(client: keyside.Client, double: Double) -> None:
    when = datetime(2026, 11, 25, 22, 45, tzinfo=UTC)
    found = client.search_audit(
        key="mail",
        account="anna",
        uid=0,
        access_id=ID,
        event="access",
        outcome="ok",
        after=when,
        before=when + timedelta(hours=1),
        record_id="r",
        first_sequence=5,
        last_sequence=9,
        page_size=7,
    )
    assert list(found) == []
    expected = audit_pb2.SearchRecordsRequest(
        key="mail",
        account="anna",
        uid=0,
        access_id=ID,
        event="access",
        outcome="ok",
        record_id="r",
        first_sequence=5,
        last_sequence=9,
        page_size=7,
    )
    expected.after.FromDatetime(when)
    expected.before.FromDatetime(when + timedelta(hours=1))
    assert double.asked == [expected]


def test_a_record_is_the_logs_own_line_and_what_it_says(
    client: keyside.Client, double: Double
) -> None:
    double.records = [make_record(7, "checkpoint", details={"number": 1})]
    record = client.get_audit_checkpoint()
    assert (record.sequence, record.json) == (7, double.records[0].json)
    assert record.fields["details"] == {"number": 1}
    double.records = [audit_pb2.AuditRecord(sequence=8, json="[]")]
    with pytest.raises(errors.UnexpectedAnswer, match="record 8"):
        client.get_audit_checkpoint()


ACTIONS: dict[str, Callable[[keyside.Client], object]] = {
    "RequestAccess": ask,
    "ApproveAccess": lambda client: client.approve_access(ID, password=PASSWORD, comment="ok"),
    "DenyAccess": lambda client: client.deny_access(ID, password=PASSWORD, reason="no"),
    "ActivateAccess": lambda client: client.activate_access(ID, password=PASSWORD),
    "CancelAccess": lambda client: client.cancel_access(ID),
    "RevokeAccess": lambda client: client.revoke_access(ID, reason="done"),
}
REPEATED = {"CancelAccess", "RevokeAccess"}


@pytest.mark.parametrize("name", ACTIONS)
def test_only_what_ends_access_is_repeated_by_itself(
    client: keyside.Client, double: Double, name: str
) -> None:
    double.failures = [
        Failure(grpc.StatusCode.UNAVAILABLE, "no record", reason="AUDIT_UNAVAILABLE")
    ]
    if name in REPEATED:
        ACTIONS[name](client)
        assert double.calls == [name, name]
    else:
        with pytest.raises(errors.Unavailable) as caught:
            ACTIONS[name](client)
        assert caught.value.reason == "AUDIT_UNAVAILABLE"
        assert double.calls == [name]


def test_a_call_with_a_password_may_take_longer(double: Double) -> None:
    double.delay_s = 0.4
    with keyside.Client(double.socket, timeout_s=0.2) as client:
        assert client.approve_access(ID, password=b"x").id == ID
        begun = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            client.approve_access(ID, password=b"x", timeout_s=0.1)
        with pytest.raises(errors.DeadlineExceeded):
            client.get_access(ID)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "call",
    [
        lambda client: ask(client, key="Mail"),
        lambda client: ask(client, duration=timedelta(0)),
        lambda client: ask(client, duration=timedelta(seconds=1.5)),
        lambda client: ask(client, duration=1800),
        lambda client: ask(client, password=""),
        lambda client: ask(client, password="a\0b"),
        lambda client: ask(client, password="\udc80"),
        lambda client: ask(client, password=b"x" * 1025),
        lambda client: ask(client, password=None),
        lambda client: ask(client, reason=b"why"),
        lambda client: ask(client, reason="\udc80"),
        lambda client: ask(client, operations=["decrypt"]),
        lambda client: ask(client, operations=[keyside.AccessOperation.UNKNOWN]),
        lambda client: ask(client, versions=[0]),
        lambda client: ask(client, versions=[keyside.VersionRange(5, 3)]),
        lambda client: ask(client, versions=["3"]),
        lambda client: ask(client, max_uses=0),
        lambda client: ask(client, context={"a": 1}),
        lambda client: client.get_access("ar-ABC"),
        lambda client: client.cancel_access(f"{ID}\n"),
        lambda client: client.list_access(page_size=0),
        lambda client: client.search_audit(uid=-1),
        lambda client: client.search_audit(after=datetime(2026, 1, 1)),  # noqa: DTZ001
        lambda client: client.search_audit(first_sequence=-1),
        lambda client: client.decrypt(b"x", credential="ksc-short"),
        lambda client: client.decrypt(b"x", credential=f"{CREDENTIAL}\n"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    client: keyside.Client, double: Double, call: Callable[[keyside.Client], object]
) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        call(client)
    assert double.calls == []
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("UNAUTHENTICATED", "AUTHENTICATION_DENIED", errors.AuthenticationFailed),
        ("RESOURCE_EXHAUSTED", "AUTHENTICATION_LIMITED", errors.AuthenticationFailed),
        ("UNAUTHENTICATED", "ACCOUNT_LOCKED", errors.AuthenticationFailed),
        ("UNAUTHENTICATED", "ACCOUNT_EXPIRED", errors.AuthenticationFailed),
        ("UNAUTHENTICATED", "PASSWORD_EXPIRED", errors.AuthenticationFailed),
        ("UNAVAILABLE", "AUTHENTICATION_UNAVAILABLE", errors.Unavailable),
        ("UNAVAILABLE", "AUDIT_UNAVAILABLE", errors.Unavailable),
        ("FAILED_PRECONDITION", "ACCESS_ENDED", errors.AccessRefused),
        ("FAILED_PRECONDITION", "ACCESS_OF_A_LATER_SIDECAR", errors.AccessRefused),
        ("FAILED_PRECONDITION", "STORE_REFUSED", errors.UnexpectedAnswer),
        ("PERMISSION_DENIED", "ACCESS_OWN_REQUEST", errors.NotPermitted),
        ("NOT_FOUND", "ACCESS_NOT_FOUND", errors.NoSuchRequest),
        ("NOT_FOUND", "CHECKPOINT_NOT_FOUND", errors.NoSuchRecord),
        ("PERMISSION_DENIED", "GRANT_ENDED", errors.NotPermitted),
        ("PERMISSION_DENIED", "GRANT_SCOPE", errors.NotPermitted),
        ("PERMISSION_DENIED", "CREDENTIAL_REFUSED", errors.NotPermitted),
    ],
)
def test_reasons_become_typed_errors(
    client: keyside.Client, double: Double, code: str, reason: str, kind: type[errors.KeysideError]
) -> None:
    double.failures = [Failure(grpc.StatusCode[code], "no", reason=reason)]
    with pytest.raises(errors.KeysideError) as caught:
        client.approve_access(ID, password=PASSWORD)
    error = caught.value
    assert (type(error), error.code, error.reason) == (kind, code, reason)


def test_a_credential_goes_with_encryption_calls_and_nothing_else(double: Double) -> None:
    with keyside.Client(double.socket, credential=CREDENTIAL) as client:
        client.encrypt("mail", b"x")
        client.decrypt(b"KS::x")
        client.rewrap(b"KS::x")
        client.reencrypt(b"KS::x")
        assert double.credentials == [CREDENTIAL] * 4
        double.credentials.clear()
        client.list_keys()
        client.get_access(ID)
        client.revoke_access(ID)
        client.status()
        assert double.credentials == [None] * 4
    double.credentials.clear()
    with keyside.Client(double.socket) as client:
        client.decrypt(b"KS::x", credential=keyside.Credential(CREDENTIAL))
        client.decrypt(b"KS::x")
    assert double.credentials == [CREDENTIAL, None]


def test_a_call_with_a_credential_is_made_once(double: Double) -> None:
    """Each may count as a use."""
    double.failures = [Failure(grpc.StatusCode.UNAVAILABLE, "away", reason="STORE_UNAVAILABLE")]
    with (
        keyside.Client(double.socket, credential=CREDENTIAL) as client,
        pytest.raises(errors.Unavailable),
    ):
        client.decrypt(b"KS::x")
    assert double.calls == ["Decrypt"]


def test_a_credential_shows_and_travels_nowhere(client: keyside.Client, double: Double) -> None:
    activated = client.activate_access(ID, password=PASSWORD)
    secret = CREDENTIAL.removeprefix("ksc-")
    assert secret not in f"{activated!r} {activated} {activated.credential!r}"
    assert secret not in repr(keyside.Client(double.socket, credential=activated.credential))
    assert activated.credential.unsafe_export_text() == CREDENTIAL
    assert activated.credential == keyside.Credential(CREDENTIAL)
    assert activated.credential != CREDENTIAL
    for move in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            move(activated.credential)
    for move in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            move(activated)
    with pytest.raises(errors.InvalidArgument) as caught:
        keyside.Credential(f"{CREDENTIAL}x")
    assert secret not in f"{caught.value!r}{caught.value.remedy}"


def test_a_password_is_in_no_error(client: keyside.Client, double: Double) -> None:
    for code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE):
        double.failures = [Failure(code, f"request said {PASSWORD}")]
        with pytest.raises(errors.KeysideError) as caught:
            client.approve_access(ID, password=PASSWORD)
        assert PASSWORD not in f"{caught.value!r} {caught.value.remedy}"
        assert caught.value.__context__ is None


def test_the_async_client_does_the_same(double: Double) -> None:
    double.records = [make_record(1, "access.use")]

    async def use() -> None:
        async with keyside.AsyncClient(double.socket, credential=CREDENTIAL) as client:
            made = await client.request_access(
                "mail", reason="why", duration=HALF_AN_HOUR, password=PASSWORD
            )
            assert [one.id async for one in client.list_access()] == [made.id]
            assert (await client.get_access(ID)).request.id == ID
            assert (await client.approve_access(ID, password=b"x")).levels[0].is_complete
            activated = await client.activate_access(ID, password=b"x")
            assert activated.credential.unsafe_export_text() == CREDENTIAL
            assert double.credentials == [None] * 5
            assert await client.decrypt(b"KS::x") == b"x"
            assert double.credentials[-1] == CREDENTIAL
            assert (await client.revoke_access(ID)).end_reason == "REVOKED"
            assert (await client.deny_access(ID, password=b"x", reason="no")).is_over
            assert (await client.cancel_access(ID)).is_over
            assert [record.sequence async for record in client.search_audit()] == [1]
            assert (await client.get_audit_checkpoint()).sequence == 1

    asyncio.run(use())
