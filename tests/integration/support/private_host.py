"""A host of its own for what pages tell to type: accounts, /etc, /var, /opt and all processes.

It is a mount and a PID namespace on this machine: what is typed there as root makes accounts,
installs and serves under the very names that the pages have, and nothing of it is seen outside or
is left afterwards. The package comes from a directory of wheels, as from a registry.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from support.caller import SET_LOGIN, UNSET_LOGIN
from support.sidecar import sidecar_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[3]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 120.0
COLUMNS = 100
_WHEELHOUSE = ROOT / "build" / "wheelhouse"
# What docs/clients.md is about, and what that needs.
_SERVERS = (
    "gevent==26.9.0",
    "greenlet==3.5.6",
    "gunicorn==27.0.1",
    f"packaging=={importlib.metadata.version('packaging')}",
    "zope.event==6.2",
    "zope.interface==8.7",
)
# /usr/local/bin keeps what is there, since an interpreter may be; the rest begins empty.
_SET_UP = r"""
set -eu
cd "$1"
mount --make-rprivate /
mkdir etc bin
# Other tests make and remove accounts meanwhile: files may vanish, and locks aren't ours.
cp -a /etc/. etc/ 2>copying || cat copying >&2
rm -f etc/passwd.lock etc/shadow.lock etc/group.lock etc/gshadow.lock etc/pam.d/ks-test-*
test -s etc/passwd -a -s etc/shadow -a -s etc/group -a -s etc/gshadow
for tool in /usr/local/bin/*; do
    case $tool in *python3*) cp -a "$tool" bin/ ;; *keyside*|'/usr/local/bin/*') ;;
    *) ln -s "$PWD/local/${tool##*/}" bin/ ;; esac
done
mkdir local
mount --bind /usr/local/bin local
mount --bind bin /usr/local/bin
mount --bind etc /etc
for place in /var /run /opt /root /home /srv; do
    mount -t tmpfs -o mode=0755 tmpfs $place
done
mkdir -p /var/lib /var/log /var/backups /var/mail /run/user
ln -s /run /var/run
mkdir -m 1777 /var/tmp
printf '[global]\nno-index = true\nfind-links = %s\nno-compile = true\n' "$1/wheels" >/etc/pip.conf
printf 'disable-pip-version-check = true\n' >>/etc/pip.conf
echo ready
exec sleep infinity
"""


@dataclass(frozen=True)
class Ran:
    """What came of a command."""

    code: int
    output: str


@dataclass
class PrivateHost:
    """The host, while it is there.

    Args:
        directory: Seen from inside and outside, under the same name.
        pid: Its first process.
        environment: What every command gets besides ``PATH`` and ``HOME``.
    """

    directory: Path
    pid: int
    environment: Mapping[str, str]

    def run(
        self, command: str, *, account: str = "root", cwd: str = "", timeout_s: float = TIMEOUT_S
    ) -> Ran:
        """Run a shell's text to its end; return its code, and both its outputs as one."""
        done = subprocess.run(
            self._enter(account, command, cwd, UNSET_LOGIN),
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ran(done.returncode, done.stdout)

    def must(self, command: str, *, account: str = "root") -> str:
        """Run a shell's text, which must succeed; return what it printed."""
        ran = self.run(command, account=account)
        assert ran.code == 0, f"{command}\n{ran.output}"
        return ran.output

    def begin(self, command: str, log: str) -> subprocess.Popen[bytes]:
        """Start what goes on running, as root; it ends with the host at the latest."""
        return subprocess.Popen(
            self._enter("root", f"exec {command} >>{log} 2>&1", "", UNSET_LOGIN),
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
        )

    def type(self, command: str, *, account: str, cwd: str = "", answers: Mapping[str, str]) -> Ran:
        """Run a command on a terminal, as a person who has logged in there.

        Args:
            command: A shell's text.
            account: Whose; ``root`` has not logged in.
            cwd: Where; by default at home.
            answers: What to type when the output ends so.
        """
        login = UNSET_LOGIN if account == "root" else self.uid(account)
        words = self._enter(account, command, cwd, login)
        terminal, end = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        with subprocess.Popen(
            ["setsid", "--ctty", *words], env={"PATH": PATH}, stdin=end, stdout=end, stderr=end
        ) as process:
            os.close(end)
            try:
                output = _talk(terminal, answers)
            finally:
                os.close(terminal)
        return Ran(process.returncode, output.replace("\r\n", "\n"))

    def uid(self, account: str) -> int:
        """Return an account's number there."""
        for line in self.must("cat /etc/passwd").splitlines():
            name, _, number, *_rest = line.split(":")
            if name == account:
                return int(number)
        raise AssertionError(f"there is no account {account}")

    def _enter(self, account: str, command: str, cwd: str, login: int) -> list[str]:
        home = "/root" if account == "root" else f"/home/{account}"
        become = ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups"]
        uid = 0 if account == "root" else self.uid(account)
        environment = {
            "PATH": PATH,
            "HOME": home,
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": f"/run/user/{uid}",
            **self.environment,
        }
        return [
            *("nsenter", f"--target={self.pid}", "--mount", "--pid", f"--wd={self.directory}"),
            *("sh", "-ec", SET_LOGIN, "sh", str(login)),
            *([] if account == "root" else become),
            *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
            *("sh", "-ec", f'cd "$0"; {command}', cwd or home),
        ]


def _talk(terminal: int, answers: Mapping[str, str]) -> str:
    seen = b""
    answered = 0
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        assert time.monotonic() < deadline, seen
        ready, _, _ = select.select([terminal], [], [], 1.0)
        if not ready:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the last process has closed its end
            return seen.decode()
        if not data:
            return seen.decode()
        seen += data
        for prompt, answer in answers.items():
            if seen[answered:].endswith(prompt.encode()):
                answered = len(seen)
                os.write(terminal, answer.encode() + b"\n")


def find_wheels() -> list[Path]:
    """Return Keyside's wheel and those of all that pages tell to install.

    What Keyside needs has the versions that the tests have here.
    """
    needed = (f"{name}=={importlib.metadata.version(name)}" for name in _closure())
    wanted = sorted([*needed, *_SERVERS])
    _WHEELHOUSE.mkdir(parents=True, exist_ok=True)
    stamp = _WHEELHOUSE / "complete"
    text = "\n".join(wanted)
    if not stamp.exists() or stamp.read_text() != text:
        for old in _WHEELHOUSE.iterdir():
            old.unlink()
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--disable-pip-version-check", "-d", _WHEELHOUSE),
                *wanted,
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        stamp.write_text(text)
    return [*(ROOT / "build" / "wheel").glob("*.whl"), *_WHEELHOUSE.glob("*.whl")]


def _closure() -> set[str]:
    found: set[str] = set()
    left = [("keyside", frozenset({"sidecar"}))]
    while left:
        name, extras = left.pop()
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            markers = [{"extra": extra} for extra in (extras or {""})]
            if need.marker and not any(need.marker.evaluate(one) for one in markers):
                continue
            if need.name not in found:
                found.add(need.name)
                left.append((need.name, frozenset(need.extras)))
    return found


@contextlib.contextmanager
def private_host(**environment: str) -> Iterator[PrivateHost]:
    """Give a host on which nothing is installed; it is gone afterwards, with all that runs."""
    with sidecar_directory() as directory:
        (directory / "wheels").mkdir()
        for wheel in find_wheels():
            shutil.copy(wheel, directory / "wheels")
        outer = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-c", _SET_UP, "sh", directory),
            ],
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        try:
            assert outer.stdout is not None
            assert outer.stdout.readline() == b"ready\n"
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
            yield PrivateHost(directory, int(children), environment)
        finally:
            outer.kill()
            outer.wait()
            if outer.stdout:
                outer.stdout.close()
