"""A real sidecar for a test: configured, started, talked to, stopped, killed.

Uids and gids of the 642xx range need no accounts. Started by root, the sidecar runs as uid 64200;
otherwise everything runs as whoever runs the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket as sockets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SIDECAR_UID = 64200
SIDECAR_GID = 64200
SERVICE_UID = 64201
SERVICE_GID = 64201
ENCRYPT_ONLY_UID = 64202
ENCRYPT_ONLY_GID = 64202
OTHER_UID = 64203
OTHER_GID = 64203
OPERATOR_UID = 64204
OPERATOR_GID = 64204
AUDITOR_UID = 64205
AUDITOR_GID = 64205

START_TIMEOUT_S = 30.0
PYTHON = os.path.join(os.path.realpath(sys.prefix), "bin", "python")  # noqa: PTH118
IS_ROOT = os.geteuid() == 0

DEFAULT_KEYS = f"""
[operators]
users = [{OPERATOR_UID}]

[auditors]
users = [{AUDITOR_UID}]

[keys.mail-credentials]
allow_groups = [{SERVICE_GID}, {ENCRYPT_ONLY_GID}, {OPERATOR_GID}]
decrypt_groups = [{SERVICE_GID}, {OPERATOR_GID}]
allow_data_keys = true

[keys.payroll]
allow_users = [{OTHER_UID}]
suite = "ChaCha20-Poly1305"
"""


@dataclass
class Sidecar:
    """One configured sidecar in a directory of its own.

    Args:
        directory: Holds configuration, root key, store, socket and log.
        config: The text of everything below ``[sidecar]``, ``[store]`` and ``[root_key]``.
        identity: The lines of ``[identity]``.
        settings: Further lines of ``[sidecar]``.
        descriptors: What the daemon inherits.
        notified: What it has told its service manager, over all its runs.
        public_key: The audit log's first, in hex; ``prepare`` learns it.
    """

    directory: Path
    config: str = DEFAULT_KEYS
    identity: str = 'membership = "process"\nperson_logins = "off"'
    settings: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()
    account: str = f"user = {SIDECAR_UID}\ngroup = {SIDECAR_GID}" if IS_ROOT else ""
    process: subprocess.Popen[bytes] | None = None
    descriptors: Sequence[int] = ()
    notified: list[str] = field(default_factory=list)
    public_key: str = ""
    _manager: sockets.socket | None = None

    @property
    def socket(self) -> Path:
        """Where clients connect."""
        return self.directory / "run" / "keyside.sock"

    @property
    def config_path(self) -> Path:
        """The configuration file."""
        return self.directory / "keyside.toml"

    @property
    def store(self) -> Path:
        """The SQLite file."""
        return self.directory / "state" / "keyside.db"

    @property
    def root_key(self) -> Path:
        """The root key's file."""
        return self.directory / "state" / "root.key"

    @property
    def audit_log(self) -> Path:
        """The audit log's current file."""
        return self.directory / "audit" / "audit.jsonl"

    @property
    def log(self) -> Path:
        """What the sidecar wrote to standard error, over all its runs."""
        return self.directory / "sidecar.log"

    def write_config(self) -> None:
        """Write the configuration file."""
        self.config_path.write_text(
            f"""[sidecar]
socket = "{self.socket}"
{self.account}
{self.settings}

[identity]
{self.identity}

[store]
url = "sqlite:///{self.store}"

[root_key]
provider = "file"
path = "{self.root_key}"

[audit]
path = "{self.audit_log}"
checkpoint_syslog = false
{self.config}
"""
        )
        self.config_path.chmod(0o644)

    def lay_out(self) -> None:
        """Make directories and configuration."""
        self.directory.chmod(0o755)
        for name, mode in (("run", 0o755), ("state", 0o700), ("audit", 0o700)):
            directory = self.directory / name
            directory.mkdir(mode=0o755, exist_ok=True)  # a test may have mounted something there
            if IS_ROOT:
                os.chown(directory, SIDECAR_UID, SIDECAR_GID)
            directory.chmod(mode)
        self.write_config()

    def prepare(self) -> None:
        """Make directories, configuration, root key, store and audit log."""
        self.lay_out()
        done = self.keysided("init")
        assert done.returncode == 0, done.stderr
        found = re.search(r"public key is ([0-9a-f]{64})", done.stdout)
        assert found, done.stdout
        self.public_key = found[1]

    def keysided(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an administrative command to its end."""
        return subprocess.run(
            [
                *self.launcher,
                PYTHON,
                "-m",
                "keyside_sidecar",
                "--config",
                self.config_path,
                *arguments,
            ],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def verify_log(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Verify the audit log, offline, against the key that ``init`` has printed."""
        given = arguments or ("--public-key", self.public_key)
        return subprocess.run(
            [Path(PYTHON).with_name("keyside"), "audit", "verify", *given, self.audit_log.parent],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *, wait: bool = True, arguments: Sequence[str] = ()) -> None:
        """Start the daemon and wait for READY=1."""
        name, self._manager = make_notify_socket()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.launcher,
                    PYTHON,
                    "-m",
                    "keyside_sidecar",
                    "--config",
                    self.config_path,
                    "serve",
                    *arguments,
                ],
                env={**os.environ, **self.environment, "NOTIFY_SOCKET": name},
                stdin=subprocess.DEVNULL,
                stderr=log,
                stdout=log,
                start_new_session=True,
                pass_fds=self.descriptors,
            )
        if wait:
            self.await_notification("READY=1")

    def await_notification(self, state: str) -> None:
        """Wait until the daemon tells its service manager ``state``."""
        assert self.process is not None
        assert self._manager is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        self._manager.settimeout(0.05)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                self.notified.append(self._manager.recv(4096).decode())
                if self.notified[-1] == state:
                    return
            if self.process.poll() is not None:
                raise AssertionError(f"the sidecar ended: {self.log.read_text()}")
        raise AssertionError(f"the sidecar did not say {state}: {self.log.read_text()}")

    def stop(self, timeout_s: float = 30.0) -> int:
        """Stop with SIGTERM; return the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the daemon's end; return the exit code."""
        assert self.process is not None
        code = self.process.wait(timeout_s)
        self.process = None
        self._dismiss_manager()
        return code

    def kill(self) -> None:
        """Kill the supervisor and all workers at once with SIGKILL."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def _dismiss_manager(self) -> None:
        if self._manager is not None:
            self._manager.setblocking(False)
            with self._manager, contextlib.suppress(BlockingIOError):
                while True:
                    self.notified.append(self._manager.recv(4096).decode())

    def workers(self) -> list[int]:
        """Return the pids of the workers."""
        return self._children("keysided-worker")

    def recorder(self) -> int:
        """Return the pid of the process that keeps the audit log."""
        (pid,) = self.recorders()
        return pid

    def recorders(self) -> list[int]:
        """Return that pid; nothing while another one is about to be started."""
        return self._children("keysided-audit")

    def _children(self, name: str) -> list[int]:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [pid for pid in map(int, children.read_text().split()) if read_name(pid) == name]

    def call(
        self,
        code: str,
        *,
        uid: int = SERVICE_UID,
        gid: int | None = None,
        groups: Sequence[int] | None = None,
        environment: Mapping[str, str] | None = None,
        preexec: Sequence[str] = (),
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run Python ``code`` as another account, with ``client`` at hand.

        ``client`` is a ``keyside.Client`` on this sidecar's socket.
        """
        who: dict[str, object] = {}
        if IS_ROOT:
            who = {
                "user": uid,
                "group": uid if gid is None else gid,
                "extra_groups": list(groups or ()),
            }
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            [*preexec, PYTHON, "-c", _PROLOGUE + code],
            env={
                "PATH": os.environ["PATH"],
                "KEYSIDE_SOCKET": str(self.socket),
                "KEYSIDE_TEST_OWNER": str(SIDECAR_UID if IS_ROOT else os.geteuid()),
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd="/",
            check=False,
            **who,
        )

    def keyside(
        self, *arguments: str, uid: int = SERVICE_UID, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the ``keyside`` command as another account, to its end."""
        who: dict[str, object] = {}
        if IS_ROOT:
            who = {"user": uid, "group": uid, "extra_groups": []}
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            [Path(PYTHON).with_name("keyside"), *arguments],
            env={
                "PATH": os.environ["PATH"],
                "KEYSIDE_SOCKET": str(self.socket),
                "KEYSIDE_EXPECTED_OWNER": str(SIDECAR_UID if IS_ROOT else os.geteuid()),
            },
            input=stdin,
            capture_output=True,
            timeout=60,
            cwd="/",
            check=False,
            **who,
        )


_PROLOGUE = """
import os
import keyside
client = keyside.Client(expected_owner=int(os.environ["KEYSIDE_TEST_OWNER"]))
"""


def read_name(pid: int) -> str:
    """Return what ``ps`` calls a process; nothing where it has just been reaped."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def make_notify_socket() -> tuple[str, sockets.socket]:
    """Return a NOTIFY_SOCKET, and a service manager's end of it."""
    name = f"ks-test-{os.getpid()}-{time.monotonic_ns()}"
    manager = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM)
    manager.bind("\0" + name)
    return "@" + name, manager


@contextlib.contextmanager
def running_sidecar(**settings: object) -> Iterator[Sidecar]:
    """Give a started sidecar in a fresh directory, and clean up after it."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory, **settings)  # type: ignore[arg-type]
        sidecar.prepare()
        sidecar.start()
        try:
            yield sidecar
        finally:
            sidecar.kill()


@contextlib.contextmanager
def sidecar_directory() -> Iterator[Path]:
    """Give a directory that every account can enter."""
    directory = Path(tempfile.mkdtemp(prefix="ks-test-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
