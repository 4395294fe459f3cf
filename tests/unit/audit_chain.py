"""An audit log made by hand, as the recorder would: many records, checkpoints, several files."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyside.audit import (
    FIRST_PREVIOUS,
    Anchor,
    Checkpoint,
    LogFile,
    Seal,
    Verification,
    cover,
    encode_json,
    encode_line,
    hash_record,
    name_log,
    parse_checkpoint,
    sign_checkpoint,
    verify_log,
)

SEALED_EVERY = 250


@dataclass
class Chain:
    """Writes a log into lists of lines, one list a file."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    files: list[list[bytes]] = field(default_factory=lambda: [[]])
    sequence: int = 0
    head: bytes = FIRST_PREVIOUS
    number: int = 0

    def __post_init__(self) -> None:
        self.public_key = self.key.public_key().public_bytes_raw()
        self.log = name_log(self.public_key)
        self.checkpoints: list[bytes] = []

    def append(self, event: str = "encryption.decrypt", **fields: object) -> bytes:
        """Append a record and return its line."""
        return self._append(cover(self.sequence + 1, self._body(event, **fields)))

    def seal(self, kind: str = "interval") -> bytes:
        """Append a checkpoint and return its line."""
        following = Ed25519PrivateKey.generate()
        self.number += 1
        seal = Seal(self.number, kind, self.log, 60, following.public_key().public_bytes_raw())
        start = cover(self.sequence + 1, self._body("checkpoint"))
        line = self._append(sign_checkpoint(seal, start, self.head, self.key.sign))
        self.key = following
        self.checkpoints.append(line)
        return line

    def rotate(self) -> None:
        """Begin a new file."""
        self.seal("rotation")
        details = {"previous_hash": self.head.hex(), "previous_sequence": self.sequence}
        self.files.append([])
        self.append("log.continued", details=details)

    def close(self) -> None:
        """End the run."""
        self.append("run.end", outcome="ok")
        self.seal("stop")

    def _body(self, event: str, **fields: object) -> bytes:
        second, rest = divmod(self.sequence, 50)
        time = f"2026-11-25T{second // 3600 % 24:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        facts = {"id": f"x-{self.sequence:x}", "time": f"{time}.{rest:06d}Z", "event": event}
        return encode_json({**facts, **fields})[1:-1].encode()

    def _append(self, covered: bytes) -> bytes:
        self.head = hash_record(self.head, covered)
        self.sequence += 1
        line = encode_line(covered, self.head)
        self.files[-1].append(line)
        return line


def make_chain(records: int, *, files: int = 4, closed: bool = True) -> Chain:
    """Return a log of that many records at least."""
    chain = Chain()
    chain.seal("start")
    while chain.sequence < records:
        number = chain.sequence
        chain.append(
            outcome="ok",
            caller={"pid": 7, "uid": 1001, "account": "mail"},
            key="mail",
            version=3,
            digest=f"{number:064x}",
        )
        if chain.sequence % SEALED_EVERY == 0:
            chain.seal()
        if len(chain.files) < files and chain.sequence >= records * len(chain.files) // files:
            chain.rotate()
    if closed:
        chain.close()
    return chain


def verify_lines(
    files: list[list[bytes]],
    public_key: bytes | None = None,
    checkpoint: Checkpoint | bytes | None = None,
) -> Verification:
    """Verify a log that is given as lists of lines."""
    if isinstance(checkpoint, bytes):
        checkpoint = parse_checkpoint(checkpoint)
    opened = [
        LogFile(f"audit-{index}.jsonl", partial(io.BytesIO, b"".join(lines)))
        for index, lines in enumerate(files)
    ]
    return verify_log(opened, Anchor(public_key, (checkpoint,) if checkpoint else ()))


def rehash(lines: list[bytes], previous: bytes) -> list[bytes]:
    """Return lines with hashes that fit, as whoever can write to the file can make them."""
    made = []
    for line in lines:
        covered = line[: line.rindex(b',"hash":"')]
        previous = hash_record(previous, covered)
        made.append(encode_line(covered, previous))
    return made
