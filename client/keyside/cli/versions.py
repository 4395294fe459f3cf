"""``keyside keys disable``, ``enable``, ``destroy``, ``cancel-destroy``: one version at a time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from keyside.cli import exits
from keyside.cli.amounts import format_duration
from keyside.cli.asking import require_consent, require_somebody_to_ask
from keyside.cli.connection import KEY_NAME, Connection, as_json, print_done
from keyside.cli.foreseeing import require_destroyable
from keyside.cli.key_facts import process_facts, version_facts
from keyside.cli.numbers import WholeNumberType
from keyside.cli.tables import format_time
from keyside.cli.text import escape
from keyside.quantities import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyside.client import Client
    from keyside.facts import KeyVersion, SidecarProcess, VersionChange

_Function = TypeVar("_Function", bound="Callable[..., Any]")

PAGE_SIZE: Final = 1000

_DATA_KEYS: Final = (
    "  if its policy allows data keys, those given out before work on for the key's "
    "data_key_max_age (5 min unless configured)"
)

assume_yes = click.option("--yes", is_flag=True, help="Do not ask.")


def _version_options(function: _Function) -> _Function:
    """Add KEY, VERSION and --json."""
    for option in (
        as_json,
        click.argument("number", metavar="VERSION", type=WholeNumberType(1, 2**32 - 1)),
        click.argument("key", type=KEY_NAME),
    ):
        function = option(function)
    return function


@click.command()
@_version_options
@click.pass_obj
def disable(connection: Connection, key: str, number: int, *, as_json: bool) -> int:
    """Refuse VERSION of KEY everywhere, until it is enabled again. For operators.

    What is sealed under it does not open until then; processes that hold data keys notice when
    they ask for them again, after the key's data_key_max_age (5 min unless configured) at the
    latest. The current version can't be disabled: roll the key over first.
    """
    with connection.open() as client:
        change = client.disable_version(key, number, timeout_s=connection.given_timeout_s)
    done = (
        f"{key}: version {number} is disabled: what is sealed under it does not open\n{_DATA_KEYS}"
    )
    return _tell(change, done, as_json=as_json)


@click.command()
@_version_options
@click.pass_obj
def enable(connection: Connection, key: str, number: int, *, as_json: bool) -> int:
    """Let a disabled VERSION of KEY decrypt again. For operators."""
    with connection.open() as client:
        change = client.enable_version(key, number, timeout_s=connection.given_timeout_s)
    done = f"{key}: version {number} is {change.version.state.value.lower()} and decrypts"
    return _tell(change, done, as_json=as_json)


@click.command()
@_version_options
@assume_yes
@click.pass_obj
def destroy(connection: Connection, key: str, number: int, *, yes: bool, as_json: bool) -> int:
    """Disable VERSION of KEY now, and destroy it later. For operators.

    Its material is destroyed once the sidecars have run for destroy_after (7 days, unless the
    configuration says more). Until then cancel-destroy calls it off; afterwards nothing that was
    sealed under it opens again.
    """
    require_somebody_to_ask(yes=yes)
    with connection.open() as client:
        version = _find_version(client, key, number)
        if not yes:
            require_destroyable(client.get_key(key), number, version)
        require_consent(
            "\n".join(_explain_destruction(key, number, version)),
            f"Destroy version {number} of {key}?",
            yes=yes,
        )
        change = client.destroy_version(key, number, timeout_s=connection.given_timeout_s)
    left = change.version.destroy_in
    when = f"in {format_duration(left)} of the sidecars' running time" if left else "later"
    done = (
        f"{key}: version {number} is disabled, and will be destroyed {when}; "
        f"keyside keys cancel-destroy {key} {number} calls it off"
    )
    return _tell(change, done, as_json=as_json)


@click.command("cancel-destroy")
@_version_options
@click.pass_obj
def cancel_destroy(connection: Connection, key: str, number: int, *, as_json: bool) -> int:
    """Call the destruction of VERSION of KEY off. For operators.

    The version stays disabled; enable it to decrypt with it again.
    """
    with connection.open() as client:
        change = client.cancel_destroy_version(key, number, timeout_s=connection.given_timeout_s)
    done = (
        f"{key}: version {number} will not be destroyed; it stays disabled, until "
        f"keyside keys enable {key} {number}"
    )
    return _tell(change, done, as_json=as_json)


def _find_version(client: Client, key: str, number: int) -> KeyVersion | None:
    """Return a version's facts; ``None`` if there is none of that number."""
    for version in client.iter_versions(key, page_size=PAGE_SIZE):
        if version.number <= number:
            return version if version.number == number else None
    return None


def tell_unacknowledged(processes: Sequence[SidecarProcess]) -> int:
    """Name on standard error the processes that a change has not reached; return the exit code."""
    if not processes:
        return exits.OK
    who = count_of(len(processes), "process has", "processes have")
    print(
        f"keyside: {who} not acknowledged this, and may go on serving as before until the store is "
        "within reach there:",
        file=sys.stderr,
    )
    lines = [
        f"  {escape(process.host)}, pid {process.pid}, "
        f"last seen {format_time(process.seen_at) or 'never'}"
        for process in processes
    ]
    lines.append(
        "  what to do: see why it is not, or that they have ended; then give the command again"
    )
    print("\n".join(lines), file=sys.stderr)
    return exits.TRY_AGAIN


def _tell(change: VersionChange, done: str, *, as_json: bool) -> int:
    late = change.unacknowledged
    facts = {"version": version_facts(change.version), "unacknowledged": process_facts(late)}
    print_done(done, facts, as_json=as_json)
    return tell_unacknowledged(late)


def _explain_destruction(key: str, number: int, version: KeyVersion | None) -> list[str]:
    lines = [
        f"Version {number} of {key} is disabled at once: what is sealed under it does not open."
    ]
    usage = version.usage if version else None
    if usage:
        sealed = format_time(usage.last_sealed_at) or "not recorded"
        opened = format_time(usage.last_opened_at) or "not recorded"
        lines += [
            f"  messages sealed under it: at most {usage.messages:,}",
            f"  last sealed: {sealed}; last opened: {opened}",
            "  (the last minute may be missing)",
        ]
    lines += [
        "Later its material is destroyed, and what is sealed under it is lost for ever.",
        f"Until then keyside keys cancel-destroy {key} {number} calls it off.",
        "To keep what is sealed under it, run keyside rewrap on that first.",
        "Backups of the store keep what was destroyed.",
    ]
    return lines
