"""What a request for access is bound to: the policy under which it was made.

SHA-256 over one canonical JSON text that holds all of ``[elevation]``, ``[people]`` and the key's
own table, each as it is in force (a default that is written out is no change), with the ids that
names were resolved to. When any of that changes, what was approved is no longer what would be done,
and access must be asked for anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from keyside_sidecar.access.elevation_policy import ElevationPolicy
    from keyside_sidecar.access.policy import KeyPolicy
    from keyside_sidecar.config import Config

_LABEL: Final = b"keyside/v1/access-policy\x00"


def digest_policy(config: Config, elevation: ElevationPolicy, key: str, policy: KeyPolicy) -> bytes:
    """Return the digest (32 bytes) that a request for a key is bound to.

    Args:
        config: The whole configuration, with ``[elevation]``.
        elevation: What that was resolved to; its digests don't matter.
        key: The key's name, which is in the configuration.
        policy: What the key's table was resolved to.
    """
    document = {
        "elevation": _plain(config.elevation),
        "people": _plain(config.people),
        "key": _plain(config.keys[key]),
        "ids": {
            "requesters": sorted(elevation.requester_gids),
            "levels": [level.gid for level in elevation.levels],
            "people": sorted(elevation.people.items()),
            "allowed_groups": sorted(policy.allowed.gids),
            "allowed_users": sorted(policy.allowed.uids),
            "encrypt_groups": _sorted(policy.encrypt_gids),
            "decrypt_groups": _sorted(policy.decrypt_gids),
        },
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(_LABEL + text.encode("ascii")).digest()


def _sorted(gids: frozenset[int] | None) -> list[int] | None:
    return None if gids is None else sorted(gids)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "items"):
        return {str(name): _plain(part) for name, part in value.items()}
    return value
