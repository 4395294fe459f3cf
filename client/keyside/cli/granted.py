"""Encryption calls of a person who has been given access: with the credential that fits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import click

from keyside.access_facts import AccessState
from keyside.address import choose_socket
from keyside.cli import exits
from keyside.cli.credential_files import StoredCredential, find_credentials, read_credential_file
from keyside.cli.exits import CommandError
from keyside.cli.text import escape
from keyside.errors import EnvelopeRejected, KeysideError, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyside.cli.connection import Connection
    from keyside.credential import Credential

_Answer = TypeVar("_Answer")

# The store's clock decides; this host's may be ahead of it.
_CLOCK_LEEWAY: Final = timedelta(minutes=1)
_OVER: Final = frozenset({AccessState.CLOSING, AccessState.ENDED})

credential_file_option = click.option(
    "--credential-file",
    metavar="FILE",
    help="Use the grant whose credential is in this file.  "
    "[default: yours for this key, in XDG_RUNTIME_DIR]",
)


def call_granted(
    connection: Connection,
    operation: str,
    find_key: Callable[[], str | None],
    call: Callable[[Credential | None], _Answer],
    *,
    credential_file: str | None,
) -> _Answer:
    """Make a call with the credential of a grant for its key, or without where there is none.

    What is over is removed. Where several grants fit, the next is tried if one does not cover what
    is asked.

    Args:
        connection: Where the sidecar is.
        operation: ``"decrypt"``, ``"rewrap"`` or ``"encrypt"``.
        find_key: The key's name; ``None`` where it can't be told. Called only if there are
            credentials.
        call: Makes the call.
        credential_file: A file that the user named.

    Raises:
        CommandError: The file can't be used, or is for something else.
        KeysideError: What ``call`` raised.
    """
    stored: Sequence[StoredCredential]
    if credential_file is not None:
        stored = [_choose_named(connection, credential_file, find_key)]
    else:
        stored = _choose_kept(connection, operation, find_key)
    refused: NotPermitted | None = None
    for one in stored:
        try:
            return call(one.credential)
        except NotPermitted as error:
            if error.reason not in {"GRANT_ENDED", "GRANT_SCOPE", "CREDENTIAL_REFUSED"}:
                raise
            if error.reason == "GRANT_ENDED" and _is_over(connection, one):
                one.remove()
            refused = error
    if refused is not None:
        raise refused
    return call(None)


def _is_over(connection: Connection, stored: StoredCredential) -> bool:
    """Ask once more before the only copy of a credential is removed."""
    try:
        with connection.open() as client:
            return client.get_access(stored.id).request.state in _OVER
    except KeysideError:
        return False


def key_of_envelope(envelope: bytes) -> str | None:
    """Return the name of the key that an envelope names; ``None`` where it is none."""
    from keyside.envelope import parse_wrapping_header

    try:
        return parse_wrapping_header(envelope).key_name
    except EnvelopeRejected:
        return None


def _choose_named(
    connection: Connection, path: str, find_key: Callable[[], str | None]
) -> StoredCredential:
    stored = read_credential_file(path)
    socket = choose_socket(connection.socket)
    if stored.socket != socket:
        raise CommandError(
            f"the credential in {path} is for the sidecar at {stored.socket}, not at {socket}",
            exits.USAGE,
            f"name that sidecar: --socket {stored.socket}",
        )
    key = find_key()
    if key is not None and key != stored.key:
        raise CommandError(
            f"the credential in {path} is for {stored.key}, and this is of {key}", exits.DATA
        )
    return stored


def _choose_kept(
    connection: Connection, operation: str, find_key: Callable[[], str | None]
) -> Sequence[StoredCredential]:
    """Return the credentials that may serve, the one that lasts longest first."""
    now = datetime.now(UTC)
    live: list[StoredCredential] = []
    for found in find_credentials():
        if isinstance(found, CommandError):
            click.echo(f"keyside: a credential is not used: {escape(str(found))}", err=True)
        elif found.expires_at + _CLOCK_LEEWAY < now:
            found.remove()
        else:
            live.append(found)
    if not live:
        return ()
    socket, key = choose_socket(connection.socket), find_key()
    fitting = [
        one
        for one in live
        if one.key == key and one.socket == socket and operation in one.operations
    ]
    return sorted(fitting, key=lambda one: one.expires_at, reverse=True)
