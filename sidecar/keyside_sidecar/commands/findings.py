"""What ``keysided check`` finds, and how it is printed."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import click

from keyside_sidecar.log import escape
from keyside_sidecar.severity import Severity, severity_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyside_sidecar.weaknesses import Weakness


class Grade(enum.Enum):
    """How good a finding is."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILED = "failed"


_GRADES: Final = {
    Severity.NOTE: Grade.NOTE,
    Severity.WARNING: Grade.WARNING,
    Severity.ERROR: Grade.FAILED,
}
_COLOURS: Final = {Grade.OK: "green", Grade.WARNING: "yellow", Grade.FAILED: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        subject: What it was.
        grade: How good it is. Only FAILED makes the command fail.
        text: One sentence.
        remedy: What to do about it, or ``""``.
        exit_code: What the command ends with where this failed.
        reason: The constant by which ``keyside status`` tells the same; None where it does not.
    """

    subject: str
    grade: Grade
    text: str
    remedy: str = ""
    exit_code: int = 78
    reason: str | None = None

    @classmethod
    def of_weakness(cls, subject: str, weakness: Weakness) -> Self:
        """Return the finding of something that status tells too, as grave as there."""
        grade = _GRADES[severity_of(weakness.reason)]
        return cls(subject, grade, weakness.summary, weakness.remedy, reason=weakness.reason)


def print_findings(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings on standard output; return the exit code."""
    if as_json:
        rows = [
            {
                "subject": finding.subject,
                "grade": finding.grade.value,
                "text": finding.text,
                "remedy": finding.remedy or None,
                "reason": finding.reason,
            }
            for finding in findings
        ]
        click.echo(json.dumps({"findings": rows}, indent=2))
    else:
        for finding in findings:
            grade = click.style(
                f"{finding.grade.value:8}", fg=_COLOURS.get(finding.grade), bold=True
            )
            click.echo(f"{grade} {finding.subject}: {escape(finding.text)}")
            if finding.remedy:
                click.echo(f"         what to do: {escape(finding.remedy)}")
    failed = [finding for finding in findings if finding.grade is Grade.FAILED]
    return failed[0].exit_code if failed else 0
