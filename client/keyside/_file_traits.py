"""What a file keeps when another one takes its place: who owns it, and who may do what with it.

One way for all that replaces files. Owner, group, mode, access control list and other extended
attributes are kept. What can't be is made narrower, never wider, and is named, so that it can be
said: where the owner changes, set-user-id goes; where the group changes, the group and everybody
else lose what the former group had not; where the list can't be kept, all but the owner go out.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Final

from keyside._access_list import ACCESS_LIST, AccessList

_GROUP_BITS: Final = 0o070
_OTHER_BITS: Final = 0o007
_OWNER_ONLY: Final = 0o700
# The kernel's own sums of a file's content and attributes: another content has others.
_COMPUTED: Final = ("security.ima", "security.evm")


@dataclass(frozen=True, slots=True)
class FileTraits:
    """A file's, as they were read.

    Args:
        status: Owner, group and mode among it.
        attributes: Its extended attributes, the access control list among them.
        unreadable: Those that are there and could not be read.
    """

    status: os.stat_result
    attributes: dict[str, bytes]
    unreadable: tuple[str, ...] = ()


@dataclass(slots=True)
class Kept:
    """What became of them.

    Args:
        permissions: What could not be kept of who may do what, in words.
        attributes: The extended attributes that could not be kept.
    """

    permissions: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)

    def describe_lost(self) -> list[str]:
        """Return all that could not be kept, in words."""
        return [*self.permissions, *(f"extended attribute {name}" for name in self.attributes)]


def read_traits(file: int | str, status: os.stat_result) -> FileTraits:
    """Return a file's traits.

    Args:
        file: Its descriptor, or a path that leads to it.
        status: Its status.
    """
    found: dict[str, bytes] = {}
    unreadable: list[str] = []
    try:
        names = os.listxattr(file)
    except OSError as error:
        without = error.errno in {errno.ENOTSUP, errno.ENOSYS}
        return FileTraits(status, found, () if without else (ACCESS_LIST,))
    for name in names:
        try:
            found[name] = os.getxattr(file, name)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed meanwhile
                unreadable.append(name)
    return FileTraits(status, found, tuple(unreadable))


def give_owner(descriptor: int, wanted: os.stat_result) -> list[str]:
    """Give a file another one's owner and group; return in words what can't be given."""
    lost: list[str] = []
    made = os.fstat(descriptor)
    for what, has, wants, ids in (
        ("owner", made.st_uid, wanted.st_uid, (wanted.st_uid, -1)),
        ("group", made.st_gid, wanted.st_gid, (-1, wanted.st_gid)),
    ):
        if has != wants:
            try:
                os.fchown(descriptor, *ids)
            except OSError:
                lost.append(f"{what} {wants}")
    return lost


def give_traits(descriptor: int, traits: FileTraits, *, widest: int = 0o7777) -> Kept:
    """Give a file that nobody else can open yet what another one has.

    Args:
        descriptor: The file, written to its end, its mode no wider than 0600.
        traits: What it is to have.
        widest: The mode that it may have at most.

    Raises:
        OSError: Its mode can't be set.
    """
    kept = Kept(give_owner(descriptor, traits.status))
    made = os.fstat(descriptor)
    own_group = made.st_gid == traits.status.st_gid
    mode = asked = stat.S_IMODE(traits.status.st_mode) & widest
    if made.st_uid != traits.status.st_uid:
        mode &= ~stat.S_ISUID
    wanted, wants_list = _parse_list(traits)
    if not own_group:
        group = wanted.group if wanted else (mode & _GROUP_BITS) >> 3
        mode &= ~stat.S_ISGID & (~_OTHER_BITS | group)
        if wanted:
            wanted.drop_group()
        else:
            mode &= ~_GROUP_BITS
    # First, for who owns a file that may only be read can't give it any.
    _give_attributes(descriptor, traits, kept)
    mode = _give_list(descriptor, wanted, mode, kept, wanted_one=wants_list)
    os.fchmod(descriptor, mode)
    if mode != asked:
        kept.permissions.append(f"mode {asked:04o} (it is {mode:04o} now)")
    _give_other_lists(descriptor, traits, kept)
    return kept


def _parse_list(traits: FileTraits) -> tuple[AccessList | None, bool]:
    """Return the list, and whether there is one; one that can't be understood can't be kept."""
    raw = traits.attributes.get(ACCESS_LIST)
    if raw is None:
        return None, ACCESS_LIST in traits.unreadable
    try:
        return AccessList(raw), True
    except ValueError:
        return None, True


def _give_list(
    descriptor: int, wanted: AccessList | None, mode: int, kept: Kept, *, wanted_one: bool
) -> int:
    """Give a file that list and no other; return the mode that it may have then."""
    try:
        if wanted is not None:
            wanted.limit(mode)
            os.setxattr(descriptor, ACCESS_LIST, wanted.raw)
            return mode & ~0o777 | wanted.mode
        # What it has inherited from its directory would let others in.
        os.removexattr(descriptor, ACCESS_LIST)
    except OSError as error:
        if wanted is None and error.errno in {errno.ENODATA, errno.ENOTSUP, errno.ENOSYS}:
            if not wanted_one:
                return mode
        else:
            wanted_one = True
    if wanted_one:
        kept.permissions.append("access control list")
        return mode & _OWNER_ONLY
    return mode


def _give_attributes(descriptor: int, traits: FileTraits, kept: Kept) -> None:
    for name, value in traits.attributes.items():
        if name not in _COMPUTED and not _is_list(name) and not _give(descriptor, name, value):
            kept.attributes.append(name)
    kept.attributes.extend(name for name in traits.unreadable if not _is_list(name))


def _give_other_lists(descriptor: int, traits: FileTraits, kept: Kept) -> None:
    """Give it a network file system's list, which allows all that it did, or none at all."""
    as_it_was = not kept.permissions
    named = {*traits.attributes, *traits.unreadable} - {ACCESS_LIST}
    for name in filter(_is_list, named):
        value = traits.attributes.get(name)
        if value is None or not as_it_was or not _give(descriptor, name, value):
            kept.permissions.append(f"access control list {name}")
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & _OWNER_ONLY)


def _is_list(name: str) -> bool:
    return name.startswith("system.")


def _give(descriptor: int, name: str, value: bytes) -> bool:
    try:
        if os.getxattr(descriptor, name) == value:
            return True
    except OSError:
        pass
    try:
        os.setxattr(descriptor, name, value)
    except OSError:
        return False
    return True
