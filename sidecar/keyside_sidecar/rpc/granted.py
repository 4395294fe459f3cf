"""Serves a person whose grant covers the call.

What is asked is recorded, the grant is looked at, the envelope is opened in memory, the use is
counted in the store, what came of it is recorded; only then is anything answered (I8, I9). So an
envelope that does not open costs no use, a grant that ended meanwhile gives nothing away, and one
that is over or does not cover the call uses up nothing of the key.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.access.policy import Operation
from keyside_sidecar.access.requests import AccessItem, AccessOperation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

    from keyside_sidecar.elevation.office import AccessOffice
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.rpc.guard import Call
    from keyside_sidecar.rpc.journal import Journal
    from keyside_sidecar.rpc.methods import Method

_OPERATIONS: Final = {
    Operation.DECRYPT: AccessOperation.DECRYPT,
    Operation.REWRAP: AccessOperation.REWRAP,
    Operation.ENCRYPT: AccessOperation.ENCRYPT,
}


class GrantedCalls:
    """Serves calls that a temporary credential came with.

    Args:
        office: Knows the grants.
        journal: Records their uses.
        identifier: For the callers' account names.
    """

    def __init__(self, office: AccessOffice, journal: Journal, identifier: Identifier) -> None:
        self._office = office
        self._journal = journal
        self._identifier = identifier

    async def serve(
        self,
        method: Method,
        call: Call,
        request: Any,
        credential: str,
        serve: Callable[[Call, Any], Awaitable[Message]],
    ) -> Message:
        """Serve a call by its grant.

        Args:
            method: Its row; a grant can cover it.
            call: The call, which policy alone refuses.
            request: The request.
            credential: What came with it.
            serve: Opens or seals.

        Raises:
            Refused: The credential is not this caller's.
            AccessRefused: The credential is none.
            AuthenticationFailed: Whether the account is locked can't be known now.
            StoreError: The store is away: no grant is used without it.
            Described: Anything later; that was recorded.
        """
        account = self._identifier.account_name(call.connection)
        use = await self._office.find_use(call.subject, account, call.key, credential)
        self._journal.require_patience(call)

        async def check_open_and_spend() -> Message:
            self._office.check(use, self._describe(method, call, request, None))
            response = await serve(call, request)
            await self._office.spend(use, self._describe(method, call, request, response))
            return response

        return await self._journal.keep_use(
            call, method, request, grant_id=use.grant_id, serve=check_open_and_spend
        )

    def _describe(self, method: Method, call: Call, request: Any, response: Any) -> AccessItem:
        """Return what a grant is asked to cover. Rewrapping sees no context.

        Of what is only going to be sealed there is no envelope yet; the version is the current one.
        """
        assert call.key is not None  # noqa: S101  (grants are for calls about a key)
        operation = _OPERATIONS[method.operation]
        header = call.header
        if header is not None:
            version, envelope = int(header.version_number), request.envelope
        elif response is not None:
            version, envelope = response.version.number, response.envelope
        else:
            version, envelope = self._office.current_version(call.key), b""
        context = None if operation is AccessOperation.REWRAP else dict(request.context)
        digest = hashlib.sha256(envelope).digest()
        return AccessItem(operation, call.key, version, context, digest)
