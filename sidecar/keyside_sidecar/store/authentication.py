"""What makes a change by someone who has the database, but not the root key, show (I6).

Two things, both keyed by the root key and by the store's id:

**A MAC on every row**: HMAC-SHA-256 over an injective encoding of store, table and the columns
that are not NULL. No row can be made up, altered, or moved to another key, number, table or store.

**A digest of every set of rows**: ``keys`` rows carry one of all rows of their versions, and
``store_meta`` carries one of all ``keys`` rows. No row can be left out, and no older copy of a row
(whose MAC is valid) can be put back. It is MSet-Add-Hash (Clarke, Devadas, van Dijk, Gassend, Suh:
Incremental Multiset Hash Functions, ASIACRYPT 2003), after AdHash (Bellare, Micciancio 1997)::

    term(row) = PRF(k, 0x00 || row's MAC)                       256 bits, stored nowhere
    digest    = r || PRF(k, 0x01 || r) + Σ term(row)  mod 2^256,   r fresh for every digest

so that one changed row costs one addition, however many rows the set has. The terms must not be
seen, and this is why they are PRF outputs of their own behind a random mask and not the stored MACs
themselves: with summands in the open, a database that has seen k states of n rows offers k^n sums,
and a generalised birthday search (Wagner 2002) finds two that agree at a few thousand rows. With
hidden terms, whoever finds another set with the same sum has broken the PRF (theorem 2 of the
paper).

Not caught here: the whole database put back as it once was. A process remembers the highest
generation that it saw and refuses to go back (snapshot.py); across restarts the audit log
remembers it.
"""

from __future__ import annotations

import hmac
import os
import struct
from typing import TYPE_CHECKING, Final, NoReturn

from keyside_sidecar.errors import StoreTampered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside_sidecar.custody import Custodian

    Value = int | str | bytes | None
    Row = Mapping[str, Value]

MAC_LENGTH: Final = 32
STORE_ID_LENGTH: Final = 16
_NONCE_LENGTH: Final = 16
_MODULUS: Final = 1 << 256
_FORMAT: Final = b"KEYSIDE-ROW-1\x00"
_MAC_LABEL: Final = b"keyside/v1/store-mac"
_SET_LABEL: Final = b"keyside/v1/store-set"


class Authenticator:
    """Makes and checks the MACs and digests of one store.

    Args:
        custodian: Keeps the root key.
        store_id: 16 bytes.

    Raises:
        StoreTampered: ``store_id`` is something else.
        CustodianUnavailable: The custodian can't be reached.
    """

    __slots__ = ("_mac_key", "_set_key", "_store_id")

    def __init__(self, custodian: Custodian, store_id: bytes) -> None:
        if not isinstance(store_id, bytes) or len(store_id) != STORE_ID_LENGTH:
            raise StoreTampered("own row")
        self._store_id = store_id
        self._mac_key = custodian.derive(_MAC_LABEL, store_id)
        self._set_key = custodian.derive(_SET_LABEL, store_id)

    def __repr__(self) -> str:
        return f"Authenticator(store_id={self._store_id.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Authenticator can't be pickled or copied")

    def compute_mac(self, table: str, row: Row) -> bytes:
        """Return the 32-byte MAC of ``row``, whatever its ``mac`` column holds.

        Raises:
            StoreTampered: A column holds a value of a type that no column has.
        """
        return hmac.digest(self._mac_key, encode_row(self._store_id, table, row), "sha256")

    def verify(self, table: str, row: Row, place: str) -> None:
        """Check the MAC that ``row`` carries.

        Args:
            table: The row's table.
            row: All of its columns.
            place: Names the row in the error.

        Raises:
            StoreTampered: It doesn't fit.
        """
        mac = row.get("mac")
        if not isinstance(mac, bytes):
            raise StoreTampered(place)
        try:
            expected = self.compute_mac(table, row)
        except StoreTampered:
            raise StoreTampered(place) from None
        if not hmac.compare_digest(mac, expected):
            raise StoreTampered(place)

    def compute_term(self, mac: bytes) -> int:
        """Return what a row with this MAC adds to its set's sum."""
        return int.from_bytes(hmac.digest(self._set_key, b"\x00" + mac, "sha256"), "big")

    def seal_sum(self, total: int) -> bytes:
        """Return the 48-byte digest of a set whose terms sum to ``total``."""
        nonce = os.urandom(_NONCE_LENGTH)
        return nonce + ((self._mask(nonce) + total) % _MODULUS).to_bytes(32, "big")

    def open_sum(self, digest: bytes) -> int:
        """Return the sum, mod 2**256, that ``digest`` holds; its row's MAC vouches for it."""
        nonce, masked = digest[:_NONCE_LENGTH], digest[_NONCE_LENGTH:]
        return (int.from_bytes(masked, "big") - self._mask(nonce)) % _MODULUS

    def fits(self, digest: bytes, total: int) -> bool:
        """Return whether ``digest`` is of a set whose terms sum to ``total``."""
        return self.open_sum(digest) == total % _MODULUS

    def _mask(self, nonce: bytes) -> int:
        return int.from_bytes(hmac.digest(self._set_key, b"\x01" + nonce, "sha256"), "big")


def encode_row(store_id: bytes, table: str, row: Row) -> bytes:
    """Return bytes that no other store, table and columns give.

    The columns that are not NULL, but for ``mac``, sorted by name; everything variable stands
    behind its own length, and every value behind a tag for its type.

    Raises:
        StoreTampered: A value is neither an integer of 64 bits, a text nor bytes.
    """
    names = sorted(name for name, value in row.items() if value is not None and name != "mac")
    parts = [_FORMAT, _frame(store_id), _frame(table.encode()), struct.pack(">I", len(names))]
    for name in names:
        parts += [_frame(name.encode()), _encode_value(row[name], table)]
    return b"".join(parts)


def _frame(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _encode_value(value: Value, place: str) -> bytes:
    # The exact type: a bool or a float that someone put into a column is no integer.
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return b"i" + struct.pack(">q", value)
    if type(value) is str:
        # Text that isn't UTF-8 comes through the driver escaped, and must not fit anything.
        return b"t" + _frame(value.encode("utf-8", "surrogateescape"))
    if type(value) is bytes:
        return b"b" + _frame(value)
    raise StoreTampered(place)


def bind_material(store_id: bytes, key_name: str, number: int, version_id: bytes) -> bytes:
    """Return what a version's wrapped material is bound to: store, key, number and version id."""
    return b"".join(
        (
            b"KEYSIDE-VERSION-1\x00",
            _frame(store_id),
            _frame(key_name.encode()),
            struct.pack(">I", number),
            _frame(version_id),
        )
    )
