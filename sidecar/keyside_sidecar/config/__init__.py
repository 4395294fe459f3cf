"""The configuration file: one TOML file, validated whole, every problem reported with its place.

A new setting: its field in ``settings.py``, its parser and bounds in ``sections.py`` (and
``values.py``), its row in docs/configuration.md.
"""

from __future__ import annotations

from keyside_sidecar.config.loader import load_config, parse_config
from keyside_sidecar.config.places import Places
from keyside_sidecar.config.settings import (
    AuditSettings,
    Config,
    ElevationSettings,
    IdentitySettings,
    KeySettings,
    LevelSettings,
    Principals,
    RootKeySettings,
    SidecarSettings,
    StoreSettings,
)

__all__ = [
    "AuditSettings",
    "Config",
    "ElevationSettings",
    "IdentitySettings",
    "KeySettings",
    "LevelSettings",
    "Places",
    "Principals",
    "RootKeySettings",
    "SidecarSettings",
    "StoreSettings",
    "load_config",
    "parse_config",
]
