"""A sidecar whose store is on a PostgreSQL server, in the daemon's least-privileged role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.sidecar import Sidecar

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from support.postgresql import Database


@dataclass
class OnServer(Sidecar):
    """A sidecar whose store is in a database. The owner's role makes the tables, as documented.

    Args:
        database: Where.
        as_owner: ``init`` acts as the schema's owner; otherwise as the daemon.
        first: Another sidecar on the same store, which has made it.
    """

    database: Database | None = None
    as_owner: bool = True
    first: OnServer | None = None

    @property
    def root_key(self) -> Path:
        """The root key's file; a second sidecar uses the first one's."""
        return super().root_key if self.first is None else self.first.root_key

    @property
    def server_url(self) -> str:
        """As the daemon."""
        assert self.database is not None
        return self.database.url

    def write_config(self) -> None:
        """Write the configuration file."""
        super().write_config()
        text = self.config_path.read_text()
        self.config_path.write_text(text.replace(f"sqlite:///{self.store}", self.server_url))

    def keysided(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an administrative command to its end."""
        if arguments != ("init",) or not self.as_owner:
            return super().keysided(*arguments)
        assert self.database is not None
        if self.first is not None:
            return super().keysided("init", "--only-audit")
        done = super().keysided("init", "--store-url", self.database.owner_url)
        if done.returncode == 0:
            self.database.grant()
        return done
