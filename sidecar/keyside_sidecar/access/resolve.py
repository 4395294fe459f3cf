"""From the configuration's names to the policy's numbers, once, when the policy is loaded.

A name is looked up at load only: an account or group that is later given another number needs a
reload. A number in the file stays as it is and need not have a name.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from keyside_sidecar.access.elevation_policy import ElevationPolicy, PolicyLevel
from keyside_sidecar.access.policy import KeyPolicy, Policy, ResolvedPrincipals
from keyside_sidecar.access.policy_digest import digest_policy
from keyside_sidecar.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.config import Config, Principals
    from keyside_sidecar.config.places import Path

_OVERFLOW_ID: Final = 65534
_MAX_PROBLEMS: Final = 100


class NameLookup(Protocol):
    """The name service, as far as policy needs it. An outage raises; it is never an absence."""

    def gid_of(self, name: str) -> int | None:
        """Return the group's number; None where there is no such group."""

    def uid_of(self, name: str) -> int | None:
        """Return the account's number; None where there is no such account."""


def resolve_policy(config: Config, lookup: NameLookup) -> Policy:
    """Return the configuration's policy with every name turned into its number.

    Args:
        config: The whole configuration.
        lookup: The name service; asked once for each name.

    Raises:
        ConfigError: With every name that doesn't exist, or stands for the overflow id.
        NameServiceUnavailable: The lookup's own, where the name service can't be asked.
    """
    resolver = _Resolver(config, lookup)
    operators = resolver.principals(("operators",), config.operators)
    auditors = resolver.principals(("auditors",), config.auditors)
    keys: dict[str, KeyPolicy] = {}
    for name, key in config.keys.items():
        path = ("keys", name)
        keys[name] = KeyPolicy(
            allowed=ResolvedPrincipals(
                gids=resolver.gids(path, "allow_groups", key.allow_groups),
                uids=resolver.uids(path, "allow_users", key.allow_users),
            ),
            encrypt_gids=resolver.narrowing(path, "encrypt_groups", key.encrypt_groups),
            decrypt_gids=resolver.narrowing(path, "decrypt_groups", key.decrypt_groups),
            allows_data_keys=key.allow_data_keys,
        )
    elevation = _resolve_elevation(config, resolver)
    if resolver.problems:
        raise ConfigError(resolver.problems)
    if elevation is not None:
        digests = {
            name: digest_policy(config, elevation, name, policy) for name, policy in keys.items()
        }
        elevation = replace(elevation, digests=MappingProxyType(digests))
    return Policy(operators, auditors, MappingProxyType(keys), elevation)


def _resolve_elevation(config: Config, resolver: _Resolver) -> ElevationPolicy | None:
    people: dict[int, str] = {}
    for name, accounts in config.people.items():
        for index, account in enumerate(accounts):
            # By number: one account may have two names, or stand by name here and by number there.
            for uid in resolver.uids(("people",), name, (account,), first=index):
                if people.setdefault(uid, name) != name:
                    resolver.note(
                        ("people",), name, index, f"is an account of {people[uid]!a} already"
                    )
    settings = config.elevation
    if settings is None:
        return None
    levels = []
    for index, level in enumerate(settings.levels):
        path = ("elevation", "levels", index)
        gids = resolver.gids(path, "group", (level.group,))
        levels += [PolicyLevel(gid, str(level.group), level.approvals) for gid in gids]
    return ElevationPolicy(
        requester_gids=resolver.gids(("elevation",), "requesters", settings.requesters),
        levels=tuple(levels),
        people=MappingProxyType(people),
        max_duration_us=round(settings.max_duration_s * 1_000_000),
        request_ttl_us=round(settings.request_ttl_s * 1_000_000),
        max_open_requests=settings.max_open_requests,
        shared_ids=settings.shared_ids,
        rollover_after_grant=settings.rollover_after_grant,
    )


class _Resolver:
    def __init__(self, config: Config, lookup: NameLookup) -> None:
        self.problems: list[ConfigProblem] = []
        self._places = config.places
        self._kinds: dict[str, Callable[[str], int | None]] = {
            "group": lookup.gid_of,
            "user": lookup.uid_of,
        }
        self._known: dict[tuple[str, str], int | None] = {}

    def principals(self, path: Path, principals: Principals) -> ResolvedPrincipals:
        return ResolvedPrincipals(
            gids=self.gids(path, "groups", principals.groups),
            uids=self.uids(path, "users", principals.users),
        )

    def note(self, path: Path, setting: str, index: int, message: str) -> None:
        place = self._places.describe(path, setting, index)
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(ConfigProblem(place, message))
        elif len(self.problems) == _MAX_PROBLEMS:
            self.problems.append(ConfigProblem(place, "more names from here on are wrong"))

    def narrowing(
        self, path: Path, setting: str, groups: tuple[str | int, ...]
    ) -> frozenset[int] | None:
        # None only where the file narrows nothing: never because no name could be resolved.
        return self.gids(path, setting, groups) if groups else None

    def gids(self, path: Path, setting: str, groups: tuple[str | int, ...]) -> frozenset[int]:
        return self._ids("group", path, setting, groups)

    def uids(
        self, path: Path, setting: str, users: tuple[str | int, ...], *, first: int = 0
    ) -> frozenset[int]:
        return self._ids("user", path, setting, users, first)

    def _ids(
        self,
        kind: str,
        path: Path,
        setting: str,
        names: tuple[str | int, ...],
        first: int = 0,
    ) -> frozenset[int]:
        ids = set()
        for index, name in enumerate(names, first):
            number = name if isinstance(name, int) else self._look_up(kind, name)
            if number is None:
                message = f"there is no {kind} {name!a}"
            elif number == _OVERFLOW_ID:
                message = f"{name!a} stands for {number}, which is what the kernel shows for "
                message += "every id without a meaning in a user namespace"
            else:
                ids.add(number)
                continue
            self.note(path, setting, index, message)
        return frozenset(ids)

    def _look_up(self, kind: str, name: str) -> int | None:
        if (kind, name) not in self._known:
            self._known[kind, name] = self._kinds[kind](name)
        return self._known[kind, name]
