"""``keyside access watch``: what becomes of requests and grants, as it happens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from keyside._standard_streams import require_output, wait_while_read
from keyside.access_facts import AccessState
from keyside.cli.access_facts import request_facts
from keyside.cli.access_text import (
    describe_asked,
    describe_end,
    describe_person,
    describe_state,
    describe_used,
)
from keyside.cli.connection import Connection, as_json, print_json_line
from keyside.cli.tables import format_time
from keyside.cli.text import escape
from keyside.errors import DeadlineExceeded, NoSuchRequest, NotPermitted, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside.access_facts import AccessApproval, AccessRequest
    from keyside.client import Client

_INTERVAL_S: Final = 1.0


@click.command()
@as_json
@click.pass_obj
def watch(connection: Connection, *, as_json: bool) -> None:
    """Print what becomes of requests and grants, as it happens; end it with Ctrl-C.

    Begins with those that are open. For approvers, who see everybody's; others see their own.
    """
    require_output()
    known: dict[str, AccessRequest] = {}
    away = False
    first = True
    with connection.open() as client:
        while True:
            try:
                now = {one.id: one for one in client.list_access()}
                gone = _look_for(client, known.keys() - now.keys())
            except (Unavailable, DeadlineExceeded) as error:
                if first:
                    raise
                if not away:
                    click.echo(f"keyside: {escape(str(error))}; goes on asking", err=True)
                away = True
            else:
                if away:
                    click.echo("keyside: the sidecar answers again", err=True)
                for change, text, request in _changes(known, {**now, **gone}, first=first):
                    _tell(change, text, request, as_json=as_json)
                known, away, first = now, False, False
            wait_while_read(_INTERVAL_S)


def _look_for(client: Client, ids: set[str]) -> dict[str, AccessRequest]:
    """Return the requests that are listed no longer, as they ended."""
    found: dict[str, AccessRequest] = {}
    for one in ids:
        try:
            found[one] = client.get_access(one).request
        except (NoSuchRequest, NotPermitted):  # its reader may see it no longer
            continue
    return found


def _changes(
    before: dict[str, AccessRequest], now: dict[str, AccessRequest], *, first: bool
) -> Iterator[tuple[str, str, AccessRequest]]:
    """Yield what has changed: a constant, a sentence's end, and the request."""
    for request in sorted(now.values(), key=lambda one: (format_time(one.created_at), one.id)):
        old = before.get(request.id)
        if old is None:
            yield "OPEN" if first else "REQUESTED", _present(request), request
        else:
            yield from ((change, text, request) for change, text in _compare(old, request))


def _compare(old: AccessRequest, new: AccessRequest) -> Iterator[tuple[str, str]]:
    for approval in _fresh_approvals(old, new):
        said = f": {escape(approval.comment)}" if approval.comment else ""
        yield "APPROVAL", f"approved by {describe_person(approval.person)}{said}"
    for approval in _struck_since(old, new):
        who = describe_person(approval.person)
        yield "STRUCK", f"the approval by {who} counts no longer: {escape(approval.struck)}"
    if new.used > old.used:
        yield "USED", f"used; {describe_used(new)}"
    if new.state is old.state:
        return
    if new.is_over:
        if not old.is_over:
            yield "ENDED", f"ended {describe_end(new)}"
    elif new.state is AccessState.ACTIVE:
        yield "ACTIVATED", describe_state(new)
    else:
        yield new.state.value, describe_state(new)


def _fresh_approvals(old: AccessRequest, new: AccessRequest) -> Iterator[AccessApproval]:
    for level, before in zip(new.levels, old.levels, strict=False):
        yield from level.approvals[len(before.approvals) :]


def _struck_since(old: AccessRequest, new: AccessRequest) -> Iterator[AccessApproval]:
    for level, before in zip(new.levels, old.levels, strict=False):
        for approval, earlier in zip(level.approvals, before.approvals, strict=False):
            if approval.struck and not earlier.struck:
                yield approval


def _present(request: AccessRequest) -> str:
    who = describe_person(request.requester)
    asked = "; ".join(line.partition(":")[2].strip() for line in describe_asked(request)[1:])
    return f"{who} asks: {asked}; {describe_state(request)}"


def _tell(change: str, text: str, request: AccessRequest, *, as_json: bool) -> None:
    if as_json:
        seen = format_time(datetime.now(UTC))
        print_json_line({"change": change, "seen_at": seen, "request": request_facts(request)})
    else:
        click.echo(f"{format_time(datetime.now(UTC))}  {escape(request.id)}  {text}")
