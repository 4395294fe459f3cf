"""Where a command's bytes come from and go to: standard streams or files, never half-written."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from keyside.cli import exits
from keyside.cli.exits import CommandError
from keyside.cli.temporary import create_temporary, open_folder

if TYPE_CHECKING:
    from types import TracebackType

# More than any sidecar can be configured to accept; what lies between that and the sidecar's
# limit is sent, and the sidecar's own answer states its limit.
MAX_INPUT_BYTES: Final = 20 * 1024 * 1024
_NEW_SECRET_MODE: Final = 0o600
_NEW_MODE: Final = 0o666


def read_input(path: str | None) -> bytes:
    """Return all of the input.

    Args:
        path: A file; ``None`` or ``"-"`` is standard input.

    Raises:
        CommandError: It can't be read, or is larger than any sidecar accepts.
    """
    try:
        if path is None or path == "-":
            if sys.stdin.isatty():
                print("reading from the terminal; end with Ctrl-D", file=sys.stderr)
            data = _read(sys.stdin.buffer)
        else:
            with open(path, "rb") as file:  # noqa: PTH123
                data = _read(file)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError))
        raise CommandError(
            f"can't read {path or 'standard input'}: {error.strerror}",
            exits.NO_INPUT if missing else exits.IO_ERROR,
        ) from None
    if len(data) > MAX_INPUT_BYTES:
        raise CommandError(
            f"the input is larger than {MAX_INPUT_BYTES:,} bytes, more than any sidecar accepts",
            exits.DATA,
            "a sidecar accepts 1 MiB unless configured, and 16 MiB at most: split the input",
        )
    return data


def _read(file: BinaryIO) -> bytes:
    return file.read(MAX_INPUT_BYTES + 1)


class Output:
    """Where the result goes. A file appears whole, under its name, or not at all.

    Use it as a context manager around the call: what can't be created is found out before
    anything is sent, and a failure leaves nothing behind and an existing file as it was.

    Args:
        path: A file; ``None`` is standard output; ``"-"`` is standard output even where that is a
            terminal.
        secret: The file gets mode 0600 whatever it had before. Otherwise a new file follows the
            umask, and an existing one keeps its mode and, where allowed, its owner.
    """

    def __init__(self, path: str | None, *, secret: bool) -> None:
        self._path = path
        self._secret = secret
        self._target = ""
        self._temporary = ""
        self._descriptor = -1
        self._folder = -1

    @property
    def is_guarded_terminal(self) -> bool:
        """Whether this is a terminal that nobody asked to be written to whatever comes."""
        return self._path is None and sys.stdout.isatty()

    def __enter__(self) -> Self:
        if self._path is None or self._path == "-":
            return self
        self._target = os.path.realpath(self._path)
        try:
            existing = self._look(self._target)
            if existing is not None and not stat.S_ISREG(existing.st_mode):
                flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
                self._descriptor = os.open(self._target, flags)
            else:
                self._create(existing)
        except OSError as error:
            self._discard()
            raise CommandError(
                f"can't create {self._path}: {error.strerror}", exits.CANT_CREATE
            ) from None
        return self

    def write(self, data: bytes) -> None:
        """Write all of ``data`` and make it durable under its name.

        Raises:
            CommandError: It could not be written; the file is as it was.
            BrokenPipeError: Nobody reads standard output any more.
        """
        try:
            if self._descriptor < 0:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                return
            with os.fdopen(self._descriptor, "wb", closefd=False) as file:
                file.write(data)
            if self._temporary:
                os.fsync(self._descriptor)
                name = os.path.basename(self._target)  # noqa: PTH119
                os.rename(self._temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                self._temporary = ""
                os.fsync(self._folder)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandError(
                f"can't write {self._path or 'standard output'}: {error.strerror}", exits.IO_ERROR
            ) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _create(self, existing: os.stat_result | None) -> None:
        mode = _NEW_SECRET_MODE if self._secret or existing is not None else _NEW_MODE
        self._folder = open_folder(os.path.dirname(self._target))  # noqa: PTH120
        self._descriptor, self._temporary = create_temporary(self._folder, mode)
        if existing is not None and not self._secret:
            mode = stat.S_IMODE(existing.st_mode) & 0o777
            try:
                os.fchown(self._descriptor, existing.st_uid, existing.st_gid)
            except PermissionError:
                mode &= 0o707  # what its group might do, another group may not
            os.fchmod(self._descriptor, mode)

    def _discard(self) -> None:
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            self._temporary = ""
        for descriptor in (self._descriptor, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._folder = -1

    @staticmethod
    def _look(path: str) -> os.stat_result | None:
        try:
            return os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            return None
