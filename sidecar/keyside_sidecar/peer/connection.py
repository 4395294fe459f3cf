"""One accepted connection, as its worker knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside.names import KeyName
    from keyside_sidecar.access.policy import Subject
    from keyside_sidecar.peer.credential import PeerCredential


class Connection:
    """A caller's connection: who the kernel says is there, and how to end it.

    Args:
        number: The supervisor's number for it.
        credential: What the kernel said when it was accepted.
    """

    __slots__ = (
        "close",
        "credential",
        "decided",
        "decided_for",
        "described",
        "described_basis",
        "number",
        "public_only",
        "send_away",
        "server",
        "subject",
        "subject_basis",
    )

    def __init__(self, number: int, credential: PeerCredential) -> None:
        self.number = number
        self.credential = credential
        # Relayed to the server that knows health and public status only.
        self.public_only = True
        # Which of the main servers it is relayed to; None: to none of them, or not yet.
        self.server: int | None = None
        # Set by the relay when it starts; safe to call at any time and more than once.
        self.close: Callable[[], None] = _nothing
        # Likewise: the caller is asked to make its next calls on another connection.
        self.send_away: Callable[[], None] = _nothing
        # The last Subject made from this credential, and the membership answer it was made from.
        self.subject: Subject | None = None
        self.subject_basis: object = None
        # What policy has allowed that Subject: RPCs' names, each with a key.
        self.decided: set[tuple[str, KeyName | None]] = set()
        self.decided_for: Subject | None = None
        # What the audit log says of the caller, as JSON, and the answer that it was made from.
        self.described = ""
        self.described_basis: object = None

    def __repr__(self) -> str:
        return f"<Connection {self.number} pid={self.credential.pid} uid={self.credential.uid}>"


def _nothing() -> None:
    """Stand in for both before there is a relay."""
