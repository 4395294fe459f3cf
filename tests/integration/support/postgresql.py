"""A real PostgreSQL server for tests, from the distribution's package, in a directory of its own.

Run by root it runs as the package's account, which the server insists on. Nothing that is installed
or running on the machine is used or changed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ACCOUNT = "postgres"
SUPERUSER = "postgres"
OWNER = "keyside_owner"
DAEMON = "keyside"
# For TCP; over the Unix socket everybody is who he says.
PASSWORDS = {SUPERUSER: secrets.token_hex(16), OWNER: secrets.token_hex(16), DAEMON: "p@ss/w:rd?%"}
GRANTS = Path(__file__).resolve().parents[3] / "deploy" / "postgresql" / "grants.sql"
START_TIMEOUT_S = 30.0
_HBA = """\
local   all all              trust
hostssl all all 127.0.0.1/32 scram-sha-256
"""
_SETTINGS = {
    "listen_addresses": "''",
    "shared_buffers": "16MB",
    "max_connections": "150",
    "logging_collector": "off",
    "log_timezone": "UTC",
    "autovacuum_naptime": "300s",
    "lc_messages": "C",
}
_CARELESS = {"fsync": "off", "full_page_writes": "off"}


@dataclass
class Server:
    """One server with one data directory.

    Args:
        directory: Holds data, socket and log; others may enter it.
        settings: Further lines of postgresql.conf.
        keeps_data: Whether what was committed survives ``kill -9`` and a power cut; slower.
        port: Names the Unix socket, too.
    """

    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    keeps_data: bool = False
    port: int = 5432
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def socket_directory(self) -> Path:
        return self.directory / "socket"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def prepare(self) -> None:
        """Make the data directory and its configuration."""
        self.directory.chmod(0o755)
        for place, mode in ((self.data, 0o700), (self.socket_directory, 0o755)):
            place.mkdir(mode=mode, exist_ok=True)
            self.give(place)
        arguments = ["-D", str(self.data), "-U", SUPERUSER, "-E", "UTF8", "--locale=C.UTF-8"]
        self._run("initdb", *arguments, "--auth=trust", "--no-sync")
        settings = {
            **_SETTINGS,
            "port": str(self.port),
            "unix_socket_directories": f"'{self.socket_directory}'",
            **({} if self.keeps_data else _CARELESS),
            **self.settings,
        }
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        (self.data / "pg_hba.conf").write_text(_HBA)

    def give(self, place: Path) -> None:
        """Make the server's account the owner of a file."""
        if os.geteuid() == 0:
            account = pwd.getpwnam(ACCOUNT)
            os.chown(place, account.pw_uid, account.pw_gid)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        self.process = self._spawn()
        while True:
            assert time.monotonic() < deadline, self.log.read_text()
            if self.process.poll() is not None:
                # After a kill -9 the last of the old processes may not have ended yet.
                time.sleep(0.05)
                self.process = self._spawn()
            try:
                self.connect(connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.01)
            else:
                return

    def stop(self) -> None:
        """Stop the server as an administrator does; sessions are ended."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End the server and all its processes with SIGKILL, as a power cut does."""
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.wait(30)
        self.process = None

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop every process of the server: it keeps its connections, and answers nothing."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        """End the server, whatever state it is in."""
        if self.process is not None:
            self.thaw()
            self._end(signal.SIGQUIT)

    def connect(
        self, database: str = "postgres", user: str = SUPERUSER, **parameters: Any
    ) -> psycopg.Connection[Any]:
        """Connect over the Unix socket; every statement is its own transaction."""
        return psycopg.connect(
            host=str(self.socket_directory),
            port=self.port,
            dbname=database,
            user=user,
            autocommit=True,
            **parameters,
        )

    def prepare_roles(self) -> None:
        """Make the schema's owner and the daemon's role."""
        with self.connect() as connection:
            for role in (OWNER, DAEMON):
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(PASSWORDS[role])
                    )
                )

    def make_database(self, template: str = "template1") -> Database:
        """Make a database that belongs to the owner's role."""
        name = f"t{secrets.token_hex(6)}"
        with self.connect() as connection:
            # The quicker way where nothing is synced; before 15 it is the only one.
            strategy = "STRATEGY file_copy" if connection.info.server_version >= 150000 else ""
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} {}").format(
                    sql.Identifier(name),
                    sql.Identifier(OWNER),
                    sql.Identifier(template),
                    sql.SQL(strategy),
                )
            )
        return Database(self, name)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [_find_programs() / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **_account(),
            )

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [_find_programs() / program, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
            **_account(),
        )
        assert done.returncode == 0, done.stderr

    def _end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)
        self.process = None

    def _signal_all(self, number: int) -> None:
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


@dataclass(frozen=True)
class Database:
    """One database on a server."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """As the daemon."""
        return self.url_as(DAEMON)

    @property
    def owner_url(self) -> str:
        """As the schema's owner."""
        return self.url_as(OWNER)

    def url_as(self, role: str) -> str:
        """Return the URL of this database over the Unix socket."""
        server = self.server
        place = f"host={server.socket_directory}&port={server.port}"
        return f"postgresql+psycopg://{role}@/{self.name}?{place}"

    def connect(self, user: str = SUPERUSER) -> psycopg.Connection[Any]:
        """Connect, as a superuser unless told otherwise; no trigger and no foreign key counts."""
        connection = self.server.connect(self.name, user)
        if user == SUPERUSER:
            connection.execute("SET session_replication_role = replica")
        return connection

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement as a superuser; ``%s`` stands for a value."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def grant(self) -> None:
        """Do as docs/operations.md says after ``init`` and ``migrate``."""
        with self.server.connect(self.name, OWNER) as connection:
            connection.execute(GRANTS.read_bytes())

    def drop(self) -> None:
        """Remove the database, whoever is connected to it."""
        with self.server.connect() as connection:
            statement = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            connection.execute(statement.format(sql.Identifier(self.name)))


def require_postgresql() -> None:
    """Skip the test where no server can be run; where CI runs, that fails the run."""
    if not _find_programs().is_dir():
        pytest.skip("needs PostgreSQL's server programs (Debian: apt-get install postgresql)")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(ACCOUNT)
        except KeyError:
            pytest.skip(f"needs the account {ACCOUNT}: root can't run PostgreSQL")


@contextlib.contextmanager
def running_server(*, keeps_data: bool = False, certificate: bytes = b"") -> Iterator[Server]:
    """Run a server for as long as the block takes.

    Args:
        keeps_data: As for :class:`Server`.
        certificate: With a PEM file's key and certificate, the server listens on 127.0.0.1, too,
            and takes passwords there, over TLS only.
    """
    require_postgresql()
    directory = Path(tempfile.mkdtemp(prefix="keyside-pg-"))
    settings = {}
    port = 5432
    if certificate:
        port = find_free_port()
        file = f"'{directory}/tls.pem'"
        settings = {"ssl": "on", "ssl_cert_file": file, "ssl_key_file": file}
        settings["listen_addresses"] = "'127.0.0.1'"
    server = Server(directory, settings, keeps_data=keeps_data, port=port)
    try:
        server.prepare()
        if certificate:
            place = directory / "tls.pem"
            place.touch(0o600)
            place.write_bytes(certificate)
            server.give(place)
        server.start()
        server.prepare_roles()
        yield server
    finally:
        server.remove()
        shutil.rmtree(directory, ignore_errors=True)


def find_free_port() -> int:
    """Return a TCP port of this host that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _find_programs() -> Path:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    places = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(places, key=lambda place: int(place.parts[-3]), default=Path("/nowhere/postgres"))
    return newest.parent


def _account() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(ACCOUNT)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
