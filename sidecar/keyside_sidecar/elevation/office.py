"""Carries out what people ask for: requests, decisions, activation, uses, and their end.

What may be done is decided by pure code (access/elevation.py) inside the transaction that does it,
on the row as the store has it then. Here is what that code can't do: authenticate, ask who is in
which group now, and say what happened. The caller's own records, before and after, are the
recorder's (server/pipeline/record.py); what ends by itself is recorded here.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from keyside.timestamps import format_timestamp
from keyside_sidecar.access import elevation, grants
from keyside_sidecar.access.credential import hash_credential, make_access_id, make_credential
from keyside_sidecar.access.facts import Facts, uids_to_check
from keyside_sidecar.access.policy import Operation, Subject
from keyside_sidecar.access.prospects import foresee
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.refusals import refuse_as
from keyside_sidecar.access.requests import AccessState
from keyside_sidecar.errors import (
    AccessFactsMissing,
    AccessRefused,
    AuditUnavailable,
    AuthenticationFailed,
    Refused,
)
from keyside_sidecar.log import event
from keyside_sidecar.store.records import from_microseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from keyside.names import KeyName
    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.access.prospects import Prospect
    from keyside_sidecar.access.requests import (
        AccessId,
        AccessItem,
        AccessRequest,
        AccessWish,
        EndReason,
        Moment,
    )
    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.elevation.standing import Standing
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.store.access_rows import AccessUse
    from keyside_sidecar.store.elevation import ChangedAccess

    T = TypeVar("T")

_log = logging.getLogger(__name__)

# How often a decision is looked at again because someone else has decided meanwhile.
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class PendingUse:
    """A use of a grant that is not counted yet.

    Args:
        grant_id: The grant.
        credential_hash: 32 bytes.
        holder: Who uses it.
        found: The grant as it was when its credential was looked up.
        moment: When that was, by the store's clock.
        facts: Who is in which group.
    """

    grant_id: AccessId
    credential_hash: bytes
    holder: Caller
    found: AccessRequest
    moment: Moment
    facts: Facts


class AccessOffice:
    """Access to keys for people.

    Args:
        policy: What is allowed.
        keyring: The way to the store, and what rolls keys over.
        standing: Knows people's groups and accounts.
        audit: The way to the audit log.
        host: This host, as requests name it.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        keyring: Keyring,
        standing: Standing,
        audit: AuditSender,
        host: str,
    ) -> None:
        self._policy = policy
        self._keyring = keyring
        self._standing = standing
        self._audit = audit
        self._host = host

    # -- what people ask for ------------------------------------------------------------------

    async def authenticate(self, caller: Caller, password: bytes) -> None:
        """Have PAM check who is calling.

        Raises:
            AuthenticationFailed: It is not they, or that can't be known now.
        """
        await self._standing.authenticate(caller.uid, password)

    async def request(self, requester: Caller, wish: AccessWish) -> AccessRequest:
        """Write a request down.

        Raises:
            BadRequest: A field of it is wrong.
            AccessRefused: Too many are open already.
            StoreError: The store is away, or fails its checks; nothing was written.
        """
        await self._refuse_operators(requester)
        facts = self._facts({requester.uid: requester.gids})
        access_id = make_access_id(os.urandom(8))

        def make(open_requests: Sequence[AccessRequest], moment: Moment) -> AccessRequest:
            return elevation.make_request(wish, requester, facts, moment, access_id, open_requests)

        return await self._change(partial(self._keyring.store.access.insert, make))

    async def check_wish(self, requester: Caller, wish: AccessWish) -> None:
        """Go through all that :meth:`request` looks at, and write nothing.

        Raises:
            BadRequest: As for :meth:`request`.
            AccessRefused: As for :meth:`request`.
            StoreError: The store is away, or fails its checks.
        """
        await self._refuse_operators(requester, afresh=False)  # nothing is decided here
        facts = self._facts({requester.uid: requester.gids})
        moment = await self._keyring.look(self._keyring.store.access.read_moment)
        access_id = make_access_id(os.urandom(8))
        elevation.make_request(wish, requester, facts, moment, access_id, await self.list_open())

    async def approve(self, access_id: AccessId, approver: Caller, comment: str) -> AccessRequest:
        """Add an approval at the level that is next.

        Raises:
            AccessRefused: It does not count, or the request is not to be decided.
            Refused: The name service, which knows who is in which group, is away.
            StoreError: The store is away, or fails its checks; nothing was written.
        """
        return await self._decide(
            access_id,
            approver,
            lambda facts, request, moment: elevation.approve(
                request, moment, facts, approver, comment
            ),
        )

    async def deny(self, access_id: AccessId, approver: Caller, reason: str) -> AccessRequest:
        """End a request that is not active yet.

        Raises:
            AccessRefused: The caller may not, or it is too late.
            Refused: As for :meth:`approve`.
            StoreError: As for :meth:`approve`.
        """
        return await self._end(
            access_id,
            approver,
            lambda facts, request, moment: elevation.deny(request, moment, facts, approver, reason),
        )

    async def cancel(self, access_id: AccessId, requester: Caller) -> AccessRequest:
        """Take the caller's own request back.

        Raises:
            AccessRefused: It is another's, or active.
            Refused: As for :meth:`approve`.
            StoreError: As for :meth:`approve`.
        """
        return await self._end(
            access_id,
            requester,
            lambda facts, request, moment: elevation.cancel(request, moment, facts, requester),
        )

    async def activate(self, access_id: AccessId, requester: Caller) -> tuple[AccessRequest, str]:
        """Make the grant of an approved request, and its credential, which is kept nowhere.

        Raises:
            AccessRefused: It is another's, not approved (any more), or over.
            AuthenticationFailed: Whether an approver's account is locked can't be known now.
            Refused: As for :meth:`approve`.
            StoreError: As for :meth:`approve`.
        """
        await self._refuse_operators(requester)
        credential = make_credential(os.urandom(32))
        hashed = hash_credential(credential)
        changed = await self._decide(
            access_id,
            requester,
            lambda facts, request, moment: elevation.activate(
                request, moment, facts, requester, hashed
            ),
        )
        return changed, credential

    async def revoke(self, access_id: AccessId, revoker: Caller, reason: str) -> AccessRequest:
        """End a request or a grant; once this returns, the store refuses its next use.

        Raises:
            AccessRefused: The caller may not.
            Refused: As for :meth:`approve`.
            StoreError: As for :meth:`approve`.
        """
        return await self._end(
            access_id,
            revoker,
            lambda facts, request, moment: elevation.revoke(
                request, moment, facts, revoker, reason
            ),
        )

    # -- what people see ----------------------------------------------------------------------

    async def find(self, access_id: AccessId) -> AccessRequest | None:
        """Return a request; None where there is none of that id.

        Raises:
            StoreError: The store is away, or fails its checks.
        """
        return await self._keyring.look(partial(self._keyring.store.access.find, access_id))

    async def foresee(
        self, actor: Caller, requests: Sequence[AccessRequest]
    ) -> list[tuple[Prospect, ...]]:
        """Return what somebody may do about each of some requests now, and why not the rest.

        What can't be known now (a name service or PAM that is away) is left out.

        Raises:
            StoreError: The store is away, or fails its checks.
        """
        open_ones = [one for one in requests if one.lives]
        if not open_ones:
            return [() for _ in requests]
        moment = await self._keyring.look(self._keyring.store.access.read_moment)
        uids = frozenset[int]().union(*map(uids_to_check, open_ones))
        gids = {actor.uid: actor.gids}
        fallen: frozenset[int] = frozenset()
        operator: AccessRefused | None = None
        with suppress(Refused, AuthenticationFailed):
            gids |= await self._standing.read_groups(uids - {actor.uid})
            if len(requests) == 1:  # PAM is asked account by account
                fallen = await self._standing.find_fallen(uids)
        try:
            await self._refuse_operators(actor, afresh=False)
        except Refused as error:
            operator = refuse_as(error.reason)
        facts = self._facts(gids, fallen)
        return [
            foresee(one, moment, facts, actor, activating=operator) if one.lives else ()
            for one in requests
        ]

    async def list_open(self) -> list[AccessRequest]:
        """Return what has not ended, oldest first.

        Raises:
            StoreError: The store is away, or fails its checks.
        """
        return await self._keyring.look(self._keyring.store.access.list_open)

    async def list_ended(self, *, before: int | None, limit: int) -> list[AccessRequest]:
        """Return what has ended, newest first; the next page begins before its last number.

        Raises:
            StoreError: The store is away, or fails its checks.
        """
        listed = partial(self._keyring.store.access.list_ended, before=before, limit=limit)
        return await self._keyring.look(listed)

    async def read_uses(self, access_id: AccessId, limit: int) -> list[AccessUse]:
        """Return what a grant was used for, oldest first.

        Raises:
            StoreError: The store is away, or fails its checks.
        """
        return await self._keyring.look(
            partial(self._keyring.store.access.read_uses, access_id, limit=limit)
        )

    # -- uses ---------------------------------------------------------------------------------

    async def find_use(self, caller: Caller, key: str | None, text: str) -> PendingUse:
        """Find the grant behind a credential.

        Args:
            caller: Who calls.
            key: The key that it is about; None for the grant's own.
            text: The credential.

        Raises:
            Refused: No grant may help this caller, or the credential is not theirs.
            AccessRefused: The credential is none.
            AuthenticationFailed: Whether the account is locked can't be known now.
            StoreError: The store is away: grants are not used without it.
        """
        if key is None:  # the rule for activating is the same, without a key
            reason = self._policy.decide(caller, Operation.ACTIVATE_ACCESS, None)
        else:
            reason = self._policy.decide(caller, Operation.USE_ACCESS, key)
        if reason is not None:
            raise Refused(reason)
        hashed = hash_credential(text)
        book = self._keyring.store.access
        answer = await self._keyring.look(partial(book.find_by_credential, hashed))
        if answer is None or answer[0].requester.uid != caller.uid:
            raise Refused(Reason.CREDENTIAL_REFUSED)
        found, moment = answer
        fallen = await self._standing.find_fallen([caller.uid])
        facts = self._facts({caller.uid: caller.gids}, fallen)
        return PendingUse(found.id, hashed, caller, found, moment, facts)

    def check(self, use: PendingUse, item: AccessItem) -> None:
        """Refuse a use that the grant, as it was found, does not cover: before anything is opened.

        Raises:
            AccessRefused: Why.
        """
        _require_allowed(self.check_each(use, [item]))

    def check_each(
        self, use: PendingUse, items: Sequence[AccessItem]
    ) -> Sequence[AccessRefused | None]:
        """Return why the grant, as it was found, does not cover items; None for what it covers.

        Raises:
            AccessRefused: It covers nothing any more.
        """
        return grants.judge(use.found, use.moment, use.facts, use.holder, items)

    def current_version(self, key: KeyName) -> int:
        """Return the number of the version that seals; 0 where it is not in memory."""
        return self._keyring.current_number(key) or 0

    async def spend(self, use: PendingUse, item: AccessItem) -> None:
        """Count a use in the store; it may be answered only after this (I9).

        Raises:
            AccessRefused: The grant is over by now, or does not cover it.
            StoreError: The store is away, or fails its checks.
        """
        _require_allowed(await self.spend_each(use, [item]))

    async def spend_each(
        self, use: PendingUse, items: Sequence[AccessItem]
    ) -> Sequence[AccessRefused | None]:
        """Count a use for each item that the grant covers; return why the others are refused.

        Raises:
            AccessRefused: The grant is over by now.
            StoreError: The store is away, or fails its checks.
        """

        def decide(request: AccessRequest, moment: Moment) -> grants.Usage:
            return grants.use(request, moment, use.facts, use.holder, items)

        call = partial(self._keyring.store.access.use, use.credential_hash, decide, items)
        try:
            counted = await self._keyring.change(call)
        except AccessRefused as error:
            if error.after is not None:
                await self.tell(use.found, error.after)
            raise
        await self.tell(counted.before, counted.after)
        return counted.verdicts

    # -- what happens by itself ---------------------------------------------------------------

    async def end_all(self, reason: EndReason, comment: str) -> int:
        """End every request and grant; return how many.

        Raises:
            StoreError: The store is away, or fails its checks; nothing was changed.
        """
        ended = await self._keyring.change(
            partial(self._keyring.store.access.end_all, reason, comment)
        )
        for change in ended:
            await self.tell(change.before, change.after)
        return len(ended)

    async def tell(self, before: AccessRequest | None, after: AccessRequest) -> None:
        """Record what a request came to by itself, if it did: an end, or approvals that are struck.

        Ending takes something away, and waits for no log: where that fails, it is written later.
        """
        name = _name_turn(before, after)
        if name is None:
            return
        body = {
            "event": name,
            "phase": "outcome",
            "access": after.id,
            "key": after.key,
            "outcome": "ok",
            "details": _describe_end(after),
        }
        event(
            _log,
            logging.INFO,
            "access changed",
            what=name,
            access=after.id,
            key=after.key,
            reason=after.end_reason,
        )
        with suppress(AuditUnavailable):  # an outcome is kept, and written as soon as it can be
            await self._audit.record(body)

    def _facts(self, gids: Mapping[int, frozenset[int]], fallen: Iterable[int] = ()) -> Facts:
        return Facts(self._policy, self._host, gids, frozenset(fallen))

    async def _decide(
        self,
        access_id: AccessId,
        actor: Caller,
        decide: Callable[[Facts, AccessRequest, Moment], AccessRequest],
    ) -> AccessRequest:
        """Decide with what there is to know about all whose approval counts.

        All of it is asked afresh: somebody who was locked out or left the group a moment ago counts
        no more. Whoever decides has just been asked about (services/access.py).
        """
        uids: frozenset[int] = frozenset()
        for last in (*[False] * (_TRIES - 1), True):
            found = await self.find(access_id)
            if found is not None:
                uids = uids_to_check(found) | uids
            own = actor
            others = uids - {own.uid}
            gids = {**await self._standing.read_groups(others, afresh=True), own.uid: own.gids}
            fallen = await self._standing.find_fallen(others, afresh=True)
            fallen |= await self._standing.find_fallen(uids & {own.uid})
            try:
                return await self._turn(access_id, decide, self._facts(gids, fallen), found)
            except AccessFactsMissing as error:
                if last:
                    raise
                uids |= frozenset(error.uids)
        raise AssertionError("the last try returns or raises")

    async def _end(
        self,
        access_id: AccessId,
        actor: Caller,
        decide: Callable[[Facts, AccessRequest, Moment], AccessRequest],
    ) -> AccessRequest:
        """Take something away: that waits for no name service, and for nobody else's changes."""
        found = await self.find(access_id)
        facts = self._facts({actor.uid: actor.gids})
        return await self._turn(access_id, decide, facts, found, urgent=True)

    async def _turn(
        self,
        access_id: AccessId,
        decide: Callable[[Facts, AccessRequest, Moment], AccessRequest],
        facts: Facts,
        found: AccessRequest | None,
        *,
        urgent: bool = False,
    ) -> AccessRequest:
        book = self._keyring.store.access
        call = partial(book.change, access_id, partial(decide, facts))
        return await self._change(call, found, urgent=urgent)

    async def _refuse_operators(self, caller: Caller, *, afresh: bool = True) -> None:
        """Refuse a person who is an operator by another account of theirs.

        Raises:
            Refused: They are, or that can't be known now.
        """
        settings = self._policy.elevation
        if settings is None:
            return
        person = settings.person_of(caller.uid)
        others = [uid for uid, name in settings.people.items() if name == person]
        for uid, gids in (await self._standing.read_groups(others, afresh=afresh)).items():
            if self._policy.operators.include(Subject(uid, gids)):
                raise Refused(Reason.OPERATOR_MAY_NOT_USE_KEYS)

    async def _change(
        self,
        call: Callable[[], ChangedAccess],
        found: AccessRequest | None = None,
        *,
        urgent: bool = False,
    ) -> AccessRequest:
        try:
            return (await self._keyring.change(call, urgent=urgent)).after
        except AccessRefused as error:
            if error.after is not None:
                await self.tell(found, error.after)
            raise


def _require_allowed(verdicts: Iterable[AccessRefused | None]) -> None:
    for verdict in verdicts:
        if verdict is not None:
            raise verdict


def _name_turn(before: AccessRequest | None, after: AccessRequest) -> str | None:
    """Return what the audit log calls what a request came to; None for nothing to be told."""
    was_over = before is not None and not before.lives
    if not after.lives and not was_over:
        return "access.ended"
    if after.state is AccessState.ENDED and before is not None and before.is_open:
        return "access.closed"
    if _count_struck(after) > (0 if before is None else _count_struck(before)):
        return "access.struck"
    return None


def _count_struck(request: AccessRequest) -> int:
    return sum(bool(approval.struck) for level in request.levels for approval in level.approvals)


def _describe_end(request: AccessRequest) -> dict[str, object]:
    details: dict[str, object] = {
        "state": str(request.state),
        "requester": {"uid": request.requester.uid, "account": request.requester.account},
        "used": request.used,
    }
    if request.end_reason is not None:
        details["end_reason"] = str(request.end_reason)
    if request.ended_us is not None:
        details["ended_at"] = format_timestamp(from_microseconds(request.ended_us))
    if request.opened:
        details["opened"] = [[one.first, one.last] for one in request.opened]
    if struck := _count_struck(request):
        details["struck"] = struck
    return details
