"""Callers in a storm of kills: an operator who rotates, and a service that encrypts, all the time.

``python -c TEXT rotate KEY…`` writes a JSON line for each version that it was told of, and
``python -c TEXT encrypt KEY…`` one for each record, which it keeps. Both go on until standard input
says "stop"; the service then opens everything that it has. The last line says how it went.

Neither treats any error but UNAVAILABLE as a part of the storm: whatever else is answered while the
sidecar is being killed is reported.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from typing import Any

import keyside

ROTATING_THREADS = 3
CALL_TIMEOUT_S = 5.0
PAUSE_S = 0.05
FINAL_TIMEOUT_S = 30.0

stopping = threading.Event()
unexpected: list[str] = []
unavailable: list[str] = []


def make_client() -> keyside.Client:
    """Return a client with a connection of its own."""
    owner = int(os.environ["KEYSIDE_TEST_OWNER"])
    return keyside.Client(expected_owner=owner, timeout_s=CALL_TIMEOUT_S, retry=False)


def report(**facts: Any) -> None:
    """Write one line, at once and whole."""
    os.write(1, (json.dumps(facts) + "\n").encode())


def note(error: Exception) -> None:
    """Take note of a call that failed."""
    if isinstance(error, keyside.errors.Unavailable):
        unavailable.append(error.reason)
    else:
        unexpected.append(f"{type(error).__name__}: {error}")
    time.sleep(PAUSE_S)


def rotate(names: list[str]) -> None:
    """Rotate one key or the other until told to stop."""
    client = make_client()
    while not stopping.is_set():
        try:
            done = client.rotate_key(random.choice(names))
        except Exception as error:  # noqa: BLE001  (judged by the test)
            note(error)
        else:
            version, previous = done.version, done.previous
            report(key=done.key.name, number=version.number, id=version.id)
            report(key=done.key.name, number=previous.number, id=previous.id)


def encrypt(names: list[str], kept: list[tuple[bytes, bytes]]) -> None:
    """Encrypt, and open something older again, until told to stop."""
    client = make_client()
    while not stopping.is_set():
        plaintext = b"record %d" % len(kept)
        context = {"record": str(len(kept))}
        try:
            kept.append((plaintext, client.encrypt(random.choice(names), plaintext, context)))
            report(sealed=len(kept))
            number = random.randrange(len(kept))
            opened = client.decrypt(kept[number][1], {"record": str(number)})
            if opened != kept[number][0]:
                unexpected.append(f"record {number} came back as {opened!r}")
        except Exception as error:  # noqa: BLE001  (judged by the test)
            note(error)
        time.sleep(PAUSE_S)


def find_lost(kept: list[tuple[bytes, bytes]]) -> list[str]:
    """Open everything once more; return what does not open."""
    client = keyside.Client(
        expected_owner=int(os.environ["KEYSIDE_TEST_OWNER"]), timeout_s=FINAL_TIMEOUT_S
    )
    lost = []
    for number, (plaintext, envelope) in enumerate(kept):
        try:
            if client.decrypt(envelope, {"record": str(number)}) != plaintext:
                lost.append(f"record {number} is another one")
        except keyside.KeysideError as error:
            lost.append(f"record {number}: {type(error).__name__}: {error}")
    return lost


def main() -> None:
    """Run until told to stop, then say how it went."""
    role, names = sys.argv[1], sys.argv[2:]
    kept: list[tuple[bytes, bytes]] = []
    if role == "rotate":
        threads = [threading.Thread(target=rotate, args=(names,)) for _ in range(ROTATING_THREADS)]
    else:
        threads = [threading.Thread(target=encrypt, args=(names, kept))]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    stopping.set()
    for thread in threads:
        thread.join()
    report(
        unavailable=len(unavailable), unexpected=unexpected, sealed=len(kept), lost=find_lost(kept)
    )


if __name__ == "__main__":
    main()
