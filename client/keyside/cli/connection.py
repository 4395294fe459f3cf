"""The client that a command uses, made from the global options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from keyside._standard_streams import tell_done
from keyside.address import choose_socket
from keyside.cli import exits
from keyside.cli.exits import CommandError
from keyside.cli.text import escape
from keyside.errors import InvalidArgument, KeysideError
from keyside.names import parse_access_id, parse_key_name

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
    timeout_given: bool = False

    @property
    def given_timeout_s(self) -> float | None:
        """What a call may take whose default differs from others'; ``None``: that default."""
        return self.timeout_s if self.timeout_given else None

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
        return Client(
            path,
            timeout_s=self.timeout_s,
            expected_owner=self.expected_owner,
            retry=retry,
        )


def _complete_from(context: click.Context) -> Connection:
    options = context.find_root().params
    return Connection(options.get("socket"), _COMPLETION_TIMEOUT_S, options.get("expected_owner"))


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
        try:
            with _complete_from(ctx).open(retry=False) as client:
                names = [key.name for key in client.list_keys()]
        except (KeysideError, CommandError, click.UsageError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class AccessIdType(click.ParamType[str]):
    """The id of an access request; the shell completes it with those that are open."""

    name = "id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id, or fail with what an id looks like."""
        try:
            return parse_access_id(value)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the ids that begin so; none where the sidecar does not answer at once."""
        from click.shell_completion import CompletionItem

        del param
        try:
            with _complete_from(ctx).open(retry=False) as client:
                found = [
                    CompletionItem(one.id, help=escape(f"{one.key}, {one.requester.account}"))
                    for one in client.list_access()
                ]
        except (KeysideError, CommandError, click.UsageError):
            return []
        return [item for item in found if item.value.startswith(incomplete)]


KEY_NAME = KeyNameType()
ACCESS_ID = AccessIdType()

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON (keysided files show docs/cli.md)."
)


def print_json(value: Mapping[str, object]) -> None:
    """Print ``value`` as one JSON document, in ASCII, so that no character in it can act."""
    click.echo(json.dumps(value, indent=2))


def print_done(done: str, facts: Mapping[str, object], *, as_json: bool) -> None:
    """Print what was done, in words or as JSON; where that can't be, it is said in the end."""
    tell_done(json.dumps(facts, indent=2) if as_json else done, done)


def print_json_line(value: Mapping[str, object]) -> None:
    """Print ``value`` as one line of JSON, in ASCII, at once: for what comes bit by bit."""
    click.echo(json.dumps(value))
