"""Where keyside keeps a grant's credential, how it uses it, and when it refuses to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.unit.access_double import CREDENTIAL, ID, OTHER_ID, make_request
from tests.unit.cli_process import run
from tests.unit.sidecar_double import Double, Failure

from keyside.cli import exits
from keyside.cli.credential_files import CredentialDestination, find_credentials
from keyside.cli.tables import format_time
from keyside.envelope import VersionKey, seal
from keyside.names import KeyName, VersionNumber
from keyside.v1 import access_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSWORD = b"correct horse\n"
OTHER_CREDENTIAL = "ksc-" + "b7" * 26
VERSION = VersionKey(KeyName("mail"), VersionNumber(4), bytes(16), bytes(range(32)))
ENVELOPE = seal(VERSION, b"x", {})
ACTIVATE = ("access", "activate", ID, "--password-stdin")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        running.access[ID] = make_request(state=access_pb2.ACCESS_STATE_APPROVED)
        yield running


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


def with_runtime(runtime: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(runtime)}


def go(
    double: Double, runtime: Path, *arguments: str, stdin: bytes = PASSWORD
) -> subprocess.CompletedProcess[bytes]:
    return run(double, *arguments, stdin=stdin, environment=with_runtime(runtime))


def keep(
    double: Double,
    folder: Path,
    access_id: str = ID,
    *,
    credential: str = CREDENTIAL,
    lasts: timedelta = timedelta(hours=1),
    **facts: object,
) -> Path:
    """Write a credential's file as the command does."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.parent.chmod(0o700)
    path = folder / f"{access_id}.json"
    whole = {
        "id": access_id,
        "key": "mail",
        "credential": credential,
        "expires_at": format_time(datetime.now(UTC) + lasts),
        "socket": double.socket,
        "operations": ["decrypt"],
        **facts,
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(whole))
    return path


def test_a_credential_is_kept_where_decrypt_finds_it(double: Double, runtime: Path) -> None:
    activated = go(double, runtime, *ACTIVATE)
    kept = runtime / "keyside" / "credentials" / f"{ID}.json"
    assert activated.returncode == 0
    assert activated.stdout.decode().splitlines()[1] == (
        f"the credential is in {kept}; keyside decrypt uses it"
    )
    assert CREDENTIAL.encode() not in activated.stdout + activated.stderr
    assert json.loads(kept.read_text()) == {
        "id": ID,
        "key": "mail",
        "credential": CREDENTIAL,
        "expires_at": "2096-10-02T07:06:40Z",
        "socket": double.socket,
        "operations": ["decrypt"],
    }
    modes = [path.stat().st_mode & 0o777 for path in (kept, kept.parent, kept.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]
    assert list(kept.parent.iterdir()) == [kept]
    double.credentials.clear()
    assert go(double, runtime, "decrypt", stdin=ENVELOPE).stdout == b"opened"
    assert double.credentials == [CREDENTIAL]


def test_a_named_file_serves_where_there_is_no_login(double: Double, tmp_path: Path) -> None:
    kept = tmp_path / "credential"
    assert run(double, *ACTIVATE, "--credential-file", str(kept), stdin=PASSWORD).returncode == 0
    assert kept.stat().st_mode & 0o777 == 0o600
    double.credentials.clear()
    named = ("decrypt", "--credential-file", str(kept))
    assert run(double, *named, stdin=ENVELOPE).stdout == b"opened"
    assert run(double, "decrypt", stdin=ENVELOPE).stdout == b"opened"
    assert double.credentials == [CREDENTIAL, None]


def make_group_writable(runtime: Path) -> None:
    runtime.chmod(0o770)


def remove_runtime(runtime: Path) -> None:
    runtime.rmdir()


def put_a_link_for_ours(runtime: Path) -> None:
    (runtime.parent / "elsewhere").mkdir(mode=0o700)
    (runtime / "keyside").symlink_to(runtime.parent / "elsewhere")


def open_ours(runtime: Path) -> None:
    (runtime / "keyside").mkdir()
    (runtime / "keyside").chmod(0o755)


def put_a_file_for_ours(runtime: Path) -> None:
    (runtime / "keyside").touch()


def link_runtime(runtime: Path) -> None:
    runtime.rmdir()
    (runtime.parent / "real").mkdir(mode=0o700)
    runtime.symlink_to(runtime.parent / "real")


@pytest.mark.parametrize(
    ("spoil", "exit_code", "words"),
    [
        (make_group_writable, 77, b"open to others (mode 0770)"),
        (remove_runtime, 73, b"names a directory that is not there"),
        (put_a_link_for_ours, 77, b"can't be kept below"),
        (open_ours, 77, b"open to others (mode 0755)"),
        (put_a_file_for_ours, 77, b"can't be kept below"),
        (link_runtime, 77, b"can't be kept below"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_nothing_is_activated_where_the_credential_would_not_be_safe(
    double: Double, runtime: Path, spoil: Callable[[Path], None], exit_code: int, words: bytes
) -> None:
    spoil(runtime)
    finished = go(double, runtime, *ACTIVATE)
    assert (finished.returncode, finished.stdout) == (exit_code, b"")
    assert words in finished.stderr
    assert double.calls == []


@pytest.mark.root
def test_somebody_elses_runtime_directory_is_not_used(double: Double, runtime: Path) -> None:
    """After su, XDG_RUNTIME_DIR may still be that of whoever logged in."""
    os.chown(runtime, 12345, -1)
    finished = go(double, runtime, *ACTIVATE)
    assert finished.returncode == 77
    assert b"belongs to uid 12345" in finished.stderr
    assert double.calls == []


def test_without_a_runtime_directory_a_file_must_be_named_first(double: Double) -> None:
    finished = run(double, *ACTIVATE, stdin=PASSWORD)
    assert finished.returncode == 64
    assert b"XDG_RUNTIME_DIR is not set; nothing was activated" in finished.stderr
    assert b"--credential-file FILE" in finished.stderr
    relative = run(double, *ACTIVATE, stdin=PASSWORD, environment={"XDG_RUNTIME_DIR": "run"})
    assert relative.returncode == 78
    assert double.calls == []


@pytest.mark.parametrize("kind", ["file", "link", "folder", "missing folder"])
def test_a_named_file_must_be_new(double: Double, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "credential"
    if kind == "file":
        target.write_text("other")
    elif kind == "link":
        target.symlink_to(tmp_path / "nowhere")
    elif kind == "folder":
        target.mkdir()
    else:
        target = target / "inner"
    finished = run(double, *ACTIVATE, "--credential-file", str(target), stdin=PASSWORD)
    assert finished.returncode == 73
    assert b"nothing was activated" in finished.stderr
    assert double.calls == []
    assert kind != "file" or target.read_text() == "other"
    assert not (tmp_path / "nowhere").exists()


def test_a_credential_that_can_not_be_kept_is_revoked(double: Double, tmp_path: Path) -> None:
    """Somebody makes a file of that name during the call."""
    target = tmp_path / "credential"
    double.before_answer = lambda name: target.touch() if name == "ActivateAccess" else None
    finished = run(double, *ACTIVATE, "--credential-file", str(target), stdin=PASSWORD)
    assert finished.returncode == 74
    assert b"could not be kept (File exists); the grant was revoked" in finished.stderr
    assert double.calls[-2:] == ["ActivateAccess", "RevokeAccess"]
    assert double.access[ID].end_reason == "REVOKED"
    assert not list(tmp_path.glob(".keyside-*"))


def test_a_grant_that_can_not_be_revoked_either_is_named(double: Double, tmp_path: Path) -> None:
    target = tmp_path / "credential"

    def spoil(name: str) -> None:
        if name == "ActivateAccess":
            target.touch()
            double.failures = [Failure(grpc.StatusCode.INTERNAL, "no", reason="INTERNAL")]

    double.before_answer = spoil
    finished = run(double, *ACTIVATE, "--credential-file", str(target), stdin=PASSWORD)
    assert finished.returncode == 74
    assert f"could not be revoked (no): keyside access revoke {ID}".encode() in finished.stderr


def test_an_interruption_leaves_no_file_behind_and_says_where_to_look(
    double: Double, runtime: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "keyside.cli", *ACTIVATE],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "KEYSIDE_SOCKET": double.socket, **with_runtime(runtime)},
    )
    double.before_answer = lambda name: (
        process.send_signal(signal.SIGTERM) if name == "ActivateAccess" else None
    )
    _, complaints = process.communicate(PASSWORD, timeout=30)
    assert process.returncode == 143
    assert f"if it is, its credential is lost: keyside access revoke {ID}".encode() in complaints
    assert list((runtime / "keyside" / "credentials").iterdir()) == []


@pytest.mark.parametrize(
    ("facts", "used"),
    [
        ({}, True),
        ({"key": "payroll"}, False),
        ({"socket": "/elsewhere.sock"}, False),
        ({"operations": ["encrypt"]}, False),
    ],
)
def test_a_credential_is_used_for_its_key_sidecar_and_operations_only(
    double: Double, runtime: Path, facts: dict[str, object], *, used: bool
) -> None:
    keep(double, runtime / "keyside" / "credentials", **facts)  # type: ignore[arg-type]
    assert go(double, runtime, "decrypt", stdin=ENVELOPE).returncode == 0
    assert double.credentials == [CREDENTIAL if used else None]


@pytest.mark.parametrize("operation", ["encrypt", "rewrap"])
def test_other_operations_use_a_grant_that_allows_them(
    double: Double, runtime: Path, operation: str
) -> None:
    keep(double, runtime / "keyside" / "credentials", operations=[operation])
    arguments = ("encrypt", "mail") if operation == "encrypt" else (operation,)
    assert go(double, runtime, *arguments, stdin=ENVELOPE).returncode == 0
    assert double.credentials == [CREDENTIAL]


def test_what_is_no_envelope_takes_no_credential_along(double: Double, runtime: Path) -> None:
    keep(double, runtime / "keyside" / "credentials")
    assert go(double, runtime, "decrypt", stdin=b"KS::x").stdout == b"x"
    assert double.credentials == [None]


def test_an_expired_credential_is_removed(double: Double, runtime: Path) -> None:
    kept = keep(double, runtime / "keyside" / "credentials", lasts=timedelta(hours=-1))
    assert go(double, runtime, "decrypt", stdin=ENVELOPE).returncode == 0
    assert double.credentials == [None]
    assert not kept.exists()


def test_a_credential_is_not_removed_unless_its_request_has_ended(
    double: Double, runtime: Path
) -> None:
    """It is the only copy: one refusal, on a host whose clock is off, must not cost it."""
    kept = keep(double, runtime / "keyside" / "credentials")
    double.access[ID] = make_request(state=access_pb2.ACCESS_STATE_ACTIVE)
    over = Failure(grpc.StatusCode.PERMISSION_DENIED, "over", reason="GRANT_ENDED")
    double.failures = [over]
    assert go(double, runtime, "decrypt", stdin=ENVELOPE).returncode == 77
    assert kept.exists()


def test_a_credential_whose_grant_has_ended_is_removed_and_the_next_tried(
    double: Double, runtime: Path
) -> None:
    folder = runtime / "keyside" / "credentials"
    ended = keep(double, folder, lasts=timedelta(hours=2))
    narrow = keep(double, folder, OTHER_ID, credential=OTHER_CREDENTIAL)
    denied = grpc.StatusCode.PERMISSION_DENIED
    double.access[ID] = make_request(state=access_pb2.ACCESS_STATE_ENDED)
    double.failures = [Failure(denied, "over", reason="GRANT_ENDED")]
    assert go(double, runtime, "decrypt", stdin=ENVELOPE).stdout == b"opened"
    assert double.credentials == [CREDENTIAL, None, OTHER_CREDENTIAL]
    assert (ended.exists(), narrow.exists()) == (False, True)
    double.failures = [Failure(denied, "not this", reason="GRANT_SCOPE")]
    finished = go(double, runtime, "decrypt", stdin=ENVELOPE)
    assert (finished.returncode, finished.stderr) == (77, b"keyside: not this\n")
    assert narrow.exists()


def test_any_other_refusal_is_told_at_once(double: Double, runtime: Path) -> None:
    kept = keep(double, runtime / "keyside" / "credentials")
    double.failures = [Failure(grpc.StatusCode.PERMISSION_DENIED, "no", reason="NOT_ALLOWED")]
    assert go(double, runtime, "decrypt", stdin=ENVELOPE).returncode == 77
    assert (double.calls, kept.exists()) == (["Decrypt"], True)


def make_readable(path: Path) -> None:
    path.chmod(0o640)


def make_a_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def make_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:40])


def put_something_else(path: Path) -> None:
    path.write_text('{"id": 1, "credential": "ksc-secret"}')


def nest(path: Path) -> None:
    path.write_text("[" * 10_000)


SPOILT: dict[Callable[[Path], None], int] = {
    make_readable: 77,
    make_a_link: 66,
    make_a_pipe: 65,
    cut: 65,
    put_something_else: 65,
    nest: 65,
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_file_that_is_not_as_it_was_written_is_not_used(
    double: Double, runtime: Path, spoil: Callable[[Path], None]
) -> None:
    """Kept: passed over with a word. Named: refused."""
    kept = keep(double, runtime / "keyside" / "credentials")
    spoil(kept)
    finished = go(double, runtime, "decrypt", stdin=ENVELOPE)
    assert finished.returncode == 0
    assert b"keyside: a credential is not used: " in finished.stderr
    assert b"secret" not in finished.stderr
    assert double.credentials == [None]
    named = go(double, runtime, "decrypt", "--credential-file", str(kept), stdin=ENVELOPE)
    assert named.returncode == SPOILT[spoil]
    assert double.credentials == [None]


def test_a_named_credential_for_something_else_is_not_sent(double: Double, tmp_path: Path) -> None:
    folder = tmp_path / "own" / "x"
    other_key = keep(double, folder, key="payroll")
    other_socket = keep(double, folder, OTHER_ID, socket="/elsewhere.sock")
    for path, exit_code in ((other_key, 65), (other_socket, 64)):
        arguments = ("decrypt", "--credential-file", str(path))
        assert run(double, *arguments, stdin=ENVELOPE).returncode == exit_code
    missing = run(double, "decrypt", "--credential-file", str(folder / "none"), stdin=ENVELOPE)
    assert missing.returncode == 66
    walk = run(double, "rewrap", "--credential-file", str(other_key), str(tmp_path))
    assert walk.returncode == 64
    assert double.calls == []


@pytest.mark.parametrize("command", ["revoke", "cancel"])
@pytest.mark.parametrize("reason", ["", "ACCESS_ENDED", "ACCESS_NOT_YOURS"])
def test_ending_access_removes_the_credential(
    double: Double, runtime: Path, command: str, reason: str
) -> None:
    kept = keep(double, runtime / "keyside" / "credentials")
    if reason:
        double.failures = [Failure(grpc.StatusCode.FAILED_PRECONDITION, "no", reason=reason)]
    finished = go(double, runtime, "access", command, ID)
    assert finished.returncode == (65 if reason else 0)
    assert kept.exists() == (reason == "ACCESS_NOT_YOURS")


def test_space_is_taken_before_the_credential_is_asked_for(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full runtime directory is found out before anything is activated."""

    def refuse(descriptor: int, data: bytes) -> int:
        del descriptor, data
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with (
        pytest.raises(exits.CommandError, match="No space left") as caught,
        CredentialDestination(ID, None),
    ):
        pytest.fail("it was entered")
    assert caught.value.exit_code == exits.CANT_CREATE
    monkeypatch.undo()
    assert list((runtime / "keyside" / "credentials").iterdir()) == []


def test_an_unsafe_runtime_directory_is_a_matter_only_where_something_is_kept(
    double: Double, runtime: Path
) -> None:
    """XDG_RUNTIME_DIR=/tmp, say: decrypting without a grant is as quiet as ever."""
    runtime.chmod(0o777)
    finished = go(double, runtime, "decrypt", stdin=ENVELOPE)
    assert (finished.stdout, finished.stderr) == (b"opened", b"")
    keep(double, runtime / "keyside" / "credentials")
    finished = go(double, runtime, "decrypt", stdin=ENVELOPE)
    assert finished.stdout == b"opened"
    assert b"open to others (mode 0777)" in finished.stderr
    assert double.credentials == [None, None]


def test_looking_for_credentials_makes_nothing(runtime: Path) -> None:
    assert list(find_credentials({"XDG_RUNTIME_DIR": str(runtime)})) == []
    assert list(find_credentials({})) == []
    assert list(find_credentials({"XDG_RUNTIME_DIR": "."})) == []
    assert list(find_credentials({"XDG_RUNTIME_DIR": "/nowhere"})) == []
    assert list(runtime.iterdir()) == []
