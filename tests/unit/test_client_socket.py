"""Which socket a client trusts; nothing is sent to any other."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest
from tests.unit.sidecar_double import Double

import keyside
from keyside import errors
from keyside.address import DEFAULT_SOCKET, choose_socket, grpc_target
from keyside.socket_check import ExpectedOwner, check_socket, is_unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STRANGER_UID = 4_242
ANYONE = ExpectedOwner()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files to others")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "d"
    folder.mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "k.sock"))
        yield folder / "k.sock"


def test_a_socket_of_ones_own_under_sticky_tmp_is_trusted(path: Path) -> None:
    trusted = check_socket(str(path), ANYONE)
    assert trusted.path == str(path)
    assert is_unchanged(trusted)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o722])
def test_a_directory_writable_by_others_is_not(path: Path, mode: int) -> None:
    path.parent.chmod(mode)
    with pytest.raises(errors.UntrustedSocket, match="writable by others") as caught:
        check_socket(str(path), ANYONE)
    assert f"chmod go-w {path.parent}" in caught.value.remedy


def test_a_sticky_directory_is_trusted(path: Path) -> None:
    path.parent.chmod(0o1777)
    check_socket(str(path), ANYONE)


def test_a_directory_further_up_counts_too(path: Path) -> None:
    path.parent.parent.chmod(0o777)
    with pytest.raises(errors.UntrustedSocket, match="writable by others"):
        check_socket(str(path), ANYONE)


def test_the_directories_behind_a_symbolic_link_count(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path.parent)
    assert check_socket(f"{link}/k.sock", ANYONE).path == str(path)
    relative = path.parent / "other.sock"
    relative.symlink_to("../d/./k.sock")
    assert check_socket(str(relative), ANYONE).path == str(path)
    path.parent.chmod(0o777)
    with pytest.raises(errors.UntrustedSocket, match=str(path.parent)):
        check_socket(f"{link}/k.sock", ANYONE)


def test_a_loop_of_symbolic_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(errors.UntrustedSocket, match="too many symbolic links"):
        check_socket(str(tmp_path / "a"), ANYONE)


def test_what_is_no_socket_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.UntrustedSocket, match="is not a socket"):
        check_socket(str(tmp_path / "file"), ANYONE)


@needs_root
@pytest.mark.root
def test_another_accounts_socket_is_trusted_only_if_expected(path: Path) -> None:
    os.chown(path, STRANGER_UID, -1)
    with pytest.raises(errors.UntrustedSocket, match=f"belongs to uid {STRANGER_UID}"):
        check_socket(str(path), ANYONE)
    check_socket(str(path), ExpectedOwner(STRANGER_UID))
    os.chown(path.parent, STRANGER_UID, -1)
    check_socket(str(path), ExpectedOwner(STRANGER_UID))


@needs_root
@pytest.mark.root
def test_another_accounts_directory_or_link_is_not_trusted(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path.parent)
    os.lchown(link, STRANGER_UID, -1)
    with pytest.raises(errors.UntrustedSocket, match="symbolic link"):
        check_socket(f"{link}/k.sock", ANYONE)
    os.chown(path.parent, STRANGER_UID, -1)
    with pytest.raises(errors.UntrustedSocket, match="the directory"):
        check_socket(str(path), ANYONE)


@needs_root
@pytest.mark.root
def test_an_expected_owner_is_accepted_beside_root_alone(path: Path) -> None:
    check_socket(str(path), ExpectedOwner(STRANGER_UID))
    check_socket(str(path), ExpectedOwner("root"))
    os.chown(path, STRANGER_UID + 1, -1)
    with pytest.raises(errors.UntrustedSocket, match="not to uid 0 or 4242"):
        check_socket(str(path), ExpectedOwner(STRANGER_UID))


def test_an_expected_owner_without_an_account_is_refused(path: Path) -> None:
    with pytest.raises(errors.UntrustedSocket, match="no account on this host"):
        check_socket(str(path), ExpectedOwner("no-such-account-here"))


def test_the_environment_may_name_the_expected_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYSIDE_EXPECTED_OWNER", str(STRANGER_UID))
    assert ExpectedOwner().uids() == {0, STRANGER_UID}
    assert ExpectedOwner(7).uids() == {0, 7}
    monkeypatch.setenv("KEYSIDE_EXPECTED_OWNER", "")
    assert {0, os.geteuid()} <= ExpectedOwner().uids()


@needs_root
@pytest.mark.root
def test_no_permission_is_said_to_be_that(path: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as open_to_all,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        visible = f"{open_to_all}/k.sock"
        listener.bind(visible)
        os.chmod(open_to_all, 0o755)  # noqa: PTH101
        os.chmod(visible, 0o600)  # noqa: PTH101
        path.parent.chmod(0o700)
        for place in (visible, str(path)):
            assert reason_as_stranger(place) == "SOCKET_PERMISSION_DENIED"


def reason_as_stranger(place: str) -> str:
    """Look at a socket from a process of another account."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresuid(STRANGER_UID, STRANGER_UID, STRANGER_UID)
        try:
            check_socket(place, ANYONE)
            os.write(writer, b"no error")
        except BaseException as error:  # noqa: BLE001
            os.write(writer, getattr(error, "reason", repr(error)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        answer = told.read()
    os.waitpid(pid, 0)
    return answer


def test_nothing_is_sent_to_an_untrusted_socket(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    with Double(folder / "k.sock") as double, keyside.Client(double.socket) as client:
        assert client.status().is_serving
        folder.chmod(0o777)
        double.stop()
        double.start()
        with pytest.raises(errors.UntrustedSocket):
            client.encrypt("mail", b"x")
        assert double.calls == ["GetStatus"]
        folder.chmod(0o755)
        assert client.encrypt("mail", b"x")


def test_a_replaced_socket_file_is_looked_at_again_before_the_next_call(tmp_path: Path) -> None:
    with Double(tmp_path / "k.sock") as double, keyside.Client(double.socket) as client:
        assert client.status().is_serving
        os.unlink(double.socket)  # noqa: PTH108
        with open(double.socket, "w"):  # noqa: PTH123
            pass
        with pytest.raises(errors.UntrustedSocket, match="is not a socket"):
            client.status()


def test_a_socket_path_with_characters_that_uris_reserve_works(tmp_path: Path) -> None:
    folder = tmp_path / "a%41 b?#ü"
    folder.mkdir(mode=0o755)
    with Double(tmp_path / "k.sock") as double:
        (folder / "k.sock").hardlink_to(double.socket)
        with keyside.Client(folder / "k.sock") as client:
            assert client.status().is_serving
        (folder / "k.sock").unlink()


@pytest.mark.parametrize(
    "spell", [str, "unix:{}".format, "unix://{}".format], ids=["path", "unix:", "unix://"]
)
def test_the_socket_may_be_spelt_three_ways(spell: Callable[[str], str]) -> None:
    assert choose_socket(spell("/x/k.sock")) == "/x/k.sock"


def test_the_environment_names_the_socket_where_nobody_else_does() -> None:
    assert choose_socket(None, {"KEYSIDE_SOCKET": "unix:/e"}) == "/e"
    assert choose_socket("/a", {"KEYSIDE_SOCKET": "/e"}) == "/a"
    assert choose_socket(None, {"KEYSIDE_SOCKET": ""}) == DEFAULT_SOCKET
    assert grpc_target("/a b") == "unix:/a%20b"


def test_a_relative_path_starts_at_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_socket("unix:k.sock") == f"{tmp_path}/k.sock"


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "unix://relative/k", "unix-abstract:x", "@x", "tcp://h:1", "a\0b", "/" * 108],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        keyside.Client(text)
    assert caught.value.reason == "INVALID_SOCKET"


def test_a_socket_that_goes_while_it_is_looked_at_is_missing_and_not_forbidden(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that restarts removes and makes it; the client must come back by itself."""
    may_write = os.access

    def vanish(*arguments: object, **settings: bool) -> bool:
        path.unlink()
        return may_write(*arguments, **settings)  # type: ignore[arg-type]

    def be_replaced(*arguments: object, **settings: bool) -> bool:
        answer = vanish(*arguments, **settings)
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
        return answer

    for happening in (be_replaced, vanish):
        monkeypatch.setattr(os, "access", happening)
        with pytest.raises(errors.Unavailable) as caught:
            check_socket(str(path), ANYONE)
        assert caught.value.reason == "SOCKET_MISSING"
