"""keyside keys show: the time line, at any width, with any times, in a terminal and in a pipe."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cli_process import call, on_terminal, run
from tests.unit.sidecar_double import STARTED_S, Double

from keyside.cli.amounts import format_bytes, format_duration
from keyside.cli.timeline import Canvas, draw, summarise
from keyside.facts import KeyVersion, KeyVersionState, VersionUsage
from keyside.v1 import keys_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _pytest.capture import CaptureFixture

NOW = datetime(2026, 7, 5, 9, tzinfo=UTC)
DAY = timedelta(days=1)
S = KeyVersionState


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        yield running


def version(
    number: int,
    state: KeyVersionState,
    activated: datetime | None,
    archived: datetime | None = None,
    **more: object,
) -> KeyVersion:
    made = activated or NOW - DAY
    return KeyVersion(number, "00" * 16, state, made, activated, archived, **more)  # type: ignore[arg-type]


def usage(messages: int, sealed: datetime | None, opened: datetime | None) -> VersionUsage:
    return VersionUsage(sealed, opened, messages, messages * 100)


VERSIONS = [
    version(5, S.PENDING, None),
    version(4, S.CURRENT, NOW - 90 * DAY, usage=usage(1_234_567, NOW, NOW)),
    version(
        3,
        S.ARCHIVED,
        NOW - 180 * DAY,
        NOW - 90 * DAY,
        usage=usage(90_000, NOW - 90 * DAY, NOW - DAY),
    ),
    version(
        2,
        S.DISABLED,
        NOW - 270 * DAY,
        NOW - 180 * DAY,
        disabled_at=NOW - 2 * DAY,
        disabled_by_uid=1000,
        destroy_requested_at=NOW - DAY,
        destroy_requested_by_uid=1001,
        destroy_in=timedelta(days=6, hours=23, minutes=59),
    ),
    version(
        1,
        S.DESTROYED,
        NOW - 360 * DAY,
        NOW - 270 * DAY,
        destroyed_at=NOW - 20 * DAY,
        destroy_requested_by_uid=0,
    ),
]


def plain(lines: list[str]) -> list[str]:
    return [click.unstyle(line) for line in lines]


def test_versions_lie_along_the_axis_newest_first() -> None:
    lines = plain(draw(VERSIONS, Canvas(80, unicode=False, now=NOW)))
    assert lines == [
        "                    2025-07-10     2026-07-05",
        "VERSION  STATE      +-----------+-----------+   MESSAGES      SEALED      OPENED",
        "      5  PENDING                            o          -           -           -",
        "      4  CURRENT                       ######  1,234,567  2026-07-05  2026-07-05",
        "      3  ARCHIVED               =======           90,000  2026-04-06  2026-07-04",
        "      2  DISABLED         xxxxxx                       -           -           -",
        "    will be destroyed in 6 d 23 h of running time; asked for",
        "    2026-07-04T09:00:00Z by uid 1001",
        "      1  DESTROYED  ......                             -           -           -",
        "    destroyed 2026-06-15T09:00:00Z, asked for by uid 0",
    ]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 79, 80, 100, 300])
@pytest.mark.parametrize("unicode", [True, False])
def test_no_line_is_wider_than_the_terminal(width: int, *, unicode: bool) -> None:
    lines = plain(draw(VERSIONS, Canvas(width, unicode=unicode, now=NOW)))
    assert max(map(len, lines)) <= max(width, 24)
    assert unicode or all(line.isascii() for line in lines)
    assert len([line for line in lines if re.match(r" +\d  [A-Z]", line)]) == 5


def test_a_wrong_clock_is_named_and_draws_nothing_impossible() -> None:
    odd = [
        version(3, S.CURRENT, NOW + 10_000 * DAY),
        version(2, S.ARCHIVED, NOW - DAY, NOW - 5 * DAY),
        version(1, S.ARCHIVED, NOW - 9 * DAY, NOW + 5_000 * DAY),
    ]
    lines = plain(draw(odd, Canvas(100, unicode=False, now=NOW)))
    text = "\n".join(lines)
    assert "current from 2053-11-20T09:00:00Z, which is in the future" in text
    assert "archived 2026-06-30T09:00:00Z, before it became current" in text
    assert "archived 2040-03-13T09:00:00Z, which is in the future" in text
    assert "2026-06-26" in lines[0]
    assert lines[0].rstrip().endswith("2026-07-05")


times = st.none() | st.datetimes(timezones=st.just(UTC))
versions = st.builds(
    KeyVersion,
    number=st.integers(1, 2**32 - 1),
    id=st.just("00" * 16),
    state=st.sampled_from(KeyVersionState),
    created_at=times,
    activated_at=times,
    archived_at=times,
    disabled_at=times,
    destroy_in=st.none() | st.timedeltas(),
    destroyed_at=times,
    usage=st.none()
    | st.builds(VersionUsage, times, times, st.integers(0, 2**64), st.integers(0, 2**64)),
)


@given(
    st.lists(versions, max_size=5),
    st.builds(Canvas, st.integers(20, 200), st.booleans(), times.map(lambda when: when or NOW)),
)
def test_any_times_are_drawn(found: list[KeyVersion], canvas: Canvas) -> None:
    lines = plain(draw(found, canvas))
    assert all("\n" not in line for line in lines)
    assert len([line for line in lines if re.match(r" *\d+  [A-Z]", line)]) >= len(found)


def test_what_is_not_drawn_is_counted() -> None:
    states = [S.ARCHIVED] * 9_970 + [S.DESTROYED] * 5
    assert summarise(states).startswith("... and 9,975 older: 9,970 ARCHIVED, 5 DESTROYED")
    assert summarise([]) == ""


def test_ten_thousand_versions_are_shown_as_25(double: Double) -> None:
    double.versions = []
    for number in range(10_000, 0, -1):
        one = keys_pb2.KeyVersion(number=number, state=keys_pb2.KEY_VERSION_STATE_ARCHIVED)
        one.activated_at.seconds = STARTED_S + number
        one.archived_at.seconds = STARTED_S + number + 1
        double.versions.append(one)
    double.versions[0].state = keys_pb2.KEY_VERSION_STATE_CURRENT
    finished = run(double, "keys", "show", "mail", environment={"COLUMNS": "80"})
    lines = finished.stdout.decode().splitlines()
    assert finished.returncode == 0
    assert len(lines) < 40
    assert lines[-1] == "... and 9,975 older: 9,975 ARCHIVED  (--all shows them)"
    assert finished.stdout.isascii()
    assert b"\x1b" not in finished.stdout


def show_key(double: Double) -> None:
    key = double.key
    key.pending_version = 251
    key.rotated_at.seconds = STARTED_S
    key.next_rollover_at.seconds = STARTED_S + 90 * 86_400
    key.rollover.rotate_every.seconds = 90 * 86_400
    key.rollover.rotate_after_messages = 1_000_000
    key.rollover.rotate_after_bytes = 3 << 29
    key.rollover.propagation.seconds = 60


def test_the_key_itself_is_described(double: Double, capsys: CaptureFixture[str]) -> None:
    show_key(double)
    assert call(double, "keys", "show", "mail") == 0
    assert capsys.readouterr().out.startswith(
        "mail: version 250 is current, since 2023-11-14T22:13:20Z\n"
        "versions:   250\n"
        "suite:      AES-256-GCM\n"
        "rolls over: every 90 d, or after 1,000,000 messages, or after 1.5 GiB, "
        "whichever comes first\n"
        "next:       2024-02-12T22:13:20Z (overdue)\n"
        "successor:  version 251 is made and waits; successors are made 1 min ahead\n"
        "\n"
    )


def test_json_tells_the_same_facts(double: Double, capsys: CaptureFixture[str]) -> None:
    show_key(double)
    one = keys_pb2.KeyVersion(
        number=3,
        id=bytes(16),
        state=keys_pb2.KEY_VERSION_STATE_DISABLED,
        made_by_uid=0,
        disabled_by_uid=1000,
        destroy_requested_by_uid=1001,
    )
    for name in ("created_at", "activated_at", "disabled_at", "destroy_requested_at"):
        getattr(one, name).seconds = STARTED_S
    one.destroy_in.seconds = 86_400
    one.usage.messages = 5
    one.usage.plaintext_bytes = 500
    one.usage.last_sealed_at.seconds = STARTED_S
    double.versions = [one]
    assert call(double, "keys", "show", "mail", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["key"]["pending_version"] == 251
    assert shown["key"]["next_rollover_at"] == "2024-02-12T22:13:20Z"
    assert shown["key"]["rollover"] == {
        "rotate_every_s": 7_776_000,
        "rotate_after_messages": 1_000_000,
        "rotate_after_bytes": 1_610_612_736,
        "propagation_s": 60,
    }
    when = "2023-11-14T22:13:20Z"
    assert shown["versions"] == [
        {
            "number": 3,
            "id": "0" * 32,
            "state": "DISABLED",
            "created_at": when,
            "activated_at": when,
            "archived_at": None,
            "made_by_uid": 0,
            "disabled_at": when,
            "disabled_by_uid": 1000,
            "destroy_requested_at": when,
            "destroy_requested_by_uid": 1001,
            "destroy_in_s": 86_400,
            "destroyed_at": None,
            "usage": {
                "last_sealed_at": when,
                "last_opened_at": None,
                "messages": 5,
                "plaintext_bytes": 500,
            },
        }
    ]


def test_a_terminal_gets_colour_unless_it_asks_for_none(double: Double) -> None:
    utf8 = {"PYTHONIOENCODING": "utf-8", "TERM": "xterm", "NO_COLOR": ""}
    _, shown = on_terminal(double, "keys", "show", "mail", typed=b"", environment=utf8)
    assert b"\x1b[34m" in shown
    assert "▓".encode() in shown
    _, shown = on_terminal(
        double, "keys", "show", "mail", typed=b"", environment={**utf8, "NO_COLOR": "1"}
    )
    assert b"\x1b[" not in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (604_799, "6 d 23 h"),
    ],
)
def test_durations_are_rounded_down(seconds: int, shown: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes_are_in_their_unit(count: int, shown: str) -> None:
    assert format_bytes(count) == shown
