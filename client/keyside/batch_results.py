"""What became of one item of a batch: its bytes, or its error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyside.errors import KeysideError


class BatchResult:
    """What became of one item. Its repr shows no bytes.

    Attributes:
        error: What went wrong with this item; ``None`` where nothing did.
        key: The name of the key; ``""`` where it failed.
        version: The number of the key version that wraps the data key, for ``decrypt_batch``
            that wrapped it; 0 where it failed.
    """

    __slots__ = ("_data", "error", "key", "version")

    def __init__(
        self,
        data: bytes = b"",
        key: str = "",
        version: int = 0,
        error: KeysideError | None = None,
    ) -> None:
        self._data = data
        self.key = key
        self.version = version
        self.error = error

    def __repr__(self) -> str:
        state = f"error={self.error!r}" if self.error is not None else f"version={self.version}"
        return f"<keyside.{type(self).__name__} {state}>"

    def _get(self) -> bytes:
        if self.error is not None:
            raise self.error
        return self._data


class SealedResult(BatchResult):
    """What became of one item of ``encrypt_batch`` or ``rewrap_batch``."""

    __slots__ = ()

    @property
    def envelope(self) -> bytes:
        """The envelope.

        Raises:
            KeysideError: ``error``, where there is one.
        """
        return self._get()


class OpenedResult(BatchResult):
    """What became of one item of ``decrypt_batch``."""

    __slots__ = ()

    @property
    def plaintext(self) -> bytes:
        """The plaintext.

        Raises:
            KeysideError: ``error``, where there is one.
        """
        return self._get()
