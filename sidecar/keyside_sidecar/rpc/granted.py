"""Serves a person whose grant covers the call.

What is asked is recorded, the grant is looked at, the envelope is opened in memory, the use is
counted in the store, what came of it is recorded; only then is anything answered (I8, I9). So an
envelope that does not open costs no use, a grant that ended meanwhile gives nothing away, and one
that is over or does not cover the call uses up nothing of the key.

Each item of a batch is one use. All of a batch's uses are counted at once, and leave one intent and
one outcome.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from keyside.envelope import cut_wrapping_header, parse_wrapping_header
from keyside.errors import EnvelopeRejected
from keyside.names import KeyName
from keyside.v1 import encryption_pb2
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.refusals import refuse_as
from keyside_sidecar.access.requests import AccessItem, AccessOperation
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.rpc.encryption_messages import copy_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from google.protobuf.message import Message

    from keyside_sidecar.elevation.office import AccessOffice, PendingUse
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.rpc.guard import Call
    from keyside_sidecar.rpc.journal import Journal
    from keyside_sidecar.rpc.methods import Method

_RESPONSES: Final[dict[Operation, Any]] = {
    Operation.DECRYPT: encryption_pb2.BatchDecryptResponse,
    Operation.REWRAP: encryption_pb2.BatchRewrapResponse,
    Operation.ENCRYPT: encryption_pb2.BatchEncryptResponse,
}
# Each is a row that is written before anything is answered.
MAX_GRANTED_ITEMS: Final = 1_000

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

    async def serve_batch(
        self,
        method: Method,
        call: Call,
        request: Any,
        credential: str,
        serve: Callable[[Call, Any], Awaitable[bytes]],
    ) -> bytes:
        """Serve a batch by a grant; items that policy alone allows need none.

        Args:
            method: Its row; a grant can cover it.
            call: The call, with its ``batch``.
            request: The request.
            credential: What came with it.
            serve: Opens or seals, and returns the serialised response.

        Raises:
            BadRequest: There are too many items.
            Refused: As for :meth:`serve`, and so on.
        """
        account = self._identifier.account_name(call.connection)
        use = await self._office.find_use(call.subject, account, None, credential)
        self._journal.require_patience(call)

        async def check_open_and_spend() -> bytes:
            _require_few(request)
            wished = self._judge(use, method, call, request)
            response = _RESPONSES[method.operation].FromString(await serve(call, request))
            await self._spend_each(use, call, wished, response.results)
            serialised: bytes = response.SerializeToString()
            return serialised

        return await self._journal.keep_use(
            call, method, request, grant_id=use.grant_id, serve=check_open_and_spend
        )

    def _judge(
        self, use: PendingUse, method: Method, call: Call, request: Any
    ) -> dict[int, AccessItem]:
        """Return what the grant shall cover, by place; have what it does not cover refused.

        Raises:
            AccessRefused: It covers nothing any more.
        """
        batch, own = call.batch, use.found.key
        assert batch is not None  # noqa: S101  (the guard has made it)
        by_policy = batch.decide
        wished: dict[int, AccessItem] = {}
        refused: dict[int, Exception] = {}
        for place, item in enumerate(request.items):
            wish = _describe_item(method, item)
            if wish is None or by_policy(KeyName(wish.key)) is None:
                continue
            if wish.key != own:
                refused[place] = refuse_as(Reason.GRANT_SCOPE)
            else:
                wished[place] = wish
        known = list(wished.values())
        if method.operation is Operation.ENCRYPT:  # they are sealed with the current version
            number = self._office.current_version(own)
            known = [replace(wish, version=number) for wish in known]
        verdicts = self._office.check_each(use, known)
        refused |= {
            place: verdict
            for place, verdict in zip(wished, verdicts, strict=True)
            if verdict is not None
        }
        batch.refused = refused
        batch.decide = lambda key: None if key == own else by_policy(key)
        return {place: wish for place, wish in wished.items() if place not in refused}

    async def _spend_each(
        self, use: PendingUse, call: Call, wished: Mapping[int, AccessItem], results: Any
    ) -> None:
        """Have the uses counted that came to something; take back what may not be answered."""
        done = {
            place: replace(
                wish, version=results[place].version.number, envelope_sha256=_digest(results[place])
            )
            if wish.operation is AccessOperation.ENCRYPT
            else wish
            for place, wish in wished.items()
            if not results[place].HasField("status")
        }
        if not done:
            return
        verdicts = await self._office.spend_each(use, list(done.values()))
        assert call.batch is not None  # noqa: S101
        call.batch.uses = verdicts.count(None)
        for place, verdict in zip(done, verdicts, strict=True):
            if verdict is not None:
                call.batch.withdraw(results[place], verdict)

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


def _describe_item(method: Method, item: Any) -> AccessItem | None:
    """Return what a grant is asked to cover for one item; None for an item that fails anyway."""
    operation = _OPERATIONS[method.operation]
    if operation is AccessOperation.ENCRYPT:
        return AccessItem(operation, item.key, 0, copy_context(item.context), b"")
    try:
        header = parse_wrapping_header(cut_wrapping_header(item.envelope))
    except EnvelopeRejected:
        return None
    context = None if operation is AccessOperation.REWRAP else copy_context(item.context)
    digest = hashlib.sha256(item.envelope).digest()
    return AccessItem(operation, header.key_name, int(header.version_number), context, digest)


def _digest(result: Any) -> bytes:
    return hashlib.sha256(result.envelope).digest()


def _require_few(request: Any) -> None:
    count = len(request.items)
    if count > MAX_GRANTED_ITEMS:
        raise BadRequest(
            "items", f"are {count}; a grant is used for at most {MAX_GRANTED_ITEMS} at once"
        )
