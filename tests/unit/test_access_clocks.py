"""Clocks that are put back, forward, or stand still prolong no request and no grant (I9, ADR 10).

Each runs a second at a time, on a real store. Real time goes by for the host's boot clock; what the
wall clock shows, and whether any process lives long enough to move observed time on, is up to
whoever would have more than was approved.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from tests.unit.access_scene import HOST, MINUTE_US, Scene, summarise
from tests.unit.made_store import KINDS, MAIL, NOW, make_store_of

from keyside_sidecar.access.boot_deadlines import MOST_BOOTS
from keyside_sidecar.access.requests import BootDeadline, EndReason
from keyside_sidecar.clock import HostBootClock
from keyside_sidecar.errors import AccessRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.made_store import MadeStore

    from keyside_sidecar.store import Store

SECOND_US: Final = 1_000_000
LASTS_S: Final = 60
TICK_S: Final = 10


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeStore:
    directory: Path = tmp_path_factory.mktemp("clocks")
    return make_store_of(request, directory)


@pytest.fixture
def store(made: MadeStore) -> Iterator[Store]:
    opened = made.open()
    opened.create_key(MAIL, NOW)
    yield opened
    opened.access.end_all(EndReason.STORE_ROLLED_BACK)
    opened.close()


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


def last_used_s(scene: Scene, disturb: Callable[[int], None], *, ticks: bool = True) -> int:
    """Use a grant of a minute every second; return after how many seconds it was used last.

    Args:
        scene: Everybody around it.
        disturb: Is told each second, before the use.
        ticks: Whether a sidecar runs undisturbed, and moves observed time on.
    """
    scene.grant(duration_us=LASTS_S * SECOND_US)
    last_s = 0
    for second in range(1, 3 * LASTS_S):
        scene.wait(SECOND_US)
        if ticks and second % TICK_S == 0:
            scene.observe(TICK_S * SECOND_US)
        disturb(second)
        try:
            scene.use()
        except AccessRefused:
            break
        last_s = second
    assert scene.stored.end_reason == EndReason.EXPIRED
    return last_s


def test_a_grant_lasts_what_was_approved(scene: Scene) -> None:
    assert last_used_s(scene, lambda _second: None) == LASTS_S - 1


def test_a_clock_put_back_once(scene: Scene) -> None:
    """35 seconds back after 40 of 60: the grant ends after 60 all the same."""

    def disturb(second: int) -> None:
        if second == 40:
            scene.set_clock(-35 * SECOND_US)

    assert last_used_s(scene, disturb) == LASTS_S - 1


def test_a_clock_put_back_again_and_again_by_a_little(scene: Scene) -> None:
    def disturb(second: int) -> None:
        if second % 9 == 0 and second <= 54:
            scene.set_clock(-8 * SECOND_US)

    assert last_used_s(scene, disturb) == LASTS_S - 1


def test_a_clock_that_is_put_back_each_second(scene: Scene) -> None:
    """It stands still for ever, and no sidecar lives to move observed time on."""
    assert last_used_s(scene, lambda _: scene.set_clock(-SECOND_US), ticks=False) == LASTS_S - 1


def test_a_host_whose_processes_are_killed_and_clock_put_back_every_few_seconds(
    scene: Scene, made: MadeStore
) -> None:
    opened: list[Store] = []

    def disturb(second: int) -> None:
        if second % 4 == 0:
            scene.set_clock(-4 * SECOND_US)
            opened.append(made.open())
            scene.reopen(opened[-1])

    try:
        assert last_used_s(scene, disturb, ticks=False) == LASTS_S - 1
        assert opened
    finally:
        for one in opened:
            one.close()


def test_a_clock_put_forward_only_shortens(scene: Scene) -> None:
    """And what has ended stays over when the clock is put back again."""

    def disturb(second: int) -> None:
        if second == 20:
            scene.set_clock(30 * SECOND_US)

    assert last_used_s(scene, disturb) == LASTS_S - 30 - 1
    scene.set_clock(-50 * SECOND_US)
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        scene.use()


def test_a_clock_that_was_ahead_at_the_activation_gains_nothing(scene: Scene) -> None:
    scene.set_clock(60 * MINUTE_US)
    scene.grant(duration_us=LASTS_S * SECOND_US)
    scene.set_clock(-60 * MINUTE_US)
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        scene.use()


def test_the_sweep_ends_it_as_well(scene: Scene) -> None:
    scene.grant(duration_us=LASTS_S * SECOND_US)
    scene.wait(59 * SECOND_US)
    scene.set_clock(-58 * SECOND_US)
    assert scene.review() == []
    scene.wait(SECOND_US)
    (ended,) = scene.review()
    assert ended.after.end_reason == EndReason.EXPIRED
    assert ended.after.end_comment == "by the time since its host was started"


def test_a_restart_of_the_host_ends_a_grant(scene: Scene) -> None:
    """Nothing on it tells how long it was off, once its clock was put back."""
    scene.grant()
    scene.wait(SECOND_US)
    scene.restart()
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        scene.use()
    assert scene.stored.end_comment == "its host was started anew"


def test_a_machine_that_is_put_back_from_a_snapshot_ends_a_grant(scene: Scene) -> None:
    """Its clock since its start goes back with it, to before the grant."""
    scene.wait(MINUTE_US)
    scene.grant()
    scene.boots[HOST].passed_us -= SECOND_US
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        scene.use()


def test_where_uids_are_shared_each_host_has_its_own_deadline(scene: Scene) -> None:
    scene.set_policy(shared_ids=True)
    scene.grant(duration_us=LASTS_S * SECOND_US)
    scene.wait(50 * SECOND_US)
    scene.move()
    scene.use()
    assert [one.host for one in scene.stored.boot_deadlines] == [HOST, "mail-2"]
    scene.wait(9 * SECOND_US)
    scene.set_clock(-50 * SECOND_US)
    scene.use()
    scene.wait(SECOND_US)
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        scene.use()


@pytest.mark.parametrize("host", [HOST, "mail-2"])
def test_where_uids_are_shared_a_restart_of_any_host_that_used_it_ends_it(
    scene: Scene, host: str
) -> None:
    scene.set_policy(shared_ids=True)
    scene.grant()
    scene.move()
    scene.use()
    scene.move(host)
    scene.restart()
    (ended,) = scene.review()
    assert summarise(ended.after) == "ENDED 1,2 used 1 EXPIRED"


def test_where_uids_are_shared_a_host_that_has_not_used_it_may_restart(scene: Scene) -> None:
    scene.set_policy(shared_ids=True)
    scene.grant()
    scene.move()
    scene.restart()
    assert scene.review() == []
    scene.use()


def test_a_grant_is_used_in_so_many_boots_and_no_more(scene: Scene) -> None:
    """Whoever makes up new hosts, with new names, runs out of them."""
    scene.set_policy(shared_ids=True)
    scene.grant()
    boots = tuple(BootDeadline(f"host-{n}", f"boot {n}", 0, 10**15) for n in range(MOST_BOOTS))
    scene.book.change(scene.id, lambda found, _moment: replace(found, boot_deadlines=boots))
    scene.move()
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        scene.use()
    assert summarise(scene.stored) == "ENDED 1,2 EXPIRED"


def test_a_grant_from_before_there_were_such_deadlines_ends(scene: Scene) -> None:
    scene.grant()
    scene.book.change(scene.id, lambda found, _moment: replace(found, boot_deadlines=()))
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        scene.use()


@pytest.mark.parametrize("approved", [False, True], ids=["waits", "approved"])
def test_a_request_is_not_kept_open_by_a_clock_that_is_put_back(
    scene: Scene, *, approved: bool
) -> None:
    scene.ask()
    for name in ("mia", "lea", "leo") if approved else ():
        scene.approve(name)
    scene.wait(23 * 60 * MINUTE_US)
    scene.set_clock(-22 * 60 * MINUTE_US)
    assert scene.review() == []
    scene.wait(60 * MINUTE_US)
    (ended,) = scene.review()
    wanted = EndReason.NOT_ACTIVATED if approved else EndReason.NOT_DECIDED
    assert ended.after.end_reason == wanted


def test_a_request_outlives_a_restart_with_what_was_left_of_its_time(scene: Scene) -> None:
    scene.ask()
    scene.wait(20 * 60 * MINUTE_US)
    scene.restart()
    (changed,) = scene.review()
    assert changed.after.lives
    scene.wait(60 * MINUTE_US)
    scene.set_clock(-20 * 60 * MINUTE_US)
    assert scene.review() == []
    scene.wait(3 * 60 * MINUTE_US)
    (ended,) = scene.review()
    assert ended.after.end_reason == EndReason.NOT_DECIDED


def test_a_host_that_is_started_again_and_again_keeps_no_request_open(scene: Scene) -> None:
    """Each time the clock is put back to when the request was made."""
    scene.ask()
    for _ in range(MOST_BOOTS - 1):
        scene.restart()
        assert [one.after.lives for one in scene.review()] == [True]
    scene.restart()
    (ended,) = scene.review()
    assert ended.after.end_reason == EndReason.NOT_DECIDED


READ_BOOT: Final = (
    "from keyside_sidecar.clock import HostBootClock; found = HostBootClock().read();"
    "print(found.passed_us, found.boot)"
)


def read_boot(*launcher: str) -> tuple[int, str]:
    """Return what another process says of this boot."""
    command = [*launcher, sys.executable, "-c", READ_BOOT]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    passed_us, boot = found.strip().split(" ", 1)
    return int(passed_us), boot


def test_all_processes_of_a_boot_have_one_clock() -> None:
    here = HostBootClock().read()
    passed_us, boot = read_boot()
    assert boot == here.boot
    assert 0 <= passed_us - here.passed_us < 60 * SECOND_US


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a time namespace")
def test_a_clock_that_a_time_namespace_has_shifted_is_another() -> None:
    """Whoever starts the sidecar in one gains no time: it is as if the host was started anew."""
    here = HostBootClock().read()
    passed_us, boot = read_boot("unshare", "--time", "--boottime", "1000", "--fork", "--")
    assert passed_us > here.passed_us + 900 * SECOND_US
    assert boot != here.boot
