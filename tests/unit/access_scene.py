"""People who ask for access, decide about it and use it, on a store whose clock the test sets."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tests.unit.api_scene import make_caller
from tests.unit.made_store import MAIL, NOW

from keyside_sidecar.access import elevation, grants
from keyside_sidecar.access.credential import hash_credential, make_access_id, make_credential
from keyside_sidecar.access.elevation_policy import ElevationPolicy, PolicyLevel
from keyside_sidecar.access.facts import Facts
from keyside_sidecar.access.policy import KeyPolicy, Policy, ResolvedPrincipals
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.requests import (
    AccessItem,
    AccessOperation,
    AccessRequest,
    AccessWish,
)
from keyside_sidecar.clock import BootTime
from keyside_sidecar.store.records import to_microseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyside_sidecar.access.grants import Usage
    from keyside_sidecar.access.requests import AccessId, Moment
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.store import Store
    from keyside_sidecar.store.elevation import ChangedAccess, CountedUse

MINUTE_US = 60 * 1_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
DECRYPT, REWRAP, ENCRYPT = (
    AccessOperation.DECRYPT,
    AccessOperation.REWRAP,
    AccessOperation.ENCRYPT,
)

OPERATORS, AUDITORS, ADMINS, MANAGERS, LEGAL = 10, 20, 100, 200, 300
# Who is who: uid and groups.
ACCOUNTS = {
    "anna": (1001, {ADMINS}),
    "ben": (1002, {ADMINS}),
    "mia": (2001, {MANAGERS}),
    "max": (2002, {MANAGERS}),
    "lea": (3001, {LEGAL}),
    "leo": (3002, {LEGAL}),
    "lou": (3003, {MANAGERS, LEGAL}),  # at both levels
    "amy": (1009, {ADMINS, MANAGERS, LEGAL}),  # asks, and would decide
    "anna-boss": (1101, {MANAGERS, LEGAL}),  # anna's other account
    "lea-two": (3101, {MANAGERS, LEGAL}),  # lea's other account
    "otto": (9001, {OPERATORS}),
    "oda": (9002, {OPERATORS, ADMINS, MANAGERS}),
    "aud": (9003, {AUDITORS}),
    "sam": (9999, {9999}),  # a stranger
}
PEOPLE = {1001: "anna", 1101: "anna", 3001: "lea", 3101: "lea"}
ELEVATION = ElevationPolicy(
    requester_gids=frozenset({ADMINS}),
    levels=(PolicyLevel(MANAGERS, "managers", 1), PolicyLevel(LEGAL, "legal", 2)),
    people=MappingProxyType(PEOPLE),
    digests=MappingProxyType({"mail-credentials": b"m" * 32, "bank-details": b"b" * 32}),
)
POLICY = Policy(
    operators=ResolvedPrincipals(gids=frozenset({OPERATORS})),
    auditors=ResolvedPrincipals(gids=frozenset({AUDITORS})),
    keys=MappingProxyType({name: KeyPolicy(ResolvedPrincipals()) for name in ELEVATION.digests}),
    elevation=ELEVATION,
)
WISH = AccessWish(MAIL, "a customer's mailbox does not sync", HOUR_US, ticket="INC-7")
HOST, OTHER_HOST = "mail-1", "mail-2"
_NUMBERS = itertools.count(1)


def item(
    version: int = 1,
    operation: AccessOperation = DECRYPT,
    key: str = MAIL,
    context: dict[str, str] | None = None,
) -> AccessItem:
    return AccessItem(operation, key, version, context or {}, bytes([version % 256]) * 32)


def summarise(request: AccessRequest) -> str:
    """Return what is worth comparing: state, approvals that count at each level, uses, end."""
    counts = ",".join(str(len(level.counting)) for level in request.levels)
    parts = [str(request.state), counts]
    if request.used:
        parts.append(f"used {request.used}")
    if request.end_reason is not None:
        parts.append(str(request.end_reason))
    return " ".join(parts)


class MadeBoot:
    """A host's boot clock, which the test moves."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.count = 0
        self.passed_us = 0

    def read(self) -> BootTime:
        return BootTime(f"boot {self.count} of {self.host}", self.passed_us)


class Scene:
    """One request for access, and everybody around it.

    Args:
        store: Where it is kept.
    """

    def __init__(self, store: Store) -> None:
        self.now_us = to_microseconds(NOW)
        self.boots = {host: MadeBoot(host) for host in (HOST, OTHER_HOST)}
        self.host = HOST
        self.reopen(store)
        self.begin()

    def begin(self) -> None:
        """Forget the last request; a new day, and everybody as they were."""
        self.now_us += 100 * DAY_US
        self.policy = POLICY
        self.move(HOST)
        self.groups = {uid: frozenset(gids) for uid, gids in ACCOUNTS.values()}
        self.locked: set[int] = set()
        self.credential = ""
        self.id: AccessId = make_access_id(bytes(8))

    def actor(self, name: str) -> Caller:
        """Return somebody; with ``su `` before the name, in the login of somebody else."""
        borrowed = name.startswith("su ")
        uid = ACCOUNTS[name.removeprefix("su ")][0]
        person = Reason.PEER_PERSON_LOGIN
        reason = Reason.LOGIN_OF_ANOTHER if borrowed else None
        return make_caller(
            uid,
            gids=self.groups[uid],
            account=name.removeprefix("su "),
            person=person,
            borrowed=reason,
        )

    @property
    def facts(self) -> Facts:
        return Facts(self.policy, self.host, self.groups, frozenset(self.locked))

    @property
    def stored(self) -> AccessRequest:
        """The request as the store has it."""
        found = self.book.find(self.id)
        assert found is not None
        return found

    # What people do.

    def ask(self, name: str = "anna", **changes: Any) -> ChangedAccess:
        wish, facts, actor = replace(WISH, **changes), self.facts, self.actor(name)
        new_id = make_access_id(next(_NUMBERS).to_bytes(7, "big") + b"\0")

        def make(found: Sequence[AccessRequest], moment: Moment) -> AccessRequest:
            return elevation.make_request(wish, actor, facts, moment, new_id, found)

        done = self.book.insert(make)
        self.id = new_id
        return done

    def approve(self, name: str, comment: str = "") -> ChangedAccess:
        facts, actor = self.facts, self.actor(name)
        return self.book.change(
            self.id, lambda found, moment: elevation.approve(found, moment, facts, actor, comment)
        )

    def deny(self, name: str, reason: str = "not needed") -> ChangedAccess:
        facts, actor = self.facts, self.actor(name)
        return self.book.change(
            self.id, lambda found, moment: elevation.deny(found, moment, facts, actor, reason)
        )

    def cancel(self, name: str) -> ChangedAccess:
        facts, actor = self.facts, self.actor(name)
        return self.book.change(
            self.id, lambda found, moment: elevation.cancel(found, moment, facts, actor)
        )

    def activate(self, name: str = "anna") -> ChangedAccess:
        facts, actor = self.facts, self.actor(name)
        credential = make_credential(next(_NUMBERS).to_bytes(32, "big"))
        hashed = hash_credential(credential)
        done = self.book.change(
            self.id, lambda found, moment: elevation.activate(found, moment, facts, actor, hashed)
        )
        self.credential = credential
        return done

    def revoke(self, name: str, reason: str = "") -> ChangedAccess:
        facts, actor = self.facts, self.actor(name)
        return self.book.change(
            self.id, lambda found, moment: elevation.revoke(found, moment, facts, actor, reason)
        )

    def use(self, name: str = "anna", *items: AccessItem) -> CountedUse:
        facts, actor, wanted = self.facts, self.actor(name), items or (item(),)

        def decide(found: AccessRequest, moment: Moment) -> Usage:
            return grants.use(found, moment, facts, actor, wanted)

        return self.book.use(hash_credential(self.credential), decide, wanted)

    def review(self) -> list[ChangedAccess]:
        facts = self.facts
        return self.book.review(lambda found, moment: elevation.review(found, moment, facts))

    def finish(self) -> ChangedAccess:
        return self.book.change(self.id, elevation.finish_rollover)

    def grant(self, **changes: Any) -> AccessRequest:
        """Go all the way to a grant of anna's."""
        self.ask("anna", **changes)
        for name in ("mia", "lea", "leo"):
            self.approve(name)
        return self.activate("anna").after

    # What happens.

    def wait(self, us: int) -> None:
        """Have time pass, by every clock but the store's observed time."""
        self.now_us += us
        for boot in self.boots.values():
            boot.passed_us += us

    def reopen(self, store: Store) -> None:
        """Go on in another process of this host."""
        self.store, self.book = store, store.access
        store.session.boot_clock = self.boots[self.host]
        database: Any = store.session.database
        database.read_time_us = lambda _connection: self.now_us

    def set_clock(self, by_us: int) -> None:
        """Put the wall clock forward or, with less than 0, back."""
        self.now_us += by_us

    def restart(self) -> None:
        """Start this host anew."""
        self.boots[self.host].count += 1
        self.boots[self.host].passed_us = 0

    def observe(self, us: int) -> None:
        """Have time pass that no wall clock shows."""
        self.store.observed.advance(self.store.observed.read(), us)

    def leave(self, name: str, gid: int) -> None:
        uid = ACCOUNTS[name][0]
        self.groups[uid] -= {gid}

    def join(self, name: str, gid: int) -> None:
        uid = ACCOUNTS[name][0]
        self.groups[uid] |= {gid}

    def lock(self, name: str) -> None:
        self.locked.add(ACCOUNTS[name][0])

    def change_policy(self, **changes: Any) -> None:
        digests = MappingProxyType(dict.fromkeys(ELEVATION.digests, b"x" * 32))
        elevation_policy = replace(ELEVATION, digests=digests, **changes)
        self.policy = replace(POLICY, elevation=elevation_policy)

    def set_policy(self, **changes: Any) -> None:
        """Another policy from the beginning, so that requests are bound to it."""
        self.policy = replace(POLICY, elevation=replace(ELEVATION, **changes))

    def forbid(self) -> None:
        """Take [elevation] out."""
        self.policy = replace(POLICY, elevation=None)

    def move(self, host: str = OTHER_HOST) -> None:
        """Go on at another host of the store."""
        self.host = host
        self.store.session.boot_clock = self.boots[host]
