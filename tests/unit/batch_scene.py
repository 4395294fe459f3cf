"""BatchServicer and DataKeyServicer on a real store, with the policy of a test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.rpc import error_details_pb2
from tests.unit.made_store import BANK, MAIL, NOW, MadeStore

from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.access.policy import Subject
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.config import parse_config
from keyside_sidecar.keys import Keyring
from keyside_sidecar.peer.connection import Connection
from keyside_sidecar.peer.credential import PeerCredential
from keyside_sidecar.rpc.batch import Batch
from keyside_sidecar.rpc.batches import BatchServicer
from keyside_sidecar.rpc.data_keys import DataKeyServicer
from keyside_sidecar.rpc.encryption import EncryptionServicer
from keyside_sidecar.rpc.guard import Call
from keyside_sidecar.rpc.tally import Tally
from keyside_sidecar.rpc.turns import Turns
from keyside_sidecar.rpc.versions import Versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from google.rpc.status_pb2 import Status

    from keyside.envelope import WrappingHeader
    from keyside.names import KeyName

UID = 1001
CONFIG = parse_config(
    f"""\
[sidecar]
socket = "/run/keyside.sock"
max_plaintext_bytes = "256KiB"
max_batch_bytes = "1MiB"
[store]
url = "sqlite:////keyside.db"
[root_key]
provider = "file"
path = "/root.key"
[audit]
path = "/audit.jsonl"
[keys.{MAIL}]
allow_users = [{UID}]
suite = "ChaCha20-Poly1305"
allow_data_keys = true
data_key_max_age = "90s"
[keys.{BANK}]
allow_users = [{UID}]
allow_data_keys = true
rotate_after_messages = 6400
rotate_after_bytes = "64MiB"
""".encode(),
    Path("keyside.toml"),
)


class StandingClock:
    """Shows one time for ever."""

    def now(self) -> datetime:
        """Return it."""
        return NOW

    def monotonic_s(self) -> float:
        """Return 0."""
        return 0.0


@dataclass
class Scene:
    """The servicers over one keyring, and what the last batch was counted as."""

    keyring: Keyring
    forbidden: set[str] = field(default_factory=set)
    refused: dict[int, Exception] = field(default_factory=dict)
    tally: Tally = field(default_factory=lambda: Tally("/path"))

    def __post_init__(self) -> None:
        versions = Versions(self.keyring, StandingClock())
        self.turns = Turns()
        self.batches = BatchServicer(CONFIG, self.keyring, versions, self.turns)
        self.one = EncryptionServicer(CONFIG, self.keyring, versions)
        self.data_keys = DataKeyServicer(CONFIG, self.keyring, versions)

    def call(self, key: KeyName | None = None, header: WrappingHeader | None = None) -> Call:
        """Return a call as the guard makes it."""
        credential = PeerCredential(
            pid=4711, uid=UID, gid=UID, groups=(), login_uid=None, session_id=None
        )
        self.tally = Tally("/path")
        batch = Batch(
            lambda key: Reason.NOT_ALLOWED if key in self.forbidden else None,
            self.tally,
            self.refused,
        )
        subject = Subject(UID, frozenset())
        return Call(Connection(1, credential), subject, key, header, batch)

    async def encrypt(self, *items: tuple[str, bytes, dict[str, str]]) -> list[Any]:
        """Return the results of BatchEncrypt."""
        request = pb.BatchEncryptRequest(
            items=[pb.BatchEncryptItem(key=k, plaintext=p, context=c) for k, p, c in items]
        )
        answer = await self.batches.batch_encrypt(self.call(), request)
        return list(pb.BatchEncryptResponse.FromString(answer).results)

    async def decrypt(self, *items: tuple[bytes, dict[str, str]]) -> list[Any]:
        """Return the results of BatchDecrypt."""
        request = pb.BatchDecryptRequest(
            items=[pb.BatchDecryptItem(envelope=e, context=c) for e, c in items]
        )
        answer = await self.batches.batch_decrypt(self.call(), request)
        return list(pb.BatchDecryptResponse.FromString(answer).results)

    async def rewrap(self, *envelopes: bytes) -> list[Any]:
        """Return the results of BatchRewrap."""
        request = pb.BatchRewrapRequest(
            items=[pb.BatchRewrapItem(envelope=envelope) for envelope in envelopes]
        )
        answer = await self.batches.batch_rewrap(self.call(), request)
        return list(pb.BatchRewrapResponse.FromString(answer).results)


@asynccontextmanager
async def scene_of(made: MadeStore) -> AsyncIterator[Scene]:
    """Give the servicers on a store."""
    keyring = Keyring(made.open(), [MAIL, BANK], clock=StandingClock(), poll_interval_s=0.05)
    await keyring.start()
    try:
        yield Scene(keyring)
    finally:
        await keyring.stop()


def reason_of(result: Any) -> str:
    """Return why an item failed; ``""`` where it succeeded. A failed one has nothing else."""
    if not result.HasField("status"):
        return ""
    status: Status = result.status
    assert result == type(result)(status=status)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, bool(status.message)) == ("keyside", True)
    reason: str = info.reason
    return reason
