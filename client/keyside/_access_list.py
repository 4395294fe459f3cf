"""A POSIX access control list as Linux keeps it in an extended attribute, and how to narrow it.

Little-endian: a version (32 bits, 2), then entries of tag (16), permissions (16) and id (32):
include/uapi/linux/posix_acl_xattr.h; acl(5) says what they mean.
"""

from __future__ import annotations

import struct
from typing import Final

ACCESS_LIST: Final = "system.posix_acl_access"
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_OWNER: Final = 0x01
_GROUP: Final = 0x04
_MASK: Final = 0x10
_OTHERS: Final = 0x20
_ALL: Final = 0o7


class AccessList:
    """One file's access control list.

    Args:
        raw: The attribute.

    Raises:
        ValueError: It is none of that form.
    """

    def __init__(self, raw: bytes) -> None:
        if raw[:4] != _VERSION or (len(raw) - 4) % _ENTRY.size:
            raise ValueError
        self._entries = [list(entry) for entry in _ENTRY.iter_unpack(raw[4:])]
        if not {_OWNER, _GROUP, _OTHERS} <= {entry[0] for entry in self._entries}:
            raise ValueError

    @property
    def group(self) -> int:
        """What the owning group may do. The mode's group bits don't say it: they are the mask."""
        return self._get(_GROUP) & self._get(_MASK)

    def drop_group(self) -> None:
        """Give the owning group nothing."""
        self._set(_GROUP, 0)

    def limit(self, mode: int) -> None:
        """Do what chmod(2) does with a list, but never allow more than is allowed now."""
        self._set(_OWNER, self._get(_OWNER) & mode >> 6)
        has_mask = any(entry[0] == _MASK for entry in self._entries)
        tag = _MASK if has_mask else _GROUP
        self._set(tag, self._get(tag) & mode >> 3)
        self._set(_OTHERS, self._get(_OTHERS) & mode)

    @property
    def raw(self) -> bytes:
        """The attribute."""
        return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in self._entries)

    @property
    def mode(self) -> int:
        """The permission bits that the file shows."""
        has_mask = any(entry[0] == _MASK for entry in self._entries)
        group = self._get(_MASK if has_mask else _GROUP)
        return self._get(_OWNER) << 6 | group << 3 | self._get(_OTHERS)

    def _get(self, tag: int) -> int:
        return next((entry[1] for entry in self._entries if entry[0] == tag), _ALL)

    def _set(self, tag: int, permissions: int) -> None:
        for entry in self._entries:
            if entry[0] == tag:
                entry[1] = permissions & _ALL
