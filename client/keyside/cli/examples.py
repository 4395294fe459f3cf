"""Examples that ``--help`` shows, by the command's path; docs/cli.md says more."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ID: Final = "ar-4kq7m2xw3hza"

EXAMPLES: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "": (
            "encrypt mail-credentials -i token -o token.sealed",
            "decrypt -i token.sealed",
            "status",
        ),
        "encrypt": (
            "encrypt mail-credentials -c mailbox=42 < token > token.sealed",
            "encrypt mail-credentials -i mail.mbox -o mail.sealed",
        ),
        "decrypt": (
            "decrypt -c mailbox=42 < token.sealed",
            "decrypt -i mail.sealed -o mail.mbox",
        ),
        "rewrap": (
            "rewrap -i token.sealed -o token.sealed",
            "rewrap --dry-run /srv/mail",
            "rewrap /srv/mail",
        ),
        "reencrypt": (
            "reencrypt -c mailbox=42 < token.sealed > fresh.sealed",
            "reencrypt /srv/mail -c mailbox=42",
        ),
        "keys": ("keys list", "keys show mail-credentials"),
        "keys list": ("keys list", "keys list --json"),
        "keys show": ("keys show mail-credentials", "keys show mail-credentials --all"),
        "keys rotate": (
            "keys rotate mail-credentials",
            "keys rotate mail-credentials --compromised",
        ),
        "keys disable": ("keys disable mail-credentials 3",),
        "keys enable": ("keys enable mail-credentials 3",),
        "keys destroy": ("keys destroy mail-credentials 3",),
        "keys cancel-destroy": ("keys cancel-destroy mail-credentials 3",),
        "access": ("access list", f"access show {_ID}"),
        "access request": (
            'access request mail-credentials --reason "lost mail, INC-4711" --duration 30m',
            'access request mail-credentials --reason "audit" --duration 1h --versions 3-5',
        ),
        "access list": ("access list", "access list --all --json"),
        "access show": (f"access show {_ID}",),
        "access approve": (
            f"access approve {_ID}",
            "pass show me | {} access approve " + _ID + " --password-stdin",
        ),
        "access deny": (f'access deny {_ID} --reason "ask for less"',),
        "access cancel": (f"access cancel {_ID}",),
        "access activate": (
            f"access activate {_ID}",
            f"access activate {_ID} --credential-file /run/me/credential",
        ),
        "access revoke": (f'access revoke {_ID} --reason "done"',),
        "access watch": ("access watch", "access watch --json"),
        "audit": ("audit tail", "audit verify --public-key HEX /var/log/keyside"),
        "audit tail": ("audit tail -n 50 --outcome refused", "audit tail --follow --json"),
        "audit search": (
            "audit search --key mail-credentials --since 2h",
            "audit search --event access --account anna --since 2026-11-25",
        ),
        "audit show": ("audit show 4711",),
        "audit explain": (f"audit explain {_ID}",),
        "audit checkpoint": ("audit checkpoint -o checkpoint.json",),
        "audit verify": (
            "audit verify --public-key HEX /var/log/keyside",
            "audit verify --checkpoint checkpoint.json /var/log/keyside",
        ),
        "status": ("status", "status --json"),
        "completion": ('eval "$({} completion bash)"', "completion fish"),
    }
)
