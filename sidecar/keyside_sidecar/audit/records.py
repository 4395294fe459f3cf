"""What may stand in a record: a closed list (I7), and texts of a bounded length.

A new field or detail: its name here, its line in docs/audit.md and docs/audit-record.schema.json.
What is not listed is left out, whoever wrote it, and the log says so once for each name.
"""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING, Any, Final

from keyside.audit import MAX_BODY_BYTES, MAX_DEPTH, MAX_NUMBER, encode_json, is_plain_number
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_log = logging.getLogger(__name__)

FIELDS: Final = frozenset(
    {
        "id",  # names the record
        "time",  # when its writer wrote it
        "event",  # what happened
        "phase",  # "intent" or "outcome"; absent where there is one record only
        "outcome",  # "ok", "partial", "refused" or "failed"; absent for an intent
        "reason",  # a constant
        "caller",  # who: pid, uid, gid, account, login_uid, exe
        "key",
        "version",
        "digest",  # SHA-256 of the envelope
        "context",  # names of the context's pairs
        "request_id",
        "access",  # a request for access, or the grant that it became
        "count",  # how many alike this record stands for; the items of a batch
        "worker",  # pid of the worker that wrote it
        "details",
    }
)
CALLER: Final = frozenset({"pid", "uid", "gid", "account", "login_uid", "exe"})
DETAILS: Final = frozenset(
    {
        # of the log itself
        *("config_digest", "config_path", "program", "previous_hash", "previous_sequence"),
        *("previous_file", "torn_bytes", "unsealed", "kept_as", "lost_up_to_s", "why", "since"),
        "lasted_s",
        *("delayed", "lost", "refused_calls", "refused_actions", "error", "intent", "first"),
        # of calls and keys
        *("method", "operation", "items", "new_version", "new_digest", "previous", "compromised"),
        *("expected_current", "unacknowledged", "state", "destroy_in_s", "requested_by_uid"),
        # of batches and data keys
        *("refused", "failed", "reasons", "unlisted", "max_messages", "max_bytes", "max_age_s"),
        "wrapped_only",
        # of requests for access and grants
        *("comment", "ticket", "duration_s", "operations", "versions", "context", "max_uses"),
        *("requester", "levels", "approvals", "struck", "used", "opened", "end_reason"),
        *("ended_at", "expires_at", "activate_by", "decide_by"),
        # of the store and the processes
        *("store_id", "store_generation", "generation", "seen_store_id", "seen_generation"),
        *("ended", "place", "code"),
    }
)
SERVICE_EVENTS: Final = frozenset(
    {
        "encryption.encrypt",
        "encryption.decrypt",
        "encryption.rewrap",
        "encryption.reencrypt",
        "encryption.batch_encrypt",
        "encryption.batch_decrypt",
        "encryption.batch_rewrap",
    }
)
# Written by the recorder alone.
OWN_EVENTS: Final = frozenset(
    {"checkpoint", "run.start", "run.end", "run.recovered", "log.continued"}
)

# The numbers, and what each is at most; none is below 0. The schema says the same.
_NUMBERS: Final = {
    **dict.fromkeys(("pid", "worker"), 2**31 - 1),
    **dict.fromkeys(("uid", "gid", "login_uid", "version"), 2**32 - 1),
    "count": MAX_NUMBER,
}
_WORDS: Final = {
    "phase": re.compile("intent|outcome"),
    "outcome": re.compile("ok|partial|refused|failed"),
    "digest": re.compile("[0-9a-f]{64}", re.ASCII),
}
_MAX_TEXT: Final = 2_000
_MAX_ITEMS: Final = 200
_MAX_DEPTH: Final = 4
# Of what is taken as it is, in a record that is short; a line may be deeper.
_PLAIN_DEPTH: Final = MAX_DEPTH // 2
# What is shorter is not worth leaving out: its hash takes as much room.
_LITTLE: Final = 100
# A record that is shorter can't hold a text or a list that is too long.
_SURELY_SHORT: Final = 1_000
_told: set[str] = set()


def build_body(record: Mapping[str, object], identity: str, time: str, worker: int | None) -> str:
    """Return a record's body, as the recorder takes it.

    Args:
        record: Plain facts: texts, whole numbers, truth values, and lists and mappings of these.
            What is None is left out, and so is what this module does not list.
        identity: Names the record; used unless the record has an ``id``.
        time: When; used unless the record has a ``time``.
        worker: The pid of the process that writes it; None for the record's own, or none.
    """
    fields = {name: value for name, value in record.items() if value is not None}
    if not is_listed(fields):
        fields = _leave_out(fields)
    identity = _take_text(fields, "id", identity)
    time = _take_text(fields, "time", time)
    if worker is not None:
        fields["worker"] = worker
    try:
        text = encode_json(fields)
    except (TypeError, ValueError, RecursionError):
        text = encode_json(_make_plain(fields))
    if len(text) > _SURELY_SHORT or not _is_plain(fields.get("details"), _PLAIN_DEPTH):
        text = _shorten(fields, text)
    return f'"id":{encode_json(identity)},"time":{encode_json(time)},{text[1:-1]}'


def format_time(when: datetime) -> str:
    """Return a time in UTC as records have it: ``2026-11-25T22:45:11.123456Z``."""
    return when.isoformat(timespec="microseconds")[:26] + "Z"


def is_listed(fields: Mapping[str, Any]) -> bool:
    """Return whether a record says nothing but listed names, with values of their forms."""
    return (
        FIELDS.issuperset(fields)
        and _are_typed(fields)
        and DETAILS.issuperset(fields.get("details", ()))
        and CALLER.issuperset(caller := fields.get("caller", {}))
        and _are_typed(caller)
    )


def _are_typed(fields: Mapping[str, object]) -> bool:
    return all(_is_typed(name, value) for name, value in fields.items())


def _is_typed(name: str, value: object) -> bool:
    if name in _NUMBERS:
        return type(value) is int and 0 <= value <= _NUMBERS[name]
    if name in {"caller", "details"}:
        return isinstance(value, dict)
    if name == "context":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, str) and (name not in _WORDS or _is_word(name, value))


def _is_word(name: str, value: str) -> bool:
    return _WORDS[name].fullmatch(value) is not None


def _is_plain(value: object, depth: int) -> bool:
    """Return whether JSON says ``value`` as it is, with no number that a line may not hold."""
    if isinstance(value, dict):
        return depth > 0 and all(
            isinstance(name, str) and _is_plain(item, depth - 1) for name, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, (str, bool)) or is_plain_number(value)


def _leave_out(fields: dict[str, object]) -> dict[str, object]:
    if isinstance(context := fields.get("context"), (tuple, set, frozenset)):
        fields = {**fields, "context": list(context)}
    kept = _keep(fields, FIELDS, "")
    for name, known in (("details", DETAILS), ("caller", CALLER)):
        inner = kept.get(name)
        if isinstance(inner, dict):
            kept[name] = _keep(inner, known, f"{name}.")
    return kept


def _keep(fields: dict[str, object], known: frozenset[str], prefix: str) -> dict[str, object]:
    is_typed = _is_typed if known is not DETAILS else _is_anything
    kept = {
        name: value for name, value in fields.items() if name in known and is_typed(name, value)
    }
    for name in fields.keys() - kept.keys():
        # (What a mapping holds that is None was not meant to be said.)
        if fields[name] is not None and f"{prefix}{name}" not in _told:
            _told.add(f"{prefix}{name}")
            event(
                _log,
                logging.ERROR,
                "not recorded: the audit log does not know it",
                field=f"{prefix}{name}",
            )
    return kept


def _is_anything(_name: str, _value: object) -> bool:
    return True


def _take_text(fields: dict[str, object], name: str, otherwise: str) -> str:
    value = fields.pop(name, None)
    return value if isinstance(value, str) else otherwise


def _shorten(fields: dict[str, object], text: str) -> str:
    plain = _make_plain(fields)
    text = encode_json(plain)
    # Details go first, the longest of them first, so that not all is lost for one of them.
    for inner in ("details", "caller", ""):
        said, given = (plain.get(inner), fields.get(inner)) if inner else (plain, fields)
        if not isinstance(said, dict) or not isinstance(given, dict):
            continue
        names = [name for name in said if inner or name not in {"details", "caller", "event"}]
        for name in sorted(names, key=lambda name: len(encode_json(said[name])), reverse=True):
            if len(text) <= MAX_BODY_BYTES - _SURELY_SHORT:
                return text
            if len(encode_json(said[name])) <= _LITTLE:
                break
            left_out = f"left out: {_commit(given[name])}"
            said[name] = [left_out] if not inner and name == "context" else left_out
            text = encode_json(plain)
    return text


def _make_plain(value: Any, depth: int = 0) -> Any:
    """Return ``value`` with every text and list cut, and what JSON can't say named by its type.

    What is cut has the SHA-256 of the whole beside it, so that the record still commits to it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and is_plain_number(int(value)):
        return int(value)
    if isinstance(value, str):
        is_short = len(value) <= _MAX_TEXT
        return value if is_short else f"{value[:_MAX_TEXT]}… cut: {_commit(value)}"
    if isinstance(value, (dict, list, tuple)):
        return _cut(value, depth) if depth < _MAX_DEPTH else f"left out: {_commit(value)}"
    return f"<{type(value).__name__}>"


def _cut(value: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> Any:
    if isinstance(value, dict):
        pairs = list(value.items())[:_MAX_ITEMS]
        made = {str(name)[:_MAX_TEXT]: _make_plain(item, depth + 1) for name, item in pairs}
        return made if len(made) == len(value) else {**made, "…": f"cut: {_commit(value)}"}
    items = [_make_plain(item, depth + 1) for item in value[:_MAX_ITEMS]]
    return items if len(items) == len(value) else [*items, f"… cut: {_commit(value)}"]


def _commit(value: object) -> str:
    """Return the SHA-256 of what would have stood there."""
    try:
        text = encode_json(value)
    except (TypeError, ValueError, RecursionError):
        return "it can not be said in JSON"
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"
