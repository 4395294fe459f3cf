"""One setting's value: from what TOML says to what the sidecar uses, or why not."""

from __future__ import annotations

import os.path
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, get_args

from keyside_sidecar.config.reader import show, suggest
from keyside_sidecar.config.settings import (
    LogLevel,
    MembershipSource,
    OnAuditFailure,
    PersonLogins,
    Provider,
    ServiceCalls,
)
from keyside_sidecar.config.store_url import (
    POSTGRESQL_HELP,
    POSTGRESQL_SCHEME,
    parse_postgresql_url,
)
from keyside_sidecar.config.units import (
    WrongValueError,
    format_duration,
    format_size,
    parse_duration_s,
    parse_size_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

C = TypeVar("C", bound=str)

OVERFLOW_ID: Final = 65534
MAX_ID: Final = 2**32 - 2  # 2**32 - 1 is (uid_t)-1, "no change" in setresuid(2)
# sockaddr_un.sun_path has 108 bytes with its final NUL; the rest is room for a sibling's longer
# name, under which a new socket is prepared before it is renamed into place.
MAX_SOCKET_PATH_BYTES: Final = 100
_MAX_NAME_LENGTH: Final = 256
_MAX_PATH_BYTES: Final = 4000  # the kernel's limit is 4095, and other files' names are longer
_MAX_FILE_NAME_BYTES: Final = 240  # its limit is 255
# Finished files' names are 13 bytes longer, and the file system's limit is 255.
_MAX_LOG_NAME_BYTES: Final = 200
_SQLITE_HELP: Final = 'as in "sqlite:////var/lib/keyside/keyside.db"'
_STORE_URL_HELP: Final = f"SQLite, {_SQLITE_HELP}, or PostgreSQL, {POSTGRESQL_HELP}"
_POSTGRESQL_LOOKALIKES: Final = frozenset(
    {"postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"}
)
_LOG_LEVELS: Final[tuple[LogLevel, ...]] = get_args(LogLevel)
_MEMBERSHIP_SOURCES: Final[tuple[MembershipSource, ...]] = get_args(MembershipSource)
_PERSON_LOGINS: Final[tuple[PersonLogins, ...]] = get_args(PersonLogins)
_PROVIDERS: Final[tuple[Provider, ...]] = get_args(Provider)
_SERVICE_CALLS: Final[tuple[ServiceCalls, ...]] = get_args(ServiceCalls)
_ON_AUDIT_FAILURE: Final[tuple[OnAuditFailure, ...]] = get_args(OnAuditFailure)
_MAX_ARGUMENTS: Final = 64
_MAX_SCHEME_LENGTH: Final = 32


def parse_bool(value: object) -> bool:
    """Return a truth value."""
    if isinstance(value, bool):
        return value
    raise WrongValueError(f"must be true or false, without quotes, not {show(value)}")


def parse_int_in(least: int, most: int) -> Callable[[object], int]:
    """Return a parser of whole numbers from ``least`` to ``most``; true and false are none."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise WrongValueError(
                f"must be a whole number from {least} to {most}, not {show(value)}"
            )
        return value

    return parse


def parse_duration_in(least_s: float, most_s: float) -> Callable[[object], float]:
    """Return a parser of durations from ``least_s`` to ``most_s`` seconds."""

    def parse(value: object) -> float:
        seconds = parse_duration_s(value)
        if not least_s <= seconds <= most_s:
            raise WrongValueError(
                f"must be from {format_duration(least_s)} to {format_duration(most_s)}, "
                f"not {show(value)}"
            )
        return seconds

    return parse


def parse_size_in(least_bytes: int, most_bytes: int) -> Callable[[object], int]:
    """Return a parser of sizes from ``least_bytes`` to ``most_bytes``."""

    def parse(value: object) -> int:
        size_bytes = parse_size_bytes(value)
        if not least_bytes <= size_bytes <= most_bytes:
            raise WrongValueError(
                f"must be from {format_size(least_bytes)} to {format_size(most_bytes)}, "
                f"not {show(value)}"
            )
        return size_bytes

    return parse


def _parse_choice(value: object, choices: tuple[C, ...]) -> C:
    for choice in choices:
        if value == choice:
            return choice
    names = [f'"{choice}"' for choice in choices]
    allowed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    hint = suggest(value, choices) if isinstance(value, str) else ""
    raise WrongValueError(f"must be {allowed}, not {show(value)}{hint}")


def parse_log_level(value: object) -> LogLevel:
    """Return a log level."""
    return _parse_choice(value, _LOG_LEVELS)


def parse_membership(value: object) -> MembershipSource:
    """Return where a caller's groups come from."""
    return _parse_choice(value, _MEMBERSHIP_SOURCES)


def parse_person_logins(value: object) -> PersonLogins:
    """Return what a person's login may do (I4)."""
    return _parse_choice(value, _PERSON_LOGINS)


def parse_provider(value: object) -> Provider:
    """Return the root key's custodian."""
    return _parse_choice(value, _PROVIDERS)


def parse_service_calls(value: object) -> ServiceCalls:
    """Return how service calls are recorded."""
    return _parse_choice(value, _SERVICE_CALLS)


def parse_on_audit_failure(value: object) -> OnAuditFailure:
    """Return what becomes of service calls while nothing can be recorded."""
    return _parse_choice(value, _ON_AUDIT_FAILURE)


def parse_command(value: object) -> tuple[str, ...]:
    """Return a command: its program's absolute path, and its arguments; empty for none."""
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise WrongValueError(
            'must be a list of texts, as in ["/usr/local/bin/send", "--to", "someone"]'
        )
    if not value:
        return ()
    if len(value) > _MAX_ARGUMENTS:
        raise WrongValueError(f"must hold a program and at most {_MAX_ARGUMENTS - 1} arguments")
    if any(not part.isprintable() for part in value):
        raise WrongValueError("must not hold control characters")
    try:
        parse_path(value[0])
    except WrongValueError as error:
        raise WrongValueError(f"the program in it {error}") from None
    return tuple(value)


def parse_log_path(value: object) -> Path:
    """Return the path of a log of JSON lines: finished files get names derived from it."""
    path = parse_path(value)
    if path.suffix != ".jsonl" or len(os.fsencode(path.name)) > _MAX_LOG_NAME_BYTES:
        raise WrongValueError(
            f"must end in .jsonl, with a name of at most {_MAX_LOG_NAME_BYTES} bytes, "
            f"not {show(value)}"
        )
    return path


def parse_suite(value: object) -> str:
    """Return the name of a suite that ``keyside.envelope`` knows."""
    from keyside.envelope import SUITES

    return _parse_choice(value, tuple(suite.name for suite in SUITES))


def parse_path(value: object) -> Path:
    """Return an absolute path without ``..``, repeated or trailing slashes."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise WrongValueError(
            f'must be an absolute path, as in "/etc/keyside/…", not {show(value)}'
        )
    if not value.isprintable():
        raise WrongValueError(f"must not hold control characters: {show(value)}")
    if value == "/" or os.path.normpath(value) != value:
        raise WrongValueError(
            f'must be a file\'s path without "..", "." and doubled or final "/", not {show(value)}'
        )
    try:
        names = os.fsencode(value).split(b"/")
    except UnicodeEncodeError:
        raise WrongValueError(
            f"can't be written in this process's locale; set LANG=C.UTF-8: {show(value)}"
        ) from None
    if len(b"/".join(names)) > _MAX_PATH_BYTES or max(map(len, names)) > _MAX_FILE_NAME_BYTES:
        raise WrongValueError(
            f"must be at most {_MAX_PATH_BYTES} bytes long, and each name in it "
            f"{_MAX_FILE_NAME_BYTES}, not {show(value)}"
        )
    return Path(value)


def parse_socket_path(value: object) -> Path:
    """Return a path that fits a Unix socket's address."""
    path = parse_path(value)
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise WrongValueError(
            f"must be at most {MAX_SOCKET_PATH_BYTES} bytes long, not {length}: the kernel's limit "
            "for a socket's path is 108, and Keyside needs a few of them"
        )
    return path


def parse_store_url(value: object) -> str:
    """Return a store's URL. A wrong one is never quoted: it may hold a password."""
    if not isinstance(value, str):
        raise WrongValueError(f"must be text in quotes: {_STORE_URL_HELP}")
    scheme = value.partition(":")[0]
    if scheme == POSTGRESQL_SCHEME:
        parse_postgresql_url(value)
        return value
    if scheme in _POSTGRESQL_LOOKALIKES:
        raise WrongValueError(f"must begin with {POSTGRESQL_SCHEME}://, {POSTGRESQL_HELP}")
    if scheme != "sqlite":
        is_kind = scheme.isidentifier() and len(scheme) <= _MAX_SCHEME_LENGTH
        kind = f'a store of the kind "{scheme}"' if is_kind else "that"
        raise WrongValueError(f"{kind} can't be used: {_STORE_URL_HELP}")
    if not value.startswith("sqlite:////"):
        raise WrongValueError(f"needs an absolute path, and so four slashes: {_SQLITE_HELP}")
    if "?" in value:
        raise WrongValueError('takes no options after a "?": Keyside sets its own')
    try:
        parse_path(value.removeprefix("sqlite:///"))
    except WrongValueError as error:
        raise WrongValueError(f"the path in it {error}") from None
    return value


def holds_password(url: object) -> bool:
    """Return whether a URL, valid or not, seems to hold a password."""
    if not isinstance(url, str):
        return False
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "@" in url
    names = {name.lower() for name, _ in urllib.parse.parse_qsl(parts.query)}
    return parts.password is not None or not names.isdisjoint({"password", "sslpassword"})


def parse_principal(value: object) -> str | int:
    """Return a group or user: its name, or its number."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise WrongValueError(f"{show(value)} is neither a name nor a number")
    if isinstance(value, int):
        if value == OVERFLOW_ID:
            raise WrongValueError(
                f"{OVERFLOW_ID} can't be named: it is what the kernel shows for every id that has "
                "no meaning in a user namespace"
            )
        if not 0 <= value <= MAX_ID:
            raise WrongValueError(f"a number must be from 0 to {MAX_ID}, not {show(value)}")
        return value
    if value.isascii() and value.isdigit():
        raise WrongValueError(f"write {show(value)} without quotes if it is meant as a number")
    if (
        not 0 < len(value) <= _MAX_NAME_LENGTH
        or not value.isprintable()
        or value != value.strip()
        or set(value) & set(":,")
    ):
        raise WrongValueError(
            f"{show(value)} is no name: 1 to {_MAX_NAME_LENGTH} printable characters, no ':' or "
            "',', no space at either end"
        )
    return value
