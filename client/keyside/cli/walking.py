"""From the paths on a command line to the files that are meant.

A directory is walked with everything in it. Symbolic links met on the way are not followed: only
one that is itself named. Everything is opened relative to the directory that it was found in, so
that somebody who may write there can't send a walk elsewhere by moving things about.
"""

from __future__ import annotations

import enum
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyside._temporary import is_temporary, open_folder, remove_leftovers
from keyside.cli import exits
from keyside.cli.exits import CommandError
from keyside.cli.replacing import changed_meanwhile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Found:
    """A file to work on.

    Args:
        path: How to name it to people.
        folder: The descriptor of its directory, open until the next file is asked for.
        name: Its name there.
        named: It was named itself, not met on the way.
    """

    path: str
    folder: int
    name: str
    named: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """A file or directory that can't be worked on, and why."""

    path: str
    error: CommandError


class Passed(enum.Enum):
    """Something that is neither a file nor a directory was met on the way."""

    OVER = enum.auto()


def find_files(paths: Sequence[str], *, tidy: bool) -> Generator[Found | Trouble | Passed]:
    """Yield the files that are named, and those in directories that are named; each once.

    Args:
        paths: Files and directories.
        tidy: Remove what killed runs left in the directories on the way.
    """
    walk = _Walk(tidy=tidy)
    for path in paths:
        try:
            real = os.path.realpath(path, strict=True)
            status = os.stat(real)  # noqa: PTH116
            if stat.S_ISDIR(status.st_mode):
                yield from walk.tree(open_folder(real), path)
            else:
                yield from walk.file(real, status, path)
        except OSError as error:
            yield Trouble(path, _cannot_read(error))


class _Walk:
    def __init__(self, *, tidy: bool) -> None:
        self._tidy = tidy
        self._walked: set[tuple[int, int]] = set()
        self._tidied: set[tuple[int, int]] = set()
        self._named: set[tuple[int, int, str]] = set()

    def file(self, real: str, status: os.stat_result, path: str) -> Iterator[Found | Trouble]:
        """Yield one file that was named."""
        parent, name = os.path.split(real)
        if not stat.S_ISREG(status.st_mode):
            yield Trouble(path, CommandError("it is neither a file nor a directory", exits.DATA))
            return
        if is_temporary(name):
            error = CommandError("it is a temporary file of another run", exits.DATA)
            yield Trouble(path, error)
            return
        folder = open_folder(parent)
        try:
            identity = _identify(folder)
            key = (*identity, name)
            if identity in self._walked or key in self._named:
                return
            self._named.add(key)
            if self._tidy and identity not in self._tidied:
                self._tidied.add(identity)
                remove_leftovers(folder, os.listdir(folder))  # noqa: PTH208
            yield Found(path, folder, name, named=True)
        finally:
            os.close(folder)

    def tree(self, folder: int, path: str) -> Iterator[Found | Trouble | Passed]:
        """Yield the files of a directory that was named, and of those in it.

        Args:
            folder: Its descriptor, which this closes.
            path: How to name it.
        """
        # From the top to where the walk is: directory, its path, the directories still to visit.
        way: list[tuple[int, str, list[str]]] = [(folder, path, [])]
        try:
            yield from self._folder(*way[-1])
            while way:
                folder, path, waiting = way[-1]
                if not waiting:
                    os.close(way.pop()[0])
                    continue
                name = waiting.pop()
                below = os.path.join(path, name)  # noqa: PTH118
                try:
                    way.append((open_folder(name, within=folder), below, []))
                except OSError as error:
                    yield Trouble(below, _cannot_read(error))
                else:
                    yield from self._folder(*way[-1])
        finally:
            for opened, _, _ in way:
                os.close(opened)

    def _folder(
        self, folder: int, path: str, waiting: list[str]
    ) -> Iterator[Found | Trouble | Passed]:
        """Yield the files of one directory; note the directories in it in ``waiting``."""
        identity = _identify(folder)
        if identity in self._walked:
            return
        self._walked.add(identity)
        try:
            # Whole, before anything is renamed in it; in order, so that a run can be followed.
            names = sorted(os.listdir(folder))
        except OSError as error:
            yield Trouble(path, _cannot_read(error))
            return
        if self._tidy:
            remove_leftovers(folder, names)
        for name in names:
            if is_temporary(name) or (*identity, name) in self._named:
                continue
            try:
                mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            except FileNotFoundError:
                # Renamed within the tree, it might be met nowhere; only another run can tell.
                yield Trouble(os.path.join(path, name), changed_meanwhile())  # noqa: PTH118
                continue
            except OSError as error:
                yield Trouble(os.path.join(path, name), _cannot_read(error))  # noqa: PTH118
                continue
            if stat.S_ISDIR(mode):
                waiting.append(name)
            elif stat.S_ISREG(mode):
                yield Found(os.path.join(path, name), folder, name, named=False)  # noqa: PTH118
            else:
                yield Passed.OVER
        waiting.reverse()


def _identify(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


def _cannot_read(error: OSError) -> CommandError:
    return CommandError(f"can't read it: {error.strerror}", exits.NO_INPUT)
