"""Prospects of a request: what one caller may do about it now, by the rules that will decide. Pure.

Each prospect is the decision itself (elevation.py), taken and thrown away. It promises nothing:
when the caller acts, it is decided again, on what is so then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyside_sidecar.access import elevation
from keyside_sidecar.errors import AccessFactsMissing, AccessRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyside_sidecar.access.facts import Facts
    from keyside_sidecar.access.requests import AccessRequest, Moment
    from keyside_sidecar.peer.caller import Caller

_SOME_REASON: Final = "x"
_SOME_HASH: Final = bytes(32)


class AccessAction(enum.StrEnum):
    """What somebody may do about a request."""

    APPROVE = "APPROVE"
    DENY = "DENY"
    CANCEL = "CANCEL"
    ACTIVATE = "ACTIVATE"
    REVOKE = "REVOKE"


@dataclass(frozen=True, slots=True)
class Prospect:
    """Whether one caller may do one thing about a request.

    Args:
        action: What.
        refusal: Why not; None where they may.
    """

    action: AccessAction
    refusal: AccessRefused | None


_DECISIONS: Final[
    Mapping[AccessAction, Callable[[AccessRequest, Moment, Facts, Caller], AccessRequest]]
] = {
    AccessAction.APPROVE: elevation.approve,
    AccessAction.DENY: lambda request, moment, facts, actor: elevation.deny(
        request, moment, facts, actor, _SOME_REASON
    ),
    AccessAction.CANCEL: elevation.cancel,
    AccessAction.ACTIVATE: lambda request, moment, facts, actor: elevation.activate(
        request, moment, facts, actor, _SOME_HASH
    ),
    AccessAction.REVOKE: elevation.revoke,
}


def foresee(
    request: AccessRequest,
    moment: Moment,
    facts: Facts,
    actor: Caller,
    *,
    activating: AccessRefused | None = None,
) -> tuple[Prospect, ...]:
    """Return what an actor may do about a request, and why not the rest.

    What depends on facts that are not known now is left out.

    Args:
        request: The request.
        moment: When.
        facts: As they are.
        actor: Whoever would act.
        activating: Why this actor may activate nothing, where something else says so.
    """
    found = []
    for action, decide in _DECISIONS.items():
        try:
            if activating is not None and action is AccessAction.ACTIVATE:
                raise activating
            decide(request, moment, facts, actor)
        except AccessRefused as refusal:
            found.append(Prospect(action, refusal))
        except AccessFactsMissing:
            continue
        else:
            found.append(Prospect(action, None))
    return tuple(found)
