"""The policy table: every class of caller, every operation, every kind of key (I1 to I4, I11)."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import MappingProxyType

import pytest

from keyside_sidecar.access.elevation_policy import ElevationPolicy, PolicyLevel
from keyside_sidecar.access.policy import (
    _RULES,
    KeyPolicy,
    Operation,
    Policy,
    ResolvedPrincipals,
    Subject,
)
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.resolve import resolve_policy
from keyside_sidecar.config import parse_config
from keyside_sidecar.errors import ConfigError

OPERATORS, AUDITORS, MAIL, WRITERS, READERS, PAYROLL = 10, 20, 30, 31, 32, 40
ADMINS, MANAGERS, LEGAL = 50, 60, 61
POLICY = Policy(
    operators=ResolvedPrincipals(gids=frozenset({OPERATORS}), uids=frozenset({1010})),
    auditors=ResolvedPrincipals(gids=frozenset({AUDITORS})),
    keys=MappingProxyType(
        {
            "mail": KeyPolicy(
                allowed=ResolvedPrincipals(gids=frozenset({MAIL}), uids=frozenset({1050})),
                decrypt_gids=frozenset({READERS}),
                allows_data_keys=True,
            ),
            "payroll": KeyPolicy(allowed=ResolvedPrincipals(gids=frozenset({PAYROLL}))),
            "closed": KeyPolicy(
                allowed=ResolvedPrincipals(gids=frozenset({MAIL})),
                encrypt_gids=frozenset({WRITERS}),
                decrypt_gids=frozenset({WRITERS}),
            ),
        }
    ),
    elevation=ElevationPolicy(
        requester_gids=frozenset({ADMINS}),
        levels=(PolicyLevel(MANAGERS, "managers", 1), PolicyLevel(LEGAL, "legal", 1)),
    ),
)


def subject(
    uid: int,
    *gids: int,
    standing: Reason | None = None,
    person: Reason | None = None,
    borrowed: Reason | None = None,
) -> Subject:
    return Subject(uid, frozenset(gids), standing=standing, person=person, borrowed=borrowed)


PERSON = Reason.PEER_PERSON_LOGIN
SU = Reason.LOGIN_OF_ANOTHER
SUBJECTS = {
    "service": subject(1030, MAIL, READERS),
    "service by user": subject(1050, READERS),
    "encrypt-only service": subject(1031, MAIL),
    "other service": subject(1040, PAYROLL),
    "reader but not allowed": subject(1032, READERS, WRITERS),
    "stranger": subject(1099, 1099),
    "root": subject(0, 0),
    "operator": subject(1010),
    "operator in the service's group": subject(1011, OPERATORS, MAIL, READERS),
    "operator at a login": subject(1011, OPERATORS, MAIL, person=PERSON),
    "auditor": subject(1020, AUDITORS),
    "auditor in the service's group": subject(1021, AUDITORS, MAIL, READERS),
    "auditor at a login": subject(1021, AUDITORS, MAIL, READERS, person=PERSON),
    "person as the service": subject(1030, MAIL, READERS, person=PERSON),
    "login unreadable": subject(1030, MAIL, READERS, person=Reason.PEER_LOGIN_UNREADABLE),
    "no group at all": subject(1098),
    "pid 0": subject(1030, MAIL, READERS, standing=Reason.PEER_PID_ZERO),
    "overflow uid": subject(65534, MAIL, READERS, standing=Reason.PEER_OVERFLOW_UID),
    "dead peer": subject(1010, OPERATORS, standing=Reason.PEER_ENDED, person=PERSON),
    "unknown address": subject(1050, MAIL, standing=Reason.PEER_UNKNOWN),
    "requester": subject(1060, ADMINS, person=PERSON),
    "requester through su": subject(1060, ADMINS, person=PERSON, borrowed=SU),
    "requester who is an operator": subject(1061, ADMINS, OPERATORS, person=PERSON),
    "requester in the service's group": subject(1062, ADMINS, MAIL, READERS),
    "dead requester": subject(1060, ADMINS, standing=Reason.PEER_ENDED),
    "approver": subject(1070, MANAGERS, person=PERSON),
    "approver at the second level": subject(1071, LEGAL, person=PERSON),
    "approver through su": subject(1070, MANAGERS, person=PERSON, borrowed=SU),
    "approver who is an operator": subject(1072, LEGAL, OPERATORS, person=PERSON),
    "approver who is a requester": subject(1073, LEGAL, ADMINS, person=PERSON),
}

# One row per class of caller; what is not None is the reason for refusing. Columns: encrypt,
# decrypt (rewrap, reencrypt), describe and manage (all that operators do) on the key "mail"; list
# (and reflect).
OK = None
NO = Reason.NOT_ALLOWED
OP = Reason.OPERATOR_MAY_NOT_USE_KEYS
NOP = Reason.NOT_AN_OPERATOR
UNREADABLE = Reason.PEER_LOGIN_UNREADABLE
PID0 = Reason.PEER_PID_ZERO
OVERFLOW = Reason.PEER_OVERFLOW_UID
ENDED = Reason.PEER_ENDED
UNKNOWN = Reason.PEER_UNKNOWN
EXPECTED: dict[str, tuple[Reason | None, ...]] = {
    #                                  encrypt     decrypt     describe    manage    list
    "service":                         (OK,         OK,         OK,         NOP,      OK),
    "service by user":                 (OK,         OK,         OK,         NOP,      OK),
    "encrypt-only service":            (OK,         NO,         OK,         NOP,      OK),
    "other service":                   (NO,         NO,         NO,         NOP,      OK),
    "reader but not allowed":          (NO,         NO,         NO,         NOP,      NO),
    "stranger":                        (NO,         NO,         NO,         NOP,      NO),
    "root":                            (NO,         NO,         NO,         NOP,      NO),
    "operator":                        (OP,         OP,         OK,         OK,       OK),
    "operator in the service's group": (OP,         OP,         OK,         OK,       OK),
    "operator at a login":             (OP,         OP,         OK,         OK,       OK),
    "auditor":                         (NO,         NO,         OK,         NOP,      OK),
    "auditor in the service's group":  (OK,         OK,         OK,         NOP,      OK),
    "auditor at a login":              (PERSON,     PERSON,     OK,         NOP,      OK),
    "person as the service":           (PERSON,     PERSON,     PERSON,     NOP,      PERSON),
    "login unreadable":                (UNREADABLE, UNREADABLE, UNREADABLE, NOP,      UNREADABLE),
    "no group at all":                 (NO,         NO,         NO,         NOP,      NO),
    "pid 0":                           (PID0,       PID0,       PID0,       PID0,     PID0),
    "overflow uid":                    (OVERFLOW,   OVERFLOW,   OVERFLOW,   OVERFLOW, OVERFLOW),
    "dead peer":                       (ENDED,      ENDED,      ENDED,      ENDED,    ENDED),
    "unknown address":                 (UNKNOWN,    UNKNOWN,    UNKNOWN,    UNKNOWN,  UNKNOWN),
    "requester":                       (PERSON,     PERSON,     PERSON,     NOP,      OK),
    "requester through su":            (PERSON,     PERSON,     PERSON,     NOP,      OK),
    "requester who is an operator":    (OP,         OP,         OK,         OK,       OK),
    "requester in the service's group": (OK,        OK,         OK,         NOP,      OK),
    "dead requester":                  (ENDED,      ENDED,      ENDED,      ENDED,    ENDED),
    "approver":                        (PERSON,     PERSON,     PERSON,     NOP,      OK),
    "approver at the second level":    (PERSON,     PERSON,     PERSON,     NOP,      OK),
    "approver through su":             (PERSON,     PERSON,     PERSON,     NOP,      OK),
    "approver who is an operator":     (OP,         OP,         OK,         OK,       OK),
    "approver who is a requester":     (PERSON,     PERSON,     PERSON,     NOP,      OK),
}  # fmt: skip
NREQ, NAPP = Reason.NOT_A_REQUESTER, Reason.NOT_AN_APPROVER
# The same for people's access. Columns: request (and use) for the key "mail"; activate; cancel;
# decide; list; revoke; read audit.
NOBODY = (NREQ, NREQ, NREQ, NAPP, NO, NO)
EXPECTED_ACCESS: dict[str, tuple[Reason | None, ...]] = {
    "service":                         (*NOBODY, OK),
    "service by user":                 (*NOBODY, OK),
    "encrypt-only service":            (*NOBODY, OK),
    "other service":                   (*NOBODY, OK),
    "reader but not allowed":          (*NOBODY, NO),
    "stranger":                        (*NOBODY, NO),
    "root":                            (*NOBODY, NO),
    #                                   request activate cancel decide list revoke audit
    "operator":                        (OP,     OP,      NREQ,  NAPP,  OK,  OK,    OK),
    "operator in the service's group": (OP,     OP,      NREQ,  NAPP,  OK,  OK,    OK),
    "operator at a login":             (OP,     OP,      NREQ,  NAPP,  OK,  OK,    OK),
    "auditor":                         (NREQ,   NREQ,    NREQ,  NAPP,  OK,  NO,    OK),
    "auditor in the service's group":  (NREQ,   NREQ,    NREQ,  NAPP,  OK,  NO,    OK),
    "auditor at a login":              (NREQ,   NREQ,    NREQ,  NAPP,  OK,  NO,    OK),
    "person as the service":           (*NOBODY, PERSON),
    "login unreadable":                (*NOBODY, UNREADABLE),
    "no group at all":                 (*NOBODY, NO),
    "pid 0":                           (PID0,) * 7,
    "overflow uid":                    (OVERFLOW,) * 7,
    "dead peer":                       (ENDED,) * 7,
    "unknown address":                 (UNKNOWN,) * 7,
    "requester":                       (OK,     OK,      OK,    NAPP,  OK,  OK,    OK),
    "requester through su":            (SU,     SU,      OK,    NAPP,  OK,  OK,    OK),
    "requester who is an operator":    (OP,     OP,      OK,    NAPP,  OK,  OK,    OK),
    "requester in the service's group": (OK,    OK,      OK,    NAPP,  OK,  OK,    OK),
    "dead requester":                  (ENDED,) * 7,
    "approver":                        (NREQ,   NREQ,    NREQ,  OK,    OK,  OK,    OK),
    "approver at the second level":    (NREQ,   NREQ,    NREQ,  OK,    OK,  OK,    OK),
    "approver through su":             (NREQ,   NREQ,    NREQ,  SU,    OK,  OK,    OK),
    "approver who is an operator":     (OP,     OP,      NREQ,  OK,    OK,  OK,    OK),
    "approver who is a requester":     (OK,     OK,      OK,    OK,    OK,  OK,    OK),
}  # fmt: skip
COLUMN = {
    Operation.ENCRYPT: 0,
    Operation.DECRYPT: 1,
    Operation.REWRAP: 1,
    Operation.REENCRYPT: 1,
    Operation.GENERATE_DATA_KEY: 0,
    Operation.DECRYPT_DATA_KEY: 1,
    Operation.DESCRIBE_KEY: 2,
    Operation.ROTATE_KEY: 3,
    Operation.DISABLE_VERSION: 3,
    Operation.ENABLE_VERSION: 3,
    Operation.DESTROY_VERSION: 3,
    Operation.CANCEL_DESTROY_VERSION: 3,
    Operation.LIST_KEYS: 4,
    Operation.REFLECT: 4,
}
ACCESS_COLUMN = {
    Operation.REQUEST_ACCESS: 0,
    Operation.USE_ACCESS: 0,
    Operation.ACTIVATE_ACCESS: 1,
    Operation.CANCEL_ACCESS: 2,
    Operation.DECIDE_ACCESS: 3,
    Operation.LIST_ACCESS: 4,
    Operation.REVOKE_ACCESS: 5,
    Operation.READ_AUDIT: 6,
}
OF_A_KEY = [op for op, column in COLUMN.items() if column < 4]
OF_A_KEY += [op for op, column in ACCESS_COLUMN.items() if column == 0]
CASES = list(itertools.product(SUBJECTS, Operation))


@pytest.mark.parametrize(("who", "operation"), CASES)
def test_table(who: str, operation: Operation) -> None:
    """I1, I3, I4: each class of caller gets exactly what the table says."""
    key = "mail" if operation in OF_A_KEY else None
    expected = None
    for table, columns in ((EXPECTED, COLUMN), (EXPECTED_ACCESS, ACCESS_COLUMN)):
        if operation in columns:
            expected = table[who][columns[operation]]
    assert POLICY.decide(SUBJECTS[who], operation, key) is expected


def test_status_and_health_are_open_to_anybody_even_without_an_identity() -> None:
    """I1: health and the public part of status only."""
    for who in SUBJECTS.values():
        assert POLICY.decide(who, Operation.GET_STATUS, None) is None
        assert POLICY.decide(who, Operation.HEALTH, None) is None


@pytest.mark.parametrize(("who", "operation"), list(itertools.product(SUBJECTS, OF_A_KEY)))
def test_unknown_key_and_no_key_look_like_a_forbidden_one(who: str, operation: Operation) -> None:
    """I11: nobody learns from a refusal whether a key exists."""
    expected = POLICY.decide(SUBJECTS[who], operation, "mail") or Reason.NOT_ALLOWED
    for key in ("no-such-key", None, ""):
        assert POLICY.decide(SUBJECTS[who], operation, key) is expected


def test_forbidden_and_unknown_keys_give_the_same_reason() -> None:
    """I11: for a service of another key, this key might as well not be there."""
    for operation in OF_A_KEY:
        other = SUBJECTS["other service"]
        assert POLICY.decide(other, operation, "mail") is POLICY.decide(other, operation, "none")


def test_new_operation_is_refused_to_everybody_until_it_is_listed() -> None:
    """A member that the table of rules doesn't know: no class of caller gets through."""
    new = object.__new__(Operation)
    new._name_, new._value_ = "NEW", "new"
    for who in SUBJECTS.values():
        reason = POLICY.decide(who, new, "mail")
        assert reason is (who.standing or Reason.METHOD_UNKNOWN)


def test_every_operation_of_today_is_listed() -> None:
    assert set(_RULES) == set(Operation)


@pytest.mark.parametrize("who", SUBJECTS)
def test_allowed_anything_is_exactly_what_decide_says(who: str) -> None:
    """Whoever is relayed to the main server has something to do there, and nobody else is."""
    closed = {*COLUMN, *ACCESS_COLUMN}
    closed -= {Operation.LIST_KEYS, Operation.REFLECT, Operation.READ_AUDIT}
    any_allowed = any(
        POLICY.decide(SUBJECTS[who], operation, key) is None
        for operation in closed
        for key in POLICY.keys
    )
    assert POLICY.is_allowed_anything(SUBJECTS[who]) == any_allowed


@pytest.mark.parametrize("who", SUBJECTS)
def test_visible_keys_are_those_that_can_be_described_or_asked_for(who: str) -> None:
    """A requester must name a key, and so sees all names; an approver sees them in requests."""
    if POLICY.decide(SUBJECTS[who], Operation.CANCEL_ACCESS, None) is None:
        assert POLICY.visible_keys(SUBJECTS[who]) == set(POLICY.keys)
        return
    described = {
        key
        for key in POLICY.keys
        if POLICY.decide(SUBJECTS[who], Operation.DESCRIBE_KEY, key) is None
    }
    assert POLICY.visible_keys(SUBJECTS[who]) == described


def test_who_sees_everybodys_requests_and_records() -> None:
    """Requesters see their own; only auditors read all of the audit log."""
    for who, subject_ in SUBJECTS.items():
        alive = subject_.standing is None
        roles = [role for role in ("operator", "auditor", "approver") if role in who]
        assert POLICY.may_see_all_access(subject_) == (alive and bool(roles)), who
        assert POLICY.may_read_all_audit(subject_) == (alive and who.startswith("auditor")), who


def test_the_policys_groups_include_those_of_elevation() -> None:
    """Membership looks at the groups that the policy names, and at no others."""
    assert {ADMINS, MANAGERS, LEGAL} <= POLICY.gids


def test_narrowing_can_close_a_key_to_those_who_are_allowed() -> None:
    """A caller left with no operation on a key doesn't see it."""
    service = SUBJECTS["service"]
    assert POLICY.decide(service, Operation.ENCRYPT, "closed") is Reason.NOT_ALLOWED
    assert POLICY.visible_keys(service) == {"mail"}


def test_decrypt_only_service_can_not_encrypt() -> None:
    only_reads = Policy(
        keys={
            "k": KeyPolicy(
                allowed=ResolvedPrincipals(gids=frozenset({1, 2})), encrypt_gids=frozenset({1})
            )
        }
    )
    assert only_reads.decide(subject(5, 2), Operation.ENCRYPT, "k") is Reason.NOT_ALLOWED
    assert only_reads.decide(subject(5, 2), Operation.DECRYPT, "k") is None
    assert only_reads.decide(subject(5, 2), Operation.REWRAP, "k") is None


@pytest.mark.parametrize(
    ("gids", "expected"),
    [
        ((MAIL, WRITERS, READERS), OK),
        ((MAIL, WRITERS), NO),
        ((MAIL, READERS), NO),
        ((MAIL,), NO),
        ((WRITERS, READERS), NO),
    ],
)
def test_reencrypting_needs_both_permissions(
    gids: tuple[int, ...], expected: Reason | None
) -> None:
    """It opens an envelope and makes one: neither half of a narrowed policy is got round by it."""
    narrowed = Policy(
        keys={
            "k": KeyPolicy(
                allowed=ResolvedPrincipals(gids=frozenset({MAIL})),
                encrypt_gids=frozenset({WRITERS}),
                decrypt_gids=frozenset({READERS}),
            )
        }
    )
    assert narrowed.decide(subject(5, *gids), Operation.REENCRYPT, "k") is expected


DATA_KEY_OPERATIONS = (Operation.GENERATE_DATA_KEY, Operation.DECRYPT_DATA_KEY)


@pytest.mark.parametrize("operation", DATA_KEY_OPERATIONS)
def test_a_key_gives_no_data_keys_unless_its_policy_says_so(operation: Operation) -> None:
    """Only who may use the key learns of that reason; to others it looks like no key at all."""
    assert POLICY.decide(subject(5, PAYROLL), operation, "payroll") is Reason.DATA_KEYS_NOT_ALLOWED
    assert POLICY.decide(SUBJECTS["service"], operation, "payroll") is NO
    assert POLICY.decide(SUBJECTS["operator"], operation, "payroll") is OP


@pytest.mark.parametrize("operation", [Operation.ENCRYPT, Operation.DECRYPT, Operation.REWRAP])
@pytest.mark.parametrize("who", SUBJECTS)
def test_a_batch_is_refused_whole_where_no_key_is_allowed(who: str, operation: Operation) -> None:
    """For the reason that any one key would be refused for."""
    subject = SUBJECTS[who]
    each = {POLICY.decide(subject, operation, key) for key in POLICY.keys}
    expected = None if None in each else each.pop()
    assert POLICY.decide_for_any(subject, operation) is expected


def test_root_is_served_only_where_a_policy_names_it() -> None:
    """I3: root is nobody special, in either direction."""
    named = Policy(keys={"k": KeyPolicy(allowed=ResolvedPrincipals(uids=frozenset({0})))})
    root = subject(0, 0)
    assert named.decide(root, Operation.ENCRYPT, "k") is None
    assert named.decide(root, Operation.ROTATE_KEY, "k") is Reason.NOT_AN_OPERATOR
    assert not Policy(keys=POLICY.keys).is_allowed_anything(root)


def test_empty_policy_refuses_everybody() -> None:
    for who, operation in itertools.product(SUBJECTS.values(), {**COLUMN, **ACCESS_COLUMN}):
        assert Policy().decide(who, operation, "mail") is not None


# --- names to numbers


class Directory:
    """A name service with a few names that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def gid_of(self, name: str) -> int | None:
        """Return the group's number."""
        self.asked.append(name)
        return {"ops": OPERATORS, "mail": MAIL, "readers": READERS, "nogroup": 65534}.get(name)

    def uid_of(self, name: str) -> int | None:
        """Return the account's number."""
        self.asked.append(name)
        return {"gateway": 1050, "root": 0}.get(name)


def config_of(tables: str) -> str:
    return (
        'sidecar.socket="/s"\naudit.path="/a.jsonl"\n[store]\nurl="sqlite:////d"\n'
        f'[root_key]\nprovider="file"\npath="/k"\n{tables}'
    )


def resolve(tables: str, directory: Directory | None = None) -> Policy:
    config = parse_config(config_of(tables).encode(), Path("keyside.toml"))
    return resolve_policy(config, directory or Directory())


def test_names_become_numbers_and_numbers_stay() -> None:
    policy = resolve(
        '[operators]\ngroups=["ops"]\n[auditors]\nusers=[77]\n[keys.m]\nallow_groups=["mail", 99]\n'
        'allow_users=["gateway", 7]\ndecrypt_groups=["readers"]\n'
    )
    assert policy == Policy(
        operators=ResolvedPrincipals(gids=frozenset({OPERATORS})),
        auditors=ResolvedPrincipals(uids=frozenset({77})),
        keys=MappingProxyType(
            {
                "m": KeyPolicy(
                    allowed=ResolvedPrincipals(
                        gids=frozenset({MAIL, 99}), uids=frozenset({1050, 7})
                    ),
                    decrypt_gids=frozenset({READERS}),
                )
            }
        ),
    )


def test_every_unknown_name_is_reported_together_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(
            '[operators]\ngroups=["opps"]\n[keys.m]\nallow_groups=["mail",\n"male"]\n'
            'allow_users=["gateway", "mail"]\nencrypt_groups=["x"]\n'
        )
    assert [str(problem) for problem in caught.value.problems] == [
        "keyside.toml line 9, [operators] groups: there is no group 'opps'",
        "keyside.toml line 12, [keys.m] allow_groups: there is no group 'male'",
        "keyside.toml line 13, [keys.m] allow_users: there is no user 'mail'",
        "keyside.toml line 14, [keys.m] encrypt_groups: there is no group 'x'",
    ]


def test_name_that_stands_for_the_overflow_id_is_refused() -> None:
    """I3: a policy can't be made to allow whoever has no meaning in a user namespace."""
    with pytest.raises(ConfigError, match="stands for 65534"):
        resolve('[keys.m]\nallow_groups=["nogroup"]\n')


def test_each_name_is_asked_for_once() -> None:
    directory = Directory()
    resolve('[keys.a]\nallow_groups=["mail"]\n[keys.b]\nallow_groups=["mail"]\n', directory)
    assert directory.asked == ["mail"]


def test_outage_of_the_name_service_is_not_an_absence() -> None:
    """I12: what the lookup raises comes through as it is."""

    class Away(Directory):
        def gid_of(self, name: str) -> int | None:
            raise TimeoutError(name)

    with pytest.raises(TimeoutError):
        resolve('[keys.a]\nallow_groups=["mail"]\n', Away())
