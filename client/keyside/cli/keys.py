"""``keyside keys``: which keys there are, their versions, and a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keyside.cli.connection import KEY_NAME, Connection, as_json, print_json
from keyside.cli.tables import format_time, print_table

if TYPE_CHECKING:
    from keyside.facts import Key, KeyVersion

_PAGE_SIZE = 1000


@click.group()
def keys() -> None:
    """List, show and rotate keys."""


@keys.command("list")
@as_json
@click.pass_obj
def list_command(connection: Connection, *, as_json: bool) -> None:
    """List the keys that you may see."""
    with connection.open() as client:
        found = client.list_keys()
    if as_json:
        print_json({"keys": [_key_facts(key) for key in found]})
        return
    print_table(
        ("KEY", "CURRENT", "VERSIONS", "SINCE", "SUITE"),
        [
            (
                key.name,
                str(key.current_version),
                str(key.version_count),
                format_time(key.rotated_at),
                key.suite,
            )
            for key in found
        ],
    )


@keys.command()
@click.argument("key", type=KEY_NAME)
@as_json
@click.pass_obj
def show(connection: Connection, key: str, *, as_json: bool) -> None:
    """Show KEY and its versions, newest first."""
    with connection.open() as client:
        found = client.get_key(key)
        versions = list(client.iter_versions(key, page_size=_PAGE_SIZE))
    if as_json:
        facts = [_version_facts(version) for version in versions]
        print_json({"key": _key_facts(found), "versions": facts})
        return
    print_table(
        ("KEY", "CURRENT", "VERSIONS", "CREATED", "SUITE"),
        [
            (
                found.name,
                str(found.current_version),
                str(found.version_count),
                format_time(found.created_at),
                found.suite,
            )
        ],
    )
    click.echo()
    print_table(
        ("VERSION", "STATE", "CREATED", "CURRENT FROM", "ARCHIVED", "ID"),
        [
            (
                str(version.number),
                version.state.value,
                format_time(version.created_at),
                format_time(version.activated_at),
                format_time(version.archived_at),
                version.id,
            )
            for version in versions
        ],
    )


@keys.command()
@click.argument("key", type=KEY_NAME)
@click.option(
    "--expected-current",
    metavar="NUMBER",
    type=click.IntRange(1, 2**32 - 1),
    help="Rotate only if this version is current.",
)
@as_json
@click.pass_obj
def rotate(
    connection: Connection, key: str, expected_current: int | None, *, as_json: bool
) -> None:
    """Make a new current version of KEY. For operators.

    The version before it is archived: it goes on decrypting. There is no way back, and no need
    for one, so this does not ask.
    """
    with connection.open() as client:
        done = client.rotate_key(key, expected_current)
    if as_json:
        print_json(
            {
                "key": _key_facts(done.key),
                "version": _version_facts(done.version),
                "previous": _version_facts(done.previous),
            }
        )
        return
    click.echo(
        f"{key}: version {done.version.number} is current; "
        f"version {done.previous.number} is archived and goes on decrypting"
    )


def _key_facts(key: Key) -> dict[str, object]:
    return {
        "name": key.name,
        "current_version": key.current_version,
        "version_count": key.version_count,
        "created_at": format_time(key.created_at) or None,
        "rotated_at": format_time(key.rotated_at) or None,
        "suite": key.suite,
    }


def _version_facts(version: KeyVersion) -> dict[str, object]:
    return {
        "number": version.number,
        "id": version.id,
        "state": version.state.value,
        "created_at": format_time(version.created_at) or None,
        "activated_at": format_time(version.activated_at) or None,
        "archived_at": format_time(version.archived_at) or None,
    }
