"""The options by which audit records are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from keyside.cli.connection import ACCESS_ID, KEY_NAME
from keyside.cli.moments import MOMENT
from keyside.cli.numbers import WholeNumberType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyside.access_facts import AuditRecord
    from keyside.cli.connection import Connection
    from keyside.client import Client

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def filter_options(function: _Function) -> _Function:
    """Add the filters; they arrive by the names that ``Client.search_audit`` gives them."""
    for option in (
        click.option("--until", "before", metavar="TIME", type=MOMENT, help="Before this time."),
        click.option(
            "--since",
            "after",
            metavar="TIME",
            type=MOMENT,
            help="From this time on: 2026-11-25T22:45, or 2h ago.",
        ),
        click.option(
            "--outcome",
            type=click.Choice(("ok", "partial", "refused", "failed")),
            help="What came of it.",
        ),
        click.option(
            "--event", metavar="EVENT", help="access.approve; or access, for all that begin so."
        ),
        click.option(
            "--access", "access_id", metavar="ID", type=ACCESS_ID, help="About this grant."
        ),
        click.option(
            "--uid", metavar="UID", type=WholeNumberType(0, 2**32 - 2), help="Done by this uid."
        ),
        click.option("--account", metavar="NAME", help="Done by this account."),
        click.option("--key", metavar="KEY", type=KEY_NAME, help="About this key."),
    ):
        function = option(function)
    return function


def search(
    client: Client, connection: Connection, filters: dict[str, Any], **more: Any
) -> Iterator[AuditRecord]:
    """Return what the filters find, and whatever else ``Client.search_audit`` takes."""
    return client.search_audit(**filters, **more, timeout_s=connection.given_timeout_s)
