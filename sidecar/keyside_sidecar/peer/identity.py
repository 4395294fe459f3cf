"""From a connection's credential to what policy looks at.

In ``account`` mode the groups are the account's groups now, so the answer can change from call to
call; in ``process`` mode they are what the kernel captured at connect, and never change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside_sidecar.access.policy import Subject
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused
from keyside_sidecar.peer.login import borrowed_refusal, person_refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyside_sidecar.config import IdentitySettings
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.peer.membership import AccountGroups, Membership


class Identifier:
    """Makes policy's view of callers.

    Args:
        settings: The configuration's ``[identity]``.
        membership: Knows the accounts' groups; None in ``process`` mode.
    """

    def __init__(self, settings: IdentitySettings, membership: Membership | None) -> None:
        if (membership is None) != (settings.membership == "process"):
            raise ValueError("account mode needs a Membership, and process mode has none")
        self._settings = settings
        self._membership = membership

    def known(self, connection: Connection) -> Subject | None:
        """Return the caller's subject if that needs no waiting, else None."""
        if self._membership is None or connection.credential.refusal is not None:
            return self._fixed(connection)
        answer = self._membership.fresh(connection.credential.uid)
        if answer is None:
            return None
        if connection.subject_basis is not answer:
            connection.subject = self._make(connection, answer.gids)
            connection.subject_basis = answer
        return connection.subject

    async def identify(self, connection: Connection) -> Subject:
        """Return the caller's subject, asking the name service where its answer is too old.

        Never raises: a caller that can't be identified has a subject whose ``standing`` says why.
        """
        subject = self.known(connection)
        if subject is not None or self._membership is None:
            return subject if subject is not None else self._fixed(connection)
        return await self._ask(connection, self._membership.identify)

    async def identify_afresh(self, connection: Connection) -> Subject:
        """Return the caller's subject by what the name service says now; never from memory.

        Never raises, as for :meth:`identify`.
        """
        if self._membership is None or connection.credential.refusal is not None:
            return self._fixed(connection)
        return await self._ask(connection, self._membership.identify_afresh)

    async def _ask(
        self, connection: Connection, ask: Callable[[int], Awaitable[AccountGroups]]
    ) -> Subject:
        try:
            answer = await ask(connection.credential.uid)
        except Refused as refused:
            return self._make(connection, frozenset(), refused.reason)
        connection.subject = self._make(connection, answer.gids)
        connection.subject_basis = answer
        return connection.subject

    def account_name(self, connection: Connection) -> str:
        """Return the caller's account name if it is known without waiting, else ``""``."""
        if self._membership is None or connection.credential.refusal is not None:
            return ""
        answer = self._membership.fresh(connection.credential.uid)
        return answer.name if answer is not None else ""

    def describe(self, connection: Connection) -> dict[str, object]:
        """Return what the audit log says of a caller."""
        credential = connection.credential
        found: dict[str, object] = {
            "pid": credential.pid,
            "uid": credential.uid,
            "gid": credential.gid,
        }
        if account := self.account_name(connection):
            found["account"] = account
        if credential.login_uid is not None:
            found["login_uid"] = credential.login_uid
        if credential.exe is not None:
            found["exe"] = credential.exe
        return found

    def _fixed(self, connection: Connection) -> Subject:
        if connection.subject is None:
            credential = connection.credential
            gids = frozenset((credential.gid, *(credential.groups or ())))
            connection.subject = self._make(connection, gids, credential.refusal)
        return connection.subject

    def _make(
        self, connection: Connection, gids: frozenset[int], standing: Reason | None = None
    ) -> Subject:
        credential = connection.credential
        person, borrowed = (
            refuse(
                credential.login_uid,
                credential.session_id,
                readable=credential.login_readable,
                account_uid=credential.uid,
                mode=self._settings.person_logins,
            )
            for refuse in (person_refusal, borrowed_refusal)
        )
        return Subject(credential.uid, gids, standing=standing, person=person, borrowed=borrowed)

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
