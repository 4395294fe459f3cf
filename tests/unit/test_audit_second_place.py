"""Checkpoints go to a second place, and what happens to requests to a command; nothing waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.audit_scene import Scene, action_record

from keyside.audit import Completeness, parse_checkpoint
from keyside_sidecar.audit import running
from keyside_sidecar.audit.running import CommandRunner
from keyside_sidecar.audit.second import SecondPlace
from keyside_sidecar.config import ElevationSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE = b'{"v":1,"seq":1}'


def save_to(path: Path, *, then: str = "") -> tuple[str, ...]:
    """Return a command that appends its standard input to ``path``."""
    code = f"import sys,os,time; open({str(path)!r},'ab').write(sys.stdin.buffer.read());{then}"
    return (sys.executable, "-c", code)


def wait_for(path: Path, count: int) -> list[bytes]:
    until = time.monotonic() + 10
    while True:
        lines = path.read_bytes().splitlines() if path.exists() else []
        if len(lines) >= count:
            return lines
        assert time.monotonic() < until, lines
        time.sleep(0.01)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "log").mkdir()
    made = Scene.make(tmp_path / "log")
    yield made
    made.end()


def with_audit(scene: Scene, **audit: Any) -> None:
    scene.config = replace(scene.config, audit=replace(scene.audit, **audit))


def test_each_checkpoint_goes_to_the_command(scene: Scene, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with_audit(scene, checkpoint_command=save_to(kept))
    scene.start()
    assert scene.stop() == 0
    lines = wait_for(kept, 2)
    assert [parse_checkpoint(line).seal.kind for line in lines] == ["start", "stop"]
    assert scene.verify(parse_checkpoint(lines[-1])).completeness is Completeness.CLOSED
    data = scene.audit.path.read_bytes()
    scene.audit.path.write_bytes(data[: data.rindex(b'{"v":1')])
    assert scene.verify(parse_checkpoint(lines[-1])).completeness is Completeness.CUT


def test_checkpoint_goes_to_the_systems_log(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as daemon:
        daemon.bind(path)
        daemon.settimeout(5)
        SecondPlace((), use_syslog=True, syslog=path).send(LINE)
        assert daemon.recv(4096) == b"<109>keyside-audit: " + LINE


def test_systems_log_that_is_away_or_full_is_no_trouble(tmp_path: Path) -> None:
    place = SecondPlace((), use_syslog=True, syslog=str(tmp_path / "none"))
    for _ in range(3):
        place.send(LINE)
    path = str(tmp_path / "log")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as daemon:
        daemon.bind(path)
        place = SecondPlace((), use_syslog=True, syslog=path)
        begun = time.monotonic()
        for _ in range(1000):
            place.send(LINE)
        assert time.monotonic() - begun < 2


def test_command_that_hangs_delays_nothing_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_LIMIT_S", 0.3)
    kept = tmp_path / "kept"
    runner = CommandRunner("test", save_to(kept, then="time.sleep(60)"), 2)
    begun = time.monotonic()
    for number in range(10):
        runner.give(b"%d" % number)
    assert time.monotonic() - begun < 0.5
    lines = wait_for(kept, 2)
    assert lines[0] == b"0"
    runner.finish(5)


@pytest.mark.parametrize(
    "command",
    [("/none/such",), ("/bin/false",), ("/etc/passwd",)],
    ids=["none", "fails", "no program"],
)
def test_command_that_fails_is_logged(
    command: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    runner = CommandRunner("test", command, 2)
    runner.give(LINE)
    runner.finish(5)
    assert {record.message for record in caplog.records} <= {"command can't run", "command failed"}
    assert caplog.records


def test_command_gets_a_bare_environment_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os,sys; fds=sorted(os.listdir('/proc/self/fd'));"
        f"open({str(out)!r},'w').write(repr((sorted(os.environ), os.getcwd(), len(fds))))"
    )
    runner = CommandRunner("test", (sys.executable, "-c", code), 2)
    runner.give(LINE)
    runner.finish(10)
    names, directory, descriptors = eval(out.read_text())
    assert set(names) <= {"PATH", "LC_CTYPE"}
    assert directory == "/"
    assert descriptors <= 4


def test_notify_hears_of_what_happens_to_requests_and_of_nothing_else(
    scene: Scene, tmp_path: Path
) -> None:
    heard = tmp_path / "heard"
    elevation = ElevationSettings(
        pam_service="keyside", requesters=("x",), levels=(), notify=save_to(heard)
    )
    scene.config = replace(scene.config, elevation=elevation)
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        request = {"access": "ar-1", "details": {"comment": "why"}}
        await sender.record({"event": "access.request", "phase": "intent", **request})
        await sender.record(
            {"event": "access.request", "phase": "outcome", "outcome": "ok", **request}
        )
        await sender.record(action_record("outcome", outcome="ok"))
        await sender.record({"event": "access.ended", "access": "ar-1", "outcome": "ok"})
        await sender.close()

    asyncio.run(work())
    lines = [json.loads(line) for line in wait_for(heard, 2)]
    assert [(line["event"], line.get("phase")) for line in lines] == [
        ("access.request", "outcome"),
        ("access.ended", None),
    ]
    in_log = {record["id"]: record for record in scene.read()}
    for line in lines:
        assert line == {k: v for k, v in in_log[line["id"]].items() if k != "hash"}
    assert scene.stop() == 0
