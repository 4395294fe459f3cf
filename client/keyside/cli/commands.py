"""The command line: the group with its global options, and what each command is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from keyside.cli import access, audit, crypt, keys, rewrap, status
from keyside.cli.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence

SHELLS = ("bash", "zsh", "fish")


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if not wanted or context.resilient_parsing:
        return
    import keyside as package

    click.echo(f"keyside {package.__version__}")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    metavar="SOCKET",
    help="The sidecar's socket: a path, unix:PATH or unix://PATH.  "
    "[default: KEYSIDE_SOCKET, or /run/keyside/keyside.sock]",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True, max=86_400),
    default=5.0,
    show_default=True,
    help="How long to wait for the sidecar; unless given, 10 to change a version, and 30 with a "
    "password or for the audit log.",
)
@click.option(
    "--expected-owner",
    metavar="ACCOUNT",
    help="Account name or uid that must own the socket, if root does not.  "
    "[default: KEYSIDE_EXPECTED_OWNER, or yourself or keyside]",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def keyside(
    context: click.Context, socket: str | None, timeout_s: float, expected_owner: str | None
) -> None:
    """Encrypt and decrypt through the Keyside sidecar on this host."""
    given = context.get_parameter_source("timeout_s") is not ParameterSource.DEFAULT
    context.obj = Connection(socket, timeout_s, expected_owner, timeout_given=given)


@keyside.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    For bash: eval "$(keyside completion bash)"
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind: Any = get_completion_class(shell)
    # Bash's own would run bash for its version, which complains where the directory is gone.
    click.echo(ShellComplete.source(kind(keyside, {}, "keyside", "_KEYSIDE_COMPLETE")))


_COMMANDS: Sequence[click.Command] = (
    crypt.encrypt,
    crypt.decrypt,
    rewrap.rewrap,
    rewrap.reencrypt,
    keys.keys,
    access.access,
    audit.audit,
    status.status,
)
for _command in _COMMANDS:
    keyside.add_command(_command)
