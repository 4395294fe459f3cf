"""Which schema the store has. Alembic is imported to migrate only, never to serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from keyside_sidecar.errors import StoreSchemaError

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Oldest first. Each is a file in migrations/versions/; the last is what tables.py describes.
REVISIONS: Final = ("0001", "0002", "0003", "0004")
HEAD: Final = REVISIONS[-1]


def read_revision(connection: Connection) -> str:
    """Return the schema's revision.

    Raises:
        StoreSchemaError: This is no Keyside store.
    """
    try:
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except DatabaseError as error:
        # SQLite's words, and PostgreSQL's code (undefined_table). There, the transaction is
        # aborted by it: nothing else can be asked in it, and whoever raises leaves it anyway.
        code = getattr(error.orig, "sqlstate", None)
        if code != "42P01" and "no such table" not in str(error.orig):
            raise
        revision = None
    if not isinstance(revision, str):
        raise StoreSchemaError("this database is not a Keyside store: it names no schema revision")
    return revision


def require_known(connection: Connection) -> str:
    """Return the schema's revision, if this program knows it.

    Raises:
        StoreSchemaError: It is newer than this program, or the database is no Keyside store.
    """
    revision = read_revision(connection)
    if revision not in REVISIONS:
        raise StoreSchemaError(
            f"the store's schema {revision!a} was made by a newer keyside than this one, which "
            f"knows {HEAD}: run that version, or restore a backup from before the upgrade"
        )
    return revision


def require_head(connection: Connection) -> None:
    """Check that the schema is this program's.

    Raises:
        StoreSchemaError: It is older (the message names the command that migrates), newer, or the
            database is no Keyside store.
    """
    revision = require_known(connection)
    if revision != HEAD:
        raise StoreSchemaError(
            f"the store's schema is {revision}, this keyside needs {HEAD}: run `keysided migrate`"
        )


def upgrade(connection: Connection) -> None:
    """Bring the schema to this program's, in the transaction that ``connection`` is in."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "keyside_sidecar.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
