"""What ``keyside rewrap`` and ``keyside reencrypt`` do with one file."""

from __future__ import annotations

import enum
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from keyside.cli import exits
from keyside.cli.exits import CommandError
from keyside.cli.files import MAX_INPUT_BYTES
from keyside.cli.replacing import Original, Replacement
from keyside.errors import EnvelopeRejected, LimitExceeded, NotPermitted, UnexpectedAnswer
from keyside.facts import KeyVersionState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from keyside.cli.journal import Journal
    from keyside.cli.walking import Found
    from keyside.client import Client
    from keyside.envelope import WrappingHeader

    Tell: TypeAlias = Callable[[str, Sequence[str]], object]

_MAGIC: Final = b"KSE"
_RELEARN_S: Final = 5.0
_RELEARN_SOONEST_S: Final = 1.0
# The current version is among the newest: behind a successor, or versions that were taken away.
_NEWEST: Final = 8
_BUSY_PAUSES_S: Final = (0.5, 1.0, 2.0)


class Outcome(enum.Enum):
    """What became of a file that did not fail."""

    DONE = enum.auto()
    """Replaced, or with --dry-run: it would be."""
    ALREADY = enum.auto()
    """Nothing was left to do."""
    NO_ENVELOPE = enum.auto()
    """It holds something else."""


class Rewriter(Protocol):
    """Does one command's work on one file."""

    def rewrite(self, found: Found, *, dry_run: bool) -> Outcome:
        """Replace the file's envelope.

        Raises:
            CommandError: The file can't be read or replaced; it is as it was.
            KeysideError: The sidecar refused or is away; the file is as it was.
        """


class CurrentVersions:
    """Which version of each key is current, asked for again every few seconds.

    Args:
        client: For asking.
        clock: Seconds, monotonic.
    """

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def has(self, header: WrappingHeader) -> bool | None:
        """Return whether the envelope is under its key's current version; ``None``: can't tell.

        Raises:
            KeysideError: The sidecar is away.
        """
        known = self._known.get(header.key_name)
        if known is None or self._clock() - known.learnt_s >= known.lifetime_s(header):
            known = self._learn(header.key_name)
        if known.number is None:
            return None
        # A number alone can name another version, after a restore from a backup.
        return (known.number, known.id) == (header.version_number, header.version_id.hex())

    def _learn(self, key: str) -> _Known:
        number, version_id = None, ""
        with suppress(NotPermitted):  # may the calls themselves say so, for each file
            for version in self._client.iter_versions(key, page_size=_NEWEST):
                if version.state is KeyVersionState.CURRENT:
                    number, version_id = version.number, version.id
                    break
        known = self._known[key] = _Known(number, version_id, self._clock())
        return known


@dataclass(frozen=True, slots=True)
class _Known:
    number: int | None
    id: str
    learnt_s: float

    def lifetime_s(self, header: WrappingHeader) -> float:
        """Return for how long this may be believed: not long where an envelope knows better."""
        overtaken = self.number is not None and header.version_number > self.number
        return _RELEARN_SOONEST_S if overtaken else _RELEARN_S


class Rewrapper:
    """Moves envelopes under the current version, whatever their size: only headers are sent.

    Args:
        client: The sidecar's.
        tell: Is told of a file, and of what it could not keep.
    """

    def __init__(self, client: Client, tell: Tell) -> None:
        self._client = client
        self._tell = tell
        self._versions = CurrentVersions(client)

    def rewrite(self, found: Found, *, dry_run: bool) -> Outcome:
        """See ``Rewriter``."""
        with Original(found) as original:
            header = read_header(original)
            if header is None:
                return Outcome.NO_ENVELOPE
            if self._versions.has(header):
                return Outcome.ALREADY
            original.require_single_name()
            if dry_run:
                return Outcome.DONE
            with Replacement(original) as replacement:
                made = _wait_turn(lambda: self._client.rewrap(header.raw))
                if _names_same_version(parse_answer(made, header, has_payload=False), header):
                    return Outcome.ALREADY
                replacement.write(made)
                replacement.copy_rest(len(header.raw))
                replacement.finish()
                replacement.put_in_place()
            if replacement.not_kept:
                self._tell(found.path, replacement.not_kept)
        return Outcome.DONE


class Reencrypter:
    """Seals the plaintexts of envelopes anew; they are sent whole, so they have a largest size.

    Args:
        client: The sidecar's.
        context: The pairs that the envelopes are bound to.
        journal: What has been done.
        tell: As for ``Rewrapper``.
    """

    def __init__(
        self, client: Client, context: Mapping[str, str], journal: Journal, tell: Tell
    ) -> None:
        self._client = client
        self._tell = tell
        self._versions = CurrentVersions(client)
        self._context = context
        self._journal = journal

    def rewrite(self, found: Found, *, dry_run: bool) -> Outcome:
        """See ``Rewriter``."""
        with Original(found) as original:
            header = read_header(original)
            if header is None:
                return Outcome.NO_ENVELOPE
            if original.size > MAX_INPUT_BYTES:
                raise CommandError(
                    f"it has {original.size:,} bytes, more than any sidecar accepts to re-encrypt",
                    exits.DATA,
                    "decrypt and encrypt it again where its plaintext may be",
                )
            envelope = original.read(0, original.size)
            # A journal may be old: what is no longer under the current version was done for
            # another reason than this run's.
            if self._journal.holds(envelope) and self._versions.has(header) is not False:
                return Outcome.ALREADY
            original.require_single_name()
            if dry_run:
                return Outcome.DONE
            with Replacement(original) as replacement:
                made = _wait_turn(lambda: self._client.reencrypt(envelope, self._context))
                parse_answer(made, header, has_payload=True)
                replacement.write(made)
                replacement.finish()
                self._journal.add(made)
                replacement.put_in_place()
            if replacement.not_kept:
                self._tell(found.path, replacement.not_kept)
        return Outcome.DONE


def read_header(original: Original) -> WrappingHeader | None:
    """Return a file's wrapping header; ``None`` where it holds no envelope.

    Raises:
        CommandError: It begins as an envelope does, but is none, or none of this format.
    """
    from keyside.envelope import (
        FORMAT_VERSION,
        KIND_WHOLE,
        MAX_HEADER_BYTES,
        lay_out_body,
        parse_payload_header,
        parse_wrapping_header,
    )
    from keyside.envelope.payload_header import require_possible_whole_body

    beginning = original.read(0, MAX_HEADER_BYTES + 70)
    mark = beginning[3:4]
    # A text may begin with these letters; what no text has is a control character after them.
    if not beginning.startswith(_MAGIC) or not mark or mark[0] >= 0x20:  # noqa: PLR2004
        return None
    if mark[0] != FORMAT_VERSION:
        raise CommandError(
            f"it is an envelope of format version {mark[0]}, which this program does not know",
            exits.DATA,
        )
    try:
        header = parse_wrapping_header(beginning)
        rest = original.size - len(header.raw)
        if rest:  # a header may have a file of its own; it is rewrapped, and its payloads stay
            payload = parse_payload_header(beginning, len(header.raw))
            body_length = rest - len(payload.raw)
            if payload.kind == KIND_WHOLE:
                require_possible_whole_body(body_length)
            else:
                lay_out_body(body_length, payload.segment_size)
    except EnvelopeRejected:
        raise CommandError(
            "it begins as an envelope does, but is cut short or damaged", exits.DATA
        ) from None
    return header


def parse_answer(answer: bytes, old: WrappingHeader, *, has_payload: bool) -> WrappingHeader:
    """Return the header of what the sidecar made.

    Raises:
        UnexpectedAnswer: It is not what was asked for: nothing is to be replaced by it.
    """
    from keyside.envelope import parse_wrapping_header

    try:
        header = parse_wrapping_header(answer)
        if header.key_name == old.key_name and (len(answer) > len(header.raw)) is has_payload:
            return header
    except EnvelopeRejected:
        pass
    raise UnexpectedAnswer("the sidecar's answer is no envelope of the same key")


def _names_same_version(one: WrappingHeader, other: WrappingHeader) -> bool:
    return (one.version_number, one.version_id) == (other.version_number, other.version_id)


def _wait_turn(call: Callable[[], bytes]) -> bytes:
    """Make a call, again after a pause where the sidecar has too many of them."""
    for pause_s in _BUSY_PAUSES_S:
        try:
            return call()
        except LimitExceeded as error:
            if error.reason != "TOO_MANY_CALLS":
                raise
        time.sleep(pause_s)
    return call()
