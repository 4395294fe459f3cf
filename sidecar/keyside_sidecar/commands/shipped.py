"""Shipped files: units, PAM file, grants, protos and pages, as the package holds them.

They have the names that they have in the repository, and lie under ``shipped/`` beside the code;
``pyproject.toml`` puts them there when the wheel is built.
"""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from keyside_sidecar.errors import StartupError

_EX_UNAVAILABLE: Final = 69
_EX_CONFIG: Final = 78
_ROOT: Final = Path(str(files("keyside_sidecar"))) / "shipped"
# Where the units in the repository expect the program and its pages.
_UNITS_PROGRAM: Final = "/usr/local/bin/keysided"
_UNITS_PAGES: Final = "/usr/share/doc/keyside"
# The unit has ProtectHome=yes, so that systemd shows it nothing in there.
_HIDDEN_FROM_UNITS: Final = (Path("/home"), Path("/root"), Path("/run/user"))


@dataclass(frozen=True)
class _Known:
    purpose: str
    place: str = ""


_KNOWN: Final = {
    "deploy/pam/keyside": _Known(
        "PAM service, for [elevation]: how people prove who they are", "/etc/pam.d/keyside"
    ),
    "deploy/postgresql/grants.sql": _Known(
        "what the daemon's role may do with a store on PostgreSQL"
    ),
    "deploy/systemd/elevation.conf": _Known(
        "systemd: what the unit needs besides, for [elevation]",
        "/etc/systemd/system/keyside.service.d/elevation.conf",
    ),
    "deploy/systemd/keyside.service": _Known(
        "systemd: the unit of the daemon", "/etc/systemd/system/keyside.service"
    ),
    "deploy/systemd/keyside.socket": _Known(
        "systemd, optional: callers wait during a restart", "/etc/systemd/system/keyside.socket"
    ),
    "docs/audit-record.schema.json": _Known("JSON Schema of a record of the audit log"),
}
# By the end of the name, for the kinds of which there are many.
_KINDS: Final = {
    ".md": "page",
    ".proto": "interface, to generate stubs from",
    ".svg": "picture of a page",
}


@dataclass(frozen=True)
class ShippedFile:
    """One file that the package brings.

    Args:
        name: What it is called in the repository, such as ``docs/cli.md``.
        purpose: What it is for, in one line.
        place: Where it belongs on a host, or None where that is the user's choice.
    """

    name: str
    purpose: str
    place: Path | None

    def read(self) -> bytes:
        """Return the bytes, as they were shipped."""
        return (_ROOT / self.name).read_bytes()

    def adapt(self) -> bytes:
        """Return the bytes for this host: a unit starts the program of this installation.

        Raises:
            StartupError: There is no such program, or a unit could not reach it.
        """
        data = self.read()
        if not self.name.startswith("deploy/systemd/"):
            return data
        text = data.decode()
        if _UNITS_PROGRAM in text:
            text = text.replace(_UNITS_PROGRAM, str(_find_program()))
        return text.replace(_UNITS_PAGES, str(_ROOT)).encode()


def list_shipped() -> list[ShippedFile]:
    """Return all of them, by name.

    Raises:
        StartupError: The package was installed without them.
    """
    names = sorted(
        path.relative_to(_ROOT).as_posix() for path in _ROOT.rglob("*") if path.is_file()
    )
    if not names:
        raise StartupError(
            f"this installation has none of its files in {_ROOT}",
            remedy="install Keyside from its wheel",
            exit_code=_EX_UNAVAILABLE,
        )
    return [_describe(name) for name in names]


def _describe(name: str) -> ShippedFile:
    known = _KNOWN.get(name)
    if known is not None:
        return ShippedFile(name, known.purpose, Path(known.place) if known.place else None)
    purpose = _KINDS.get(Path(name).suffix, "")
    if name.endswith(".md"):
        with (_ROOT / name).open(encoding="utf-8") as page:
            purpose += ": " + next(page).lstrip("# ").rstrip("\n")
    return ShippedFile(name, purpose, None)


def find_shipped(wanted: str) -> list[ShippedFile]:
    """Return the file that is called so, or all in the directory that is.

    Args:
        wanted: A name or a directory's, or the end of one: ``grants.sql``, ``protos``.

    Returns:
        Nothing where there is none, or where the end fits names in several directories.
    """
    wanted = wanted.strip("/")
    shipped = list_shipped()
    exact = [file for file in shipped if file.name == wanted]
    if exact:
        return exact
    inside = [file for file in shipped if file.name.startswith(f"{wanted}/")]
    if inside:
        return inside
    ending = [file for file in shipped if file.name.endswith(f"/{wanted}")]
    return ending if len(ending) == 1 else []


def _find_program() -> Path:
    program = Path(sysconfig.get_path("scripts")) / "keysided"
    if not program.exists():
        program = Path(sys.argv[0]).absolute()
    if program.name != "keysided":
        raise StartupError(
            f"beside {sys.executable} there is no program keysided, which a unit could start",
            remedy="run the program of the installation that is to serve",
            exit_code=_EX_CONFIG,
        )
    hidden = [place for place in _HIDDEN_FROM_UNITS if program.resolve().is_relative_to(place)]
    if hidden:
        raise StartupError(
            f"{program} is below {hidden[0]}, where the sidecar's account can't reach it",
            remedy="install Keyside into a virtual environment such as /opt/keyside",
            exit_code=_EX_CONFIG,
        )
    return program
