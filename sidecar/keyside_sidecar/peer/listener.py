"""The public socket: bound safely, never stolen, stale ones recovered.

The order matters. The directory is made and checked first. A lock file beside the socket, held
for the sidecar's life, keeps two sidecars from taking the same path; a socket file that nobody
answers on is then stale for certain and is removed, and one that somebody answers on belongs to a
program that does not use the lock and is left alone. ``bind`` makes the file with its final mode
(through the umask), and nobody can connect before ``listen``.

While it serves, the file may be removed, renamed or replaced: the socket listens on, and nobody can
reach it. ``bind_again`` makes another one with the same care.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Final

from keyside_sidecar.errors import StartupError

_BACKLOG: Final = 1024
# Mode 0666: identity decides who is served, and a refusal has a reason.
_SOCKET_UMASK: Final = 0o111


class Listener:
    """The sidecar's listening socket and, where it made one, the lock on its path.

    Args:
        listening: The socket.
        path: Its path, as clients connect to it.
        lock_fd: The lock's descriptor; None where the service manager made the socket.
        owners: As for ``listen``.
    """

    def __init__(
        self,
        listening: socket.socket,
        path: str,
        lock_fd: int | None,
        owners: frozenset[int] = frozenset(),
    ) -> None:
        self.socket = listening
        self.path = path
        self._lock_fd = lock_fd
        self._owners = owners
        self._file_id = find_file_id(path)
        listening.setblocking(False)

    def fileno(self) -> int:
        """Return the listening socket's descriptor; -1 once it is closed."""
        return self.socket.fileno()

    def close(self) -> None:
        """Stop listening; remove the socket file if it is ours and still the one we made."""
        if self._lock_fd is not None and self.is_in_place():
            with contextlib.suppress(FileNotFoundError):
                Path(self.path).unlink()
        self.socket.close()

    def is_in_place(self) -> bool:
        """Return whether whoever connects to the path reaches this socket."""
        return find_file_id(self.path) == self._file_id

    def bind_again(self) -> socket.socket:
        """Put another socket in the place of one that can't be reached any more.

        Returns:
            The former one. Connections may wait there: accept them, and close it.

        Raises:
            StartupError: Something else is in its place, the directory is not safe, another sidecar
                serves there by now, or the service manager made the socket. It listens on.
        """
        if self._lock_fd is None:
            raise StartupError(
                "the service manager made the socket, and only it can make it again",
                remedy="restart both of its units: systemctl restart keyside.socket "
                "keyside.service",
            )
        path = Path(self.path)
        _prepare_directory(path.parent, self._owners)
        self.keep_lock()
        listening = _bind(path)
        former, self.socket = self.socket, listening
        self._file_id = find_file_id(self.path)
        listening.setblocking(False)
        return former

    def keep_lock(self) -> None:
        """Take the lock on the path anew where its file is not the one that is locked.

        Raises:
            StartupError: Another sidecar has it by now.
        """
        if self._lock_fd is None:
            return
        status = os.fstat(self._lock_fd)
        path = Path(self.path)
        if find_file_id(str(_name_lock(path))) != (status.st_dev, status.st_ino):
            lock_fd = _take_lock(path)
            os.close(self._lock_fd)
            self._lock_fd = lock_fd

    def close_in_child(self) -> None:
        """Close the descriptors and leave the files, as a forked worker must."""
        self.socket.close()
        self.release()

    def release(self) -> None:
        """Let another sidecar have the path: when all workers have ended, not before."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def listen(path: Path, *, owners: frozenset[int]) -> Listener:
    """Bind and listen on ``path``.

    Args:
        path: Absolute; its directory is made (0755) if its own parent exists.
        owners: The uids, besides root's, that directories above the socket may belong to.

    Raises:
        StartupError: The directory is unsafe, or another program serves on the path.
    """
    _prepare_directory(path.parent, owners)
    lock_fd = _take_lock(path)
    try:
        listening = _bind(path)
    except BaseException:
        os.close(lock_fd)
        raise
    return Listener(listening, str(path), lock_fd, owners)


def _bind(path: Path) -> socket.socket:
    try:
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            previous = os.umask(_SOCKET_UMASK)
            try:
                listening.bind(str(path))
            finally:
                os.umask(previous)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise StartupError(
            f"can't listen on {path}: {error.strerror}",
            remedy="check that the account may write to the socket's directory",
        ) from error
    return listening


def adopt(inherited: socket.socket) -> Listener:
    """Use a listening socket that the service manager passed (systemd's socket activation).

    Raises:
        StartupError: The socket is not bound to a path.
    """
    name = inherited.getsockname()
    if not isinstance(name, str) or not name.startswith("/"):
        raise StartupError(
            "the socket passed by the service manager has no path",
            remedy="give ListenStream= an absolute path",
        )
    return Listener(inherited, name, None)


def _prepare_directory(directory: Path, owners: frozenset[int]) -> None:
    try:
        directory.mkdir(mode=0o755)
    except FileExistsError:
        if not directory.is_dir():
            raise StartupError(
                f"{directory}, where the socket is to be, is not a directory",
                remedy=f"move it away, and make {directory}, mode 0755, owned by root or the "
                "sidecar's account",
            ) from None
    except OSError as error:
        raise StartupError(
            f"can't make the socket's directory {directory}: {error.strerror}",
            remedy=f"make {directory}, owned by root or the sidecar's account, mode 0755",
        ) from error
    else:
        directory.chmod(0o755)
    require_safe_path(directory, owners)


def require_safe_path(directory: Path, owners: frozenset[int]) -> None:
    """Check that nobody but root and ``owners`` can replace what lies in ``directory``.

    Raises:
        StartupError: Somebody else owns it or a directory above it, or can write there.
    """
    resolved = directory.resolve()
    # As it is spelt, for symbolic links on the way, and where it leads.
    for place in dict.fromkeys((resolved, *resolved.parents, directory, *directory.parents)):
        facts = place.lstat()
        if stat.S_ISLNK(facts.st_mode):
            facts = os.stat_result((stat.S_IFLNK | 0o755, *facts[1:]))  # a link has no mode
        if facts.st_uid not in owners | {0}:
            raise StartupError(
                f"{place}, above the socket, belongs to uid {facts.st_uid}",
                remedy="put the socket in a directory that only root or the sidecar owns",
            )
        # In a sticky directory above, others can't rename what isn't theirs. In the socket's own
        # they could still take the name while no sidecar runs.
        sticky = facts.st_mode & stat.S_ISVTX and place not in {resolved, directory}
        if facts.st_mode & 0o022 and not sticky:
            raise StartupError(
                f"{place}, above the socket, can be written by others",
                remedy=f"chmod go-w {place}",
            )


def _name_lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _take_lock(path: Path) -> int:
    try:
        lock_fd = os.open(
            _name_lock(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise StartupError(
            f"can't lock {path}: {error.strerror}",
            remedy="check that the account may write to the socket's directory",
        ) from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        raise StartupError(
            f"another sidecar serves on {path}",
            remedy="stop it first, or configure another socket",
            exit_code=69,
        ) from None
    return lock_fd


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartupError(
            f"{path} exists and is not a socket", remedy="remove it, or configure another socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # one with a full backlog says EAGAIN, and is alive
        outcome = probe.connect_ex(str(path))
    if outcome == errno.ECONNREFUSED:
        path.unlink()
        return
    raise StartupError(
        f"another program serves on {path}",
        remedy="stop it first, or configure another socket",
        exit_code=69,
    )


def find_file_id(path: str) -> tuple[int, int] | None:
    """Return what tells the file at a path from any other; None where there is none."""
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
