"""``keyside access activate``: an approved request becomes a grant, and its credential is kept."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from keyside.access_facts import AccessAction
from keyside.address import choose_socket
from keyside.cli import exits
from keyside.cli.access_facts import request_facts
from keyside.cli.access_text import describe_asked, describe_state
from keyside.cli.connection import ACCESS_ID, Connection, as_json, print_done
from keyside.cli.credential_files import (
    CREDENTIAL_VARIABLE,
    CredentialDestination,
    describe_credential,
)
from keyside.cli.deciding import tell_what_is_unknown
from keyside.cli.exits import CommandError
from keyside.cli.foreseeing import require_possible
from keyside.cli.passwords import password_option, read_password, require_password_source
from keyside.cli.tables import format_time
from keyside.cli.text import escape
from keyside.errors import KeysideError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside.client import Client


@click.command()
@click.argument("access_id", metavar="ID", type=ACCESS_ID)
@password_option
@click.option(
    "--credential-file",
    metavar="FILE",
    envvar=CREDENTIAL_VARIABLE,
    help="Keep the credential in this new file.  [default: KEYSIDE_CREDENTIAL_FILE, or in "
    "XDG_RUNTIME_DIR]",
)
@as_json
@click.pass_obj
def activate(
    connection: Connection,
    access_id: str,
    credential_file: str | None,
    *,
    password_stdin: bool,
    as_json: bool,
) -> None:
    """Make the grant of your approved request; its time begins now.

    The credential is kept in a file that only you can read, where keyside decrypt finds it. It is
    handed out once: where it can't be kept, nothing is activated.
    """
    require_password_source(from_stdin=password_stdin)
    with (
        CredentialDestination(access_id, credential_file) as destination,
        connection.open() as client,
    ):
        found = client.get_access(access_id).request
        require_possible(found, AccessAction.ACTIVATE)
        click.echo(f"{access_id}: {describe_state(found)}", err=True)
        click.echo("\n".join(describe_asked(found)), err=True)
        password = read_password("Your password:", from_stdin=password_stdin)
        look = (
            f"see whether it is active: keyside access show {access_id}; if it is, its credential "
            f"is lost: keyside access revoke {access_id}, and ask again"
        )
        with tell_what_is_unknown(look):
            activated = client.activate_access(
                access_id, password=password, timeout_s=connection.given_timeout_s
            )
        with _revoking_what_is_lost(client, access_id):
            destination.save(describe_credential(activated, choose_socket(connection.socket)))
    use = "keyside decrypt uses it"
    if credential_file is not None:
        use = f"keyside decrypt --credential-file FILE uses it, or {CREDENTIAL_VARIABLE}=FILE"
    print_done(
        f"{access_id}: active until {format_time(activated.request.expires_at)} at the latest\n"
        f"the credential is in {escape(destination.path)}; {use}\n"
        f"end it as soon as you are done: keyside access revoke {access_id}",
        {"request": request_facts(activated.request), "credential_file": destination.path},
        as_json=as_json,
    )


@contextlib.contextmanager
def _revoking_what_is_lost(client: Client, access_id: str) -> Iterator[None]:
    """End the grant whose credential could not be kept, and say so.

    Raises:
        CommandError: That is what happened.
    """
    try:
        yield
    except OSError as error:
        told = _revoke(client, access_id)
        raise CommandError(
            f"the credential could not be kept ({error.strerror}); {told}",
            exits.IO_ERROR,
            "make room, or choose another file with --credential-file; then ask for access again",
        ) from None
    except BaseException:
        click.echo(f"keyside: the credential was not kept; {_revoke(client, access_id)}", err=True)
        raise


def _revoke(client: Client, access_id: str) -> str:
    try:
        client.revoke_access(access_id, reason="the credential could not be kept")
    except KeysideError as error:
        return f"the grant could not be revoked ({error}): keyside access revoke {access_id}"
    return "the grant was revoked"
