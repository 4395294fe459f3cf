"""Real accounts and groups on this machine, for as long as a test needs them."""

from __future__ import annotations

import contextlib
import grp
import itertools
import os
import pwd
import secrets
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_TIMEOUT_S = 30.0
_NOT_UNIQUE = 4
# What the tools end with where another one is changing the same files.
_LOCKED = {
    "useradd": 1,
    "userdel": 1,
    "groupadd": 10,
    "groupdel": 10,
    "usermod": 1,
    "gpasswd": 1,
    "chpasswd": 1,
    "chage": 1,
}


class Accounts:
    """Makes accounts and groups named ``ks-test-…``; they go when ``undo`` is closed."""

    def __init__(self, undo: contextlib.ExitStack) -> None:
        self._prefix = f"ks-test-{secrets.token_hex(4)}-"
        self._undo = undo
        # No uid twice, as the tools would have it: what is known of one that was deleted is
        # remembered for a while.
        self._uids = itertools.count(64300 + secrets.randbelow(600))

    def add_group(self, name: str) -> str:
        """Make a group; return its full name."""
        full = self._prefix + name
        run("groupadd", "--system", full)
        self._undo.callback(_remove_group, full)
        return full

    def add_user(self, name: str, *groups: str, primary: str | None = None) -> int:
        """Make an account in ``groups``; return its uid. Its primary group is its own or given."""
        full = self._prefix + name
        own = ["--gid", primary] if primary else ["--user-group"]
        listed = ["--groups", ",".join(groups)] if groups else []
        for uid in self._uids:
            options = ["--no-create-home", "--no-log-init", f"--uid={uid}", *own, *listed]
            if run("useradd", *options, full, may_end_with=_NOT_UNIQUE) == 0:
                self._undo.callback(_remove_user, full)
                return uid
        raise AssertionError("unreachable: the numbers are endless")

    def full_name(self, name: str) -> str:
        """Return what an account that was added as ``name`` is really called."""
        return self._prefix + name

    def uid_of(self, name: str) -> int:
        """Return the uid of an account that was added as ``name``."""
        return pwd.getpwnam(self.full_name(name)).pw_uid

    def join(self, name: str, group: str) -> None:
        """Put an account into a group."""
        run("gpasswd", "--add", self._prefix + name, group)

    def leave(self, name: str, group: str) -> None:
        """Take an account out of a group."""
        run("gpasswd", "--delete", self._prefix + name, group)

    def remove_user(self, name: str) -> None:
        """Delete an account, whatever runs under it."""
        _remove_user(self._prefix + name)


def _remove_user(full: str) -> None:
    with contextlib.suppress(KeyError):
        pwd.getpwnam(full)
        run("userdel", "--force", full)


def _remove_group(full: str) -> None:
    with contextlib.suppress(KeyError):
        grp.getgrnam(full)
        run("groupdel", full)


def run(tool: str, *arguments: str, may_end_with: int = 0, stdin: str = "") -> int:
    """Run one of the tools; wait where another one holds the lock."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        done = subprocess.run(
            [tool, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
        )
        if done.returncode in {0, may_end_with}:
            return done.returncode
        locked = done.returncode == _LOCKED[tool] and "lock" in done.stderr
        assert locked, f"{tool}: {done.stderr}"
        assert time.monotonic() < deadline, f"{tool}: {done.stderr}"
        time.sleep(0.1)


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@contextlib.contextmanager
def made_accounts() -> Iterator[Accounts]:
    """Give what makes accounts, and remove them afterwards, whatever happens."""
    with contextlib.ExitStack() as undo:
        yield Accounts(undo)
