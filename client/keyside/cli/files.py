"""Where a command's bytes come from and go to: standard streams or files, never half-written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
from typing import TYPE_CHECKING, Final, Self

from keyside._atomic import AtomicFile
from keyside._bounds import MAX_CALL_BYTES
from keyside._descriptor_paths import open_input
from keyside._standard_streams import require_output
from keyside.cli import exits
from keyside.cli.exits import CommandError
from keyside.cli.text import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from keyside._atomic import Bytes
    from keyside._sealed_input import SealedInput

# More than any sidecar can be configured to accept; what lies between that and the sidecar's
# limit is sent, and the sidecar's own answer states its limit.
MAX_INPUT_BYTES: Final = MAX_CALL_BYTES


class Input:
    """Where the bytes come from. Use it as a context manager.

    Args:
        path: A file; ``None`` or ``"-"`` is standard input.
        output: Where the result goes, entered before this.

    Raises:
        CommandError: On entering: it can't be opened, or is what the output overwrites.
    """

    def __init__(self, path: str | None, output: Output) -> None:
        self._path = None if path == "-" else path
        self._output = output
        self._sealed: SealedInput | None = None

    @property
    def is_typed(self) -> bool:
        """Whether somebody is about to type it."""
        return self._path is None and sys.stdin.isatty()

    def __enter__(self) -> SealedInput:
        from keyside._sealed_input import SealedInput

        with self.reading():
            if self._path is None:
                if sys.stdin.isatty():
                    print("reading from the terminal; end with Ctrl-D", file=sys.stderr)
                descriptor = os.dup(sys.stdin.fileno())
            else:
                descriptor = self._open(self._path)
            self._sealed = SealedInput(descriptor)
        try:
            self._output.require_other_than(os.fstat(descriptor))
        except BaseException:
            self._sealed.close()
            raise
        return self._sealed

    def _open(self, path: str) -> int:
        try:
            return open_input(path)
        except OSError as error:
            raise CommandError(f"can't read {path}: {error.strerror}", exits.NO_INPUT) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sealed is not None:
            self._sealed.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Say of an error while reading that it is this input's.

        Raises:
            CommandError: There was one.
        """
        try:
            yield
        except BrokenPipeError:  # the output's
            raise
        except OSError as error:
            missing = isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError))
            raise CommandError(
                f"can't read {self._path or 'standard input'}: {error.strerror}",
                exits.NO_INPUT if missing else exits.IO_ERROR,
            ) from None


def read_input(path: str | None, output: Output) -> bytes:
    """Return all of the input.

    Args:
        path: A file; ``None`` or ``"-"`` is standard input.
        output: As for ``Input``.

    Raises:
        CommandError: It can't be read, or is larger than any sidecar accepts.
    """
    source = Input(path, output)
    with source as opened, source.reading():
        data = opened.read_small()
    if data is None:
        raise CommandError(
            f"the input is larger than {MAX_INPUT_BYTES:,} bytes, more than any sidecar accepts",
            exits.DATA,
            "a sidecar accepts 1 MiB unless configured, and 16 MiB at most: split the input",
        )
    return data


class Output:
    """Where the result goes. A file appears whole, under its name, or not at all.

    Use it as a context manager around the call: what can't be created is found out before
    anything is sent, and a failure leaves nothing behind and an existing file as it was. What a
    file that is replaced could not keep is said on standard error.

    Args:
        path: A file; ``None`` is standard output; ``"-"`` is standard output even where that is a
            terminal.
        secret: As for ``AtomicFile``.
    """

    def __init__(self, path: str | None, *, secret: bool) -> None:
        self._path = path
        self._secret = secret
        self._file: AtomicFile | None = None

    @property
    def is_guarded_terminal(self) -> bool:
        """Whether this is a terminal that nobody asked to be written to whatever comes."""
        if self._file is not None:
            return not self._file.is_replaced and os.isatty(self._file.descriptor)
        return self._path is None and sys.stdout.isatty()

    def require_other_than(self, source: os.stat_result) -> None:
        """Refuse to write over, or behind, what is still being read.

        A file that is replaced is another one until then, so it may be the input.

        Raises:
            CommandError: The output is the input.
        """
        if not stat.S_ISREG(source.st_mode) or (self._file is not None and self._file.is_replaced):
            return
        try:
            number = self._file.descriptor if self._file is not None else sys.stdout.fileno()
            here = os.fstat(number)
        except (OSError, ValueError):  # no standard output
            return
        if os.path.samestat(here, source):
            appends = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_APPEND
            if appends or os.lseek(number, 0, os.SEEK_CUR) < here.st_size:
                raise CommandError(
                    "the output is the input, which would be written over while it is read",
                    exits.USAGE,
                    "name the file with -o: it is replaced when all has been read",
                )

    def __enter__(self) -> Self:
        if self._path is None or self._path == "-":
            require_output()
        else:
            try:
                self._file = AtomicFile(self._path, secret=self._secret)
            except OSError as error:
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
        self.append(data)
        self.finish()

    def append(self, data: Bytes) -> None:
        """Write a part of what is to come.

        Raises:
            CommandError: As for ``write``.
            BrokenPipeError: As for ``write``.
        """
        with self._writing():
            if self._file is not None:
                self._file.write(data)
            else:
                sys.stdout.buffer.write(data)

    def finish(self) -> None:
        """Make what was written durable under its name.

        Raises:
            CommandError: As for ``write``.
            BrokenPipeError: As for ``write``.
        """
        with self._writing():
            if self._file is not None:
                self._file.put_in_place()
            else:
                sys.stdout.buffer.flush()
        if self._file is not None and self._file.not_kept:
            what = ", ".join(self._file.not_kept)
            with contextlib.suppress(OSError):
                message = f"keyside: {escape(self._path or '')}: not kept: {escape(what)}"
                print(message, file=sys.stderr)

    def copy_rest(self, source: SealedInput, progress: Callable[[int], object]) -> int | None:
        """Append the rest of a file, holes as holes; ``None`` where both are not plain files.

        Raises:
            CommandError: Reading or writing failed.
        """
        if self._file is None or not self._file.is_replaced:
            return None
        with self._writing():
            return source.copy_rest(self._file.descriptor, progress)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.discard()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandError(
                f"can't write {self._path or 'standard output'}: {error.strerror}", exits.IO_ERROR
            ) from None
