"""A process under another account that keeps its connections and runs what a test tells it.

``Sidecar.call`` starts an interpreter for each call; this one is for what needs a connection that
was opened earlier, many calls, or a call that is under way while something else happens.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from support.sidecar import IS_ROOT, PYTHON, SERVICE_UID, SIDECAR_UID

if TYPE_CHECKING:
    from support.sidecar import Sidecar

_PROGRAM = Path(__file__).with_name("remote_process.py").read_text()
_ANSWER_TIMEOUT_S = 60.0


class RemoteError(Exception):
    """What the remote's code raised.

    Args:
        kind: The class's name.
        text: The message, or a status's details.
        code: The gRPC status code's name, where there is one.
        reason: ``keyside``'s reason, where there is one.
        remedy: ``keyside``'s remedy, where there is one.
    """

    def __init__(self, kind: str, text: str, code: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"{kind} {code} {reason}: {text}")
        self.kind = kind
        self.text = text
        self.code = code
        self.reason = reason
        self.remedy = remedy


class Remote:
    """Runs Python in a process of its own.

    At hand it has ``client`` (a ``keyside.Client``), ``keyside``, ``grpc``, ``target`` (where a
    channel goes to) and ``owner`` (whom the socket belongs to).

    Args:
        sidecar: Where ``client`` connects to.
        uid: The account, and its group's number.
    """

    def __init__(self, sidecar: Sidecar, uid: int = SERVICE_UID) -> None:
        who: dict[str, object] = {}
        if IS_ROOT:
            who = {"user": uid, "group": uid, "extra_groups": []}
        self._process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            [PYTHON, "-c", _PROGRAM],
            env={
                "PATH": os.environ["PATH"],
                "KEYSIDE_SOCKET": str(sidecar.socket),
                "KEYSIDE_TEST_OWNER": str(SIDECAR_UID if IS_ROOT else os.geteuid()),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            **who,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.kill()
        self._process.wait()

    def run(self, code: str, **names: object) -> Any:
        """Run ``code`` and return what it left in ``answer``; bytes come as hex.

        Args:
            code: Statements. Names that they bind are there for the next call, too.
            names: Given to it; what JSON knows.

        Raises:
            RemoteError: It raised.
        """
        self.begin(code, **names)
        return self.finish()

    def begin(self, code: str, **names: object) -> None:
        """Have it run ``code``, and don't wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"code": code, "names": names}) + "\n")
        self._process.stdin.flush()

    def is_busy(self, wait_s: float = 0.0) -> bool:
        """Return whether what was begun is still going on after ``wait_s`` seconds."""
        assert self._process.stdout is not None
        return not select.select([self._process.stdout], [], [], wait_s)[0]

    def finish(self) -> Any:
        """Wait for what was begun, and return its ``answer``.

        Raises:
            RemoteError: It raised.
        """
        assert not self.is_busy(_ANSWER_TIMEOUT_S), "the remote does not answer"
        assert self._process.stdout is not None
        reply = json.loads(self._process.stdout.readline())
        if "error" in reply:
            raise RemoteError(**reply["error"])
        return reply["answer"]
