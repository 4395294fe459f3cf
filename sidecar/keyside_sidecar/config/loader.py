"""From a file to a ``Config``, or to everything that is wrong with it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from typing import TYPE_CHECKING

from keyside_sidecar.config import sections
from keyside_sidecar.config.audit import read_audit
from keyside_sidecar.config.elevation import read_elevation, read_people
from keyside_sidecar.config.places import find_places
from keyside_sidecar.config.reader import Report, Table, TooManyProblemsError, list_shown, show_name
from keyside_sidecar.config.settings import Config
from keyside_sidecar.config.store_url import POSTGRESQL_SCHEME, parse_postgresql_url
from keyside_sidecar.config.syntax import MAX_FILE_BYTES, SyntaxProblemError, parse_document
from keyside_sidecar.config.values import holds_password
from keyside_sidecar.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from pathlib import Path


def load_config(path: Path) -> Config:
    """Read, check and parse the configuration file.

    The file must be a regular file (or a symbolic link to one, as Kubernetes mounts them), belong
    to root or to whoever runs this, and be writable by its owner only; readable by its owner only
    if it holds a password. Whether the paths and names in it exist is not checked here.

    Args:
        path: The TOML file, at most 1 MiB.

    Raises:
        ConfigError: With every problem found, each with its place.
    """
    problems: list[ConfigProblem] = []
    place = show_name(str(path))
    try:
        data, status = _read_file(path)
    except OSError as error:
        message = f"can't be read: {error.strerror or 'no such file'}"
        raise ConfigError([ConfigProblem(place, message)]) from None
    except ValueError:  # a NUL in its name
        raise ConfigError([ConfigProblem(place, "can't be a file's name")]) from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError([ConfigProblem(place, "is not a regular file")])
    config, secret = _parse(data, path, problems)
    problems[:0] = _check_file(path, status, holds_secrets=secret)
    if config is None or problems:
        raise ConfigError(problems)
    return config


def parse_config(data: bytes, path: Path) -> Config:
    """Parse a configuration that was read elsewhere; no file is touched.

    Args:
        data: The file's bytes.
        path: Names the file in problems.

    Raises:
        ConfigError: With every problem found, each with its place.
    """
    problems: list[ConfigProblem] = []
    config, _ = _parse(data, path, problems)
    if config is None or problems:
        raise ConfigError(problems)
    return config


def _read_file(path: Path) -> tuple[bytes, os.stat_result]:
    # O_NONBLOCK: opening a FIFO in the file's place must not hang.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return b"", status
        # None: one of those in /proc that would make us wait.
        return file.read(MAX_FILE_BYTES + 1) or b"", status


def _check_file(path: Path, status: os.stat_result, *, holds_secrets: bool) -> list[ConfigProblem]:
    wrong = []
    if status.st_uid not in {0, os.geteuid()}:
        wrong.append(
            f"belongs to uid {status.st_uid}; it decides who may decrypt, and so must belong to "
            "root or to the account that runs this"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        wrong.append("can be written by others than its owner; chmod go-w")
    if holds_secrets and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        wrong.append("holds a password and can be read by others than its owner; chmod go=")
    return [ConfigProblem(show_name(str(path)), message) for message in wrong]


def _parse(data: bytes, path: Path, problems: list[ConfigProblem]) -> tuple[Config | None, bool]:
    """Return the configuration (None where it can't be made) and whether it holds secrets."""
    file = show_name(path.name)
    try:
        document = parse_document(file, data)
    except SyntaxProblemError as error:
        problems.append(error.problem)
        return None, False
    report = Report(find_places(file, document.text))
    top = Table(report, (), document.values)
    config: Config | None = None
    try:
        config = _read_document(top, path, hashlib.sha256(data).hexdigest())
    except TooManyProblemsError:
        message = "that is enough for now; the rest was not looked at"
        report.problems.append(ConfigProblem(file, message))
    problems += report.problems
    store = document.values.get("store")
    return config, holds_password(store.get("url") if isinstance(store, dict) else None)


def _read_document(top: Table, path: Path, digest: str) -> Config:
    config = Config(
        sidecar=sections.read_sidecar(top.table("sidecar")),
        identity=sections.read_identity(top.table("identity")),
        store=sections.read_store(top.table("store")),
        root_key=sections.read_root_key(top.table("root_key")),
        audit=read_audit(top.table("audit")),
        operators=sections.read_principals(top.table("operators")),
        auditors=sections.read_principals(top.table("auditors")),
        keys=sections.read_keys(top),
        path=path,
        digest=digest,
        places=top.report.places,
    )
    config = dataclasses.replace(
        config,
        elevation=read_elevation(top, config.identity, config.operators),
        people=read_people(top),
    )
    top.finish(sections.SETTINGS_OF)
    _check_files_differ(top, config)
    _check_operators(top, config)
    _warn_of_operators(top, config)
    _warn_of_store(top, config)
    if not config.keys:
        top.warn("no [keys.NAME]: nothing can be encrypted")
    return dataclasses.replace(config, warnings=tuple(top.report.warnings))


def _check_files_differ(top: Table, config: Config) -> None:
    # A server's URL names no file, and is like none.
    files = {
        ("sidecar", "socket"): str(config.sidecar.socket),
        ("store", "url"): config.store.url.removeprefix("sqlite:///"),
        ("root_key", "path"): str(config.root_key.path),
        ("audit", "path"): str(config.audit.path),
    }
    seen: dict[str, str] = {}
    for (table, key), file in files.items():
        other = seen.setdefault(file, f"[{table}] {key}")
        if other != f"[{table}] {key}" and file != "/":  # "/" stands in for what was wrong
            Table(top.report, (table,), {}).problem(f"is the same file as {other}", key)


def _check_operators(top: Table, config: Config) -> None:
    if config.identity.membership == "process" and config.operators.groups:
        Table(top.report, ("operators",), {}).problem(
            'can\'t be used with membership = "process": a process can shed a group, and would no '
            "longer be refused the keys; name operators by users",
            "groups",
        )


def _warn_of_store(top: Table, config: Config) -> None:
    if config.store.url.partition(":")[0] == POSTGRESQL_SCHEME:
        for warning in parse_postgresql_url(config.store.url).warnings:
            Table(top.report, ("store",), {}).warn(warning, "url")


def _warn_of_operators(top: Table, config: Config) -> None:
    groups, users = set(config.operators.groups), set(config.operators.users)
    if not groups and not users:
        top.warn("[operators] names nobody: no key can be rolled over by hand")
    for name, key in config.keys.items():
        table = Table(top.report, ("keys", name), {})
        for setting, both in (
            ("allow_groups", groups.intersection(key.allow_groups)),
            ("allow_users", users.intersection(key.allow_users)),
        ):
            if both:
                names = list_shown(both)
                table.warn(f"{names} is in [operators] too, and so is refused the key", setting)
