"""Finding records: what is found, in which order, page by page, and without reading everything."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.audit_chain import Chain, make_chain

from keyside.audit import parse_line, parse_sequence
from keyside_sidecar.audit.blocks import find_line, read_backward, read_forward
from keyside_sidecar.audit.reading import Filters, find_checkpoint, search_records
from keyside_sidecar.errors import AuditUnavailable, BadRequest

if TYPE_CHECKING:
    from pathlib import Path

    from keyside.audit import Line

RECORDS = 3000


def write(chain: Chain, directory: Path) -> Path:
    for lines in chain.files[:-1]:
        (directory / f"audit-{parse_sequence(lines[0]):012d}.jsonl").write_bytes(b"".join(lines))
    path = directory / "audit.jsonl"
    path.write_bytes(b"".join(chain.files[-1]))
    return path


@pytest.fixture(scope="module")
def chain() -> Chain:
    made = make_chain(RECORDS, closed=False)
    made.append("access.approve", phase="outcome", outcome="ok", access="ar-1", key="bank")
    made.append("access.use", outcome="ok", access="ar-1", key="bank", caller={"uid": 5})
    made.append("access.use", outcome="refused", access="ar-2", caller={"uid": 1, "account": "a"})
    made.append("accessory", outcome="ok", details={"comment": '"key":"bank"'})
    made.close()
    return made


@pytest.fixture(scope="module")
def path(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(chain, tmp_path_factory.mktemp("log"))


def find_all(
    path: Path, filters: Filters, *, size: int = 500, oldest_first: bool = False
) -> list[int]:
    """Return the numbers of everything that is found, over all pages."""
    found: list[int] = []
    token = ""
    while True:
        page = search_records(
            path, filters, page_size=size, page_token=token, oldest_first=oldest_first
        )
        assert len(page.records) <= size
        for record in page.records:
            assert parse_line(record.json.encode()).sequence == record.sequence
            found.append(record.sequence)
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("size", [1, 7, 500, 10_000])
def test_all_records_once_in_order_whatever_the_page(
    chain: Chain, path: Path, size: int, *, oldest_first: bool
) -> None:
    filters = Filters(first_sequence=chain.sequence - 40 if size == 1 else 0)
    found = find_all(path, filters, size=size, oldest_first=oldest_first)
    expected = range(filters.first_sequence or 1, chain.sequence + 1)
    assert found == list(expected if oldest_first else reversed(expected))


def matching(chain: Chain, **wanted: Any) -> set[int]:
    return {
        line.sequence
        for lines in chain.files
        for line in map(parse_line, map(bytes.strip, lines))
        if all(line.fields.get(name) == value for name, value in wanted.items())
    }


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (Filters(key="bank"), {"key": "bank"}),
        (Filters(access="ar-1"), {"access": "ar-1"}),
        (Filters(outcome="refused"), {"outcome": "refused"}),
        (Filters(event="access.use"), {"event": "access.use"}),
        (Filters(uid=5), {"caller": {"uid": 5}}),
        (Filters(account="a"), {"caller": {"uid": 1, "account": "a"}}),
        (Filters(record_id="x-10"), {"id": "x-10"}),
        (Filters(access="ar-1", event="access.use"), {"access": "ar-1", "event": "access.use"}),
        (Filters(key="none"), {"key": "none"}),
    ],
)
def test_filters(
    chain: Chain, path: Path, filters: Filters, wanted: dict[str, Any], *, oldest_first: bool
) -> None:
    found = find_all(path, filters, oldest_first=oldest_first)
    assert set(found) == matching(chain, **wanted)
    assert len(found) == len(set(found))


def test_event_finds_what_is_below_it_and_nothing_that_only_begins_alike(
    chain: Chain, path: Path
) -> None:
    found = find_all(path, Filters(event="access"))
    events = {parse_line(line.strip()).event for lines in chain.files for line in lines}
    assert "accessory" in events
    assert len(found) == 3


def test_times_and_numbers(chain: Chain, path: Path) -> None:
    after = datetime(2026, 11, 25, 0, 0, 10, tzinfo=UTC)
    before = datetime(2026, 11, 25, 0, 0, 20, tzinfo=UTC)
    found = find_all(path, Filters(after=after, before=before), oldest_first=True)
    assert found == list(range(501, 1001))
    limited = Filters(after=after, before=before, first_sequence=700, last_sequence=710)
    assert find_all(path, limited) == list(range(710, 699, -1))
    assert chain.sequence > 1001


def test_newest_checkpoint(chain: Chain, path: Path, tmp_path: Path) -> None:
    found = find_checkpoint(path)
    assert found is not None
    assert found.json.encode() == chain.checkpoints[-1].strip()
    assert find_checkpoint(tmp_path / "audit.jsonl") is None


@pytest.mark.parametrize("oldest_first", [False, True])
def test_a_batch_is_found_by_each_of_its_keys(tmp_path: Path, *, oldest_first: bool) -> None:
    made = make_chain(10, closed=False)
    items = [{"key": "bank", "version": 1, "count": 2}, {"key": "post", "version": 1, "count": 1}]
    made.append("encryption.batch_encrypt", outcome="ok", details={"items": items})
    number = made.sequence
    made.append("accessory", outcome="ok", details={"items": '"key":"post"'})
    made.close()
    found = find_all(write(made, tmp_path), Filters(key="post"), oldest_first=oldest_first)
    assert found == [number]


def test_bad_lines_are_counted_and_passed_over(chain: Chain, tmp_path: Path) -> None:
    path = write(chain, tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = b"\xff\x00 no record\n"
    lines[9] = lines[9].replace(b'"id"', b'"id" ')
    lines[12] = lines[12].replace(b'"outcome":"ok"', b'"outcome":"ok" ')
    lines.insert(20, b"x" * 300_000 + b"\n")
    path.write_bytes(b"".join(lines) + b'{"v":1,"seq":99999,"id":"torn')
    for oldest_first in (False, True):
        page = search_records(path, Filters(), page_size=100_000, oldest_first=oldest_first)
        assert page.bad_lines == 4
        assert len(page.records) == chain.sequence - 3
        assert page.next_page_token == ""


def test_page_is_short_where_much_was_looked_at(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyside_sidecar.audit.reading._MAX_LOOKED_AT", 100)
    page = search_records(path, Filters(record_id="x-1"), page_size=10)
    assert (page.records, page.next_page_token != "") == ((), True)
    assert find_all(path, Filters(record_id="x-1")) == [2]


def test_page_is_short_where_it_took_long(path: Path) -> None:
    page = search_records(path, Filters(record_id="x-1"), page_size=10, limit_s=0.0)
    assert (page.records, page.next_page_token != "") == ((), True)
    token, pages = "", 0
    while True:
        page = search_records(
            path, Filters(record_id="x-1"), page_size=10, page_token=token, limit_s=0.0
        )
        token, pages = page.next_page_token, pages + 1
        if page.records or not token:
            break
    assert [record.sequence for record in page.records] == [2]
    assert pages > 5


@pytest.mark.parametrize("oldest_first", [False, True])
def test_one_record_is_found_without_reading_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, oldest_first: bool
) -> None:
    looked_at = 0

    def counted(data: bytes) -> int | None:
        nonlocal looked_at
        looked_at += 1
        return parse_sequence(data)

    monkeypatch.setattr("keyside_sidecar.audit.reading.parse_sequence", counted)
    filters = Filters(first_sequence=300, last_sequence=300)
    assert len(search_records(path, filters, page_size=5, oldest_first=oldest_first).records) == 1
    assert looked_at < 10


def test_event_that_only_begins_alike_is_not_even_parsed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise whoever asks for ``encryption.dec`` has every line of the log parsed."""
    parsed = 0

    def counted(data: bytes) -> Line:
        nonlocal parsed
        parsed += 1
        return parse_line(data)

    monkeypatch.setattr("keyside_sidecar.audit.reading.parse_line", counted)
    for name in ("encryption.dec", "e", "encryption."):
        assert find_all(path, Filters(event=name)) == []
    assert parsed == 0


@pytest.mark.parametrize("token", ["x", "n0", "n-1", "o5", "n1 ", "n99999999999999999999"])
def test_foreign_token_is_refused(path: Path, token: str) -> None:
    with pytest.raises(BadRequest):
        search_records(path, Filters(), page_size=10, page_token=token)


def test_files_that_can_not_be_read_are_unavailable(tmp_path: Path) -> None:
    with pytest.raises(AuditUnavailable):
        search_records(tmp_path / "none" / "audit.jsonl", Filters(), page_size=10)


def test_newest_page_of_a_large_log_reads_its_end_only(
    path: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a log of a million records, as many bytes are read as of this one."""
    read = 0
    genuine = os.pread

    def counted(descriptor: int, size: int, place: int) -> bytes:
        nonlocal read
        data = genuine(descriptor, size, place)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    page = search_records(path, Filters(), page_size=10)
    assert len(page.records) == 10
    assert read < 450_000
    read = 0
    search_records(path, Filters(), page_size=10, page_token=f"n{chain.sequence // 3}")
    assert read < 450_000


# --- lines in blocks

texts = st.lists(st.binary(max_size=6).map(lambda data: data.replace(b"\n", b"")), max_size=30)


@settings(max_examples=60)
@given(lines=texts, ended=st.booleans(), block=st.integers(1, 9))
def test_lines_are_the_same_in_both_directions(
    lines: list[bytes], block: int, *, ended: bool
) -> None:
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    descriptor = os.memfd_create("test")
    os.write(descriptor, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keyside_sidecar.audit.blocks._BLOCK_BYTES", block)
        forward = list(read_forward(descriptor, 0, len(data)))
        backward = list(read_backward(descriptor, len(data)))
    os.close(descriptor)
    assert forward == backward[::-1]
    for line in forward:
        assert data[line.offset : line.offset + len(line.data)] == line.data
    whole = b"".join(line.data + (b"\n" if line.ended else b"") for line in forward)
    assert whole == data


def test_line_is_found_by_its_number(chain: Chain, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    size = path.stat().st_size
    first = parse_sequence(chain.files[-1][0])
    assert first is not None
    offset = 0
    for number, line in enumerate(chain.files[-1], first):
        if number % 37 == 0:
            assert find_line(descriptor, size, number) == offset
        offset += len(line)
    assert find_line(descriptor, size, 0) == 0
    assert find_line(descriptor, size, chain.sequence + 1) == size
    os.close(descriptor)
