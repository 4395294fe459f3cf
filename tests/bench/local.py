"""Sealing in the caller's own process: LocalCipher beside Tink and the AWS Encryption SDK.

All run in one process and take turns; what one data key's call to the sidecar costs is spread over
the messages that it seals, and is not in these figures (a call of about a millisecond for up to a
million messages).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rows import Target, compare, pick
from support.remote import Remote
from support.sidecar import running_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plan import Plan
    from rows import Row, Taken

_PROGRAM = Path(__file__).with_name("caller_local.py").read_text()
# Ours, theirs, what they are called, and the target.
_SMALL = (
    ("", "tink_", "Tink AEAD", Target(0.6)),
    ("context_", "tink_context_", "Tink AEAD, with context", Target(0.6)),
    ("context_", "aws_", "AWS Encryption SDK, caching, with context", Target(15)),
    ("context_", "aws_keyring_", "AWS Encryption SDK, raw keyring, with context", None),
    ("", "aes_", "AESGCM alone", None),
)
_LARGE = ("large_", "aes_large_", "AESGCM alone", Target(0.8))
_VERBS = ("seal", "open")


def run(plan: Plan) -> Iterator[Row]:
    """Measure messages of 256 bytes, then of 1 MiB."""
    with running_sidecar() as sidecar, Remote(sidecar) as service:
        service.run(_PROGRAM)
        service.run("contenders = make_contenders(client)")
        taken: Taken = {name: [] for name in service.run("answer = list(contenders)")}
        for number in range(plan.rounds + 1):
            told = service.run(
                "answer = measure_round(contenders, number, slice_s)",
                number=number,
                slice_s=plan.slice_s,
            )
            if number:  # the first round warms the machine up
                for name, rate in told.items():
                    taken[name].append({"rate": rate})
    small = (("256 B, {}", *one) for one in _SMALL)
    for title, ours, theirs, peer, target in (
        *small,
        ("1 MiB, {}_into a new bytearray", *_LARGE),
    ):
        for verb in _VERBS:
            yield compare(
                f"LocalCipher, {title.format(verb)} / {peer}",
                "messages/s",
                pick(taken, ours + verb, "rate"),
                pick(taken, theirs + verb, "rate"),
                target=target,
            )
