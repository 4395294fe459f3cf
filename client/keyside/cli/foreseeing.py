"""Refusing what the sidecar would refuse, before anybody is asked for a yes or a password.

The sidecar says with a request or a key what this caller may do about it, by the rule that it will
decide by. Where it does not say, because it is too old or can't know now, the call itself will.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.errors import Conflict, KeysideError, NoSuchVersion, NotPermitted, WrongVersionState
from keyside.facts import KeyVersionState

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside.access_facts import AccessAction, AccessRequest
    from keyside.cli.files import Input
    from keyside.client import Client
    from keyside.facts import Key, KeyVersion

_UNKNOWN_CALL = "METHOD_UNKNOWN"


def require_possible(request: AccessRequest, action: AccessAction) -> None:
    """Refuse what may not be done about a request now.

    Raises:
        KeysideError: What the call would raise.
    """
    prospect = request.find_prospect(action)
    if prospect is not None and prospect.refused is not None:
        raise prospect.refused


def is_unknown_call(error: KeysideError) -> bool:
    """Whether the sidecar is too old to be asked beforehand."""
    return error.reason == _UNKNOWN_CALL


def require_before_typing(
    client: Client, source: Input, key: str | None, *, with_credential: Callable[[], bool]
) -> None:
    """Before anybody types the input: refuse what the sidecar refuses whatever it is.

    Does nothing where the input is a file or a pipe, which loses nobody's work.

    Args:
        client: To ask how the sidecar is and whom it takes this caller for.
        source: Where the input comes from.
        key: The key to be used; ``None`` where the input will name it.
        with_credential: Says whether there is a credential, so that policy alone does not decide.

    Raises:
        KeysideError: The sidecar is away, or refuses this caller or this key.
    """
    if not source.is_typed:
        return
    found = client.status()
    if with_credential():
        return
    if found.you is not None and found.you.refused:
        raise NotPermitted(
            f"the sidecar refuses this caller: {found.you.refused}",
            reason=found.you.refused,
            remedy=found.you.remedy,
        )
    if key is not None and key not in {one.name for one in found.keys}:
        raise NotPermitted(
            f"policy lets this caller use no key {key}, or there is none",
            reason="NOT_ALLOWED",
            remedy="keyside keys list shows the keys that you may see",
        )


def require_rotatable(key: Key, expected_current: int | None) -> None:
    """Refuse a rollover that can't be made.

    Raises:
        KeysideError: What the call would raise.
    """
    if key.change_refused is not None:
        raise key.change_refused
    if expected_current is not None and expected_current != key.current_version:
        raise Conflict(
            f"the current version is {key.current_version}, not {expected_current}",
            remedy="look at the key again before deciding to rotate it",
        )


def require_destroyable(key: Key, number: int, version: KeyVersion | None) -> None:
    """Refuse a destruction that can't be scheduled.

    Args:
        key: The key.
        number: The version's number.
        version: The version; ``None`` where there is none of that number.

    Raises:
        KeysideError: What the call would raise.
    """
    if key.change_refused is not None:
        raise key.change_refused
    if version is None:
        raise NoSuchVersion(
            f"{key.name} has no version {number}",
            remedy=f"keyside keys show {key.name} lists the key's versions",
        )
    if version.state is KeyVersionState.CURRENT:
        raise WrongVersionState(
            f"version {number} of {key.name} is the current one",
            reason="VERSION_IN_USE",
            remedy=f"roll the key over first: keyside keys rotate {key.name}",
        )
    if version.state is KeyVersionState.DESTROYED:
        raise WrongVersionState(f"version {number} of {key.name} is destroyed")
