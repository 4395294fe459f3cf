"""People get access to a key for a while, and lose it again: real accounts, real PAM (I4, I8, I9).

The tests of this file share a sidecar with two workers. What needs another configuration, or a
sidecar that is stopped, is in test_elevation_ends.py.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from support.caller import read_status
from support.town import (
    ENCRYPTION,
    KEY,
    NO_LOGIN,
    Town,
    find_id,
    password_of,
    sidecar_in,
    town,
)
from support.waiting import eventually

from keyside.envelope import parse_wrapping_header
from keyside.v1 import access_pb2 as pb
from keyside.v1 import encryption_pb2, keys_pb2

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from support.sidecar import Sidecar

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town() as found:
        yield found


@pytest.fixture(scope="module")
def sidecar(place: Town) -> Iterator[Sidecar]:
    with sidecar_in(place) as found:
        yield found


# --- the whole way, as people go it


def run(
    place: Town, sidecar: Sidecar, person: str, *arguments: str, **settings: object
) -> subprocess.CompletedProcess[bytes]:
    """Run a command with the person's password on its standard input; it must succeed."""
    password = password_of(person) + "\n"
    done = place.keyside(sidecar, person, *arguments, **{"stdin": password, **settings})  # type: ignore[arg-type]
    assert done.returncode == 0, (arguments, done)
    return done


@pytest.fixture
def runtime(place: Town) -> Iterator[Path]:
    with place.runtime_of("alice") as found:
        yield found


def test_the_whole_way_with_the_command(place: Town, sidecar: Sidecar, runtime: Path) -> None:
    """Asked, approved by three people at two levels, activated, used up, and looked at."""
    envelope = place.seal(sidecar, b"what alice must see", mailbox="42")
    asked = run(
        *(place, sidecar, "alice", "access", "request", KEY, "--reason", "incident 4711"),
        *("--duration", "30m", "--ticket", "INC-4711", "--context", "mailbox=42"),
        *("--max-uses", "2", "--password-stdin"),
    )
    access_id = find_id(asked.stdout)
    for person in ("bob", "carol", "dave"):
        run(place, sidecar, person, "access", "approve", access_id, "--password-stdin", "--yes")
    run(
        *(place, sidecar, "alice", "access", "activate", access_id, "--password-stdin"),
        runtime=runtime,
    )
    for _ in range(2):
        opened = place.keyside(
            *(sidecar, "alice", "decrypt", "--context", "mailbox=42"),
            stdin=envelope,
            runtime=runtime,
        )
        assert (opened.returncode, opened.stdout) == (0, b"what alice must see"), opened
    again = place.keyside(
        sidecar, "alice", "decrypt", "--context", "mailbox=42", stdin=envelope, runtime=runtime
    )
    assert again.returncode == 77, again
    shown = run(place, sidecar, "audrey", "access", "show", access_id, "--json")
    story = json.loads(shown.stdout)
    found = place.show(sidecar, access_id)
    assert found.end_reason == "SPENT"
    assert story["request"]["end_reason"] == "SPENT"
    assert [use["context"] for use in story["uses"]] == [{"mailbox": "42"}] * 2
    for name in ("alice", "bob", "carol", "dave"):
        assert place.name(name) in shown.stdout.decode()
    explain = ("audit", "explain", access_id)
    told = eventually(
        lambda: run(place, sidecar, "audrey", *explain).stdout,
        lambda text: b"spent" in text.lower(),
    ).decode()
    for name in ("alice", "bob", "carol", "dave"):
        assert place.name(name) in told


# --- who may call what: every RPC about access, as every role


ROLES = """
             Reque. List   Get    Appro. Deny   Cancel Activ. Revoke
------------ ------ ------ ------ ------ ------ ------ ------ ------
alice        ok     ok     no     not-ap not-ap ok     ok     ok
erin         ok     ok     ok     ok     ok     ok     ok     ok
bob          not-rq ok     ok     ok     ok     not-rq not-rq ok
carol        not-rq ok     ok     ok     ok     not-rq not-rq ok
alice-legal  not-rq ok     ok     ok     ok     not-rq not-rq ok
olga         op     ok     ok     not-ap not-ap not-rq op     ok
audrey       not-rq ok     ok     not-ap not-ap not-rq not-rq no
mail         not-rq no     no     not-ap not-ap not-rq not-rq no
root         no     no     no     no     no     no     no     no
"""
RPCS = (
    *("RequestAccess", "ListAccess", "GetAccess", "ApproveAccess"),
    *("DenyAccess", "CancelAccess", "ActivateAccess", "RevokeAccess"),
)
CELLS = {
    "not-rq": "NOT_A_REQUESTER",
    "not-ap": "NOT_AN_APPROVER",
    "op": "OPERATOR_MAY_NOT_USE_KEYS",
    "no": "NOT_ALLOWED",
}


@pytest.mark.parametrize("row", ROLES.splitlines()[3:], ids=lambda row: row.split()[0])
def test_each_rpc_about_access_as_each_role(place: Town, sidecar: Sidecar, row: str) -> None:
    """What the role refuses is refused for that reason; what it allows fails later, or not at all.

    There is no such request, and no reason is given for one, so nothing comes of what is allowed. A
    requester is not told of requests that are not theirs, be there any or not.
    """
    person, *cells = row.split()
    login = NO_LOGIN if person in {"mail", "root"} else person
    caller = place.caller(sidecar, person, login=login)
    for rpc, cell in zip(RPCS, cells, strict=True):
        kind = getattr(pb, f"{rpc}Request")
        fields = {"id": "ar-aaaaaaaaaaaa", "password": password_of(person).encode(), "key": KEY}
        known = kind.DESCRIPTOR.fields_by_name
        request = kind(**{name: value for name, value in fields.items() if name in known})
        answer = caller.call(f"/keyside.v1.AccessService/{rpc}", request)
        if cell == "ok":
            assert answer.reason not in CELLS.values(), (rpc, answer)
        else:
            assert answer.outcome == ("PERMISSION_DENIED", CELLS[cell]), (rpc, answer)


# --- approvals


def refuse(place: Town, sidecar: Sidecar, person: str, access_id: str, **fields: object) -> str:
    """Have a person approve, which must be refused and change nothing; return the reason."""
    before = place.show(sidecar, access_id)
    answer = place.do(sidecar, person, "ApproveAccess", access_id, **fields)
    assert answer.code != "OK"
    assert place.show(sidecar, access_id) == before
    return answer.reason


def test_levels_in_order_each_person_once_and_nobody_for_themselves(
    place: Town, sidecar: Sidecar
) -> None:
    """Every refusal leaves the request as it was."""
    access_id = place.ask(sidecar).parse(pb.RequestAccessResponse).request.id
    assert refuse(place, sidecar, "carol", access_id) == "ACCESS_NOT_YOUR_LEVEL"
    assert refuse(place, sidecar, "alice-legal", access_id) == "ACCESS_OWN_REQUEST"
    assert refuse(place, sidecar, "alice", access_id) == "NOT_AN_APPROVER"
    assert refuse(place, sidecar, "olga", access_id) == "NOT_AN_APPROVER"
    assert refuse(place, sidecar, "bob", access_id, login="alice") == "LOGIN_OF_ANOTHER"
    assert refuse(place, sidecar, "bob", access_id, password=b"guess") == "AUTHENTICATION_DENIED"
    assert place.do(sidecar, "erin", "ApproveAccess", access_id).code == "OK"
    assert refuse(place, sidecar, "erin", access_id) == "ACCESS_DECIDED_ALREADY"
    assert refuse(place, sidecar, "bob", access_id) == "ACCESS_NOT_YOUR_LEVEL"
    assert place.do(sidecar, "carol", "ApproveAccess", access_id).code == "OK"
    assert refuse(place, sidecar, "carol", access_id) == "ACCESS_DECIDED_ALREADY"
    assert refuse(place, sidecar, "alice-legal", access_id) == "ACCESS_OWN_REQUEST"
    early = place.do(sidecar, "alice", "ActivateAccess", access_id)
    assert early.reason == "ACCESS_NOT_APPROVED"
    assert place.do(sidecar, "dave", "ApproveAccess", access_id).code == "OK"
    assert place.show(sidecar, access_id).state == pb.ACCESS_STATE_APPROVED
    assert place.do(sidecar, "erin", "ActivateAccess", access_id).reason == "ACCESS_NOT_YOURS"
    through_su = place.do(sidecar, "alice", "ActivateAccess", access_id, login="bob")
    assert through_su.reason == "LOGIN_OF_ANOTHER"
    assert (
        place.do(sidecar, "carol", "DenyAccess", access_id, reason="second thoughts").code == "OK"
    )
    denied = place.show(sidecar, access_id)
    assert (denied.end_reason, denied.end_comment) == ("DENIED", "second thoughts")
    over = place.do(sidecar, "alice", "ActivateAccess", access_id)
    assert over.reason == "ACCESS_ENDED"


def list_all(place: Town, sidecar: Sidecar) -> list[pb.AccessRequest]:
    """Return all requests, as the auditor sees them."""
    request = pb.ListAccessRequest(include_ended=True, page_size=1000)
    found: list[pb.AccessRequest] = []
    while True:
        answer = place.caller(sidecar, "audrey").call(
            "/keyside.v1.AccessService/ListAccess", request
        )
        page = answer.parse(pb.ListAccessResponse)
        found += page.requests
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


# --- the grant


def test_i4_a_person_is_served_by_a_grant_and_by_nothing_else(
    place: Town, sidecar: Sidecar
) -> None:
    """Kernel identity and credential must both fit; the scope is what was approved."""
    other = place.seal(sidecar, key="payroll")
    envelope = place.seal(sidecar, mailbox="42", folder="inbox")
    elsewhere = place.seal(sidecar, mailbox="43")
    access_id, credential = place.granted(sidecar, context={"mailbox": "42"})
    opened = place.open(sidecar, envelope, credential, mailbox="42", folder="inbox")
    assert opened.parse(encryption_pb2.DecryptResponse).plaintext == b"a token"

    def reason(*arguments: object, **settings: object) -> tuple[str, str]:
        return place.open(sidecar, *arguments, **settings).outcome  # type: ignore[arg-type]

    denied = "PERMISSION_DENIED"
    scope, refused = (denied, "GRANT_SCOPE"), (denied, "CREDENTIAL_REFUSED")
    assert reason(elsewhere, credential, mailbox="43") == scope
    assert reason(other, credential) == scope
    assert reason(envelope, credential, mailbox="42") == ("INVALID_ARGUMENT", "ENVELOPE_REJECTED")
    assert reason(envelope, "ksc-" + "a" * 52, mailbox="42", folder="inbox") == refused
    assert reason(envelope, "nonsense", mailbox="42", folder="inbox") == refused
    assert reason(envelope, credential, "erin", mailbox="42", folder="inbox") == refused
    assert reason(envelope, credential, login="bob", mailbox="42", folder="inbox") == (
        denied,
        "LOGIN_OF_ANOTHER",
    )
    bare = place.caller(sidecar, "alice").call(
        ENCRYPTION + "Decrypt",
        encryption_pb2.DecryptRequest(
            envelope=envelope, context={"mailbox": "42", "folder": "inbox"}
        ),
    )
    assert bare.outcome == (denied, "PEER_PERSON_LOGIN")
    for rpc, request in (
        ("Encrypt", encryption_pb2.EncryptRequest(key=KEY, plaintext=b"x")),
        ("Rewrap", encryption_pb2.RewrapRequest(envelope=envelope)),
    ):
        answer = place.caller(sidecar, "alice").call(
            ENCRYPTION + rpc, request, metadata=[("keyside-credential", credential)]
        )
        assert answer.outcome == scope, rpc
    never = place.caller(sidecar, "alice").call(
        ENCRYPTION + "Reencrypt",
        encryption_pb2.ReencryptRequest(envelope=envelope),
        metadata=[("keyside-credential", credential)],
    )
    assert never.outcome == (denied, "PEER_PERSON_LOGIN")
    found = place.show(sidecar, access_id)
    assert (found.used, found.state) == (1, pb.ACCESS_STATE_ACTIVE)
    place.do(sidecar, "alice", "RevokeAccess", access_id)
    assert reason(envelope, credential, mailbox="42", folder="inbox") == (denied, "GRANT_ENDED")


def test_i4_a_persons_process_under_the_services_account_needs_a_grant_of_the_person(
    place: Town, sidecar: Sidecar
) -> None:
    """Refused on all encryption RPCs, with alice's credential too: it is not alice's process."""
    envelope = place.seal(sidecar)
    access_id, credential = place.granted(sidecar, operations=[1, 2, 3])
    for metadata in ([], [("keyside-credential", credential)]):
        for rpc, request in (
            ("Encrypt", encryption_pb2.EncryptRequest(key=KEY, plaintext=b"x")),
            ("Decrypt", encryption_pb2.DecryptRequest(envelope=envelope)),
            ("Rewrap", encryption_pb2.RewrapRequest(envelope=envelope)),
            ("Reencrypt", encryption_pb2.ReencryptRequest(envelope=envelope)),
        ):
            answer = place.caller(sidecar, "mail", login="alice").call(
                ENCRYPTION + rpc, request, metadata=metadata
            )
            assert answer.code == "PERMISSION_DENIED", (rpc, metadata)
    assert place.show(sidecar, access_id).used == 0
    for rpc, request in (
        ("Encrypt", encryption_pb2.EncryptRequest(key=KEY, plaintext=b"x")),
        ("Rewrap", encryption_pb2.RewrapRequest(envelope=envelope)),
    ):
        answer = place.caller(sidecar, "alice").call(
            ENCRYPTION + rpc, request, metadata=[("keyside-credential", credential)]
        )
        assert answer.code == "OK", (rpc, answer)
    assert place.show(sidecar, access_id).used == 2
    place.do(sidecar, "olga", "RevokeAccess", access_id)


def test_versions_and_uses_are_limited_as_was_approved(place: Town, sidecar: Sidecar) -> None:
    """An envelope of another version is out of scope; the last use ends the grant."""
    first = place.seal(sidecar, key="payroll")
    rotate = keys_pb2.RotateKeyRequest(name="payroll")
    place.caller(sidecar, "olga").call("/keyside.v1.KeyService/RotateKey", rotate)
    second = eventually(
        lambda: place.seal(sidecar, key="payroll"),
        lambda sealed: parse_wrapping_header(sealed).version_number == 2,
    )
    access_id, credential = place.granted(
        sidecar, key="payroll", versions=[pb.VersionRange(first=1, last=1)], max_uses=2
    )
    assert place.open(sidecar, second, credential).reason == "GRANT_SCOPE"
    for _ in range(2):
        assert place.open(sidecar, first, credential).code == "OK"
    assert place.open(sidecar, first, credential).reason == "GRANT_ENDED"
    found = place.show(sidecar, access_id)
    assert (found.used, found.end_reason) == (2, "SPENT")


def test_i9_each_item_of_a_batch_is_one_use_of_a_grant(place: Town, sidecar: Sidecar) -> None:
    """What the grant does not cover is refused by itself, and what does not open costs no use."""
    sealed = [place.seal(sidecar, b"text %d" % n, mailbox="42") for n in range(4)]
    elsewhere, other = place.seal(sidecar, mailbox="43"), place.seal(sidecar, key="payroll")
    access_id, credential = place.granted(sidecar, context={"mailbox": "42"}, max_uses=4)
    contexts = {elsewhere: {"mailbox": "43"}, other: {}}
    asked = (sealed[0], elsewhere, sealed[1][:-1], other, b"none", *sealed, sealed[0])

    def items() -> list[encryption_pb2.BatchDecryptItem]:
        return [
            encryption_pb2.BatchDecryptItem(
                envelope=one, context=contexts.get(one, {"mailbox": "42"})
            )
            for one in asked
        ]

    answer = place.caller(sidecar, "alice").call(
        ENCRYPTION + "BatchDecrypt",
        encryption_pb2.BatchDecryptRequest(items=items()),
        metadata=[("keyside-credential", credential)],
    )
    results = answer.parse(encryption_pb2.BatchDecryptResponse).results
    reasons = [read_status(r.status).reason if r.HasField("status") else "" for r in results]
    rejected, scope, ended = "ENVELOPE_REJECTED", "GRANT_SCOPE", "GRANT_ENDED"
    assert reasons == ["", scope, rejected, scope, rejected, "", "", "", ended, ended]
    assert [result.plaintext for result in results if not result.HasField("status")] == [
        b"text 0",
        *(b"text %d" % n for n in range(3)),
    ]
    assert [result.plaintext for result in results if result.HasField("status")] == [b""] * 6
    found = place.show(sidecar, access_id)
    assert (found.used, found.end_reason) == (4, "SPENT")
    intent, outcome = [
        record
        for record in map(json.loads, place.audit(sidecar).splitlines())
        if record.get("access") == access_id and record["event"] == "access.use"
    ]
    assert (intent["phase"], intent["count"]) == ("intent", 10)
    assert (outcome["outcome"], outcome["count"]) == ("partial", 10)
    details = outcome["details"]
    assert details["items"] == [{"key": KEY, "version": 1, "count": 4}]
    assert (details["refused"], details["failed"]) == (4, 2)
    bare = place.caller(sidecar, "alice").call(
        ENCRYPTION + "BatchDecrypt", encryption_pb2.BatchDecryptRequest(items=items())
    )
    assert bare.outcome == ("PERMISSION_DENIED", "PEER_PERSON_LOGIN")
    for data_keys in ("GenerateDataKey", "DecryptDataKey"):
        never = place.caller(sidecar, "alice").call(
            ENCRYPTION + data_keys, b"", metadata=[("keyside-credential", credential)]
        )
        assert never.outcome == ("PERMISSION_DENIED", "PEER_PERSON_LOGIN")


def test_a_grant_to_encrypt_and_rewrap_covers_batches(place: Town, sidecar: Sidecar) -> None:
    """Each only for its own key; and no more items than can be written down at once."""
    access_id, credential = place.granted(sidecar, operations=[2, 3])
    metadata = [("keyside-credential", credential)]
    item = encryption_pb2.BatchEncryptItem
    keys = (KEY, "payroll", "no-such-key", KEY)
    caller = place.caller(sidecar, "alice")
    answer = caller.call(
        ENCRYPTION + "BatchEncrypt",
        encryption_pb2.BatchEncryptRequest(items=[item(key=key) for key in keys]),
        metadata=metadata,
    ).parse(encryption_pb2.BatchEncryptResponse)
    assert [result.HasField("status") for result in answer.results] == [False, True, True, False]
    envelopes = [result.envelope for result in answer.results if result.envelope]
    moved = caller.call(
        ENCRYPTION + "BatchRewrap",
        encryption_pb2.BatchRewrapRequest(
            items=[encryption_pb2.BatchRewrapItem(envelope=one) for one in envelopes]
        ),
        metadata=metadata,
    ).parse(encryption_pb2.BatchRewrapResponse)
    assert all(result.envelope for result in moved.results)
    assert place.show(sidecar, access_id).used == 4
    many = encryption_pb2.BatchEncryptRequest(items=[item(key=KEY)] * 1001)
    refused = caller.call(ENCRYPTION + "BatchEncrypt", many, metadata=metadata)
    assert (refused.code, refused.field) == ("INVALID_ARGUMENT", "items")
    assert "1000" in refused.text
    del many.items[-1]
    done = caller.call(ENCRYPTION + "BatchEncrypt", many, metadata=metadata, timeout_s=30)
    assert done.code == "OK", done
    assert place.show(sidecar, access_id).used == 1004
    place.do(sidecar, "olga", "RevokeAccess", access_id)


def test_a_grant_that_does_not_cover_a_batch_uses_up_nothing_of_the_key(
    place: Town, sidecar: Sidecar
) -> None:
    """Nor does one that is over."""
    caller = place.caller(sidecar, "alice")
    item = encryption_pb2.BatchEncryptItem(key=KEY, plaintext=bytes(8_000))
    batch = encryption_pb2.BatchEncryptRequest(items=[item] * 1_000)

    def count_used() -> int:
        request = keys_pb2.GetKeyRequest(name=KEY)
        answer = place.caller(sidecar, "olga").call("/keyside.v1.KeyService/GetKey", request)
        versions = answer.parse(keys_pb2.GetKeyResponse).versions
        return sum(version.usage.messages for version in versions)

    before = count_used()
    access_id, credential = place.granted(sidecar, operations=[1])
    metadata = [("keyside-credential", credential)]
    scoped = caller.call(ENCRYPTION + "BatchEncrypt", batch, metadata=metadata)
    results = scoped.parse(encryption_pb2.BatchEncryptResponse).results
    assert {read_status(result.status).reason for result in results} == {"GRANT_SCOPE"}
    place.do(sidecar, "olga", "RevokeAccess", access_id)
    empty = encryption_pb2.BatchEncryptRequest()
    for request in (batch, empty):
        over = caller.call(ENCRYPTION + "BatchEncrypt", request, metadata=metadata)
        assert over.outcome == ("PERMISSION_DENIED", "GRANT_ENDED")
    assert count_used() == before


def test_empty_batches_under_a_grant_that_is_over_are_in_vain(place: Town) -> None:
    """A sidecar of their own: whoever tried so often is kept waiting."""
    with sidecar_in(place) as sidecar:
        access_id, credential = place.granted(sidecar)
        place.do(sidecar, "olga", "RevokeAccess", access_id)
        caller, metadata = place.caller(sidecar, "alice"), [("keyside-credential", credential)]
        batch = encryption_pb2.BatchEncryptRequest()
        asked = [
            caller.call(ENCRYPTION + "BatchEncrypt", batch, metadata=metadata) for _ in range(150)
        ]
        assert {answer.reason for answer in asked} == {"GRANT_ENDED", "TOO_OFTEN"}


@pytest.mark.parametrize("why", ["ACCOUNT_LOCKED", "LEFT_GROUP"])
def test_i9_a_locked_account_and_one_that_left_the_group_lose_their_grants(
    place: Town, sidecar: Sidecar, why: str
) -> None:
    """By themselves, within membership_ttl and a moment; what is put right brings nothing back."""
    envelope = place.seal(sidecar)
    access_id, credential = place.granted(sidecar)
    assert place.open(sidecar, envelope, credential).code == "OK"
    if why == "ACCOUNT_LOCKED":
        place.people.lock("alice")
    else:
        place.people.leave("alice", place.groups["admins"])
    try:
        found = eventually(
            lambda: place.show(sidecar, access_id),
            lambda seen: seen.state == pb.ACCESS_STATE_ENDED,
        )
        assert found.end_reason == why
    finally:
        if why == "ACCOUNT_LOCKED":
            place.people.unlock("alice")
        else:
            place.people.join("alice", place.groups["admins"])
        time.sleep(1)  # until no process believes the former any more: membership_ttl
    assert place.open(sidecar, envelope, credential).reason == "GRANT_ENDED"


def test_a_grant_that_is_over_uses_up_nothing_of_the_key(place: Town, sidecar: Sidecar) -> None:
    """Encrypting, which has no envelope to look at, is refused before it is counted."""
    before = usage_of(place, sidecar)
    access_id, credential = place.granted(sidecar)
    place.do(sidecar, "alice", "RevokeAccess", access_id)
    request = encryption_pb2.EncryptRequest(key=KEY, plaintext=bytes(1000))
    for _ in range(90):
        answer = place.caller(sidecar, "alice").call(
            ENCRYPTION + "Encrypt", request, metadata=[("keyside-credential", credential)]
        )
        assert answer.reason in {"GRANT_ENDED", "TOO_OFTEN"}
    time.sleep(0.5)
    assert usage_of(place, sidecar) - before < 64 * 1000, "what one worker reserves at once"


def usage_of(place: Town, sidecar: Sidecar) -> int:
    """Return how much plaintext is counted under the key's versions."""
    request = keys_pb2.GetKeyRequest(name=KEY)
    answer = place.caller(sidecar, "olga").call("/keyside.v1.KeyService/GetKey", request)
    versions = answer.parse(keys_pb2.GetKeyResponse).versions
    return sum(version.usage.plaintext_bytes for version in versions)


def test_an_approver_whose_account_is_locked_counts_no_longer(
    place: Town, sidecar: Sidecar
) -> None:
    """Whoever locks an account that was taken over undoes what it has approved."""
    access_id = place.approved(sidecar)
    place.people.lock("carol")
    try:
        time.sleep(0.6)  # membership_ttl
        assert place.do(sidecar, "alice", "ActivateAccess", access_id).reason == (
            "ACCESS_APPROVALS_LOST"
        )
        found = place.show(sidecar, access_id)
        assert found.state == pb.ACCESS_STATE_PENDING
        assert [one.struck for one in found.levels[1].approvals] == ["the account is locked", ""]
    finally:
        place.people.unlock("carol")
    assert place.do(sidecar, "erin", "ApproveAccess", access_id).code == "OK"
    assert place.do(sidecar, "alice", "ActivateAccess", access_id).code == "OK"
    place.do(sidecar, "alice", "RevokeAccess", access_id)


def test_i8_each_step_is_in_the_log_before_and_after(place: Town, sidecar: Sidecar) -> None:
    """Intent and outcome of every action, with one request id; and the end."""
    envelope = place.seal(sidecar)
    access_id, credential = place.granted(sidecar, max_uses=1)
    assert place.open(sidecar, envelope, credential).code == "OK"
    records = eventually(
        lambda: [
            record
            for record in map(json.loads, place.audit(sidecar).splitlines())
            if record.get("access") == access_id
        ],
        lambda found: any(record["event"] == "access.ended" for record in found),
    )
    steps = [(record["event"], record.get("phase"), record.get("outcome")) for record in records]
    decided = [
        step
        for event in ("access.approve",) * 3 + ("access.activate", "access.use")
        for step in ((event, "intent", None), (event, "outcome", "ok"))
    ]
    assert steps[:1] == [("access.request", "outcome", "ok")]
    assert [step for step in steps[1:] if step[0] != "access.ended"] == decided
    assert ("access.ended", "outcome", "ok") in steps
    used = [record for record in records if record["event"] == "access.use"]
    assert used[0]["request_id"] == used[1]["request_id"]
    assert used[0]["caller"]["account"] == place.name("alice")
    assert used[0]["digest"]
    assert used[0]["key"] == KEY


def test_a_request_without_a_password_is_refused(place: Town, sidecar: Sidecar) -> None:
    """None, a wrong one, another person's; nothing is written. Then the right one has to wait."""
    count = len(list_all(place, sidecar))
    for password in ("", "guess", "another guess", password_of("bob")):
        answer = place.ask(sidecar, "erin", password=password)
        assert answer.outcome == ("UNAUTHENTICATED", "AUTHENTICATION_DENIED")
    assert len(list_all(place, sidecar)) == count
    limited = place.ask(sidecar, "erin")
    assert limited.outcome == ("UNAUTHENTICATED", "AUTHENTICATION_LIMITED")
    assert "wait" in limited.remedy
    assert place.ask(sidecar).code == "OK", "nobody else has to"
    eventually(lambda: place.ask(sidecar, "erin"), lambda answer: answer.code == "OK", 30)


def test_who_asks_too_much_is_refused_before_it_is_recorded(place: Town, sidecar: Sidecar) -> None:
    """Two lines for each, however little comes of it, would fill the disk."""
    outcomes = [place.do(sidecar, "erin", "CancelAccess", "ar-aaaaaaaaaaaa") for _ in range(150)]
    refused = [answer for answer in outcomes if answer.reason == "TOO_OFTEN"]
    assert len(refused) > 20
    assert {answer.reason for answer in outcomes} == {"ACCESS_NOT_FOUND", "TOO_OFTEN"}
    for person, rpc in (("alice", "CancelAccess"), ("erin", "RevokeAccess")):
        answer = place.do(sidecar, person, rpc, "ar-aaaaaaaaaaaa")
        assert answer.reason == "ACCESS_NOT_FOUND", "nobody else, and nothing else"
