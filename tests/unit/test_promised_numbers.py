"""Numbers that pages promise are the code's: neither changes without the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from keyside_sidecar import reception
from keyside_sidecar.access import boot_deadlines, elevation
from keyside_sidecar.audit import coalescing, recording, records, reserve, running
from keyside_sidecar.keys import caretaker, presence, root_key_watch
from keyside_sidecar.pam import limits
from keyside_sidecar.server import inner_servers as server
from keyside_sidecar.server.pipeline import grant
from keyside_sidecar.services import turns
from keyside_sidecar.store import postgresql, sidecars

ROOT: Final = Path(__file__).resolve().parents[2]

# Page, a sentence of it with the numbers, and what they are in the code, in the sentence's units.
PROMISES: Final[list[tuple[str, str, tuple[float, ...]]]] = [
    (
        "docs/operations.md",
        r"A worker has up to (\d+), and 1 to listen; count hosts × workers × (\d+)",
        (postgresql._POOL_SIZE, postgresql._POOL_SIZE + 1),
    ),
    (
        "docs/operations.md",
        r"more than ([\d,]+) on one of a worker's eight inner servers",
        (dict(server.BACKLOG_OPTIONS)["grpc.server.max_pending_requests"],),
    ),
    (
        "docs/operations.md",
        r"person's next try has to wait (\d+) s, then 10 s, 20 s … (\d+) min",
        (limits.FIRST_WAIT_S, limits.MAX_WAIT_S / 60),
    ),
    (
        "docs/operations.md",
        r"its time is not prolonged within one boot of its host, and by restarts (\d+) times",
        (boot_deadlines.MOST_BOOTS - 1,),
    ),
    (
        "docs/adr/0010-elevated-access.md",
        r"no grant has more than (\d+) of them.* (\d+) durations of use",
        (boot_deadlines.MOST_BOOTS, boot_deadlines.MOST_BOOTS),
    ),
    (
        "docs/adr/0010-elevated-access.md",
        r"observed time \(ADR 7\), which runs up to (\d+) s late",
        (elevation.OBSERVED_STEP_US / 1_000_000 + caretaker._TICK_S,),
    ),
    (
        "docs/backup.md",
        r"A process that was not heard of for (\d+) seconds is named",
        (sidecars.SILENT_AFTER.total_seconds(),),
    ),
    (
        "docs/elevation.md",
        r"under a grant has at most ([\d,]+) items",
        (grant.MAX_GRANTED_ITEMS,),
    ),
    (
        "docs/configuration.md",
        r"of one account, each worker works on (\d+) at once",
        (turns._BATCHES_PER_UID,),
    ),
    ("docs/configuration.md", r"A store holds ([\d,]+) of everybody's", (elevation.MOST_OPEN,)),
    (
        "docs/configuration.md",
        r"for (\d+) seconds at most; while (\d+) wait",
        (running._LIMIT_S, recording._NOTIFY_ROOM),
    ),
    (
        "docs/audit.md",
        r"at intervals that grow from (\d+) seconds to (\d+) minutes",
        (coalescing._FIRST_INTERVAL_S, coalescing._MAX_INTERVAL_S / 60),
    ),
    ("docs/audit.md", r"record of their own (\d+) times", (coalescing._NEW_AT_ONCE,)),
    (
        "docs/audit.md",
        r"at intervals from (\d+) seconds to (\d+) minutes, for (\d+) accounts",
        (
            reception._REPORT_AFTER_S,
            reception._MAX_REPORT_AFTER_S / 60,
            reception._REPORTED_UIDS,
        ),
    ),
    (
        "docs/audit.md",
        r"more than ([\d,]+) characters and a list of more than (\d+) items",
        (records._MAX_TEXT, records._MAX_ITEMS),
    ),
    ("docs/audit.md", r"reserve` \| (\d+) MiB", (reserve.RESERVE_BYTES >> 20,)),
]
IN_WORDS: Final = [
    ("docs/operations.md", "After three failures", limits.FREE_FAILURES == 3),
    ("docs/operations.md", "eight inner servers", server._MAIN_SERVERS == 8),
    ("docs/operations.md", "waited for, three seconds at most", presence._WAIT_S == 3),
    ("docs/operations.md", "next heard of, within five seconds", presence._BEAT_S == 5),
    ("docs/backup.md", "looks at its file every five seconds", root_key_watch._INTERVAL_S == 5),
    ("docs/backup.md", "at once and each minute", root_key_watch._SAID_AGAIN_S == 60),
    ("docs/audit.md", "and then once a second", coalescing._NEW_PER_S == 1),
]


def read(page: str) -> str:
    return re.sub(r"\s+", " ", (ROOT / page).read_text("utf-8"))


@pytest.mark.parametrize(
    ("page", "sentence", "numbers"), PROMISES, ids=[f"{row[0]}: {row[1][:40]}" for row in PROMISES]
)
def test_a_page_says_the_codes_number(page: str, sentence: str, numbers: tuple[float, ...]) -> None:
    found = re.search(sentence, read(page))
    assert found is not None, "the sentence has changed: say what the code does"
    assert [float(number.replace(",", "")) for number in found.groups()] == list(numbers)


@pytest.mark.parametrize(("page", "words", "holds"), IN_WORDS, ids=[row[1] for row in IN_WORDS])
def test_a_page_says_the_codes_number_in_words(page: str, words: str, *, holds: bool) -> None:
    assert words in read(page)
    assert holds
