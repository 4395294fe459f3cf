"""Runs a command as one account inside a new user namespace that maps some ids only.

    python user_namespace.py UID GID FIRST-LAST … -- COMMAND …

Each range is mapped to itself, uids and gids alike. Run by root: only root may write such a map.
"""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000


def main() -> None:
    """Become the account, enter the namespace, and run the command."""
    end = sys.argv.index("--")
    uid, gid = map(int, sys.argv[1:3])
    lines = ""
    for text in sys.argv[3:end]:
        first, last = map(int, text.split("-"))
        lines += f"{first} {first} {last - first + 1}\n"
    told, tell = os.pipe()
    inside = os.getpid()
    writer = os.fork()
    if writer == 0:  # stays outside, as root, and writes the maps
        os.close(tell)
        os.read(told, 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{inside}/{name}", "w") as file:  # noqa: PTH123
                file.write(lines)
        os._exit(0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    os.close(told)
    os.close(tell)
    _, status = os.waitpid(writer, 0)
    if status:
        raise SystemExit("the maps could not be written")
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])


if __name__ == "__main__":
    main()
