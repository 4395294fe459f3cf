"""A mail gateway that keeps its users' connected accounts: passwords and OAuth refresh tokens.

The table holds envelopes only. Each is bound to its row by its context, so that an envelope moved
to another row does not open. Run it with KEYSIDE_SOCKET set:

    python mail_gateway.py --db accounts.db add 3000     store made-up accounts
    python mail_gateway.py --db accounts.db check        decrypt every record and compare
    python mail_gateway.py --db accounts.db rewrap       move every record to the current version
    python mail_gateway.py --db accounts.db show         print what the table holds
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import keyside
from keyside.envelope import parse_wrapping_header

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "mail-credentials"
THREADS = 8
PROVIDERS = ("hotmail.example", "gmail.example", "yahoo.example")


def open_table(path: str) -> sqlite3.Connection:
    """Open the gateway's own database."""
    table = sqlite3.connect(path)
    table.execute(
        "CREATE TABLE IF NOT EXISTS accounts"
        " (mailbox TEXT PRIMARY KEY, kind TEXT, secret BLOB, fingerprint TEXT)"
    )
    return table


def make_accounts(count: int) -> Iterator[tuple[str, str, bytes]]:
    """Invent connected accounts: (mailbox, kind of secret, secret)."""
    for number in range(count):
        mailbox = f"user{number}@{PROVIDERS[number % len(PROVIDERS)]}"
        if number % 3 == 0:
            yield mailbox, "password", b"correct horse " + os.urandom(6).hex().encode()
        else:
            yield mailbox, "refresh-token", b"1//" + os.urandom(96).hex().encode()


def context_of(mailbox: str, kind: str) -> dict[str, str]:
    """Bind an envelope to its row."""
    return {"mailbox": mailbox, "kind": kind}


def add(client: keyside.Client, table: sqlite3.Connection, count: int) -> None:
    """Encrypt and store ``count`` accounts."""

    def protect(account: tuple[str, str, bytes]) -> tuple[str, str, bytes, str]:
        mailbox, kind, secret = account
        envelope = client.encrypt(KEY, secret, context_of(mailbox, kind))
        # A real gateway keeps no such fingerprint; the demonstration compares with it.
        return mailbox, kind, envelope, hashlib.sha256(secret).hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(protect, make_accounts(count)))
    with table:
        table.executemany("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)", rows)
    print(f"stored {len(rows)} accounts")


def check(client: keyside.Client, table: sqlite3.Connection) -> None:
    """Decrypt every record and compare it with its fingerprint."""

    def matches(row: tuple[str, str, bytes, str]) -> bool:
        mailbox, kind, envelope, fingerprint = row
        secret = client.decrypt(envelope, context_of(mailbox, kind))
        return hashlib.sha256(secret).hexdigest() == fingerprint

    rows = table.execute("SELECT mailbox, kind, secret, fingerprint FROM accounts").fetchall()
    with ThreadPoolExecutor(THREADS) as pool:
        good = sum(pool.map(matches, rows))
    print(f"read back {good} of {len(rows)} accounts")
    if good != len(rows):
        raise SystemExit(1)


def rewrap(client: keyside.Client, table: sqlite3.Connection) -> None:
    """Move every record's data key under the current version."""
    rows = table.execute("SELECT mailbox, secret FROM accounts").fetchall()
    with ThreadPoolExecutor(THREADS) as pool:
        renewed = list(pool.map(lambda row: (client.rewrap(row[1]), row[0]), rows))
    with table:
        table.executemany("UPDATE accounts SET secret = ? WHERE mailbox = ?", renewed)
    print(f"rewrapped {len(renewed)} accounts")


def show(table: sqlite3.Connection) -> None:
    """Print what somebody who steals the database would see."""
    rows = table.execute("SELECT mailbox, kind, secret FROM accounts ORDER BY rowid LIMIT 4")
    for mailbox, kind, envelope in rows:
        version = parse_wrapping_header(envelope).version_number
        print(
            f"{mailbox:24} {kind:14} version {version}, {len(envelope)} bytes: "
            f"{envelope[:28].hex()}…{envelope[-8:].hex()}"
        )


def main() -> None:
    """Do one thing with the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--db", required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("add").add_argument("count", type=int)
    for name in ("check", "rewrap", "show"):
        commands.add_parser(name)
    arguments = parser.parse_args()
    table = open_table(arguments.db)
    if arguments.command == "show":
        show(table)
        return
    with keyside.Client() as client:
        if arguments.command == "add":
            add(client, table, arguments.count)
        elif arguments.command == "check":
            check(client, table)
        else:
            rewrap(client, table)


if __name__ == "__main__":
    main()
