"""Unary Encrypt and Decrypt through the whole sidecar beside bare gRPC servers.

All sit on Unix sockets and get the same load from h2load: 8 connections, 16 streams each, 256
bytes. Identity, policy, sealing and audit are switched on; the bare servers send back what they
were sent.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from processes import WHO, cpu_seconds, family_of
from rows import Target, compare, middle, pick, take_turns
from support.remote import Remote
from support.sidecar import PYTHON, running_sidecar, sidecar_directory

from keyside.v1 import encryption_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plan import Plan
    from rows import Figures, Row, Taken
    from support.sidecar import Sidecar

CONNECTIONS = 8
STREAMS = 16
KEY = "mail-credentials"
PAYLOAD = bytes(256)
ECHO_METHOD = "/bench.Echo/Echo"
SERVICE = "/keyside.v1.EncryptionService/"
SERVERS = {"threads": "grpc.server, 4 threads", "aio": "grpc.aio, uvloop"}
TARGETS = {"threads": Target(0.9), "aio": Target(0.65, aim=0.85)}
WORKERS = {"1 worker": "", "2 workers": "workers = 2"}
_ECHO = Path(__file__).with_name("echo_server.py")
_RATE = re.compile(r"finished in [^,]+, ([0-9.]+) req/s")
_FAILED = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
_DATA = re.compile(r"\((\d+)\) data")
_ASK = """
with grpc.insecure_channel(target) as channel:
    answer = channel.unary_unary(method)(bytes.fromhex(request))
"""


@dataclass
class Server:
    """One server to put under load.

    Args:
        name: For a complaint.
        socket: Where it listens.
        method: The RPC's full name.
        request: The message.
        answer_bytes: What one right answer has.
        pids: The processes whose CPU time is counted.
        directory: For the request's file.
    """

    name: str
    socket: Path
    method: str
    request: bytes
    answer_bytes: int
    pids: list[int]
    directory: Path

    def load(self, calls: int, connections: int = CONNECTIONS) -> Figures:
        """Put it under load once; return calls per second and CPU time per call."""
        body = self.directory / f"{self.method.rpartition('/')[2]}.bin"
        body.write_bytes(frame(self.request))
        before = cpu_seconds(self.pids)
        output = subprocess.run(
            [
                "h2load",
                f"--requests={calls}",
                f"--clients={connections}",
                f"--max-concurrent-streams={STREAMS}",
                f"--base-uri=unix:{self.socket}",
                f"--data={body}",
                "--header=content-type: application/grpc",
                "--header=te: trailers",
                f"http://localhost{self.method}",
            ],
            capture_output=True,
            text=True,
            check=True,
            **WHO,
        ).stdout
        used = cpu_seconds(self.pids) - before
        rate, outcome, data = _RATE.search(output), _FAILED.search(output), _DATA.search(output)
        if rate is None or outcome is None or data is None:
            raise SystemExit(f"h2load's output is not understood:\n{output}")
        if outcome.groups() != (str(calls), "0", "0", "0"):
            raise SystemExit(f"{self.name}: calls failed:\n{output}")
        # h2load does not read gRPC's status. A refused call has no message, so the bytes tell.
        if int(data[1]) != calls * (self.answer_bytes + 5):
            raise SystemExit(
                f"{self.name}: {int(data[1])} bytes came back, not "
                f"{calls * (self.answer_bytes + 5)}: some calls were not answered right"
            )
        return {"rate": float(rate[1]), "cpu_us": used / calls * 1e6}


def frame(message: bytes) -> bytes:
    """Return a message as gRPC frames it: not compressed, with its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


@contextlib.contextmanager
def running_echo(kind: str, directory: Path) -> Iterator[Server]:
    """Give a bare server."""
    path = directory / f"{kind}.sock"
    process = subprocess.Popen([PYTHON, _ECHO, kind, path])
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            if time.monotonic() > deadline:
                raise SystemExit("the echo server does not start")
            time.sleep(0.05)
        time.sleep(0.3)
        path.chmod(0o666)
        name = SERVERS[kind]
        yield Server(name, path, ECHO_METHOD, PAYLOAD, len(PAYLOAD), [process.pid], directory)
    finally:
        process.terminate()
        process.wait()


def make_requests(sidecar: Sidecar) -> dict[str, tuple[bytes, bytes]]:
    """Return a request of each kind, and what the sidecar answers it."""
    encrypt = encryption_pb2.EncryptRequest(key=KEY, plaintext=PAYLOAD).SerializeToString()
    with Remote(sidecar) as service:

        def ask(name: str, request: bytes) -> bytes:
            told = service.run(_ASK, method=SERVICE + name, request=request.hex())
            return bytes.fromhex(told)

        sealed = ask("Encrypt", encrypt)
        envelope = encryption_pb2.EncryptResponse.FromString(sealed).envelope
        decrypt = encryption_pb2.DecryptRequest(envelope=envelope).SerializeToString()
        return {"Encrypt": (encrypt, sealed), "Decrypt": (decrypt, ask("Decrypt", decrypt))}


def make_servers(sidecar: Sidecar, directory: Path) -> dict[str, Server]:
    """Return the sidecar, to be loaded with either call."""
    return {
        name: Server(
            f"keyside {name}",
            sidecar.socket,
            SERVICE + name,
            request,
            len(answer),
            family_of(sidecar),
            directory,
        )
        for name, (request, answer) in make_requests(sidecar).items()
    }


def run(plan: Plan) -> Iterator[Row]:
    """Put all under load, in turns: sidecars of one worker and of two, and the bare servers."""
    servers: dict[tuple[str, str], Server] = {}
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(sidecar_directory())
        for title, settings in WORKERS.items():
            sidecar = stack.enter_context(running_sidecar(settings=settings))
            for name, server in make_servers(sidecar, directory).items():
                servers[name, title] = server
        for kind in SERVERS:
            servers["echo", kind] = stack.enter_context(running_echo(kind, directory))
        for server in servers.values():
            server.load(plan.calls // 4)
        taken = take_turns(
            {" ".join(key): partial(server.load, plan.calls) for key, server in servers.items()},
            plan.rounds,
            warm_up=False,
        )
    for title in WORKERS:
        for name in ("Encrypt", "Decrypt"):
            yield from _compare(taken, f"{name} {title}", f"unary {name}, 256 B, 8×16, {title}")


def _compare(taken: Taken, ours: str, title: str) -> Iterator[Row]:
    for kind, peer in SERVERS.items():
        theirs = f"echo {kind}"
        facts = {
            "CPU µs a call": middle(taken, ours, "cpu_us"),
            "theirs, CPU µs a call": middle(taken, theirs, "cpu_us"),
        }
        rates = pick(taken, ours, "rate"), pick(taken, theirs, "rate")
        name = f"{title} / echo on {peer}"
        yield compare(name, "calls/s", *rates, target=TARGETS[kind], facts=facts)
    cpu = pick(taken, ours, "cpu_us"), pick(taken, theirs, "cpu_us")
    yield compare(f"{title}, CPU a call / echo on {peer}", "µs", *cpu)
