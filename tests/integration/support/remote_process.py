"""What a remote's process runs: the Python text that it is told on standard input.

Run as ``python -c TEXT``, so that the account it runs under need not be able to read this file.
Each line in is a JSON object, and so is each line out. ``remote.py`` is the other side.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import grpc

import keyside


def describe(error: Exception) -> dict[str, Any]:
    """Return what a test wants to know of an error."""
    facts: dict[str, Any] = {
        "kind": type(error).__name__,
        "text": str(error),
        "code": "",
        "reason": "",
    }
    if isinstance(error, keyside.KeysideError):
        facts |= {"code": error.code, "reason": error.reason, "remedy": error.remedy}
    elif isinstance(error, grpc.Call):
        facts |= {"code": error.code().name, "text": error.details() or ""}
    return facts


def main() -> None:
    """Do what is asked until there are no more requests."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    owner = int(os.environ["KEYSIDE_TEST_OWNER"])
    target = f"unix:{os.environ['KEYSIDE_SOCKET']}"
    names: dict[str, Any] = {"keyside": keyside, "grpc": grpc, "target": target, "owner": owner}
    names["client"] = keyside.Client(expected_owner=owner)
    for line in sys.stdin:
        request = json.loads(line)
        names |= request["names"]
        names["answer"] = None
        try:
            exec(request["code"], names)
            reply = {"answer": names["answer"]}
        except Exception as error:  # noqa: BLE001  (the test decides what may happen)
            reply = {"error": describe(error)}
        print(json.dumps(reply, default=bytes.hex))
    os._exit(0)  # a stream that is still open would keep the interpreter from ending


if __name__ == "__main__":
    main()
