"""A server that is reached over TCP: its certificate, and the role's password (I7)."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from support.certificates import Authority
from support.postgresql import DAEMON, PASSWORDS, Server, running_server
from tests.unit.made_store import MadeOnServer, make_store_on

from keyside_sidecar.errors import StartupError, StoreUnavailable
from keyside_sidecar.store import Store
from keyside_sidecar.store.database import open_database
from keyside_sidecar.store.privileges import inspect_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = PASSWORDS[DAEMON]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("a test's authority")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Server]:
    """A server whose certificate says ``localhost``."""
    with running_server(certificate=authority.issue("localhost")) as server:
        yield server


@pytest.fixture(scope="module")
def made(server: Server, tmp_path_factory: pytest.TempPathFactory) -> MadeOnServer:
    directory = tmp_path_factory.mktemp("tls")
    return make_store_on(server, directory)


@pytest.fixture
def ca(authority: Authority, tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.pem)
    return file


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:keyside:" + PASSWORD.replace("\\", "\\\\").replace(":", "\\:") + "\n")
    file.chmod(0o600)
    return file


def url(made: MadeOnServer, options: str, host: str = "localhost", password: str = "") -> str:
    secret = f":{quote(password, safe='')}" if password else ""
    place = f"{host}:{made.database.server.port}/{made.database.name}"
    return f"postgresql+psycopg://{DAEMON}{secret}@{place}?{options}"


def read(made: MadeOnServer, url: str) -> None:
    store = Store.open(url, made.custodian)
    store.read_meta()
    store.close()


def test_a_server_that_proves_its_name_is_used(
    made: MadeOnServer, ca: Path, passfile: Path
) -> None:
    """A password from a passfile, and one in the URL with every character that URLs mind."""
    options = f"sslmode=verify-full&sslrootcert={ca}"
    read(made, url(made, f"{options}&passfile={passfile}"))
    read(made, url(made, options, password=PASSWORD))
    report = inspect_server(url(made, options, password=PASSWORD))
    assert report is not None
    assert report.tls is not None
    assert report.tls.startswith("TLSv1.3, ")
    assert not report.over_socket


def test_a_change_is_heard_of_over_tls(made: MadeOnServer, ca: Path) -> None:
    options = f"sslmode=verify-full&sslrootcert={ca}"
    database = open_database(url(made, options, password=PASSWORD), frozenset(), 5.0)
    database.wait_for_change(0)
    thread = threading.Thread(target=database.wait_for_change, args=(20,))
    thread.start()
    made.run("NOTIFY keyside")
    thread.join(5)
    assert not thread.is_alive()
    database.close()


def test_a_server_of_another_authority_is_refused(made: MadeOnServer, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority("another").pem)
    for mode in ("verify-ca", "verify-full"):
        options = f"sslmode={mode}&sslrootcert={other}"
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            read(made, url(made, options, password=PASSWORD))


def test_a_server_with_another_name_is_refused(made: MadeOnServer, ca: Path) -> None:
    """The certificate is of the right authority, and says localhost."""
    options = f"sslmode=verify-full&sslrootcert={ca}"
    with pytest.raises(StoreUnavailable, match='"localhost"'):
        read(made, url(made, options, host="127.0.0.1", password=PASSWORD))
    weaker = f"sslmode=verify-ca&sslrootcert={ca}"
    read(made, url(made, weaker, host="127.0.0.1", password=PASSWORD))


def test_a_server_that_wants_tls_is_not_used_without(made: MadeOnServer) -> None:
    with pytest.raises(StoreUnavailable, match="no encryption"):
        read(made, url(made, "sslmode=disable", password=PASSWORD))


def test_a_wrong_password_is_unavailable_and_is_not_shown(made: MadeOnServer, ca: Path) -> None:
    """I7: nothing repeats a URL, whose password may be almost right."""
    wrong = "hunter2-almost-right"
    address = url(made, f"sslmode=verify-full&sslrootcert={ca}", password=wrong)
    with pytest.raises(StoreUnavailable, match="password authentication failed") as caught:
        read(made, address)
    database = open_database(address, frozenset(), 1.0)
    for shown in (str(caught.value), repr(caught.value), repr(vars(caught.value)), repr(database)):
        assert wrong not in shown
    database.close()


def test_a_server_that_asks_for_the_password_itself_is_not_told_it(made: MadeOnServer) -> None:
    """Whoever takes the port while the server is away: without a certificate it is anybody."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def impersonate() -> None:
            # Once more for whoever asks again after TLS was refused.
            for _ in range(2):
                try:
                    connection, _ = listener.accept()
                except OSError:  # nobody did
                    return
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(2)
                    asked = connection.recv(1024)
                    if asked[4:8] == bytes.fromhex("04d2162f"):  # SSLRequest
                        connection.sendall(b"N")
                        asked = connection.recv(1024)
                    heard.append(asked)
                    connection.sendall(b"R\x00\x00\x00\x08\x00\x00\x00\x03")  # in clear text
                    heard.append(connection.recv(1024))

        thread = threading.Thread(target=impersonate, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        secret = quote(PASSWORD, safe="")
        address = f"postgresql+psycopg://{DAEMON}:{secret}@127.0.0.1:{port}/{made.database.name}"
        with pytest.raises(StoreUnavailable, match="authentication method requirement"):
            read(made, address)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert heard
    assert PASSWORD.encode() not in b"".join(heard)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_passfile_that_others_can_reach_is_refused(
    made: MadeOnServer, ca: Path, passfile: Path, mode: int
) -> None:
    passfile.chmod(mode)
    options = f"sslmode=verify-full&sslrootcert={ca}&passfile={passfile}"
    with pytest.raises(StartupError, match=f"mode {mode:04o}") as caught:
        read(made, url(made, options))
    assert "chmod 0600" in caught.value.remedy


def test_a_passfile_that_is_missing_is_refused(made: MadeOnServer, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"passfile .* can't be used"):
        read(made, url(made, f"passfile={tmp_path}/none"))
    with pytest.raises(StartupError, match="not a regular file"):
        read(made, url(made, f"passfile={tmp_path}"))


def test_the_environment_does_not_weaken_it(
    made: MadeOnServer, ca: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What libpq would take from variables is said by the URL, or by Keyside."""
    other = tmp_path / "other.pem"
    other.write_bytes(Authority("another").pem)
    monkeypatch.setitem(os.environ, "PGSSLMODE", "disable")
    monkeypatch.setitem(os.environ, "PGSSLROOTCERT", str(other))
    monkeypatch.setitem(os.environ, "PGOPTIONS", "-c search_path=elsewhere")
    read(made, url(made, f"sslmode=verify-full&sslrootcert={ca}", password=PASSWORD))
