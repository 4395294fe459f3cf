"""``[elevation]``, ``[[elevation.levels]]``, ``[people]``: who may get access, and who decides."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from keyside_sidecar.config import values
from keyside_sidecar.config.reader import Table, show
from keyside_sidecar.config.sections import SETTINGS_OF
from keyside_sidecar.config.settings import DAY_S, ElevationSettings, LevelSettings
from keyside_sidecar.config.units import WrongValueError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside_sidecar.config.settings import IdentitySettings, Principals

    People = Mapping[str, tuple[str | int, ...]]

_DEFAULT: Final = ElevationSettings(requesters=(), levels=())
_MAX_LEVELS: Final = 8
_MAX_APPROVALS: Final = 20
_MIN_DURATION_S: Final = 60
_MAX_DURATION_S: Final = 7 * DAY_S
_MIN_TTL_S: Final = 60
_MAX_TTL_S: Final = 30 * DAY_S
_MAX_OPEN: Final = 100
_MIN_PAM_S: Final = 0.5
_MAX_PAM_S: Final = 60
_PAM_SERVICE: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", re.ASCII)


def read_elevation(
    top: Table, identity: IdentitySettings, operators: Principals
) -> ElevationSettings | None:
    """Read ``[elevation]``; None where the file has none, and then nobody can get access.

    Args:
        top: The whole file.
        identity: Its ``[identity]``.
        operators: Its ``[operators]``.
    """
    table, default = top.table("elevation"), _DEFAULT
    if not top.has("elevation"):
        return None
    settings = ElevationSettings(
        requesters=_read_groups(table, "requesters"),
        levels=_read_levels(table),
        pam_service=table.get("pam_service", _parse_pam_service, default.pam_service),
        pam_timeout_s=table.get(
            "pam_timeout",
            values.parse_duration_in(_MIN_PAM_S, _MAX_PAM_S),
            default.pam_timeout_s,
        ),
        max_duration_s=table.get(
            "max_duration",
            values.parse_duration_in(_MIN_DURATION_S, _MAX_DURATION_S),
            default.max_duration_s,
        ),
        request_ttl_s=table.get(
            "request_ttl", values.parse_duration_in(_MIN_TTL_S, _MAX_TTL_S), default.request_ttl_s
        ),
        max_open_requests=table.get(
            "max_open_requests", values.parse_int_in(1, _MAX_OPEN), default.max_open_requests
        ),
        rollover_after_grant=table.get(
            "rollover_after_grant", values.parse_bool, default.rollover_after_grant
        ),
        shared_ids=table.get("shared_ids", values.parse_bool, default.shared_ids),
        notify=table.get("notify", values.parse_command, default.notify),
    )
    if identity.membership != "account":
        table.problem(
            'needs membership = "account" in [identity]: whether an approver is still in the '
            "group that decides is asked of the name service"
        )
    _warn(table, settings, operators)
    table.finish({name: known for name, known in SETTINGS_OF.items() if name != "elevation"})
    return settings


def read_people(top: Table) -> People:
    """Read ``[people]``: each person's accounts."""
    given = top.tables("people")
    table = Table(top.report, ("people",), given)
    people: dict[str, tuple[str | int, ...]] = {}
    seen: dict[str | int, str] = {}
    for name in given:
        accounts = table.get_items(name, values.parse_principal, shape='["anna", "anna-admin"]')
        if table.is_empty(name):
            table.problem("must name the person's accounts", name)
        for index, account in enumerate(accounts):
            other = seen.setdefault(account, name)
            if other != name:
                message = f"{show(account)} is an account of {show(other)} already"
                table.problem(message, name, index)
        people[name] = accounts
    if people and not top.has("elevation"):
        table.warn("has no effect without [elevation]")
    return MappingProxyType(people)


def _read_groups(table: Table, setting: str) -> tuple[str | int, ...]:
    if not table.has(setting):
        table.problem(f'needs the setting "{setting}"')
    elif table.is_empty(setting):
        table.problem("must name a group; leave [elevation] out where nobody may ask", setting)
    return table.get_items(setting, values.parse_principal, shape='["datacenter-admins"]')


def _read_levels(table: Table) -> tuple[LevelSettings, ...]:
    nothing: list[object] = []
    given = table.get("levels", _parse_tables, nothing)
    if table.is_empty("levels"):
        table.problem("needs at least one [[elevation.levels]]: without any, nobody would decide")
    if len(given) > _MAX_LEVELS:
        table.problem(f"must be at most {_MAX_LEVELS}", "levels")
    levels = []
    for index, content in enumerate(given[:_MAX_LEVELS]):
        level = Table(table.report, ("elevation", "levels", index), content)
        stand_in: str | int = 0
        group = level.require("group", values.parse_principal, stand_in)
        # Never a default: a threshold that was left out must not be a low one.
        approvals = level.require("approvals", values.parse_int_in(1, _MAX_APPROVALS), 1)
        level.finish(SETTINGS_OF)
        levels.append(LevelSettings(group, approvals))
    return tuple(levels)


def _parse_tables(value: object) -> list[object]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise WrongValueError("must be tables, each under [[elevation.levels]]")
    return value


def _parse_pam_service(value: object) -> str:
    if not isinstance(value, str) or not _PAM_SERVICE.fullmatch(value):
        raise WrongValueError(
            "must be the name of a file in /etc/pam.d: at most 64 letters, digits, '-', '_' and "
            f"'.', not {show(value)}"
        )
    return value


def _warn(table: Table, settings: ElevationSettings, operators: Principals) -> None:
    operating = set(operators.groups)
    for index, group in enumerate(settings.requesters):
        if group in operating:
            table.warn(
                f"{show(group)} is in [operators] too, and operators can't ask for access",
                "requesters",
                index,
            )
        if any(level.group == group for level in settings.levels):
            table.warn(
                f"{show(group)} decides at a level as well: its members approve one another's "
                "requests",
                "requesters",
                index,
            )
