"""How the approval machine says no: each refusal once, with what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import AccessRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside_sidecar.access.reasons import Reason
    from keyside_sidecar.access.requests import AccessRequest
    from keyside_sidecar.errors import RefusalKind

# Reason: text, remedy, kind.
_REFUSALS: Final[Mapping[str, tuple[str, str, RefusalKind]]] = {
    "ACCESS_NOT_FOUND": (
        "there is no such request",
        "keyside access list shows the requests that there are",
        "not_found",
    ),
    "ACCESS_NOT_PENDING": (
        "all levels have approved this request already",
        "there is nothing left to approve; it can be denied until it is activated",
        "precondition",
    ),
    "ACCESS_NOT_APPROVED": (
        "this request is not approved",
        "keyside access show tells whose approval is missing, or whether it is active already",
        "precondition",
    ),
    "ACCESS_ACTIVE": (
        "this request is a grant by now",
        "end it with keyside access revoke",
        "precondition",
    ),
    "ACCESS_OF_ANOTHER_HOST": (
        "this request belongs to another host, where the same user id may be somebody else",
        "act on it on the host that keyside access show names",
        "precondition",
    ),
    "ACCESS_DECIDED_ALREADY": (
        "you have approved this request already, and one person counts once at whatever level",
        "somebody else must give the approval that is missing",
        "precondition",
    ),
    "ACCESS_APPROVALS_LOST": (
        "somebody who approved is no longer in the group that they approved for",
        "the request waits for another approval at that level; keyside access show names it",
        "precondition",
    ),
    "ACCESS_TOO_MANY_OPEN": (
        "you have as many open requests and grants as one person may have",
        "cancel or revoke one of them; elevation.max_open_requests sets the limit",
        "precondition",
    ),
    "ACCESS_TOO_MANY_APPROVALS": (
        "this request holds as many approvals, withdrawn ones among them, as one can",
        "deny it, and have access asked for anew",
        "precondition",
    ),
    "ACCESS_BOOK_FULL": (
        "there are too many open requests and grants in this store",
        "have some of them decided, cancelled or revoked",
        "precondition",
    ),
    "ACCESS_OWN_REQUEST": (
        "this is your own request, and nobody decides about their own",
        "somebody else must decide; you can cancel it",
        "permission",
    ),
    "ACCESS_NOT_YOUR_LEVEL": (
        "it is not your level's turn to approve this request",
        "keyside access show names the group that is asked now",
        "permission",
    ),
    "ACCESS_NOT_YOURS": (
        "this is somebody else's request or grant",
        "only the account that asked can do this",
        "permission",
    ),
}


def refuse(reason: str, *, after: AccessRequest | None = None) -> AccessRefused:
    """Return the refusal of that name.

    Args:
        reason: One of the table's.
        after: The request as looking at it has left it, where that changed it.
    """
    text, remedy, kind = _REFUSALS[reason]
    return AccessRefused(reason, text, remedy, kind, after=after)


def refuse_as(
    reason: Reason, *, detail: str = "", after: AccessRequest | None = None
) -> AccessRefused:
    """Return the refusal of a caller.

    Args:
        reason: A reason of access control.
        detail: A constant that says more.
        after: As for :func:`refuse`.
    """
    text = f"{reason.text} ({detail})" if detail else reason.text
    return AccessRefused(reason.name, text, reason.remedy, "permission", after=after)


def refuse_ended(request: AccessRequest, *, is_new: bool) -> AccessRefused:
    """Return the refusal of anything that needs a request which has not ended.

    Args:
        request: One that has.
        is_new: Looking at it has just ended it.
    """
    what = "request" if request.activated_us is None else "grant"
    text = f"this {what} has ended ({request.end_reason})"
    remedy = "ask for access anew if it is still needed"
    return AccessRefused("ACCESS_ENDED", text, remedy, after=request if is_new else None)
