"""Who is calling, over the real socket: now, and by the kernel's word alone (I1, I2, I3, I4).

``person_logins`` is off here except where it is what a test is about: whoever runs the tests may
have a login uid, and so may the connections that this process makes.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import socket
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from support.accounts import Accounts, made_accounts
from support.caller import UNSET_LOGIN, Answer, Caller, Callers, callers_of
from support.peers import (
    calls_through,
    connect_as,
    lending,
    private_sockets,
    read_to_end,
    relay_names,
    taking_ids,
)
from support.sidecar import (
    OTHER_UID,
    SERVICE_GID,
    SERVICE_UID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
)

from keyside.v1 import encryption_pb2, keys_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

TTL_S = 1.0
STRANGER_UID = 64206
PERSON_UID = 64207
NO_ACCOUNT_UID = 64208

ENCRYPT = "/keyside.v1.EncryptionService/Encrypt"
ROTATE_KEY = "/keyside.v1.KeyService/RotateKey"
GET_STATUS = "/keyside.v1.StatusService/GetStatus"
WATCH = "/grpc.health.v1.Health/Watch"
ENCRYPT_REQUEST = encryption_pb2.EncryptRequest(key="mail-credentials", plaintext=b"a token")
ROTATE_REQUEST = keys_pb2.RotateKeyRequest(name="mail-credentials")

OK = ("OK", "")
NOT_ALLOWED = ("PERMISSION_DENIED", "NOT_ALLOWED")
NOT_AN_OPERATOR = ("PERMISSION_DENIED", "NOT_AN_OPERATOR")
OPERATOR = ("PERMISSION_DENIED", "OPERATOR_MAY_NOT_USE_KEYS")
PERSON = ("PERMISSION_DENIED", "PEER_PERSON_LOGIN")
PEER_UNKNOWN = ("UNAUTHENTICATED", "PEER_UNKNOWN")
ACCOUNT_UNKNOWN = ("UNAUTHENTICATED", "ACCOUNT_UNKNOWN")
POLICY_CHANGED = ("UNAVAILABLE", "POLICY_CHANGED")

ACCOUNT_MODE = f"""
membership = "account"
membership_ttl = "{TTL_S:.0f}s"
person_logins = "off"
"""
HTTP2_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@dataclass(frozen=True)
class Scene:
    """A sidecar in account mode, callers on it, and what makes accounts."""

    sidecar: Sidecar
    callers: Callers
    accounts: Accounts
    services: str
    operators: str

    @contextlib.contextmanager
    def on_one_connection(self, uid: int) -> Iterator[Caller]:
        """Give a caller that has one connection, made under ``uid``, and gets no other."""
        with (
            connect_as(uid, self.sidecar.socket) as connection,
            calls_through(connection) as target,
        ):
            yield self.callers.start(uid, target=target)


@pytest.fixture(scope="module")
def scene_of_module() -> Iterator[Scene]:
    with made_accounts() as accounts:
        services, operators = accounts.add_group("mail"), accounts.add_group("operators")
        config = f"""
[operators]
groups = ["{operators}"]

[keys.mail-credentials]
allow_groups = ["{services}"]
"""
        settings = "workers = 2\nreflection = true"
        with (
            running_sidecar(identity=ACCOUNT_MODE, config=config, settings=settings) as sidecar,
            callers_of(sidecar.socket) as callers,
        ):
            yield Scene(sidecar, callers, accounts, services, operators)


@pytest.fixture
def scene(scene_of_module: Scene) -> Iterator[Scene]:
    yield scene_of_module
    scene_of_module.callers.end()


def whoami(caller: Caller, **settings: Any) -> status_pb2.CallerIdentity:
    """Return whom the sidecar takes a caller for."""
    answer = caller.call(GET_STATUS, status_pb2.GetStatusRequest(), **settings)
    return answer.parse(status_pb2.GetStatusResponse).you


def call_until(deadline_s: float, call: Callable[[], Answer]) -> list[Answer]:
    """Call over and over until then, and at least once after; return the answers."""
    answers = [call()]
    while answers[-1].started_s <= deadline_s:
        answers.append(call())
    return answers


def outcomes_after(moment_s: float, answers: list[Answer]) -> set[tuple[str, str]]:
    """Return how the calls ended that began at that moment or later."""
    return {answer.outcome for answer in answers if answer.started_s >= moment_s}


def wait_for_no_connection(sidecar: Sidecar) -> None:
    """Wait until what earlier callers left behind is closed."""
    while relay_names(sidecar):
        time.sleep(0.01)


# -- account mode -----------------------------------------------------------------------------


def test_i1_removed_from_the_group_while_connected(scene: Scene) -> None:
    """On the same connection, every call that begins a ttl after the removal is refused."""
    uid = scene.accounts.add_user("leaver", scene.services)
    with scene.on_one_connection(uid) as caller:
        assert caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
        scene.accounts.leave("leaver", scene.services)
        effective_s = time.monotonic() + TTL_S
        answers = call_until(effective_s + 0.2, lambda: caller.call(ENCRYPT, ENCRYPT_REQUEST))
        assert outcomes_after(effective_s, answers) == {NOT_ALLOWED}
        assert outcomes_after(0, answers) <= {OK, NOT_ALLOWED}
        status = caller.call(GET_STATUS).parse(status_pb2.GetStatusResponse)
        assert not status.keys
        assert not status.version

        scene.accounts.join("leaver", scene.services)
        effective_s = time.monotonic() + TTL_S
        answers = call_until(effective_s + 0.2, lambda: caller.call(ENCRYPT, ENCRYPT_REQUEST))
        assert outcomes_after(effective_s, answers) == {OK}


def test_i1_a_stream_that_is_open_ends_with_the_membership(scene: Scene) -> None:
    uid = scene.accounts.add_user("asker", scene.services)
    with scene.on_one_connection(uid) as caller:
        assert caller.do("ask")["code"] == "OK"
        assert caller.do("ask")["code"] == "OK"
        scene.accounts.leave("asker", scene.services)
        time.sleep(TTL_S)
        refused = caller.do("ask")
        assert (refused["code"], refused.get("reason")) == NOT_ALLOWED


def test_i1_added_to_the_group_while_connected(scene: Scene) -> None:
    """Within a ttl the caller is told to connect again, and is served when it has."""
    uid = scene.accounts.add_user("joiner")
    caller = scene.callers.start(uid)
    assert caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome == NOT_ALLOWED
    scene.accounts.join("joiner", scene.services)
    effective_s = time.monotonic() + TTL_S
    answers = call_until(effective_s + 0.2, lambda: caller.call(ENCRYPT, ENCRYPT_REQUEST))
    assert NOT_ALLOWED not in outcomes_after(effective_s, answers)
    seen = [answer.outcome for answer in answers]
    assert POLICY_CHANGED in seen
    told = seen.index(POLICY_CHANGED)
    assert set(seen[:told]) <= {NOT_ALLOWED}
    # The connection is closed behind the answer, which may meet a call that is under way.
    assert {code for code, _ in seen[told:]} <= {"UNAVAILABLE", "OK"}
    while caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome != OK:
        time.sleep(0.05)


def test_i1_the_client_package_connects_again_by_itself(scene: Scene) -> None:
    uid = scene.accounts.add_user("client")
    caller = scene.callers.start(uid)
    assert caller.do("encrypt", key="mail-credentials") == {"reason": "NOT_ALLOWED"}
    scene.accounts.join("client", scene.services)
    time.sleep(TTL_S)
    assert caller.do("encrypt", key="mail-credentials") == {"reason": ""}


def test_i1_made_an_operator_while_connected(scene: Scene) -> None:
    """It may manage keys and no longer use them; and the other way round when it is over."""
    uid = scene.accounts.add_user("promoted", scene.services)
    with scene.on_one_connection(uid) as caller:
        assert caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
        assert caller.call(ROTATE_KEY, ROTATE_REQUEST).outcome == NOT_AN_OPERATOR
        scene.accounts.join("promoted", scene.operators)
        time.sleep(TTL_S)
        assert caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OPERATOR
        assert caller.call(ROTATE_KEY, ROTATE_REQUEST).outcome == OK
        scene.accounts.leave("promoted", scene.operators)
        time.sleep(TTL_S)
        assert caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
        assert caller.call(ROTATE_KEY, ROTATE_REQUEST).outcome == NOT_AN_OPERATOR


def test_i1_account_deleted_while_connected(scene: Scene) -> None:
    uid = scene.accounts.add_user("deleted", scene.services)
    with scene.on_one_connection(uid) as caller:
        assert caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
        scene.accounts.remove_user("deleted")
        effective_s = time.monotonic() + TTL_S
        answers = call_until(effective_s + 0.2, lambda: caller.call(ENCRYPT, ENCRYPT_REQUEST))
        # An account's end is several changes: of its groups, and of itself.
        assert outcomes_after(effective_s, answers) == {ACCOUNT_UNKNOWN}
        assert whoami(caller).refused == "ACCOUNT_UNKNOWN"


def test_a_uid_without_an_account_is_told_so(scene: Scene) -> None:
    caller = scene.callers.start(NO_ACCOUNT_UID)
    refused = caller.call(ENCRYPT, ENCRYPT_REQUEST)
    assert refused.outcome == ACCOUNT_UNKNOWN
    assert 'membership = "process"' in refused.remedy
    assert whoami(caller).refused == "ACCOUNT_UNKNOWN"


def test_the_primary_group_counts(scene: Scene) -> None:
    uid = scene.accounts.add_user("primary", primary=scene.services)
    assert scene.callers.start(uid).call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK


def test_groups_that_a_process_carries_count_for_nothing(scene: Scene) -> None:
    """In account mode the account's groups decide, whatever the process was started with."""
    gid = grp.getgrnam(scene.services).gr_gid
    outsider = scene.accounts.add_user("outsider")
    member = scene.accounts.add_user("member", scene.services)
    carrying = scene.callers.start(outsider, gid=gid, groups=[gid])
    assert carrying.call(ENCRYPT, ENCRYPT_REQUEST).outcome == NOT_ALLOWED
    bare = scene.callers.start(member, gid=STRANGER_UID)
    assert bare.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK


# -- the kernel's word alone ------------------------------------------------------------------


def test_i2_what_a_caller_says_about_itself_changes_nothing(scene: Scene) -> None:
    """Not in metadata, not in the connection's settings, not in a message."""
    service_uid = scene.accounts.add_user("claimed", scene.services)
    stranger_uid = scene.accounts.add_user("claimant")
    service, stranger = scene.callers.start(service_uid), scene.callers.start(stranger_uid)
    assert service.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
    tickets = relay_names(scene.sidecar)
    assert tickets
    for ticket in tickets:
        peer = f"unix-abstract:{ticket}"
        claims: dict[str, Any] = {
            "metadata": [
                *(("uid", str(service_uid)), ("gid", "0"), ("pid", str(service.pid))),
                *(("keyside-uid", str(service_uid)), ("keyside-caller", peer), ("peer", peer)),
                *(("x-forwarded-user", "root"), ("x-forwarded-for", peer), ("forwarded", peer)),
                *(("authorization", "Bearer root"), ("x-real-ip", peer)),
            ],
            "channel": ticket,
            "options": [("grpc.default_authority", ticket), ("grpc.primary_user_agent", peer)],
        }
        claim = status_pb2.CallerIdentity(pid=service.pid, uid=service_uid)
        body = status_pb2.GetStatusResponse(you=claim).SerializeToString()
        for caller, uid, outcome in (
            (stranger, stranger_uid, NOT_ALLOWED),
            (service, service_uid, OK),
        ):
            assert caller.call(ENCRYPT, ENCRYPT_REQUEST, **claims).outcome == outcome
            # Fields that the message does not have, and a context that names someone else.
            answer = caller.call(GET_STATUS, body, raw=True, **claims)
            you = answer.parse(status_pb2.GetStatusResponse).you
            assert (you.pid, you.uid) == (caller.pid, uid)
            context = {"uid": str(service_uid), "account": "root"}
            request = encryption_pb2.EncryptRequest(key="mail-credentials", context=context)
            assert caller.call(ENCRYPT, request, **claims).outcome == outcome


def test_i3_a_connection_left_to_a_child_is_closed_when_its_maker_ends(scene: Scene) -> None:
    uid = scene.accounts.add_user("parent", scene.services)
    with (
        lending(scene.sidecar.socket, uid, uid) as lender,
        calls_through(lender.connection) as target,
    ):
        heir = scene.callers.start(STRANGER_UID, target=target)
        assert whoami(heir).pid == lender.pid
        assert heir.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
        lender.end_connector()
        assert heir.call(ENCRYPT, ENCRYPT_REQUEST).code == "UNAVAILABLE"
    with lending(scene.sidecar.socket, uid, uid) as lender:
        lender.connection.sendall(HTTP2_OPENING)
        lender.end_connector()
        read_to_end(lender.connection)  # which comes: it would time out otherwise


def test_the_private_sockets_are_behind_a_private_directory(scene: Scene) -> None:
    """Strangers can't reach them; the worker's own account can, and is nobody there."""
    paths = private_sockets(scene.sidecar)
    names = [*(f"m{number}" for number in range(8)), "p"]
    assert sorted(path.name for path in paths) == sorted(names * 2)
    for path in paths:
        facts = path.parent.stat()
        assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o700, SIDECAR_UID)
        for uid in (SERVICE_UID, STRANGER_UID):
            with pytest.raises(PermissionError):
                connect_as(uid, path)
        for uid in (SIDECAR_UID, 0):
            inside = scene.callers.start(uid, target=f"unix:{path}")
            assert inside.call(GET_STATUS).outcome == PEER_UNKNOWN
            inside.end()


def test_i2_a_relays_name_can_not_be_taken(scene: Scene) -> None:
    """Not while it is in use; afterwards it is worth nothing."""
    uid = scene.accounts.add_user("named", scene.services)
    wait_for_no_connection(scene.sidecar)
    caller = scene.callers.start(uid)
    assert caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome == OK
    (name,) = relay_names(scene.sidecar)
    for attacker in (STRANGER_UID, SIDECAR_UID, 0):
        with pytest.raises(OSError, match="in use") as taken:
            connect_as(attacker, scene.sidecar.socket, name=name)
        assert taken.value.errno == errno.EADDRINUSE
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            taking_ids(attacker),
            pytest.raises(ConnectionRefusedError),
        ):
            connection.connect("\0" + name)

    caller.end()
    wait_for_no_connection(scene.sidecar)
    for path in private_sockets(scene.sidecar):
        with (
            connect_as(SIDECAR_UID, path, name=name) as connection,
            calls_through(connection) as target,
        ):
            inside = scene.callers.start(SIDECAR_UID, target=target)
            assert inside.call(GET_STATUS).outcome == PEER_UNKNOWN
            assert inside.call(ENCRYPT, ENCRYPT_REQUEST).outcome == PEER_UNKNOWN
    stranger_uid = scene.accounts.add_user("namesake")
    with (
        connect_as(stranger_uid, scene.sidecar.socket, name=name) as connection,
        calls_through(connection) as target,
    ):
        stranger = scene.callers.start(stranger_uid, target=target)
        assert whoami(stranger).uid == stranger_uid
        assert stranger.call(ENCRYPT, ENCRYPT_REQUEST).outcome == NOT_ALLOWED


def test_i2_calls_of_many_callers_never_run_as_each_other(scene: Scene) -> None:
    """Thousands of calls on connections that come and go, of services and strangers at once."""
    connections, rounds, calls = 4, 8, 50
    uids = [
        scene.accounts.add_user("busy-1", scene.services),
        scene.accounts.add_user("busy-2", scene.services),
        scene.accounts.add_user("busy-3"),
        NO_ACCOUNT_UID,
    ]
    callers = [scene.callers.start(uid) for uid in uids]
    for caller in callers:
        caller.begin("storm", connections=connections, rounds=rounds, calls=calls)
    for caller in callers:
        answers = caller.finish()["answers"]
        assert answers == {f"{caller.pid} {caller.uid}": connections * rounds * calls}


# -- process mode -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process_mode() -> Iterator[Sidecar]:
    identity = 'membership = "process"\nperson_logins = "off"\nconnection_max_age = "1s"'
    with running_sidecar(identity=identity) as sidecar:
        yield sidecar


@pytest.mark.parametrize(
    ("ids", "outcome"),
    [
        ({"gid": STRANGER_UID}, NOT_ALLOWED),
        ({"gid": SERVICE_GID}, OK),
        ({"gid": STRANGER_UID, "groups": [SERVICE_GID]}, OK),
        # The kernel sorts them, so the one that counts comes last.
        ({"gid": STRANGER_UID, "groups": [*range(1000, 1257), SERVICE_GID]}, OK),
        ({"gid": STRANGER_UID, "groups": [*range(1000, 9191), SERVICE_GID]}, OK),
        ({"gid": STRANGER_UID, "groups": [*range(1000, 9191)]}, NOT_ALLOWED),
    ],
    ids=["none", "primary", "supplementary", "258", "8192", "8191 others"],
)
def test_groups_in_process_mode(
    process_mode: Sidecar, ids: dict[str, Any], outcome: tuple[str, str]
) -> None:
    """The groups that the kernel captured at connect count, all of them."""
    with callers_of(process_mode.socket) as callers:
        caller = callers.start(STRANGER_UID, **ids)
        assert caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome == outcome


def test_i1_a_connection_grows_only_so_old_and_the_client_goes_on(process_mode: Sidecar) -> None:
    """A second here, a tenth more or less, and ten seconds for whoever does not let go."""
    wait_for_no_connection(process_mode)
    with callers_of(process_mode.socket) as callers:
        stubborn = connect_as(SERVICE_UID, process_mode.socket)
        with stubborn:
            stubborn.sendall(HTTP2_OPENING)  # and never a word again, whatever is sent to it
            started_s = time.monotonic()
            watcher = callers.start(SERVICE_UID)
            assert watcher.do("hold", path=WATCH, count=1) == {"codes": {"OK": 1}}

            client = callers.start(SERVICE_UID)
            names: set[str] = set()
            for _ in range(30):
                assert client.do("encrypt", key="mail-credentials") == {"reason": ""}
                names |= relay_names(process_mode)
                time.sleep(0.1)
            # The stubborn one's, the watcher's, and more than one of the client's.
            assert len(names) >= 4

            assert watcher.do("next")["code"] == "UNAVAILABLE"
            read_to_end(stubborn)
            assert time.monotonic() - started_s < 1.1 + 10 + 8


# -- people's logins --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "unset", "own", "another"),
    [("refuse", OK, PERSON, PERSON), ("allow-own", OK, OK, PERSON), ("off", OK, OK, OK)],
)
def test_i4_people_s_logins(
    mode: str, unset: tuple[str, str], own: tuple[str, str], another: tuple[str, str]
) -> None:
    """The login uid stays what it was at login, whatever account the process takes then."""
    identity = f'membership = "process"\nperson_logins = "{mode}"'
    with running_sidecar(identity=identity) as sidecar, callers_of(sidecar.socket) as callers:
        found = {}
        for login in (UNSET_LOGIN, SERVICE_UID, PERSON_UID, 0):
            caller = callers.start(SERVICE_UID, login=login)
            found[login] = caller.call(ENCRYPT, ENCRYPT_REQUEST).outcome
            you = whoami(caller)
            assert (you.login_uid if you.HasField("login_uid") else UNSET_LOGIN) == login
            assert you.refused == found[login][1]
        expected = {UNSET_LOGIN: unset, SERVICE_UID: own, PERSON_UID: another, 0: another}
        assert found == expected
        status = caller.call(GET_STATUS).parse(status_pb2.GetStatusResponse)
        said = "PERSON_LOGINS_OFF" in {problem.reason for problem in status.problems}
        assert said == (mode == "off")
        assert ("people's logins are not told from services" in sidecar.log.read_text()) == said
        assert callers.start(OTHER_UID).call(ENCRYPT, ENCRYPT_REQUEST).outcome == NOT_ALLOWED
