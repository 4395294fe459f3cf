"""keyside.v1.AccessService: people ask for access to a key, decide about it, and use it.

Whoever asks, approves, denies or activates is the kernel's caller and has given a password that PAM
accepts. What only takes something away (cancel, revoke) needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.v1 import access_pb2 as pb
from keyside_sidecar.access.credential import parse_access_id
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.requests import Actor
from keyside_sidecar.errors import AccessRefused, BadRequest, Refused
from keyside_sidecar.rpc.access_messages import make_request, make_use, read_wish

if TYPE_CHECKING:
    from keyside_sidecar.access.policy import Policy, Subject
    from keyside_sidecar.access.requests import AccessRequest
    from keyside_sidecar.elevation.office import AccessOffice
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.rpc.guard import Call

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_MAX_USES_SHOWN: Final = 10_000
_MAX_TOKEN: Final = 20


class AccessServicer:
    """Answers about access, and changes who has it.

    Args:
        office: Carries it out.
        policy: For whose requests a caller may see.
        identifier: For the callers' account names.
    """

    def __init__(self, office: AccessOffice, policy: Policy, identifier: Identifier) -> None:
        self._office = office
        self._policy = policy
        self._identifier = identifier

    async def request_access(
        self, call: Call, request: pb.RequestAccessRequest
    ) -> pb.RequestAccessResponse:
        """Write a request down.

        Raises:
            AuthenticationFailed: The password is not the caller's, or the account is not in order.
            BadRequest: A field is wrong.
            AccessRefused: Too many are open.
            StoreUnavailable: The store is away; nothing was written, or all of it was.
        """
        assert call.key is not None  # noqa: S101  (the guard has read it from the request)
        wish = read_wish(request, call.key)
        actor = await self._authenticate(call, request.password)
        made = await self._office.request(actor, wish)
        return pb.RequestAccessResponse(request=make_request(made))

    async def check_access_request(
        self, call: Call, request: pb.CheckAccessRequestRequest
    ) -> pb.CheckAccessRequestResponse:
        """Refuse what :meth:`request_access` would, but for the password.

        Raises:
            BadRequest: A field is wrong.
            AccessRefused: Too many are open.
            StoreUnavailable: The store is away.
        """
        assert call.key is not None  # noqa: S101  (the guard has read it from the request)
        await self._office.check_wish(self._actor(call), read_wish(request, call.key))
        return pb.CheckAccessRequestResponse()

    async def list_access(self, call: Call, request: pb.ListAccessRequest) -> pb.ListAccessResponse:
        """List what the caller may see: what is open, then what has ended, each newest first.

        Raises:
            BadRequest: The page's size or token is not valid.
            StoreUnavailable: The store is away.
        """
        if request.page_size > _MAX_PAGE:
            raise BadRequest("page_size", f"is {request.page_size}; at most {_MAX_PAGE}")
        limit = request.page_size or _DEFAULT_PAGE
        part, place = _parse_token(request.page_token)
        if part == "o":
            found = list(reversed(await self._office.list_open()))
            page, rest = found[place : place + limit], found[place + limit :]
            next_page = f"o{place + limit}" if rest else ""
            if not next_page and request.include_ended:
                next_page = "e"
        else:
            page = await self._office.list_ended(before=place or None, limit=limit)
            next_page = f"e{page[-1].ended_number}" if len(page) == limit else ""
        visible = [one for one in page if self._may_see(call.subject, one)]
        prospects = await self._office.foresee(self._actor(call), visible)
        return pb.ListAccessResponse(
            requests=[make_request(one, may) for one, may in zip(visible, prospects, strict=True)],
            next_page_token=next_page,
        )

    async def get_access(self, call: Call, request: pb.GetAccessRequest) -> pb.GetAccessResponse:
        """Tell the whole story of one request.

        Raises:
            BadRequest: That is no request's id.
            AccessRefused: There is none of that id.
            Refused: It is not the caller's to see.
            StoreUnavailable: The store is away.
        """
        access_id = parse_access_id(request.id)
        found = await self._office.find(access_id)
        if found is None or not self._may_see(call.subject, found):
            if not self._policy.may_see_all_access(call.subject):
                raise Refused(Reason.NOT_ALLOWED)  # whether there is such a request or not
            raise AccessRefused(
                "ACCESS_NOT_FOUND",
                f"there is no request {access_id}",
                "keyside access list --all lists them",
                "not_found",
            )
        uses = await self._office.read_uses(access_id, _MAX_USES_SHOWN)
        (prospects,) = await self._office.foresee(self._actor(call), [found])
        return pb.GetAccessResponse(
            request=make_request(found, prospects), uses=[make_use(use) for use in uses]
        )

    async def approve_access(
        self, call: Call, request: pb.ApproveAccessRequest
    ) -> pb.ApproveAccessResponse:
        """Add the caller's approval.

        Raises:
            AuthenticationFailed: As for :meth:`request_access`.
            AccessRefused: It does not count, or the request is not to be decided.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(request.id)
        actor = await self._authenticate(call, request.password)
        changed = await self._office.approve(access_id, actor, request.comment)
        return pb.ApproveAccessResponse(request=make_request(changed))

    async def deny_access(self, call: Call, request: pb.DenyAccessRequest) -> pb.DenyAccessResponse:
        """End a request.

        Raises:
            AuthenticationFailed: As for :meth:`request_access`.
            AccessRefused: The caller may not, or it is too late.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(request.id)
        # It takes something away, and so doesn't wait for the name service.
        actor = await self._authenticate(call, request.password, afresh=False)
        changed = await self._office.deny(access_id, actor, request.reason)
        return pb.DenyAccessResponse(request=make_request(changed))

    async def cancel_access(
        self, call: Call, request: pb.CancelAccessRequest
    ) -> pb.CancelAccessResponse:
        """Take the caller's own request back.

        Raises:
            AccessRefused: It is another's, or active.
            StoreUnavailable: As for :meth:`request_access`.
        """
        changed = await self._office.cancel(parse_access_id(request.id), self._actor(call))
        return pb.CancelAccessResponse(request=make_request(changed))

    async def activate_access(
        self, call: Call, request: pb.ActivateAccessRequest
    ) -> pb.ActivateAccessResponse:
        """Make the grant of an approved request, and hand out its credential.

        Raises:
            AuthenticationFailed: As for :meth:`request_access`.
            AccessRefused: It is another's, not approved, or over.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(request.id)
        actor = await self._authenticate(call, request.password)
        changed, credential = await self._office.activate(access_id, actor)
        return pb.ActivateAccessResponse(request=make_request(changed), credential=credential)

    async def revoke_access(
        self, call: Call, request: pb.RevokeAccessRequest
    ) -> pb.RevokeAccessResponse:
        """End a request or a grant, in the store, before this is answered.

        Raises:
            AccessRefused: The caller may not.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(request.id)
        changed = await self._office.revoke(access_id, self._actor(call), request.reason)
        return pb.RevokeAccessResponse(request=make_request(changed))

    async def _authenticate(self, call: Call, password: bytes, *, afresh: bool = True) -> Actor:
        """Have PAM check who is calling; return them with the groups that they have after it."""
        await self._office.authenticate(call.subject, password)
        identify = self._identifier.identify_afresh if afresh else self._identifier.identify
        subject = await identify(call.connection)
        if subject.standing is not None:
            raise Refused(subject.standing)
        return Actor(subject, self._identifier.account_name(call.connection))

    def _actor(self, call: Call) -> Actor:
        return Actor(call.subject, self._identifier.account_name(call.connection))

    def _may_see(self, subject: Subject, request: AccessRequest) -> bool:
        return request.requester.uid == subject.uid or self._policy.may_see_all_access(subject)


def _parse_token(token: str) -> tuple[str, int]:
    """Return which part of the list a page belongs to, and where it begins there."""
    if not token:
        return "o", 0
    part, place = token[0], token[1:]
    if (
        part not in "oe"
        or len(token) > _MAX_TOKEN
        or (place and not (place.isascii() and place.isdecimal()))
    ):
        raise BadRequest("page_token", "is not one that this service gave")
    return part, int(place or 0)
