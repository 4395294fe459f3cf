"""Callers in a storm of kills: an operator who manages keys, a service that encrypts, all the time.

``python -c TEXT manage KEY…`` rotates, disables and enables versions, schedules destructions and
calls them off; it writes a JSON line for each version that it was told of, and in the end, when all
is calm, enables every version again. ``python -c TEXT encrypt KEY…`` writes a line for each record,
which it keeps. Both go on until standard input says "stop"; the service then waits for another line
and opens everything that it has. The last line says how it went.

Neither treats any error but UNAVAILABLE as a part of the storm, and of a disabled version its own:
whatever else is answered while the sidecar is being killed is reported.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import keyside

MANAGING_THREADS = 3
ENABLING_THREADS = 8
# How much of what an operator does is a rotation; the rest is done to an older version.
ROTATIONS = 0.7
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


def manage(names: list[str]) -> None:
    """Rotate keys, and do things to their older versions, until told to stop."""
    client = make_client()
    while not stopping.is_set():
        name = random.choice(names)
        try:
            if random.random() < ROTATIONS:
                done = client.rotate_key(name)
                told = [done.version, done.previous]
            else:
                told = [change_older(client, name)]
        except keyside.errors.WrongVersionState:
            pass  # the version was in a state that does not allow it, as is to be expected
        except Exception as error:  # noqa: BLE001  (judged by the test)
            note(error)
        else:
            for version in told:
                report(key=name, number=version.number, id=version.id)


def change_older(client: keyside.Client, name: str) -> keyside.KeyVersion:
    """Do something to a version that is not current, and return it."""
    number = random.randrange(1, max(2, client.get_key(name).current_version))
    change = random.choice(
        (
            client.disable_version,
            client.enable_version,
            client.destroy_version,
            client.cancel_destroy_version,
        )
    )
    return change(name, number).version


def enable_all(names: list[str]) -> None:
    """Call every destruction off and enable every version."""
    client = keyside.Client(
        expected_owner=int(os.environ["KEYSIDE_TEST_OWNER"]), timeout_s=FINAL_TIMEOUT_S
    )

    def enable(name: str, version: keyside.KeyVersion) -> None:
        # Another operator may have been here already.
        with suppress(keyside.errors.WrongVersionState):
            if version.destroy_in is not None:
                client.cancel_destroy_version(name, version.number)
            if version.state is keyside.KeyVersionState.DISABLED:
                client.enable_version(name, version.number)

    with ThreadPoolExecutor(ENABLING_THREADS) as threads:
        for name in names:
            list(threads.map(partial(enable, name), client.iter_versions(name)))


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
        except keyside.errors.VersionUnusable as error:
            if error.reason != "VERSION_DISABLED":
                note(error)
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
    if role == "manage":
        threads = [threading.Thread(target=manage, args=(names,)) for _ in range(MANAGING_THREADS)]
    else:
        threads = [threading.Thread(target=encrypt, args=(names, kept))]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    stopping.set()
    for thread in threads:
        thread.join()
    lost: list[str] = []
    if role == "manage":
        enable_all(names)
    else:
        sys.stdin.readline()
        lost = find_lost(kept)
    report(unavailable=len(unavailable), unexpected=unexpected, sealed=len(kept), lost=lost)


if __name__ == "__main__":
    main()
