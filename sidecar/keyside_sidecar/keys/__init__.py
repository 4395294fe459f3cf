"""Key versions and their states: what is in memory, and how it follows the store."""

from keyside_sidecar.keys.health import StoreProblem
from keyside_sidecar.keys.keyring import Keyring, Rotation
from keyside_sidecar.store import KeyInfo, VersionInfo, VersionState

__all__ = ["KeyInfo", "Keyring", "Rotation", "StoreProblem", "VersionInfo", "VersionState"]
