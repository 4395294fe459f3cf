"""``keyside encrypt``, ``decrypt`` and ``rewrap``: bytes in, bytes out."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from keyside.cli.connection import KEY_NAME, Connection
from keyside.cli.files import Output, read_input

if TYPE_CHECKING:
    from collections.abc import Callable

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def _parse_context(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    context: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter("write NAME=VALUE; the value may be empty, the name not")
        if name in context:
            raise click.BadParameter(f"the name {name!r} is given twice")
        try:
            pair.encode()
        except UnicodeEncodeError:
            raise click.BadParameter("it is not valid UTF-8") from None
        context[name] = value
    return context


def _streams(function: _Function) -> _Function:
    """Add -i and -o."""
    for option in (
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write here, whole or not at all; - is standard output, even a terminal.  "
            "[default: standard output]",
        ),
        click.option(
            "-i", "--input", "source", metavar="FILE", help="Read this.  [default: standard input]"
        ),
    ):
        function = option(function)
    return function


_context = functools.partial(
    click.option,
    "-c",
    "--context",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parse_context,
)


@click.command()
@click.argument("key", type=KEY_NAME)
@_context(help="Bind this pair to the envelope; decrypt needs the same.  Repeatable.")
@_streams
@click.pass_obj
def encrypt(
    connection: Connection,
    key: str,
    context: dict[str, str],
    source: str | None,
    output: str | None,
) -> None:
    """Seal the input under KEY's current version; the output is an envelope."""
    with Output(output, secret=False) as target, connection.open() as client:
        _refuse_terminal(target)
        target.write(client.encrypt(key, read_input(source), context))


@click.command()
@_context(help="A pair that was given to encrypt.  Repeatable.")
@_streams
@click.pass_obj
def decrypt(
    connection: Connection, context: dict[str, str], source: str | None, output: str | None
) -> None:
    """Open the envelope in the input; the output is what was sealed.

    An output file gets mode 0600.
    """
    with Output(output, secret=True) as target, connection.open() as client:
        plaintext = client.decrypt(read_input(source), context)
        if not _is_plain_text(plaintext):
            _refuse_terminal(target)
        target.write(plaintext)


@click.command()
@_streams
@click.pass_obj
def rewrap(connection: Connection, source: str | None, output: str | None) -> None:
    """Move the envelope in the input under its key's current version.

    The payload is not opened and needs no context. With -i and -o naming one file, that file is
    replaced.
    """
    with Output(output, secret=False) as target, connection.open() as client:
        _refuse_terminal(target)
        target.write(client.rewrap(read_input(source)))


def _refuse_terminal(target: Output) -> None:
    if target.is_guarded_terminal:
        raise click.UsageError(
            "the output is binary and would go to the terminal; use -o FILE, or -o - to insist"
        )


def _is_plain_text(data: bytes) -> bool:
    """Whether a terminal shows these bytes as they are and does nothing else with them."""
    if not sys.stdout.isatty():
        return False
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(line.isprintable() for line in text.replace("\t", " ").split("\n"))
