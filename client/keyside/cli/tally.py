"""What a walk has done so far: counted, told at the end, and shown while it goes on."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import click

from keyside.cli import exits
from keyside.cli.connection import print_done
from keyside.cli.rewriting import Outcome
from keyside.cli.text import escape
from keyside.quantities import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_FAILURES_TOLD: Final = 10_000
_PROGRESS_EVERY_S: Final = 0.1
_USUAL_WIDTH: Final = 80


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that was left as it was, and why.

    Args:
        path: The file.
        message: What is wrong.
        remedy: What to do about it, or ``""``.
        exit_code: What this alone would exit with.
    """

    path: str
    message: str
    remedy: str
    exit_code: int


@dataclass(slots=True)
class Tally:
    """Counts, and the failures in their order (the first ten thousand)."""

    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    passed_over: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)
    first_code: int = exits.OK

    @property
    def looked_at(self) -> int:
        """How many files were looked at."""
        return sum(self.outcomes.values()) + self.failed

    def fail(self, failure: Failure) -> None:
        """Count a failure."""
        self.failed += 1
        self.first_code = self.first_code or failure.exit_code
        if len(self.failures) < _MAX_FAILURES_TOLD:
            self.failures.append(failure)


@dataclass(frozen=True, slots=True)
class Verbs:
    """How a command calls its work.

    Args:
        command: Its name.
        done: What has been done, as in "3 files re-encrypted".
        would: What it does to one file, for --dry-run.
        already: What a file is that needs nothing.
    """

    command: str
    done: str
    would: str
    already: str


class Display:
    """Tells people, and programs with --json, how a walk goes and how it ended.

    Args:
        verbs: The command's words.
        as_json: One document at the end, and nothing else.
        dry_run: Nothing is done; say what would be.
    """

    def __init__(self, verbs: Verbs, *, as_json: bool, dry_run: bool) -> None:
        self._verbs = verbs
        self._as_json = as_json
        self._dry_run = dry_run
        self._terminal = sys.stderr.isatty()
        self._begun_s = time.monotonic()
        self._shown_s = 0.0
        self._remedies: set[str] = set()

    def would(self, path: str) -> None:
        """With --dry-run: name a file that would be replaced."""
        if self._dry_run and not self._as_json:
            self.clear()
            click.echo(f"would {self._verbs.would} {escape(path)}")

    def failure(self, failure: Failure) -> None:
        """Tell of a file that failed; each remedy once."""
        if self._as_json:
            return
        self.clear()
        print(f"keyside: {escape(failure.path)}: {escape(failure.message)}", file=sys.stderr)
        if failure.remedy and failure.remedy not in self._remedies:
            self._remedies.add(failure.remedy)
            print(f"  what to do: {escape(failure.remedy)}", file=sys.stderr)

    def not_kept(self, path: str, what: Sequence[str]) -> None:
        """Tell of a file that was replaced, and could not be given all that it had."""
        self.clear()
        print(f"keyside: {escape(path)}: not kept: {escape(', '.join(what))}", file=sys.stderr)

    def progress(self, tally: Tally) -> None:
        """Show how far the walk is, on a terminal, a few times a second."""
        now_s = time.monotonic()
        if not self._terminal or now_s - self._shown_s < _PROGRESS_EVERY_S:
            return
        self._shown_s = now_s
        rate = tally.looked_at / max(now_s - self._begun_s, _PROGRESS_EVERY_S)
        line = count_of(tally.looked_at, "file")
        line += f", {tally.outcomes[Outcome.DONE]:,} {self._verbs.done}"
        line += f", {tally.failed:,} failed" if tally.failed else ""
        line += f", {rate:,.0f}/s"
        print(f"\r\x1b[K{line[: _terminal_width() - 1]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the progress off the terminal."""
        if self._terminal and self._shown_s:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self, tally: Tally, stopped: str) -> None:
        """Say what was done.

        Args:
            tally: The counts.
            stopped: Why the walk did not come to its end, or ``""``.
        """
        self.clear()
        done, already = tally.outcomes[Outcome.DONE], tally.outcomes[Outcome.ALREADY]
        strangers = tally.outcomes[Outcome.NO_ENVELOPE]
        facts = {
            "command": self._verbs.command,
            "dry_run": self._dry_run,
            "done": done,
            "already_done": already,
            "not_envelopes": strangers,
            "passed_over": tally.passed_over,
            "failed": tally.failed,
            "failures": [
                {
                    "path": failure.path,
                    "message": failure.message,
                    "remedy": failure.remedy or None,
                    "exit_code": failure.exit_code,
                }
                for failure in tally.failures
            ],
            "stopped": stopped or None,
        }
        would = "would be " if self._dry_run else ""
        parts = [
            f"{count_of(done, 'file')} {would}{self._verbs.done}",
            f"{already:,} {self._verbs.already}" if already else "",
            count_of(strangers, "no envelope") if strangers else "",
            count_of(tally.passed_over, "link or special file", "links or special files")
            + " passed over"
            if tally.passed_over
            else "",
            f"{tally.failed:,} failed" if tally.failed else "",
            f"stopped before the end: {escape(stopped)}" if stopped else "",
        ]
        print_done("; ".join(part for part in parts if part), facts, as_json=self._as_json)


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_WIDTH
    except (OSError, ValueError):
        return _USUAL_WIDTH
