"""What a process that holds keys gives up, each proved in a forked child (I7)."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyside_sidecar import hardening
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable

UID, GID = 12345, 12346
MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another account")


def in_child(act: Callable[[], Any]) -> Any:
    """Run ``act`` in a forked child and return its (JSON) result; its failure fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = {"result": act()}
        except BaseException as error:  # noqa: BLE001  (the child must never return into pytest)
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(data)
    assert "error" not in answer, answer["error"]
    return answer["result"]


def refusal(act: Callable[[], object]) -> str:
    """Return the text of the StartupError that ``act`` raises, in this process."""
    try:
        act()
    except StartupError as error:
        return str(error)
    return "no refusal"


def become_ordinary() -> None:
    """Give up root, where there is any; a process without it has no CAP_IPC_LOCK either."""
    if os.geteuid() == 0:
        hardening.drop_privileges(UID, GID, ())


def status_field(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0])


# --- harden_process


def test_hardened_process_has_no_core_is_not_dumpable_and_makes_private_files(
    tmp_path: Path,
) -> None:
    def act() -> list[Any]:
        hardening.harden_process(no_new_privs=True)
        (tmp_path / "file").touch()
        return [
            resource.getrlimit(resource.RLIMIT_CORE),
            ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
            (tmp_path / "file").stat().st_mode & 0o777,
            status_field("NoNewPrivs"),
        ]

    assert in_child(act) == [[0, 0], 0, 0o600, 1]


def test_no_new_privs_is_set_only_where_asked() -> None:
    before = status_field("NoNewPrivs")

    def act() -> int:
        hardening.harden_process()
        return status_field("NoNewPrivs")

    assert in_child(act) == before


def test_fork_of_a_hardened_process_is_not_dumpable_either() -> None:
    def act() -> Any:
        hardening.harden_process()
        return in_child(lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))

    assert in_child(act) == 0


def test_crash_of_a_hardened_process_leaves_no_core() -> None:
    """I7: nothing in a core dump."""
    child = os.fork()
    if child == 0:
        hardening.harden_process()
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGQUIT)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGQUIT
    assert not os.WCOREDUMP(status)


@pytest.mark.parametrize(("harden", "readable"), [(True, False), (False, True)])
def test_another_process_of_the_same_account_can_not_read_a_hardened_one(
    *, harden: bool, readable: bool
) -> None:
    """I7: a service under the sidecar's own uid gets neither its memory nor its environment."""

    def act() -> bool:
        become_ordinary()
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # a change of uid has made it not dumpable
        target = os.getpid()
        gate, opener = os.pipe()
        looker = os.fork()
        if looker == 0:  # forked before, and so itself as ordinary as any
            os.close(opener)
            os.read(gate, 1)
            try:
                Path(f"/proc/{target}/environ").read_bytes()
            except PermissionError:
                os._exit(1)
            os._exit(0)
        if harden:
            hardening.harden_process()
        os.close(opener)
        _, status = os.waitpid(looker, 0)
        return os.waitstatus_to_exitcode(status) == 0

    assert in_child(act) == readable


def test_hardened_process_can_still_read_its_own_fdinfo() -> None:
    """Without root and not dumpable: /proc/self/fdinfo of a pidfd stays readable to itself."""

    def act() -> str:
        become_ordinary()
        hardening.harden_process()
        descriptor = os.pidfd_open(os.getpid())
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
        assert f"Pid:\t{os.getpid()}\n" in text
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    assert "pidfd" in in_child(act)


# --- lock_memory


def limit_memlock(limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit_bytes, limit_bytes))


def test_memory_is_not_locked_under_a_finite_limit_and_allocations_go_on_working() -> None:
    def act() -> list[Any]:
        become_ordinary()
        limit_memlock(64 * 1024)
        lock = hardening.lock_memory()
        with mmap.mmap(-1, 64 * MIB) as memory:
            memory[-1] = 1
        return [lock.locked, lock.why, status_field("VmLck")]

    locked, why, locked_kib = in_child(act)
    assert not locked
    assert "RLIMIT_MEMLOCK is 65536 bytes" in why
    assert locked_kib == 0


def test_what_locking_under_a_finite_limit_would_do() -> None:
    """Why lock_memory refuses: with MCL_FUTURE, an allocation beyond the limit fails."""

    def act() -> list[Any]:
        become_ordinary()
        limit_memlock(MIB)
        done = ctypes.CDLL(None).mlockall(2)  # MCL_FUTURE
        try:
            mmap.mmap(-1, 64 * MIB).close()
        except OSError:
            return [done, "fails"]
        return [done, "works"]

    assert in_child(act) == [0, "fails"]


@pytest.mark.root
@needs_root
def test_memory_is_locked_on_fault_with_the_capability() -> None:
    """On fault: address space that isn't touched doesn't become resident."""

    def act() -> list[Any]:
        limit_memlock(64 * 1024)
        lock = hardening.lock_memory()
        before_kib = status_field("VmRSS")
        with mmap.mmap(-1, 256 * MIB) as memory:
            memory[0] = 1
            grown_kib = status_field("VmRSS") - before_kib
        return [lock.locked, lock.why, status_field("VmLck") > 0, grown_kib < 32 * 1024]

    assert in_child(act) == [True, "the process has CAP_IPC_LOCK", True, True]


@pytest.mark.root
@needs_root
def test_capability_in_a_user_namespace_of_one_s_own_does_not_count() -> None:
    """The kernel asks for CAP_IPC_LOCK in the initial user namespace only."""

    def act() -> list[Any]:
        limit_memlock(64 * 1024)
        if ctypes.CDLL(None).unshare(0x10000000) != 0:  # CLONE_NEWUSER
            return [False, "RLIMIT_MEMLOCK"]  # not allowed on this host: nothing to protect from
        assert hardening._read_capabilities("CapEff") >> 14 & 1
        lock = hardening.lock_memory()
        return [lock.locked, lock.why[:14]]

    assert in_child(act) == [False, "RLIMIT_MEMLOCK"]


def test_unlimited_memlock_is_used_where_the_host_gives_it() -> None:
    def act() -> list[Any]:
        if not hardening.raise_memlock_limit():
            return ["limited", resource.getrlimit(resource.RLIMIT_MEMLOCK)]
        become_ordinary()
        lock = hardening.lock_memory()
        return [lock.locked, lock.why]

    result = in_child(act)
    if result[0] == "limited":
        assert result[1][0] == result[1][1] != resource.RLIM_INFINITY
    else:
        assert result == [True, "RLIMIT_MEMLOCK is unlimited"]


def test_limit_is_raised_as_far_as_the_hard_one_without_privilege() -> None:
    def act() -> list[Any]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 8192))
        become_ordinary()
        return [hardening.raise_memlock_limit(), resource.getrlimit(resource.RLIMIT_MEMLOCK)]

    assert in_child(act) == [False, [8192, 8192]]


# --- set_death_signal


def run_orphan(*, ask_late: bool) -> str:
    """Fork a parent that forks a child and ends; return what the child says before its own end."""
    reader, writer = os.pipe()
    gate_reader, gate_writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        parent_pid = os.getpid()
        if os.fork() == 0:
            os.close(gate_writer)
            if ask_late:
                os.read(gate_reader, 1)  # until the parent has ended
                while os.getppid() == parent_pid:
                    time.sleep(0.001)
            text = refusal(lambda: hardening.set_death_signal(parent_pid))
            os.write(writer, text.encode())
            if not ask_late:
                time.sleep(60)  # the signal ends it long before
            os._exit(0)
        if not ask_late:
            time.sleep(0.3)
        os._exit(0)
    for descriptor in (writer, gate_reader):
        os.close(descriptor)
    os.waitpid(parent, 0)
    os.close(gate_writer)
    said = b""
    while select.select([reader], [], [], 20)[0]:
        chunk = os.read(reader, 1024)
        if not chunk:
            os.close(reader)
            return said.decode()
        said += chunk
    pytest.fail("the orphan is still running")


def test_process_ends_with_its_parent() -> None:
    assert run_orphan(ask_late=False) == "no refusal"


def test_parent_that_ended_before_the_signal_was_asked_for_is_noticed() -> None:
    assert "ended while this process started" in run_orphan(ask_late=True)


# --- drop_privileges


@pytest.mark.root
@needs_root
def test_privileges_are_dropped_for_good() -> None:
    def act() -> list[Any]:
        hardening.drop_privileges(UID, GID, {GID, 777})
        regained = []
        for change in (os.setuid, os.seteuid, os.setgid, os.setegid):
            try:
                change(0)
            except PermissionError:
                continue
            regained.append(change.__name__)
        capabilities = [hardening._read_capabilities(name) for name in ("CapPrm", "CapEff")]
        return [os.getresuid(), os.getresgid(), sorted(os.getgroups()), regained, capabilities]

    assert in_child(act) == [[UID] * 3, [GID] * 3, [777, GID], [], [0, 0]]


@pytest.mark.root
@needs_root
def test_root_s_own_groups_are_given_up() -> None:
    def act() -> list[int]:
        os.setgroups([0, 4, 5])
        hardening.drop_privileges(UID, GID, ())
        return os.getgroups()

    assert in_child(act) == []


@pytest.mark.root
@needs_root
def test_capabilities_that_survive_are_noticed() -> None:
    def act() -> str:
        ctypes.CDLL(None).prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        return refusal(lambda: hardening.drop_privileges(UID, GID, ()))

    assert "were not given up for good" in in_child(act)


def test_dropping_to_root_is_refused() -> None:
    with pytest.raises(StartupError, match="to root"):
        hardening.drop_privileges(0, 0, ())


def test_account_without_privileges_can_not_become_another_but_may_stay_itself() -> None:
    def act() -> list[str]:
        become_ordinary()
        uid, gid = os.getuid(), os.getgid()
        return [
            refusal(lambda: hardening.drop_privileges(uid + 1, gid, ())),
            refusal(lambda: hardening.drop_privileges(uid, gid, ())),
        ]

    other, own = in_child(act)
    assert "can't become uid" in other
    assert own == "no refusal"
