"""Key versions and their states: what is in memory, and how it follows the store."""

from keyside_sidecar.keys.caretaker import KeyRules
from keyside_sidecar.keys.health import StoreProblem
from keyside_sidecar.keys.keyring import Change, Keyring, Rotation
from keyside_sidecar.keys.notices import Notice
from keyside_sidecar.keys.rollover import RolloverPolicy
from keyside_sidecar.store import KeyInfo, SidecarInfo, VersionInfo, VersionState, VersionUsage

__all__ = [
    "Change",
    "KeyInfo",
    "KeyRules",
    "Keyring",
    "Notice",
    "RolloverPolicy",
    "Rotation",
    "SidecarInfo",
    "StoreProblem",
    "VersionInfo",
    "VersionState",
    "VersionUsage",
]
