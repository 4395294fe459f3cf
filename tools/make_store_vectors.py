"""Make the vectors of what is on disk: a root key's file, a store, and every value between.

Usage, from the repository's root: python -m tools.make_store_vectors DIRECTORY

The store is made by Keyside, with random material, so that no two runs give the same; an existing
directory is never touched. The values in ``known.json`` are computed here, from the formats as they
are documented, with the standard library and AES-GCM alone: Keyside's own code takes no part.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sqlite3
import struct
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyside.names import KeyName
from keyside_sidecar.access.grants import Usage
from keyside_sidecar.access.requests import (
    AccessId,
    AccessItem,
    AccessLevel,
    AccessOperation,
    AccessRequest,
    AccessState,
    Approval,
    EndReason,
    Moment,
    Person,
    VersionRange,
)
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.store import Store, initialise_store
from keyside_sidecar.store.changing import Expected
from keyside_sidecar.store.usage import UsageEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT_KEY = bytes(range(32))
STORE_ID = bytes(range(0x40, 0x50))
VERSION_ID = bytes(range(0x50, 0x60))
MATERIAL = bytes(range(0x80, 0xA0))
SALT = bytes(range(0xC0, 0xD8))
NONCE = bytes(range(0xE0, 0xF0))
CREDENTIAL = "ksc-" + base64.b32encode(MATERIAL).decode().rstrip("=").lower()
NUMBER = 258
NAME = "mail-credentials"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND_KEY = KeyName("bank-details")

Row = dict[str, int | str | bytes | None]


def derive(label: bytes, context: bytes) -> bytes:
    """Return 32 bytes: SP 800-108r1, counter mode, HMAC-SHA-512, 32-bit counter and length."""
    fixed = b"\0\0\0\1" + label + b"\0" + context + struct.pack(">I", 256)
    return hmac.digest(ROOT_KEY, fixed, hashlib.sha512)[:32]


ROOT_KEY_ID = derive(b"keyside/v1/root-key-id", b"")[:8]
MAC_KEY = derive(b"keyside/v1/store-mac", STORE_ID)
SET_KEY = derive(b"keyside/v1/store-set", STORE_ID)


def frame(value: bytes) -> bytes:
    """Return a value behind its length."""
    return struct.pack(">I", len(value)) + value


def encode_row(table: str, row: Row) -> bytes:
    """Return what a row's MAC is over."""
    present = sorted((name, value) for name, value in row.items() if value is not None)
    encoded = b"KEYSIDE-ROW-1\0" + frame(STORE_ID) + frame(table.encode())
    encoded += struct.pack(">I", len(present))
    for name, value in present:
        encoded += frame(name.encode())
        if isinstance(value, int):
            encoded += b"i" + struct.pack(">q", value)
        elif isinstance(value, str):
            encoded += b"t" + frame(value.encode())
        else:
            encoded += b"b" + frame(value)
    return encoded


def mac_of(table: str, row: Row) -> bytes:
    """Return a row's MAC."""
    return hmac.digest(MAC_KEY, encode_row(table, row), hashlib.sha256)


def term_of(mac: bytes) -> int:
    """Return what a row adds to its set's sum."""
    return int.from_bytes(hmac.digest(SET_KEY, b"\0" + mac, hashlib.sha256), "big")


def digest_of(total: int) -> bytes:
    """Return a set's digest, with the fixed nonce."""
    mask = int.from_bytes(hmac.digest(SET_KEY, b"\1" + NONCE, hashlib.sha256), "big")
    return NONCE + ((mask + total) % (1 << 256)).to_bytes(32, "big")


def bind(number: int) -> bytes:
    """Return what the material of the fixed version is bound to."""
    return b"".join(
        (
            b"KEYSIDE-VERSION-1\0",
            frame(STORE_ID),
            frame(NAME.encode()),
            struct.pack(">I", number),
            frame(VERSION_ID),
        )
    )


def wrap(form: int) -> bytes:
    """Return the fixed material, wrapped with the fixed salt, in the form of that first byte."""
    header = bytes((form,)) + ROOT_KEY_ID + SALT
    cipher = AESGCM(derive(b"keyside/v1/root-wrap", SALT))
    return header + cipher.encrypt(bytes(12), MATERIAL, header + bind(NUMBER))


def make_rows() -> list[tuple[str, Row]]:
    """Return one row of each table, but for its MAC."""
    moment = 1_769_860_800_000_000
    version: Row = {
        "key_name": NAME,
        "number": NUMBER,
        "version_id": VERSION_ID,
        "state": "CURRENT",
        "wrapped": wrap(1),
        "root_key_id": ROOT_KEY_ID.hex(),
        "created_at": moment,
        "activated_at": moment,
        "archived_at": None,
        "made_by_uid": 0,
        "created_observed": 0,
        "activated_observed": 86_400_000_000,
        "disabled_at": None,
        "disabled_by_uid": None,
        "destroy_requested_at": None,
        "destroy_requested_by_uid": None,
        "destroy_due": None,
        "destroy_not_before": None,
        "destroyed_at": None,
        "generation": 515,
    }
    key: Row = {
        "name": NAME,
        "created_at": moment,
        "current_number": NUMBER,
        "last_number": NUMBER,
        "pending_number": None,
        "scheduled_count": None,
        "versions_digest": digest_of(term_of(mac_of("key_versions", version))),
        "generation": 515,
    }
    use: Row = {
        "request_id": "ar-2f7qk3zt5mxa",
        "number": 1,
        "used_at": moment + 60_000_000,
        "operation": "DECRYPT",
        "version": NUMBER,
        "envelope_sha256": bytes(range(0xA0, 0xC0)),
        "context": '{"tenant":"z\\u00fcrich"}',
    }
    access: Row = {
        "id": "ar-2f7qk3zt5mxa",
        "key_name": NAME,
        "requester_uid": 1001,
        "asked": '{"account":"anna","context":{"tenant":"z\\u00fcrich"},"host":"mail-1",'
        '"operations":["DECRYPT"],"reason":"a mailbox does not sync","rollover":true,'
        '"ticket":"INC-7","versions":[[1,300]]}',
        "max_uses": 5,
        "duration": 3_600_000_000,
        "policy_digest": bytes(range(0x20, 0x40)),
        "state": "ACTIVE",
        "levels": '[{"approvals":[{"at":1769860800000000,"by":[2001,"mia"],"comment":"",'
        '"struck":""}],"gid":200,"group":"managers","needed":1}]',
        "created_at": moment,
        "decide_by": moment + 86_400_000_000,
        "deadline_observed": 90_000_000_000,
        "boot_deadlines": '[["mail-1","1b2c3d4e-0000-4000-8000-000000000001",3600000000,'
        "7200000000]]",
        "approved_at": moment,
        "activate_by": moment + 86_400_000_000,
        "activated_at": moment,
        "expires_at": moment + 3_600_000_000,
        "credential_hash": hashlib.sha256(
            b"keyside/v1/grant-credential\0" + CREDENTIAL.encode()
        ).digest(),
        "used": 1,
        "uses_digest": digest_of(term_of(mac_of("access_uses", use))),
        "opened": "[[258,258]]",
        "ended_at": None,
        "end_reason": None,
        "ending": None,
        "ended_number": None,
        "generation": 515,
    }
    own: Row = {
        "id": 1,
        "store_id": STORE_ID,
        "generation": 515,
        "root_key_id": ROOT_KEY_ID.hex(),
        "keys_digest": digest_of(term_of(mac_of("keys", key))),
        "created_at": moment,
        "observed_floor": 86_400_000_000,
        "access_digest": digest_of(term_of(mac_of("access_requests", access))),
        "access_ended": 3,
    }
    usage: Row = {
        "key_name": NAME,
        "number": NUMBER,
        "reserved_messages": 64,
        "returned_messages": 1,
        "reserved_bytes": 1 << 40,
        "returned_bytes": 0,
        "last_sealed_at": moment,
        "last_opened_at": None,
    }
    sidecar: Row = {
        "sidecar_id": bytes(range(0x60, 0x70)),
        "host": "mail-1",
        "boot": "b7cd4bd1-6a3f-4d0e-8a35-3c5d3a5a2c11 pid:[4026531836]",
        "pid": 4711,
        "start_ticks": 12345,
        "registered_at": moment,
        "seen_at": moment + 5_000_000,
        "generation_seen": 515,
        "root_key_ids": ROOT_KEY_ID.hex(),
        "ended_at": None,
    }
    time: Row = {"id": 1, "observed": 86_400_000_000, "tick": 8640}
    return [
        ("key_versions", version),
        ("keys", key),
        ("store_meta", own),
        ("version_usage", usage),
        ("sidecars", sidecar),
        ("store_time", time),
        ("access_requests", access),
        ("access_uses", use),
    ]


def describe_row(table: str, row: Row) -> dict[str, Any]:
    """Return a row and what authenticates it."""
    mac = mac_of(table, row)
    shown = {k: {"hex": v.hex()} if isinstance(v, bytes) else v for k, v in row.items()}
    return {
        "table": table,
        "columns": shown,
        "encoded": encode_row(table, row).hex(),
        "mac": mac.hex(),
        "term": f"{term_of(mac):064x}",
    }


def make_root_key_file(path: Path) -> FileCustodian:
    """Write the fixed root key's file."""
    body = b"KEYSIDE-ROOT-KEY-1:" + base64.urlsafe_b64encode(ROOT_KEY).rstrip(b"=")
    path.write_bytes(body + b":" + hashlib.sha256(body).hexdigest()[:16].encode() + b"\n")
    path.chmod(0o600)
    return FileCustodian.load(path, owner_uids=frozenset({os.geteuid()}))


def compose_request(access_id: str, level: AccessLevel, **more: Any) -> AccessRequest:
    """Return a request, with the fields that vary."""
    fields: dict[str, Any] = {
        "state": AccessState.PENDING,
        "versions": (VersionRange(1, 2),),
        "context": {"tenant": "zürich"},
        **more,
    }
    return AccessRequest(
        id=AccessId(access_id),
        key=KeyName(NAME),
        requester=Person(1001, "anna"),
        host="mail-1",
        reason="a mailbox does not sync — “why”?",
        ticket="INC-7",
        operations=(AccessOperation.DECRYPT,),
        max_uses=5,
        duration_us=3_600_000_000,
        policy_digest=bytes(range(32)),
        rollover=True,
        created_us=1_769_860_800_000_000,
        decide_by_us=1_769_947_200_000_000,
        deadline_observed_us=86_410_000_000,
        levels=(level,),
        **fields,
    )


def _take(
    request: AccessRequest, _found: Sequence[AccessRequest], _moment: Moment
) -> AccessRequest:
    return request


def make_access(store: Store) -> list[dict[str, Any]]:
    """Make three requests, one that waits, one that is used, and one that has ended."""
    waiting = AccessLevel("managers", 200, 1)
    said = AccessLevel("managers", 200, 1, (Approval(Person(2001, "mia"), 1_769_860_900_000_000),))
    requests = [
        compose_request("ar-aaaaaaaaaaaa", waiting),
        compose_request(
            "ar-bbbbbbbbbbbb",
            said,
            state=AccessState.ACTIVE,
            approved_us=1_769_860_900_000_000,
            activate_by_us=1_769_947_300_000_000,
            activated_us=1_769_861_000_000_000,
            expires_us=1_769_864_600_000_000,
            credential_hash=bytes(range(32, 64)),
        ),
        compose_request("ar-cccccccccccc", waiting),
    ]
    for request in requests:
        store.access.insert(partial(_take, request))
    items = [
        AccessItem(
            AccessOperation.DECRYPT, NAME, number, {"tenant": "zürich"}, bytes([number]) * 32
        )
        for number in (1, 2)
    ]
    store.access.use(
        bytes(range(32, 64)),
        lambda found, _moment: Usage(
            replace(found, used=2, opened=(VersionRange(1, 2),)), (None, None)
        ),
        items,
    )
    store.access.change(
        requests[2].id,
        lambda found, _moment: replace(
            found,
            state=AccessState.ENDED,
            ended_us=1_769_860_950_000_000,
            end_reason=EndReason.DENIED,
            ended_by=Person(2001, "mia"),
            end_comment="not needed",
        ),
    )
    return [
        {
            "id": request.id,
            "state": str(found.state),
            "used": found.used,
            "reason": found.reason,
            "end_comment": found.end_comment,
            "ended_number": found.ended_number,
        }
        for request in requests
        if (found := store.access.find(request.id)) is not None
    ]


def make_store(
    path: Path, custodian: FileCustodian
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Make a store with two keys, versions in four states and requests; return the last two."""
    url = f"sqlite:///{path}"
    initialise_store(url, custodian, uid=os.geteuid(), gid=os.getegid(), now=NOW)
    store = Store.open(url, custodian)
    versions = []
    for name, rotations in ((KeyName(NAME), 2), (SECOND_KEY, 1)):
        store.create_key(name, NOW)
        for _ in range(rotations):
            store.rotate(name, actor_uid=1000, expected_current=0, now=NOW)
        if name == SECOND_KEY:
            store.disable(name, 1, actor_uid=1000, now=NOW)
            store.make_pending(name, Expected(rotations + 1, None), NOW)
            store.usage.record([UsageEntry(name, rotations + 1, 64, 4096, sealed_at=NOW)])
            store.observed.advance(store.observed.read(), 10_000_000)
        for number in range(1, store.describe_key(name).version_count + 1):
            found = store.find_version(name, number)
            assert found.material is not None
            versions.append(
                {
                    "key_name": name,
                    "number": number,
                    "version_id": found.info.version_id.hex(),
                    "state": str(found.info.state),
                    "material": found.material.material.hex(),
                }
            )
    access = make_access(store)
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return versions, access


def main(arguments: list[str]) -> int:
    """Make the directory and its files."""
    directory = Path(arguments[0]).resolve()
    directory.mkdir(mode=0o700)
    custodian = make_root_key_file(directory / "root.key")
    rows = make_rows()
    versions, access = make_store(directory / "keyside.db", custodian)
    total = sum(term_of(mac_of(table, row)) for table, row in rows)
    document = {
        "format": "keyside store, schema 0004; root key file 1; wrapped form 1",
        "provenance": "computed by tools/make_store_vectors.py without Keyside's code; the store "
        "beside this file, whose versions and requests are listed last, was made by Keyside",
        "root_key": ROOT_KEY.hex(),
        "root_key_id": ROOT_KEY_ID.hex(),
        "store_id": STORE_ID.hex(),
        "mac_key": MAC_KEY.hex(),
        "set_key": SET_KEY.hex(),
        "rows": [describe_row(table, row) for table, row in rows],
        "digests": [
            {"nonce": NONCE.hex(), "total": f"{value:x}", "digest": digest_of(value).hex()}
            for value in (0, total % (1 << 256), (1 << 256) - 1)
        ],
        "wrapping": {
            "key_name": NAME,
            "number": NUMBER,
            "version_id": VERSION_ID.hex(),
            "binding": bind(NUMBER).hex(),
            "material": MATERIAL.hex(),
            "salt": SALT.hex(),
            "wrapped": wrap(1).hex(),
            "wrapped_in_another_form": wrap(2).hex(),
        },
        "versions": versions,
        "credential": CREDENTIAL,
        "access": access,
    }
    (directory / "known.json").write_text(json.dumps(document, indent=1) + "\n", "ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
