"""A configuration that is to take the running one's place: examined in a process of its own.

Looking names up may take as long as the name service likes, and the supervisor must not wait. So a
child reads the file, looks everything up, and says what it has found: the file's bytes with each
name's number, or what is wrong. The supervisor parses the same bytes again, with the numbers at
hand; neither touches anything outside.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.access.resolve import resolve_policy
from keyside_sidecar.config import load_config, parse_config
from keyside_sidecar.descriptors import check_descriptor_limit
from keyside_sidecar.errors import ConfigError, ConfigProblem, StartupError
from keyside_sidecar.pam.transaction import load_pam
from keyside_sidecar.peer.accounts import NameService, NameServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.access.resolve import NameLookup
    from keyside_sidecar.config import Config

_RESTART: Final = "can't be changed by a reload: restart keysided"
# Table, setting, and how to read it from a Config.
_FIXED: Final[tuple[tuple[str, str, Callable[[Config], object]], ...]] = (
    ("sidecar", "socket", lambda config: config.sidecar.socket),
    ("sidecar", "user", lambda config: config.sidecar.user),
    ("sidecar", "group", lambda config: config.sidecar.group),
    ("store", "url", lambda config: config.store.url),
    ("root_key", "provider", lambda config: config.root_key.provider),
    ("root_key", "path", lambda config: config.root_key.path),
    ("audit", "path", lambda config: config.audit.path),
)


class CandidateRefused(Exception):
    """The new configuration can't be used; the running one goes on.

    Args:
        reason: A constant, for the audit log.
        why: What is wrong.
        remedy: What to do about it.
    """

    def __init__(self, reason: str, why: str, remedy: str) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that can be used.

    Args:
        config: The configuration.
        policy: Its policy, with names resolved to ids.
    """

    config: Config
    policy: Policy


class _Listening:
    """Looks names up, and remembers what was said."""

    def __init__(self, names: NameLookup) -> None:
        self._names = names
        self.groups: dict[str, int | None] = {}
        self.users: dict[str, int | None] = {}

    def gid_of(self, name: str) -> int | None:
        self.groups[name] = self._names.gid_of(name)
        return self.groups[name]

    def uid_of(self, name: str) -> int | None:
        self.users[name] = self._names.uid_of(name)
        return self.users[name]


class _Remembered:
    """Says what was said before."""

    def __init__(self, groups: dict[str, int | None], users: dict[str, int | None]) -> None:
        self._groups = groups
        self._users = users

    def gid_of(self, name: str) -> int | None:
        return self._groups[name]

    def uid_of(self, name: str) -> int | None:
        return self._users[name]


def examine(path: Path, running: Config) -> bytes:
    """Read a configuration and look its names up; return what ``take_reply`` takes. May block.

    Args:
        path: The file.
        running: What is in use now.
    """
    try:
        return json.dumps(_examine(path, running)).encode()
    except ConfigError as error:
        refusal = "CONFIG_INVALID", str(error), "mend the file, and reload again"
    except NameServiceUnavailable as error:
        why = f"the name service is away, so the policy's names can't be looked up: {error}"
        refusal = "NAME_SERVICE_UNAVAILABLE", why, "restore it, and reload again"
    except StartupError as error:
        refusal = "CONFIG_INVALID", str(error), error.remedy
    return json.dumps({"refused": refusal}).encode()


def _examine(path: Path, running: Config) -> dict[str, Any]:
    config = load_config(path)
    changed = [
        ConfigProblem(config.places.describe((table,), setting), _RESTART)
        for table, setting, read in _FIXED
        if read(config) != read(running)
    ]
    if changed:
        raise ConfigError(changed)
    check_descriptor_limit(config.sidecar.max_connections)
    if config.elevation is not None:
        load_pam()
    names = _Listening(NameService())
    resolve_policy(config, names)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != config.digest:
        raise ConfigError([ConfigProblem(str(path), "was changed while it was read")])
    return {
        "file": base64.b64encode(data).decode(),
        "groups": names.groups,
        "users": names.users,
    }


def take_reply(reply: bytes, path: Path) -> Candidate:
    """Return the configuration that a child has examined.

    Args:
        reply: What ``examine`` returned there; anything else is taken for a child that failed.
        path: The file.

    Raises:
        CandidateRefused: It can't be used.
    """
    try:
        fields = json.loads(reply)
        if "refused" in fields:
            raise CandidateRefused(*fields["refused"])
        config = parse_config(base64.b64decode(fields["file"]), path)
        policy = resolve_policy(config, _Remembered(fields["groups"], fields["users"]))
    except (ValueError, KeyError, TypeError, ConfigError):
        why = "the process that was to read the configuration failed"
        raise CandidateRefused("CONFIG_NOT_READ", why, "see keysided's log") from None
    return Candidate(config, policy)
