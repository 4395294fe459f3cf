"""Where people decide, everybody is asked about afresh: nothing remembered counts (I9).

``membership_ttl`` is the default, 5 seconds; each change to an account is made just after everybody
was seen in order, and the next decision is made at once.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from support.name_service import Directory, build_name_service, seeing_nsswitch_conf
from support.sidecar import Sidecar, sidecar_directory
from support.town import Town, town

from keyside.v1 import access_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

# No membership_ttl: the default's 5 seconds are what must not matter here.
IDENTITY = 'membership = "account"\nperson_logins = "refuse"'


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town() as found:
        yield found


@pytest.fixture(scope="module")
def directory() -> Iterator[Directory]:
    """A second source of accounts behind this host's own, which can be away."""
    with sidecar_directory() as where:
        build_name_service(where, "kstest")
        (where / "nsswitch.conf").write_text(
            "passwd: files kstest systemd\ngroup: files kstest systemd\nshadow: files\n"
        )
        yield Directory(where / "people", "")


@pytest.fixture(scope="module")
def only(place: Town, directory: Directory) -> Iterator[Sidecar]:
    where = directory.state.parent
    found = Sidecar(
        where,
        config=place.config(elevation="max_open_requests = 100"),
        identity=IDENTITY,
        settings="workers = 1",  # who has seen everybody in order is who decides
        launcher=seeing_nsswitch_conf(where / "nsswitch.conf"),
        environment={"LD_LIBRARY_PATH": str(where), "KSTEST_STATE": str(directory.state)},
    )
    found.prepare()
    try:
        yield found
    finally:
        found.kill()


@pytest.fixture
def sidecar(place: Town, only: Sidecar, directory: Directory) -> Iterator[Sidecar]:
    """Everybody is in order, and nothing is remembered of what they were before."""
    only.start()
    yield only
    only.stop()
    directory.set("up", "")
    for person, group in (("alice", "admins"), ("bob", "managers"), ("dave", "legal")):
        place.people.unlock(person)
        place.people.join(person, place.groups[group])


def leave(person: str, group: str) -> Callable[[Town], None]:
    return lambda place: place.people.leave(person, place.groups[group])


def lock(person: str) -> Callable[[Town], None]:
    return lambda place: place.people.lock(person)


def ask(place: Town, sidecar: Sidecar) -> str:
    return str(place.ask(sidecar).parse(pb.RequestAccessResponse).request.id)


LOST = ("FAILED_PRECONDITION", "ACCESS_APPROVALS_LOST")


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (leave("dave", "legal"), LOST),
        (lock("dave"), LOST),
        (leave("alice", "admins"), ("PERMISSION_DENIED", "NOT_A_REQUESTER")),
        (lock("alice"), ("UNAUTHENTICATED", "ACCOUNT_LOCKED")),
    ],
    ids=["left", "locked", "requester left", "requester locked"],
)
def test_nothing_is_activated_on_the_word_of_somebody_who_has_just_gone(
    place: Town, sidecar: Sidecar, change: Callable[[Town], None], outcome: tuple[str, str]
) -> None:
    access_id = place.approved(sidecar)
    change(place)
    answer = place.do(sidecar, "alice", "ActivateAccess", access_id)
    assert answer.outcome == outcome
    assert place.show(sidecar, access_id).state != pb.ACCESS_STATE_ACTIVE
    if outcome == LOST:
        struck = [
            one.struck for level in place.show(sidecar, access_id).levels for one in level.approvals
        ]
        assert len([reason for reason in struck if reason]) == 1


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (leave("bob", "managers"), ("PERMISSION_DENIED", "NOT_AN_APPROVER")),
        (lock("bob"), ("UNAUTHENTICATED", "ACCOUNT_LOCKED")),
        (leave("alice", "admins"), ("FAILED_PRECONDITION", "ACCESS_ENDED")),
        (lock("alice"), ("FAILED_PRECONDITION", "ACCESS_ENDED")),
    ],
    ids=["approver left", "approver locked", "requester left", "requester locked"],
)
def test_nothing_is_approved_by_or_for_somebody_who_has_just_gone(
    place: Town, sidecar: Sidecar, change: Callable[[Town], None], outcome: tuple[str, str]
) -> None:
    access_id = ask(place, sidecar)
    other = ask(place, sidecar)
    assert place.do(sidecar, "bob", "ApproveAccess", other).code == "OK"
    change(place)
    answer = place.do(sidecar, "bob", "ApproveAccess", access_id)
    assert answer.outcome == outcome


@pytest.mark.parametrize("change", [leave("bob", "managers"), lock("bob")], ids=["left", "locked"])
def test_an_approval_of_somebody_who_has_just_gone_opens_no_next_level(
    place: Town, sidecar: Sidecar, change: Callable[[Town], None]
) -> None:
    access_id = ask(place, sidecar)
    assert place.do(sidecar, "bob", "ApproveAccess", access_id).code == "OK"
    change(place)
    answer = place.do(sidecar, "carol", "ApproveAccess", access_id)
    assert answer.reason == "ACCESS_NOT_YOUR_LEVEL"


def test_nobody_asks_who_has_just_left(place: Town, sidecar: Sidecar) -> None:
    ask(place, sidecar)
    leave("alice", "admins")(place)
    assert place.ask(sidecar).outcome == ("PERMISSION_DENIED", "NOT_A_REQUESTER")


def test_with_the_name_service_away_nothing_remembered_will_do(
    place: Town, sidecar: Sidecar, directory: Directory
) -> None:
    """Taking something away goes on: that needs nobody's word but the caller's."""
    approved, waiting = place.approved(sidecar), ask(place, sidecar)
    directory.set(f"unavail {errno.ENOENT}", "")
    for refused in (
        place.ask(sidecar),
        place.do(sidecar, "bob", "ApproveAccess", waiting),
        place.do(sidecar, "alice", "ActivateAccess", approved),
    ):
        assert refused.outcome == ("UNAVAILABLE", "NAME_SERVICE_UNAVAILABLE")
    assert place.do(sidecar, "bob", "DenyAccess", waiting, reason="no").code == "OK"
    assert place.do(sidecar, "alice", "CancelAccess", approved).code == "OK"
