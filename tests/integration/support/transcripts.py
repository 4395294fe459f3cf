"""Transcripts on pages: commands typed at a terminal, with what they print.

What differs from run to run (ids, times, digests) is compared by its form only. A line that is
just ``…`` stands for any lines.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.pages import Block
    from support.private_host import PrivateHost

_PROMPT = re.compile(r"^([a-z][a-z0-9-]*)[$#] (.*)$")
_ACCESS_ID = re.compile(r"ar-[a-z2-7]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)")
_HOST = re.compile(r"on [\w.-]+/[0-9a-f]{16}")
# What is compared by its form, and what stands for it.
_FORMS: Final = (
    (_ACCESS_ID, "ACCESS-ID"),
    (_TIME, "TIME"),
    (_HOST, "on HOST"),
    (re.compile(r"\b[0-9a-f]{8}…[0-9a-f]{5,8}\b"), "DIGEST"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"\((?:in )?(?:\d+ (?:d|h|min|s) ?)+\)"), "(DURATION)"),
    (re.compile(r"\[\d+\]"), "[RECORD]"),
    (re.compile(r"\d[\d,]* records"), "N records"),
    (re.compile(r"record \d[\d,]*"), "record N"),
    (re.compile(r"records: \d+ to \d+"), "records: N to N"),
    (re.compile(r"checkpoint \d+ of log [0-9a-f]{16}"), "checkpoint N of LOG"),
    (re.compile(r" +$", re.MULTILINE), ""),
)
# What a page says instead of a host's name, and of a run's times.
_PAGE_HOST: Final = "on mail1/9fd6328f8d39a003"
_PAGE_BASE: Final = dt.datetime(2026, 11, 25, 23, 26, 37, tzinfo=dt.UTC)


@dataclass
class Step:
    """One command of a transcript.

    Args:
        prompt: The account and its sign, as the page shows them.
        command: What is typed; it may have several lines.
        shown: What the page shows after it.
    """

    prompt: str
    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def account(self) -> str:
        """Whose prompt it is."""
        return self.prompt.rstrip("$# ")


def read_steps(block: Block) -> list[Step]:
    """Return a transcript's commands."""
    steps: list[Step] = []
    for line in block.text.splitlines():
        found = _PROMPT.match(line)
        if steps and not steps[-1].shown and steps[-1].command.endswith("\\"):
            steps[-1].command += f"\n{line}"
        elif found:
            steps.append(Step(line[: found.start(2)], found[2]))
        elif steps:
            steps[-1].shown.append(line)
        else:
            raise AssertionError(f"{block} does not begin with a prompt, such as alice$")
    return steps


@dataclass
class Player:
    """Runs transcripts on a host, and knows which real id a page's id stands for.

    Args:
        host: Where the accounts are.
        passwords: What each person types when asked.
        replace: What else on a page stands for something real.
    """

    host: PrivateHost
    passwords: Mapping[str, str]
    replace: dict[str, str] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)
    _newest: str = ""
    _first_time: dt.datetime | None = None

    def begin_page(self) -> None:
        """Count times from now on."""
        self._first_time = dt.datetime.now(dt.UTC)

    def play(self, block: Block) -> tuple[str, list[str]]:
        """Run a block's commands; return what the page should say, and how it differs.

        Returns:
            The block's text with what was really printed (but for what leaves lines out and fits),
            and for each command whose output is not what is shown, both of them.
        """
        lines: list[str] = []
        differences: list[str] = []
        if self._first_time is None:
            self.begin_page()
        for step in read_steps(block):
            ran = self.host.type(
                self._real(step.command),
                account=step.account,
                answers={
                    "Your password: ": self.passwords.get(step.account, ""),
                    "[y/N] ": "y",
                },
            )
            printed = _read_screen(ran.output)
            self._learn(step.shown, ran.output)
            lines.append(step.prompt + step.command)
            shown = "\n".join(step.shown).rstrip("\n").split("\n") if any(step.shown) else []
            gap = step.shown[len(shown) :]
            fits = _fits(_forms(shown), _forms(printed))
            if fits and "…" in shown:
                lines += step.shown
            else:
                lines += [*self._as_on_page(printed), *gap]
            if fits:
                continue
            differences.append(
                "\n".join([f"{block}: {step.command}", "shown:", *step.shown, "printed:", *printed])
            )
        return "\n".join([*lines, ""]), differences

    def _learn(self, shown: list[str], output: str) -> None:
        real = list(dict.fromkeys(_ACCESS_ID.findall(output)))
        for one in real:
            if one not in self._ids.values():
                self._newest = one
                named = [
                    name
                    for name in dict.fromkeys(_ACCESS_ID.findall("\n".join(shown)))
                    if name not in self._ids
                ]
                if named:
                    self._ids[named[0]] = one

    def _real(self, command: str) -> str:
        for name, value in self.replace.items():
            command = command.replace(name, value)

        def look_up(match: re.Match[str]) -> str:
            return self._ids.setdefault(match[0], self._newest)

        return _ACCESS_ID.sub(look_up, command)

    def _as_on_page(self, printed: list[str]) -> list[str]:
        text = "\n".join(printed)
        for page, real in self._ids.items():
            text = text.replace(real, page)
        for page, real in self.replace.items():
            text = text.replace(real, page)
        text = _HOST.sub(_PAGE_HOST, text)
        return _TIME.sub(self._shift, text).split("\n") if text else []

    def _shift(self, match: re.Match[str]) -> str:
        real = dt.datetime.fromisoformat(match[0])
        assert self._first_time is not None
        moved = _PAGE_BASE + (real - self._first_time)
        zone = "Z" if match[0].endswith("Z") else "+00:00"
        kind = "microseconds" if "." in match[0] else "seconds"
        return moved.replace(tzinfo=None).isoformat(timespec=kind) + zone


def _read_screen(output: str) -> list[str]:
    """Return the lines that are left on a terminal; progress has overwritten itself."""
    lines = [line.rpartition("\r")[2].replace("\x1b[K", "").rstrip() for line in output.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _forms(lines: list[str]) -> list[str]:
    return [_apply(_FORMS, line) for line in lines]


def _apply(forms: tuple[tuple[re.Pattern[str], str], ...], line: str) -> str:
    for pattern, form in forms:
        line = pattern.sub(form, line)
    return line


def _fits(shown: list[str], printed: list[str]) -> bool:
    if not shown:
        return not printed
    if shown[0] == "…":
        return any(_fits(shown[1:], printed[skip:]) for skip in range(len(printed) + 1))
    return bool(printed) and shown[0] == printed[0] and _fits(shown[1:], printed[1:])
