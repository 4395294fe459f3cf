"""Encryption calls of a person who has been given access: with the credential that fits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import click
from click.core import ParameterSource

from keyside.access_facts import AccessState
from keyside.address import choose_socket
from keyside.cli import exits
from keyside.cli.credential_files import (
    CREDENTIAL_VARIABLE,
    StoredCredential,
    find_credentials,
    read_credential_file,
)
from keyside.cli.exits import CommandError
from keyside.cli.own_grants import describe_way
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
    envvar=CREDENTIAL_VARIABLE,
    help="Use the grant whose credential is in this file.  [default: KEYSIDE_CREDENTIAL_FILE, or "
    "yours for this key, in XDG_RUNTIME_DIR]",
)


@dataclass(frozen=True, slots=True)
class NamedCredential:
    """The credential that the user has named, read before anything else is.

    Args:
        stored: The credential.
        strict: It was named for this very command, which fails where it does not fit.
    """

    stored: StoredCredential
    strict: bool


def read_named_credential(
    connection: Connection, operation: str, path: str | None
) -> NamedCredential | None:
    """Return the credential that was named; ``None`` where none was.

    Args:
        connection: Where the sidecar is.
        operation: ``"decrypt"``, ``"rewrap"`` or ``"encrypt"``.
        path: From --credential-file, or from the environment.

    Raises:
        CommandError: The file can't be used, or --credential-file is for something else.
    """
    if path is None:
        return None
    source = click.get_current_context().get_parameter_source("credential_file")
    named = NamedCredential(read_credential_file(path), source is not ParameterSource.ENVIRONMENT)
    if named.strict:
        _require_fitting(connection, operation, path, named.stored)
    return named


def holds_credential(named: NamedCredential | None) -> bool:
    """Whether there is any credential that a call might be made with."""
    return named is not None or any(
        isinstance(found, StoredCredential) for found in find_credentials()
    )


def call_granted(
    connection: Connection,
    operation: str,
    find_key: Callable[[], str | None],
    call: Callable[[Credential | None], _Answer],
    *,
    named: NamedCredential | None,
) -> _Answer:
    """Make a call with the credential of a grant for its key, or without where there is none.

    What is over is removed. Where several grants fit, the next is tried if one does not cover what
    is asked.

    Args:
        connection: Where the sidecar is.
        operation: ``"decrypt"``, ``"rewrap"`` or ``"encrypt"``.
        find_key: The key's name; ``None`` where it can't be told. Called only if there are
            credentials, or the call is refused.
        call: Makes the call.
        named: The credential that the user has named.

    Raises:
        CommandError: The named credential is for another key.
        KeysideError: What ``call`` raised.
    """
    stored: Sequence[StoredCredential]
    if named is not None and named.strict:
        _require_key(named.stored, find_key())
        stored = [named.stored]
    else:
        kept = [] if named is None else [named.stored]
        stored = _choose_kept(connection, operation, find_key, kept)
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
    try:
        return call(None)
    except NotPermitted as error:
        error.remedy = describe_way(connection, operation, find_key()) or error.remedy
        raise


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


def _require_fitting(
    connection: Connection, operation: str, path: str, stored: StoredCredential
) -> None:
    socket = choose_socket(connection.socket)
    if stored.socket != socket:
        raise CommandError(
            f"the credential in {path} is for the sidecar at {stored.socket}, not at {socket}",
            exits.USAGE,
            f"name that sidecar: --socket {stored.socket}",
        )
    if operation not in stored.operations:
        raise CommandError(
            f"the credential in {path} is for {' and '.join(sorted(stored.operations))}, "
            f"not for {operation}",
            exits.NOT_PERMITTED,
            f"ask for access with --operations {operation}",
        )


def _require_key(stored: StoredCredential, key: str | None) -> None:
    if key is not None and key != stored.key:
        raise CommandError(
            f"the credential in {stored.path} is for {stored.key}, and this is of {key}",
            exits.DATA,
        )


def _choose_kept(
    connection: Connection,
    operation: str,
    find_key: Callable[[], str | None],
    named: Sequence[StoredCredential],
) -> Sequence[StoredCredential]:
    """Return the credentials that may serve, the one that lasts longest first."""
    now = datetime.now(UTC)
    live: list[StoredCredential] = []
    for found in (*named, *find_credentials()):
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
