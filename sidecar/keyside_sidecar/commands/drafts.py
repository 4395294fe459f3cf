"""A new file that is there whole, or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self

from keyside._new_file import ExchangedError, NewFile
from keyside._temporary import sweep_folder
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_MODE: Final = 0o600
_EX_CANTCREAT: Final = 73


class Draft:
    """A private file that gets its name when it is finished, unless that name is taken by then.

    To be used in a ``with`` statement, at whose end an unfinished one is removed, but not by a
    process that was forked off meanwhile.

    Args:
        path: What it will be called.

    Raises:
        StartupError: There is something of that name, or no file can be made there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if os.path.lexists(path):
            raise self._refuse("exists already and is not overwritten")
        try:
            self._directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refuse(f"can't be made: {error.strerror}") from error
        try:
            sweep_folder(self._directory)
            self._file = NewFile(self._directory, _MODE)
            self.descriptor = self._file.descriptor
            os.fchmod(self.descriptor, _MODE)
        except OSError as error:
            os.close(self._directory)
            raise self._refuse(f"can't be made: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.discard()
        os.close(self._directory)

    def publish(self) -> int:
        """Give the file its name, durably; return its size in bytes.

        Raises:
            StartupError: Someone took the name meanwhile, or it can't be written.
        """
        try:
            self._file.add(self._path.name)
            return os.fstat(self.descriptor).st_size
        except ExchangedError as error:
            raise self._refuse(
                f"was replaced: someone else may write to {self._path.parent}"
            ) from error
        except FileExistsError as error:
            raise self._refuse("exists already and is not overwritten") from error
        except OSError as error:
            raise self._refuse(f"can't be written: {error.strerror}") from error

    def _refuse(self, problem: str) -> StartupError:
        return StartupError(
            f"{self._path} {problem}",
            remedy="name a new file in a directory that only you can write to",
            exit_code=_EX_CANTCREAT,
        )
