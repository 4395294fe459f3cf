"""The root key that a store belongs to, and what follows from it: checking and wrapping.

A store can move to another root key while it is in use (``keysided root rotate``): its own row
names the root key of the moment, and a process follows, if its custodian has that key.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store.authentication import Authenticator
from keyside_sidecar.store.material import Wrapping

if TYPE_CHECKING:
    from keyside_sidecar.custody import Custodian


@dataclass(frozen=True, slots=True)
class Trusted:
    """What one root key gives for one store.

    Args:
        custodian: Keeps the root key.
        authenticator: Makes and checks MACs and digests.
        wrapping: Wraps and unwraps key material.
    """

    custodian: Custodian
    authenticator: Authenticator
    wrapping: Wrapping


class Trust:
    """Finds what belongs to the root key that a store names.

    Args:
        custodian: Keeps a root key, and finds others.
        store_id: 16 bytes.

    Raises:
        StoreTampered: ``store_id`` is something else.
    """

    def __init__(self, custodian: Custodian, store_id: bytes) -> None:
        self._store_id = store_id
        self._lock = threading.Lock()
        self._newest = _derive(custodian, store_id)

    def __repr__(self) -> str:
        return f"Trust(root_key={self._newest.custodian.key_id})"

    @property
    def store_id(self) -> bytes:
        """The store's id, 16 bytes."""
        return self._store_id

    @property
    def custodian(self) -> Custodian:
        """Keeps the root key that was used last."""
        return self._newest.custodian

    def use(self, root_key_id: object) -> Trusted:
        """Return what belongs to a root key.

        Args:
            root_key_id: What the store's own row says. It is not checked yet: a wrong one leads to
                an error, or to a row that does not fit.

        Raises:
            CustodyError: The custodian has no such root key.
            CustodianUnavailable: The custodian can't be reached.
            StoreTampered: It is no root key's id.
        """
        newest = self._newest
        if newest.custodian.key_id == root_key_id:
            return newest
        if not isinstance(root_key_id, str):
            raise StoreTampered("own row")
        found = _derive(newest.custodian.find(root_key_id), self._store_id)
        with self._lock:
            self._newest = found
        return found


def _derive(custodian: Custodian, store_id: bytes) -> Trusted:
    return Trusted(custodian, Authenticator(custodian, store_id), Wrapping(custodian, store_id))
