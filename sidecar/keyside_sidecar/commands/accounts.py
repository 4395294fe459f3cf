"""Which account the sidecar runs as, and acting as that account when started by root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from keyside_sidecar import hardening
from keyside_sidecar.commands.reach import require_reach
from keyside_sidecar.errors import StartupError
from keyside_sidecar.peer import libc
from keyside_sidecar.peer.accounts import Account as NamedAccount
from keyside_sidecar.peer.accounts import NameService, NameServiceUnavailable
from keyside_sidecar.supervisor import Account

if TYPE_CHECKING:
    from keyside_sidecar.config import Config

_EX_UNAVAILABLE: Final = 69
_EX_NOPERM: Final = 77


def find_account(config: Config) -> Account | None:
    """Return the account that ``[sidecar] user`` and ``group`` name; None without a change.

    Raises:
        StartupError: Started by root without ``user``, or by another account than ``user``, or
            the account does not exist, or the name service is away, or the account can't read
            this program.
    """
    user = config.sidecar.user
    if user is None:
        if os.geteuid() == 0:
            raise StartupError(
                "started by root, and the configuration does not say whom to run as",
                remedy='set user = "keyside" under [sidecar], or start as the sidecar\'s account',
            )
        return None
    try:
        account = _find(user, config.sidecar.group)
    except NameServiceUnavailable as error:
        raise StartupError(
            f"the account to run as can't be looked up: {error}",
            remedy="restore the directory service, or make the account a local one",
            exit_code=_EX_UNAVAILABLE,
        ) from error
    if account is not None:
        require_reach(account)
    return account


def act_as(account: Account | None) -> None:
    """Become the sidecar's account for good, where that is another one.

    Raises:
        StartupError: It can't be done.
    """
    if account is not None:
        hardening.drop_privileges(account.uid, account.gid, account.groups)


def _find(user: str | int, group: str | int | None) -> Account | None:
    names = NameService()
    uid = names.uid_of(user) if isinstance(user, str) else user
    if uid is None:
        # useradd refuses to make a group that is there.
        group_option = f"--gid {user}" if names.gid_of(str(user)) is not None else "--user-group"
        raise StartupError(
            f"there is no account {user}", remedy=f"make it: useradd --system {group_option} {user}"
        )
    if os.geteuid() not in {0, uid}:
        raise StartupError(
            f"started by uid {os.geteuid()}, and the configuration says to run as {user}",
            remedy=f"start it as root or as {user}",
            exit_code=_EX_NOPERM,
        )
    if os.geteuid() == uid:
        return None
    entry = names.account(uid)
    gid = _find_gid(names, group, entry, uid)
    groups = libc.list_gids(os.fsencode(entry.name), gid) if entry is not None else {gid}
    return Account(uid, gid, tuple(sorted(groups)))


def _find_gid(
    names: NameService, group: str | int | None, entry: NamedAccount | None, uid: int
) -> int:
    if isinstance(group, int):
        return group
    if group is not None:
        gid = names.gid_of(group)
        if gid is None:
            raise StartupError(
                f"there is no group {group}", remedy=f"make it: groupadd --system {group}"
            )
        return gid
    if entry is not None:
        return entry.gid
    raise StartupError(
        f"uid {uid} has no account, so its group is not known",
        remedy="set group under [sidecar] as well",
    )
