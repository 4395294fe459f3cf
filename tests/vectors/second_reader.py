"""A second reader, written from docs/envelope.md and docs/custody.md alone.

It shares no code with Keyside: `cryptography`'s own KBKDFHMAC derives where Keyside calls HMAC,
and nothing is cached or hurried. It exists to show that the pages suffice, and says which layer
refused, which Keyside itself never does.

From a root key's file, and a SQLite store or a backup of it, it opens envelopes with nothing of
Keyside's installed:

    python second_reader.py ROOT_KEY STORE_OR_BACKUP [--context NAME=VALUE]... < ENVELOPE
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import re
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from hmac import compare_digest
from pathlib import Path
from urllib.parse import quote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

VersionTable = Mapping[tuple[str, int, bytes], bytes]
Value = int | str | bytes | None
Row = dict[str, Value]
Tables = dict[str, list[Row]]

PREAMBLE = b"KSE\x01"
ROOT_KEY_FILE = re.compile(rb"(KEYSIDE-ROOT-KEY-1:([A-Za-z0-9_-]{43})):([0-9a-f]{16})\n")
TABLES = (
    *("store_meta", "store_time", "keys", "key_versions", "version_usage", "access_uses"),
    *("access_requests", "sidecars"),
)
BYTES = {
    *("store_id", "keys_digest", "access_digest", "versions_digest", "version_id", "wrapped"),
    *("policy_digest", "credential_hash", "uses_digest", "envelope_sha256", "mac", "sidecar_id"),
}


class Rejected(Exception):
    """The envelope does not open; ``layer`` is the step of "Reading" that refused it."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


def derive(key: bytes, label: bytes, context: bytes) -> tuple[bytes, bytes]:
    """The page's KDF, as its two halves."""
    output = KBKDFHMAC(
        algorithm=SHA512(),
        mode=Mode.CounterMode,
        length=64,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    ).derive(key)
    return output[:32], output[32:]


def canonical(context: Mapping[str, str]) -> bytes:
    """The page's canonical context."""
    encoded = {name.encode(): value.encode() for name, value in context.items()}
    result = len(encoded).to_bytes(2, "big")
    for name in sorted(encoded):
        for part in (name, encoded[name]):
            result += len(part).to_bytes(4, "big") + part
    return result


def decrypt(suite: int, key: bytes, nonce: bytes, data: bytes, aad: bytes, *, layer: str) -> bytes:
    """AEAD by suite byte."""
    try:
        if suite == 1:
            return AESGCM(key).decrypt(nonce, data, aad)
        return ChaCha20Poly1305(key).decrypt(nonce, data, aad)
    except InvalidTag:
        raise Rejected(layer) from None


def require(condition: bool, layer: str) -> None:  # noqa: FBT001
    """Refuse in ``layer`` unless ``condition``."""
    if not condition:
        raise Rejected(layer)


def unwrap(versions: VersionTable, envelope: bytes) -> tuple[bytes, bytes]:
    """Return the data key, and the payload's bytes."""
    require(len(envelope) >= 6 and envelope[:4] == PREAMBLE, "framing")
    suite, n = envelope[4], envelope[5]
    require(suite in {1, 2} and 1 <= n <= 63 and len(envelope) >= 130 + n, "framing")
    name = envelope[6 : 6 + n]
    require(re.fullmatch(rb"[a-z0-9][a-z0-9._-]*", name) is not None, "framing")
    number = int.from_bytes(envelope[6 + n : 10 + n], "big")
    version = versions.get((name.decode("ascii"), number, envelope[10 + n : 26 + n]))
    require(number >= 1 and version is not None, "framing")
    assert version is not None
    wrapping_key, commitment = derive(version, b"keyside/v1/wrap", envelope[: 50 + n])
    require(compare_digest(commitment, envelope[50 + n : 82 + n]), "commitment")
    wrapped = envelope[82 + n : 130 + n]
    aad = envelope[: 82 + n]
    return decrypt(suite, wrapping_key, bytes(12), wrapped, aad, layer="wrapping"), envelope[
        130 + n :
    ]


def open_payload(data_key: bytes, payload: bytes, context: Mapping[str, str]) -> bytes:
    """Return the plaintext of a payload."""
    require(len(payload) >= 66, "framing")
    suite, kind = payload[0], payload[1]
    require(suite in {1, 2} and kind in {0, 1}, "framing")
    if kind == 0:
        header, body = payload[:66], payload[66:]
        require(16 <= len(body) <= 2**30 + 16, "framing")
        label, derivation = b"keyside/v1/payload/whole", PREAMBLE + header[:26]
    else:
        require(len(payload) >= 70, "framing")
        header, body = payload[:70], payload[70:]
        check_segments(header, body)
        label = b"keyside/v1/payload/segmented"
        derivation = PREAMBLE + header[:34] + header[66:70]
    payload_key, context_key = derive(data_key, label, derivation)
    digest = hashlib.sha256(
        b"keyside/v1/context\x00" + context_key + header[26:34] + canonical(context)
    ).digest()
    require(compare_digest(digest, header[34:66]), "context")
    aad = PREAMBLE + header
    if kind == 0:
        return decrypt(suite, payload_key, bytes(4) + header[26:34], body, aad, layer="payload")
    stride = int.from_bytes(header[66:70], "big") + 16
    segments = [body[start : start + stride] for start in range(0, len(body), stride)]
    plaintext = b""
    for index, segment in enumerate(segments):
        last = b"\x01" if index == len(segments) - 1 else b"\x00"
        nonce = bytes(3) + index.to_bytes(8, "big") + last
        plaintext += decrypt(suite, payload_key, nonce, segment, aad, layer="segment")
    return plaintext


def check_segments(header: bytes, body: bytes) -> None:
    """Refuse a segment size or lengths that can't be."""
    size = int.from_bytes(header[66:70], "big")
    require(size in {2**power for power in range(12, 21)}, "framing")
    count = max(1, -(-len(body) // (size + 16)))
    last = len(body) - (count - 1) * (size + 16)
    require(last >= 16 and (last > 16 or count == 1), "framing")
    require(len(body) - 16 * count <= 2**44, "framing")


def open_envelope(versions: VersionTable, envelope: bytes, context: Mapping[str, str]) -> bytes:
    """Return an envelope's plaintext.

    Args:
        versions: Key material by name, number and version id.
        envelope: A whole envelope.
        context: The pairs it was sealed with.

    Raises:
        Rejected: It does not open.
    """
    data_key, payload = unwrap(versions, envelope)
    return open_payload(data_key, payload, context)


# -- docs/custody.md --------------------------------------------------------------------------


class Unsound(Exception):
    """A root key's file, a store or a backup is not what the page says it is."""


def check(holds: object, what: str) -> None:
    """Refuse unless something holds."""
    if not holds:
        raise Unsound(what)


def read_root_key(line: bytes) -> bytes:
    """Return the root key in a file."""
    found = ROOT_KEY_FILE.fullmatch(line)
    check(found, "no root key's file of this format")
    assert found is not None
    check(hashlib.sha256(found[1]).digest()[:8].hex().encode() == found[3], "a damaged root key")
    key = base64.urlsafe_b64decode(found[2] + b"=")
    check(base64.urlsafe_b64encode(key).rstrip(b"=") == found[2], "another spelling")
    return key


def derive_from_root(root_key: bytes, label: str, context: bytes = b"") -> bytes:
    """Return what the root key gives for a label."""
    return KBKDFHMAC(
        algorithm=SHA512(),
        mode=Mode.CounterMode,
        length=32,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=f"keyside/v1/{label}".encode(),
        context=context,
        fixed=None,
    ).derive(root_key)


def name_root_key(root_key: bytes) -> bytes:
    """Return a root key's id, 8 bytes."""
    return derive_from_root(root_key, "root-key-id")[:8]


def frame(value: bytes) -> bytes:
    """Return a value behind its length."""
    return len(value).to_bytes(4, "big") + value


def unwrap_version(
    root_key: bytes, store_id: bytes, place: tuple[str, int, bytes], wrapped: bytes
) -> bytes:
    """Return a version's 32 bytes."""
    name, number, version_id = place
    check(len(wrapped) == 81 and wrapped[0] == 1, "no wrapped version of this form")
    check(wrapped[1:9] == name_root_key(root_key), "wrapped under another root key")
    binding = b"KEYSIDE-VERSION-1\0" + frame(store_id) + frame(name.encode())
    binding += number.to_bytes(4, "big") + frame(version_id)
    cipher = AESGCM(derive_from_root(root_key, "root-wrap", wrapped[9:33]))
    try:
        return cipher.decrypt(bytes(12), wrapped[33:], wrapped[:33] + binding)
    except InvalidTag:
        raise Unsound(f"version {number} of {name} does not unwrap") from None


def encode_row(store_id: bytes, table: str, row: Row) -> bytes:
    """Return what a row's MAC is over."""
    names = sorted(name for name, value in row.items() if value is not None and name != "mac")
    encoded = b"KEYSIDE-ROW-1\0" + frame(store_id) + frame(table.encode())
    encoded += len(names).to_bytes(4, "big")
    for name in names:
        value = row[name]
        encoded += frame(name.encode())
        if isinstance(value, int):
            encoded += b"i" + value.to_bytes(8, "big", signed=True)
        elif isinstance(value, str):
            encoded += b"t" + frame(value.encode())
        else:
            check(isinstance(value, bytes), f"a value of no type in {table}")
            assert isinstance(value, bytes)
            encoded += b"b" + frame(value)
    return encoded


class Store:
    """The rows of one store, and the keys that check them."""

    def __init__(self, root_key: bytes, tables: Tables) -> None:
        self.root_key = root_key
        self.tables = tables
        check(len(tables["store_meta"]) == 1, "the store's own row")
        self.meta = tables["store_meta"][0]
        needed = text(self.meta, "root_key_id")
        check(needed == name_root_key(root_key).hex(), f"the root key {needed} is needed")
        store_id = self.meta["store_id"]
        check(isinstance(store_id, bytes) and len(store_id) == 16, "the store's id")
        assert isinstance(store_id, bytes)
        self.store_id = store_id
        self.mac_key = derive_from_root(root_key, "store-mac", store_id)
        self.set_key = derive_from_root(root_key, "store-set", store_id)

    def compute_mac(self, table: str, row: Row) -> bytes:
        """Return the MAC that a row must have."""
        encoded = encode_row(self.store_id, table, row)
        return hmac.digest(self.mac_key, encoded, "sha256")

    def compute_term(self, mac: bytes) -> int:
        """Return what a row adds to its set's sum."""
        return int.from_bytes(hmac.digest(self.set_key, b"\0" + mac, "sha256"), "big")

    def seal(self, nonce: bytes, total: int) -> bytes:
        """Return the digest of a set."""
        mask = int.from_bytes(hmac.digest(self.set_key, b"\1" + nonce, "sha256"), "big")
        return nonce + ((mask + total) % 2**256).to_bytes(32, "big")

    def check_set(self, digest: Value, rows: Iterable[Row], what: str) -> None:
        """Check that a digest is of these rows; NULL is that of none."""
        if digest is None:
            check(not list(rows), what)
            return
        check(isinstance(digest, bytes) and len(digest) == 48, what)
        assert isinstance(digest, bytes)
        total = 0
        for row in rows:
            assert isinstance(row["mac"], bytes)
            total += self.compute_term(row["mac"])
        check(compare_digest(self.seal(digest[:16], total), digest), what)

    def open(self) -> VersionTable:
        """Check everything, and return the material of all versions."""
        for table, rows in self.tables.items():
            for row in rows:
                mac = row["mac"]
                fits = isinstance(mac, bytes) and compare_digest(self.compute_mac(table, row), mac)
                check(fits or table == "sidecars", f"a row of {table}")
        self.check_set(self.meta["keys_digest"], self.tables["keys"], "the set of keys")
        known = {key["name"] for key in self.tables["keys"]}
        versions = self.tables["key_versions"]
        check(all(row["key_name"] in known for row in versions), "a version of no key")
        for table in ("keys", "key_versions", "access_requests"):
            for row in self.tables.get(table, ()):
                check(number(row, "generation") <= number(self.meta, "generation"), "generation")
        material: dict[tuple[str, int, bytes], bytes] = {}
        for key in self.tables["keys"]:
            own = [row for row in versions if row["key_name"] == key["name"]]
            self.check_key(key, own)
            for row in own:
                if isinstance(row["wrapped"], bytes):
                    place = text(row, "key_name"), number(row, "number"), data(row, "version_id")
                    material[place] = unwrap_version(
                        self.root_key, self.store_id, place, row["wrapped"]
                    )
        there = {(row["key_name"], row["number"]) for row in versions}
        for row in self.tables.get("version_usage", ()):
            check((row["key_name"], row["number"]) in there, "usage of no version")
        observed = [number(row, "observed") for row in self.tables.get("store_time", ())]
        floor = self.meta.get("observed_floor") or 0
        assert isinstance(floor, int)
        check(len(observed) <= 1 and max(observed, default=0) >= floor, "observed time")
        self.check_access()
        return material

    def check_key(self, key: Row, versions: list[Row]) -> None:
        """Check the set of a key's versions, and their states."""
        what = f"the versions of {text(key, 'name')}"
        self.check_set(key["versions_digest"], versions, what)
        numbers = sorted(number(row, "number") for row in versions)
        check(numbers == list(range(1, number(key, "last_number") + 1)), what)
        for row in versions:
            is_current = row["number"] == key["current_number"]
            is_pending = row["number"] == key.get("pending_number")
            is_gone = row["wrapped"] is None
            check((row["state"] == "CURRENT") == is_current, what)
            check((row["state"] == "PENDING") == is_pending, what)
            check((row["state"] == "DESTROYED") == is_gone, what)
            check(row["root_key_id"] == (None if is_gone else self.meta["root_key_id"]), what)
            check(is_gone or len(data(row, "version_id")) == 16, what)

    def check_access(self) -> None:
        """Check requests for access, and the uses of grants."""
        requests = self.tables.get("access_requests", [])
        uses = self.tables.get("access_uses", [])
        known = {request["id"] for request in requests}
        check(all(use["request_id"] in known for use in uses), "a use of no grant")
        for request in requests:
            own = [use for use in uses if use["request_id"] == request["id"]]
            self.check_set(request["uses_digest"], own, "the uses of a grant")
            numbers = sorted(number(use, "number") for use in own)
            check(numbers == list(range(1, number(request, "used") + 1)), "the uses of a grant")
        left = [request for request in requests if request["ended_number"] is None]
        self.check_set(self.meta.get("access_digest"), left, "the set of requests")
        over = [request for request in requests if request["ended_number"] is not None]
        ended = sorted(number(request, "ended_number") for request in over)
        count = self.meta.get("access_ended") or 0
        assert isinstance(count, int)
        check(ended == list(range(1, count + 1)), "the requests that have ended")


def number(row: Row, name: str) -> int:
    """Return a column that must be an integer."""
    value = row.get(name)
    check(isinstance(value, int), f"the column {name}")
    assert isinstance(value, int)
    return value


def text(row: Row, name: str) -> str:
    """Return a column that must be a text."""
    value = row.get(name)
    check(isinstance(value, str), f"the column {name}")
    assert isinstance(value, str)
    return value


def data(row: Row, name: str) -> bytes:
    """Return a column that must be bytes."""
    value = row.get(name)
    check(isinstance(value, bytes), f"the column {name}")
    assert isinstance(value, bytes)
    return value


def read_sqlite(path: Path) -> Tables:
    """Return every row of a store on SQLite; changes nothing."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        there = {row["name"] for row in database.execute(query)}
        return {
            table: [dict(row) for row in database.execute(f"SELECT * FROM {table}")]
            for table in TABLES
            if table in there
        }


def read_backup(root_key: bytes, content: bytes) -> Tables:
    """Return every row of a backup, once its last line was checked."""
    lines = content.split(b"\n")
    check(len(lines) >= 3 and lines.pop() == b"", "a backup that was cut short")
    end = re.fullmatch(rb'\{"mac":"([A-Za-z0-9+/]{43}=)"\}', lines[-1])
    check(end, "a backup that was cut short, or goes on after its end")
    assert end is not None
    header = json.loads(lines[0])
    check(header.get("keyside_backup") == 1, "no backup of this format")
    needed = header["root_key_id"]
    check(needed == name_root_key(root_key).hex(), f"the root key {needed} is needed")
    key = derive_from_root(root_key, "backup", bytes.fromhex(header["store_id"]))
    mac = hmac.digest(key, content[: -len(lines[-1]) - 1], "sha256")
    check(compare_digest(base64.b64encode(mac), end[1]), "a backup that was altered")
    tables: Tables = {table: [] for table in TABLES}
    for line in lines[1:-1]:
        ((table, columns),) = json.loads(line).items()
        tables[table].append(
            {name: decode(value) if name in BYTES else value for name, value in columns.items()}
        )
    for row in (row for rows in tables.values() for row in rows):
        for name in ("wrapped", "root_key_id", "uses_digest", "ended_number"):
            row.setdefault(name, None)  # columns that are NULL are left out
    own = tables["store_meta"][0]
    same = own["store_id"] == bytes.fromhex(header["store_id"])
    check(same and own["generation"] == header["generation"], "another store's backup")
    return tables


def decode(value: str) -> bytes:
    """Return bytes from base64."""
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise Unsound("bytes that are not in base64") from None


def read_versions(root_key_file: Path, store: Path) -> VersionTable:
    """Return every version's material.

    Args:
        root_key_file: The root key's file.
        store: A SQLite file or a backup.

    Raises:
        Unsound: One of them is damaged, was altered, or belongs to another root key.
    """
    root_key = read_root_key(root_key_file.read_bytes())
    with store.open("rb") as file:
        is_sqlite = file.read(16) == b"SQLite format 3\0"
    tables = read_sqlite(store) if is_sqlite else read_backup(root_key, store.read_bytes())
    return Store(root_key, tables).open()


def main(arguments: list[str]) -> int:
    """Open the envelope on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root_key", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--context", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args(arguments)
    pairs = (pair.partition("=") for pair in given.context)
    context = {name: value for name, _, value in pairs}
    try:
        versions = read_versions(given.root_key, given.store)
        sys.stdout.buffer.write(open_envelope(versions, sys.stdin.buffer.read(), context))
    except (Unsound, Rejected) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 65
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
