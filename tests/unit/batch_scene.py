"""Batches and data keys on a real store, with the policy of a test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.rpc import error_details_pb2
from tests.unit.api_scene import make_caller, serve
from tests.unit.made_store import BANK, MAIL, NOW, MadeStore

from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.api.v1 import batches as batch_messages
from keyside_sidecar.api.v1 import encryption as messages
from keyside_sidecar.config import parse_config
from keyside_sidecar.keys import Keyring
from keyside_sidecar.services.batch import Batch
from keyside_sidecar.services.batches import BatchService
from keyside_sidecar.services.data_keys import DataKeyService
from keyside_sidecar.services.encryption import EncryptionService
from keyside_sidecar.services.tally import Tally
from keyside_sidecar.services.turns import Turns
from keyside_sidecar.services.versions import Versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from google.rpc.status_pb2 import Status


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
    """The services over one keyring, and what the last batch was counted as."""

    keyring: Keyring
    forbidden: set[str] = field(default_factory=set)
    refused: dict[int, Exception] = field(default_factory=dict)
    tally: Tally = field(default_factory=lambda: Tally("/path"))

    def __post_init__(self) -> None:
        versions = Versions(self.keyring, StandingClock())
        self.turns = Turns()
        self.batches = BatchService(CONFIG, versions, self.turns)
        self.one = EncryptionService(CONFIG, versions)
        self.data_keys = DataKeyService(CONFIG, versions)

    async def call_one(self, method: str, request: Any) -> Any:
        """Return the response to a call that is no batch."""
        service = self.data_keys if "data_key" in method else self.one
        return await serve(messages, service, method, make_caller(UID), request)

    async def encrypt(self, *items: tuple[str, bytes, dict[str, str]]) -> list[Any]:
        """Return the results of BatchEncrypt."""
        request = pb.BatchEncryptRequest(
            items=[pb.BatchEncryptItem(key=k, plaintext=p, context=c) for k, p, c in items]
        )
        return await self._call_batch("batch_encrypt", request, pb.BatchEncryptResponse)

    async def decrypt(self, *items: tuple[bytes, dict[str, str]]) -> list[Any]:
        """Return the results of BatchDecrypt."""
        request = pb.BatchDecryptRequest(
            items=[pb.BatchDecryptItem(envelope=e, context=c) for e, c in items]
        )
        return await self._call_batch("batch_decrypt", request, pb.BatchDecryptResponse)

    async def rewrap(self, *envelopes: bytes) -> list[Any]:
        """Return the results of BatchRewrap."""
        request = pb.BatchRewrapRequest(
            items=[pb.BatchRewrapItem(envelope=envelope) for envelope in envelopes]
        )
        return await self._call_batch("batch_rewrap", request, pb.BatchRewrapResponse)

    async def _call_batch(self, method: str, request: Any, response: Any) -> list[Any]:
        self.tally = Tally("/path")
        batch = Batch(
            lambda key: Reason.NOT_ALLOWED if key in self.forbidden else None,
            self.tally,
            self.refused,
        )
        sink = batch_messages.ResultSink(response)
        command = getattr(batch_messages, f"read_{method}")(request)
        await getattr(self.batches, method)(make_caller(UID), batch, command, sink)
        return list(response.FromString(sink.serialise()).results)


@asynccontextmanager
async def scene_of(made: MadeStore) -> AsyncIterator[Scene]:
    """Give the services on a store."""
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
