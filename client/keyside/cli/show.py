"""``keyside keys show``: one key, and its versions along a time line."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from keyside.cli.amounts import format_bytes, format_duration
from keyside.cli.connection import KEY_NAME, Connection, as_json, print_json
from keyside.cli.key_facts import key_facts, version_facts
from keyside.cli.tables import find_width, format_time
from keyside.cli.text import escape
from keyside.cli.timeline import Canvas, draw, summarise
from keyside.cli.versions import PAGE_SIZE
from keyside.quantities import count_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside.facts import Key

_NEWEST: Final = 25
_MIN_WIDTH: Final = 20
_BARS: Final = "█▓░·○─┬"


@click.command()
@click.argument("key", type=KEY_NAME)
@click.option("--all", "everything", is_flag=True, help="Draw all versions, not the newest 25.")
@as_json
@click.pass_obj
def show(connection: Connection, key: str, *, everything: bool, as_json: bool) -> None:
    """Show KEY, and its versions along a time line, newest first.

    A bar is the time in which a version was current. --json tells all versions' facts.
    """
    with connection.open() as client:
        found = client.get_key(key)
        versions = client.iter_versions(key, page_size=PAGE_SIZE)
        if as_json:
            facts = [version_facts(version) for version in versions]
            print_json({"key": key_facts(found), "versions": facts})
            return
        shown = list(versions if everything else itertools.islice(versions, _NEWEST))
        rest = summarise(version.state for version in versions)
    now = datetime.now(UTC)
    width = max(shutil.get_terminal_size().columns, _MIN_WIDTH)
    lines = [*_fit(_describe(found, now)), "", *draw(shown, Canvas(width, _shows_bars(), now))]
    # https://no-color.org: whatever its value, if it is not empty.
    colour = False if os.environ.get("NO_COLOR") else None
    for line in lines:
        click.echo(line, color=colour)
    for line in _fit([rest] if rest else []):
        click.echo(line)


def _fit(lines: Iterable[str]) -> list[str]:
    """Return lines as wide as the terminal is; a pipe's are as they are."""
    width = find_width()
    if width is None:
        return list(lines)
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line, max(width, _MIN_WIDTH), subsequent_indent="  ", break_on_hyphens=False
        )
    ]


def _describe(key: Key, now: datetime) -> list[str]:
    """Return what there is to say about the key itself."""
    since = f", since {format_time(key.rotated_at)}" if key.rotated_at else ""
    lines = [
        f"{escape(key.name)}: version {key.current_version} is current{since}",
        f"versions:   {key.version_count:,}",
        f"suite:      {escape(key.suite)}",
    ]
    policy = key.rollover
    if policy:
        limits = [f"every {format_duration(policy.rotate_every)}"]
        if policy.rotate_after_messages:
            limits.append(f"after {count_of(policy.rotate_after_messages, 'message')}")
        if policy.rotate_after_bytes:
            limits.append(f"after {format_bytes(policy.rotate_after_bytes)}")
        lines.append(
            f"rolls over: {', or '.join(limits)}, whichever comes first"
            if len(limits) > 1
            else f"rolls over: {limits[0]}"
        )
    if key.next_rollover_at:
        left = key.next_rollover_at - now
        due = f"in {format_duration(left)}" if left.total_seconds() >= 0 else "overdue"
        lines.append(f"next:       {format_time(key.next_rollover_at)} ({due})")
    if key.pending_version is not None:
        after = (
            f"; successors are made {format_duration(policy.propagation)} ahead" if policy else ""
        )
        lines.append(f"successor:  version {key.pending_version} is made and waits{after}")
    return lines


def _shows_bars() -> bool:
    """Whether standard output is a terminal that takes the bars' characters."""
    try:
        _BARS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return sys.stdout.isatty()
