"""What is on disk stays readable: fixed keys, rows and stores give what they gave (I5, I6).

The values are in tests/vectors/store_v* and were computed without Keyside's code. A test here that
fails means that existing stores no longer open.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.access_scene import Scene
from tests.unit.made_store import NOW

from keyside.names import KeyName
from keyside_sidecar.access.credential import hash_credential
from keyside_sidecar.access.requests import AccessId
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.custody.root_key import RootKey
from keyside_sidecar.errors import CustodyError
from keyside_sidecar.store import Store, migrate_store
from keyside_sidecar.store.authentication import Authenticator, bind_material, encode_row
from keyside_sidecar.store.material import Wrapping
from keyside_sidecar.store.tables import key_versions, metadata

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
FORMATS = ["store_v1", "store_v2", "store_v3", "store_v4"]
ALL_KNOWN = {
    name: json.loads((VECTORS / name / "known.json").read_text("ascii")) for name in FORMATS
}
KNOWN = ALL_KNOWN["store_v1"]
STORE_ID = bytes.fromhex(KNOWN["store_id"])
PLACE = KNOWN["wrapping"].pop("key_name"), KNOWN["wrapping"].pop("number")
WRAPPING = {name: bytes.fromhex(value) for name, value in KNOWN["wrapping"].items()}
ROWS = [
    (
        name,
        known["table"],
        {n: bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for n, v in columns.items()},
        known,
    )
    for name in FORMATS
    for known in ALL_KNOWN[name]["rows"]
    for columns in [known["columns"]]
]


@pytest.fixture
def root_key() -> FileCustodian:
    return FileCustodian(RootKey(bytes.fromhex(KNOWN["root_key"])))


@pytest.fixture
def authenticator(root_key: FileCustodian) -> Authenticator:
    return Authenticator(root_key, STORE_ID)


def fix_randomness(monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    def draw(length: int) -> bytes:
        assert length == len(value)
        return value

    monkeypatch.setattr(os, "urandom", draw)


def test_root_key_id_and_derived_keys(root_key: FileCustodian) -> None:
    assert root_key.key_id == KNOWN["root_key_id"]
    assert root_key.derive(b"keyside/v1/store-mac", STORE_ID).hex() == KNOWN["mac_key"]
    assert root_key.derive(b"keyside/v1/store-set", STORE_ID).hex() == KNOWN["set_key"]


def test_there_is_a_row_of_every_table_with_every_column() -> None:
    columns = {t.name: {c.name for c in t.columns} - {"mac"} for t in metadata.sorted_tables}
    newest = {table: set(row) for name, table, row, _ in ROWS if name == FORMATS[-1]}
    assert newest == columns


@pytest.mark.parametrize(
    ("table", "row", "known"),
    [row[1:] for row in ROWS],
    ids=[f"{name}-{table}" for name, table, _, _ in ROWS],
)
def test_encoding_mac_and_term_of_a_row(
    authenticator: Authenticator, table: str, row: dict[str, Any], known: dict[str, str]
) -> None:
    mac = bytes.fromhex(known["mac"])
    assert encode_row(STORE_ID, table, row).hex() == known["encoded"]
    assert authenticator.compute_mac(table, row) == mac
    authenticator.verify(table, {**row, "mac": mac}, "row")
    assert f"{authenticator.compute_term(mac):064x}" == known["term"]


@pytest.mark.parametrize("known", KNOWN["digests"])
def test_digest_of_a_set(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch, known: dict[str, str]
) -> None:
    total, digest = int(known["total"], 16), bytes.fromhex(known["digest"])
    assert authenticator.open_sum(digest) == total
    assert authenticator.fits(digest, total)
    fix_randomness(monkeypatch, bytes.fromhex(known["nonce"]))
    assert authenticator.seal_sum(total) == digest


def test_binding_of_material() -> None:
    assert bind_material(STORE_ID, *PLACE, WRAPPING["version_id"]) == WRAPPING["binding"]


def test_wrapped_form(root_key: FileCustodian, monkeypatch: pytest.MonkeyPatch) -> None:
    material, binding, wrapped = (WRAPPING[n] for n in ("material", "binding", "wrapped"))
    assert root_key.unwrap(wrapped, binding) == material
    fix_randomness(monkeypatch, WRAPPING["salt"])
    assert root_key.wrap(material, binding) == wrapped


def test_a_wrapped_form_of_another_kind_is_refused_though_it_is_authentic(
    root_key: FileCustodian,
) -> None:
    with pytest.raises(CustodyError, match="of this kind"):
        root_key.unwrap(WRAPPING["wrapped_in_another_form"], WRAPPING["binding"])


def test_material_of_a_row(root_key: FileCustodian) -> None:
    """Bound to this store, key, number and id."""
    stored = next(row for _, table, row, _ in ROWS if table == "key_versions")
    row = {column.name: stored.get(column.name) for column in key_versions.columns}
    opened = Wrapping(root_key, STORE_ID).open_version(row)
    assert opened.material is not None
    assert opened.material.material == WRAPPING["material"]
    with pytest.raises(CustodyError):
        Wrapping(root_key, bytes(16)).open_version(row)


def test_what_is_kept_of_a_credential() -> None:
    """A grant that was activated under an earlier version can still be used."""
    row = next(row for _, table, row, _ in ROWS if table == "access_requests")
    assert hash_credential(ALL_KNOWN["store_v3"]["credential"]) == row["credential_hash"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_store_of_every_format_opens_and_goes_on(tmp_path: Path, form: str) -> None:
    """I5: what was stored by an earlier version is there, and can be rotated."""
    tmp_path.chmod(0o700)
    for file in ("root.key", "keyside.db"):
        shutil.copyfile(VECTORS / form / file, tmp_path / file)
        (tmp_path / file).chmod(0o600)
    custodian = FileCustodian.load(tmp_path / "root.key", owner_uids=frozenset({os.geteuid()}))
    url = f"sqlite:///{tmp_path / 'keyside.db'}"
    migrate_store(url)
    store = Store.open(url, custodian)
    counts: dict[KeyName, int] = {}
    for known in ALL_KNOWN[form]["versions"]:
        name = KeyName(known["key_name"])
        found = store.find_version(name, known["number"])
        assert found.info.version_id.hex() == known["version_id"]
        assert found.info.state == known["state"]
        assert found.material is not None
        assert found.material.material.hex() == known["material"]
        counts[name] = known["number"]
    assert {info.name: info.version_count for info in store.list_keys()} == counts
    for name, count in counts.items():
        assert store.verify_page(name, after=0, limit=100) is None
        info = store.describe_key(name)
        done = store.rotate(name, actor_uid=1, expected_current=info.current_number, now=NOW)
        assert done.version.info.number == (info.pending_number or count + 1)
    for known in ALL_KNOWN[form].get("access", []):
        request = store.access.find(AccessId(known["id"]))
        assert request is not None
        assert {name: getattr(request, name) for name in known} == known
        assert request.context == {"tenant": "zürich"}
        uses = store.access.read_uses(request.id, limit=10)
        assert [use.version for use in uses] == list(range(1, known["used"] + 1))
    scene = Scene(store)
    scene.grant()
    scene.use()
    checked = store.access.verify_page(None, 100)
    while checked is not None:
        checked = store.access.verify_page(checked, 100)
    store.close()
