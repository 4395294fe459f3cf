"""Programs run where something that they usually have is missing, full or gone."""

from __future__ import annotations

import enum
import json
import os
import queue
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.unit import warm_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
_AT_ONCE = 3
_PLAIN = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class Oddity(enum.Enum):
    """What is unusual, and the shell's way to make it so."""

    NOTHING = 'exec "$@"'
    OUTPUT_FULL = 'exec "$@" >/dev/full'
    OUTPUT_CLOSED = 'exec "$@" >&-'
    OUTPUT_UNREAD = 'mkfifo "$GONE" && { : <"$GONE" & exec 3>"$GONE"; wait; exec "$@" >&3 3>&-; }'
    INPUT_CLOSED = 'exec "$@" <&-'
    ERRORS_CLOSED = 'exec "$@" 2>&-'
    ERRORS_FULL = 'exec "$@" 2>/dev/full'
    ALL_CLOSED = 'exec "$@" <&- >&- 2>&-'
    DIRECTORY_GONE = 'mkdir "$GONE" && cd "$GONE" && rmdir "$GONE" && exec "$@"'
    PLAIN_LANGUAGE = 'exec env LANG=C LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"'
    NO_TERMINAL = 'exec setsid -w "$@"'


# Where standard output goes, how what can't be written there ends, and why.
LOST_OUTPUT = {
    Oddity.OUTPUT_FULL: ("/dev/full", 74, "No space left on device"),
    Oddity.OUTPUT_CLOSED: (None, 74, "it is not open for writing"),
    Oddity.OUTPUT_UNREAD: (warm_program.UNREAD, 141, "Broken pipe"),
    Oddity.ALL_CLOSED: (None, 74, ""),
}
_NO_INPUT = {Oddity.INPUT_CLOSED, Oddity.ALL_CLOSED}
_ERRORS = {
    Oddity.ERRORS_FULL: "/dev/full",
    Oddity.ERRORS_CLOSED: None,
    Oddity.ALL_CLOSED: None,
}


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    code: int
    output: bytes
    errors: str

    @property
    def complaints(self) -> list[str]:
        """The lines that name the program: errors, and nothing that was said before a question."""
        return [line for line in self.errors.splitlines() if line.startswith("keyside")]


@dataclass(frozen=True)
class Call:
    """A command to run.

    Args:
        arguments: The program's name and what follows it.
        stdin: What is on standard input.
        end_after_s: When it is ended by SIGTERM, if it goes on.
    """

    arguments: Sequence[str]
    stdin: bytes = b""
    end_after_s: float | None = None


def start_oddly(
    oddity: Oddity, arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> Ended:
    """Start a program anew where something is odd, with a shell's help, and wait for its end."""
    with tempfile.TemporaryDirectory(prefix="ks-test-") as place:
        done = subprocess.run(
            ["/bin/sh", "-c", oddity.value, "sh", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**_inherit(), "GONE": f"{place}/gone", **(environment or {})},
            timeout=60,
            check=False,
        )
    return Ended(done.returncode, done.stdout, done.stderr.decode())


class WarmProgram:
    """A program that is forked for each run, with what is odd; see ``warm_program``.

    Use it as a context manager: its processes are gone afterwards.

    Args:
        entry: The function that runs it, as ``module:function``.
        modules: What it loads later.
        environment: What is in its environment.
    """

    def __init__(
        self, entry: str, modules: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = [sys.executable, warm_program.__file__, entry, *modules]
        self._environment = {**_inherit(), **(environment or {})}
        self._started: dict[bool, list[subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for started in self._started.values():
            for process in started:
                process.communicate(timeout=60)

    def run_all(self, oddity: Oddity, calls: Sequence[Call]) -> list[Ended]:
        """Make all calls, several at once; return how they ended, in the same order."""
        idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self._start(oddity):
            idle.put(process)

        def run(call: Call) -> Ended:
            process = idle.get()
            with tempfile.TemporaryDirectory(prefix="ks-test-") as folder:
                Path(folder).chmod(0o755)
                ended = self._run(process, oddity, call, Path(folder))
            idle.put(process)
            return ended

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(run, calls))

    def _start(self, oddity: Oddity) -> list[subprocess.Popen[bytes]]:
        plain = oddity is Oddity.PLAIN_LANGUAGE  # which Python asks about as it starts
        if plain not in self._started:
            self._started[plain] = [
                subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**self._environment, **(_PLAIN if plain else {})},
                )
                for _ in range(_AT_ONCE)
            ]
        return self._started[plain]

    def _run(
        self, process: subprocess.Popen[bytes], oddity: Oddity, call: Call, folder: Path
    ) -> Ended:
        given, output, errors = (folder / name for name in ("stdin", "stdout", "stderr"))
        given.write_bytes(call.stdin)
        output.touch()
        errors.touch()
        plain = _PLAIN if oddity is Oddity.PLAIN_LANGUAGE else {}
        order = {
            "arguments": list(call.arguments),
            "environment": {**self._environment, **plain},
            "streams": [
                None if oddity in _NO_INPUT else str(given),
                LOST_OUTPUT[oddity][0] if oddity in LOST_OUTPUT else str(output),
                _ERRORS.get(oddity, str(errors)),
            ],
            "gone": str(folder / "gone") if oddity is Oddity.DIRECTORY_GONE else None,
            "new_session": oddity is Oddity.NO_TERMINAL,
            "end_after_s": call.end_after_s,
        }
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        # A signal's number, as a shell would say it.
        return Ended(128 - code if code < 0 else code, output.read_bytes(), errors.read_text())


def judge(oddity: Oddity, usually: Ended, ended: Ended, *, done: str = "") -> str:
    """Return what is wrong with how a command has ended, or nothing.

    What could not be written is exit code 74 and one line, 141 and silence where nobody reads; what
    was done is said in either case. Nothing else that is odd changes the exit code.

    Args:
        oddity: What was odd.
        usually: How the same command ends where nothing is.
        ended: How it ended.
        done: What it has done that somebody must be told.
    """
    said = f"exit code {ended.code}; {ended.errors!r}"
    if "Traceback" in ended.errors or 'File "' in ended.errors:
        return f"a traceback: {said}"
    if oddity not in LOST_OUTPUT or not usually.output:
        return "" if ended.code == usually.code else f"not {usually.code}: {said}"
    _, code, why = LOST_OUTPUT[oddity]
    wanted = f": can't write standard output: {why}"
    if oddity is Oddity.ALL_CLOSED:
        right = True
    elif done:
        parts = (f"{wanted}; but this was done: ", done)
        right = len(ended.complaints) == 1 and all(one in ended.complaints[0] for one in parts)
    elif oddity is Oddity.OUTPUT_UNREAD:
        right = ended.complaints == []
    else:
        right = len(ended.complaints) == 1 and ended.complaints[0].endswith(wanted)
    return "" if right and ended.code == code else f"not {code} and {wanted!r}, {done!r}: {said}"


def _inherit() -> dict[str, str]:
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}
