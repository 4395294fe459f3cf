"""``keyside encrypt`` and ``decrypt``: bytes in, bytes out."""

from __future__ import annotations

import sys

import click

from keyside.cli.connection import KEY_NAME, Connection
from keyside.cli.files import Output, read_input
from keyside.cli.granted import call_granted, credential_file_option, key_of_envelope
from keyside.cli.streams import context_option, refuse_terminal, stream_options


@click.command()
@click.argument("key", type=KEY_NAME)
@context_option(help="Bind this pair to the envelope; decrypt needs the same.  Repeatable.")
@credential_file_option
@stream_options
@click.pass_obj
def encrypt(
    connection: Connection,
    key: str,
    context: dict[str, str],
    source: str | None,
    output: str | None,
    *,
    credential_file: str | None,
) -> None:
    """Seal the input under KEY's current version; the output is an envelope."""
    with Output(output, secret=False) as target, connection.open() as client:
        refuse_terminal(target)
        plaintext = read_input(source)
        envelope = call_granted(
            connection,
            "encrypt",
            lambda: key,
            lambda credential: client.encrypt(key, plaintext, context, credential=credential),
            credential_file=credential_file,
        )
        target.write(envelope)


@click.command()
@context_option(help="A pair that was given to encrypt.  Repeatable.")
@credential_file_option
@stream_options
@click.pass_obj
def decrypt(
    connection: Connection,
    context: dict[str, str],
    source: str | None,
    output: str | None,
    *,
    credential_file: str | None,
) -> None:
    """Open the envelope in the input; the output is what was sealed.

    An output file gets mode 0600. A person who was given access to the key uses it without
    further ado; see keyside access.
    """
    with Output(output, secret=True) as target, connection.open() as client:
        envelope = read_input(source)
        plaintext = call_granted(
            connection,
            "decrypt",
            lambda: key_of_envelope(envelope),
            lambda credential: client.decrypt(envelope, context, credential=credential),
            credential_file=credential_file,
        )
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
