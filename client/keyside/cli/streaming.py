"""What ``keyside encrypt`` and ``decrypt`` do with more than one call takes: pass segments on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from keyside.cli import exits
from keyside.cli.exits import CommandError
from keyside.cli.progress import Progress
from keyside.errors import NotPermitted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside._sealed_input import SealedInput
    from keyside.cli.files import Output
    from keyside.client import Client

_BUFFER_BYTES: Final = 1 << 20


def encrypt_stream(
    client: Client, key: str, context: dict[str, str], source: SealedInput, target: Output
) -> None:
    """Seal all of the input under a data key of its own, in segments.

    Raises:
        CommandError: The key's policy allows no data keys, or writing failed.
        KeysideError: As for ``Client.generate_data_key``.
        OSError: Reading failed.
    """
    from keyside._file_writing import Sealing
    from keyside._stream_keys import StreamSealer

    with _explaining():
        sealing = Sealing(StreamSealer(client, key, context), target.append)
        with Progress(source.size) as progress:

            def read(buffer: memoryview) -> int:
                count = source.read_into(buffer)
                progress.add(count)
                return count

            sealing.add_all(read)
            sealing.end()


def decrypt_stream(
    client: Client, context: dict[str, str], source: SealedInput, target: Output
) -> None:
    """Open all of the input under its data key; only what has opened is passed on.

    Raises:
        CommandError: The key's policy allows no data keys, or writing failed.
        EnvelopeRejected: It does not open, or its end is missing.
        KeysideError: As for ``Client.decrypt_data_key``.
        OSError: Reading failed.
    """
    with _explaining():
        reader = source.open(client, context, lambda: None)
        with reader, Progress(source.size) as progress:
            buffer = memoryview(bytearray(_BUFFER_BYTES))
            while count := reader.readinto(buffer):
                target.append(buffer[:count])
                progress.add(count)


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Say why data keys come into it where policy gives none."""
    try:
        yield
    except NotPermitted as error:
        if error.reason != "DATA_KEYS_NOT_ALLOWED":
            raise
        raise CommandError(
            f"more than the sidecar takes in one call needs a data key, and {error}",
            exits.NOT_PERMITTED,
            error.remedy,
        ) from None


def rewrap_stream(client: Client, source: SealedInput, target: Output) -> None:
    """Pass the input on with another wrapping header; only that is sent.

    Raises:
        CommandError: Writing failed, or the input is not as long as it was.
        EnvelopeRejected: Its wrapping header does not open, or there is no payload behind it.
        KeysideError: As for ``Client.rewrap``.
        OSError: Reading failed.
    """
    from keyside.cli.replacing import changed_meanwhile
    from keyside.cli.rewriting import parse_answer

    header = source.require_payload()
    made = client.rewrap(header.raw)
    parse_answer(made, header, has_payload=False)
    target.append(made)
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with Progress(source.size) as progress:
        copied = source.read_into(buffer[: len(header.raw)])
        end = target.copy_rest(source, progress.add)
        if end is None:
            while count := source.read_into(buffer):
                target.append(buffer[:count])
                progress.add(count)
                copied += count
            end = copied
    if source.size is not None and end != source.size:
        raise changed_meanwhile()
