"""Local ciphers, files and batches against the whole sidecar: envelopes of one kind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.sidecar import OTHER_UID, Sidecar, running_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar() as running:
        yield running


BOTH_WAYS = """
import asyncio, os
context = {"account": "42"}
cipher = keyside.LocalCipher(client, "mail-credentials")
texts = [os.urandom(size) for size in (0, 1, 256, 9000, 1 << 20)]
here = [cipher.seal(text, context) for text in texts]
there = [client.encrypt("mail-credentials", text, context) for text in texts]
short = texts[:4] * 100
batch = [one.envelope for one in client.encrypt_batch(
    ("mail-credentials", text, context) for text in short)]
assert [client.decrypt(one, context) for one in here] == texts
assert [cipher.open(one, context) for one in here + there] == texts * 2
assert [cipher.open(one, context) for one in batch] == short
assert [one.plaintext for one in client.decrypt_batch(
    (one, context) for one in here * 2 + batch)] == texts * 2 + short
rewrapped = [one.envelope for one in client.rewrap_batch(here)]
assert [cipher.open(one, context) for one in rewrapped] == texts

async def use():
    async with keyside.AsyncClient(expected_owner=int(os.environ["KEYSIDE_TEST_OWNER"])) as other:
        aside = keyside.AsyncLocalCipher(other, "mail-credentials")
        sealed = await asyncio.gather(*(aside.seal(text, context) for text in texts))
        assert [client.decrypt(one, context) for one in sealed] == texts
        assert await asyncio.gather(*(aside.open(one, context) for one in there)) == texts
        opened = [one.plaintext async for one in other.decrypt_batch((o, context) for o in batch)]
        assert opened == short

asyncio.run(use())
print("done")
"""


def test_what_one_seals_every_other_opens(sidecar: Sidecar) -> None:
    """Local ciphers, single calls and batches; in threads and in asyncio."""
    finished = sidecar.call(BOTH_WAYS)
    assert (finished.stdout, finished.stderr) == ("done\n", "")


FILES = """
import os
path, text = os.environ["SEALED"], os.urandom(3 << 20)
with keyside.open(path, "wb", key="mail-credentials", context={"f": "1"}, client=client) as file:
    file.write(text)
with keyside.open(path, context={"f": "1"}, client=client) as file:
    assert file.read() == text
    file.seek(-5, os.SEEK_END)
    assert file.read() == text[-5:]
with open(path, "rb") as file:
    sealed = file.read()
assert keyside.LocalCipher(client, "mail-credentials").open(sealed, {"f": "1"}) == text
with keyside.open(path, "wb", key="mail-credentials", client=client) as file:
    file.write(text[:70_000])
with open(path, "rb") as file:
    assert client.decrypt(file.read()) == text[:70_000]
print("done")
"""


def test_files_are_envelopes_too(sidecar: Sidecar) -> None:
    """Written and read here; a short one is opened by the sidecar as well."""
    folder = sidecar.directory / "files"
    folder.mkdir()
    folder.chmod(0o777)
    finished = sidecar.call(FILES, environment={"SEALED": str(folder / "sealed")})
    assert (finished.stdout, finished.stderr) == ("done\n", "")
    plain, sealed, opened = (folder / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(os.urandom(5 << 20))
    plain.chmod(0o644)
    for arguments in (
        ("encrypt", "mail-credentials", "-c", "a=b", "-i", str(plain), "-o", str(sealed)),
        ("decrypt", "-c", "a=b", "-i", str(sealed), "-o", str(opened)),
    ):
        done = sidecar.keyside(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert opened.read_bytes() == plain.read_bytes()


@pytest.mark.root
def test_without_allow_data_keys_there_is_none(sidecar: Sidecar) -> None:
    """Refused with that reason, and a long input with what to do."""
    refused = sidecar.call(
        """
try:
    keyside.LocalCipher(client, "payroll").seal(b"x")
except keyside.NotPermitted as error:
    print(error.reason)
""",
        uid=OTHER_UID,
    )
    assert (refused.stdout, refused.stderr) == ("DATA_KEYS_NOT_ALLOWED\n", "")
    long = sidecar.keyside("encrypt", "payroll", uid=OTHER_UID, stdin=bytes(2 << 20))
    assert (long.returncode, long.stdout) == (77, b"")
    assert b"needs a data key" in long.stderr
    assert b"set allow_data_keys = true" in long.stderr
