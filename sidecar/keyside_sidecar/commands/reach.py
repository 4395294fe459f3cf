"""The reach of the sidecar's account: whether it may read the program that is to run under it.

Root may start an interpreter that lies where the account can't go: below /root, or installed under
umask 077. What is imported once privileges are dropped is missing then, codecs first, when half of
the work is done. So this is found out before, by a child that becomes the account and looks: the
kernel answers for access lists and security modules too, which no walk of modes does.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import keyside
import keyside_sidecar
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.metadata import Distribution

    from keyside_sidecar.supervisor import Account

_DISTRIBUTION: Final = "keyside"
_EXTRA: Final = "sidecar"
_REQUIRED: Final = re.compile(r"[A-Za-z0-9._-]+")
# Nothing of the standard library that a daemon loads; and compiled files are made anew, or done
# without.
_UNUSED: Final = frozenset(
    {"__pycache__", "dist-packages", "ensurepip", "idlelib", "site-packages", "test", "tkinter"}
)
_EX_OSERR: Final = 71
_CANT_BECOME: Final = 2


def require_reach(account: Account) -> None:
    """Check that the account can read the interpreter, its library and all packages in use.

    Call it as root, before anything is written and before any privilege is dropped. It changes
    nothing, and takes some hundredths of a second.

    Raises:
        StartupError: It can't, or root can't become the account here.
    """
    # Gathered by root: the account may not even be able to list them.
    trees = sorted({*_list_library(), *_list_packages()})
    places = sorted({*_list_programs(), *_list_loaded_modules(trees), *_list_mapped_files()})
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _look_as(account, writing, places, trees)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise StartupError(
            f"can't become uid {account.uid}, gid {account.gid}"
            if code == _CANT_BECOME
            else f"what uid {account.uid} can read could not be found out (exit code {code})",
            remedy="start as root, with CAP_SETUID and CAP_SETGID, or as that account",
            exit_code=_EX_OSERR,
        )
    if found:
        path, barrier = map(os.fsdecode, found.split(b"\0"))
        raise _describe(account, path, Path(barrier))


def _look_as(
    account: Account, pipe: int, places: list[tuple[str, int]], trees: list[str]
) -> NoReturn:
    """Become the account, write what is closed to it into the pipe, and end.

    Nothing is imported from here on, and no codec looked up: that may be what is out of reach.
    """
    code = 1
    try:
        try:
            os.setgroups(account.groups)
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
        except OSError:
            code = _CANT_BECOME
        else:
            path = next(_list_closed(places, trees), None)
            if path is not None:
                os.write(pipe, os.fsencode(path) + b"\0" + os.fsencode(_find_barrier(path)))
            code = 0
    finally:
        os._exit(code)


def _list_closed(places: Iterable[tuple[str, int]], trees: Iterable[str]) -> Iterator[str]:
    yield from (path for path, mode in places if _is_closed(path, mode))
    for tree in trees:
        yield from _list_closed_below(tree)


def _list_closed_below(place: str) -> Iterator[str]:
    if not os.path.isdir(place):  # noqa: PTH112  (may raise nothing: part of it may be closed)
        if _is_closed(place, os.R_OK):
            yield place
        return
    if _is_closed(place, os.R_OK | os.X_OK):
        yield place
        return
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _UNUSED:
                    yield from _list_closed_below(entry.path)
            elif _is_closed(entry.path, os.R_OK):
                yield entry.path


def _is_closed(path: str, mode: int) -> bool:
    """Return whether the running account is denied what is there; what isn't, is not closed."""
    if os.access(path, mode):
        return False
    try:
        os.stat(path)  # noqa: PTH116
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _find_barrier(path: str) -> str:
    """Return the first directory on the way that can't be entered; else what it leads to."""
    real = os.path.realpath(path)
    for end in (path, real):
        for place in reversed(Path(end).parents):
            if _is_closed(str(place), os.X_OK):
                return str(place)
    return real


def _list_programs() -> Iterator[tuple[str, int]]:
    for path in (sys.executable, getattr(sys, "_base_executable", "")):
        if path:
            yield path, os.X_OK


def _list_loaded_modules(trees: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield the modules of library and packages, and the directories that are listed for them.

    What somebody else has had loaded from elsewhere is there already, and imports nothing of ours.
    """
    ours = tuple(f"{os.path.dirname(tree)}{os.sep}" for tree in trees)  # noqa: PTH120
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.startswith(ours):
            yield path, os.R_OK
            yield os.path.dirname(path), os.R_OK | os.X_OK  # noqa: PTH120  (is listed to import)


def _list_mapped_files() -> Iterator[tuple[str, int]]:
    """Yield the files in this process's memory: the interpreter's shared libraries among them."""
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:  # what is mapped stays so; new ones are found with the packages
        return
    for line in lines:
        path = line.partition(b"/")[2]
        if path and not path.endswith(b" (deleted)"):
            yield os.fsdecode(b"/" + path), os.R_OK


def _list_library() -> Iterator[str]:
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    yield library
    # Extension modules may lie apart (lib64).
    yield from (path for path in sys.path if path.endswith("lib-dynload"))


def _list_packages() -> Iterator[str]:
    """Yield Keyside's packages, and those of every distribution that the daemon depends on."""
    for package in (keyside, keyside_sidecar):
        yield from package.__path__
    waiting, seen = [_DISTRIBUTION], set()
    while waiting:
        name = waiting.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another platform, or from a source tree
            continue
        place = str(found.locate_file(""))
        yield from (os.path.join(place, top) for top in _list_tops(found, name))  # noqa: PTH118
        for requirement in found.requires or ():
            wanted, _, condition = requirement.partition(";")
            required = _REQUIRED.match(wanted)
            is_optional = "extra" in condition and _EXTRA not in condition
            if required and not is_optional and required[0] not in seen:
                seen.add(required[0])
                waiting.append(required[0])


def _list_tops(found: Distribution, name: str) -> set[str]:
    """Return the names that a distribution has beside the others."""
    record = found.read_text("RECORD")
    if record is None:  # installed by something else than pip
        tops = found.read_text("top_level.txt")
        return set(tops.split()) if tops else {name.replace("-", "_")}
    paths = (line.partition(",")[0] for line in record.splitlines())
    return {path.partition("/")[0] for path in paths} - {"..", "", *_UNUSED}


def _describe(account: Account, path: str, barrier: Path) -> StartupError:
    try:
        status = barrier.stat()
        closed = (
            f"{barrier} is closed to it (owner uid {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):04o})"
        )
    except OSError:
        closed = f"{barrier} is closed to it"
    return StartupError(
        f"the sidecar's account (uid {account.uid}) can't read {path}, which this interpreter "
        f"needs: {closed}",
        remedy="install Python and Keyside where every account may read them, such as a virtual "
        "environment in /opt/keyside made by root under umask 022 and from a Python outside "
        "/root; nothing was changed",
    )
