"""``keyside access``: a person's way to a key, for a while, on the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from keyside._standard_streams import tell_done
from keyside.access_facts import AccessOperation, VersionRange
from keyside.cli.access_facts import request_facts, use_facts
from keyside.cli.access_text import describe_story, describe_turn
from keyside.cli.activating import activate
from keyside.cli.amounts import format_duration
from keyside.cli.connection import ACCESS_ID, KEY_NAME, Connection, as_json, print_done, print_json
from keyside.cli.deciding import approve, cancel, deny, revoke, tell_what_is_unknown
from keyside.cli.foreseeing import is_unknown_call
from keyside.cli.helping import Group
from keyside.cli.moments import DURATION
from keyside.cli.numbers import WholeNumberType
from keyside.cli.passwords import password_option, read_password, require_password_source
from keyside.cli.streams import context_option
from keyside.cli.tables import Column, format_time, print_table
from keyside.cli.text import escape
from keyside.cli.watching import watch
from keyside.errors import KeysideError

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from keyside.access_facts import AccessRequest

_MAX_VERSION = 2**32 - 1


@click.group(cls=Group)
def access() -> None:
    """Ask for access to a key, decide about it, use it, and see who has it.

    Somebody asks (request); others approve, level by level (approve, deny); whoever asked makes it
    a grant (activate), and then decrypts until it ends.
    """


def _parse_operations(
    _: click.Context, __: click.Parameter, text: str
) -> tuple[AccessOperation, ...]:
    found: list[AccessOperation] = []
    for name in text.split(","):
        try:
            operation = AccessOperation[name.strip().upper()]
        except KeyError:
            operation = AccessOperation.UNKNOWN
        if operation is AccessOperation.UNKNOWN:
            raise click.BadParameter("write decrypt, rewrap or encrypt, with commas between them")
        if operation not in found:
            found.append(operation)
    return tuple(found)


def _parse_versions(
    _: click.Context, __: click.Parameter, text: str | None
) -> tuple[VersionRange, ...]:
    if text is None:
        return ()
    found: list[VersionRange] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = (first, last if dash else first)
        if not all(one.isascii() and one.isdecimal() and len(one) <= 10 for one in numbers):  # noqa: PLR2004
            raise click.BadParameter("write numbers and ranges with commas between them: 3-5,7")
        low, high = map(int, numbers)
        if not 1 <= low <= high <= _MAX_VERSION:
            raise click.BadParameter(f"{low}-{high} is no range of versions")
        found.append(VersionRange(low, high))
    return tuple(found)


@access.command()
@click.argument("key", type=KEY_NAME)
@click.option("--reason", metavar="TEXT", required=True, help="Why; the approvers read it.")
@click.option(
    "--duration",
    metavar="TIME",
    type=DURATION,
    required=True,
    help="How long, once it is activated: 30m, 1h30m.",
)
@click.option("--ticket", metavar="TEXT", default="", help="Where this is asked for elsewhere.")
@click.option(
    "--operations",
    metavar="LIST",
    default="decrypt",
    show_default=True,
    callback=_parse_operations,
    help="What for: decrypt, rewrap, encrypt, with commas between them.",
)
@click.option(
    "--versions",
    metavar="LIST",
    callback=_parse_versions,
    help="Only these versions: 3-5,7.  [default: any]",
)
@context_option(help="Only envelopes whose context holds this pair.  Repeatable.")
@click.option(
    "--max-uses",
    metavar="N",
    type=WholeNumberType(1, 2**31 - 1),
    help="How many envelopes.  [default: any number]",
)
@password_option
@as_json
@click.pass_obj
def request(
    connection: Connection,
    key: str,
    *,
    reason: str,
    duration: timedelta,
    ticket: str,
    operations: tuple[AccessOperation, ...],
    versions: tuple[VersionRange, ...],
    context: dict[str, str],
    max_uses: int | None,
    password_stdin: bool,
    as_json: bool,
) -> None:
    """Ask for access to KEY.

    Prints the request's id. Nothing can be opened before others have approved it at every level
    and it was activated. Ask for as little as will do: it is easier to approve.
    """
    require_password_source(from_stdin=password_stdin)
    wish: dict[str, Any] = {
        "reason": reason,
        "duration": duration,
        "ticket": ticket,
        "operations": operations,
        "versions": versions,
        "context": context,
        "max_uses": max_uses,
        "timeout_s": connection.given_timeout_s,
    }
    with connection.open() as client:
        try:
            client.check_access_request(key, **wish)
        except KeysideError as error:
            if not is_unknown_call(error):
                raise
        password = read_password("Your password:", from_stdin=password_stdin)
        with tell_what_is_unknown("see whether it was made: keyside access list"):
            made = client.request_access(key, password=password, **wish)
    asked = f"{made.id}: access to {key} was requested"
    if as_json:
        print_done(asked, {"request": request_facts(made)}, as_json=True)
        return
    tell_done(made.id, asked)
    groups = ", then ".join(f"{one.approvals_needed} of {escape(one.group)}" for one in made.levels)
    by = f" until {format_time(made.decide_by)}" if made.decide_by else ""
    click.echo(
        f"to be approved by {groups}{by}: keyside access approve {made.id}\n"
        f"afterwards:  keyside access activate {made.id}",
        err=True,
    )


@access.command("list")
@click.option("--all", "everything", is_flag=True, help="Those too that are over.")
@as_json
@click.pass_obj
def list_command(connection: Connection, *, everything: bool, as_json: bool) -> None:
    """List requests and grants: yours, or everybody's where you may see them.

    WAITS FOR names the group whose approval is next, or whoever has to activate it; "you" says that
    it is your turn.
    """
    with connection.open() as client:
        found = list(client.list_access(include_ended=everything))
    if as_json:
        print_json({"requests": [request_facts(one) for one in found]})
        return
    print_table(
        (
            Column("ID", 0),
            Column("STATE", 1, least=8),
            Column("KEY", 3, least=8),
            Column("WHO", 4, least=6),
            Column("OPERATIONS", 7, least=10),
            Column("FOR", 8),
            Column("APPROVALS", 6),
            Column("USED", 9),
            Column("UNTIL", 5),
            Column("WAITS FOR", 2, least=9),
        ),
        [_row(one) for one in found],
    )


@access.command()
@click.argument("access_id", metavar="ID", type=ACCESS_ID)
@as_json
@click.pass_obj
def show(connection: Connection, access_id: str, *, as_json: bool) -> None:
    """Tell the whole story of a request: who, why, who approved it, what was opened, the end."""
    with connection.open() as client:
        story = client.get_access(access_id)
    if as_json:
        print_json(
            {
                "request": request_facts(story.request),
                "uses": [use_facts(use) for use in story.uses],
            }
        )
        return
    for line in describe_story(story):
        click.echo(line)


def _row(request: AccessRequest) -> tuple[str, ...]:
    needed = sum(level.approvals_needed for level in request.levels)
    given = sum(min(level.approvals_given, level.approvals_needed) for level in request.levels)
    state = f"{request.state.value} {request.end_reason}".rstrip()
    return (
        request.id,
        state,
        request.key,
        request.requester.account or str(request.requester.uid),
        ",".join(operation.value.lower() for operation in request.operations),
        format_duration(request.duration),
        f"{given}/{needed}",
        str(request.used) + (f"/{request.max_uses}" if request.max_uses else ""),
        format_time(_until(request)),
        describe_turn(request),
    )


def _until(request: AccessRequest) -> datetime | None:
    """Return when what the state says ends, or has ended."""
    if request.is_over:
        return request.ended_at
    return request.expires_at or request.activate_by or request.decide_by


for _command in (approve, deny, cancel, activate, revoke, watch):
    access.add_command(_command)
