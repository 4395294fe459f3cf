"""Deadlines of requests and grants by a clock that nobody can set. Pure.

A wall clock can be put back, again and again; observed time stands still while every sidecar is
killed before it could move it on. CLOCK_BOOTTIME does neither, but means something within one boot
of one host only. So the row says by when in *this* boot it must be over, and whoever looks at it in
that boot, whichever process that is, needs no other clock.

* A grant has the boot in which it was activated, and, where uids are shared, that of each other
  host from its first use there on. A host of these that was started anew ends it: nothing on that
  host can tell how long it was off.
* A request that is not a grant yet outlives a restart of its host. The new boot's deadline is what
  the wall clock and observed time leave of it.
* After ``MOST_BOOTS`` it is over in any case. So nothing lasts longer than so many times what it
  was meant to, whatever is done to all clocks, processes and hosts together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyside_sidecar.access.requests import AccessRequest, AccessState, BootDeadline

if TYPE_CHECKING:
    from keyside_sidecar.access.requests import Moment

MOST_BOOTS: Final = 16


def begin_deadline(moment: Moment, host: str, lasts_us: int) -> tuple[BootDeadline, ...]:
    """Return the deadline of what begins now, in the boot in which it begins."""
    begun_us = moment.up.passed_us
    return (BootDeadline(host, moment.up.boot, begun_us, begun_us + lasts_us),)


def deadline_of(request: AccessRequest) -> int | None:
    """Return the wall clock's deadline of a request in the state that it is in, if it has one."""
    return {
        AccessState.PENDING: request.decide_by_us,
        AccessState.APPROVED: request.activate_by_us,
        AccessState.ACTIVE: request.expires_us,
    }.get(request.state)


def has_passed(request: AccessRequest, moment: Moment) -> bool:
    """Return whether the deadline has passed by the clock of the boot in which this is asked.

    A boot that has lasted less long than it had already has gone back: a machine was put back from
    a snapshot. What it would take for time that is left may have gone by long ago.
    """
    return any(
        one.boot == moment.up.boot and not one.begun_us <= moment.up.passed_us < one.due_us
        for one in request.boot_deadlines
    )


def was_restarted(request: AccessRequest, moment: Moment, host: str) -> bool:
    """Return whether ``host``, where this is asked, was started anew since it had the request."""
    boots = {one.boot for one in request.boot_deadlines if one.host == host}
    if not request.boot_deadlines:  # written before there were any
        return request.host == host
    return bool(boots) and moment.up.boot not in boots


def has_deadline(request: AccessRequest, moment: Moment) -> bool:
    """Return whether the request has a deadline in the boot in which this is asked."""
    return any(one.boot == moment.up.boot for one in request.boot_deadlines)


def add_deadline(request: AccessRequest, moment: Moment, host: str) -> AccessRequest | None:
    """Return the request with a deadline for this boot too; None where it has had too many."""
    if has_deadline(request, moment):
        return request
    if len(request.boot_deadlines) >= MOST_BOOTS:
        return None
    left_us = request.deadline_observed_us - moment.observed_us
    deadline_us = deadline_of(request)
    if deadline_us is not None:
        left_us = min(left_us, deadline_us - moment.now_us)
    added = begin_deadline(moment, host, left_us)
    return replace(request, boot_deadlines=(*request.boot_deadlines, *added))
