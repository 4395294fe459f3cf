"""The public socket: safe before it can be connected to, never stolen, stale ones recovered."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.errors import StartupError
from keyside_sidecar.peer.listener import adopt, listen

if TYPE_CHECKING:
    from pathlib import Path

OWNERS = frozenset({os.geteuid()})


def test_anybody_may_connect_and_nobody_may_replace_the_socket(tmp_path: Path) -> None:
    """Mode 0666 in a 0755 directory that is made when missing."""
    listener = listen(tmp_path / "run" / "keyside.sock", owners=OWNERS)
    path = tmp_path / "run" / "keyside.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()


def test_a_stale_socket_is_recovered(tmp_path: Path) -> None:
    """What a killed sidecar left behind does not block the next start."""
    path = tmp_path / "keyside.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = listen(path, owners=OWNERS)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_a_live_socket_is_not_stolen_from_another_program(tmp_path: Path) -> None:
    """One that somebody answers on is left as it was."""
    path = tmp_path / "keyside.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        before = path.stat().st_ino
        with pytest.raises(StartupError, match="another program serves") as refused:
            listen(path, owners=OWNERS)
        assert refused.value.exit_code == 69
        assert path.stat().st_ino == before


def test_two_sidecars_can_not_take_one_path(tmp_path: Path) -> None:
    """The lock decides, even in the moment in which the first does not listen yet."""
    first = listen(tmp_path / "keyside.sock", owners=OWNERS)
    with pytest.raises(StartupError, match="another sidecar"):
        listen(tmp_path / "keyside.sock", owners=OWNERS)
    first.close()
    with pytest.raises(StartupError, match="another sidecar"):
        listen(tmp_path / "keyside.sock", owners=OWNERS)  # the first still has calls to finish
    first.release()
    second = listen(tmp_path / "keyside.sock", owners=OWNERS)
    second.close()
    second.release()


def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    """Somebody's file at the configured path is not removed."""
    path = tmp_path / "keyside.sock"
    path.write_text("mine")
    with pytest.raises(StartupError, match="not a socket"):
        listen(path, owners=OWNERS)
    assert path.read_text() == "mine"


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Whoever can write the directory could put his own socket there."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(StartupError, match="can be written by others"):
        listen(directory / "keyside.sock", owners=OWNERS)
    directory.chmod(0o1777)
    with pytest.raises(StartupError, match="can be written by others"):
        listen(directory / "keyside.sock", owners=OWNERS)  # the name could be taken meanwhile
    below = directory / "own"
    below.mkdir(mode=0o755)
    listener = listen(below / "keyside.sock", owners=OWNERS)
    listener.close()
    listener.release()


@pytest.mark.root
def test_a_link_that_somebody_else_owns_is_refused(tmp_path: Path) -> None:
    """Whoever owns a link on the way can make it lead elsewhere."""
    (tmp_path / "real").mkdir(mode=0o755)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    os.lchown(link, 64399, 64399)
    with pytest.raises(StartupError, match="belongs to uid 64399"):
        listen(link / "keyside.sock", owners=OWNERS)


def test_the_socket_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    """Closing removes the file only if it is still the one that was made."""
    path = tmp_path / "keyside.sock"
    listener = listen(path, owners=OWNERS)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        listener.close()
        assert path.exists()


def test_a_socket_from_the_service_manager_is_used_and_left_in_place(tmp_path: Path) -> None:
    """Socket activation: the file belongs to the service manager."""
    path = tmp_path / "activated.sock"
    given = socket.socket(socket.AF_UNIX)
    given.bind(str(path))
    given.listen()
    listener = adopt(given)
    assert listener.path == str(path)
    listener.close()
    assert path.exists()
    with socket.socket(socket.AF_UNIX) as nameless, pytest.raises(StartupError, match="no path"):
        adopt(nameless)
