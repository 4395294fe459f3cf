"""No secret of any flow is left anywhere (I7): plaintexts, passwords, credentials.

Each is marked, and every place where something is written is searched for it, in the forms in which
programs write bytes.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from support.marks import find_secrets, read_files
from support.town import KEY, MEMBERS, NO_LOGIN, Town, find_id, password_of, sidecar_in, town

from keyside.v1 import encryption_pb2, keys_pb2

if TYPE_CHECKING:
    from support.caller import Answer
    from support.sidecar import Sidecar

pytestmark = pytest.mark.root

PLAINTEXT = b"marked-plaintext-0123456789-of-a-mailbox"
WRONG = "marked-wrong-password-0123456789"


@dataclass
class Watch:
    """Looks at the arguments and the environment of all processes, again and again."""

    seen: set[bytes] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until told to stop."""
        while not self._stop.wait(0.005):
            for process in Path("/proc").glob("[0-9]*"):
                if process.name == str(os.getpid()):
                    continue
                for name in ("cmdline", "environ"):
                    try:
                        self.seen.add((process / name).read_bytes())
                    except OSError:  # it has ended
                        continue

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def go_every_way(
    place: Town, sidecar: Sidecar, runtime: Path
) -> tuple[list[Answer], list[bytes], list[str]]:
    """Go through every flow, well and badly.

    Returns:
        What was answered, what commands printed that hold no secret, and the credentials.
    """
    answers: list[Answer] = []
    printed: list[bytes] = []
    envelope = place.seal(sidecar, PLAINTEXT, mailbox="42")
    answers += [place.ask(sidecar, password=WRONG), place.ask(sidecar, "erin", reason="")]
    access_id, credential = place.granted(sidecar)
    answers += [
        place.open(sidecar, envelope, credential, mailbox="43"),
        place.open(sidecar, envelope + b"x", credential, mailbox="42"),
        place.open(sidecar, envelope, credential, "erin", mailbox="42"),
        place.open(sidecar, envelope, credential[:-1], mailbox="42"),
        place.do(sidecar, "alice", "ActivateAccess", access_id),
        place.do(sidecar, "bob", "DenyAccess", access_id, reason="late"),
        place.do(sidecar, "bob", "RevokeAccess", access_id, reason="enough"),
        place.open(sidecar, envelope, credential, mailbox="42"),
    ]
    assert {answer.code for answer in answers if answer.data} <= {"OK"}
    password = password_of("alice") + "\n"
    asked = place.keyside(
        *(sidecar, "alice", "access", "request", KEY, "--reason", "once more"),
        *("--duration", "10m", "--password-stdin"),
        stdin=password,
    )
    second = find_id(asked.stdout)
    for person in ("bob", "carol", "dave"):
        done = place.keyside(
            *(sidecar, person, "access", "approve", second, "--password-stdin", "--yes"),
            stdin=password_of(person) + "\n",
        )
        printed += [done.stdout, done.stderr]
    done = place.keyside(
        *(sidecar, "alice", "access", "activate", second, "--password-stdin"),
        stdin=password,
        runtime=runtime,
    )
    assert done.returncode == 0, done
    printed += [asked.stdout, asked.stderr, done.stdout, done.stderr]
    opened = place.keyside(
        *(sidecar, "alice", "decrypt", "--context", "mailbox=42"), stdin=envelope, runtime=runtime
    )
    assert opened.stdout == PLAINTEXT
    for arguments in (
        ("access", "show", second),
        ("access", "list", "--all", "--json"),
        ("audit", "search", "--json"),
        ("audit", "explain", second),
        ("status", "--json"),
    ):
        found = place.keyside(sidecar, "audrey", *arguments)
        printed += [found.stdout, found.stderr]
    wrong = place.keyside(
        *(sidecar, "erin", "access", "request", KEY, "--reason", "why", "--duration", "5m"),
        "--password-stdin",
        stdin=WRONG + "\n",
    )
    printed += [wrong.stdout, wrong.stderr]
    caller = place.caller(sidecar, "mail", login=NO_LOGIN)
    request = encryption_pb2.DecryptRequest(envelope=envelope, context={"mailbox": "42"})
    caller.call("/keyside.v1.EncryptionService/Decrypt", request)
    place.caller(sidecar, "olga").call(
        "/keyside.v1.KeyService/RotateKey", keys_pb2.RotateKeyRequest(name=KEY)
    )
    kept = next(runtime.rglob("*.json")).read_text()
    credentials = [credential, kept[kept.index("ksc-") :][:56]]
    return answers, printed, credentials


def test_i7_every_flow_leaves_no_secret_anywhere() -> None:
    """Log, audit log, store, root key's neighbours, answers, output, arguments, environments."""
    with (
        town() as place,
        sidecar_in(place, settings='log_level = "debug"\nworkers = 2') as sidecar,
        place.runtime_of("alice") as own,
    ):
        with Watch() as watch:
            answers, printed, credentials = go_every_way(place, sidecar, own)
        sidecar.stop()
        places = {
            **read_files(sidecar.directory.rglob("*")),
            "answers": "\n".join(
                f"{one.text} {one.remedy} {one.reason}" for one in answers
            ).encode(),
            "output": b"\n".join(printed),
            "processes": b"\n".join(watch.seen),
        }
        assert {"audit.jsonl", "keyside.db", "sidecar.log"} <= places.keys()
        assert len(watch.seen) > 20
        secrets = {
            "plaintext": PLAINTEXT,
            "wrong password": WRONG.encode(),
            **{f"password of {name}": password_of(name).encode() for name in MEMBERS},
            **{f"credential {n}": text.encode() for n, text in enumerate(credentials)},
        }
        assert find_secrets(places, secrets) == []
        # The search finds what is there: each place holds something that was searched for so.
        assert find_secrets(places, {"key": KEY.encode()})
