"""A mail archive: messages sealed in this process, and one sealed file of any size.

The key's policy needs allow_data_keys = true. Run it with KEYSIDE_SOCKET set:

    python sealed_archive.py pack mail-credentials FOLDER archive.sealed
    python sealed_archive.py list archive.sealed
    python sealed_archive.py bench mail-credentials
"""

from __future__ import annotations

import argparse
import os
import tarfile
import time
from pathlib import Path

import keyside

MESSAGES = 100_000
CONTEXT = {"kind": "archive"}


def pack(key: str, folder: str, archive: str) -> None:
    """Write a folder as a sealed tar file; it appears when it is whole, or not at all."""
    with (
        keyside.open(archive, "wb", key=key, context=CONTEXT) as file,
        tarfile.open(fileobj=file, mode="w|") as tar,
    ):
        tar.add(folder, arcname=Path(folder).name)


def list_names(archive: str) -> None:
    """Print what is in it; only the segments that hold headers are opened."""
    with (
        keyside.open(archive, context=CONTEXT) as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        for member in tar:
            print(f"{member.size:>12,}  {member.name!r}")


def bench(key: str) -> None:
    """Seal and open many short messages under one data key."""
    with keyside.Client() as client:
        cipher = keyside.LocalCipher(client, key)
        begun_s = time.perf_counter()
        for number in range(MESSAGES):
            context = {"message": str(number)}
            cipher.open(cipher.seal(os.urandom(256), context), context)
        took_s = time.perf_counter() - begun_s
    print(f"{MESSAGES:,} messages sealed and opened, {took_s / MESSAGES * 1e6:.1f} µs each")


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("key")
    packing.add_argument("folder")
    packing.add_argument("archive")
    commands.add_parser("list").add_argument("archive")
    commands.add_parser("bench").add_argument("key")
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.key, arguments.folder, arguments.archive)
    elif arguments.command == "list":
        list_names(arguments.archive)
    else:
        bench(arguments.key)


if __name__ == "__main__":
    main()
