"""From what the kernel said of a caller to what the account makes of it now.

In ``account`` mode the groups are the account's groups now, so the answer can change from call to
call; in ``process`` mode they are what the kernel captured at connect, and never change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused
from keyside_sidecar.peer.login import borrowed_refusal, person_refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyside_sidecar.config import IdentitySettings
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.peer.membership import AccountGroups, Membership


class Identifier:
    """Says who callers are now.

    The value for one that was accepted is the same for as long as the answer is, so that others can
    keep what they know of it.

    Args:
        settings: The configuration's ``[identity]``.
        membership: Knows the accounts' groups; None in ``process`` mode.
    """

    def __init__(self, settings: IdentitySettings, membership: Membership | None) -> None:
        if (membership is None) != (settings.membership == "process"):
            raise ValueError("account mode needs a Membership, and process mode has none")
        self._settings = settings
        self._membership = membership
        # By the caller that was accepted: the answer (None: it never changes), and who it is now.
        self._known: WeakKeyDictionary[Caller, tuple[AccountGroups | None, Caller]] = (
            WeakKeyDictionary()
        )

    def known(self, accepted: Caller) -> Caller | None:
        """Return who a caller is now if that needs no waiting, else None.

        Args:
            accepted: The caller as it was accepted, or as it was identified before.
        """
        if self._membership is None or accepted.standing is not None:
            return self._fix(accepted)
        answer = self._membership.fresh(accepted.uid)
        return None if answer is None else self._recall(accepted, answer)

    async def identify(self, accepted: Caller) -> Caller:
        """Return who a caller is now, asking the name service where its answer is too old.

        Never raises: a caller that can't be identified has a ``standing`` that says why.
        """
        now = self.known(accepted)
        if now is not None or self._membership is None:
            return now if now is not None else self._fix(accepted)
        return await self._ask(accepted, self._membership.identify)

    async def identify_afresh(self, accepted: Caller) -> Caller:
        """Return who a caller is by what the name service says now; never from memory.

        Never raises, as for :meth:`identify`.
        """
        if self._membership is None or accepted.standing is not None:
            return self._fix(accepted)
        return await self._ask(accepted, self._membership.identify_afresh)

    async def groups_of(self, uid: int, *, afresh: bool = False) -> frozenset[int] | None:
        """Return the groups that another account is in now; None where there is no such account.

        Args:
            uid: The account's.
            afresh: Whether what is remembered won't do.

        Raises:
            Refused: NAME_SERVICE_UNAVAILABLE: that can't be known now.
        """
        if self._membership is None:
            return None
        ask = self._membership.identify_afresh if afresh else self._membership.identify
        try:
            return (await ask(uid)).gids
        except Refused as refused:
            if refused.reason is Reason.ACCOUNT_UNKNOWN:
                return None
            raise

    async def _ask(
        self, accepted: Caller, ask: Callable[[int], Awaitable[AccountGroups]]
    ) -> Caller:
        try:
            answer = await ask(accepted.uid)
        except Refused as refused:
            return self._make(accepted, frozenset(), standing=refused.reason)
        return self._recall(accepted, answer)

    def _recall(self, accepted: Caller, answer: AccountGroups) -> Caller:
        found = self._known.get(accepted)
        if found is not None and found[0] is answer:
            return found[1]
        now = self._make(accepted, answer.gids, account=answer.name)
        self._known[accepted] = answer, now
        return now

    def _fix(self, accepted: Caller) -> Caller:
        """Return who a caller is whose groups the kernel has said, for ever."""
        found = self._known.get(accepted)
        if found is not None:
            return found[1]
        gids = frozenset((accepted.gid, *(accepted.process_gids or ())))
        now = self._make(accepted, gids, standing=accepted.standing)
        self._known[accepted] = None, now
        return now

    def _make(
        self,
        accepted: Caller,
        gids: frozenset[int],
        *,
        standing: Reason | None = None,
        account: str = "",
    ) -> Caller:
        person, borrowed = (
            refuse(
                accepted.login_uid,
                accepted.session_id,
                readable=accepted.login_readable,
                account_uid=accepted.uid,
                mode=self._settings.person_logins,
            )
            for refuse in (person_refusal, borrowed_refusal)
        )
        return replace(
            accepted,
            standing=standing,
            person=person,
            borrowed=borrowed,
            account=account,
            gids=gids,
        )
