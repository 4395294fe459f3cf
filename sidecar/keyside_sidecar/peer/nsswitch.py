"""Reads nsswitch.conf(5): which services answer for a database, and when the asking stops.

The grammar is glibc's (nss/nss_action_parse.c)::

    database: ( service ( "[" ( "!"? status "=" action )+ "]" )? )*
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Status(enum.IntEnum):
    """``enum nss_status``: what a service answers."""

    TRYAGAIN = -2
    UNAVAIL = -1
    NOTFOUND = 0
    SUCCESS = 1


@dataclass(frozen=True, slots=True)
class Service:
    """One service on a database's line.

    Args:
        name: As in ``libnss_NAME.so.2``.
        stops_at: The statuses after which no further service is asked.
    """

    name: str
    stops_at: frozenset[Status] = frozenset({Status.SUCCESS})


FILES_ONLY: Final = (Service("files"),)
"""What glibc uses for accounts and groups where the file or the line is missing."""

_SERVICE: Final = re.compile(r"\s*([^\s\[\]]+)\s*(?:\[([^\]]*)\])?")
_CRITERION: Final = re.compile(r"\s*(!?)([A-Za-z]+)\s*=\s*([A-Za-z]+)(?=\s|$)")
_NAME: Final = re.compile(r"[A-Za-z0-9_.+-]+", re.ASCII)
_ACTIONS: Final = frozenset({"RETURN", "CONTINUE", "MERGE"})


def parse_nsswitch(text: str) -> Mapping[str, tuple[Service, ...]]:
    """Return each database's services, in the order of asking.

    Raises:
        ValueError: The text does not follow the grammar.
    """
    databases = {}
    for line in text.splitlines():
        name, colon, services = line.partition("#")[0].partition(":")
        if colon:
            databases[name.strip()] = tuple(_parse_services(services))
    return databases


def _parse_services(text: str) -> list[Service]:
    services = []
    place = 0
    while text[place:].strip():
        found = _SERVICE.match(text, place)
        if found is None or not _NAME.fullmatch(found[1]):
            raise ValueError("nsswitch.conf: a service's name was expected")
        services.append(Service(found[1], _parse_criteria(found[2])))
        place = found.end()
    return services


def _parse_criteria(text: str | None) -> frozenset[Status]:
    stops_at = {Status.SUCCESS}
    if text is None:
        return frozenset(stops_at)
    place = 0
    while place == 0 or text[place:].strip():
        found = _CRITERION.match(text, place)
        if found is None:
            raise ValueError("nsswitch.conf: STATUS=ACTION was expected between brackets")
        negated, status_name, action = found[1], found[2].upper(), found[3].upper()
        if status_name not in Status.__members__ or action not in _ACTIONS:
            raise ValueError("nsswitch.conf: unknown status or action")
        status = Status[status_name]
        for affected in set(Status) - {status} if negated else {status}:
            if action == "RETURN":
                stops_at.add(affected)
            else:
                stops_at.discard(affected)
        place = found.end()
    return frozenset(stops_at)
