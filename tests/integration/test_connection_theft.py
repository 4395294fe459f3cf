"""A connection that another process of the service's account takes over (pidfd_getfd).

The sidecar can't see that: the socket is the one that the service made. Yama can forbid it on the
host, and a service that is not dumpable can for itself.
"""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.sidecar import (
    IS_ROOT,
    PYTHON,
    SERVICE_UID,
    SIDECAR_GID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)
from support.waiting import eventually

from keyside_sidecar.commands.findings import Grade
from keyside_sidecar.commands.host import check_tracing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
REFUSE = 'membership = "process"\nperson_logins = "refuse"'
PERSON = 64250
# What a service does first, where it wants to be closed to others of its account.
UNDUMPABLE = "keyside.make_undumpable()\n"
USE = """
envelope = client.encrypt("mail-credentials", b"content")
assert client.decrypt(envelope) == b"content"
you = client.status().you
print(json.dumps([os.getpid(), you.pid, you.uid, you.refused]))
"""
# A process that has no parent in common with its victim's descendants: what Yama's 1 forbids.
THIEF = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open(int(sys.argv[1]))
stolen = libc.syscall(438, pidfd, int(sys.argv[2]), 0)
sys.exit(0 if stolen >= 0 else ctypes.get_errno())
"""
VICTIM = """
import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["KEYSIDE_SOCKET"])
print(os.getpid(), connection.fileno(), flush=True)
sys.stdin.read()
"""
PROLOGUE = "import json, os, sys\nimport keyside\n"


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(identity=REFUSE) as running:
        yield running


@pytest.fixture(scope="module")
def unprivileged() -> Iterator[Sidecar]:
    """One as the unit starts it: as its account, with no capability."""
    with sidecar_directory() as directory:
        made = Sidecar(directory, identity=REFUSE)
        made.prepare()
        ids = (f"--reuid={SIDECAR_UID}", f"--regid={SIDECAR_GID}", "--clear-groups")
        made.launcher = ("setpriv", *ids)
        made.log.touch()
        made.log.chmod(0o666)
        made.start()
        try:
            yield made
        finally:
            made.kill()


def find_calls(sidecar: Sidecar, pid: int) -> list[dict[str, Any]]:
    """Return what the log says of a process's calls."""
    records = map(json.loads, sidecar.audit_log.read_text().splitlines())
    return [record for record in records if record.get("caller", {}).get("pid") == pid]


def call_and_find(sidecar: Sidecar, code: str) -> dict[str, Any]:
    done = sidecar.call("import json\n" + code + USE)
    assert done.returncode == 0, done.stderr
    own_pid, seen_pid, seen_uid, refused = json.loads(done.stdout)
    assert (own_pid, SERVICE_UID, "") == (seen_pid, seen_uid, refused or "")
    return eventually(lambda: find_calls(sidecar, own_pid), lambda found: len(found) > 1)[-1]


def test_an_undumpable_caller_is_served_and_recorded_without_its_program(
    unprivileged: Sidecar,
) -> None:
    """Its login uid could be read: with person_logins = "refuse" it would be refused otherwise."""
    record = call_and_find(unprivileged, UNDUMPABLE)
    assert record["event"] == "encryption.decrypt"
    assert record["caller"] == {
        "pid": record["caller"]["pid"],
        "uid": SERVICE_UID,
        "gid": SERVICE_UID,
    }


def test_a_sidecar_with_cap_sys_ptrace_sees_its_program_all_the_same(sidecar: Sidecar) -> None:
    """As deploy/systemd/elevation.conf gives it to the supervisor."""
    program = str(Path(PYTHON).resolve())
    assert call_and_find(sidecar, "")["caller"]["exe"] == program
    assert call_and_find(sidecar, UNDUMPABLE)["caller"]["exe"] == program


LOG_IN = f"""
open("/proc/self/loginuid", "w").write("{PERSON}")
os.setgroups([])
os.setgid({SERVICE_UID})
os.setuid({SERVICE_UID})
"""
REFUSED = """
try:
    client.encrypt("mail-credentials", b"content")
except keyside.NotPermitted as error:
    print(error.reason, client.status().you.login_uid)
"""


@pytest.mark.parametrize("code", ["", UNDUMPABLE], ids=["dumpable", "undumpable"])
def test_an_undumpable_persons_process_is_refused_like_any_other(
    unprivileged: Sidecar, code: str
) -> None:
    """I4: whoever hides what it runs can't hide who logged in."""
    done = unprivileged.call(LOG_IN + code + REFUSED, uid=0)
    assert done.stdout == f"PEER_PERSON_LOGIN {PERSON}\n", done.stderr


def steal(sidecar: Sidecar, code: str) -> int:
    """Have one process of an account take another's connection; return its errno, 0 for success."""
    who: dict[str, Any] = {"user": SERVICE_UID, "group": SERVICE_UID, "extra_groups": []}
    with subprocess.Popen(
        [PYTHON, "-c", PROLOGUE + code + VICTIM],
        env={"KEYSIDE_SOCKET": str(sidecar.socket)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        **who,
    ) as victim:
        assert victim.stdout is not None
        pid, descriptor = victim.stdout.readline().split()
        thief = [PYTHON, "-c", THIEF, pid, descriptor]
        taken = subprocess.run(thief, check=False, cwd="/", timeout=30, **who)
        victim.kill()
    return taken.returncode


def test_an_undumpable_services_connection_cant_be_taken(sidecar: Sidecar) -> None:
    """Where the host lets a dumpable one's be taken, which ``check`` warns about."""
    assert IS_ROOT
    grade = check_tracing().grade
    # A kernel or a sandbox without pidfd_getfd forbids it altogether.
    taken = steal(sidecar, "")
    assert taken in ({0, errno.ENOSYS, errno.EPERM} if grade is Grade.WARNING else {errno.EPERM})
    assert steal(sidecar, UNDUMPABLE) in {errno.EPERM, errno.ENOSYS}


@pytest.mark.parametrize(
    ("text", "grade", "says"),
    [
        (None, Grade.WARNING, "this kernel has no Yama"),
        ("0\n", Grade.WARNING, "ptrace_scope is 0, so any process of a service's account"),
        ("1\n", Grade.OK, "its own descendants only"),
        ("2\n", Grade.OK, "only CAP_SYS_PTRACE"),
        ("3\n", Grade.OK, "nobody can take"),
        ("7\n", Grade.WARNING, "ptrace_scope is 7"),
        ("", Grade.WARNING, "ptrace_scope is ,"),
    ],
)
def test_check_says_what_the_host_allows(
    tmp_path: Path, text: str | None, grade: Grade, says: str
) -> None:
    """A table of Yama's values, and of what is none."""
    place = tmp_path / "ptrace_scope"
    if text is not None:
        place.write_text(text)
    found = check_tracing(place)
    assert found.grade is grade
    assert says in found.text
    assert ("make_undumpable" in found.remedy) is (grade is Grade.WARNING)


def test_check_looks_at_this_host(sidecar: Sidecar) -> None:
    rows = json.loads(sidecar.keysided("check", "--json").stdout)["findings"]
    (found,) = (row for row in rows if row["subject"] == "connections")
    scope = PTRACE_SCOPE.read_text().strip() if PTRACE_SCOPE.exists() else "none"
    assert found["grade"] == ("ok" if scope in {"1", "2", "3"} else "warning")
