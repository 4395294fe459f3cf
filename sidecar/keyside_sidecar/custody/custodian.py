"""What every keeper of a root key can do."""

from __future__ import annotations

from typing import Protocol


class Custodian(Protocol):
    """Keeps a root key, and uses it without handing it out."""

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits that name the root key; not secret."""

    def find(self, key_id: str) -> Custodian:
        """Return the keeper of another root key, beside this one (``keysided root rotate``).

        Args:
            key_id: Names the root key.

        Raises:
            CustodyError: It isn't there.
            CustodianUnavailable: The custodian can't be reached.
        """

    def list_ids(self) -> tuple[str, ...]:
        """Return the ids of all root keys that :meth:`find` would find now, this one's too."""

    def require_kept(self) -> None:
        """Check that this root key is where the next process will look for it; blocks.

        Raises:
            CustodyError: It isn't, or that process would refuse it.
        """

    def wrap(self, plaintext: bytes, binding: bytes) -> bytes:
        """Return ``plaintext`` sealed under the root key and bound to ``binding``.

        The result names the root key. Wrapping twice gives different bytes.

        Args:
            plaintext: The secret, of any length.
            binding: What the result belongs to; must be given again to unwrap.

        Raises:
            CustodianUnavailable: The custodian can't be reached.
        """

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        """Return what was wrapped.

        Raises:
            CustodyError: ``wrapped`` was altered, was bound to something else, or was made under
                another root key (the message then names both).
            CustodianUnavailable: The custodian can't be reached.
        """

    def derive(self, label: bytes, context: bytes = b"") -> bytes:
        """Return 32 bytes that only this root key gives for ``label`` and ``context``.

        Args:
            label: What for. Begins with ``keyside/v1/`` and with none of the names in use for
                wrapping; holds no zero byte.
            context: For which store or the like; any bytes.

        Raises:
            ValueError: ``label`` is reserved or of another form.
            CustodianUnavailable: The custodian can't be reached.
        """
