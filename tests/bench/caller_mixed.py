"""What a service's process runs for soak_mixed.py; given to it as text.

It reads on standard input what its calls should get from now on, and in the end writes what they
got. A call counts for what was expected both when it began and when it ended; where that changed
meanwhile it may go either way.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

import keyside

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = TypeVar("Answer")
KEY = "mail-credentials"
THREADS = 3
KEPT = 2_000
BATCH = 200

expected = ["served"]
counted: collections.Counter[str] = collections.Counter()
wrong: list[str] = []
kept: list[tuple[bytes, bytes]] = []
stopping = threading.Event()
lock = threading.Lock()


def keep(envelope: bytes, plaintext: bytes) -> None:
    """Keep an envelope, to be opened later under a version that is archived by then."""
    with lock:
        if len(kept) < KEPT:
            kept.append((envelope, plaintext))
        else:
            kept[random.randrange(KEPT)] = envelope, plaintext


def pick() -> tuple[bytes, bytes]:
    """Return an envelope that was kept, and what it holds."""
    with lock:
        return random.choice(kept)


def ask(call: Callable[[], Answer]) -> Answer:
    """Make one call to the sidecar, and judge what came of it.

    Raises:
        KeysideError: It failed.
    """
    before = expected[0]
    error: Exception | None = None
    try:
        return call()
    except keyside.KeysideError as caught:
        error = caught
        raise
    finally:
        judge(before if before == expected[0] else "either", error)


def make_ways(client: keyside.Client) -> list[Callable[[], None]]:
    """Return every way to use the sidecar; each raises where a call failed."""

    def single() -> None:
        plaintext = random.randbytes(256)
        keep(ask(lambda: client.encrypt(KEY, plaintext)), plaintext)

    def older() -> None:
        envelope, plaintext = pick()
        check(ask(lambda: client.decrypt(envelope)), plaintext)

    def rewrap() -> None:
        envelope, plaintext = pick()
        keep(ask(lambda: client.rewrap(envelope)), plaintext)

    def batch() -> None:
        texts = [random.randbytes(64) for _ in range(BATCH)]
        items = [(KEY, text) for text in texts]
        sealed = ask(lambda: [done.envelope for done in client.encrypt_batch(items)])
        opened = ask(lambda: [done.plaintext for done in client.decrypt_batch(sealed)])
        check(b"".join(opened), b"".join(texts))

    def local() -> None:
        # A cipher of its own each time: it has to ask for its keys anew.
        cipher = keyside.LocalCipher(client, KEY)
        plaintext = random.randbytes(256)
        envelope = ask(lambda: cipher.seal(plaintext))
        check(ask(lambda: cipher.open(envelope)), plaintext)
        keep(envelope, plaintext)

    return [single, single, older, older, rewrap, batch, local]


def check(opened: bytes, plaintext: bytes) -> None:
    """Count a failure where an envelope holds something else."""
    if opened != plaintext:
        with lock:
            counted["failed"] += 1
            wrong.append("an envelope came back as another one")


def work() -> None:
    """Make calls until told to end."""
    ways = make_ways(keyside.Client())
    while not stopping.is_set():
        with contextlib.suppress(keyside.KeysideError):
            (random.choice(ways) if kept else ways[0])()


def judge(should: str, error: Exception | None) -> None:
    """Count a call, and note what should not have been."""
    refused = isinstance(error, keyside.NotPermitted)
    with lock:
        counted["refused" if refused else "served" if error is None else "other"] += 1
        counted["either"] += should == "either"
        if error is not None and not (refused and should != "served"):
            counted["failed"] += 1
            wrong.append(f"{should}, but {type(error).__name__}: {error}")
        elif error is None and should == "refused":
            counted["let in"] += 1
            wrong.append("refused, but served")


def give_up(told: threading.ExceptHookArgs) -> None:
    """End the whole process with a thread that ends by accident."""
    threading.__excepthook__(told)
    os._exit(1)


def main() -> None:
    """Run until told to end, then say how it went."""
    threading.excepthook = give_up
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        if line.strip() == "end":
            break
        expected[0] = line.strip()
        print(expected[0], flush=True)
    stopping.set()
    for thread in threads:
        thread.join()
    names = ("served", "refused", "either", "failed", "let in")
    print(json.dumps({name: counted[name] for name in names} | {"wrong": wrong[:20]}))


if __name__ == "__main__":
    main()
