"""What there is to say about a request or a grant, for people: one fact a line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keyside.access_facts import AccessState
from keyside.cli.amounts import format_duration
from keyside.cli.tables import format_time
from keyside.cli.text import escape
from keyside.quantities import count_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from keyside.access_facts import AccessLevel, AccessRequest, AccessStory, AccessUse, Person


def describe_story(story: AccessStory) -> list[str]:
    """Return the whole story: who, why, what, who approved it when, what was opened, the end."""
    request = story.request
    lines = [
        f"{escape(request.id)}: {describe_state(request)}",
        *describe_asked(request),
        *describe_levels(request.levels),
    ]
    if request.approved_at:
        lines.append(f"approved:   {format_time(request.approved_at)}")
    if request.activated_at:
        until = f", until {format_time(request.expires_at)} at the latest"
        lines.append(f"activated:  {format_time(request.activated_at)}{until}")
    if request.is_over:
        lines.append(f"ended:      {describe_end(request)}")
    if request.activated_at:
        lines.extend(_describe_uses(request, story.uses))
    return lines


def describe_asked(request: AccessRequest) -> list[str]:
    """Return what is asked, by whom and why."""
    asked = format_time(request.created_at)
    lines = [
        f"who:        {describe_person(request.requester)} on {escape(request.host)}, {asked}",
        f"why:        {escape(request.reason)}",
    ]
    if request.ticket:
        lines.append(f"ticket:     {escape(request.ticket)}")
    lines += [
        f"key:        {escape(request.key)}",
        f"operations: {', '.join(one.value.lower() for one in request.operations)}",
        f"versions:   {describe_versions(request) or 'any'}",
        f"context:    {describe_pairs(request.context) or 'any'}",
        f"for:        {format_duration(request.duration)}, "
        + (
            f"{count_of(request.max_uses, 'use')} at most"
            if request.max_uses
            else "any number of uses"
        ),
    ]
    return lines


def describe_levels(levels: Iterable[AccessLevel]) -> Iterator[str]:
    """Yield each level with who approved there, the struck approvals too."""
    for number, level in enumerate(levels, start=1):
        needed = f"{level.approvals_given} of {count_of(level.approvals_needed, 'approval')}"
        yield f"level {number}:    {escape(level.group)}, {needed}"
        for approval in level.approvals:
            who = describe_person(approval.person)
            said = f": {escape(approval.comment)}" if approval.comment else ""
            struck = f" (counts no longer: {escape(approval.struck)})" if approval.struck else ""
            yield f"            {format_time(approval.decided_at)}  {who}{struck}{said}"


def describe_state(request: AccessRequest, now: datetime | None = None) -> str:
    """Return how far a request has come, and how long that lasts."""
    moment = now or datetime.now(UTC)
    if request.state is AccessState.PENDING:
        waits = request.waiting_level.group if request.waiting_level else ""
        by = f", until {_until(request.decide_by, moment)}" if request.decide_by else ""
        turn = "; it is your turn" if request.is_your_turn else ""
        return (f"PENDING, waits for {escape(waits)}{by}" if waits else f"PENDING{by}") + turn
    if request.state is AccessState.APPROVED:
        turn = "; it is your turn" if request.is_your_turn else ""
        return f"APPROVED, to be activated until {_until(request.activate_by, moment)}{turn}"
    if request.state is AccessState.ACTIVE:
        return f"ACTIVE until {_until(request.expires_at, moment)}, {describe_used(request)}"
    if request.state is AccessState.CLOSING:
        return "CLOSING: over; what it opened is still to be rolled over"
    if request.state is AccessState.ENDED:
        return f"ENDED ({escape(request.end_reason)})"
    return str(request.state.value)


def describe_turn(request: AccessRequest) -> str:
    """Return whom a request waits for, unescaped; "you" where it is this caller's turn."""
    level = request.waiting_level
    who = level.group if level else ""
    if request.state is AccessState.APPROVED:
        who = request.requester.account or f"uid {request.requester.uid}"
    if not who:
        return ""
    return f"you ({who})" if request.is_your_turn else who


def describe_used(request: AccessRequest) -> str:
    """Return how often a grant was used: ``3 of 10 uses``."""
    if request.max_uses:
        return f"{request.used:,} of {count_of(request.max_uses, 'use')}"
    return count_of(request.used, "use")


def describe_end(request: AccessRequest) -> str:
    """Return when, why and through whom a request ended."""
    by = f" by {describe_person(request.ended_by)}" if request.ended_by else ""
    said = f": {escape(request.end_comment)}" if request.end_comment else ""
    return f"{format_time(request.ended_at)}, {escape(request.end_reason)}{by}{said}"


def describe_person(person: Person) -> str:
    """Return an account's name and uid."""
    return f"{escape(person.account)} (uid {person.uid})" if person.account else f"uid {person.uid}"


def describe_versions(request: AccessRequest) -> str:
    """Return the versions that are asked for: ``3-5, 7``; ``""`` for any."""
    return ", ".join(
        str(one.first) if one.first == one.last else f"{one.first}-{one.last}"
        for one in request.versions
    )


def describe_pairs(context: Mapping[str, str]) -> str:
    """Return a context's pairs on one line."""
    return ", ".join(f"{escape(name)}={escape(value)}" for name, value in sorted(context.items()))


def _describe_uses(request: AccessRequest, uses: Sequence[AccessUse]) -> Iterator[str]:
    yield f"opened:     {describe_used(request)}"
    for use in uses:
        digest = f", envelope {use.envelope_sha256}" if use.envelope_sha256 else ""
        context = f", {describe_pairs(use.context)}" if use.context else ""
        yield (
            f"            {format_time(use.used_at)}  {use.operation.value.lower()}, "
            f"version {use.version}{digest}{context}"
        )
    left = request.used - len(uses)
    if left > 0:
        yield f"            ... and {left:,} more; keyside audit explain {request.id}"


def _until(when: datetime | None, now: datetime) -> str:
    if when is None:
        return "an unknown time"
    left = when - now
    again = f" (in {format_duration(left)})" if left.total_seconds() >= 0 else ""
    return f"{format_time(when)}{again}"
