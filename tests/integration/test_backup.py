"""``keysided backup`` and ``keysided restore`` on a sidecar that serves."""

from __future__ import annotations

import os
import pty
import sqlite3
import stat
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.on_server import OnServer
from support.remote import Remote, RemoteError
from support.sidecar import (
    OPERATOR_UID,
    PYTHON,
    SERVICE_UID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)
from support.waiting import eventually

from keyside.envelope import parse_wrapping_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgresql import Server

pytestmark = pytest.mark.root

KEY = "mail-credentials"
SEAL = f"answer = client.encrypt({KEY!r}, b'content').hex()"
OPEN = "answer = [client.decrypt(bytes.fromhex(e)).decode() for e in envelopes]"
ROTATE = f"client.rotate_key({KEY!r})"


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(settings="workers = 2") as started:
        yield started


@pytest.fixture
def private(sidecar: Sidecar) -> Path:
    """A directory that the sidecar's account can't enter."""
    directory = sidecar.directory / "private"
    directory.mkdir(mode=0o700)
    return directory


def await_version(service: Remote, number: int) -> None:
    """Wait until what is sealed is sealed under a version."""
    eventually(
        lambda: parse_wrapping_header(bytes.fromhex(service.run(SEAL))).version_number,
        lambda current: current == number,
    )


def move_away(sidecar: Sidecar) -> None:
    for path in list(sidecar.store.parent.glob("keyside.db*")):
        path.rename(sidecar.directory / f"former-{path.name}")


def test_a_store_backed_up_under_load_opens_every_envelope_once_restored(
    sidecar: Sidecar, private: Path
) -> None:
    envelopes = []
    with Remote(sidecar, SERVICE_UID) as service, Remote(sidecar, OPERATOR_UID) as operator:
        for number in range(3):
            envelopes.append(service.run(SEAL))
            done = sidecar.keysided("backup", str(private / f"{number}.backup"))
            assert done.returncode == 0, done.stderr
            operator.run(ROTATE)
        await_version(service, 4)
        late = service.run(SEAL)
    newest = private / "2.backup"
    status = newest.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    assert sorted(path.name for path in private.iterdir()) == [f"{n}.backup" for n in range(3)]
    assert "4 versions of 2 keys" in done.stdout
    assert "root key" in done.stdout
    assert sidecar.stop() == 0
    move_away(sidecar)
    done = sidecar.keysided("restore", str(newest))
    assert done.returncode == 0, done.stderr
    assert "Whatever was made or changed since then is gone" in done.stdout
    status = sidecar.store.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (SIDECAR_UID, 0o600)
    sidecar.start(arguments=["--accept-rollback"])
    with Remote(sidecar, SERVICE_UID) as service:
        assert service.run(OPEN, envelopes=envelopes) == ["content"] * 3
        with pytest.raises(RemoteError) as caught:
            service.run(OPEN, envelopes=[late])
        assert caught.value.kind == "EnvelopeRejected"
        assert service.run(OPEN, envelopes=[service.run(SEAL)]) == ["content"]


def test_a_sidecar_that_runs_refuses_a_store_that_was_restored(
    sidecar: Sidecar, private: Path
) -> None:
    """And goes on serving from memory; once started again it takes what is there."""
    backup = str(private / "backup")
    assert sidecar.keysided("backup", backup).returncode == 0
    with Remote(sidecar, SERVICE_UID) as service, Remote(sidecar, OPERATOR_UID) as operator:
        operator.run(ROTATE)
        await_version(service, 2)
        move_away(sidecar)
        assert sidecar.keysided("restore", backup).returncode == 0
        problems = "answer = [p.reason for p in client.status().problems]"
        eventually(lambda: service.run(problems), lambda found: "STORE_TAMPERED" in found)
        assert service.run(OPEN, envelopes=[service.run(SEAL)]) == ["content"]
    assert sidecar.stop() == 0
    sidecar.start(arguments=["--accept-rollback"])
    assert sidecar.keysided("check").returncode == 0


def tamper(sidecar: Sidecar) -> None:
    with closing(sqlite3.connect(sidecar.store)) as connection:
        connection.execute("UPDATE key_versions SET created_at = 1")
        connection.commit()


def test_nothing_is_overwritten_and_nothing_left_behind(sidecar: Sidecar, private: Path) -> None:
    target = private / "backup"
    target.write_text("mine")
    (private / "link").symlink_to(private / "elsewhere")
    for name in ("backup", "link"):
        done = sidecar.keysided("backup", str(private / name))
        assert (done.returncode, "not overwritten" in done.stderr) == (73, True)
    assert target.read_text() == "mine"
    target.unlink()
    assert sidecar.keysided("backup", str(target)).returncode == 0
    done = sidecar.keysided("restore", str(target))
    assert (done.returncode, "not overwritten" in done.stderr) == (73, True)
    assert sorted(path.name for path in private.iterdir()) == ["backup", "link"]
    # A store that was tampered with gives no file (I6).
    tamper(sidecar)
    done = sidecar.keysided("backup", str(private / "another"))
    assert (done.returncode, "there is no backup" in done.stderr) == (65, True)
    assert sorted(path.name for path in private.iterdir()) == ["backup", "link"]
    done = sidecar.keysided("backup", str(private / "no" / "backup"))
    assert (done.returncode, "No such file" in done.stderr) == (73, True)
    for name in ("nowhere", ""):
        done = sidecar.keysided("restore", str(private / name))
        assert (done.returncode, "can't be read" in done.stderr) == (66, True)


def test_standard_output_holds_a_backup_or_nothing(sidecar: Sidecar) -> None:
    command = [PYTHON, "-m", "keyside_sidecar", "--config", str(sidecar.config_path), "backup", "-"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stdout.startswith(b'{"keyside_backup":1')
    assert b"root key" in done.stderr
    ours, theirs = pty.openpty()
    terminal = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(ours)
    os.close(theirs)
    assert (terminal.returncode, b"terminal" in terminal.stderr) == (64, True)
    assert sidecar.stop() == 0
    move_away(sidecar)
    command[-2:] = ["restore", "-"]
    cut = subprocess.run(command, input=done.stdout[:-9], capture_output=True, check=False)
    assert (cut.returncode, b"cut short" in cut.stderr) == (65, True)
    assert not sidecar.store.exists()
    subprocess.run(command, input=done.stdout, capture_output=True, check=True, timeout=60)
    assert sidecar.keysided("check").returncode == 0


def test_a_store_on_a_server_is_backed_up_and_restored(postgresql_server: Server) -> None:
    with sidecar_directory() as directory:
        first, second = postgresql_server.make_database(), postgresql_server.make_database()
        sidecar = OnServer(directory, database=first)
        sidecar.prepare()
        backup = str(directory / "backup")
        try:
            sidecar.start()
            with Remote(sidecar, SERVICE_UID) as service:
                envelope = service.run(SEAL)
            assert sidecar.keysided("backup", backup).returncode == 0
            done = sidecar.keysided("restore", "--store-url", first.owner_url, backup)
            assert done.returncode == 73, "there is a store"
            assert sidecar.stop() == 0
            sidecar.database = second
            sidecar.write_config()
            done = sidecar.keysided("restore", backup)
            assert done.returncode == 69, "the daemon's role makes no tables"
            done = sidecar.keysided("restore", "--store-url", second.owner_url, backup)
            assert done.returncode == 0, done.stderr
            second.grant()
            sidecar.start()
            with Remote(sidecar, SERVICE_UID) as service:
                assert service.run(OPEN, envelopes=[envelope]) == ["content"]
        finally:
            sidecar.kill()
            first.drop()
            second.drop()


def test_restore_refuses_what_it_can_before_it_reads_the_backup(sidecar: Sidecar) -> None:
    """There is a store already: said at once, while whoever sends the backup has sent nothing."""
    config = ("--config", str(sidecar.config_path))
    command = [PYTHON, "-m", "keyside_sidecar", *config, "restore", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as restore:
        try:
            assert restore.wait(timeout=30) == 73
            assert restore.stderr is not None
            assert b"there is a store" in restore.stderr.read()
        finally:
            restore.kill()


def test_a_backup_is_not_read_from_a_terminal(sidecar: Sidecar) -> None:
    move_away(sidecar)
    pid, terminal = pty.fork()
    if pid == 0:
        config = ("--config", str(sidecar.config_path))
        os.execv(PYTHON, [PYTHON, "-m", "keyside_sidecar", *config, "restore", "-"])
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # nobody is there any more
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 64
    assert b"a backup is not typed" in shown
    assert not sidecar.store.exists()
