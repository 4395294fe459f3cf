"""``keysided files``: lists, prints and installs the files that the package brings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keyside._atomic import write_all
from keyside._new_file import NewFile
from keyside._standard_streams import tell_done
from keyside._temporary import sweep_folder
from keyside.cli.helping import Group
from keyside.quantities import count_of
from keyside_sidecar.commands.shipped import ShippedFile, find_shipped, list_shipped
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MODE: Final = 0o644
_EX_CANTCREAT: Final = 73
_EX_NOPERM: Final = 77


@click.group(cls=Group)
def files() -> None:
    """List, print and install units, PAM file, grants, protos and pages."""


@files.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def files_list(*, as_json: bool) -> int:
    """List the files, what each is for, and where it belongs."""
    shipped = list_shipped()
    if as_json:
        facts = [
            {
                "name": file.name,
                "purpose": file.purpose,
                "place": str(file.place) if file.place else None,
            }
            for file in shipped
        ]
        click.echo(json.dumps({"files": facts}, indent=2))
        return 0
    width = max(len(file.name) for file in shipped)
    for file in shipped:
        place = f" ({file.place})" if file.place else ""
        click.echo(f"{file.name:{width}}  {file.purpose}{place}")
    return 0


@files.command("show")
@click.argument("name")
def files_show(name: str) -> int:
    """Print one file. NAME may be the end of its name, such as grants.sql."""
    found = _find(name)
    if len(found) > 1:
        raise click.UsageError(
            f"{name} is a directory of {count_of(len(found), 'file')}: "
            f"keysided files install --to DIR {name}"
        )
    click.echo(found[0].read(), nl=False)
    return 0


@files.command("install")
@click.argument("names", metavar="NAMES", nargs=-1, required=True)
@click.option(
    "--to",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Put them below DIR, each under its whole name, and not where they belong.",
)
@click.option("--force", is_flag=True, help="Replace files that are there and differ.")
def files_install(names: tuple[str, ...], directory: Path | None, *, force: bool) -> int:
    """Put files where they belong.

    Units start the keysided of this installation. Each of NAMES may be a directory, such as protos,
    or the end of a name, such as keyside.service. Nothing is written if any of the files is there
    already and is another one.
    """
    found = list(dict.fromkeys(file for name in names for file in _find(name)))
    targets = [(file.adapt(), _choose_place(file, directory)) for file in found]
    if not force:
        _refuse_others(targets)
    for data, place in targets:
        tell_done(f"{place}: {_install(data, place)}")
    return 0


def _find(name: str) -> list[ShippedFile]:
    found = find_shipped(name)
    if not found:
        raise click.UsageError(f"no file is called {name}, or several are: keysided files list")
    return found


def _choose_place(file: ShippedFile, directory: Path | None) -> Path:
    if directory is not None:
        return directory / file.name
    if file.place is None:
        raise click.UsageError(f"{file.name} belongs nowhere in particular: say --to DIR")
    return file.place


def _refuse_others(targets: Sequence[tuple[bytes, Path]]) -> None:
    for data, place in targets:
        if os.path.lexists(place) and not _holds(place, data):
            raise StartupError(
                f"{place} exists already and is another file",
                remedy="compare them (keysided files show), then say --force to replace it",
                exit_code=_EX_CANTCREAT,
            )


def _holds(place: Path, data: bytes) -> bool:
    try:
        return place.read_bytes() == data
    except OSError:
        return False


def _install(data: bytes, place: Path) -> str:
    if _holds(place, data):
        return "is there already"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sweep_folder(folder)
            with NewFile(folder) as file:
                os.fchmod(file.descriptor, _MODE)
                write_all(file.descriptor, data)
                file.replace(place.name)
        finally:
            os.close(folder)
    except PermissionError as error:
        raise StartupError(
            f"{place} can't be made: {error.strerror}",
            remedy="run keysided files install as root",
            exit_code=_EX_NOPERM,
        ) from error
    except OSError as error:
        raise StartupError(
            f"{place} can't be made: {error.strerror}",
            remedy="see that its directory can be written to",
            exit_code=_EX_CANTCREAT,
        ) from error
    return "installed"
