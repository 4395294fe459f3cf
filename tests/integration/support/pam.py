"""People with passwords on this machine, and PAM services that ask for them.

All of it is real, named ``ks-test-…``, and gone afterwards.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from support.accounts import Accounts, run

if TYPE_CHECKING:
    from collections.abc import Iterator

# Without PAM's own delay of two seconds after a wrong password.
UNIX = """
auth required pam_unix.so nodelay
account required pam_unix.so
"""
_PLACE = Path("/etc/pam.d")
_MODULE = Path(__file__).parents[1] / "pam_module" / "kstest.c"


class People(Accounts):
    """Accounts of people: they have passwords."""

    def add_person(self, name: str, password: str, *groups: str) -> int:
        """Make an account with a password; return its uid."""
        uid = self.add_user(name, *groups)
        self.set_password(name, password)
        return uid

    def set_password(self, name: str, password: str) -> None:
        """Give an account another password; a lock is gone with the old one."""
        # SHA-512 with few rounds: the default of some hosts takes most of a second each time.
        run(
            "chpasswd",
            "--crypt-method=SHA512",
            "--sha-rounds=1000",
            stdin=f"{self.full_name(name)}:{password}\n",
        )

    def lock(self, name: str) -> None:
        """Lock an account, as an administrator does."""
        run("usermod", "--lock", self.full_name(name))

    def unlock(self, name: str) -> None:
        """Unlock an account."""
        run("usermod", "--unlock", self.full_name(name))

    def unlock_without_password(self, name: str) -> None:
        """Have an account that has no password here be no locked one either."""
        run("usermod", "--password", "*", self.full_name(name))

    def expire(self, name: str) -> None:
        """Have an account's last day be long past."""
        run("chage", "--expiredate=1", self.full_name(name))

    def expire_password(self, name: str) -> None:
        """Have an account's password be one that must be changed."""
        run("chage", "--lastday=0", self.full_name(name))


@contextlib.contextmanager
def made_people() -> Iterator[People]:
    """Give what makes people, and remove them afterwards, whatever happens."""
    with contextlib.ExitStack() as undo:
        yield People(undo)


@contextlib.contextmanager
def pam_service(text: str = UNIX) -> Iterator[str]:
    """Make a PAM service; give its name."""
    name = f"ks-test-{secrets.token_hex(4)}"
    path = _PLACE / name
    path.write_text(text)
    path.chmod(0o644)
    try:
        yield name
    finally:
        path.unlink()


def build_module(directory: Path) -> Path:
    """Compile the PAM module that behaves as it is told; return where it is."""
    target = directory / "pam_kstest.so"
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", target, _MODULE],
        check=True,
    )
    return target
