"""``keyside audit``: reading this host's audit log, and proving that nobody changed it."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, Final

import click

from keyside._standard_streams import require_output, wait_while_read
from keyside.cli import exits
from keyside.cli.audit_filters import filter_options, search
from keyside.cli.audit_text import RecordTable, json_line, record_lines
from keyside.cli.audit_verify import verify
from keyside.cli.connection import Connection, as_json
from keyside.cli.exits import CommandError
from keyside.cli.explaining import explain
from keyside.cli.files import Output
from keyside.cli.helping import Group
from keyside.cli.numbers import WholeNumberType
from keyside.cli.text import escape
from keyside.errors import DeadlineExceeded, LimitExceeded, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside.access_facts import AuditRecord
    from keyside.client import Client

_INTERVAL_S: Final = 1.0
_SEQUENCE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_MAX_PAGE: Final = 1000


@click.group(cls=Group)
def audit() -> None:
    """Read this host's audit log, and prove that nobody changed it.

    Auditors read all of it, others the records of what they did themselves.
    """


@audit.command()
@click.option(
    "-n",
    "count",
    metavar="N",
    type=WholeNumberType(0, 100_000),
    default=20,
    show_default=True,
    help="Begin with the newest N.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is recorded from now on.")
@filter_options
@as_json
@click.pass_obj
def tail(
    connection: Connection, /, count: int, *, follow: bool, as_json: bool, **filters: Any
) -> None:
    """Print the newest records, oldest of them first. End --follow with Ctrl-C."""
    if follow:
        require_output()
    tell = _Teller(as_json=as_json)
    with connection.open() as client:
        newest = _take(client, connection, filters, count)
        tell.all(reversed(newest))
        if follow:
            last = newest[0].sequence if newest else _find_end(client, connection)
            _follow(client, connection, filters, last, tell)


@audit.command("search")
@click.option(
    "-n",
    "count",
    metavar="N",
    type=WholeNumberType(1, 2**31 - 1),
    help="The newest N at most.  [default: all]",
)
@filter_options
@as_json
@click.pass_obj
def search_command(
    connection: Connection, /, count: int | None, *, as_json: bool, **filters: Any
) -> None:
    """Find records, newest first."""
    with connection.open() as client:
        page_size = min(count or _MAX_PAGE, _MAX_PAGE)
        found = search(client, connection, filters, page_size=page_size)
        _Teller(as_json=as_json).all(itertools.islice(found, count))


@audit.command()
@click.argument("which", metavar="SEQUENCE|ID")
@as_json
@click.pass_obj
def show(connection: Connection, which: str, *, as_json: bool) -> None:
    """Show all that one record says: by its place in the log, or by its id."""
    wanted: dict[str, Any] = {"record_id": which}
    if _SEQUENCE.fullmatch(which):
        wanted = {"first_sequence": int(which), "last_sequence": int(which)}
    with connection.open() as client:
        found = next(search(client, connection, wanted, page_size=1), None)
    if found is None:
        raise CommandError(
            f"the audit log shows you no record {which}",
            exits.DATA,
            "keyside audit search lists what you may see",
        )
    for line in [json_line(found)] if as_json else record_lines(found):
        click.echo(line)


@audit.command()
@click.option("-o", "--output", metavar="FILE", help="Write here.  [default: standard output]")
@click.pass_obj
def checkpoint(connection: Connection, output: str | None) -> None:
    """Print the newest checkpoint, to be kept somewhere else.

    With it, keyside audit verify --checkpoint FILE notices that the log's end was cut off, or that
    the log was written anew.
    """
    with Output(output, secret=False) as target, connection.open() as client:
        newest = client.get_audit_checkpoint(timeout_s=connection.given_timeout_s)
        target.write(json_line(newest).encode() + b"\n")


def _take(
    client: Client, connection: Connection, filters: dict[str, Any], count: int
) -> list[AuditRecord]:
    if count == 0:
        return []
    page_size = min(count, _MAX_PAGE)
    found = search(client, connection, filters, page_size=page_size)
    return list(itertools.islice(found, count))


def _find_end(client: Client, connection: Connection) -> int:
    """Return the newest record's place, to go on from where nothing was found yet."""
    newest = next(search(client, connection, {}, page_size=1), None)
    return newest.sequence if newest else 0


def _follow(
    client: Client, connection: Connection, filters: dict[str, Any], last: int, tell: _Teller
) -> None:
    away = False
    while True:
        wait_while_read(_INTERVAL_S)
        wanted = {"first_sequence": last + 1, "oldest_first": True, "page_size": _MAX_PAGE}
        try:
            for record in search(client, connection, filters, **wanted):
                tell.one(record)
                last = record.sequence
        except (Unavailable, DeadlineExceeded, LimitExceeded) as error:
            if not away:
                click.echo(f"keyside: {escape(str(error))}; goes on asking", err=True)
            away = True
        else:
            if away:
                click.echo("keyside: the audit log can be read again", err=True)
            away = False


class _Teller:
    """Prints records as they come."""

    def __init__(self, *, as_json: bool) -> None:
        self._table = None if as_json else RecordTable()

    def all(self, records: Iterable[AuditRecord]) -> None:
        """Print the table's head and these."""
        if self._table is not None:
            click.echo(self._table.heads())
        for record in records:
            self.one(record)

    def one(self, record: AuditRecord) -> None:
        """Print one more."""
        click.echo(json_line(record) if self._table is None else self._table.line(record))


for _command in (explain, verify):
    audit.add_command(_command)
