"""What local ciphers do without a call: seal and open under keys that are at hand.

Messages take about two microseconds, of which every Python call is a twentieth; so the two methods
for short messages are written out where they would otherwise be taken apart.
"""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from time import CLOCK_BOOTTIME, clock_gettime
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from cryptography.exceptions import InvalidTag

from keyside._local_keys import LocalKeys
from keyside.envelope import (
    KIND_WHOLE,
    MAX_HEADER_BYTES,
    MAX_WHOLE_BYTES,
    encode_context,
    parse_payload_header,
    parse_wrapping_header,
)
from keyside.envelope.context import EMPTY_CONTEXT
from keyside.envelope.direct import (
    DirectKeys,
    open_directly,
    open_directly_into,
    require_possible_length,
    require_room,
)
from keyside.envelope.framing import PREAMBLE, TAG_LENGTH
from keyside.envelope.header import LENGTH_BESIDE_NAME, NAME_LENGTH_AT
from keyside.envelope.keys import Unshareable
from keyside.envelope.payload import open_one
from keyside.envelope.payload_header import SALTED_LENGTH, WHOLE_HEADER_LENGTH
from keyside.errors import EnvelopeRejected, InvalidArgument, LimitExceeded, UnexpectedAnswer
from keyside.names import parse_key_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside._local_keys import Bounds
    from keyside.data_keys import IssuedDataKey
    from keyside.envelope import DataKey
    from keyside.envelope.direct import DirectSealer

SEAL_TRIES: Final = 4
_SALT_END: Final = LENGTH_BESIDE_NAME + SALTED_LENGTH
_AFTER_SALT: Final = WHOLE_HEADER_LENGTH - SALTED_LENGTH
_COPY_BELOW: Final = 8192
_SEALED_OVERHEAD: Final = LENGTH_BESIDE_NAME + WHOLE_HEADER_LENGTH + TAG_LENGTH


class ToSeal(NamedTuple):
    """A message that needs a new data key.

    Args:
        plaintext: Its bytes.
        length: How many.
        encoded_context: Its context.
        buffer: Where its envelope goes; ``None`` for a new object.
        spent: The sealer that could not take it.
    """

    plaintext: bytes | memoryview
    length: int
    encoded_context: bytes
    buffer: memoryview | None
    spent: DirectSealer | None

    def __repr__(self) -> str:
        return "ToSeal(<redacted>)"


class ToOpen(NamedTuple):
    """An envelope whose data key is not at hand.

    Args:
        header: Its wrapping header.
        envelope: All of it.
        encoded_context: Its context.
        buffer: Where its plaintext goes; ``None`` for a new object.
    """

    header: bytes
    envelope: bytes | memoryview
    encoded_context: bytes
    buffer: memoryview | None


class LocalSteps(Unshareable):
    """What ``LocalCipher`` and ``AsyncLocalCipher`` share; see there.

    Where a key is not at hand, the methods return what ``_seal_later`` or ``_open_later`` return:
    in the one the result, in the other something to await.
    """

    def __init__(self, key: str, bounds: Bounds) -> None:
        self.key = parse_key_name(key)
        self._keys = LocalKeys(bounds)

    def __repr__(self) -> str:
        return f"<keyside.{type(self).__name__} {self.key}>"

    def seal(
        self,
        plaintext: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
    ) -> bytes:
        """Return an envelope of ``plaintext``.

        Args:
            plaintext: At most 1 GiB, and at most what one data key may seal; ``seal_into`` spares
                large ones a copy.
            context: As for ``Client.encrypt``.

        Raises:
            InvalidArgument: Plaintext or context is not valid.
            NotPermitted: Policy refuses: reason ``DATA_KEYS_NOT_ALLOWED`` where the key's policy
                has no ``allow_data_keys``.
            LimitExceeded: The plaintext is longer than what one data key may seal.
            KeysideError: What ``Client.generate_data_key`` raised, where a key was needed.
        """
        keys = self._keys
        if clock_gettime(CLOCK_BOOTTIME) >= keys.expires_at:
            keys.refresh()
        sealer = keys.sealer
        view = plaintext if type(plaintext) is bytes else as_view("plaintext", plaintext)
        length = len(view)
        encoded_context = EMPTY_CONTEXT if context is None else encode_context(context)
        if sealer is not None and length <= MAX_WHOLE_BYTES:
            envelope = sealer.seal(view, length, encoded_context)
            if envelope is not None:
                return envelope
        wanted = self._to_seal(view, encoded_context, None, sealer)
        return cast("bytes", self._seal_later(wanted))

    def open(
        self,
        envelope: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
    ) -> bytes:
        """Return what an envelope holds, whoever sealed it.

        Args:
            envelope: One of this cipher's key, whole.
            context: The pairs it was sealed with.

        Raises:
            EnvelopeRejected: It does not open, or is another key's; no more is said.
            KeysideError: What ``Client.decrypt_data_key`` raised, where its key was needed.
        """
        keys = self._keys
        if clock_gettime(CLOCK_BOOTTIME) >= keys.expires_at:
            keys.refresh()
        if type(envelope) is not bytes:
            envelope = bytes(as_view("envelope", envelope))
        encoded_context = EMPTY_CONTEXT if context is None else encode_context(context)
        at_hand = keys.ready
        beginning, ready = at_hand.latest
        if not envelope.startswith(beginning):
            if len(envelope) <= NAME_LENGTH_AT:
                raise EnvelopeRejected
            beginning = envelope[: envelope[NAME_LENGTH_AT] + _SALT_END]
            ready = at_hand.by_beginning.get(beginning)
            if ready is not None:
                at_hand.latest = (beginning, ready)
        if ready is None or len(envelope) >= _COPY_BELOW:
            return cast("bytes", self._open_slowly(envelope, encoded_context, None))
        # What ``open_directly`` does, here once more: a call costs as much as a step of it.
        salt_end = len(beginning)
        body_at = salt_end + _AFTER_SALT
        header = envelope[salt_end - SALTED_LENGTH : body_at]
        counter = header[26:34]
        digest = sha256(ready.digest_prefix + counter + encoded_context).digest()
        if not compare_digest(header[34:], digest):
            raise EnvelopeRejected
        try:
            return ready.decrypt(b"\0\0\0\0" + counter, envelope[body_at:], PREAMBLE + header)
        except InvalidTag:
            raise EnvelopeRejected from None

    def seal_into(
        self,
        plaintext: bytes | bytearray | memoryview,
        buffer: bytearray | memoryview,
        context: Mapping[str, str] | None = None,
    ) -> int:
        """Write an envelope to a buffer's beginning, which spares large ones a copy.

        Args:
            plaintext: As for ``seal``. It must not change meanwhile, nor overlap the buffer.
            buffer: Writable, with ``sealed_length(len(plaintext))`` bytes at least.
            context: As for ``seal``.

        Returns:
            The envelope's length.

        Raises:
            KeysideError: As for ``seal``.
        """
        view, room = as_view("plaintext", plaintext), as_view("buffer", buffer)
        encoded_context = EMPTY_CONTEXT if context is None else encode_context(context)
        require_room(room, self.sealed_length(len(view)))
        self._keys.refresh()
        sealer = self._keys.sealer
        if sealer is not None and len(view) <= MAX_WHOLE_BYTES:
            written = sealer.seal_into(view, len(view), encoded_context, room)
            if written is not None:
                return written
        wanted = self._to_seal(view, encoded_context, room, sealer)
        return cast("int", self._seal_later(wanted))

    def open_into(
        self,
        envelope: bytes | bytearray | memoryview,
        buffer: bytearray | memoryview,
        context: Mapping[str, str] | None = None,
    ) -> int:
        """Write what an envelope holds to a buffer's beginning.

        Nothing of what was refused is left there: the buffer holds zeros then.

        Args:
            envelope: As for ``open``. It must not change meanwhile, nor overlap the buffer.
            buffer: Writable, with as many bytes as the plaintext at least; the envelope's length
                is always enough.
            context: As for ``open``.

        Returns:
            The plaintext's length.

        Raises:
            KeysideError: As for ``open``.
        """
        view, room = as_view("envelope", envelope), as_view("buffer", buffer)
        encoded_context = EMPTY_CONTEXT if context is None else encode_context(context)
        self._keys.refresh()
        return cast("int", self._open_slowly(view, encoded_context, room))

    def sealed_length(self, length: int) -> int:
        """Return how long the envelope of a plaintext of ``length`` bytes is."""
        return length + len(self.key) + _SEALED_OVERHEAD

    def forget_keys(self) -> None:
        """Let go of all data keys now; the next message asks for a new one.

        A key that was asked for before and comes afterwards serves only who waited for it.
        """
        self._keys.forget()

    def _seal_later(self, wanted: ToSeal) -> object:
        raise NotImplementedError

    def _open_later(self, wanted: ToOpen) -> object:
        raise NotImplementedError

    def _to_seal(
        self,
        view: bytes | memoryview,
        encoded_context: bytes,
        buffer: memoryview | None,
        spent: DirectSealer | None,
    ) -> ToSeal:
        if len(view) > MAX_WHOLE_BYTES:
            raise InvalidArgument(
                f"a plaintext is at most {MAX_WHOLE_BYTES} bytes",
                reason="PLAINTEXT_TOO_LARGE",
                remedy="write it with keyside.open, which has no such limit",
            )
        if spent is not None and len(view) > spent.capacity:
            raise too_long_for_key(spent.capacity)
        return ToSeal(view, len(view), encoded_context, buffer, spent)

    def _open_slowly(
        self, envelope: bytes | memoryview, encoded_context: bytes, buffer: memoryview | None
    ) -> object:
        header = parse_wrapping_header(bytes(envelope[:MAX_HEADER_BYTES]))
        # An envelope of another key is not this cipher's, whatever its caller may open besides.
        if header.key_name != self.key:
            raise EnvelopeRejected
        wanted = ToOpen(header.raw, envelope, encoded_context, buffer)
        data_key = self._keys.find(header.raw)
        return self._open_later(wanted) if data_key is None else self._finish_open(wanted, data_key)

    def _finish_open(self, wanted: ToOpen, data_key: DataKey) -> bytes | int:
        """Open an envelope with its data key.

        Raises:
            EnvelopeRejected: It does not open.
            InvalidArgument: The buffer is too short.
        """
        header, envelope, encoded_context, buffer = wanted
        payload_at = len(header)
        payload = parse_payload_header(bytes(envelope[payload_at : payload_at + 70]))
        if payload.kind != KIND_WHOLE:
            plaintext = open_one(data_key, bytes(envelope), payload_at, encoded_context)
            return plaintext if buffer is None else _fill(buffer, plaintext)
        beginning = header + payload.salted
        ready = self._keys.ready.by_beginning.get(beginning)
        keys = DirectKeys(data_key, payload.salted, payload.suite) if ready is None else ready
        opened: bytes | int
        if buffer is None:
            opened = open_directly(keys, bytes(envelope), payload_at, encoded_context)
        else:
            view = memoryview(envelope)
            body_length = len(view) - payload_at - WHOLE_HEADER_LENGTH
            require_room(buffer, require_possible_length(body_length))
            opened = open_directly_into(keys, view, payload_at, encoded_context, buffer)
        if ready is None:
            self._keys.keep_ready(beginning, header, keys)
        return opened

    def _finish_seal(self, wanted: ToSeal, sealer: DirectSealer) -> bytes | int | None:
        """Seal a message with a new sealer; ``None`` where other threads have used that up.

        Raises:
            LimitExceeded: The message is longer than what one data key may seal.
        """
        view, length, encoded_context, buffer, _ = wanted
        if length > sealer.capacity:
            raise too_long_for_key(sealer.capacity)
        if buffer is None:
            return sealer.seal(view, length, encoded_context)
        return sealer.seal_into(view, length, encoded_context, buffer)

    def _take_issued(self, issued: IssuedDataKey, asked_at: float, epoch: int) -> DirectSealer:
        if issued.key != self.key:
            raise UnexpectedAnswer("the sidecar's answer is a data key of another key")
        return self._keys.use_for_sealing(issued, asked_at, epoch)


def as_view(what: str, value: bytes | bytearray | memoryview) -> memoryview:
    """Return a view of a value's bytes.

    Raises:
        InvalidArgument: It is of another type, or its bytes don't lie side by side.
    """
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise InvalidArgument(f"{what} is bytes, not {type(value).__name__}")
    try:
        return memoryview(value).cast("B")
    except TypeError:
        raise InvalidArgument(f"{what}: its bytes must lie side by side") from None


def too_long_for_key(max_bytes: int) -> LimitExceeded:
    """Return what is said of a plaintext that no data key of this cipher may seal."""
    return LimitExceeded(
        f"one data key of this cipher seals at most {max_bytes} bytes",
        reason="PLAINTEXT_TOO_LARGE",
        remedy="raise the cipher's max_bytes, or write it with keyside.open",
    )


def seal_contended() -> LimitExceeded:
    """Return what is said where other threads use up every new data key at once."""
    return LimitExceeded(
        "other threads used up every new data key before this message was sealed",
        remedy="raise the cipher's max_messages and max_bytes",
    )


def _fill(buffer: memoryview, plaintext: bytes) -> int:
    require_room(buffer, len(plaintext))
    buffer[: len(plaintext)] = plaintext
    return len(plaintext)
