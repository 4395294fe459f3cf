"""``keyside encrypt`` and ``decrypt``: bytes in, bytes out, of any size.

What one call takes is sealed and opened by the sidecar. What is longer is sealed and opened here,
in segments under a data key, where the key's policy allows that.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from keyside.cli.connection import KEY_NAME, Connection
from keyside.cli.files import Input, Output
from keyside.cli.foreseeing import require_before_typing
from keyside.cli.granted import (
    call_granted,
    credential_file_option,
    holds_credential,
    key_of_envelope,
    read_named_credential,
)
from keyside.cli.streaming import decrypt_stream, encrypt_stream
from keyside.cli.streams import context_option, refuse_terminal, stream_options
from keyside.errors import KeysideError

if TYPE_CHECKING:
    from keyside.client import Client
    from keyside.credential import Credential


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
    """Seal the input under KEY's current version; the output is an envelope.

    Input of any size: what is more than the sidecar takes in one call is sealed here under a data
    key, if KEY's policy allows data keys.
    """
    named = read_named_credential(connection, "encrypt", credential_file)
    with Output(output, secret=False) as target, connection.open() as client:
        refuse_terminal(target)
        reader = Input(source, target)
        require_before_typing(client, reader, key, with_credential=partial(holds_credential, named))
        with reader as opened, reader.reading():
            plaintext, envelope = opened.read_small(), None
            if plaintext is not None:
                data = plaintext
                envelope = call_granted(
                    connection,
                    "encrypt",
                    lambda: key,
                    lambda credential: _encrypt_short(client, key, data, context, credential),
                    named=named,
                )
            if envelope is not None:
                target.append(envelope)
            else:
                encrypt_stream(client, key, context, opened, target)
            target.finish()


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

    An output file gets mode 0600, and appears when all of it has opened. A pipe gets what has
    opened, piece by piece: heed the exit code before you rely on the end. A person who was given
    access to the key uses it without further ado; see keyside access.
    """
    named = read_named_credential(connection, "decrypt", credential_file)
    target = Output(output, secret=True)
    reader = Input(source, target)
    with target, connection.open() as client:
        require_before_typing(
            client, reader, None, with_credential=partial(holds_credential, named)
        )
        with reader as opened, reader.reading():
            envelope, plaintext = opened.read_small(), None
            if envelope is not None:
                data = envelope
                plaintext = call_granted(
                    connection,
                    "decrypt",
                    lambda: key_of_envelope(data),
                    lambda credential: _decrypt_short(client, data, context, credential),
                    named=named,
                )
            if plaintext is None:
                refuse_terminal(target)
                decrypt_stream(client, context, opened, target)
            else:
                if target.is_guarded_terminal and not _is_plain_text(plaintext):
                    refuse_terminal(target)
                target.append(plaintext)
            target.finish()


def _encrypt_short(
    client: Client,
    key: str,
    plaintext: bytes,
    context: dict[str, str],
    credential: Credential | None,
) -> bytes | None:
    """Return the envelope; ``None`` where the sidecar takes no plaintext of that size."""
    from keyside._sealed_input import is_too_large

    try:
        return client.encrypt(key, plaintext, context, credential=credential)
    except KeysideError as error:
        if credential is not None or not is_too_large(error):
            raise
    return None


def _decrypt_short(
    client: Client, envelope: bytes, context: dict[str, str], credential: Credential | None
) -> bytes | None:
    """Return the plaintext; ``None`` where the sidecar takes no envelope of that size."""
    from keyside._sealed_input import is_too_large

    try:
        return client.decrypt(envelope, context, credential=credential)
    except KeysideError as error:
        if credential is not None or not is_too_large(error):
            raise
    return None


def _is_plain_text(data: bytes) -> bool:
    """Whether a terminal shows these bytes as they are and does nothing else with them."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(line.isprintable() for line in text.replace("\t", " ").split("\n"))
