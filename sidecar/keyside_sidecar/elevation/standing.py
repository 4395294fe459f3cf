"""Whether people are still who they were: their groups, and whether their accounts are locked.

Groups are what the name service says; whether an account is locked or has expired is asked of PAM
in a helper process. Both are believed for ``membership_ttl`` where a grant is used or looked after.
Where people decide, both are asked afresh. Where either can't be known, nothing is allowed, and
nobody's grant is ended either.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import AuthenticationFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside_sidecar.clock import Clock
    from keyside_sidecar.pam.authenticator import Authenticator
    from keyside_sidecar.peer.identity import Identifier

# Of the processes that ask PAM; the supervisor has room for few.
_ASKED_AT_ONCE: Final = 4
# What says that the account is not in order, and not that this can't be known now.
_FALLEN: Final = frozenset({"locked", "expired", "password_expired", "unknown_account", "denied"})
_MAX_REMEMBERED: Final = 4096


class Standing:
    """Asks about people.

    Args:
        identifier: For groups.
        authenticator: For accounts; None without ``[elevation]``.
        clock: For the age of answers.
        ttl_s: How long an answer about an account is believed, in seconds.
    """

    def __init__(
        self,
        identifier: Identifier,
        authenticator: Authenticator | None,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._identifier = identifier
        self._authenticator = authenticator
        self._clock = clock
        self._ttl_s = ttl_s
        # When an account was last found in order. That it was not is never remembered.
        self._sound_s: dict[int, float] = {}
        self._asking: dict[int, asyncio.Lock] = {}

    async def authenticate(self, uid: int, password: bytes) -> None:
        """Have PAM check a person's password and account.

        Raises:
            AuthenticationFailed: It is not theirs, the account is not in order, too many tries
                failed lately, or PAM can't be asked.
        """
        if self._authenticator is None:
            raise AuthenticationFailed("unavailable")
        began_s = self._clock.monotonic_s()
        await self._authenticator.authenticate(uid, password)
        self._remember(uid, began_s)

    async def read_groups(
        self, uids: Iterable[int], *, afresh: bool = False
    ) -> dict[int, frozenset[int]]:
        """Return each account's groups now; none where there is no such account.

        Args:
            uids: The accounts'.
            afresh: Whether what is remembered won't do.

        Raises:
            Refused: The name service is away.
        """
        asked = tuple(uids)
        # At once: the less time between the first answer and the decision, the better.
        answers = await asyncio.gather(
            *(self._identifier.groups_of(uid, afresh=afresh) for uid in asked)
        )
        return {uid: gids or frozenset() for uid, gids in zip(asked, answers, strict=True)}

    async def find_fallen(self, uids: Iterable[int], *, afresh: bool = False) -> frozenset[int]:
        """Return those whose account is locked, has expired or is gone.

        Args:
            uids: The accounts'.
            afresh: Whether what is remembered won't do.

        Raises:
            AuthenticationFailed: That can't be known of one of them now.
        """
        asked_s = self._clock.monotonic_s()
        since_s = asked_s if afresh else float("-inf")
        asked, few = tuple(uids), asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(uid: int) -> bool:
            async with few:
                return await self._has_fallen(uid, since_s)

        fallen = await asyncio.gather(*map(ask, asked))
        return frozenset(uid for uid, has in zip(asked, fallen, strict=True) if has)

    async def _has_fallen(self, uid: int, since_s: float) -> bool:
        """Return whether an account is not in order, by an answer from after ``since_s``."""
        async with self._asking.setdefault(uid, asyncio.Lock()):
            now_s = self._clock.monotonic_s()
            found_s = self._sound_s.get(uid, float("-inf"))
            if found_s > since_s and now_s - found_s < self._ttl_s:
                return False
            if self._authenticator is None:
                raise AuthenticationFailed("unavailable")
            try:
                await self._authenticator.check_account(uid, afresh=since_s >= 0)
            except AuthenticationFailed as error:
                if error.outcome not in _FALLEN:
                    raise
                self._sound_s.pop(uid, None)
                return True
            self._remember(uid, now_s)
            return False

    def _remember(self, uid: int, checked_s: float) -> None:
        if len(self._sound_s) >= _MAX_REMEMBERED:
            self._sound_s.clear()
            self._asking = {held: lock for held, lock in self._asking.items() if lock.locked()}
        self._sound_s[uid] = checked_s
