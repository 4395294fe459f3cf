"""``keyside access approve``, ``deny``, ``cancel`` and ``revoke``."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import click

from keyside.access_facts import AccessAction
from keyside.cli.access_facts import request_facts
from keyside.cli.access_text import describe_asked, describe_end, describe_levels, describe_state
from keyside.cli.asking import require_consent
from keyside.cli.connection import ACCESS_ID, Connection, as_json, print_done
from keyside.cli.credential_files import remove_credential
from keyside.cli.foreseeing import require_possible
from keyside.cli.passwords import password_option, read_password, require_password_source
from keyside.errors import AccessRefused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside.access_facts import AccessRequest

_access_id = click.argument("access_id", metavar="ID", type=ACCESS_ID)


@contextlib.contextmanager
def tell_what_is_unknown(look: str) -> Iterator[None]:
    """Say how to find out whether an action was carried out, where its answer did not come.

    Args:
        look: What to do first.
    """
    try:
        yield
    except Unavailable as error:
        error.remedy = f"{error.remedy}; then {look}" if error.remedy else look
        raise
    except (KeyboardInterrupt, SystemExit):
        click.echo(f"\nkeyside: interrupted\n  what to do: {look}", err=True)
        raise


@click.command()
@_access_id
@click.option("--comment", metavar="TEXT", default="", help="For the record.")
@password_option
@click.option("--yes", is_flag=True, help="Don't ask before asking for the password.")
@as_json
@click.pass_obj
def approve(
    connection: Connection,
    access_id: str,
    comment: str,
    *,
    password_stdin: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Approve a request, at the level that is next.

    Shows exactly what is asked, by whom and why, and who has approved it already; then asks. With
    --password-stdin, giving the password is the consent.
    """
    require_password_source(from_stdin=password_stdin)
    with connection.open() as client:
        found = client.get_access(access_id).request
        require_possible(found, AccessAction.APPROVE)
        require_consent(
            "\n".join(_present(found)), f"Approve {access_id}?", yes=yes or password_stdin
        )
        password = read_password("Your password:", from_stdin=password_stdin)
        with tell_what_is_unknown(f"see whether it counts: keyside access show {access_id}"):
            done = client.approve_access(
                access_id,
                password=password,
                comment=comment,
                timeout_s=connection.given_timeout_s,
            )
    _tell(done, f"approved; it is {describe_state(done)}", as_json=as_json)


@click.command()
@_access_id
@click.option("--reason", metavar="TEXT", required=True, help="Why; the requester reads it.")
@password_option
@as_json
@click.pass_obj
def deny(
    connection: Connection, access_id: str, reason: str, *, password_stdin: bool, as_json: bool
) -> None:
    """Deny a request, which ends it. A grant is ended with revoke."""
    require_password_source(from_stdin=password_stdin)
    with connection.open() as client:
        found = client.get_access(access_id).request
        require_possible(found, AccessAction.DENY)
        if sys.stdin.isatty():
            click.echo("\n".join(_present(found)), err=True)
        password = read_password("Your password:", from_stdin=password_stdin)
        with tell_what_is_unknown(f"see whether it ended: keyside access show {access_id}"):
            done = client.deny_access(
                access_id,
                password=password,
                reason=reason,
                timeout_s=connection.given_timeout_s,
            )
    _tell(done, f"ended {describe_end(done)}", as_json=as_json)


@click.command()
@_access_id
@as_json
@click.pass_obj
def cancel(connection: Connection, access_id: str, *, as_json: bool) -> None:
    """Take your own request back. A grant is ended with revoke."""
    with connection.open() as client, _removing_what_ended(access_id):
        done = client.cancel_access(access_id)
    _tell(done, f"ended {describe_end(done)}", as_json=as_json)


@click.command()
@_access_id
@click.option("--reason", metavar="TEXT", default="", help="Why; for the record.")
@as_json
@click.pass_obj
def revoke(connection: Connection, access_id: str, reason: str, *, as_json: bool) -> None:
    """End a grant, or a request, at once. For its holder, approvers and operators.

    Asks for no password: ending access must be quick. When this answers, no sidecar serves the
    grant any more.
    """
    with connection.open() as client, _removing_what_ended(access_id):
        done = client.revoke_access(access_id, reason=reason)
    _tell(done, f"ended {describe_end(done)}", as_json=as_json)


@contextlib.contextmanager
def _removing_what_ended(access_id: str) -> Iterator[None]:
    """Remove the credential that is kept here, if its grant is over afterwards."""
    try:
        yield
    except AccessRefused as error:
        if error.reason == "ACCESS_ENDED":
            remove_credential(access_id)
        raise
    remove_credential(access_id)


def _present(found: AccessRequest) -> list[str]:
    return [
        f"{found.id}: {describe_state(found)}",
        *describe_asked(found),
        *describe_levels(found.levels),
    ]


def _tell(done: AccessRequest, what: str, *, as_json: bool) -> None:
    print_done(f"{done.id}: {what}", {"request": request_facts(done)}, as_json=as_json)
