"""Sealed files that are read and written as if they were plain: ``keyside.open``."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, overload

from keyside.envelope import encode_context
from keyside.errors import EnvelopeRejected, InvalidArgument
from keyside.names import parse_key_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside._file_writing import SealedFileWriter
    from keyside.client import Client

Path: TypeAlias = str | bytes | os.PathLike[str]

_BUFFER_BYTES: Final = 1 << 20
_MODES: Final = ("rb", "wb", "xb")


@overload
def open(  # noqa: A001
    path: Path,
    mode: Literal["rb"] = "rb",
    *,
    key: str | None = None,
    context: Mapping[str, str] | None = None,
    client: Client | None = None,
) -> io.BufferedReader: ...


@overload
def open(  # noqa: A001
    path: Path,
    mode: Literal["wb", "xb"],
    *,
    key: str,
    context: Mapping[str, str] | None = None,
    client: Client | None = None,
) -> SealedFileWriter: ...


def open(  # noqa: A001  (what it is to files that are not sealed)
    path: Path,
    mode: str = "rb",
    *,
    key: str | None = None,
    context: Mapping[str, str] | None = None,
    client: Client | None = None,
) -> io.BufferedReader | SealedFileWriter:
    """Open a sealed file of any size, in constant memory.

    Writing seals under a data key of the file's own, in segments of 64 KiB, and needs
    ``allow_data_keys`` in the key's policy. The file appears under its name when it is closed, and
    only if everything until then succeeded; an exception in its ``with`` block, ``discard`` or
    being forgotten leaves nothing, and what stood there as it was. Whoever calls ``close`` lets it
    appear: an ``io.TextIOWrapper`` around it does so when it is closed itself, whatever was raised,
    so ``detach`` that instead. It can't seek, and ``flush`` does nothing. Killed at any moment, it
    leaves nothing (``.keyside-*.tmp`` where the file system has no files without a name; a later
    call for that directory removes it).

    A file that is replaced hands on its owner, group, mode, access control list and other extended
    attributes. What can't be kept is narrower, never wider; when the file is closed it is named in
    a ``RuntimeWarning`` and is in the file's ``not_kept``. A symbolic link stays, and the file that
    it leads to is replaced. A device or a pipe is written to as it is; and a path that names a
    descriptor of this process (``/dev/stdout``, ``/dev/fd/3``) means that descriptor, which is
    read or written where it stands.

    Reading hands out what has opened and nothing else. A file can be read from any place, and one
    whose end is missing is refused here; from a pipe, that is found at the end, as
    ``EnvelopeRejected`` in place of the last bytes. A short file is opened by the sidecar in one
    call, as ``Client.decrypt`` does; a longer one needs ``allow_data_keys``. An envelope that was
    sealed as a whole (by ``Client.encrypt`` or a ``LocalCipher``) is read into memory.

    Permission is asked for when the file is opened and, where it is read for longer than
    ``data_key_max_age``, again.

    Args:
        path: The file, or a pipe's or device's name.
        mode: ``"rb"`` to read, ``"wb"`` to write or replace, ``"xb"`` to write what must not be
            there yet.
        key: The key's name. For reading it may be left out; where it is given, envelopes of other
            keys are refused.
        context: As for ``Client.encrypt``.
        client: Calls the sidecar; ``None`` makes one and closes it with the file.

    Returns:
        A buffered binary file; the position and length are the plaintext's.

    Raises:
        InvalidArgument: Mode, key or context is not valid.
        EnvelopeRejected: It does not open; deliberately no more is said.
        NotPermitted: Policy refuses: reason ``DATA_KEYS_NOT_ALLOWED`` where the key's policy has
            no ``allow_data_keys``.
        KeysideError: As for ``Client.decrypt``.
        OSError: As for the builtin ``open``.
    """
    if mode not in _MODES:
        raise InvalidArgument(f"mode is one of {', '.join(_MODES)}", reason="INVALID_MODE")
    if mode != "rb" and key is None:
        raise InvalidArgument("key: to write, name the key to seal under", reason="INVALID_KEY")
    if key is not None:
        parse_key_name(key)
    pairs = dict(context or {})
    encode_context(pairs)
    if client is not None:
        return _open(path, mode, key, pairs, client, own=False)
    from keyside.client import Client

    own = Client()
    try:
        return _open(path, mode, key, pairs, own, own=True)
    except BaseException:
        own.close()
        raise


def _open(
    path: Path, mode: str, key: str | None, context: dict[str, str], client: Client, *, own: bool
) -> io.BufferedReader | SealedFileWriter:
    close_source = client.close if own else _keep
    if mode == "rb":
        from keyside._descriptor_paths import open_input
        from keyside._sealed_input import SealedInput, open_small

        sealed = SealedInput(open_input(path))
        try:
            if key is not None and sealed.header.key_name != key:
                raise EnvelopeRejected
            envelope = sealed.read_small()
            if envelope is not None:
                plaintext = open_small(client, envelope, context)
                if plaintext is not None:
                    close_source()
                    return io.BufferedReader(io.BytesIO(plaintext))
            raw = sealed.open(client, context, close_source)
        finally:
            sealed.close()
        return io.BufferedReader(raw, _BUFFER_BYTES)
    from keyside._file_writing import SealedFileWriter
    from keyside._stream_keys import StreamSealer

    assert key is not None  # noqa: S101  (``open`` has seen to it)
    # The data key first: a refusal leaves no trace.
    return SealedFileWriter(
        path,
        StreamSealer(client, key, context),
        exclusive=mode == "xb",
        close_source=close_source,
    )


def _keep() -> None:
    """Leave the client open: it is the caller's."""
