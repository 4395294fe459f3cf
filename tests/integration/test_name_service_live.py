"""The whole sidecar over a directory that goes away, hangs and comes back (I1).

What an outage may do: the last answer serves until it is ``membership_stale_max`` old, then calls
are refused, and say why. Nothing else: who isn't known to be in a group isn't taken to be out of
it, and the other way round.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from support.caller import Answer, Caller, Callers, callers_of
from support.name_service import Directory, build_name_service, seeing_nsswitch_conf
from support.sidecar import Sidecar, sidecar_directory

from keyside.v1 import encryption_pb2, keys_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

TTL_S = 1.0
STALE_MAX_S = 4.0
# A lookup that hangs is given up after 15 seconds.
HEALING_S = 60.0
SERVICE_UID, OPERATOR_UID, OTHER_UID, LATE_UID = 70001, 70002, 70003, 70004
# Also a group's: policy names groups of the directory, and numbers for good measure.
PEOPLE = f"""
user ks-svc {SERVICE_UID} {SERVICE_UID}
user ks-operator {OPERATOR_UID} {OPERATOR_UID}
user ks-other {OTHER_UID} {OTHER_UID}
user ks-late {LATE_UID} {LATE_UID}
group ks-mail 70100 ks-svc
group ks-mail 70100 ks-late
group ks-operators 70101 ks-operator
"""
CONFIG = """
[operators]
groups = ["ks-operators"]

[keys.mail-credentials]
allow_groups = ["ks-mail"]
"""
IDENTITY = f"""
membership = "account"
membership_ttl = "{TTL_S:.0f}s"
membership_stale_max = "{STALE_MAX_S:.0f}s"
person_logins = "off"
"""

ENCRYPT = "/keyside.v1.EncryptionService/Encrypt"
GET_KEY = "/keyside.v1.KeyService/GetKey"
GET_STATUS = "/keyside.v1.StatusService/GetStatus"
CHECK = "/grpc.health.v1.Health/Check"
ENCRYPT_REQUEST = encryption_pb2.EncryptRequest(key="mail-credentials", plaintext=b"a token")
GET_KEY_REQUEST = keys_pb2.GetKeyRequest(name="mail-credentials")

OK = ("OK", "")
NOT_ALLOWED = ("PERMISSION_DENIED", "NOT_ALLOWED")
OPERATOR = ("PERMISSION_DENIED", "OPERATOR_MAY_NOT_USE_KEYS")
AWAY = ("UNAVAILABLE", "NAME_SERVICE_UNAVAILABLE")
POLICY_CHANGED = ("UNAVAILABLE", "POLICY_CHANGED")


@dataclass(frozen=True)
class Scene:
    """A sidecar whose accounts come from a directory, and callers on it."""

    sidecar: Sidecar
    directory: Directory
    callers: Callers


@pytest.fixture(scope="module")
def scene_of_module() -> Iterator[Scene]:
    with sidecar_directory() as place:
        build_name_service(place, "kstest")
        conf = place / "nsswitch.conf"
        conf.write_text("passwd: files kstest systemd\ngroup: files kstest systemd\n")
        directory = Directory(place / "people", PEOPLE)
        sidecar = Sidecar(
            place,
            config=CONFIG,
            identity=IDENTITY,
            launcher=seeing_nsswitch_conf(conf),
            environment={"LD_LIBRARY_PATH": str(place), "KSTEST_STATE": str(directory.state)},
        )
        sidecar.prepare()
        sidecar.start()
        try:
            with callers_of(sidecar.socket) as callers:
                yield Scene(sidecar, directory, callers)
        finally:
            sidecar.kill()


@pytest.fixture
def scene(scene_of_module: Scene) -> Iterator[Scene]:
    yield scene_of_module
    scene_of_module.callers.end()
    scene_of_module.directory.set("up", PEOPLE)
    time.sleep(TTL_S)  # what was said before is forgotten


def encrypt(caller: Caller) -> Answer:
    return caller.call(ENCRYPT, ENCRYPT_REQUEST)


def find_problem(caller: Caller) -> status_pb2.Problem | None:
    """Return what status says of the name service."""
    status = caller.call(GET_STATUS).parse(status_pb2.GetStatusResponse)
    found = [item for item in status.problems if item.reason == "NAME_SERVICE_UNAVAILABLE"]
    return found[0] if found else None


def call_until_refused(caller: Caller, stale_s: float) -> list[Answer]:
    """Call over and over until well after answers that are in memory may be used no longer."""
    answers = [encrypt(caller)]
    while answers[-1].started_s < stale_s + 1.0:
        time.sleep(0.02)
        answers.append(encrypt(caller))
    return answers


def is_still_served(answer: Answer, before: Answer) -> bool:
    """Return whether a call must have been served, after one that was served before the outage.

    That one was judged by an answer younger than the ttl, which is used for ``stale_max``.
    """
    return answer.ended_s < before.started_s - TTL_S + STALE_MAX_S


def wait_until_served(caller: Caller) -> None:
    deadline = time.monotonic() + HEALING_S
    while (answer := encrypt(caller)).outcome != OK:
        assert answer.code == "UNAVAILABLE", answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


# ENOENT is what comes of a daemon that is stopped; a lookup that hangs is given up after a while.
@pytest.mark.parametrize("weather", [f"unavail {errno.ENOENT}", "hang 0"], ids=["away", "hangs"])
def test_i1_served_for_a_while_then_refused_then_healed(scene: Scene, weather: str) -> None:
    service, operator = scene.callers.start(SERVICE_UID), scene.callers.start(OPERATOR_UID)
    probe, late = scene.callers.start(OTHER_UID), scene.callers.start(LATE_UID)
    assert operator.call(GET_KEY, GET_KEY_REQUEST).outcome == OK
    assert encrypt(operator).outcome == OPERATOR
    assert encrypt(probe).outcome == NOT_ALLOWED
    assert find_problem(probe) is None
    before = encrypt(service)
    assert before.outcome == OK

    went_away_at = datetime.now(UTC)
    scene.directory.set(weather)
    away_s = time.monotonic()
    answers = call_until_refused(service, away_s + STALE_MAX_S)
    for answer in answers:
        if is_still_served(answer, before):
            assert answer.outcome == OK
        elif answer.started_s >= away_s + STALE_MAX_S:
            assert answer.outcome == AWAY
        else:
            assert answer.outcome in {OK, AWAY}
    assert answers[-1].outcome == AWAY
    assert "may be repeated" in answers[-1].remedy

    # Nobody's rights are guessed: not those of an operator, nor of who was in no group, nor of
    # who never called before.
    for caller in (operator, probe, late):
        assert encrypt(caller).outcome == AWAY
    assert operator.call(GET_KEY, GET_KEY_REQUEST).outcome == AWAY
    # A probe for liveness is answered, and status says what is wrong and since when.
    assert probe.call(CHECK).outcome == OK
    problem = find_problem(probe)
    assert problem is not None
    assert went_away_at <= problem.since.ToDatetime(UTC) <= datetime.now(UTC)
    assert not problem.blocking
    assert "the name service does not answer" in scene.sidecar.log.read_text()

    scene.directory.set("up")
    wait_until_served(service)
    # It connected while nothing was known of it, so it is told to connect again.
    wait_until_served(late)
    for caller in (operator, probe):
        deadline = time.monotonic() + HEALING_S
        while (answer := encrypt(caller)).outcome == AWAY:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert answer.outcome in {OPERATOR, NOT_ALLOWED, POLICY_CHANGED}
    assert find_problem(service) is None
    assert "the name service answers again" in scene.sidecar.log.read_text()


def test_i1_a_removal_is_seen_as_soon_as_the_directory_is_back(scene: Scene) -> None:
    """While it is away nobody can know; and what it says then is believed at once."""
    service = scene.callers.start(SERVICE_UID)
    before = encrypt(service)
    assert before.outcome == OK
    scene.directory.set(f"unavail {errno.ECONNREFUSED}", PEOPLE.replace("70100 ks-svc", "70100 -"))
    time.sleep(TTL_S)
    answer = encrypt(service)
    assert answer.outcome == OK or not is_still_served(answer, before)
    scene.directory.set("up")
    deadline = time.monotonic() + HEALING_S
    while (answer := encrypt(service)).outcome != NOT_ALLOWED:
        assert answer.outcome in {OK, AWAY}
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_directory_that_hangs_for_strangers_holds_up_nobody_else(scene: Scene) -> None:
    """Nor does it hold up the end of the process."""
    steady = scene.callers.start(SERVICE_UID)
    strangers = [scene.callers.start(71000 + number) for number in range(6)]
    before = encrypt(steady)
    assert before.outcome == OK
    scene.directory.set("hang 0")
    for stranger in strangers:
        stranger.begin("call", path=ENCRYPT, data="")
    answer = encrypt(steady)
    assert answer.outcome == OK or not is_still_served(answer, before)
    for stranger in strangers:
        refused = stranger.finish()
        assert (refused["code"], refused["reason"]) == AWAY
    started_s = time.monotonic()
    assert scene.sidecar.stop() == 0
    assert time.monotonic() - started_s < 10
    scene.directory.set(f"unavail {errno.ECONNREFUSED}")
    done = scene.sidecar.keysided("serve")
    assert done.returncode == 69
    assert "name service" in done.stderr or "can't be looked up" in done.stderr
    scene.directory.set("up")
    scene.sidecar.start()
    wait_until_served(scene.callers.start(SERVICE_UID))
