"""``keyside status``: how the sidecar is, for people, programs and container health checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from keyside.cli import exits
from keyside.cli.connection import Connection, as_json, print_json
from keyside.cli.tables import format_time
from keyside.cli.text import escape
from keyside.facts import Serving, Severity

if TYPE_CHECKING:
    from keyside.facts import Caller, Problem, Status

_LABELS: Final = {Severity.NOTE: "note", Severity.WARNING: "warning"}


@click.command()
@as_json
@click.pass_obj
def status(connection: Connection, *, as_json: bool) -> int:
    """Show what is wrong and since when, and who the sidecar thinks you are.

    Exits 0 only when the sidecar serves, and asks once, so that it can be a health check.
    """
    with connection.open(retry=False) as client:
        found = client.status()
    if as_json:
        print_json(_facts(found))
    else:
        _print(found)
    return exits.OK if found.is_serving else exits.UNAVAILABLE


def _print(found: Status) -> None:
    click.echo(f"serving: {found.serving.value.lower()}")
    since = f"since {format_time(found.started_at)}" if found.started_at else ""
    about = ", ".join(part for part in (escape(found.version), since) if part)
    if about:
        click.echo(f"sidecar: {about}")
    if found.you:
        _print_caller(found.you)
    for key in found.keys:
        ready = "ready" if key.ready else "not in memory"
        click.echo(f"key:     {escape(key.name)}, version {key.current_version}, {ready}")
    for problem in found.problems:
        _print_problem(problem, found.serving)


def _print_caller(you: Caller) -> None:
    account = f" ({escape(you.account)})" if you.account else ""
    login = "no login" if you.login_uid is None else f"login uid {you.login_uid}"
    click.echo(f"you:     uid {you.uid}{account}, gid {you.gid}, pid {you.pid}, {login}")
    if you.refused:
        click.echo(f"         refused encryption: {escape(you.refused)}")
        if you.remedy:
            click.echo(f"         what to do: {escape(you.remedy)}")


def _print_problem(problem: Problem, serving: Serving) -> None:
    since = f" since {format_time(problem.since)}" if problem.since else ""
    blocking = ""
    if problem.blocking:
        # Degraded is served: what is blocked then is what changes something.
        blocking = (
            "; keeps calls from being served"
            if serving is Serving.NO
            else "; keeps keys and access from being changed, and encryption goes on"
        )
    label = _LABELS.get(problem.severity, "problem")
    click.echo(f"{f'{label}:':8} {escape(problem.reason)}{since}{blocking}")
    if problem.summary:
        click.echo(f"         {escape(problem.summary)}")
    if problem.remedy:
        click.echo(f"         what to do: {escape(problem.remedy)}")


def _facts(found: Status) -> dict[str, object]:
    you = found.you
    return {
        "serving": found.serving.value,
        "version": found.version or None,
        "started_at": format_time(found.started_at) or None,
        "problems": [
            {
                "reason": problem.reason,
                "severity": problem.severity.value,
                "summary": problem.summary or None,
                "remedy": problem.remedy or None,
                "since": format_time(problem.since) or None,
                "blocking": problem.blocking,
            }
            for problem in found.problems
        ],
        "you": you
        and {
            "pid": you.pid,
            "uid": you.uid,
            "gid": you.gid,
            "account": you.account or None,
            "login_uid": you.login_uid,
            "refused": you.refused or None,
            "remedy": you.remedy or None,
        },
        "keys": [
            {"name": key.name, "current_version": key.current_version, "ready": key.ready}
            for key in found.keys
        ],
    }
