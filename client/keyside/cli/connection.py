"""The client that a command uses, made from the global options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from keyside.address import choose_socket
from keyside.cli import exits
from keyside.cli.exits import CommandError
from keyside.errors import InvalidArgument, KeysideError
from keyside.names import parse_key_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from click.shell_completion import CompletionItem

    from keyside.client import Client

_COMPLETION_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the sidecar is, as the global options say."""

    socket: str | None
    timeout_s: float
    expected_owner: str | None

    def open(self, *, retry: bool = True) -> Client:
        """Return a client; it connects at its first call.

        Raises:
            click.UsageError: ``--socket`` is not spelt right.
            CommandError: ``KEYSIDE_SOCKET`` is not spelt right.
        """
        from keyside.client import Client

        try:
            path = choose_socket(self.socket)
        except InvalidArgument as error:
            if self.socket is not None:
                raise click.UsageError(f"--socket: {error}; {error.remedy}") from None
            raise CommandError(f"KEYSIDE_SOCKET: {error}", exits.CONFIG, error.remedy) from None
        owner = self.expected_owner
        return Client(
            path,
            timeout_s=self.timeout_s,
            expected_owner=int(owner) if owner is not None and owner.isdecimal() else owner,
            retry=retry,
        )


class KeyNameType(click.ParamType[str]):
    """A key's name; the shell completes it with the keys that the sidecar lists."""

    name = "key"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or fail with what a name looks like."""
        try:
            return parse_key_name(value)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin so; none where the sidecar does not answer at once."""
        from click.shell_completion import CompletionItem

        del param
        options = ctx.find_root().params
        connection = Connection(
            options.get("socket"), _COMPLETION_TIMEOUT_S, options.get("expected_owner")
        )
        try:
            with connection.open(retry=False) as client:
                names = [key.name for key in client.list_keys()]
        except (KeysideError, CommandError, click.UsageError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


KEY_NAME = KeyNameType()

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/cli.md).")


def print_json(value: Mapping[str, object]) -> None:
    """Print ``value`` as one JSON document, in ASCII, so that no character in it can act."""
    click.echo(json.dumps(value, indent=2))
