"""Bounds that need nothing else of this package to be known."""

from __future__ import annotations

from typing import Final

MAX_CALL_BYTES: Final = 17 * 1024 * 1024
"""More than any sidecar can be configured to take in one call (16 MiB of plaintext)."""
