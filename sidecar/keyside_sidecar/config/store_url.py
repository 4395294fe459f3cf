"""A PostgreSQL store's URL: what it may say, and what a connection is made with.

``postgresql+psycopg://[USER[:PASSWORD]@][HOST][:PORT]/DATABASE[?NAME=VALUE&…]``

Few of libpq's parameters are taken, and none is left to the environment or to libpq's own idea of a
default where that would be weaker: to another host than this one the server is asked for a
certificate that names it. https://www.postgresql.org/docs/current/libpq-connect.html
"""

from __future__ import annotations

import ipaddress
import os.path
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from keyside_sidecar.config.units import WrongValueError

if TYPE_CHECKING:
    from collections.abc import Mapping

POSTGRESQL_SCHEME: Final = "postgresql+psycopg"
POSTGRESQL_HELP: Final = (
    'as in "postgresql+psycopg://keyside@db.example/keyside?sslrootcert=/etc/keyside/db-ca.pem" or '
    '"postgresql+psycopg://keyside@/keyside?host=/run/postgresql"'
)
_PATHS: Final = frozenset({"passfile", "sslrootcert", "sslcert", "sslkey", "sslcrl"})
_TLS: Final = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl"})
_ALLOWED: Final = frozenset(
    {"host", "port", "application_name", "channel_binding", "target_session_attrs"} | _PATHS | _TLS
)
_SECRET: Final = frozenset({"password", "sslpassword"})
# libpq's, from none to full.
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERIFYING: Final = frozenset({"verify-ca", "verify-full"})
_WEAK: Final = {
    "require": "encrypts, but takes any server for the right one",
    "verify-ca": "takes any server with a certificate of that authority for the right one",
}
_PORTS: Final = range(1, 65536)
_PORT: Final = re.compile(r"[0-9]{1,5}")
_DEFAULT_PORT: Final = "5432"
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")


@dataclass(frozen=True, slots=True)
class PostgresqlServer:
    """A database on a PostgreSQL server.

    Args:
        place: Names it in messages; holds no password.
        parameters: What libpq is given; may hold a password.
        warnings: What is legal and weak about it.
    """

    place: str
    parameters: Mapping[str, str] = field(repr=False)
    warnings: tuple[str, ...] = ()


def parse_postgresql_url(url: str) -> PostgresqlServer:
    """Return what ``url`` says.

    Raises:
        WrongValueError: It can't be used; the message never quotes it, because of passwords.
    """
    if not url.isprintable() or " " in url:
        raise WrongValueError("must hold neither spaces nor control characters: write %20 and such")
    try:
        parts = urlsplit(url)
        netloc_port = parts.port
    except ValueError:
        raise WrongValueError(f"is no URL: {POSTGRESQL_HELP}") from None
    query = _read_query(parts)
    hosts = _read_hosts(parts, query)
    database = unquote(parts.path.removeprefix("/"))
    if not database or "/" in database or parts.fragment:
        raise WrongValueError(f"needs the name of one database: {POSTGRESQL_HELP}")
    parameters = {
        "dbname": database,
        "application_name": "keyside",
        # Of several hosts the one that takes changes: one that lags behind shows the past.
        **({"target_session_attrs": "read-write"} if len(hosts) > 1 else {}),
        **query,
        "host": ",".join(hosts),
        "port": _read_ports(netloc_port, query, len(hosts)),
    }
    if parts.username:
        parameters["user"] = unquote(parts.username)
    if parts.password is not None:
        parameters["password"] = unquote(parts.password)
    if any(not text.isprintable() for text in parameters.values()):
        raise WrongValueError("must hold no control characters, escaped ones included")
    warnings = _settle_tls(hosts, parameters)
    return PostgresqlServer(_name_place(parameters), parameters, warnings)


def _read_query(parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise WrongValueError('takes NAME=VALUE, joined by "&", after the "?"') from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise WrongValueError('says something twice after the "?"')
    if _SECRET & query.keys():
        raise WrongValueError(
            'takes no passwords after the "?": name a passfile there; a client key must have no '
            "passphrase, and be readable by its owner only"
        )
    # An unknown name is not quoted either: a password with a "?" in it would be shown.
    if query.keys() - _ALLOWED:
        raise WrongValueError(f'takes only these after the "?": {", ".join(sorted(_ALLOWED))}')
    for name in sorted(_PATHS & query.keys()):
        path = query[name]
        if not path.startswith("/") or os.path.normpath(path) != path:
            raise WrongValueError(f"needs an absolute path for {name}")
    return query


def _read_hosts(parts: SplitResult, query: Mapping[str, str]) -> list[str]:
    hosts = query["host"].split(",") if "host" in query else []
    if parts.hostname:
        hosts = [parts.hostname, *hosts]
    if not hosts or (parts.hostname and len(hosts) > 1):
        raise WrongValueError(
            'needs one host, or after the "?" host=/DIRECTORY of the server\'s Unix socket, or '
            f"host=A,B: {POSTGRESQL_HELP}"
        )
    for host in hosts:
        if host.startswith("/"):
            if os.path.normpath(host) != host:
                raise WrongValueError("needs an absolute path for the server's Unix socket")
        elif not _HOST_NAME.fullmatch(host):
            raise WrongValueError("names a host that can't be one")
    if len({host.startswith("/") for host in hosts}) > 1:
        raise WrongValueError("can't mix Unix sockets and other hosts")
    return hosts


def _read_ports(netloc_port: int | None, query: Mapping[str, str], hosts: int) -> str:
    if netloc_port is not None and "port" in query:
        raise WrongValueError("says the port twice")
    text = str(netloc_port) if netloc_port is not None else query.get("port", _DEFAULT_PORT)
    ports = text.split(",")
    if len(ports) not in {1, hosts} or any(
        not (_PORT.fullmatch(port) and int(port) in _PORTS) for port in ports
    ):
        raise WrongValueError("needs a port from 1 to 65535, or one for each host")
    return text


def _settle_tls(hosts: list[str], parameters: dict[str, str]) -> tuple[str, ...]:
    """Decide on ``sslmode``; return what is weak about it."""
    stated = parameters.get("sslmode")
    if hosts[0].startswith("/"):
        if _TLS & parameters.keys():
            raise WrongValueError("can't have TLS over a Unix socket: leave out what begins in ssl")
        parameters["sslmode"] = "disable"
        return ()
    if stated is not None and stated not in _SSL_MODES:
        raise WrongValueError(f"needs an sslmode of {', '.join(_SSL_MODES)}")
    away = not all(map(_is_loopback, hosts))
    mode = parameters["sslmode"] = stated or ("verify-full" if away else "prefer")
    if away and mode not in _WEAK and mode != "verify-full":
        raise WrongValueError(
            f"can't have sslmode={mode} with a server on another host: whoever is in between could "
            "read the role's password and keep changes from the store; leave it out for verify-full"
        )
    if mode in _VERIFYING and "sslrootcert" not in parameters:
        raise WrongValueError(
            "needs sslrootcert=/PATH of the certificate authority that the server's certificate "
            f"comes from (sslmode is {mode}; a distribution's own list of authorities is often "
            "/etc/ssl/certs/ca-certificates.crt)"
        )
    if away and mode in _WEAK:
        return (f"sslmode={mode} {_WEAK[mode]}; use verify-full",)
    return ()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_place(parameters: Mapping[str, str]) -> str:
    user = f"{parameters['user']}@" if "user" in parameters else ""
    port = parameters["port"]
    return f"PostgreSQL {user}{parameters['host']}:{port}/{parameters['dbname']}"
