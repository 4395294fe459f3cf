"""A real recorder in a process of its own, and a real log, for the tests of the audit log."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from keyside.audit import Anchor, LogFile, Verification, verify_log
from keyside_sidecar.audit.creation import create_log
from keyside_sidecar.audit.places import Places
from keyside_sidecar.audit.recorder import RecorderSettings, run_recorder
from keyside_sidecar.audit.sender import AuditSender
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.config import parse_config
from keyside_sidecar.handover import Channel, make_channels

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside.audit import Checkpoint
    from keyside_sidecar.config import AuditSettings, Config

PATIENCE_S = 20.0


def make_config(directory: Path, **audit: Any) -> Config:
    """Return a configuration whose log lies in ``directory``; ``audit`` are AuditSettings' own."""
    text = f"""\
[sidecar]
socket = "/run/keyside.sock"
[store]
url = "sqlite:////keyside.db"
[root_key]
provider = "file"
path = "/root.key"
[audit]
path = "{directory}/audit.jsonl"
checkpoint_syslog = false
checkpoint_command = ["/bin/true"]
[keys.mail]
allow_users = [1001]
"""
    config = parse_config(text.encode(), Path("keyside.toml"))
    settings = replace(config.audit, **{"checkpoint_command": (), **audit})
    return replace(config, audit=settings)


@dataclass
class Scene:
    """One log and, while it runs, its recorder."""

    config: Config
    public_key: bytes
    pid: int = 0
    control: Channel | None = None
    packets: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[], None] | None = None  # done in the recorder's process first

    @classmethod
    def make(cls, directory: Path, **audit: Any) -> Scene:
        """Make a log."""
        directory.chmod(0o700)
        config = make_config(directory, **audit)
        return cls(config, create_log(config.audit))

    @property
    def audit(self) -> AuditSettings:
        """``[audit]``."""
        return self.config.audit

    @property
    def places(self) -> Places:
        """The log's files."""
        return Places(self.audit.path)

    def start(self, *, wait: bool = True) -> None:
        """Fork the recorder and wait until it is ready."""
        ours, theirs = make_channels()
        self.packets.clear()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                ours.close()
                if self.before is not None:
                    self.before()
                code = run_recorder(RecorderSettings(self.config, None, None, ()), theirs)
            finally:
                os._exit(code)
        theirs.close()
        self.control = ours
        if wait:
            self.await_packet("ready")

    def await_packet(self, name: str) -> dict[str, Any]:
        """Wait for a packet of the recorder's."""
        assert self.control is not None
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            found = next((packet for packet in self.packets if name in packet), None)
            if found is not None:
                return found
            try:
                packet = self.control.receive()
            except BlockingIOError:
                time.sleep(0.005)
                continue
            assert packet is not None, "the recorder has ended"
            self.packets.append(packet.fields)
        raise AssertionError(f"no {name} in time")

    def introduce(self, pid: int | None = None) -> socket.socket:
        """Make a pair, give the recorder its end, and return the worker's."""
        assert self.control is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.send({"worker": pid or os.getpid()}, (theirs.fileno(),))
        theirs.close()
        return ours

    def make_sender(self) -> AuditSender:
        """Return a worker's sender; in a running event loop."""
        sender = AuditSender(self.audit, SystemClock())
        sender.attach(self.introduce())
        return sender

    def stop(self) -> int:
        """Have the recorder end properly; return its exit code."""
        assert self.control is not None
        self.control.send({"stop": True})
        return self.wait()

    def kill(self) -> None:
        """Kill the recorder."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Wait for the recorder's end."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                if self.control is not None:
                    self.control.close()
                self.pid, self.control = 0, None
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("the recorder does not end")

    def end(self) -> None:
        """Leave no process behind."""
        if self.pid:
            self.kill()

    # -- what is in the log -----------------------------------------------------------------

    def list_files(self) -> list[Path]:
        """Return the log's files, oldest first."""
        current = [self.audit.path] if self.audit.path.exists() else []
        return [*self.places.list_finished(), *current]

    def read(self) -> list[dict[str, Any]]:
        """Return all whole records."""
        return [
            json.loads(line)
            for path in self.list_files()
            for line in path.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")
        ]

    def find(self, event: str) -> list[dict[str, Any]]:
        """Return the records of one event."""
        return [record for record in self.read() if record["event"] == event]

    def verify(self, checkpoint: Checkpoint | None = None) -> Verification:
        """Verify the log, from its first public key."""
        known = (checkpoint,) if checkpoint else ()
        return verify_files(self.list_files(), Anchor(self.public_key, known))


def verify_files(paths: list[Path], anchor: Anchor) -> Verification:
    """Verify files as one log."""
    return verify_log([LogFile(path.name, partial(open_file, path)) for path in paths], anchor)


def open_file(path: Path) -> BinaryIO:
    """Return a file's bytes."""
    return path.open("rb")


def call_record(number: int, **fields: object) -> dict[str, object]:
    """Return a service call's record, as a servicer makes it."""
    return {
        "event": "encryption.decrypt",
        "outcome": "ok",
        "caller": {"pid": 4711, "uid": 1001, "gid": 1001, "account": "mail", "exe": "/bin/mail"},
        "key": "mail",
        "version": 1 + number % 7,
        "digest": f"{number:064x}",
        "context": ["user"],
        "request_id": f"{number:016x}",
        **fields,
    }


def action_record(phase: str, **fields: object) -> dict[str, object]:
    """Return the record of an operator's action."""
    return {
        "event": "key.rotate",
        "phase": phase,
        "caller": {"uid": 1010, "account": "ops"},
        "key": "mail",
        **fields,
    }


async def eventually(holds: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it does not come to hold"
        await asyncio.sleep(0.01)


def parse_time(text: str) -> datetime:
    """Return a record's time."""
    return datetime.fromisoformat(text).astimezone(UTC)
