"""Where a command's bytes come from and go to: standard streams or files, never half-written."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final, Self

from keyside._atomic import AtomicFile
from keyside._bounds import MAX_CALL_BYTES
from keyside._standard_streams import require_output
from keyside.cli import exits
from keyside.cli.exits import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator
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

    Raises:
        CommandError: On entering: it can't be opened.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path == "-" else path
        self._sealed: SealedInput | None = None

    def __enter__(self) -> SealedInput:
        from keyside._sealed_input import SealedInput

        with self.reading():
            if self._path is None:
                if sys.stdin.isatty():
                    print("reading from the terminal; end with Ctrl-D", file=sys.stderr)
                descriptor = os.dup(sys.stdin.fileno())
            else:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._sealed = SealedInput(descriptor)
        return self._sealed

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


def read_input(path: str | None) -> bytes:
    """Return all of the input.

    Args:
        path: A file; ``None`` or ``"-"`` is standard input.

    Raises:
        CommandError: It can't be read, or is larger than any sidecar accepts.
    """
    source = Input(path)
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
        self._file: AtomicFile | None = None

    @property
    def is_guarded_terminal(self) -> bool:
        """Whether this is a terminal that nobody asked to be written to whatever comes."""
        return self._path is None and sys.stdout.isatty()

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
