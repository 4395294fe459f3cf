"""A process that uses clients in some way and then forks; run by test_client_fork.py.

``python -m tests.unit.fork_scenarios SCENARIO SOCKET`` prints one word per child, then what the
parent could still do. Children end as programs do, with destructors, and not by ``os._exit``;
except after a fork with an AsyncClient open, where grpcio's destructors wait for a thread that
the fork did not copy.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time

import keyside

CHILDREN = 4
CHILD_LIMIT_S = 15
KEPT_OPEN: list[keyside.AsyncClient] = []


def try_sync(client: keyside.Client) -> str:
    try:
        return client.decrypt(client.encrypt("mail", b"ok")).decode()
    except keyside.KeysideError as error:
        return error.reason


async def try_async(socket: str) -> str:
    async with keyside.AsyncClient(socket) as client:
        try:
            return (await client.decrypt(await client.encrypt("mail", b"ok"))).decode()
        except keyside.KeysideError as error:
            return error.reason


def fork_children(scenario: str, client: keyside.Client, socket: str) -> None:
    for _ in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            signal.alarm(CHILD_LIMIT_S)
            words = [try_sync(client), try_sync(keyside.Client(socket))]
            words.append(asyncio.run(try_async(socket)))
            print("child", *words, flush=True)
            if scenario == "async-open":
                os._exit(0)
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            print("child died of", os.waitstatus_to_exitcode(status), flush=True)


def prepare(scenario: str, client: keyside.Client, socket: str) -> None:
    """Bring this process into the state that it is to be forked in."""
    if scenario == "unused":
        assert "grpc" not in sys.modules
    elif scenario == "imported":
        import grpc  # noqa: F401
    elif scenario in {"used", "grandchild"}:
        assert try_sync(client) == "ok"
    elif scenario == "async-closed":
        assert asyncio.run(try_async(socket)) == "ok"
    elif scenario == "in-flight":
        assert try_sync(client) == "ok"
        threads = [threading.Thread(target=client.rewrap, args=(b"slow",)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
    elif scenario == "async-open":
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        KEPT_OPEN.append(keyside.AsyncClient(socket))
        asyncio.run_coroutine_threadsafe(KEPT_OPEN[0].status(), loop).result()


def main(scenario: str, socket: str) -> None:
    client = keyside.Client(socket, timeout_s=10)
    prepare(scenario, client, socket)
    if scenario != "grandchild":
        fork_children(scenario, client, socket)
    elif os.fork() == 0:
        assert try_sync(client) == "ok"
        fork_children(scenario, client, socket)
        sys.exit(0)
    else:
        os.wait()
    print("parent", try_sync(client), flush=True)
    if scenario == "async-open":
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
