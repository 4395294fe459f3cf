"""AuditService: one search at a time for each caller, and a short queue."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.unit.api_scene import make_caller
from tests.unit.audit_chain import make_chain
from tests.unit.audit_scene import eventually

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.audit.reading import Filters, Page
from keyside_sidecar.errors import AuditUnavailable, Refused
from keyside_sidecar.services import audit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SEARCH = audit.SearchRecords(Filters(), 0, "", oldest_first=False)


@pytest.fixture
def servicer(tmp_path: Path) -> Iterator[audit.AuditService]:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(make_chain(50, files=1).files[0]))
    policy = SimpleNamespace(may_read_all_audit=lambda _subject: True)
    made = audit.AuditService(path, cast("Any", policy))
    yield made
    made.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Searches that end when it is set."""
    opened = threading.Event()

    def wait(*_arguments: object, **_named: object) -> Page:
        assert opened.wait(10)
        return Page((), "", 0)

    monkeypatch.setattr(audit, "search_records", wait)
    yield opened
    opened.set()


async def begin(servicer: audit.AuditService, uid: int) -> asyncio.Task[Any]:
    search = servicer.search_records(make_caller(uid), SEARCH)
    task = asyncio.create_task(search)
    await asyncio.sleep(0.01)
    return task


def test_one_search_at_a_time_for_each_caller(
    servicer: audit.AuditService, gate: threading.Event
) -> None:
    async def work() -> None:
        first = await begin(servicer, 1001)
        other = await begin(servicer, 1002)
        with pytest.raises(Refused) as caught:
            await (await begin(servicer, 1001))
        assert caught.value.reason is Reason.TOO_MANY_CALLS
        gate.set()
        await first
        await other
        await (await begin(servicer, 1001))

    asyncio.run(work())


def test_who_goes_away_is_not_served_another_until_the_thread_is_done(
    servicer: audit.AuditService, gate: threading.Event
) -> None:
    async def work() -> None:
        tasks = [await begin(servicer, uid) for uid in (1, 2, 3)]
        for task in tasks:  # two of them are at work, the third one waits
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(Refused):
            await (await begin(servicer, 1))
        third = await begin(servicer, 3)
        assert not third.done()
        gate.set()
        await third
        await eventually(lambda: not servicer._busy)
        await (await begin(servicer, 1))

    asyncio.run(work())


def test_queue_of_searches_is_short(servicer: audit.AuditService, gate: threading.Event) -> None:
    async def work() -> None:
        tasks = [await begin(servicer, uid) for uid in range(16)]
        with pytest.raises(Refused):
            await (await begin(servicer, 99))
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(work())


@pytest.mark.usefixtures("gate")
def test_search_that_takes_too_long_is_the_logs_failure_and_not_the_stores(
    servicer: audit.AuditService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_TIMEOUT_S", 0.05)

    async def work() -> None:
        with pytest.raises(AuditUnavailable):
            await (await begin(servicer, 1001))

    asyncio.run(work())


def test_pages_follow_one_another(servicer: audit.AuditService) -> None:
    async def work() -> int:
        found, token = 0, ""
        while True:
            search = replace(SEARCH, page_size=7, page_token=token)
            page = await servicer.search_records(make_caller(1001), search)
            found, token = found + len(page.records), page.next_page_token
            if not token:
                return found

    assert asyncio.run(work()) >= 50
