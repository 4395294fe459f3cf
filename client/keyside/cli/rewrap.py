"""``keyside rewrap`` and ``keyside reencrypt``: one envelope in a pipe, or files in place."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from keyside.address import choose_socket
from keyside.cli import exits
from keyside.cli.connection import Connection, as_json
from keyside.cli.exits import CommandError
from keyside.cli.files import Input, Output, read_input
from keyside.cli.foreseeing import require_before_typing
from keyside.cli.granted import (
    call_granted,
    credential_file_option,
    holds_credential,
    key_of_envelope,
    read_named_credential,
)
from keyside.cli.journal import Journal, JournalError, choose_journal, digest_arguments
from keyside.cli.rewriting import Outcome, Reencrypter, Rewrapper
from keyside.cli.streaming import rewrap_stream
from keyside.cli.streams import context_option, refuse_terminal, stream_options
from keyside.cli.tables import format_time
from keyside.cli.tally import Display, Failure, Tally, Verbs
from keyside.cli.walking import Found, Trouble, find_files
from keyside.errors import ClosedClient, KeysideError, NotPermitted, Unavailable, UntrustedSocket
from keyside.quantities import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyside.cli.rewriting import Rewriter
    from keyside.client import Client
    from keyside.credential import Credential

_Function = TypeVar("_Function", bound="Callable[..., Any]")

_REWRAP: Final = Verbs("rewrap", "rewrapped", "rewrap", "current already")
_REENCRYPT: Final = Verbs("reencrypt", "re-encrypted", "re-encrypt", "done by an earlier run")
_GO_ON: Final = "run the same command again: it goes on, and does nothing twice"


def _check_paths(
    context: click.Context, parameter: click.Parameter, paths: tuple[str, ...]
) -> tuple[str, ...]:
    del context, parameter
    # An unset variable in quotes would otherwise be the current directory.
    if "" in paths:
        raise click.BadParameter("a path is empty")
    if any("\0" in path for path in paths):
        raise click.BadParameter("a path holds a NUL character")
    return paths


def _path_options(function: _Function) -> _Function:
    """Add PATH and what goes with it."""
    for option in (
        as_json,
        click.option("--dry-run", is_flag=True, help="With PATH: say what would be done."),
        click.argument(
            "paths", nargs=-1, metavar="[PATH]...", type=click.Path(), callback=_check_paths
        ),
    ):
        function = option(function)
    return function


@click.command()
@_path_options
@credential_file_option
@stream_options
@click.pass_obj
def rewrap(
    connection: Connection,
    paths: tuple[str, ...],
    source: str | None,
    output: str | None,
    *,
    credential_file: str | None,
    dry_run: bool,
    as_json: bool,
) -> int | None:
    """Move envelopes under their keys' current versions.

    The payload is not opened and needs no context. Without PATH the envelope is in the input; with
    -i and -o naming one file, that file is replaced. With PATH every file, and every file in a
    directory, is replaced in place; what is current already is passed over, so that running the
    command again goes on where it was interrupted.
    """
    _check_usage(paths, source, output, {"--dry-run": dry_run, "--json": as_json})
    if not paths:
        _rewrap_one(connection, source, output, credential_file)
        return None
    given = click.get_current_context().get_parameter_source("credential_file")
    if given is ParameterSource.COMMANDLINE:
        raise click.UsageError("--credential-file goes without PATH: a grant is for single ones")
    display = Display(_REWRAP, as_json=as_json, dry_run=dry_run)
    with connection.open() as client:
        return _walk(paths, Rewrapper(client, display.not_kept), display, Tally(), dry_run=dry_run)


@click.command()
@_path_options
@click.option(
    "--journal",
    "journal_path",
    metavar="FILE",
    help="With PATH: where to remember what "
    "was done.  [default: in XDG_STATE_HOME or ~/.local/state]",
)
@click.option("--restart", is_flag=True, help="With PATH: forget what an earlier run has done.")
@context_option(help="A pair that was given to encrypt; the same for all PATHs.  Repeatable.")
@stream_options
@click.pass_obj
def reencrypt(
    connection: Connection,
    paths: tuple[str, ...],
    context: dict[str, str],
    source: str | None,
    output: str | None,
    *,
    journal_path: str | None,
    restart: bool,
    dry_run: bool,
    as_json: bool,
) -> int | None:
    """Seal what is in envelopes anew, under the current version and a new data key.

    This is what helps after a version has leaked; rewrap does not. The plaintext does not leave
    the sidecar. Without PATH the envelope is in the input; with -i and -o naming one file, that
    file is replaced. With PATH every file, and every file in a directory, is replaced in place; a
    journal remembers what was done until all of it is, so that running the command again goes on
    where it was interrupted.
    """
    path_only = {
        "--dry-run": dry_run,
        "--json": as_json,
        "--journal": journal_path is not None,
        "--restart": restart,
    }
    _check_usage(paths, source, output, path_only)
    if not paths:
        with Output(output, secret=False) as target, connection.open() as client:
            refuse_terminal(target)
            reader = Input(source, target)
            require_before_typing(client, reader, None, with_credential=lambda: False)
            target.write(client.reencrypt(read_input(source, target), context))
        return None
    with connection.open() as client:
        arguments = digest_arguments(paths, context, choose_socket(connection.socket))
        journal = Journal(
            journal_path or choose_journal(arguments, make_folder=not dry_run),
            arguments,
            begun=format_time(datetime.now(UTC)),
            restart=restart,
            read_only=dry_run,
        )
        display = Display(_REENCRYPT, as_json=as_json, dry_run=dry_run)
        with journal:
            if journal.count and not as_json:
                click.echo(
                    f"going on with the run begun {journal.begun}: "
                    f"{count_of(journal.count, 'file was', 'files were')} done then "
                    f"(--restart does {'it' if journal.count == 1 else 'them'} again)",
                    err=True,
                )
            tally = Tally()
            reencrypter = Reencrypter(client, context, journal, display.not_kept)
            code = _walk(paths, reencrypter, display, tally, dry_run=dry_run)
            if code == exits.OK and not dry_run:
                journal.remove()
    return code


def _rewrap_one(
    connection: Connection, source: str | None, output: str | None, credential_file: str | None
) -> None:
    named = read_named_credential(connection, "rewrap", credential_file)
    with Output(output, secret=False) as target, connection.open() as client:
        refuse_terminal(target)
        reader = Input(source, target)
        require_before_typing(
            client, reader, None, with_credential=partial(holds_credential, named)
        )
        with reader as opened, reader.reading():
            # Read and written as a whole, a hole would become zeros that take room.
            envelope, rewrapped = None if opened.has_holes else opened.read_small(), None
            if envelope is not None:
                data = envelope
                rewrapped = call_granted(
                    connection,
                    "rewrap",
                    lambda: key_of_envelope(data),
                    lambda credential: _rewrap_short(client, data, credential),
                    named=named,
                )
            if rewrapped is not None:
                target.append(rewrapped)
            else:
                rewrap_stream(client, opened, target)
            target.finish()


def _rewrap_short(client: Client, envelope: bytes, credential: Credential | None) -> bytes | None:
    """Return the envelope rewrapped; ``None`` where the sidecar takes none of that size."""
    from keyside._sealed_input import is_too_large

    try:
        return client.rewrap(envelope, credential=credential)
    except KeysideError as error:
        if credential is not None or not is_too_large(error):
            raise
    return None


def _check_usage(
    paths: Sequence[str], source: str | None, output: str | None, path_only: dict[str, bool]
) -> None:
    if paths and (source is not None or output is not None):
        raise click.UsageError("PATH is replaced in place: it goes without -i and -o")
    needless = [option for option, given in path_only.items() if given]
    if not paths and needless:
        raise click.UsageError(f"{needless[0]} goes with PATH")


def _walk(
    paths: Sequence[str], rewriter: Rewriter, display: Display, tally: Tally, *, dry_run: bool
) -> int:
    """Work on all files; return the exit code.

    Raises:
        CommandError: The sidecar can't go on; what was done has been told.
    """
    try:
        with contextlib.closing(find_files(paths, tidy=not dry_run)) as walk:
            for met in walk:
                if isinstance(met, Found):
                    _work_on(met, rewriter, display, tally, dry_run=dry_run)
                elif isinstance(met, Trouble):
                    _fail(met.path, met.error, display, tally)
                else:
                    tally.passed_over += 1
                display.progress(tally)
    except (KeysideError, JournalError) as error:
        display.end(tally, str(error))
        remedy = f"{error.remedy}; then {_GO_ON}" if error.remedy else _GO_ON
        raise CommandError(str(error), _code_of(error), remedy) from None
    except (KeyboardInterrupt, SystemExit):
        display.end(tally, "interrupted")
        if not dry_run:
            click.echo(f"  what to do: {_GO_ON}", err=True)
        raise
    display.end(tally, "")
    return tally.first_code


def _work_on(
    found: Found, rewriter: Rewriter, display: Display, tally: Tally, *, dry_run: bool
) -> None:
    try:
        outcome = rewriter.rewrite(found, dry_run=dry_run)
    except JournalError:
        raise
    except CommandError as error:
        _fail(found.path, error, display, tally)
        return
    except KeysideError as error:
        if _concerns_all(error):
            raise
        wrong = CommandError(str(error), exits.code_of(error), error.remedy)
        _fail(found.path, wrong, display, tally)
        return
    if outcome is Outcome.NO_ENVELOPE and found.named:
        _fail(found.path, CommandError("it is no envelope", exits.DATA), display, tally)
        return
    tally.outcomes[outcome] += 1
    if outcome is Outcome.DONE:
        display.would(found.path)


def _fail(path: str, error: CommandError, display: Display, tally: Tally) -> None:
    failure = Failure(path, str(error), error.remedy, error.exit_code)
    tally.fail(failure)
    display.failure(failure)


def _concerns_all(error: KeysideError) -> bool:
    """Whether the next file would fare no better: the sidecar is away, or refuses the caller."""
    if isinstance(error, NotPermitted):
        return error.reason != "NOT_ALLOWED"
    if error.reason == "METHOD_UNKNOWN":
        return True
    return isinstance(error, (Unavailable, UntrustedSocket, ClosedClient))


def _code_of(error: KeysideError | CommandError) -> int:
    return error.exit_code if isinstance(error, CommandError) else exits.code_of(error)
