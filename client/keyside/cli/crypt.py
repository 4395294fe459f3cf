"""``keyside encrypt`` and ``decrypt``: bytes in, bytes out."""

from __future__ import annotations

import sys

import click

from keyside.cli.connection import KEY_NAME, Connection
from keyside.cli.files import Output, read_input
from keyside.cli.streams import context_option, refuse_terminal, stream_options


@click.command()
@click.argument("key", type=KEY_NAME)
@context_option(help="Bind this pair to the envelope; decrypt needs the same.  Repeatable.")
@stream_options
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
        refuse_terminal(target)
        target.write(client.encrypt(key, read_input(source), context))


@click.command()
@context_option(help="A pair that was given to encrypt.  Repeatable.")
@stream_options
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
            refuse_terminal(target)
        target.write(plaintext)


def _is_plain_text(data: bytes) -> bool:
    """Whether a terminal shows these bytes as they are and does nothing else with them."""
    if not sys.stdout.isatty():
        return False
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(line.isprintable() for line in text.replace("\t", " ").split("\n"))
