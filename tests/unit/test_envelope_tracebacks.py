"""A refusal's traceback, with every frame's locals, holds no key and no plaintext (I7).

Error reporters record the locals of each frame that an exception has passed through. Here every
place that refuses an envelope is made to refuse one, and what such a reporter would record is
searched for every key that was in play.
"""

from __future__ import annotations

import ast
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from keyside import envelope as package
from keyside.envelope import (
    KIND_WHOLE,
    SUITES,
    DataKey,
    PayloadOpener,
    PayloadSealer,
    SegmentOpener,
    SegmentSealer,
    Suite,
    VersionKey,
    direct,
    encode_context,
    generate_data_key,
    header,
    open_envelope,
    parse_payload_header,
    parse_wrapping_header,
    payload_header,
    rewrap,
    unwrap_data_key,
    wrap_data_key,
)
from keyside.envelope.kdf import WRAP, derive_key_pair
from keyside.errors import EnvelopeRejected
from keyside.names import KeyName, VersionNumber

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 4096
CONTEXT = {"account": "42"}
PLAINTEXT = b"the plaintext that nobody may see"
SEGMENT = PLAINTEXT + bytes(SIZE - len(PLAINTEXT))


def make_version(number: int, material: bytes) -> VersionKey:
    return VersionKey(KeyName("mail"), VersionNumber(number), bytes(16), material)


VERSION = make_version(7, bytes(range(0x80, 0xA0)))
NEW = make_version(8, bytes(range(0xC0, 0xE0)))


@pytest.fixture
def keys() -> Iterator[set[bytes]]:
    """Every key that is derived from another while the test runs, and the versions' own."""
    seen = {VERSION.material, NEW.material}

    def derive(key: bytes, purpose: bytes, context: bytes) -> bytes:
        pair = derive_key_pair(key, purpose, context)
        # A wrapping pair's second half is no key: it stands in the header, to commit to the first.
        seen.update({key, pair[:32]} if purpose == WRAP else {key, pair[:32], pair[32:]})
        return pair

    with (
        mock.patch.object(header, "derive_key_pair", derive),
        mock.patch.object(payload_header, "derive_key_pair", derive),
    ):
        yield seen


def record_refusal(call: Callable[[], object]) -> tuple[str, tuple[str, int]] | None:
    """Return all that a reporter may record of a refusal, and the place that refused."""
    try:
        call()
    except EnvelopeRejected as error:
        texts: list[str] = []
        chained: BaseException | None = error
        while chained is not None:  # a reporter may follow a context that Python suppresses
            recorded = traceback.TracebackException.from_exception(chained, capture_locals=True)
            texts += recorded.format()
            chained = chained.__context__
        last = list(traceback.walk_tb(error.__traceback__))[-1]
        return "".join(texts), (last[0].f_code.co_filename, last[1])
    return None


def normalise(text: str) -> str:
    """Undo what depends on the quotes that a representation happens to stand in."""
    return text.replace("\\'", "'").replace('\\"', '"')


def find_secrets(text: str, secrets: set[bytes]) -> list[bytes]:
    """Return those of the secrets that a text holds in any of the usual forms."""
    text = normalise(text)
    return [
        secret
        for secret in secrets
        if any(
            form in text
            for form in (
                normalise(repr(secret)[2:-1]),
                secret.hex(),
                secret.decode("latin-1"),
                repr(list(secret)),
                str(int.from_bytes(secret)),
            )
        )
    ]


def seal_payloads(data_key: DataKey, suite: Suite) -> tuple[bytes, bytes]:
    """Return a whole payload and one in two segments."""
    stream = SegmentSealer(data_key, CONTEXT, suite, segment_size=SIZE)
    return PayloadSealer(data_key, suite).seal(PLAINTEXT, CONTEXT), b"".join(
        (
            stream.header,
            stream.seal_segment(SEGMENT, is_last=False),
            stream.seal_segment(PLAINTEXT, is_last=True),
        )
    )


def spoil(data: bytes, head: int) -> Iterator[bytes]:
    """Cut data anywhere and change any byte, in its first ``head`` bytes; and do so at its end."""
    for place in (*range(min(head, len(data))), len(data) - 1):
        yield data[:place]
        yield data[:place] + bytes((data[place] ^ 0x81,)) + data[place + 1 :]


def open_first_segment(data_key: DataKey, item: bytes, index: int = 0) -> bytes:
    segment = item[70 : 70 + SIZE + 16]
    return SegmentOpener(data_key, item, CONTEXT).open_segment(index, segment, is_last=False)


def open_first_run(data_key: DataKey, item: bytes) -> int:
    segments = memoryview(item)[70 : 70 + SIZE + 16]
    opener = SegmentOpener(data_key, item, CONTEXT)
    return opener.open_run(0, segments, memoryview(bytearray(SIZE)), is_last=False)


def refuse_directly(data_key: DataKey, item: bytes, suite: Suite) -> Iterator[Callable[[], object]]:
    """Make what opens whole payloads quickly refuse."""
    keys = direct.DirectKeys(data_key, item[:26], suite)
    for bad in spoil(item, 90):
        for context in (encode_context(CONTEXT), encode_context({})):
            room = memoryview(bytearray(len(item)))
            yield partial(direct.open_directly, keys, bad, 0, context)
            yield partial(direct.open_directly_into, keys, memoryview(bad), 0, context, room)


def unwrap(wrapped: bytes, rest: bytes = b"") -> DataKey:
    parsed = parse_wrapping_header(wrapped)
    return unwrap_data_key(VERSION, replace(parsed, raw=parsed.raw + rest))


def make_refusals(suite: Suite) -> Iterator[Callable[[], object]]:
    """Make every entry to the package refuse, at every layer."""
    data_key = generate_data_key()
    wrapped = wrap_data_key(VERSION, data_key, suite)
    opener = PayloadOpener(data_key)
    for item in seal_payloads(data_key, suite):
        yield partial(open_envelope, VERSION, wrapped + item, {})
        yield partial(open_envelope, NEW, wrapped + item, CONTEXT)
        yield partial(open_envelope, VERSION, wrapped + item + b"x", CONTEXT)
        yield partial(opener.open, item, {})
        yield partial(SegmentOpener, data_key, item, {})
        yield partial(open_first_segment, data_key, item, -1)
        for bad in spoil(wrapped + item, 220):
            yield partial(open_envelope, VERSION, bad, CONTEXT)
            yield partial(rewrap, VERSION, NEW, bad)
        for bad in spoil(item, 90):
            yield partial(opener.open, bad, CONTEXT)
            yield partial(open_first_segment, data_key, bad)
            yield partial(open_first_run, data_key, bad)
            yield partial(parse_payload_header, bad)
        if item[1] == KIND_WHOLE:
            yield from refuse_directly(data_key, item, suite)
    for bad in (*spoil(wrapped, 220), wrapped[:10] + bytes(4) + wrapped[14:]):
        yield partial(unwrap, bad)
    yield partial(unwrap, wrapped, b"x")


def find_places() -> set[tuple[str, int]]:
    """Return every place in the package's source that refuses an envelope."""
    return {
        (str(path), node.lineno)
        for path in Path(str(package.__file__)).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Name)
        and node.exc.id == "EnvelopeRejected"
    }


def test_no_refusal_shows_a_key_or_a_plaintext(keys: set[bytes]) -> None:
    """Every place that refuses is reached, and none has a secret in any frame above it."""
    reached = set()
    lasting = set(keys)
    for suite in SUITES:
        for call in make_refusals(suite):
            lasting |= keys  # what sealing derived; what a call derives matters to that call alone
            keys.clear()
            refusal = record_refusal(call)
            if refusal is not None:
                text, place = refusal
                reached.add(place)
                assert find_secrets(text, {*lasting, *keys, PLAINTEXT}) == []
            keys.clear()
    assert reached == find_places()
    assert len(lasting) == 2 + 2 * 6  # two versions; data, wrapping, payload and context keys


def test_the_search_finds_what_is_there() -> None:
    """A key in a local would be found, in each of the forms, and behind a suppressed context."""

    def refuse(form: object) -> None:
        if form is not None:
            raise EnvelopeRejected

    def refuse_behind(form: object) -> None:
        try:
            refuse(form)
        except EnvelopeRejected:
            raise EnvelopeRejected from None

    secret = bytes(range(0x20, 0x40))  # both quotes are among them
    for form in (secret, secret.hex(), list(secret), (b"<" + secret,), int.from_bytes(secret)):
        for function in (refuse, refuse_behind):
            refusal = record_refusal(partial(function, form))
            assert refusal is not None
            assert find_secrets(refusal[0], {secret}) == [secret]
