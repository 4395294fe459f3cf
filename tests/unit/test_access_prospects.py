"""Prospects say what the decision will say: everybody, every action, every state of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.access_scene import Scene
from tests.unit.made_store import make_store

from keyside.v1 import access_pb2
from keyside_sidecar.access.prospects import AccessAction, foresee
from keyside_sidecar.api.v1.access import make_request
from keyside_sidecar.errors import AccessRefused
from keyside_sidecar.services.access import AccessView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyside_sidecar.access.requests import Moment

NAMES = ("anna", "mia", "lea", "lou", "amy", "lea-two", "otto", "oda", "sam", "su mia", "su anna")


def pend(scene: Scene) -> None:
    scene.ask("anna")


def approve_once(scene: Scene) -> None:
    scene.ask("anna")
    scene.approve("mia")


def approve_all(scene: Scene) -> None:
    approve_once(scene)
    scene.approve("lea")
    scene.approve("leo")


def grant(scene: Scene) -> None:
    scene.grant()


def end(scene: Scene) -> None:
    scene.ask("anna")
    scene.deny("mia")


def move(scene: Scene) -> None:
    scene.ask("anna")
    scene.move()


def lose_approver(scene: Scene) -> None:
    approve_all(scene)
    scene.leave("lea", 300)


STATES: dict[str, Callable[[Scene], None]] = {
    "pending": pend,
    "once approved": approve_once,
    "approved": approve_all,
    "active": grant,
    "ended": end,
    "of another host": move,
    "an approver has left": lose_approver,
}


def renew(scene: Scene) -> None:
    """Go on to a day on which nothing is open any more."""
    scene.begin()
    scene.review()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    store = make_store(tmp_path_factory.mktemp("prospects")).open()
    yield Scene(store)
    store.close()


@pytest.fixture(autouse=True)
def _fresh(scene: Scene) -> None:
    renew(scene)


@pytest.mark.parametrize("state", STATES)
def test_a_prospect_is_the_decision(scene: Scene, state: str) -> None:
    for name in NAMES:
        for action in AccessAction:
            renew(scene)
            STATES[state](scene)
            before = scene.stored
            told = {one.action: one.refusal for one in look(scene, name)}
            assert scene.stored == before, "looking changes nothing"
            assert told.keys() == set(AccessAction)
            refusal = told[action]
            assert (refusal and refusal.reason) == decide(scene, action, name)


def look(scene: Scene, name: str) -> Any:
    moment: Moment = scene.book.read_moment()
    return foresee(scene.stored, moment, scene.facts, scene.actor(name))


def decide(scene: Scene, action: AccessAction, name: str) -> str | None:
    """Do it, and return the reason for which it was refused."""
    try:
        getattr(scene, action.lower())(name)
    except AccessRefused as error:
        return error.reason
    return None


def test_what_is_not_known_is_left_out(scene: Scene) -> None:
    approve_once(scene)
    moment, actor = scene.book.read_moment(), scene.actor("lea")
    scene.groups = {actor.uid: actor.gids}
    told = {one.action for one in foresee(scene.stored, moment, scene.facts, actor)}
    assert told == set(AccessAction) - {AccessAction.APPROVE}


def test_a_prospect_is_sent_as_the_status_that_the_call_would_end_with(scene: Scene) -> None:
    pend(scene)
    message = make_request(AccessView(scene.stored, look(scene, "lea")))
    sent = {access_pb2.AccessAction.Name(one.action): one for one in message.prospects}
    refused = sent["ACCESS_ACTION_APPROVE"].refused
    assert refused.code == 7
    assert refused.message == "it is not your level's turn to approve this request"
    assert not sent["ACCESS_ACTION_DENY"].HasField("refused")
