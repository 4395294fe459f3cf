"""What ``keysided check`` looks at on the store's PostgreSQL server: privileges and TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside_sidecar.commands.findings import Finding, Grade
from keyside_sidecar.store.privileges import ServerReport, inspect_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside_sidecar.config import Config

APPLY_GRANTS: Final = (
    "run grants.sql as the schema's owner: keysided files show grants.sql | psql --dbname=…"
)


def check_server(config: Config) -> Iterator[Finding]:
    """Look at the server of a store on PostgreSQL; finds nothing for SQLite.

    Raises:
        StartupError: The URL can't be used.
        StoreUnavailable: The server is away, or refuses the role.
    """
    report = inspect_server(config.store.url)
    if report is None:
        return
    yield _check_transport(report)
    if report.missing:
        yield Finding(
            "database role",
            Grade.FAILED,
            f"the role {report.role} lacks {', '.join(report.missing)}",
            APPLY_GRANTS,
        )
    if report.excess:
        yield Finding(
            "database role",
            Grade.WARNING,
            f"the role {report.role} can do what the sidecar never does: "
            f"{', '.join(report.excess)}",
            f"give it a role of its own, which does not own the tables; {APPLY_GRANTS}",
        )
    if not report.missing and not report.excess:
        yield Finding(
            "database role", Grade.OK, f"the role {report.role} may do what it needs, and no more"
        )
    if not report.counts:
        yield Finding(
            "database changes",
            Grade.WARNING,
            "the server counts no changes, so rows changed by hand are found within the hour only",
            "set track_counts = on, which is the default",
        )


def _check_transport(report: ServerReport) -> Finding:
    subject = "database connection"
    if report.tls is not None:
        return Finding(subject, Grade.OK, f"{report.place} is reached by {report.tls}")
    if report.over_socket:
        return Finding(subject, Grade.OK, f"{report.place} is reached over a Unix socket")
    return Finding(
        subject,
        Grade.NOTE,
        f"{report.place} is reached without TLS, on this host",
        "use the server's Unix socket, or turn its TLS on",
    )
