"""Real accounts and groups on this machine, for as long as a test needs them."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_TIMEOUT_S = 30.0
# What the tools say where another one is changing the same files.
_LOCKED = {"useradd": 1, "userdel": 1, "groupadd": 10, "groupdel": 10, "usermod": 1, "gpasswd": 1}


class Accounts:
    """Makes accounts and groups named ``ks-test-…``, and removes them."""

    def __init__(self) -> None:
        self._prefix = f"ks-test-{secrets.token_hex(4)}-"
        self._users: list[str] = []
        self._groups: list[str] = []

    def add_group(self, name: str) -> str:
        """Make a group; return its full name."""
        full = self._prefix + name
        run("groupadd", "--system", full)
        self._groups.append(full)
        return full

    def add_user(self, name: str, *groups: str, primary: str | None = None) -> int:
        """Make an account in ``groups``; return its uid. Its primary group is its own or given."""
        full = self._prefix + name
        own = ["--gid", primary] if primary else ["--user-group"]
        listed = ["--groups", ",".join(groups)] if groups else []
        run("useradd", "--system", "--no-create-home", "--no-log-init", *own, *listed, full)
        self._users.append(full)
        return pwd.getpwnam(full).pw_uid

    def name_of(self, name: str) -> str:
        """Return the full name of an account that was made as ``name``."""
        return self._prefix + name

    def join(self, name: str, group: str) -> None:
        """Put an account into a group."""
        run("gpasswd", "--add", self._prefix + name, group)

    def leave(self, name: str, group: str) -> None:
        """Take an account out of a group."""
        run("gpasswd", "--delete", self._prefix + name, group)

    def remove_user(self, name: str) -> None:
        """Delete an account, whatever runs under it."""
        full = self._prefix + name
        run("userdel", "--force", full)
        self._users.remove(full)

    def remove_all(self) -> None:
        """Remove everything that was made and is still there."""
        for user in self._users:
            run("userdel", "--force", user)
        for group in self._groups:
            with contextlib.suppress(KeyError):
                grp.getgrnam(group)
                run("groupdel", group)


def run(tool: str, *arguments: str) -> None:
    """Run one of the tools; wait where another one holds the lock."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        done = subprocess.run(
            [tool, *arguments], capture_output=True, text=True, check=False, env=_environment()
        )
        if done.returncode == 0:
            return
        locked = done.returncode == _LOCKED[tool] and "lock" in done.stderr
        assert locked, f"{tool}: {done.stderr}"
        assert time.monotonic() < deadline, f"{tool}: {done.stderr}"
        time.sleep(0.1)


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@contextlib.contextmanager
def made_accounts() -> Iterator[Accounts]:
    """Give what makes accounts, and remove them afterwards, whatever happens."""
    accounts = Accounts()
    try:
        yield accounts
    finally:
        accounts.remove_all()
