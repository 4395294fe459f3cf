"""A new file that is there whole, or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

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
        self._pid = os.getpid()
        self._name = f".{path.name}.{secrets.token_hex(8)}.new"
        if os.path.lexists(path):
            raise self._refuse("exists already and is not overwritten")
        try:
            self._directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refuse(f"can't be made: {error.strerror}") from error
        try:
            self.descriptor = os.open(
                self._name,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                _MODE,
                dir_fd=self._directory,
            )
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
        os.close(self.descriptor)
        if os.getpid() == self._pid:
            with suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)

    def publish(self) -> int:
        """Give the file its name, durably; return its size in bytes.

        Raises:
            StartupError: Someone took the name meanwhile, or it can't be written.
        """
        try:
            os.fsync(self.descriptor)
            os.link(
                self._name,
                self._path.name,
                src_dir_fd=self._directory,
                dst_dir_fd=self._directory,
                follow_symlinks=False,
            )
            os.unlink(self._name, dir_fd=self._directory)
            os.fsync(self._directory)
            status = os.fstat(self.descriptor)
            there = os.stat(self._path.name, dir_fd=self._directory, follow_symlinks=False)
        except FileExistsError as error:
            raise self._refuse("exists already and is not overwritten") from error
        except OSError as error:
            raise self._refuse(f"can't be written: {error.strerror}") from error
        if not os.path.samestat(status, there):
            raise self._refuse(f"was replaced: someone else may write to {self._path.parent}")
        return status.st_size

    def _refuse(self, problem: str) -> StartupError:
        return StartupError(
            f"{self._path} {problem}",
            remedy="name a new file in a directory that only you can write to",
            exit_code=_EX_CANTCREAT,
        )
