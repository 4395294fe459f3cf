"""Access: people ask for access to a key, decide about it, and use it.

Whoever asks, approves, denies or activates is the kernel's caller and has given a password that PAM
accepts. What only takes something away (cancel, revoke) needs none. The office (elevation/) carries
it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyside.timestamps import format_timestamp
from keyside_sidecar.access.credential import parse_access_id
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import AccessRefused, BadRequest, Refused
from keyside_sidecar.services.shapes import AboutKey, AboutNothing
from keyside_sidecar.store.records import from_microseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.access.prospects import Prospect
    from keyside_sidecar.access.requests import AccessRequest, AccessWish
    from keyside_sidecar.elevation.office import AccessOffice
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.services.shapes import Facts
    from keyside_sidecar.store.access_rows import AccessUse

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_MAX_USES_SHOWN: Final = 10_000
_MAX_TOKEN: Final = 20
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class RequestAccess(AboutKey):
    """Ask for access to a key.

    Args:
        wish: What is asked for.
        password: The caller's.
    """

    wish: AccessWish
    password: bytes = field(repr=False)

    def facts(self) -> Facts:
        """Return what is asked for; the password is not among it."""
        wish = self.wish
        asked: Facts = {
            "why": wish.reason,
            "duration_s": wish.duration_us // _MICROSECONDS,
            "operations": [operation.name.lower() for operation in wish.operations],
        }
        if wish.ticket:
            asked["ticket"] = wish.ticket
        if wish.versions:
            asked["versions"] = [[one.first, one.last] for one in wish.versions]
        if wish.context:
            asked["context"] = dict(wish.context)
        if wish.max_uses:
            asked["max_uses"] = wish.max_uses
        return {"details": asked}


@dataclass(frozen=True, slots=True)
class CheckAccessRequest(AboutKey):
    """Say what RequestAccess would refuse before it looks at the password.

    Args:
        wish: What would be asked for.
    """

    wish: AccessWish


@dataclass(frozen=True, slots=True)
class ListAccess(AboutNothing):
    """List requests and grants.

    Args:
        include_ended: Those too that are over.
        page_size: How many; 0 for the usual number.
        page_token: Where the page begins.
    """

    include_ended: bool
    page_size: int
    page_token: str


@dataclass(frozen=True, slots=True)
class AboutRequest(AboutNothing):
    """Something about one request.

    Args:
        access_id: The request, as the caller named it.
    """

    access_id: str


@dataclass(frozen=True, slots=True)
class Decide(AboutRequest):
    """A decision about a request, or its end.

    Args:
        comment: What whoever decides says about it.
        password: The caller's; empty where none is asked for.
    """

    comment: str = ""
    password: bytes = field(default=b"", repr=False)

    def facts(self) -> Facts:
        """Return the request and the comment."""
        said: Facts = {"details": {"comment": self.comment}} if self.comment else {}
        return {"access": self.access_id, **said}


@dataclass(frozen=True, slots=True)
class AccessView:
    """A request, and what the caller may do about it."""

    request: AccessRequest
    prospects: Sequence[Prospect] = ()


@dataclass(frozen=True, slots=True)
class AccessPage:
    """Some of the requests that the caller may see; the next page's token, or ``""``."""

    requests: Sequence[AccessView]
    next_page_token: str

    def facts(self) -> Facts:
        """Return nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class AccessStory:
    """A request and what its grant was used for, oldest first."""

    request: AccessView
    uses: Sequence[AccessUse]

    def facts(self) -> Facts:
        """Return nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class Checked:
    """Nothing is wrong with what was looked at."""

    def facts(self) -> Facts:
        """Return nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class ChangedAccess:
    """A request as it has become.

    Args:
        request: The request.
        credential: The grant's temporary credential, where one was made.
    """

    request: AccessRequest
    credential: str = field(default="", repr=False)

    def facts(self) -> Facts:
        """Return the request, its key and state, whose it is, and when it ends or why it did."""
        found = self.request
        requester = {"uid": found.requester.uid, "account": found.requester.account}
        details: Facts = {"state": str(found.state), "requester": requester}
        if found.expires_us is not None:
            details["expires_at"] = format_timestamp(from_microseconds(found.expires_us))
        if found.end_reason is not None:
            details["end_reason"] = str(found.end_reason)
        return {"access": found.id, "key": found.key, "details": details}


class AccessService:
    """Answers about access, and changes who has it.

    Args:
        office: Carries it out.
        policy: For whose requests a caller may see.
        identifier: Knows who callers are now.
    """

    def __init__(self, office: AccessOffice, policy: Policy, identifier: Identifier) -> None:
        self._office = office
        self._policy = policy
        self._identifier = identifier

    async def request_access(self, caller: Caller, command: RequestAccess) -> ChangedAccess:
        """Write a request down.

        Raises:
            AuthenticationFailed: The password is not the caller's, or the account is not in order.
            BadRequest: A field is wrong.
            AccessRefused: Too many are open.
            StoreUnavailable: The store is away; nothing was written, or all of it was.
        """
        requester = await self._authenticate(caller, command.password)
        return ChangedAccess(await self._office.request(requester, command.wish))

    async def check_access_request(self, caller: Caller, command: CheckAccessRequest) -> Checked:
        """Refuse what :meth:`request_access` would, but for the password.

        Raises:
            BadRequest: A field is wrong.
            AccessRefused: Too many are open.
            StoreUnavailable: The store is away.
        """
        await self._office.check_wish(caller, command.wish)
        return Checked()

    async def list_access(self, caller: Caller, command: ListAccess) -> AccessPage:
        """List what the caller may see: what is open, then what has ended, each newest first.

        Raises:
            BadRequest: The page's size or token is not valid.
            StoreUnavailable: The store is away.
        """
        if command.page_size > _MAX_PAGE:
            raise BadRequest("page_size", f"is {command.page_size}; at most {_MAX_PAGE}")
        limit = command.page_size or _DEFAULT_PAGE
        part, place = _parse_token(command.page_token)
        if part == "o":
            found = list(reversed(await self._office.list_open()))
            page, rest = found[place : place + limit], found[place + limit :]
            next_page = f"o{place + limit}" if rest else ""
            if not next_page and command.include_ended:
                next_page = "e"
        else:
            page = await self._office.list_ended(before=place or None, limit=limit)
            next_page = f"e{page[-1].ended_number}" if len(page) == limit else ""
        visible = [one for one in page if self._may_see(caller, one)]
        prospects = await self._office.foresee(caller, visible)
        return AccessPage(
            [AccessView(one, may) for one, may in zip(visible, prospects, strict=True)], next_page
        )

    async def get_access(self, caller: Caller, command: AboutRequest) -> AccessStory:
        """Tell the whole story of one request.

        Raises:
            BadRequest: That is no request's id.
            AccessRefused: There is none of that id.
            Refused: It is not the caller's to see.
            StoreUnavailable: The store is away.
        """
        access_id = parse_access_id(command.access_id)
        found = await self._office.find(access_id)
        if found is None or not self._may_see(caller, found):
            if not self._policy.may_see_all_access(caller):
                raise Refused(Reason.NOT_ALLOWED)  # whether there is such a request or not
            raise AccessRefused(
                "ACCESS_NOT_FOUND",
                f"there is no request {access_id}",
                "keyside access list --all lists them",
                "not_found",
            )
        uses = await self._office.read_uses(access_id, _MAX_USES_SHOWN)
        (prospects,) = await self._office.foresee(caller, [found])
        return AccessStory(AccessView(found, prospects), uses)

    async def approve_access(self, caller: Caller, command: Decide) -> ChangedAccess:
        """Add the caller's approval.

        Raises:
            AuthenticationFailed: As for :meth:`request_access`.
            AccessRefused: It does not count, or the request is not to be decided.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(command.access_id)
        approver = await self._authenticate(caller, command.password)
        return ChangedAccess(await self._office.approve(access_id, approver, command.comment))

    async def deny_access(self, caller: Caller, command: Decide) -> ChangedAccess:
        """End a request.

        Raises:
            AuthenticationFailed: As for :meth:`request_access`.
            AccessRefused: The caller may not, or it is too late.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(command.access_id)
        # It takes something away, and so doesn't wait for the name service.
        approver = await self._authenticate(caller, command.password, afresh=False)
        return ChangedAccess(await self._office.deny(access_id, approver, command.comment))

    async def cancel_access(self, caller: Caller, command: Decide) -> ChangedAccess:
        """Take the caller's own request back.

        Raises:
            AccessRefused: It is another's, or active.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(command.access_id)
        return ChangedAccess(await self._office.cancel(access_id, caller))

    async def activate_access(self, caller: Caller, command: Decide) -> ChangedAccess:
        """Make the grant of an approved request, and hand out its credential.

        Raises:
            AuthenticationFailed: As for :meth:`request_access`.
            AccessRefused: It is another's, not approved, or over.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(command.access_id)
        requester = await self._authenticate(caller, command.password)
        return ChangedAccess(*await self._office.activate(access_id, requester))

    async def revoke_access(self, caller: Caller, command: Decide) -> ChangedAccess:
        """End a request or a grant, in the store, before this is answered.

        Raises:
            AccessRefused: The caller may not.
            StoreUnavailable: As for :meth:`request_access`.
        """
        access_id = parse_access_id(command.access_id)
        return ChangedAccess(await self._office.revoke(access_id, caller, command.comment))

    async def _authenticate(
        self, caller: Caller, password: bytes, *, afresh: bool = True
    ) -> Caller:
        """Have PAM check who is calling; return them with the groups that they have after it."""
        await self._office.authenticate(caller, password)
        identify = self._identifier.identify_afresh if afresh else self._identifier.identify
        found = await identify(caller)
        if found.standing is not None:
            raise Refused(found.standing)
        return found

    def _may_see(self, caller: Caller, request: AccessRequest) -> bool:
        return request.requester.uid == caller.uid or self._policy.may_see_all_access(caller)


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
