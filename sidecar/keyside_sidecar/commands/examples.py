"""Examples that ``keysided --help`` shows, by the command's path; docs/keysided.md says more."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXAMPLES: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "": ("init", "check", "--config /etc/keyside/keyside.toml serve"),
        "init": (
            "init",
            "init --only-audit",
            "init --store-url postgresql+psycopg://owner@db.example/keyside",
        ),
        "migrate": (
            "migrate",
            "migrate --store-url postgresql+psycopg://owner@db.example/keyside",
        ),
        "backup": (
            "backup /var/backups/keyside-2026-07-05.backup",
            "backup - | ssh vault.example 'cat > keyside.backup'",
        ),
        "restore": (
            "restore /var/backups/keyside-2026-07-05.backup",
            "ssh vault.example cat keyside.backup | {} restore -",
        ),
        "root": ("root show", "root rotate"),
        "root rotate": ("root rotate --prepare", "root rotate"),
        "root show": ("root show", "root show --json"),
        "check": ("check", "--config new.toml check --json"),
        "serve": ("serve", "serve --accept-rollback"),
        "files": ("files list", "files show grants.sql", "files install keyside.service"),
        "files list": ("files list", "files list --json"),
        "files show": ("files show grants.sql", "files show docs/operations.md"),
        "files install": (
            "files install keyside.service",
            "files install --to . protos",
            "files install --force keyside.service",
        ),
        "completion": ('eval "$({} completion bash)"', "completion fish"),
    }
)
