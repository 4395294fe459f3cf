"""Data keys: the header is an envelope's, all that may be sealed is charged, and ages are told."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.api_scene import make_caller
from tests.unit.batch_scene import UID, Scene, scene_of
from tests.unit.made_store import BANK, MAIL, MadeStore, make_store

from keyside.envelope import DataKey, PayloadSealer, suite_by_name
from keyside.errors import EnvelopeRejected
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.api.v1 import encryption as messages
from keyside_sidecar.errors import UnknownVersion, VersionDisabled
from keyside_sidecar.services.shapes import merge

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from keyside.names import KeyName


@pytest.fixture
def made(tmp_path: Path) -> MadeStore:
    tmp_path.chmod(0o700)
    return make_store(tmp_path)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def generate(
    scene: Scene, key: KeyName = MAIL, *, wrapped_only: bool = False
) -> pb.GenerateDataKeyResponse:
    request = pb.GenerateDataKeyRequest(key=key, wrapped_only=wrapped_only)
    given: pb.GenerateDataKeyResponse = await scene.call_one("generate_data_key", request)
    return given


async def decrypt(scene: Scene, wrapped: bytes) -> pb.DecryptDataKeyResponse:
    request = pb.DecryptDataKeyRequest(wrapped=wrapped)
    given: pb.DecryptDataKeyResponse = await scene.call_one("decrypt_data_key", request)
    return given


def test_a_data_key_and_its_header_make_envelopes_that_the_sidecar_opens(made: MadeStore) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            given = await generate(scene)
            assert (len(given.plaintext), given.suite) == (32, "ChaCha20-Poly1305")
            assert (given.version.key, given.version.number) == (MAIL, 1)
            assert given.max_age.seconds == 90
            again = await decrypt(scene, given.wrapped)
            assert again.plaintext == given.plaintext
            assert (again.version, again.suite) == (given.version, given.suite)
            assert again.max_age == given.max_age
            suite = suite_by_name(given.suite)
            sealer = PayloadSealer(DataKey(given.plaintext), suite)
            envelope = given.wrapped + sealer.seal(b"text", {"a": "b"})
            (opened,) = await scene.decrypt((envelope, {"a": "b"}))
            assert opened.plaintext == b"text"
            assert (await decrypt(scene, envelope)).plaintext == given.plaintext

    run(scenario())


def test_the_wrapped_form_alone_tells_no_key(made: MadeStore) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            given = await generate(scene, wrapped_only=True)
            assert given.plaintext == b""
            assert len((await decrypt(scene, given.wrapped)).plaintext) == 32
            other = await generate(scene)
            assert other.wrapped != given.wrapped

    run(scenario())


@pytest.mark.parametrize(
    ("key", "messages", "size_bytes"),
    [(MAIL, 1 << 20, 1 << 36), (BANK, 100, 1 << 20)],
    ids=["without limits", "a part of what rolls the key over"],
)
def test_all_that_may_be_sealed_is_charged_at_once(
    made: MadeStore, key: KeyName, messages: int, size_bytes: int
) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            given = await generate(scene, key)
            assert (given.max_messages, given.max_bytes) == (messages, size_bytes)
            await generate(scene, key)
            await scene.keyring.flush_usage()
            usage = (await scene.keyring.read_usage(key, [1]))[1]
            assert usage.messages >= 2 * messages
            assert usage.plaintext_bytes >= 2 * size_bytes

    run(scenario())


def test_what_does_not_unwrap_gives_no_key(made: MadeStore) -> None:
    async def scenario() -> None:
        async with scene_of(made) as scene:
            given = await generate(scene)
            wrapped = bytearray(given.wrapped)
            wrapped[-1] ^= 1
            with pytest.raises(EnvelopeRejected):
                await decrypt(scene, bytes(wrapped))
            with pytest.raises(EnvelopeRejected):
                await decrypt(scene, given.wrapped[:-1])
            number = 6 + len(MAIL)
            renumbered = given.wrapped[:number] + (7).to_bytes(4) + given.wrapped[number + 4 :]
            with pytest.raises(UnknownVersion):
                await decrypt(scene, renumbered)
            await scene.keyring.rotate(MAIL, actor_uid=5, expected_current=1)
            assert (await decrypt(scene, given.wrapped)).version.number == 1
            await scene.keyring.disable(MAIL, 1, actor_uid=5)
            with pytest.raises(VersionDisabled):
                await decrypt(scene, given.wrapped)

    run(scenario())


def test_the_log_knows_a_data_key_by_its_wrapped_form(made: MadeStore) -> None:
    """By the digest of what every envelope under it begins with; and never by its bytes (I7)."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            asked = messages.read_generate_data_key(pb.GenerateDataKeyRequest(key=MAIL))
            given = await scene.data_keys.generate_data_key(make_caller(UID), asked)
            digest = hashlib.sha256(given.wrapped).hexdigest()
            assert merge(asked.facts(), given.facts()) == {
                "version": 1,
                "digest": digest,
                "details": {"max_age_s": 90, "max_messages": 1 << 20, "max_bytes": 1 << 36},
            }
            wanted = messages.read_decrypt_data_key(pb.DecryptDataKeyRequest(wrapped=given.wrapped))
            opened = await scene.data_keys.decrypt_data_key(make_caller(UID), wanted)
            found = merge(wanted.facts(), opened.facts())
            assert found == {"version": 1, "digest": digest, "details": {"max_age_s": 90}}
            only = messages.read_generate_data_key(
                pb.GenerateDataKeyRequest(key=MAIL, wrapped_only=True)
            )
            assert only.facts() == {"details": {"wrapped_only": True}}

    run(scenario())
