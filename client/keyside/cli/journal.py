"""What a run of ``keyside reencrypt`` has done, so that running it again after a kill goes on.

    absent → begun (locked, first line written) → one line per file → removed, all done
                                                → kept: interrupted, or something failed

A line is the SHA-256 of a new envelope, and is durable before that envelope takes its file's place.
So a file that holds an envelope of this journal was done, whatever killed the run; no other content
has that digest, since every envelope is sealed with fresh random bytes. Paths are not recorded: a
file may be moved between runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from keyside._temporary import open_folder
from keyside.cli import exits
from keyside.cli.exits import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FORMAT: Final = "keyside reencrypt journal 1"
_BEGINNING: Final = json.dumps({"format": _FORMAT})[:-1].encode()
_DIGEST: Final = re.compile(rb"[0-9a-f]{64}", re.ASCII)
_MAX_LINE_BYTES: Final = 4096
# Half a digest is more than enough to tell envelopes apart, and half the memory.
_KEPT_BYTES: Final = 16
_NAME_ANOTHER: Final = "name another with --journal FILE"


class JournalError(CommandError):
    """The journal can't be used, so nothing may be done that it would have to remember."""


def digest_arguments(paths: Sequence[str], context: Mapping[str, str], socket: str) -> str:
    """Return what tells a command from another: its paths, its context and its sidecar.

    Raises:
        CommandError: A path is relative to a working directory that is gone.
    """
    try:
        real = sorted(os.path.realpath(path) for path in paths)
    except FileNotFoundError:
        raise CommandError(
            "a path is relative, and the working directory does not exist any more",
            exits.NO_INPUT,
            "give absolute paths",
        ) from None
    meant = [real, sorted(context.items()), socket]
    return hashlib.sha256(json.dumps(meant).encode()).hexdigest()


def choose_journal(arguments: str, *, make_folder: bool) -> str:
    """Return where the journal of such a command is kept, unless the user says otherwise.

    Args:
        arguments: From ``digest_arguments``.
        make_folder: Make the directory, too.

    Raises:
        JournalError: It can't be made.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):
        state = os.path.expanduser("~/.local/state")  # noqa: PTH111
    folder = Path(state, "keyside")
    if make_folder:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(
                f"can't make {folder} for the journal: {error.strerror}",
                exits.CANT_CREATE,
                _NAME_ANOTHER,
            ) from None
    return str(folder / f"reencrypt-{arguments[:32]}.journal")


class Journal:
    """The journal of one command, open and locked. Use it as a context manager.

    Args:
        path: Where it is.
        arguments: From ``digest_arguments``.
        begun: What to write down as the time where it begins.
        restart: Forget what an earlier run has done.
        read_only: Make, change and lock nothing.

    Raises:
        JournalError: On entering: it can't be used, or belongs to another command.
        CommandError: On entering: a run of this command is at work.
    """

    def __init__(
        self, path: str, arguments: str, *, begun: str, restart: bool, read_only: bool
    ) -> None:
        self.path = path
        self.begun = begun
        self._arguments = arguments
        self._restart = restart
        self._read_only = read_only
        self._done: set[bytes] = set()
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._open()
        except FileNotFoundError:
            if not self._read_only:
                raise self._unusable("there is no such directory") from None
        except OSError as error:
            self.close()
            raise self._unusable(error.strerror or "") from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        """How many files it says were done."""
        return len(self._done)

    def holds(self, envelope: bytes) -> bool:
        """Return whether this envelope was made by the run that this journal is of."""
        return hashlib.sha256(envelope).digest()[:_KEPT_BYTES] in self._done

    def add(self, envelope: bytes) -> None:
        """Write down, durably, that this envelope was made; then it may take its file's place.

        Raises:
            JournalError: It could not be written.
        """
        digest = hashlib.sha256(envelope)
        line = digest.hexdigest().encode() + b"\n"
        try:
            if os.write(self._descriptor, line) != len(line):
                raise self._unusable("it could not be written whole", exits.IO_ERROR)
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._unusable(error.strerror or "", exits.IO_ERROR) from None
        self._done.add(digest.digest()[:_KEPT_BYTES])

    def remove(self) -> None:
        """Remove it: all is done. Emptied first, for its directory may not allow more.

        Raises:
            JournalError: It can't be emptied; another run would take what it says for its own.
        """
        try:
            os.ftruncate(self._descriptor, 0)
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._unusable(f"can't be emptied: {error.strerror}") from None
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108

    def close(self) -> None:
        """Let go of it; it stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if self._read_only:
            self._descriptor = os.open(self.path, os.O_RDONLY | flags)
        else:
            flags |= os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._descriptor = os.open(self.path, flags, 0o600)
            self._lock()
        self._require_ours()
        self._read()
        if self._restart and not self._read_only:
            self._begin()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = os.fstat(self._descriptor).st_nlink == 0
        except BlockingIOError:
            gone = True
        if gone:
            raise CommandError(
                f"a run of this command is at work; its journal is {self.path}",
                exits.TRY_AGAIN,
                "wait until it ends",
            )

    def _require_ours(self) -> None:
        """Refuse a journal that somebody else could have written: it says what to pass over."""
        status = os.fstat(self._descriptor)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid != os.geteuid()
            or status.st_mode & 0o022
        ):
            raise self._unusable("it is not yours alone to write", exits.NOT_PERMITTED)

    def _begin(self) -> None:
        os.ftruncate(self._descriptor, 0)
        head = {"format": _FORMAT, "arguments": self._arguments, "begun": self.begun}
        os.write(self._descriptor, json.dumps(head).encode() + b"\n")
        os.fsync(self._descriptor)
        folder = open_folder(os.path.dirname(os.path.abspath(self.path)))  # noqa: PTH100, PTH120
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self) -> None:
        """Read what there is; begin where there is nothing.

        A file that is no journal is refused with ``restart`` too: it is somebody's, and not ours
        to empty.
        """
        whole = 0
        for number, line in enumerate(self._lines()):
            if number == 0:
                self._read_head(line)
                if self._restart:
                    return
            elif _DIGEST.fullmatch(line):
                self._done.add(bytes.fromhex(line.decode())[:_KEPT_BYTES])
            else:
                raise self._unusable(f"its line {number + 1} is none of a journal's", exits.DATA)
            whole += len(line) + 1
        left = os.fstat(self._descriptor).st_size - whole
        if whole == 0 and left:
            self._refuse_stranger(os.pread(self._descriptor, len(_BEGINNING), 0))
        if self._read_only:
            return
        if whole == 0:
            self._begin()  # new, or its first line was cut short: nothing had been done
        elif left:
            os.ftruncate(self._descriptor, whole)  # a last line that a kill cut short

    def _read_head(self, line: bytes) -> None:
        try:
            head = json.loads(line)
        except (ValueError, RecursionError):
            head = None
        if not isinstance(head, dict) or head.get("format") != _FORMAT:
            raise self._unusable("it is no journal of this command", exits.DATA)
        if head.get("arguments") != self._arguments and not self._restart:
            raise self._unusable("it belongs to other paths, another context or socket", exits.DATA)
        self.begun = str(head.get("begun"))

    def _refuse_stranger(self, beginning: bytes) -> None:
        """Refuse a file without a line's end that does not begin as a journal's first line does."""
        if not _BEGINNING.startswith(beginning):
            raise self._unusable("it is no journal of this command", exits.DATA)

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines that have an end."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            while (line := file.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
                yield line[:-1]

    def _unusable(self, why: str, exit_code: int = exits.CANT_CREATE) -> JournalError:
        return JournalError(
            f"can't use the journal {self.path}: {why}",
            exit_code,
            _NAME_ANOTHER,
        )
