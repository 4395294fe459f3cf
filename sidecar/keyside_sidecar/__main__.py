"""``keysided``: the daemon and its administrative commands.

Exit codes follow sysexits(3): 0 done, 64 usage, 69 unavailable, 70 internal, 73 can't create,
77 not permitted, 78 configuration.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Final

import click

from keyside_sidecar.errors import (
    ConfigError,
    CustodianUnavailable,
    CustodyError,
    SidecarError,
    StartupError,
    StoreUnavailable,
)

_DEFAULT_CONFIG: Final = Path("/etc/keyside/keyside.toml")
# What the extra [sidecar] brings; the client alone does without.
_SIDECAR_MODULES: Final = ("uvloop", "sqlalchemy", "alembic", "grpc_health", "grpc_reflection")
_EX_USAGE: Final = 64
_EX_UNAVAILABLE: Final = 69
_EX_CONFIG: Final = 78


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
    missing = [name for name in _SIDECAR_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise StartupError(
            f"the daemon's dependencies are not installed ({', '.join(missing)})",
            remedy="pip install 'keyside[sidecar]'",
            exit_code=_EX_UNAVAILABLE,
        )
    context.obj = config_path


@cli.command()
@click.pass_obj
def init(config_path: Path) -> int:
    """Make the root key and the store; refuse to overwrite either."""
    from keyside_sidecar.commands.init import run_init

    return run_init(config_path)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_obj
def check(config_path: Path, *, as_json: bool) -> int:
    """Check the configuration, the host, the root key and the store; change nothing."""
    from keyside_sidecar.commands.check import run_check

    return run_check(config_path, as_json=as_json)


@cli.command()
@click.pass_obj
def serve(config_path: Path) -> int:
    """Serve until told to stop by SIGTERM or SIGINT."""
    from keyside_sidecar.commands.serve import run_serve

    return run_serve(config_path)


def main() -> None:
    """Run ``keysided`` and exit with its code."""
    sys.exit(_run())


def _run() -> int:  # noqa: C901, PLR0911  (one row an error)
    try:
        code = cli.main(prog_name="keysided", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
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
        return _complain(str(error), "", _EX_UNAVAILABLE)
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
