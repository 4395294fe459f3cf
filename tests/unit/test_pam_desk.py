"""The supervisor's desk: limits, crowds, and workers that ask for people (real PAM)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.pam import UNIX, People, made_people, pam_service
from tests.unit.pam_scene import Scene, made_scene

from keyside_sidecar.admission import Ledger
from keyside_sidecar.crew import Crew
from keyside_sidecar.errors import AuthenticationFailed
from keyside_sidecar.pam.authenticator import Authenticator
from keyside_sidecar.pam.desk import MAX_HELPERS
from keyside_sidecar.pam.family import kill_family

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from keyside_sidecar.handover import Channel

pytestmark = pytest.mark.root

PASSWORD = b"KS-MARK-password-of-ann"
HANG = "auth required pam_exec.so /bin/sleep 300\naccount required pam_permit.so\n"
# pam_unix first, so that the password is fetched before anything hangs.
ASK_AND_HANG = UNIX.replace("account", "auth required pam_exec.so /bin/sleep 300\naccount")
SLOW = "auth required pam_exec.so /bin/sleep 0.3\naccount required pam_exec.so /bin/sleep 0.3\n"


class Clock:
    """Seconds, as the test has them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    """Ann, Bob, and somebody who has left."""
    with made_people() as made:
        made.add_person("ann", PASSWORD.decode())
        made.add_person("bob", "bob's own")
        made.add_person("left", "left's own")
        made.lock("left")
        for number in range(MAX_HELPERS):
            made.add_user(f"crowd-{number}")
            made.unlock_without_password(f"crowd-{number}")
        yield made


@pytest.fixture(scope="module")
def unix() -> Iterator[str]:
    """A service that asks pam_unix alone."""
    with pam_service(UNIX) as service:
        yield service


def test_after_three_failures_even_the_right_password_has_to_wait(
    people: People, unix: str
) -> None:
    """Asking too early does not make it longer; one's success is nobody else's."""
    ann, bob = people.uid_of("ann"), people.uid_of("bob")
    clock = Clock()
    with made_scene(unix, clock=clock) as scene:
        assert [scene.ask(ann, b"wrong") for _ in range(3)] == ["denied"] * 3
        assert scene.ask(bob, b"bob's own") == "ok"
        for _ in range(5):
            waiting = scene.begin(ann, PASSWORD)
            assert waiting.poll()
            assert waiting.answer == {"outcome": "limited", "retry_s": 5.0}
        assert scene.ask(ann, None) == "ok", "no password is tried with this"
        clock.now_s += 5
        assert scene.ask(ann, b"wrong") == "denied"
        clock.now_s += 9.9
        assert scene.ask(ann, PASSWORD) == "limited"
        clock.now_s += 0.1
        assert scene.ask(ann, PASSWORD) == "ok"
        assert [scene.ask(ann, b"wrong") for _ in range(3)] == ["denied"] * 3


def test_a_hang_counts_as_a_failure_but_a_missing_service_does_not(people: People) -> None:
    """Whoever makes PAM hang could otherwise go on guessing; a misconfigured host tries nothing."""
    ann = people.uid_of("ann")
    with pam_service(HANG) as service, made_scene(service, timeout_s=0.1) as scene:
        assert [scene.ask(ann, PASSWORD) for _ in range(4)] == [None, None, None, "limited"]
    with made_scene("ks-test-no-such-service") as scene:
        assert [scene.ask(ann, PASSWORD) for _ in range(5)] == ["unavailable"] * 5


def test_one_uid_has_one_helper_and_the_host_has_eight(people: People) -> None:
    """Account checks are counted apart: who keeps passwords busy can't end grants."""
    ann = people.uid_of("ann")
    crowd = [people.uid_of(f"crowd-{number}") for number in range(MAX_HELPERS)]
    with pam_service(SLOW) as service, made_scene(service) as scene:
        first = scene.begin(ann, PASSWORD)
        second = scene.begin(ann, PASSWORD)
        assert second.poll()
        assert second.answer == {"outcome": "busy", "retry_s": 1.0}
        others = [scene.begin(uid, PASSWORD) for uid in crowd]
        assert [each.poll() for each in others] == [False] * (MAX_HELPERS - 1) + [True]
        checks = [scene.begin(ann, None) for _ in range(MAX_HELPERS + 1)]
        assert [each.poll() for each in checks] == [False] * MAX_HELPERS + [True]
        scene.turn_until(first.poll)
        assert first.answer == {"outcome": "ok"}
        scene.turn_until(lambda: not len(scene.desk))


def test_200_authentications_leave_no_descriptor_and_no_process(people: People, unix: str) -> None:
    """And a good password is never held up by its neighbours' failures."""
    ann = people.uid_of("ann")
    with made_scene(unix, clock=Clock()) as scene:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        before, had = os.listdir("/proc/self/fd"), children.read_text()
        assert {scene.ask(ann, PASSWORD) for _ in range(200)} == {"ok"}
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert children.read_text() == had


def test_a_password_is_nowhere_but_in_its_helper(
    people: People, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in an argument, not in an environment, not in the log, not in what the module starts."""
    ann = people.uid_of("ann")
    with pam_service(HANG) as service, made_scene(service, timeout_s=0.5) as scene:
        waiting = scene.begin(ann, PASSWORD)
        scene.turn_until(lambda: b"sleep" in read_everywhere("cmdline"))
        for name in ("cmdline", "environ", "comm"):
            assert PASSWORD not in read_everywhere(name)
        scene.turn_until(waiting.poll)
    assert "it took too long" in str([record.__dict__ for record in caplog.records])
    assert PASSWORD.decode() not in str([record.__dict__ for record in caplog.records])


def test_i7_a_password_is_never_in_the_supervisors_memory(people: People) -> None:
    """It goes from the worker to the helper through a socket that the supervisor passes on."""
    program = [sys.executable, "-m", "tests.unit.pam_supervisor"]
    with pam_service(ASK_AND_HANG) as service:
        running = subprocess.Popen(
            [*program, service, str(people.uid_of("ann"))],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert running.stdin is not None
        running.stdin.write(PASSWORD + b"\n")
        running.stdin.flush()
        try:
            helper, worker = wait_for_helper(running.pid)
            assert PASSWORD in read_memory(helper), "so that it can be found where it is"
            assert PASSWORD not in read_memory(running.pid)
            assert b"keysided-pam" in Path(f"/proc/{helper}/comm").read_bytes()
            assert b"keysided-worker" in Path(f"/proc/{worker}/comm").read_bytes()
        finally:
            kill_family(running.pid)
            running.communicate()


def wait_for_helper(supervisor: int) -> tuple[int, int]:
    """Wait until the helper has started a program; return its pid and the worker's."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.02)
        children = children_of(supervisor)
        for pid in children:
            if any(
                b"sleep" in Path(f"/proc/{each}/cmdline").read_bytes() for each in children_of(pid)
            ):
                return pid, next(each for each in children if each != pid)
    raise AssertionError("the helper has started nothing")


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def read_memory(pid: int) -> bytes:
    """Return what a process has in memory and may write."""
    found = b""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_rest = line.split()
            start, end = (int(each, 16) for each in span.split("-"))
            if rights.startswith("rw"):
                with contextlib.suppress(OSError):
                    memory.seek(start)
                    found += memory.read(end - start)
    return found


def read_everywhere(name: str) -> bytes:
    """Return a file of /proc of every process on the machine."""
    found = b""
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            found += path.read_bytes()
        except OSError:
            continue
    return found


class Worker:
    """A crew of one that asks, and to which some uids are connected; the desk is a scene's."""

    def __init__(self, scene: Scene, ask: Callable[[Authenticator], Any], *connected: int) -> None:
        self.ended: list[int] = []
        self._reader, self._writer = os.pipe()
        ledger = Ledger(len(connected) + 1, 1)
        self.crew = Crew(
            scene.loop,
            scene.children,
            ledger,
            on_ready=lambda _member: None,
            on_room=lambda: None,
            on_ended=lambda _member, code: self.ended.append(code),
            on_pam=scene.desk.take,
        )
        member = self.crew.fork(lambda channel: self._work(channel, ask))
        for uid in connected:
            ledger.add(uid, member.index)
        scene.turn_until(lambda: bool(self.ended))

    def _work(self, channel: Channel, ask: Callable[[Authenticator], Any]) -> int:

        def post(fields: dict[str, Any], end: socket.socket) -> None:
            channel.send(fields, (end.fileno(),))
            end.close()

        async def run() -> Any:
            authenticator = Authenticator(post, timeout_s=5)
            return await ask(authenticator)

        os.write(self._writer, json.dumps(asyncio.run(run())).encode())
        return 0

    def result(self) -> Any:
        """What it has found."""
        assert self.ended == [0]
        os.close(self._writer)
        with os.fdopen(self._reader) as reader:
            return json.load(reader)


async def outcome_of(asked: Any) -> tuple[str, float]:
    """Return how an authentication ends."""
    try:
        await asked
    except AuthenticationFailed as failed:
        return failed.outcome, failed.retry_s
    return "ok", 0.0


def test_a_worker_learns_how_each_authentication_ended(people: People, unix: str) -> None:
    """Through a real crew; what can be no password is denied without a helper."""
    ann, bob, left = (people.uid_of(name) for name in ("ann", "bob", "left"))

    async def ask(authenticator: Authenticator) -> list[tuple[str, float]]:
        together = await asyncio.gather(
            outcome_of(authenticator.authenticate(ann, PASSWORD)),
            outcome_of(authenticator.authenticate(bob, PASSWORD)),
            outcome_of(authenticator.check_account(left)),
            *(outcome_of(authenticator.check_account(ann)) for _ in range(50)),
        )
        no_passwords = [b"", b"a\0b", b"x" * 1025]
        rest = [await outcome_of(authenticator.authenticate(bob, each)) for each in no_passwords]
        wrong = [await outcome_of(authenticator.authenticate(bob, b"wrong")) for _ in range(3)]
        return [*together[:3], *set(together[3:]), *rest, *wrong]

    with made_scene(unix, clock=Clock()) as scene:
        results = Worker(scene, ask, ann, bob).result()
    assert results == [
        ["ok", 0],
        ["denied", 0],
        ["locked", 0],
        ["ok", 0],
        *[["denied", 0]] * 3,
        *[["denied", 0]] * 2,
        ["limited", 5.0],
    ]


def test_a_worker_does_not_wait_for_a_supervisor_that_does_not_answer(people: People) -> None:
    """Two seconds after the helper's own time at the latest it is told that it doesn't work."""

    async def ask() -> tuple[str, float]:
        held: list[socket.socket] = []
        authenticator = Authenticator(lambda _fields, end: held.append(end), timeout_s=-1.9)
        try:
            return await outcome_of(authenticator.authenticate(people.uid_of("ann"), PASSWORD))
        finally:
            for end in held:
                end.close()

    began_s = time.monotonic()
    assert asyncio.run(ask()) == ("unavailable", 0.0)
    assert time.monotonic() - began_s < 2
