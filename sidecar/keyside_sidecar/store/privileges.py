"""What the role may do in a PostgreSQL store, beside what it needs to (``keysided check``).

The needs are those of deploy/postgresql/grants.sql.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from keyside_sidecar.store.location import SqliteFile, locate_store

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from keyside_sidecar.config.store_url import PostgresqlServer

_READ: Final = frozenset({"SELECT"})
_CHANGE: Final = frozenset({"SELECT", "INSERT", "UPDATE"})
NEEDED: Final = {
    "alembic_version": _READ,
    "store_meta": frozenset({"SELECT", "UPDATE"}),
    "keys": _CHANGE,
    "key_versions": _CHANGE,
    "version_usage": _CHANGE,
    "store_time": _CHANGE,
    "access_requests": _CHANGE,
    "access_uses": _CHANGE,
    "sidecars": _CHANGE | {"DELETE"},
}
_PRIVILEGES: Final = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER")
_BUSY_TIMEOUT_S: Final = 5.0

_ROLE: Final = text(
    "SELECT rolname, rolsuper, rolcreaterole, rolreplication,"
    " has_schema_privilege('public', 'CREATE') AS creates,"
    " current_setting('track_counts') = 'on' AS counts"
    " FROM pg_roles WHERE rolname = current_user"
)
_HELD: Final = text(
    "SELECT t.name, p.name FROM unnest(CAST(:tables AS text[])) AS t(name),"
    " unnest(CAST(:privileges AS text[])) AS p(name)"
    " WHERE has_table_privilege(to_regclass(t.name)::oid, p.name)"
)
_OWNED: Final = text(
    "SELECT t.name FROM unnest(CAST(:tables AS text[])) AS t(name)"
    " JOIN pg_class AS c ON c.oid = to_regclass(t.name)::oid"
    " WHERE pg_has_role(c.relowner, 'USAGE') ORDER BY 1"
)
_TLS: Final = text("SELECT ssl, version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What the server says of a connection and of its role.

    Args:
        place: The database.
        role: The role's name.
        tls: Protocol and cipher, or None without TLS.
        over_socket: Whether the server is asked over a Unix socket.
        missing: Privileges that the daemon will miss, as in ``"UPDATE on keys"``.
        excess: What the role could do and need not, as phrases.
        counts: Whether the server counts changes (``track_counts``).
    """

    place: str
    role: str
    tls: str | None
    over_socket: bool
    missing: tuple[str, ...]
    excess: tuple[str, ...]
    counts: bool


def inspect_server(url: str) -> ServerReport | None:
    """Ask a PostgreSQL server what the role that ``url`` names can do; None for SQLite.

    Raises:
        StartupError: The URL can't be used.
        StoreUnavailable: The server is away, or refuses the role.
    """
    location = locate_store(url)
    if isinstance(location, SqliteFile):
        return None
    from keyside_sidecar.store.postgresql import PostgresqlDatabase

    database = PostgresqlDatabase(location, _BUSY_TIMEOUT_S)
    try:
        with database.transaction() as connection:
            return _inspect(connection, location)
    finally:
        database.close()


def _inspect(connection: Connection, server: PostgresqlServer) -> ServerReport:
    role = connection.execute(_ROLE).one()
    names = {"tables": list(NEEDED), "privileges": list(_PRIVILEGES)}
    held = {tuple(row) for row in connection.execute(_HELD, names)}
    needed = {(table, privilege) for table, some in NEEDED.items() for privilege in some}
    owned = list(connection.execute(_OWNED, {"tables": list(NEEDED)}).scalars())
    tls = connection.execute(_TLS).one_or_none()
    excess = [
        phrase
        for is_so, phrase in (
            (role.rolsuper, "it is a superuser"),
            (role.rolcreaterole, "it may make roles"),
            (role.rolreplication, "it may copy the whole server"),
            (role.creates, "it may make tables"),
            (owned, f"it owns {', '.join(owned)}"),
        )
        if is_so
    ]
    if not role.rolsuper:
        excess += [
            f"{privilege} on {table}"
            for table, privilege in sorted(held - needed)
            if table not in owned
        ]
    return ServerReport(
        place=server.place,
        role=role.rolname,
        tls=f"{tls.version}, {tls.cipher}" if tls is not None and tls.ssl else None,
        over_socket=server.parameters["host"].startswith("/"),
        missing=tuple(f"{privilege} on {table}" for table, privilege in sorted(needed - held)),
        excess=tuple(excess),
        counts=role.counts,
    )
