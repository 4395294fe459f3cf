"""A name service of the test's own (``nss_module/``), in the place of a directory.

It gets there by a private nsswitch.conf in a mount namespace; the machine's own file is not
touched.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parents[1] / "nss_module"


def build_name_service(directory: Path, name: str, *options: str) -> None:
    """Compile the module under a service's name into a directory."""
    subprocess.run(
        [
            *("gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *options),
            *(f"-DNSS_PREFIX={name}", "-o", directory / f"libnss_{name}.so.2"),
            HERE / "kstest.c",
        ],
        check=True,
    )


def seeing_nsswitch_conf(conf: Path) -> list[str]:
    """Return a command that runs the command after it with another nsswitch.conf."""
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-ec"),
        'mount --bind "$1" /etc/nsswitch.conf; shift; exec "$@"',
        *("sh", str(conf)),
    ]


class Directory:
    """What the name service does and knows; read again each time that it is asked."""

    def __init__(self, state: Path, people: str) -> None:
        self.state = state
        self._people = people
        self.set("up")

    def set(self, weather: str, people: str | None = None) -> None:
        """Change what it does, and whom it knows where that is given."""
        if people is not None:
            self._people = people
        new = self.state.with_suffix(".new")
        new.write_text(f"weather {weather}\n{self._people}")
        new.chmod(0o644)
        new.replace(self.state)
