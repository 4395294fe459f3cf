"""Root keys: what wraps key versions at rest, and who keeps it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keyside_sidecar.custody.custodian import Custodian
from keyside_sidecar.custody.file import (
    FileCustodian,
    create_root_key_file,
    name_former,
    name_next,
)

if TYPE_CHECKING:
    from keyside_sidecar.config import RootKeySettings


def open_custodian(settings: RootKeySettings) -> Custodian:
    """Return the custodian that ``[root_key]`` names, ready for use.

    Raises:
        CustodyError: The root key is missing, damaged, or others can get at it.
    """
    return FileCustodian.load(settings.path, owner_uids=frozenset({0, os.geteuid()}))


__all__ = [
    "Custodian",
    "FileCustodian",
    "create_root_key_file",
    "name_former",
    "name_next",
    "open_custodian",
]
