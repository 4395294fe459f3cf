"""Which store an administrative command works on, and in which role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside_sidecar.config.values import holds_password
from keyside_sidecar.errors import StartupError
from keyside_sidecar.store.location import SqliteFile, locate_store

if TYPE_CHECKING:
    from keyside_sidecar.config import Config

_EX_USAGE: Final = 64


def choose_store(config: Config, store_url: str | None) -> str:
    """Return the store's URL: the configuration's, or ``--store-url`` where that is given.

    Args:
        config: The configuration.
        store_url: The same PostgreSQL database, by the role that owns its tables.

    Raises:
        StartupError: ``store_url`` holds a password (I7: every account of the host can read a
            process's arguments), is not a PostgreSQL server's, or names another database.
    """
    if store_url is None:
        return config.store.url
    if holds_password(store_url):
        raise StartupError(
            "--store-url holds a password, and arguments can be read by everybody on this host",
            remedy="put it into a file with mode 0600, in the form of libpq's .pgpass, and add "
            "?passfile=/PATH to the URL",
            exit_code=_EX_USAGE,
        )
    configured, named = locate_store(config.store.url), locate_store(store_url)
    if isinstance(configured, SqliteFile) or isinstance(named, SqliteFile):
        raise StartupError(
            "--store-url is for a store on PostgreSQL, whose tables belong to another role than "
            "the daemon's",
            remedy="leave it out",
            exit_code=_EX_USAGE,
        )
    if configured.parameters["dbname"] != named.parameters["dbname"]:
        raise StartupError(
            f"--store-url names {named.place}, and the configuration {configured.place}",
            remedy="name the same database, and only another role",
            exit_code=_EX_USAGE,
        )
    return store_url
