"""Finding a secret in whatever it may have got into, however it was written there (I7)."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def read_root_key(path: Path) -> bytes:
    """Return the 32 bytes that a root key's file holds."""
    material = path.read_bytes().split(b":")[1]
    return base64.urlsafe_b64decode(material + b"=")


def write_forms(secret: bytes) -> dict[str, bytes]:
    """Return the secret as programs write bytes: raw, hex, base64 within anything, and a repr.

    Args:
        secret: At least 8 bytes, or its forms are short enough to turn up by accident.
    """
    assert len(secret) >= 8
    forms = {
        "raw": secret,
        "hex": secret.hex().encode(),
        "upper-case hex": secret.hex().upper().encode(),
        "repr": repr(secret)[2:-1].encode(),
    }
    for shift in range(3):
        # In the middle of other bytes only these characters depend on the secret alone.
        text = base64.b64encode(bytes(shift) + secret)
        inner = text[-(-shift * 8 // 6) : (shift + len(secret)) * 8 // 6]
        forms[f"base64, shifted by {shift}"] = inner
        forms[f"base64url, shifted by {shift}"] = inner.replace(b"+", b"-").replace(b"/", b"_")
    return forms


def find_secrets(places: Mapping[str, bytes], secrets: Mapping[str, bytes]) -> list[str]:
    """Return which secret is in which place, and how it is written there."""
    return [
        f"{name} in {place} as {form}"
        for name, secret in secrets.items()
        for form, written in write_forms(secret).items()
        for place, content in places.items()
        if written in content
    ]


def read_files(paths: Iterable[Path]) -> dict[str, bytes]:
    """Return what is in the files, by their names."""
    return {path.name: path.read_bytes() for path in paths if path.is_file()}
