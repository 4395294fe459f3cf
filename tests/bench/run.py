"""``make bench``: unary calls through the whole sidecar beside bare gRPC servers, in one run.

Then what an archive of versions costs (archive.py).

All sit on Unix sockets and get the same load from h2load: 8 connections, 16 streams each. The
contenders take turns within each round; the figures are medians over the rounds. Identity, policy
and sealing are switched on. Machines are shared and noisy: read the ratios, not the figures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

import archive
from support.sidecar import (
    IS_ROOT,
    PYTHON,
    SERVICE_GID,
    SERVICE_UID,
    running_sidecar,
    sidecar_directory,
)

from keyside.v1 import encryption_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.sidecar import Sidecar

CONNECTIONS = 8
STREAMS = 16
PAYLOAD_BYTES = 256
ECHO = Path(__file__).with_name("echo_server.py")
RESULT = Path("build/bench.json")
_RATE = re.compile(r"finished in [^,]+, ([0-9.]+) req/s")
_FAILED = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
_DATA = re.compile(r"\((\d+)\) data")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Contender:
    """One server under load.

    Args:
        name: As printed.
        socket: Where it listens.
        path: The RPC's full name.
        body: The file with the framed request.
        pids: The processes whose CPU time is counted.
        response_bytes: What one right answer has, without HTTP headers.
    """

    name: str
    socket: Path
    path: str
    body: Path
    pids: list[int]
    response_bytes: int
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time that processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def load(contender: Contender, calls: int) -> None:
    """Put one contender under load once, and note rate and CPU per call."""
    before = cpu_seconds(contender.pids)
    who: dict[str, object] = (
        {"user": SERVICE_UID, "group": SERVICE_GID, "extra_groups": []} if IS_ROOT else {}
    )
    output = subprocess.run(  # type: ignore[call-overload]
        [
            "h2load",
            f"--requests={calls}",
            f"--clients={CONNECTIONS}",
            f"--max-concurrent-streams={STREAMS}",
            f"--base-uri=unix:{contender.socket}",
            f"--data={contender.body}",
            "--header=content-type: application/grpc",
            "--header=te: trailers",
            f"http://localhost{contender.path}",
        ],
        capture_output=True,
        text=True,
        check=True,
        **who,
    ).stdout
    used = cpu_seconds(contender.pids) - before
    rate, outcome, data = _RATE.search(output), _FAILED.search(output), _DATA.search(output)
    if rate is None or outcome is None or data is None:
        raise SystemExit(f"h2load's output is not understood:\n{output}")
    if outcome.groups() != (str(calls), "0", "0", "0"):
        raise SystemExit(f"{contender.name}: calls failed:\n{output}")
    # h2load does not read gRPC's status. A refused call has no message, so the bytes tell.
    if int(data[1]) != calls * contender.response_bytes:
        raise SystemExit(
            f"{contender.name}: {int(data[1])} bytes came back, not "
            f"{calls * contender.response_bytes}: some calls were not answered right"
        )
    contender.rates.append(float(rate[1]))
    contender.cpu_us.append(used / calls * 1e6)


def frame(message: bytes) -> bytes:
    """Return a message as gRPC frames it: not compressed, with its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def start_echo(kind: str, directory: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a bare server and wait until it listens."""
    path = directory / f"{kind}.sock"
    process = subprocess.Popen([PYTHON, ECHO, kind, path])
    deadline = time.monotonic() + 20
    while not path.exists():
        if time.monotonic() > deadline:
            raise SystemExit("the echo server does not start")
        time.sleep(0.05)
    time.sleep(0.3)
    path.chmod(0o666)
    return process, path


def measure(sidecar: Sidecar, directory: Path, rounds: int, calls: int) -> list[Contender]:
    """Put all contenders under load, in turns."""
    body = directory / "encrypt.bin"
    request = encryption_pb2.EncryptRequest(key="mail-credentials", plaintext=bytes(PAYLOAD_BYTES))
    body.write_bytes(frame(request.SerializeToString()))
    done = sidecar.call(f"print(len(client.encrypt('mail-credentials', bytes({PAYLOAD_BYTES}))))")
    if done.returncode:
        raise SystemExit(done.stderr)
    answer = encryption_pb2.EncryptResponse(envelope=bytes(int(done.stdout)))
    answer.version.key = "mail-credentials"
    answer.version.number = 1
    assert sidecar.process is not None
    echo_body = directory / "echo.bin"
    echo_body.write_bytes(frame(bytes(PAYLOAD_BYTES)))
    processes = []
    try:
        contenders = [
            Contender(
                "keyside Encrypt",
                sidecar.socket,
                "/keyside.v1.EncryptionService/Encrypt",
                body,
                [sidecar.process.pid, *sidecar.workers(), sidecar.recorder()],
                len(frame(answer.SerializeToString())),
            )
        ]
        for kind, name in (("threads", "grpc.server, 4 threads"), ("aio", "grpc.aio, uvloop")):
            process, path = start_echo(kind, directory)
            processes.append(process)
            contenders.append(
                Contender(
                    name, path, "/bench.Echo/Echo", echo_body, [process.pid], PAYLOAD_BYTES + 5
                )
            )
        for contender in contenders:
            load(contender, calls // 10)
            contender.rates.clear()
            contender.cpu_us.clear()
        for number in range(rounds):
            for contender in contenders[number % 3 :] + contenders[: number % 3]:
                load(contender, calls)
        return contenders
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def report(contenders: list[Contender], rounds: int) -> list[dict[str, Any]]:
    """Print the table, and return its rows."""
    ours, *others = contenders
    rate = statistics.median(ours.rates)
    print(f"{'':26} {'calls/s':>10} {'CPU µs/call':>12} {'ratio':>7}")
    print(f"{ours.name:26} {rate:10,.0f} {statistics.median(ours.cpu_us):12.0f}")
    rows: list[dict[str, Any]] = []
    for other in others:
        theirs = statistics.median(other.rates)
        # Round by round, so that a noisy moment hits both sides of a ratio.
        ratio = statistics.median(
            mine / its for mine, its in zip(ours.rates, other.rates, strict=True)
        )
        cpu = statistics.median(other.cpu_us)
        print(f"{other.name:26} {theirs:10,.0f} {cpu:12.0f} {ratio:7.2f}")
        rows.append(
            {
                "name": f"unary Encrypt {PAYLOAD_BYTES} B against an echo on {other.name}",
                "ours": rate,
                "theirs": theirs,
                "unit": "calls/s",
                "ratio": ratio,
                "rounds": rounds,
                "ours_cpu_us": statistics.median(ours.cpu_us),
                "theirs_cpu_us": cpu,
            }
        )
    return rows


def main() -> None:
    """Measure and report."""
    if shutil.which("h2load") is None:
        raise SystemExit("bench: needs h2load (Debian: apt-get install nghttp2-client)")
    rounds = int(os.environ.get("BENCH_ROUNDS", "5"))
    calls = int(os.environ.get("BENCH_CALLS", "15000"))
    with running_sidecar() as sidecar, sidecar_directory() as directory:
        contenders = measure(sidecar, directory, rounds, calls)
    rows = report(contenders, rounds) + archive.run(rounds)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
