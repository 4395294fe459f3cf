"""Authorise: whether policy allows a call, or a grant may.

Policy decides first. Where it refuses a person, and a temporary credential came with the call, the
grant behind that credential is found; whether it covers the call is looked at when it is used
(grant.py). A batch is refused as a whole where policy allows the caller no key at all (or the
credential is no good); otherwise each item is judged for itself.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused
from keyside_sidecar.server.call import BatchCall, UnaryCall
from keyside_sidecar.services.batch import Batch
from keyside_sidecar.services.batches import NOT_READ
from keyside_sidecar.services.tally import Tally

if TYPE_CHECKING:
    from keyside.names import KeyName
    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.elevation.office import AccessOffice
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.server.call import BatchRpc, Exchange, Rpc, UnaryRpc
    from keyside_sidecar.services.shapes import Command

_GRANT_HELPS: Final = frozenset({Reason.PEER_PERSON_LOGIN, Reason.NOT_ALLOWED})


class Authoriser:
    """Asks policy, and finds grants.

    What policy has allowed a caller is remembered for as long as the caller is the same. The policy
    is the worker's for life, and only keys that it names are remembered.

    Args:
        policy: What is allowed.
        office: Knows the grants.
    """

    def __init__(self, policy: Policy, office: AccessOffice) -> None:
        self._policy = policy
        self._office = office
        self._allowed: WeakKeyDictionary[Caller, set[tuple[Rpc, KeyName | None]]] = (
            WeakKeyDictionary()
        )

    async def authorise(
        self, rpc: UnaryRpc, caller: Caller, command: Command, exchange: Exchange
    ) -> UnaryCall:
        """Return the call, if it is allowed.

        Raises:
            Refused: It is not, or the credential is not this caller's.
            AccessRefused: The credential is none.
            AuthenticationFailed: Whether the account is locked can't be known now.
            StoreError: The store is away: no grant is used without it.
        """
        key = command.key
        allowed = self._allowed.get(caller)
        if allowed is not None and (rpc, key) in allowed:
            return UnaryCall(rpc, caller, command)
        reason = self._policy.decide(caller, rpc.operation, key)
        if reason is None:
            if key is None or key in self._policy.keys:
                self._allowed.setdefault(caller, set()).add((rpc, key))
            return UnaryCall(rpc, caller, command)
        credential = _find_credential(rpc, reason, exchange)
        if credential is None:
            raise Refused(reason)
        return UnaryCall(rpc, caller, command, await self._office.find_use(caller, key, credential))

    def admit_batch(self, rpc: BatchRpc, caller: Caller, exchange: Exchange) -> str | None:
        """Return the credential that a batch may be served with; None: by policy alone.

        Raises:
            Refused: Policy allows the caller no key for this, and no credential came along.
        """
        reason = self._policy.decide_for_any(caller, rpc.operation)
        credential = _find_credential(rpc, reason or Reason.NOT_ALLOWED, exchange)
        if reason is not None and credential is None:
            raise Refused(reason)
        return credential

    def authorise_batch(self, rpc: BatchRpc, caller: Caller) -> BatchCall:
        """Return the call of a batch that was admitted, by policy alone and not read yet."""
        decide = cache(partial(self._policy.decide, caller, rpc.operation))
        return BatchCall(rpc, caller, NOT_READ, Batch(decide, Tally(rpc.path)))

    async def add_grant(self, call: BatchCall, credential: str) -> BatchCall:
        """Return a batch's call with the grant behind a credential.

        Raises:
            Refused: The credential is not this caller's.
            AccessRefused: The credential is none.
            AuthenticationFailed: Whether the account is locked can't be known now.
            StoreError: The store is away: no grant is used without it.
        """
        return replace(call, use=await self._office.find_use(call.caller, None, credential))

    def refuse_unread(self, rpc: Rpc, caller: Caller, exchange: Exchange) -> None:
        """Refuse a caller whose request can't be read, where nothing it says would be allowed.

        Who may do this with no key at all is told so first.

        Raises:
            Refused: Nothing would.
        """
        reason = self._policy.decide(caller, rpc.operation, None)
        if reason in {None, Reason.NOT_ALLOWED}:
            return
        if _find_credential(rpc, reason, exchange) is None:
            raise Refused(reason)

    def explain_refusal(self, caller: Caller) -> Reason | None:
        """Return why a caller that is allowed nothing is; None: it is allowed something."""
        if self._policy.is_allowed_anything(caller):
            return None
        return caller.standing or caller.person or Reason.NOT_ALLOWED


def _find_credential(rpc: Rpc, reason: Reason, exchange: Exchange) -> str | None:
    """Return the temporary credential that came with a call which policy alone refuses.

    None where no grant could help: an operator never uses keys, and some operations are not to be
    granted.
    """
    if not rpc.grantable or reason not in _GRANT_HELPS:
        return None
    return exchange.find_credential()
