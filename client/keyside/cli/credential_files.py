"""Where a person's credentials are kept: one file each, which only their owner can reach.

    $XDG_RUNTIME_DIR/keyside/credentials/ID.json    0600, in directories of mode 0700

The runtime directory is the login's own and goes when its last session ends
(https://specifications.freedesktop.org/basedir-spec). Nothing here follows a symbolic link, and
whatever belongs to somebody else or is open to others is not used.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self

from keyside._new_file import NewFile
from keyside._temporary import sweep_folder
from keyside.cli import exits
from keyside.cli.exits import CommandError
from keyside.cli.tables import format_time
from keyside.credential import Credential
from keyside.errors import InvalidArgument
from keyside.names import parse_access_id, parse_key_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from keyside.access_facts import ActivatedAccess

VARIABLE: Final = "XDG_RUNTIME_DIR"
CREDENTIAL_VARIABLE: Final = "KEYSIDE_CREDENTIAL_FILE"
_FOLDERS: Final = ("keyside", "credentials")
_NAME: Final = re.compile(r"(ar-[a-z2-7]{12})\.json", re.ASCII)
_MAX_BYTES: Final = 16 * 1024
_SPACE_BYTES: Final = 4096  # more than a credential's file ever takes
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOR_OTHERS: Final = 0o077


@dataclass(frozen=True, slots=True)
class StoredCredential:
    """A credential as it was kept.

    Args:
        id: The grant's.
        key: The key that it opens.
        credential: The credential.
        expires_at: When it ends at the latest, by the store's clock.
        socket: The path of the socket of the sidecar that it is for.
        operations: What it allows, in lower case.
        path: Where it was found.
    """

    id: str
    key: str
    credential: Credential
    expires_at: datetime
    socket: str
    operations: frozenset[str]
    path: str

    def remove(self) -> None:
        """Remove its file, as far as that can be done."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108


def describe_credential(activated: ActivatedAccess, socket: str) -> bytes:
    """Return what a credential's file holds."""
    request = activated.request
    facts = {
        "id": request.id,
        "key": request.key,
        "credential": activated.credential.unsafe_export_text(),
        "expires_at": format_time(request.expires_at),
        "socket": socket,
        "operations": [operation.value.lower() for operation in request.operations],
    }
    return json.dumps(facts, indent=2).encode() + b"\n"


def read_credential_file(path: str) -> StoredCredential:
    """Return the credential in a file that its user named.

    Raises:
        CommandError: It can't be read, is open to others, or holds something else.
    """
    try:
        return _read(path, None, path)
    except OSError as error:
        raise CommandError(f"can't read {path}: {error.strerror}", exits.NO_INPUT) from None


def find_credentials(
    environ: Mapping[str, str] = os.environ,
) -> Iterator[StoredCredential | CommandError]:
    """Yield what is kept in the runtime directory, or why some of it can't be used.

    Yields nothing where nothing was ever kept.
    """
    try:
        folder = _open_credentials(environ, make=False)
    except _NothingKeptError:
        return
    except CommandError as error:
        yield error
        return
    with contextlib.closing(folder):
        for name in sorted(os.listdir(folder.number)):  # noqa: PTH208  (a descriptor)
            if not _NAME.fullmatch(name):
                continue
            try:
                yield _read(name, folder.number, f"{folder.path}/{name}")
            except FileNotFoundError:
                continue
            except OSError as error:
                yield CommandError(
                    f"can't read {folder.path}/{name}: {error.strerror}", exits.NO_INPUT
                )
            except CommandError as error:
                yield error


def remove_credential(access_id: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Remove what is kept of a grant that has ended; return whether there was anything."""
    named = environ.get(CREDENTIAL_VARIABLE)
    if named:
        with contextlib.suppress(CommandError):
            stored = read_credential_file(named)
            if stored.id == access_id:
                stored.remove()
                return True
    try:
        with contextlib.closing(_open_credentials(environ, make=False)) as folder:
            os.unlink(f"{parse_access_id(access_id)}.json", dir_fd=folder.number)
    except (_NothingKeptError, CommandError, OSError):
        return False
    return True


class CredentialDestination:
    """The file that a credential will be kept in, made before the credential is asked for.

    Use it as a context manager around the activation, which must not hand out a credential that
    can't be kept: its space is taken beforehand, and a failure leaves nothing behind.

    Args:
        access_id: The grant's.
        path: A file of the user's choice, which must not exist yet; ``None`` for the runtime
            directory.
    """

    def __init__(self, access_id: str, path: str | None) -> None:
        self._given = path
        self._name = f"{access_id}.json" if path is None else os.path.basename(path)  # noqa: PTH119
        self._folder = -1
        self._file: NewFile | None = None
        self.path = ""

    def __enter__(self) -> Self:
        try:
            if self._given is None:
                folder = _open_credentials(os.environ, make=True)
                self._folder, parent = folder.number, folder.path
            else:
                parent = os.path.realpath(os.path.dirname(self._given) or ".")  # noqa: PTH120
                self._folder = os.open(parent, _OPEN_FOLDER)
                self._refuse_existing()
            self.path = f"{parent}/{self._name}"
            sweep_folder(self._folder)
            self._file = NewFile(self._folder)
            _take_space(self._file.descriptor)
        except OSError as error:
            self._discard()
            raise CommandError(
                f"can't keep a credential in {self._given or self.path or VARIABLE}: "
                f"{error.strerror}; nothing was activated",
                exits.CANT_CREATE,
                "make room there, or name another file: --credential-file FILE",
            ) from None
        except BaseException:
            self._discard()
            raise
        return self

    def save(self, data: bytes) -> None:
        """Keep ``data``, durable and under its name.

        Raises:
            OSError: It could not be kept.
        """
        assert self._file is not None  # noqa: S101
        os.pwrite(self._file.descriptor, data, 0)
        os.ftruncate(self._file.descriptor, len(data))
        if self._given is None:
            self._file.replace(self._name)
        else:
            self._file.add(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _refuse_existing(self) -> None:
        if not self._name or self._name in {".", ".."}:
            raise CommandError(f"{self._given} names no file", exits.CANT_CREATE)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(self._name, dir_fd=self._folder)
            raise CommandError(
                f"{self._given} exists already; nothing was activated",
                exits.CANT_CREATE,
                "name a new file, or remove this one first",
            )

    def _discard(self) -> None:
        if self._file is not None:
            self._file.discard()
            self._file = None
        _close(self._folder)
        self._folder = -1


@dataclass(frozen=True, slots=True)
class _Folder:
    number: int
    path: str

    def close(self) -> None:
        os.close(self.number)


class _NothingKeptError(Exception):
    """Nothing was ever kept in this login."""


def _open_credentials(environ: Mapping[str, str], *, make: bool) -> _Folder:
    """Return the checked directory of credentials.

    Raises:
        _NothingKeptError: There is none, and none was to be made.
        CommandError: It can't be used: somebody else might read or replace what is in it.
    """
    path = environ.get(VARIABLE, "")
    if not make and not _holds_ours(path):
        raise _NothingKeptError
    if not path:
        raise CommandError(
            f"there is no place to keep the credential: {VARIABLE} is not set; "
            "nothing was activated",
            exits.USAGE,
            f"say where: --credential-file FILE, or {CREDENTIAL_VARIABLE}=FILE",
        )
    if not os.path.isabs(path):  # noqa: PTH117
        raise CommandError(f"{VARIABLE} is not an absolute path", exits.CONFIG)
    found = -1
    try:
        found = os.open(path, _OPEN_FOLDER)
        _require_own(os.fstat(found), path)
        for name in _FOLDERS:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=found)
            inner = os.open(name, _OPEN_FOLDER, dir_fd=found)
            os.close(found)
            found, path = inner, f"{path}/{name}"
            _require_own(os.fstat(found), path)
    except FileNotFoundError:
        _close(found)
        if not make:
            raise _NothingKeptError from None
        raise CommandError(
            f"{VARIABLE} names a directory that is not there: {path}", exits.CANT_CREATE
        ) from None
    except OSError as error:
        _close(found)
        raise CommandError(
            f"credentials can't be kept below {path}: {error.strerror}", exits.NOT_PERMITTED
        ) from None
    except CommandError:
        _close(found)
        raise
    return _Folder(found, path)


def _holds_ours(path: str) -> bool:
    """Whether there may be something of ours in a runtime directory.

    Every decrypt asks: a runtime directory that is unsafe, or somebody else's after su, is nothing
    to complain about while nothing is kept there.
    """
    try:
        os.lstat(os.path.join(path, _FOLDERS[0]))  # noqa: PTH118
    except (OSError, ValueError):
        return False
    return os.path.isabs(path)  # noqa: PTH117


def _take_space(file: int) -> None:
    if os.write(file, bytes(_SPACE_BYTES)) < _SPACE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file)


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _require_own(status: os.stat_result, path: str) -> None:
    if status.st_uid != os.geteuid():
        raise CommandError(
            f"{path} belongs to uid {status.st_uid}, not to you",
            exits.NOT_PERMITTED,
            "log in as yourself, or name your own file: --credential-file FILE",
        )
    if stat.S_IMODE(status.st_mode) & _FOR_OTHERS:
        kind = "700" if stat.S_ISDIR(status.st_mode) else "600"
        raise CommandError(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})",
            exits.NOT_PERMITTED,
            f"close it, if nobody can have used it: chmod {kind} {path}",
        )


def _read(name: str, folder: int | None, path: str) -> StoredCredential:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CommandError(f"{path} is no regular file", exits.DATA)
        _require_own(status, path)
        data = file.read(_MAX_BYTES + 1)
    try:
        return _parse(json.loads(data[:_MAX_BYTES]), path)
    except (InvalidArgument, KeyError, TypeError, ValueError, RecursionError):
        raise CommandError(
            f"{path} holds no credential",
            exits.DATA,
            "give the file that keyside access activate has written",
        ) from None


def _parse(facts: dict[str, Any], path: str) -> StoredCredential:
    socket = facts["socket"]
    expires_at = datetime.fromisoformat(facts["expires_at"])
    operations = frozenset(facts["operations"])
    if not isinstance(socket, str) or expires_at.tzinfo is None:
        raise TypeError
    return StoredCredential(
        parse_access_id(facts["id"]),
        parse_key_name(facts["key"]),
        Credential(facts["credential"]),
        expires_at,
        socket,
        operations,
        path,
    )
