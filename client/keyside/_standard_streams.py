"""Standard streams of a program: always there, and what they don't take is said once, at its end.

    prepare_streams → tell_done, print … → (standard output fails: OutputLost) → settle_streams

Both programs begin and end so. Descriptors 0 to 2 exist before anything else is opened: otherwise a
socket or a store would get one of these numbers, and be written to by whoever prints. What can't be
written to standard error is dropped: it never ends a program, and never changes its exit code.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

IO_ERROR: Final = 74
BROKEN_PIPE: Final = 141
_IN, _OUT, _ERR = range(3)
# The wrong way round, so that using what is missing is an error; for standard error it is none.
_STAND_IN_FLAGS: Final = {_IN: os.O_WRONLY, _OUT: os.O_RDONLY, _ERR: os.O_WRONLY}


class OutputLost(Exception):
    """Standard output takes nothing, or nothing more; ``settle_streams`` says why."""


class _Output(io.RawIOBase):
    """Descriptor 1, which fails once and for all."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: OSError | None = None
        self.untold: list[str] = []
        self.is_settled = False
        self.parent_tells = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _OUT

    def isatty(self) -> bool:
        return os.isatty(_OUT)

    def write(self, data: ReadableBuffer, /) -> int:
        if self.is_settled:  # what a buffer still holds as Python ends
            return memoryview(data).nbytes
        while self.failure is None:
            try:
                return os.write(_OUT, data)
            except BlockingIOError:  # another holder of the pipe has made it so
                select.select([], [_OUT], [])
            except OSError as error:
                self.failure = error
        raise OutputLost


class _Diagnostics(io.RawIOBase):
    """Descriptor 2, which never fails."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _ERR

    def isatty(self) -> bool:
        return os.isatty(_ERR)

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return os.write(_ERR, data)
        except OSError:
            return memoryview(data).nbytes


_output: _Output | None = None


def prepare_streams() -> None:
    """Make the standard descriptors exist, and the standard streams fail as this module says.

    A program does this first of all. A missing descriptor becomes /dev/null, opened so that
    reading standard input or writing standard output fails as it would have.
    """
    global _output  # noqa: PLW0603  (a process has one standard output)
    for number, flags in _STAND_IN_FLAGS.items():
        _make_descriptor(number, flags)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(_IN, closefd=False)))
    encoding = sys.stdout.encoding if sys.stdout is not None else None
    _output = _Output()
    # What others wrote may hold letters that this terminal's encoding does not have.
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_output), encoding, "backslashreplace", line_buffering=_output.isatty()
    )
    encoding = sys.stderr.encoding if sys.stderr is not None else None
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Diagnostics()), encoding, "backslashreplace", line_buffering=True
    )


def tell_done(line: str, summary: str | None = None) -> None:
    """Print what was done, or advice that goes with it, and go on even if that can't be printed.

    Args:
        line: What is printed.
        summary: What is said at the end if it could not be; ``None``: the line; ``""``: nothing.
    """
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OutputLost:
        if _output is not None:
            _output.untold.append(line if summary is None else summary)


def require_output() -> None:
    """Refuse to begin what is done for its output alone where that surely can't be written.

    Raises:
        OutputLost: Standard output is closed, or not open for writing.
    """
    if _output is not None and not _is_open_for(_OUT, os.O_WRONLY):
        _output.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
        raise OutputLost


def is_input_closed() -> bool:
    """Return whether there is no standard input, not even an empty one."""
    return not _is_open_for(_IN, os.O_RDONLY)


def wait_while_read(seconds: float) -> None:
    """Wait, unless there is nobody to read standard output any more.

    Raises:
        OutputLost: There is nobody: a pipe's reader has gone, a terminal was hung up.
    """
    if _output is None:
        time.sleep(seconds)
        return
    poll = select.poll()
    poll.register(_OUT, 0)
    if poll.poll(seconds * 1000):
        _output.failure = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        raise OutputLost


def let_parent_tell() -> None:
    """Say nothing of a lost output at this forked process's end: its parent has the same one."""
    if _output is not None:
        _output.parent_tells = True


def settle_streams(code: int, program: str) -> int:
    """Flush standard output; say what it did not take; return the exit code.

    Where its reader has gone, only what was done is said, if anything was.

    Args:
        code: The exit code as far as everything else is concerned; any but 0 stays.
        program: Who speaks.
    """
    if _output is None:
        return code
    with contextlib.suppress(OutputLost):
        sys.stdout.flush()
    _output.is_settled = True
    failure = _output.failure
    if failure is None or _output.parent_tells:
        return code
    untold = "; ".join(
        part.strip() for told in _output.untold for part in told.splitlines() if part.strip()
    )
    unread = failure.errno == errno.EPIPE
    if untold or not unread:
        why = "it is not open for writing" if failure.errno == errno.EBADF else failure.strerror
        done = f"; but this was done: {untold}" if untold else ""
        sys.stderr.write(f"{program}: can't write standard output: {why}{done}\n")
    return code or (BROKEN_PIPE if unread else IO_ERROR)


def _make_descriptor(number: int, flags: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        made = os.open(os.devnull, flags)
        if made == number:
            os.set_inheritable(made, True)
        else:
            os.dup2(made, number)
            os.close(made)


def _is_open_for(number: int, wanted: int) -> bool:
    mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    return mode in {wanted, os.O_RDWR}
