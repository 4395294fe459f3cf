"""Accounts and groups, as the host's name service has them now (files, LDAP, SSSD …).

An outage is not an absence. "No such account" ends a caller's rights at once, while an outage lets
the last good answer serve for a while; and a group that is missing from an answer may be the
operators', whose members are *refused* encryption. So an absence is reported only where it is
certain:

* Any errno but 0 from libc is an outage. getpwnam(3) lists ENOENT, ESRCH, EBADF and EPERM as ways
  to say "not found"; that is about other systems. glibc gives 0 for "not found", and hands out an
  errno only where a service said UNAVAIL or TRYAGAIN. ENOENT in particular is what a service gives
  whose daemon is stopped (its socket is gone), so it must not pass for an absence. The worst that
  this can do is to refuse an account that does not exist as "can't know" on a host whose
  configuration is broken.
* Errno 0 without a record is confirmed by asking every service by itself (``switch``), since glibc
  reports only the last service's answer.
* A group that *is* reported is believed. For those that aren't and matter, every service is asked,
  after libc was, whether it is up and has the account in them. A group's own member list plays no
  part: it lacks nested groups.

What can't be seen from here: a directory's own cache. SSSD that is up while its server is away
answers from its cache and says nothing of it, and so does nscd.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from keyside_sidecar.errors import SidecarError
from keyside_sidecar.peer import libc
from keyside_sidecar.peer.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Collection


class NameServiceUnavailable(SidecarError):
    """The name service can't be asked now, so that nothing is known; says which call and why."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account.

    Args:
        name: Its name. Bytes that aren't UTF-8 are kept, as :func:`os.fsdecode` does.
        uid: Its uid.
        gid: Its primary gid.
    """

    name: str
    uid: int
    gid: int


class NameService:
    """The host's accounts and groups. Blocks, for as long as a directory likes; any thread may ask.

    Args:
        switch: Tells outages from absences.
    """

    def __init__(self, switch: Switch | None = None) -> None:
        self._switch = Switch() if switch is None else switch

    def account(self, uid: int) -> Account | None:
        """Return the account of ``uid``; None where there certainly is none.

        Raises:
            NameServiceUnavailable: It can't be known now.
        """
        return self._find_account(uid)

    def uid_of(self, name: str) -> int | None:
        """Return the uid of the account ``name``; None where there certainly is none.

        Raises:
            NameServiceUnavailable: It can't be known now.
        """
        key = _encode(name)
        account = None if key is None else self._find_account(key)
        return None if account is None else account.uid

    def gid_of(self, name: str) -> int | None:
        """Return the gid of the group ``name``; None where there certainly is none.

        Raises:
            NameServiceUnavailable: It can't be known now.
        """
        key = _encode(name)
        if key is None:
            return None
        try:
            gid = libc.find_gid(key)
            if gid is None:
                self._switch.confirm_no_group(key)
        except OSError as error:
            _raise_outage("looking up a group's name", error)
        return gid

    def group_ids(self, account: Account, relevant: Collection[int]) -> frozenset[int]:
        """Return the gids of the groups that the account is in, its primary one too.

        Guaranteed for every gid in ``relevant``: if it is not in the answer, the account was not in
        that group at some moment after this was called. Of other gids some may be missing while a
        service is away.

        Args:
            account: The account, as :meth:`account` gave it.
            relevant: The gids that matter.

        Raises:
            NameServiceUnavailable: Some relevant gid is not in the answer, and whether the account
                is in that group can't be known now.
        """
        name = os.fsencode(account.name)
        try:
            gids = libc.list_gids(name, account.gid)
            absent = frozenset(relevant) - gids
            if absent:
                self._switch.confirm_not_member(name, account.gid, absent)
        except OSError as error:
            _raise_outage("looking up an account's groups", error)
        return gids

    def _find_account(self, key: int | bytes) -> Account | None:
        try:
            entry = libc.find_passwd(key)
            if entry is None:
                self._switch.confirm_no_account(key)
        except OSError as error:
            _raise_outage("looking up an account", error)
        if entry is None:
            return None
        # A name may come back in another spelling (case, a domain in front); a uid may not.
        if not entry.name or (isinstance(key, int) and key != entry.uid):
            raise NameServiceUnavailable("the name service answered what it was not asked")
        return Account(os.fsdecode(entry.name), entry.uid, entry.gid)


def _encode(name: str) -> bytes | None:
    """Return a name as libc takes it; None for one that no account or group can have."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return None
    return None if not encoded or b"\0" in encoded else encoded


def _raise_outage(what: str, error: OSError) -> NoReturn:
    raise NameServiceUnavailable(f"{what}: {error.strerror}") from error
