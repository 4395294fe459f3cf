"""``keysided``: the daemon and its administrative commands.

Exit codes follow sysexits(3): 0 done, 64 usage, 65 bad data, 66 no input, 69 unavailable,
70 internal, 73 can't create, 74 output can't be written, 75 try again, 77 not permitted,
78 configuration; 141 where nobody reads the output any more.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Final

import click

from keyside._standard_streams import OutputLost, prepare_streams, settle_streams
from keyside.cli.completing import add_completion
from keyside.cli.helping import Group, add_examples
from keyside_sidecar.commands.examples import EXAMPLES
from keyside_sidecar.commands.files import files
from keyside_sidecar.errors import (
    ConfigError,
    CustodianUnavailable,
    CustodyError,
    SidecarError,
    StartupError,
    StoreError,
    StoreUnavailable,
)

_DEFAULT_CONFIG: Final = Path("/etc/keyside/keyside.toml")
# What the extra [sidecar] brings; the client alone does without.
_SIDECAR_MODULES: Final = (
    "uvloop",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "grpc_health",
    "grpc_reflection",
    "pam",
)
_EX_USAGE: Final = 64
_EX_UNAVAILABLE: Final = 69
_EX_CONFIG: Final = 78


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=_DEFAULT_CONFIG,
    show_default=True,
    envvar="KEYSIDE_CONFIG",
    help="The configuration file.",
)
@click.version_option(package_name="keyside", prog_name="keysided")
@click.pass_context
def cli(context: click.Context, config_path: Path) -> None:
    """Keyside's daemon: encryption for this host's services, without giving them keys."""
    if context.invoked_subcommand == "completion":
        return  # needs nothing of the daemon's
    missing = [name for name in _SIDECAR_MODULES if importlib.util.find_spec(name) is None]
    # Units, protos and pages are of use to whoever installed the client alone, too.
    if missing and context.invoked_subcommand != "files":
        raise StartupError(
            f"the daemon's dependencies are not installed ({', '.join(missing)})",
            remedy="pip install 'keyside[sidecar]'",
            exit_code=_EX_UNAVAILABLE,
        )
    context.obj = config_path


_store_url = click.option(
    "--store-url",
    metavar="URL",
    help="PostgreSQL only: the configured database, by the role that owns its tables. "
    "A password belongs into a passfile.",
)


@cli.command()
@_store_url
@click.option(
    "--only-audit",
    is_flag=True,
    help="Make the audit log only: on a host that has root key and store already.",
)
@click.pass_obj
def init(config_path: Path, store_url: str | None, *, only_audit: bool) -> int:
    """Make the root key, the store and the audit log; refuse to overwrite any."""
    from keyside_sidecar.commands.init import run_init

    return run_init(config_path, store_url, only_audit=only_audit)


@cli.command()
@_store_url
@click.pass_obj
def migrate(config_path: Path, store_url: str | None) -> int:
    """Bring the store's schema to this program's, in one transaction."""
    from keyside_sidecar.commands.migrate import run_migrate

    return run_migrate(config_path, store_url)


@cli.command()
@click.argument("file")
@click.pass_obj
def backup(config_path: Path, file: str) -> int:
    """Write the whole store to FILE, which must not exist, or to standard output (-).

    The store may be in use. The backup is of one moment, and of no use without the root key.
    """
    from keyside_sidecar.commands.backup import run_backup

    return run_backup(config_path, file)


@cli.command()
@_store_url
@click.argument("file")
@click.pass_obj
def restore(config_path: Path, file: str, store_url: str | None) -> int:
    """Make a store from the backup in FILE, or on standard input (-), where there is no store.

    Stop the sidecars first. Everything is verified before anything is written.
    """
    from keyside_sidecar.commands.restore import run_restore

    return run_restore(config_path, file, store_url)


@cli.group()
def root() -> None:
    """The root key: see it, replace it."""


@root.command("rotate")
@click.option(
    "--prepare",
    "prepare_only",
    is_flag=True,
    help="Make the new root key only, so that it can be backed up and copied first.",
)
@click.pass_obj
def root_rotate(config_path: Path, *, prepare_only: bool) -> int:
    """Move the store to a new root key while it is served; if interrupted, run it again."""
    from keyside_sidecar.commands.root import run_root_rotate

    return run_root_rotate(config_path, prepare_only=prepare_only)


@root.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
@click.pass_obj
def root_show(config_path: Path, *, as_json: bool) -> int:
    """Show the root keys in their files, and which of them the store belongs to."""
    from keyside_sidecar.commands.root import run_root_show

    return run_root_show(config_path, as_json=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_obj
def check(config_path: Path, *, as_json: bool) -> int:
    """Check the configuration, the host, the root key and the store; change nothing."""
    from keyside_sidecar.commands.check import run_check

    return run_check(config_path, as_json=as_json)


@cli.command()
@click.option(
    "--accept-rollback",
    is_flag=True,
    help="Serve a store that is older than its own audit log, because an old backup was put back "
    "on purpose. It is recorded, and all requests for access and grants end.",
)
@click.pass_obj
def serve(config_path: Path, *, accept_rollback: bool) -> int:
    """Serve until told to stop by SIGTERM or SIGINT."""
    from keyside_sidecar.commands.serve import run_serve

    return run_serve(config_path, accept_rollback=accept_rollback)


cli.add_command(files)
add_completion("keysided", cli)
add_examples("keysided", cli, EXAMPLES)


def main() -> None:
    """Run ``keysided`` and exit with its code."""
    prepare_streams()  # first of all: nothing else may be opened as one of the standard descriptors
    sys.exit(settle_streams(_run(), "keysided"))


def _run() -> int:  # noqa: C901, PLR0911  (one row an error)
    try:
        code = cli.main(prog_name="keysided", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except OutputLost:
        return 0  # until it is settled
    except click.UsageError as error:
        error.show()
        return _EX_USAGE
    except click.ClickException as error:
        error.show()
        return _EX_USAGE
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"keysided: {problem}", err=True)
        return _EX_CONFIG
    except StartupError as error:
        return _complain(str(error), error.remedy, error.exit_code)
    except CustodianUnavailable as error:
        return _complain(str(error), error.remedy, _EX_UNAVAILABLE)
    except CustodyError as error:
        return _complain(str(error), error.remedy, _EX_CONFIG)
    except StoreUnavailable as error:
        return _complain(str(error), error.remedy, _EX_UNAVAILABLE)
    except StoreError as error:
        return _complain(str(error), error.remedy, _EX_CONFIG)
    except SidecarError as error:
        return _complain(str(error), "", _EX_CONFIG)
    return int(code or 0)


def _complain(message: str, remedy: str, code: int) -> int:
    click.echo(f"keysided: {message}", err=True)
    if remedy:
        click.echo(f"  what to do: {remedy}", err=True)
    return code


if __name__ == "__main__":
    main()
