"""The approval machine: named tables of who does what in which order, and what the store has then.

Each line of a row is one step: who does what, or what happens. After an ``!`` stands the reason for
which the step must be refused, and after ``=`` what the store holds after it: the state, how many
approvals count at each level (managers need one, legal needs two), uses, and why it ended.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.access_scene import (
    ADMINS,
    DAY_US,
    DECRYPT,
    ENCRYPT,
    HOUR_US,
    LEGAL,
    MANAGERS,
    MINUTE_US,
    OPERATORS,
    REWRAP,
    Scene,
    item,
    summarise,
)
from tests.unit.made_store import BANK, KINDS, make_store_of

from keyside.names import KeyName
from keyside_sidecar.access.requests import AccessState, EndReason, VersionRange
from keyside_sidecar.errors import AccessFactsMissing, AccessRefused, BadRequest, StoreContended

if TYPE_CHECKING:
    from collections.abc import Iterator

STEP = re.compile(r"(?P<do>[^!=]+?)\s*(?:!\s*(?P<refused>\w+))?\s*(?:=\s*(?P<stored>.+))?")
APPROVED = """
ask anna
approve mia    = PENDING 1,0
approve lea    = PENDING 1,1
approve leo    = APPROVED 1,2
"""
ACTIVE = (
    APPROVED
    + """
activate anna  = ACTIVE 1,2
"""
)
GROUPS = {"admins": ADMINS, "managers": MANAGERS, "legal": LEGAL, "operators": OPERATORS}

SCENARIOS = {
    # Levels and their order.
    "all levels in order": ACTIVE,
    "the second level before the first": """
        ask anna
        approve lea     ! ACCESS_NOT_YOUR_LEVEL = PENDING 0,0
    """,
    "the first level when it is the second's turn": """
        ask anna
        approve mia
        approve max     ! ACCESS_NOT_YOUR_LEVEL = PENDING 1,0
    """,
    "one more than the last level needs": APPROVED
    + """
        approve lou     ! ACCESS_NOT_PENDING = APPROVED 1,2
    """,
    "an approval of a grant": ACTIVE
    + """
        approve lou     ! ACCESS_ACTIVE = ACTIVE 1,2
    """,
    # Who counts.
    "a stranger": """
        ask anna
        approve sam     ! NOT_AN_APPROVER = PENDING 0,0
    """,
    "an auditor": """
        ask anna
        approve aud     ! NOT_AN_APPROVER = PENDING 0,0
    """,
    "an operator who is no approver": """
        ask anna
        approve otto    ! NOT_AN_APPROVER = PENDING 0,0
    """,
    "an operator who is an approver": """
        ask anna
        approve oda     = PENDING 1,0
    """,
    "twice at one level": """
        ask anna
        approve mia
        approve lea
        approve lea     ! ACCESS_DECIDED_ALREADY = PENDING 1,1
    """,
    "at both levels": """
        ask anna
        approve lou
        approve lou     ! ACCESS_DECIDED_ALREADY = PENDING 1,0
    """,
    "through a second account": """
        ask anna
        approve lea-two
        approve lea     ! ACCESS_DECIDED_ALREADY = PENDING 1,0
        approve leo     = PENDING 1,1
        approve lou     = APPROVED 1,2
    """,
    "one's own": """
        ask amy
        approve amy     ! ACCESS_OWN_REQUEST = PENDING 0,0
    """,
    "one's own, through a second account": """
        ask anna
        approve anna-boss ! ACCESS_OWN_REQUEST = PENDING 0,0
    """,
    "through su": """
        ask anna
        approve su mia  ! LOGIN_OF_ANOTHER = PENDING 0,0
    """,
    # Denial.
    "denied by the level that is asked": """
        ask anna
        deny mia        = ENDED 0,0 DENIED
        approve mia     ! ACCESS_ENDED = ENDED 0,0 DENIED
    """,
    "denied by a later level, before its turn": """
        ask anna
        deny lea        = ENDED 0,0 DENIED
    """,
    "denied by an earlier level, after its turn": APPROVED
    + """
        deny mia        = ENDED 1,2 DENIED
        activate anna   ! ACCESS_ENDED = ENDED 1,2 DENIED
    """,
    "a denial by a stranger": """
        ask anna
        deny sam        ! NOT_AN_APPROVER = PENDING 0,0
    """,
    "a denial of one's own": """
        ask amy
        deny amy        ! ACCESS_OWN_REQUEST = PENDING 0,0
        deny anna       ! NOT_AN_APPROVER = PENDING 0,0
    """,
    "a denial through su": """
        ask anna
        deny su mia     ! LOGIN_OF_ANOTHER = PENDING 0,0
    """,
    "a denial of a grant": ACTIVE
    + """
        deny mia        ! ACCESS_ACTIVE = ACTIVE 1,2
    """,
    # Cancelling and revoking.
    "cancelled": """
        ask anna
        cancel ben      ! ACCESS_NOT_YOURS = PENDING 0,0
        cancel anna     = ENDED 0,0 CANCELLED
        wait 1m
        cancel anna     = ENDED 0,0 CANCELLED
        approve mia     ! ACCESS_ENDED = ENDED 0,0 CANCELLED
    """,
    "cancelled after approval, through su": APPROVED
    + """
        cancel su anna  = ENDED 1,2 CANCELLED
    """,
    "a grant is not cancelled": ACTIVE
    + """
        cancel anna     ! ACCESS_ACTIVE = ACTIVE 1,2
        revoke anna     = ENDED 1,2 REVOKED
    """,
    "revoked by an approver": ACTIVE
    + """
        use anna        = ACTIVE 1,2 used 1
        revoke max      = ENDED 1,2 used 1 REVOKED
        use anna        ! GRANT_ENDED = ENDED 1,2 used 1 REVOKED
        revoke otto     = ENDED 1,2 used 1 REVOKED
        revoke ben      ! ACCESS_NOT_YOURS = ENDED 1,2 used 1 REVOKED
    """,
    "revoked by an operator": ACTIVE
    + """
        revoke sam      ! NOT_ALLOWED = ACTIVE 1,2
        revoke aud      ! NOT_ALLOWED = ACTIVE 1,2
        revoke ben      ! ACCESS_NOT_YOURS = ACTIVE 1,2
        revoke otto     = ENDED 1,2 REVOKED
    """,
    "revoked before it is a grant": """
        ask anna
        revoke otto     = ENDED 0,0 REVOKED
    """,
    # Activation.
    "activated too early": """
        ask anna
        activate anna   ! ACCESS_NOT_APPROVED = PENDING 0,0
    """,
    "activated twice": ACTIVE
    + """
        activate anna   ! ACCESS_NOT_APPROVED = ACTIVE 1,2
    """,
    "activated by another requester": APPROVED
    + """
        activate ben    ! ACCESS_NOT_YOURS = APPROVED 1,2
    """,
    "activated by the requester's other account": APPROVED
    + """
        activate anna-boss ! NOT_A_REQUESTER = APPROVED 1,2
    """,
    "activated through su": APPROVED
    + """
        activate su anna ! LOGIN_OF_ANOTHER = APPROVED 1,2
    """,
    # Time.
    "not decided in time": """
        ask anna
        approve mia
        wait 24h
        approve lea     ! ACCESS_ENDED = ENDED 1,0 NOT_DECIDED
    """,
    "decided at the last moment": """
        ask anna
        approve mia
        wait 1439m
        approve lea     = PENDING 1,1
    """,
    "not activated in time": APPROVED
    + """
        wait 24h
        activate anna   ! ACCESS_ENDED = ENDED 1,2 NOT_ACTIVATED
    """,
    "used after its end": ACTIVE
    + """
        wait 60m
        use anna        ! GRANT_ENDED = ENDED 1,2 EXPIRED
    """,
    "a clock put back does not make a grant last longer": ACTIVE
    + """
        wait 50m
        use anna        = ACTIVE 1,2 used 1
        observe 61m
        set_clock -45m
        use anna        ! GRANT_ENDED = ENDED 1,2 used 1 EXPIRED
    """,
    "a clock put back to before the grant": ACTIVE
    + """
        set_clock -1m
        use anna        ! GRANT_ENDED = ENDED 1,2 EXPIRED
    """,
    "a clock put back does not keep a request open": """
        ask anna
        observe 1441m
        set_clock -60m
        approve mia     ! ACCESS_ENDED = ENDED 0,0 NOT_DECIDED
    """,
    "time alone": ACTIVE
    + """
        review          = ACTIVE 1,2
        wait 60m
        review          = ENDED 1,2 EXPIRED
        review          = ENDED 1,2 EXPIRED
    """,
    # Policy and membership.
    "approved after policy changed": """
        ask anna
        approve mia
        policy
        approve lea     ! ACCESS_ENDED = ENDED 1,0 POLICY_CHANGED
    """,
    "activated after policy changed": APPROVED
    + """
        policy
        activate anna   ! ACCESS_ENDED = ENDED 1,2 POLICY_CHANGED
    """,
    "used after policy changed": ACTIVE
    + """
        policy
        use anna        ! GRANT_ENDED = ENDED 1,2 POLICY_CHANGED
    """,
    "elevation is taken out of the configuration": ACTIVE
    + """
        forbid
        review          = ENDED 1,2 POLICY_CHANGED
    """,
    "the requester leaves, then an approver decides": """
        ask anna
        leave anna admins
        approve mia     ! ACCESS_ENDED = ENDED 0,0 LEFT_GROUP
    """,
    "the requester leaves, then activates": APPROVED
    + """
        leave anna admins
        activate anna   ! NOT_A_REQUESTER = APPROVED 1,2
        review          = ENDED 1,2 LEFT_GROUP
    """,
    "the holder leaves": ACTIVE
    + """
        leave anna admins
        use anna        ! GRANT_ENDED = ENDED 1,2 LEFT_GROUP
    """,
    "the holder becomes an operator": ACTIVE
    + """
        join anna operators
        use anna        ! GRANT_ENDED = ENDED 1,2 LEFT_GROUP
    """,
    "the holder's account is locked": ACTIVE
    + """
        lock anna
        use anna        ! GRANT_ENDED = ENDED 1,2 ACCOUNT_LOCKED
    """,
    "an approver who has left tries": """
        ask anna
        leave mia managers
        approve mia     ! NOT_AN_APPROVER = PENDING 0,0
    """,
    "an approver leaves before the next level decides": """
        ask anna
        approve mia
        leave mia managers
        approve lea     ! ACCESS_NOT_YOUR_LEVEL = PENDING 0,0
        approve max     = PENDING 1,0
        approve lea     = PENDING 1,1
    """,
    "an approver leaves before activation": APPROVED
    + """
        leave lea legal
        activate anna   ! ACCESS_APPROVALS_LOST = PENDING 1,1
        activate anna   ! ACCESS_NOT_APPROVED = PENDING 1,1
        join lea legal
        approve lea     = APPROVED 1,2
        activate anna   = ACTIVE 1,2
    """,
    "the first level is asked again, and keeps its order": APPROVED
    + """
        leave mia managers
        activate anna   ! ACCESS_APPROVALS_LOST = PENDING 0,2
        approve lou     = APPROVED 1,2
        activate anna   = ACTIVE 1,2
    """,
    "an approver leaves after activation": ACTIVE
    + """
        leave mia managers
        use anna        = ACTIVE 1,2 used 1
    """,
    # Who uses it, and where.
    "used by somebody else": ACTIVE
    + """
        use ben         ! CREDENTIAL_REFUSED = ACTIVE 1,2
        use anna-boss   ! CREDENTIAL_REFUSED = ACTIVE 1,2
        use otto        ! CREDENTIAL_REFUSED = ACTIVE 1,2
    """,
    "used through su": ACTIVE
    + """
        use su anna     ! LOGIN_OF_ANOTHER = ACTIVE 1,2
    """,
    "on another host": ACTIVE
    + """
        move
        use anna        ! CREDENTIAL_REFUSED = ACTIVE 1,2
        cancel anna     ! ACCESS_OF_ANOTHER_HOST = ACTIVE 1,2
        revoke anna     ! ACCESS_OF_ANOTHER_HOST = ACTIVE 1,2
        policy
        review          = ACTIVE 1,2
        revoke otto     = ENDED 1,2 REVOKED
    """,
    "decided on another host": """
        ask anna
        move
        approve mia     ! ACCESS_OF_ANOTHER_HOST = PENDING 0,0
        deny mia        ! ACCESS_OF_ANOTHER_HOST = PENDING 0,0
        wait 24h
        review          = ENDED 0,0 NOT_DECIDED
    """,
}


@pytest.fixture(scope="module", params=KINDS)
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """One store for all tests here: each asks anew."""
    store = make_store_of(request, tmp_path_factory.mktemp("access")).open()
    yield Scene(store)
    store.close()


@pytest.fixture(autouse=True)
def _anew(scene: Scene) -> None:
    scene.book.end_all(EndReason.STORE_ROLLED_BACK)
    scene.begin()


def take(scene: Scene, text: str) -> Any:
    """Do what a step says."""
    verb, *rest = text.split(maxsplit=1)
    name = rest[0] if rest else ""
    if verb in {"wait", "observe", "set_clock"}:
        unit_us = HOUR_US if name.endswith("h") else MINUTE_US
        return getattr(scene, verb)(int(name[:-1]) * unit_us)
    if verb in {"leave", "join"}:
        who, group = name.split()
        return getattr(scene, verb)(who, GROUPS[group])
    if verb == "policy":
        return scene.change_policy()
    return getattr(scene, verb)(*rest)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(scene: Scene, name: str) -> None:
    """Each step is done or refused as its line says, and the store holds what it says."""
    for line in filter(None, map(str.strip, SCENARIOS[name].splitlines())):
        step = STEP.fullmatch(line)
        assert step is not None
        if step["refused"] is None:
            take(scene, step["do"])
        else:
            with pytest.raises(AccessRefused) as caught:
                take(scene, step["do"])
            assert caught.value.reason == step["refused"], line
            assert caught.value.remedy
        if step["stored"] is not None:
            assert summarise(scene.stored) == step["stored"], line


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("mia", "NOT_A_REQUESTER"),
        ("sam", "NOT_A_REQUESTER"),
        ("aud", "NOT_A_REQUESTER"),
        ("otto", "OPERATOR_MAY_NOT_USE_KEYS"),
        ("oda", "OPERATOR_MAY_NOT_USE_KEYS"),
        ("su anna", "LOGIN_OF_ANOTHER"),
    ],
)
def test_who_can_not_ask(scene: Scene, who: str, reason: str) -> None:
    with pytest.raises(AccessRefused) as caught:
        scene.ask(who)
    assert caught.value.reason == reason
    assert scene.book.list_open() == []


def test_a_key_that_is_not_configured_can_not_be_asked_for(scene: Scene) -> None:
    with pytest.raises(AccessRefused, match="NOT_ALLOWED"):
        scene.ask("anna", key=KeyName("another"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reason", ""),
        ("reason", "   "),
        ("reason", "x" * 1001),
        ("reason", "two\nlines"),
        ("reason", "turned \u202e round"),
        ("ticket", "x" * 129),
        ("ticket", "\x1b[2J"),
        ("duration_us", 999_999),
        ("duration_us", 4 * HOUR_US + 1),
        ("operations", ()),
        ("operations", (DECRYPT, DECRYPT)),
        ("versions", (VersionRange(0, 1),)),
        ("versions", (VersionRange(3, 2),)),
        ("versions", (VersionRange(1, 2**32),)),
        ("versions", tuple(VersionRange(n, n) for n in range(1, 34))),
        ("max_uses", -1),
        ("max_uses", 1_000_001),
        ("context", {"": "x"}),
        ("context", {"name": "x" * 1025}),
        ("context", {f"name-{number}": "x" * 1024 for number in range(9)}),
        ("context", {"name": "\ud800"}),
    ],
)
def test_a_wish_that_can_not_be_granted(scene: Scene, field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        scene.ask("anna", **{field: value})
    assert caught.value.field == field.removesuffix("_us")
    assert scene.book.list_open() == []


def test_what_is_asked_is_kept_whole(scene: Scene) -> None:
    """Whatever people write comes back as they wrote it."""
    scene.ask(
        "anna",
        reason='Müller\'s mailbox 📫 \\u0041 "quoted"',
        ticket="ÄÖ-1",
        duration_us=MINUTE_US,
        operations=(ENCRYPT, DECRYPT),
        versions=(VersionRange(7, 9), VersionRange(1, 2), VersionRange(3, 3)),
        context={"tenant": "zürich", "empty": ""},
        max_uses=5,
    )
    found = scene.stored
    assert found.requester.uid == 1001
    assert (found.requester.account, found.host, found.key) == (
        "anna",
        "mail-1",
        "mail-credentials",
    )
    assert found.reason == 'Müller\'s mailbox 📫 \\u0041 "quoted"'
    assert found.ticket == "ÄÖ-1"
    assert found.operations == (DECRYPT, ENCRYPT)
    assert found.versions == (VersionRange(1, 3), VersionRange(7, 9))
    assert found.context == {"tenant": "zürich", "empty": ""}
    assert (found.max_uses, found.duration_us) == (5, MINUTE_US)
    assert found.decide_by_us == scene.now_us + DAY_US
    assert found.current_level == 0
    done = scene.approve("mia", "seen, “fine”")
    (approval,) = done.after.levels[0].approvals
    assert (approval.person.account, approval.comment) == ("mia", "seen, “fine”")
    assert done.after == scene.stored
    scene.deny("lea", "nein\u00a0danke" if "nein\u00a0danke".isprintable() else "nein, danke")
    ended = scene.stored
    assert ended.ended_by is not None
    assert (ended.ended_by.account, ended.end_comment) == ("lea", "nein, danke")


def test_a_struck_approval_is_kept_with_its_reason(scene: Scene) -> None:
    scene.ask()
    scene.approve("mia")
    scene.leave("mia", MANAGERS)
    with pytest.raises(AccessRefused) as caught:
        scene.approve("lea")
    (approval,) = scene.stored.levels[0].approvals
    assert approval.struck == "no longer in managers"
    assert approval.person.account == "mia"
    assert caught.value.after == scene.stored


def test_a_refusal_that_changes_nothing_says_so_and_writes_nothing(scene: Scene) -> None:
    scene.ask()
    before = scene.store.read_meta().generation
    with pytest.raises(AccessRefused) as caught:
        scene.approve("anna-boss")
    assert caught.value.after is None
    assert scene.store.read_meta().generation == before


def test_groups_that_were_not_asked_for_are_asked_for(scene: Scene) -> None:
    """Somebody who has approved in between is never taken for somebody who has left."""
    scene.ask()
    scene.approve("mia")
    del scene.groups[2001]
    with pytest.raises(AccessFactsMissing) as caught:
        scene.approve("lea")
    assert caught.value.uids == {2001}
    assert summarise(scene.stored) == "PENDING 1,0"


def test_one_person_has_so_many_open_requests_at_most(scene: Scene) -> None:
    """Through whatever account; what is over does not count."""
    scene.set_policy(max_open_requests=2)
    scene.ask("anna")
    first = scene.id
    scene.join("anna-boss", ADMINS)
    scene.ask("anna-boss")
    for who in ("anna", "anna-boss"):
        with pytest.raises(AccessRefused) as caught:
            scene.ask(who)
        assert caught.value.reason == "ACCESS_TOO_MANY_OPEN"
    scene.ask("ben")
    scene.id = first
    scene.cancel("anna")
    scene.ask("anna")
    assert len(scene.book.list_open()) == 3


def test_with_shared_ids_every_host_decides(scene: Scene) -> None:
    scene.set_policy(shared_ids=True)
    scene.ask()
    scene.move()
    for name in ("mia", "lea", "leo"):
        scene.approve(name)
    scene.activate()
    scene.use()
    assert summarise(scene.stored) == "ACTIVE 1,2 used 1"


def test_the_grant_begins_with_its_activation(scene: Scene) -> None:
    scene.ask()
    for name in ("mia", "lea", "leo"):
        scene.approve(name)
    scene.wait(23 * HOUR_US)
    found = scene.activate().after
    assert found.activated_us == scene.now_us
    assert found.expires_us == scene.now_us + HOUR_US
    assert found.credential_hash is not None
    assert found.credential_hash.hex() not in repr(found)


@pytest.mark.parametrize(
    ("narrowed", "used", "verdict"),
    [
        ({}, item(), None),
        ({}, item(operation=REWRAP), "GRANT_SCOPE"),
        ({}, item(operation=ENCRYPT), "GRANT_SCOPE"),
        ({"operations": (REWRAP,)}, item(operation=REWRAP), None),
        ({"operations": (REWRAP,)}, item(), "GRANT_SCOPE"),
        ({"operations": (ENCRYPT,)}, item(operation=ENCRYPT), None),
        ({}, item(key=BANK), "GRANT_SCOPE"),
        ({"versions": (VersionRange(3, 5),)}, item(3), None),
        ({"versions": (VersionRange(3, 5),)}, item(5), None),
        ({"versions": (VersionRange(3, 5),)}, item(2), "GRANT_SCOPE"),
        ({"versions": (VersionRange(3, 5),)}, item(6), "GRANT_SCOPE"),
        ({"versions": (VersionRange(1, 1), VersionRange(3, 3))}, item(2), "GRANT_SCOPE"),
        ({"context": {"tenant": "a"}}, item(context={"tenant": "a"}), None),
        ({"context": {"tenant": "a"}}, item(context={"tenant": "a", "mailbox": "b"}), None),
        ({"context": {"tenant": "a"}}, item(context={"tenant": "b"}), "GRANT_SCOPE"),
        ({"context": {"tenant": "a"}}, item(context={"mailbox": "a"}), "GRANT_SCOPE"),
        ({"context": {"tenant": "a"}}, item(), "GRANT_SCOPE"),
    ],
)
def test_what_a_grant_covers(
    scene: Scene, narrowed: dict[str, Any], used: Any, verdict: str | None
) -> None:
    scene.grant(**narrowed)
    done = scene.use("anna", used)
    assert [found and found.reason for found in done.verdicts] == [verdict]
    assert scene.stored.used == (verdict is None)
    uses = scene.book.read_uses(scene.id, limit=10)
    assert [(use.operation, use.version, use.context) for use in uses] == (
        [(used.operation, used.version, used.context)] if verdict is None else []
    )


def test_an_unknown_context_is_covered_only_where_none_is_demanded(scene: Scene) -> None:
    unknown = item(operation=REWRAP).__class__(REWRAP, "mail-credentials", 1, None, bytes(32))
    scene.grant(operations=(REWRAP,))
    assert scene.use("anna", unknown).verdicts == (None,)
    assert scene.book.read_uses(scene.id, limit=1)[0].context is None
    scene.grant(operations=(REWRAP,), context={"tenant": "a"})
    (verdict,) = scene.use("anna", unknown).verdicts
    assert verdict is not None
    assert verdict.reason == "GRANT_SCOPE"


def test_each_item_of_a_batch_is_one_use_and_answers_for_itself(scene: Scene) -> None:
    """The last use ends the grant; a bad item spoils no other, and costs nothing."""
    scene.grant(max_uses=3)
    done = scene.use("anna", item(1), item(2, key=BANK), item(3), item(4), item(5))
    assert [found and found.reason for found in done.verdicts] == [
        None,
        "GRANT_SCOPE",
        None,
        None,
        "GRANT_ENDED",
    ]
    assert summarise(scene.stored) == "ENDED 1,2 used 3 SPENT"
    uses = scene.book.read_uses(scene.id, limit=10)
    assert [(use.number, use.version) for use in uses] == [(1, 1), (2, 3), (3, 4)]
    assert [use.number for use in scene.book.read_uses(scene.id, after=1, limit=1)] == [2]
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        scene.use()


def test_a_batch_of_which_nothing_is_covered_writes_nothing(scene: Scene) -> None:
    scene.grant()
    before = scene.store.read_meta().generation
    scene.use("anna", item(key=BANK), item(operation=REWRAP))
    assert scene.store.read_meta().generation == before


def test_an_unknown_credential_opens_nothing_and_looks_like_anothers(scene: Scene) -> None:
    scene.grant()
    with pytest.raises(AccessRefused) as anothers:
        scene.use("ben")
    scene.credential = "ksc-" + "a" * 52
    with pytest.raises(AccessRefused) as unknown:
        scene.use("ben")
    scene.credential = "ksc-" + "A" * 52
    with pytest.raises(AccessRefused) as malformed:
        scene.use("ben")
    assert str(anothers.value) == str(unknown.value) == str(malformed.value)
    assert anothers.value.kind == unknown.value.kind == malformed.value.kind == "permission"


def test_with_rollover_a_grant_that_was_used_closes_first(scene: Scene) -> None:
    scene.set_policy(rollover_after_grant=True)
    scene.grant(operations=(DECRYPT, ENCRYPT))
    scene.use("anna", item(4), item(3), item(9, operation=ENCRYPT), item(4))
    scene.revoke("otto", "enough")
    closing = scene.stored
    assert (closing.state, closing.end_reason) == (AccessState.CLOSING, EndReason.REVOKED)
    assert closing.opened == (VersionRange(3, 4),)
    assert closing.ended_us == scene.now_us
    for act in (scene.use, scene.activate, lambda: scene.approve("lou"), lambda: scene.deny("mia")):
        with pytest.raises(AccessRefused):
            act()
    assert scene.revoke("mia").after == closing
    assert scene.review() == []
    assert scene.book.end_all(EndReason.STORE_ROLLED_BACK) == []
    assert [one.id for one in scene.book.list_open()] == [scene.id]
    ended = scene.finish().after
    assert (ended.state, ended.end_reason) == (AccessState.ENDED, EndReason.REVOKED)
    assert ended.ended_number is not None
    assert scene.finish().after == ended


@pytest.mark.parametrize("used", [(), (item(operation=ENCRYPT),)])
def test_with_rollover_a_grant_that_opened_nothing_ends_at_once(
    scene: Scene, used: tuple[Any, ...]
) -> None:
    scene.set_policy(rollover_after_grant=True)
    scene.grant(operations=(DECRYPT, ENCRYPT))
    if used:
        scene.use("anna", *used)
    scene.revoke("anna")
    assert scene.stored.state is AccessState.ENDED


def test_ended_requests_are_listed_newest_first_page_by_page(scene: Scene) -> None:
    ids = []
    for _ in range(5):
        scene.ask("ben")
        scene.cancel("ben")
        ids.append(scene.id)
    first = scene.book.list_ended(before=None, limit=2)
    second = scene.book.list_ended(before=first[-1].ended_number, limit=3)
    assert [one.id for one in (*first, *second)] == ids[::-1]


def test_a_lost_race_is_decided_again_on_what_the_other_left(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.ask()
    real = scene.store.session.changing
    lost: list[int] = []

    def lose_twice() -> Any:
        if len(lost) < 2:
            lost.append(1)
            raise StoreContended("another sidecar was faster")
        return real()

    monkeypatch.setattr(scene.store.session, "changing", lose_twice)
    scene.approve("mia")
    assert summarise(scene.stored) == "PENDING 1,0"
