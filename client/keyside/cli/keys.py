"""``keyside keys``: which keys there are, their versions, and a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keyside.cli.asking import require_consent, require_somebody_to_ask
from keyside.cli.connection import KEY_NAME, Connection, as_json, print_done, print_json
from keyside.cli.foreseeing import require_rotatable
from keyside.cli.helping import Group
from keyside.cli.key_facts import key_facts, process_facts, version_facts
from keyside.cli.numbers import WholeNumberType
from keyside.cli.show import show
from keyside.cli.tables import Column, format_time, print_table
from keyside.cli.versions import (
    assume_yes,
    cancel_destroy,
    destroy,
    disable,
    enable,
    tell_unacknowledged,
)

if TYPE_CHECKING:
    from keyside.facts import Key


@click.group(cls=Group)
def keys() -> None:
    """List, show and roll keys over; disable and destroy their versions."""


@keys.command("list")
@as_json
@click.pass_obj
def list_command(connection: Connection, *, as_json: bool) -> None:
    """List the keys that you may see."""
    with connection.open() as client:
        found = client.list_keys()
    if as_json:
        print_json({"keys": [key_facts(key) for key in found]})
        return
    print_table(
        (
            Column("KEY", 0),
            Column("CURRENT", 1),
            Column("VERSIONS", 3),
            Column("SINCE", 2),
            Column("SUITE", 4),
        ),
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
@click.option(
    "--expected-current",
    metavar="NUMBER",
    type=WholeNumberType(1, 2**32 - 1),
    help="Rotate only if this version is current.",
)
@click.option(
    "--compromised",
    is_flag=True,
    help="The current version may have leaked: disable it.",
)
@assume_yes
@as_json
@click.pass_obj
def rotate(
    connection: Connection,
    key: str,
    expected_current: int | None,
    *,
    compromised: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Make a new current version of KEY. For operators.

    The version before it is archived: it goes on decrypting. There is no way back, and no need
    for one, so this does not ask. With --compromised the version before it is disabled everywhere
    at once, and this does ask.
    """
    if compromised:
        require_somebody_to_ask(yes=yes)
    with connection.open() as client:
        if compromised:
            found = client.get_key(key)
            if not yes:
                require_rotatable(found, expected_current)
            expected_current = _confirm_compromised(found, expected_current, yes=yes)
        done = client.rotate_key(
            key,
            expected_current,
            compromised=compromised,
            timeout_s=connection.given_timeout_s,
        )
    facts = {
        "key": key_facts(done.key),
        "version": version_facts(done.version),
        "previous": version_facts(done.previous),
        "unacknowledged": process_facts(done.unacknowledged),
    }
    previous = "disabled" if compromised else "archived and goes on decrypting"
    print_done(
        f"{key}: version {done.version.number} is current; "
        f"version {done.previous.number} is {previous}",
        facts,
        as_json=as_json,
    )
    return tell_unacknowledged(done.unacknowledged)


def _confirm_compromised(found: Key, expected_current: int | None, *, yes: bool) -> int:
    """Say what it means and ask; return the version that this was said of."""
    number = found.current_version if expected_current is None else expected_current
    key = found.name
    lines = [
        f"Version {number} of {key} is disabled everywhere at once, and a new version is made:",
        f"  - what is sealed under version {number} does not open until an operator enables it",
        f"    again (keyside keys enable {key} {number});",
        "  - what leaked with it is cured by a new data key alone: enable it if needed, and run",
        "    keyside reencrypt on all that was sealed under it.",
    ]
    if found.pending_version is not None:
        lines.insert(
            3, f"  - version {found.pending_version}, made to follow it, is disabled with it;"
        )
    require_consent("\n".join(lines), f"Disable version {number} of {key}?", yes=yes)
    return number


for _command in (show, disable, enable, destroy, cancel_destroy):
    keys.add_command(_command)
