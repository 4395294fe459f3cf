"""A process under another account that makes gRPC calls when told, and says what came of them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from support.sidecar import PYTHON, SIDECAR_UID

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_Message = TypeVar("_Message", bound=Message)

UNSET_LOGIN = 2**32 - 1
OVERFLOW_ID = 65534

_CALLING = Path(__file__).with_name("calling.py")
# The login uid is written by root, which may also take away that of a developer's own login. The
# session id follows from it: the kernel counts one up, or has none.
SET_LOGIN = """
login=$1; shift
if [ "$(cat /proc/self/loginuid)" != "$login" ]; then echo "$login" >/proc/self/loginuid; fi
exec "$@"
"""


@dataclass(frozen=True)
class Answer:
    """What came of one call.

    Args:
        code: The status code's name.
        reason: ``ErrorInfo.reason``.
        text: The status message.
        domain: ``ErrorInfo.domain``.
        remedy: ``ErrorInfo.metadata["remedy"]``.
        field: The field named in ``BadRequest``.
        data: The answer, serialised.
        started_s: ``time.monotonic()`` before the call.
        ended_s: And after it.
    """

    code: str
    reason: str = ""
    text: str = ""
    domain: str = ""
    remedy: str = ""
    field: str = ""
    data: bytes = b""
    started_s: float = 0.0
    ended_s: float = 0.0

    @property
    def outcome(self) -> tuple[str, str]:
        """Code and reason: what callers decide by."""
        return self.code, self.reason

    def parse(self, kind: type[_Message]) -> _Message:
        """Return the answer as a message; fail where there is none."""
        assert self.code == "OK", self
        return kind.FromString(self.data)


def read_status(status: status_pb2.Status) -> Answer:
    """Return what an item of a batch was told, as if it had been a call's answer."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return Answer(
        code=next(code.name for code in grpc.StatusCode if code.value[0] == status.code),
        reason=info.reason,
        text=status.message,
        domain=info.domain,
        remedy=dict(info.metadata).get("remedy", ""),
        field=bad.field_violations[0].field if bad.field_violations else "",
    )


class Caller:
    """One caller, from its start to its end.

    Args:
        target: Where it calls, as gRPC spells it.
        uid: The uid to run as.
        gid: The gid to run as; by default the uid's number.
        groups: Supplementary groups.
        login: The audit login uid to have.
        prefix: A command to be started by, as root.
    """

    def __init__(
        self,
        target: str,
        *,
        uid: int,
        gid: int | None = None,
        groups: Sequence[int] = (),
        login: int = UNSET_LOGIN,
        prefix: Sequence[str] = (),
    ) -> None:
        self.uid = uid
        listed = ",".join(map(str, groups))
        self._process = subprocess.Popen(
            [
                *prefix,
                *("sh", "-ec", SET_LOGIN, "sh", str(login)),
                *("setpriv", f"--reuid={uid}", f"--regid={uid if gid is None else gid}"),
                f"--groups={listed}" if groups else "--clear-groups",
                *(PYTHON, "-c", _CALLING.read_text(), target),
            ],
            env={"PATH": os.environ["PATH"], "KEYSIDE_TEST_OWNER": str(SIDECAR_UID)},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.pid: int = self._read()["pid"]
        except BaseException:
            self.end()
            raise

    def call(
        self, path: str, request: Message | bytes = b"", *, channel: str = "", **settings: Any
    ) -> Answer:
        """Make a call and wait for what comes of it; of a stream take the first answer.

        Args:
            path: The RPC's full name.
            request: The request.
            channel: Which of the caller's channels to use; a new name makes a new one.
            settings: ``options`` of a new channel, ``metadata``, ``timeout_s``, ``raw``.
        """
        data = request if isinstance(request, bytes) else request.SerializeToString()
        encoded = base64.b64encode(data).decode()
        found = self.do("call", path=path, data=encoded, channel=channel, **settings)
        return Answer(**found | {"data": base64.b64decode(found.get("data", ""))})

    def do(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Have the process carry out one of the actions of ``calling.py``."""
        self.begin(action, **arguments)
        return self.finish()

    def begin(self, action: str, **arguments: Any) -> None:
        """Ask for an action without waiting."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"action": action, **arguments}) + "\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Wait for what was begun."""
        found = self._read()
        del found["number"]
        return found

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the caller under uid {self.uid} has ended"
        found: dict[str, Any] = json.loads(line)
        return found


class Callers:
    """Starts callers on one sidecar, and ends them all."""

    def __init__(self, socket: Path) -> None:
        self.target = f"unix:{socket}"
        self._started: list[Caller] = []

    def start(self, uid: int, *, target: str = "", **settings: Any) -> Caller:
        """Return a new caller; for the settings see ``Caller``."""
        self._started.append(Caller(target or self.target, uid=uid, **settings))
        return self._started[-1]

    def end(self) -> None:
        """End them all."""
        while self._started:
            self._started.pop().end()


@contextlib.contextmanager
def callers_of(socket: Path) -> Iterator[Callers]:
    """Give callers on a socket, and end them afterwards."""
    callers = Callers(socket)
    try:
        yield callers
    finally:
        callers.end()
