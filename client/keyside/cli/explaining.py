"""``keyside audit explain``: what the audit log says of one grant, in sentences.

From the log alone, which is signed, and not from the store: what was asked, who approved it, each
use, how it ended, and what was refused on the way.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from keyside.cli import exits
from keyside.cli.amounts import format_duration
from keyside.cli.audit_filters import search
from keyside.cli.audit_text import (
    as_mapping,
    as_text,
    describe_outcome,
    describe_who,
    json_line,
    shorten_time,
)
from keyside.cli.connection import ACCESS_ID, Connection, as_json
from keyside.cli.exits import CommandError
from keyside.quantities import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from keyside.access_facts import AuditRecord

    Fields = Mapping[str, Any]


@click.command()
@click.argument("access_id", metavar="ACCESS-ID", type=ACCESS_ID)
@as_json
@click.pass_obj
def explain(connection: Connection, access_id: str, *, as_json: bool) -> None:
    """Tell the story of a grant from this host's audit log.

    Auditors read all of it, others what they did themselves. --json prints the records.
    """
    with connection.open() as client:
        found = list(
            search(client, connection, {"access_id": access_id}, oldest_first=True, page_size=1000)
        )
    if not found:
        raise CommandError(
            f"this host's audit log tells you nothing about {access_id}",
            exits.DATA,
            "it may belong to another host; who is no auditor reads only what they did themselves",
        )
    for line in map(json_line, found) if as_json else tell_story(access_id, found):
        click.echo(line)


def tell_story(access_id: str, records: Sequence[AuditRecord]) -> Iterator[str]:
    """Yield one sentence for each thing that happened, in the log's order."""
    yield f"{access_id}, from {count_of(len(records), 'record')} of the audit log:"
    finished = {
        _pair(record.fields) for record in records if record.fields.get("phase") == "outcome"
    }
    uses = 0
    for record in records:
        fields = record.fields
        if fields.get("phase") == "intent" and _pair(fields) in finished:
            continue
        if fields.get("event") == "access.use" and fields.get("outcome") == "ok":
            uses += 1
        time = shorten_time(as_text(fields.get("time")))
        yield f"{time}  {_tell(fields)}.  [{record.sequence}]"
    yield f"In all, the log holds {count_of(uses, 'use')} of it."


def _pair(fields: Fields) -> tuple[str, str]:
    """Return what an intent and its outcome have in common."""
    return as_text(fields.get("event")), as_text(fields.get("request_id"))


def _tell(fields: Fields) -> str:
    event = as_text(fields.get("event"))
    who = _name(fields)
    if fields.get("phase") == "intent":
        return f"{who} began {event}, and the log holds no outcome"
    if fields.get("outcome") in {"refused", "failed"}:
        return f"{who} tried {event}: {describe_outcome(fields)}"
    tell = _SENTENCES.get(event)
    if tell is not None:
        return tell(who, fields)
    told = describe_outcome(fields)
    return f"{event}{f' by {who}' if describe_who(fields) else ''}{f': {told}' if told else ''}"


def _tell_request(who: str, fields: Fields) -> str:
    details = as_mapping(fields.get("details"))
    wanted = as_text(details.get("operations"))
    operations = details.get("operations")
    if isinstance(operations, list):
        wanted = ", ".join(map(as_text, operations)) or "decrypt"
    parts = [f"{who} asked for {wanted} with {as_text(fields.get('key'))}"]
    if versions := details.get("versions"):
        parts.append(f"versions {as_text(versions)}")
    if context := details.get("context"):
        parts.append(f"context {as_text(context)}")
    if isinstance(seconds := details.get("duration_s"), int):
        parts.append(f"for {format_duration(timedelta(seconds=seconds))}")
    if uses := details.get("max_uses"):
        told = count_of(uses, "use") if isinstance(uses, int) else f"{as_text(uses)} uses"
        parts.append(f"at most {told}")
    why = as_text(details.get("why"))
    ticket = as_text(details.get("ticket"))
    reason = f": {_quote(why)}" if why else ""
    return f"{', '.join(parts)}{reason}{f' (ticket {_quote(ticket)})' if ticket else ''}"


def _tell_approval(who: str, fields: Fields) -> str:
    details = as_mapping(fields.get("details"))
    whole = "; every level has approved it" if details.get("state") == "APPROVED" else ""
    return f"{who} approved it{_said(details)}{whole}"


def _tell_end(verb: str) -> Callable[[str, Fields], str]:
    def tell(who: str, fields: Fields) -> str:
        return f"{who} {verb} it, which ended it{_said(as_mapping(fields.get('details')))}"

    return tell


def _tell_activation(who: str, fields: Fields) -> str:
    until = shorten_time(as_text(as_mapping(fields.get("details")).get("expires_at")))
    return f"{who} activated it{f'; it lasts until {until} at the latest' if until else ''}"


def _tell_use(who: str, fields: Fields) -> str:
    details = as_mapping(fields.get("details"))
    parts = [f"{who} used it: {as_text(details.get('operation')) or 'an operation'}"]
    parts.append(f"{as_text(fields.get('key'))} version {as_text(fields.get('version'))}")
    if digest := as_text(fields.get("digest")):
        parts.append(f"envelope {digest}")
    names = fields.get("context")
    if isinstance(names, list) and names:
        parts.append(f"context {', '.join(_quote(as_text(name)) for name in names)}")
    return ", ".join(parts)


def _tell_own_end(_: str, fields: Fields) -> str:
    details = as_mapping(fields.get("details"))
    why = as_text(details.get("end_reason")) or as_text(fields.get("reason"))
    return f"it ended by itself{f': {why}' if why else ''}"


def _said(details: Fields) -> str:
    comment = as_text(details.get("comment"))
    return f": {_quote(comment)}" if comment else ""


def _quote(text: str) -> str:
    """Return what a person wrote, escaped already, so that nothing of it ends the quotation."""
    quoted = text.replace('"', '\\"')  # (a backslash is doubled by now)
    return f'"{quoted}"'


def _name(fields: Fields) -> str:
    caller = as_mapping(fields.get("caller"))
    account, uid = as_text(caller.get("account")), as_text(caller.get("uid"))
    if account and uid:
        return f"{account} (uid {uid})"
    return account or (f"uid {uid}" if uid else "the sidecar")


_SENTENCES: Final[Mapping[str, Callable[[str, Fields], str]]] = {
    "access.request": _tell_request,
    "access.approve": _tell_approval,
    "access.deny": _tell_end("denied"),
    "access.cancel": _tell_end("cancelled"),
    "access.revoke": _tell_end("revoked"),
    "access.activate": _tell_activation,
    "access.use": _tell_use,
    "access.expired": _tell_own_end,
    "access.ended": _tell_own_end,
}
