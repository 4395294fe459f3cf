"""What the store does when all is well, and who wins when several change it at once."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.made_store import (
    BANK,
    KINDS,
    LATER,
    MAIL,
    NOW,
    CountingCustodian,
    MadeStore,
    add_archived,
    make_root_key,
    make_store_of,
    set_state,
)

from keyside.names import KeyName
from keyside_sidecar.errors import CustodyError, RotationConflict, UnknownVersion
from keyside_sidecar.store import VersionState, changing
from keyside_sidecar.store.authentication import Authenticator
from keyside_sidecar.store.reader import Reader, VersionIndex

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> MadeStore:
    return make_store_of(request, tmp_path)


def test_a_new_store_is_empty_and_knows_its_root_key(made: MadeStore) -> None:
    store = made.open()
    meta = store.read_meta()
    assert (meta.generation, meta.root_key_id) == (1, made.custodian.key_id)
    assert meta.created_at == NOW
    assert len(meta.store_id) == 16
    assert store.list_keys() == []
    store.close()


def test_a_key_begins_with_version_1_current(made: MadeStore) -> None:
    store = made.open()
    assert changing.create_key(store.session, MAIL, NOW, made_by_uid=7)
    loaded = store.load_key(MAIL)
    assert (loaded.info.current_number, loaded.info.version_count) == (1, 1)
    assert (loaded.info.created_at, loaded.info.rotated_at) == (NOW, NOW)
    info = loaded.current.info
    assert (info.number, info.state, info.made_by_uid) == (1, VersionState.CURRENT, 7)
    assert loaded.current.material is not None
    assert len(loaded.current.material.material) == 32
    store.close()


def test_making_a_key_again_changes_nothing(made: MadeStore) -> None:
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    before = store.load_key(MAIL)
    assert not changing.create_key(store.session, MAIL, LATER)
    after = store.load_key(MAIL)
    assert after.info == before.info
    assert after.current.info == before.current.info
    store.close()


def test_rotation_makes_a_current_version_and_archives_its_predecessor(made: MadeStore) -> None:
    """I10: exactly one current version, and the old one opens what it sealed."""
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    first = store.load_key(MAIL).current
    done = changing.rotate(store.session, MAIL, actor_uid=7, expected_current=1, now=LATER)
    assert (done.version.info.number, done.version.info.state) == (2, VersionState.CURRENT)
    assert done.version.info.made_by_uid == 7
    assert (done.previous.number, done.previous.state) == (1, VersionState.ARCHIVED)
    assert (done.previous.activated_at, done.previous.archived_at) == (NOW, LATER)
    assert (done.key.current_number, done.key.version_count) == (2, 2)
    assert done.key.rotated_at == LATER
    kept = store.find_version(MAIL, 1)
    assert kept.info == done.previous
    assert kept.material is not None
    assert first.material is not None
    assert kept.material.material == first.material.material
    store.close()


def test_no_two_versions_share_material_or_id(made: MadeStore) -> None:
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    changing.create_key(store.session, BANK, NOW)
    for _ in range(5):
        changing.rotate(store.session, MAIL, actor_uid=0, expected_current=0, now=NOW)
        changing.rotate(store.session, BANK, actor_uid=0, expected_current=0, now=NOW)
    found = [store.find_version(name, n) for name in (MAIL, BANK) for n in range(1, 7)]
    assert len({v.info.version_id for v in found}) == 12
    assert len({v.material.material for v in found if v.material}) == 12
    store.close()


def test_rotation_from_another_current_version_is_a_conflict_and_changes_nothing(
    made: MadeStore,
) -> None:
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    changing.rotate(store.session, MAIL, actor_uid=0, expected_current=1, now=NOW)
    generation = store.read_meta().generation
    with pytest.raises(RotationConflict) as caught:
        changing.rotate(store.session, MAIL, actor_uid=0, expected_current=1, now=NOW)
    assert (caught.value.expected, caught.value.current) == (1, 2)
    assert store.read_meta().generation == generation
    assert store.load_key(MAIL).info.version_count == 2
    store.close()


def test_every_change_moves_the_store_one_generation_on(made: MadeStore) -> None:
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    changing.create_key(store.session, BANK, NOW)
    assert store.read_meta().generation == 3
    changing.rotate(store.session, BANK, actor_uid=0, expected_current=0, now=NOW)
    assert store.changed_since(3).keys == (BANK,)
    assert store.changed_since(1).keys == (BANK, MAIL)
    assert store.changed_since(4) == store.changed_since(9)
    store.close()


def test_a_change_by_another_connection_shows_in_the_token_and_reading_does_not(
    made: MadeStore,
) -> None:
    watching, writing = made.open(), made.open()
    token = watching.read_change_token()
    watching.read_meta()
    writing.read_meta()
    assert watching.read_change_token() == token
    changing.create_key(writing.session, MAIL, NOW)
    assert watching.read_change_token() != token
    assert watching.list_keys()[0].name == MAIL
    watching.close()
    writing.close()


@pytest.mark.parametrize("number", [0, -1, 3, 2**40])
def test_a_number_that_was_never_given_out_is_unknown(made: MadeStore, number: int) -> None:
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    changing.rotate(store.session, MAIL, actor_uid=0, expected_current=0, now=NOW)
    with pytest.raises(UnknownVersion):
        store.find_version(MAIL, number)
    store.close()


def test_a_key_that_does_not_exist_is_unknown(made: MadeStore) -> None:
    store = made.open()
    with pytest.raises(UnknownVersion):
        store.find_version(KeyName("nothing"), 1)
    with pytest.raises(KeyError):
        store.load_key(KeyName("nothing"))
    store.close()


def test_pages_run_from_the_newest_to_the_first(made: MadeStore) -> None:
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    for _ in range(6):
        changing.rotate(store.session, MAIL, actor_uid=0, expected_current=0, now=NOW)

    def page(before: int | None) -> list[int]:
        return [int(v.number) for v in store.list_versions(MAIL, before=before, limit=3)]

    assert [page(None), page(5), page(2), page(1), page(99)] == [
        [7, 6, 5],
        [4, 3, 2],
        [1],
        [],
        [7, 6, 5],
    ]
    assert [v.number for v in store.describe_versions(MAIL, {2, 5, 77})] == [2, 5]
    assert store.verify_page(MAIL, after=0, limit=4) == 4
    assert store.verify_page(MAIL, after=4, limit=4) is None
    store.close()


def test_disabled_and_destroyed_versions_are_told_as_they_are(made: MadeStore) -> None:
    """Ready for later states: a destroyed version has no material, and its row stays."""
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    for _ in range(2):
        changing.rotate(store.session, MAIL, actor_uid=0, expected_current=0, now=NOW)
    set_state(store, MAIL, 1, "DISABLED")
    set_state(store, MAIL, 2, "DESTROYED")
    assert store.find_version(MAIL, 1).info.state is VersionState.DISABLED
    gone = store.find_version(MAIL, 2)
    assert (gone.info.state, gone.material) == (VersionState.DESTROYED, None)
    store.close()


def test_another_root_key_is_refused_and_the_right_one_named(
    made: MadeStore, tmp_path: Path
) -> None:
    other = make_root_key(tmp_path, "other.key")
    with pytest.raises(CustodyError, match=made.custodian.key_id) as caught:
        made.open(other)
    assert caught.value.remedy


def test_everything_is_there_after_reopening(made: MadeStore) -> None:
    """I5: what was wrapped before a restart unwraps after it."""
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    for hours in range(3):
        moment = NOW + timedelta(hours=hours)
        changing.rotate(store.session, MAIL, actor_uid=0, expected_current=0, now=moment)
    before = [store.find_version(MAIL, n) for n in range(1, 5)]
    store.close()
    store = made.open()
    after = [store.find_version(MAIL, n) for n in range(1, 5)]
    assert [v.info for v in after] == [v.info for v in before]
    assert [v.material and v.material.material for v in after] == [
        v.material and v.material.material for v in before
    ]
    store.close()


class LyingCustodian(CountingCustodian):
    """Wraps something else than it was given, as broken hardware would."""

    def wrap(self, plaintext: bytes, binding: bytes) -> bytes:
        return super().wrap(bytes(len(plaintext)), binding)


def test_a_version_that_would_not_open_is_never_stored(made: MadeStore) -> None:
    """I5: nothing is sealed under what can't be unwrapped later."""
    honest = made.open()
    changing.create_key(honest.session, MAIL, NOW)
    lying = made.open(LyingCustodian(made.custodian))
    with pytest.raises(CustodyError, match="did not unwrap"):
        changing.rotate(lying.session, MAIL, actor_uid=0, expected_current=0, now=NOW)
    with pytest.raises(CustodyError, match="did not unwrap"):
        changing.create_key(lying.session, BANK, NOW)
    assert honest.load_key(MAIL).info.version_count == 1
    assert [key.name for key in honest.list_keys()] == [MAIL]
    changing.rotate(honest.session, MAIL, actor_uid=0, expected_current=1, now=NOW)
    honest.close()
    lying.close()


def test_ten_thousand_archived_versions_cost_one_row_and_one_unwrapping(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a key reads its own row and its current version's, however many there are."""
    filling = made.open()
    changing.create_key(filling.session, MAIL, NOW)
    add_archived(filling, MAIL, 10_000)
    filling.close()

    custodian = CountingCustodian(made.custodian)
    store = made.open(custodian)
    checked: list[str] = []
    indexes: list[str] = []
    verify, read_index = Authenticator.verify, Reader.read_index

    def count_verify(self: Authenticator, table: str, row: Any, place: str) -> None:
        checked.append(table)
        verify(self, table, row, place)

    def count_read_index(self: Reader, key: Any) -> VersionIndex:
        indexes.append(key["name"])
        return read_index(self, key)

    monkeypatch.setattr(Authenticator, "verify", count_verify)
    monkeypatch.setattr(Reader, "read_index", count_read_index)
    store.load_key(MAIL)
    assert checked == ["store_meta", "keys", "key_versions"]
    assert custodian.unwrapped == 1

    checked.clear()
    for number in range(1, 10_001, 1_000):
        assert store.find_version(MAIL, number).info.number == number
    assert checked == ["store_meta", "key_versions"] * 10
    assert custodian.unwrapped == 11
    assert indexes == [MAIL]
    tags = store.session.memory._indexes[MAIL].tags
    assert len(tags) * tags.itemsize == 8 * 10_001
    store.close()
