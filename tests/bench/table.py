"""The table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rows import write_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rows import Row

_VERDICTS = {True: "ok", False: "MISSED", None: ""}


def show_part(name: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Print each row as soon as it is there, and pass it on."""
    print(f"\n{name:76} {'ours':>11} {'theirs':>11} {'ratio':>6}  target")
    for row in rows:
        show(row)
        yield row


def show(row: Row) -> None:
    """Print a row, and what belongs to it."""
    theirs = "" if row.theirs is None else write_number(row.theirs)
    ratio = "" if row.ratio is None else write_number(row.ratio)
    title = f"{row.name} [{row.unit}]"
    verdict = _VERDICTS[row.met]
    print(
        f"{title:76} {write_number(row.ours):>11} {theirs:>11} {ratio:>6}  "
        f"{row.target_text:24} {verdict}".rstrip(),
        flush=True,
    )
    if row.facts:
        print("    " + "; ".join(f"{name}: {write_number(it)}" for name, it in row.facts.items()))
