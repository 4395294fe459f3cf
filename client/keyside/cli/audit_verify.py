"""``keyside audit verify``: was a log changed, and is it whole? Offline, from the files alone."""

from __future__ import annotations

import os
import re
import stat
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keyside.cli import exits
from keyside.cli.audit_text import shorten_time
from keyside.cli.connection import as_json, print_json
from keyside.cli.exits import CommandError
from keyside.cli.text import escape
from keyside.errors import MalformedRecord
from keyside.quantities import count_of

if TYPE_CHECKING:
    from typing import BinaryIO

    from keyside.audit import Anchor, Checkpoint, Fault, LogFile, Verification

OPEN_ENDED: Final = 1
_FINISHED: Final = re.compile(r"(?P<stem>.+)-[0-9]{12,18}\.jsonl", re.ASCII)
_MAX_CHECKPOINT_BYTES: Final = 64 << 20
_WHOLE: Final = {
    "closed": "closed: the last run ended properly",
    "open-ended": "open-ended: the last run goes on, was killed, or its end was cut off",
    "cut": "cut: the checkpoint that was kept elsewhere is of a later record",
    "unknown": "not known, because the log was changed",
}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--public-key",
    metavar="HEX",
    help="The log's first public key, as keysided init printed it.",
)
@click.option(
    "--checkpoint",
    "checkpoint_file",
    metavar="FILE",
    help="Checkpoints that were kept elsewhere, one a line: they show a cut end, and stand in for "
    "older files.",
)
@as_json
def verify(
    files: tuple[str, ...], public_key: str | None, checkpoint_file: str | None, *, as_json: bool
) -> int:
    """Verify an audit log from its FILEs, or from the directory that they are in.

    Give all of the log's files, in any order. Exits with 0 if the log is as it was written and
    closed, 1 if it is as it was written and open-ended, 65 if it was changed or cut.

    Without --public-key or --checkpoint the log is only compared with itself: whoever can write to
    it could have made all of it anew.
    """
    from keyside.audit import verify_log

    anchor = _read_anchor(public_key, checkpoint_file)
    with ExitStack() as stack:
        opened = _find_files(files, stack)
        on_terminal = sys.stderr.isatty()
        try:
            found = verify_log(opened, anchor, _show_progress if on_terminal else None)
        except OSError as error:
            raise CommandError(f"a file can't be read: {error.strerror}", exits.IO_ERROR) from error
        finally:
            if on_terminal:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if as_json:
        print_json(_describe_as_json(found))
    else:
        for line in _describe(found, is_anchored=bool(public_key or checkpoint_file)):
            click.echo(line)
    return _exit_code(found)


def _exit_code(found: Verification) -> int:
    from keyside.audit import Completeness

    if found.fault is not None or found.completeness is Completeness.CUT:
        return exits.DATA
    return exits.OK if found.completeness is Completeness.CLOSED else OPEN_ENDED


# -- what is given ----------------------------------------------------------------------------


def _read_anchor(public_key: str | None, checkpoint_file: str | None) -> Anchor:
    from keyside.audit import Anchor, parse_public_key

    key: bytes | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    if public_key is not None:
        try:
            key = parse_public_key(public_key)
        except MalformedRecord as error:
            raise click.UsageError(f"--public-key {error}") from None
    if checkpoint_file is not None:
        checkpoints = _choose_log(_read_checkpoints(checkpoint_file), key)
    return Anchor(key, checkpoints)


def _read_checkpoints(name: str) -> tuple[Checkpoint, ...]:
    from keyside.audit import parse_checkpoint

    with _open(name, is_log=False) as stream:
        data = stream.read(_MAX_CHECKPOINT_BYTES + 1)
    if len(data) > _MAX_CHECKPOINT_BYTES:
        raise click.UsageError(f"--checkpoint: {escape(name)} is too long: give its last part")
    try:
        return tuple(parse_checkpoint(line) for line in data.strip().split(b"\n"))
    except MalformedRecord as error:
        raise click.UsageError(f"--checkpoint: a line of {escape(name)} {error}") from None


def _choose_log(found: tuple[Checkpoint, ...], key: bytes | None) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of one log, where a host has had several one after the other."""
    from keyside.audit import name_log

    logs = {checkpoint.seal.log for checkpoint in found}
    if len(logs) == 1:
        return found
    if key is None:
        raise click.UsageError(
            "--checkpoint: these are checkpoints of several logs: give --public-key as well"
        )
    return tuple(it for it in found if it.seal.log == name_log(key)) or found


def _find_files(names: tuple[str, ...], stack: ExitStack) -> list[LogFile]:
    """Return each file once.

    A finished one keeps its name, and is opened when it is read; another one is opened now, because
    it may get its final name meanwhile.
    """
    from keyside.audit import LogFile

    found: dict[tuple[int, int], LogFile] = {}
    # Where a file of a running log gets its final name meanwhile, its directory is looked at again.
    seen: list[str] = []
    places = _list_places(names)
    while places != seen:
        for place in places:
            stream = _open(place, is_log=True)
            status = os.fstat(stream.fileno())
            identity = status.st_dev, status.st_ino
            if identity in found or _FINISHED.fullmatch(Path(place).name):
                stream.close()
                found.setdefault(identity, LogFile(place, partial(_open, place, is_log=True)))
            else:
                stack.enter_context(stream)
                found[identity] = LogFile(place, partial(_open_again, stream))
        seen, places = places, _list_places(names)
    return list(found.values())


def _open_again(stream: BinaryIO) -> BinaryIO:
    return os.fdopen(os.dup(stream.fileno()), "rb")


def _list_places(names: tuple[str, ...]) -> list[str]:
    return [
        place
        for name in names
        # Not Path.is_dir: it raises for a name that is too long.
        for place in (_list_directory(Path(name)) if os.path.isdir(name) else [name])  # noqa: PTH112
    ]


def _list_directory(directory: Path) -> list[str]:
    """Return the files of the one log in a directory."""
    try:
        names = sorted(path.name for path in directory.iterdir() if path.suffix == ".jsonl")
    except OSError as error:
        raise CommandError(
            f"{directory} can't be read: {error.strerror}", exits.NO_INPUT
        ) from error
    stems = {
        match["stem"] if (match := _FINISHED.fullmatch(name)) else name.removesuffix(".jsonl")
        for name in names
    }
    if not stems:
        raise CommandError(f"there is no audit log in {directory}", exits.NO_INPUT)
    if len(stems) > 1:
        raise click.UsageError(
            f"there are several logs in {escape(str(directory))}: name the files of one of them"
        )
    return [str(directory / name) for name in names]


def _open(name: str, *, is_log: bool) -> BinaryIO:
    try:
        # O_NONBLOCK: a FIFO in the file's place must not hang.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        remedy = "an audit log is read by root and by the sidecar's account" if is_log else ""
        message = f"{name} can't be opened: {error.strerror}"
        raise CommandError(message, exits.NO_INPUT, remedy) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CommandError(f"{name} is not a regular file", exits.NO_INPUT)
    return os.fdopen(descriptor, "rb")


# -- what was found ---------------------------------------------------------------------------


def _show_progress(records: int) -> None:
    print(f"\r\x1b[K{count_of(records, 'record')}", end="", file=sys.stderr, flush=True)


def _describe(found: Verification, *, is_anchored: bool) -> list[str]:
    """Return what there is to say, as lines for a person."""
    lines = [_describe_integrity(found, is_anchored=is_anchored)]
    if found.fault is not None:
        lines += _describe_fault(found.fault)
    lines.append(f"completeness: {_WHOLE[found.completeness.value]}")
    if found.records:
        span = (
            f"{found.first_sequence:,} to {found.last_sequence:,}, {shorten_time(found.last_time)}"
        )
        lines.append(f"verified:     {count_of(found.records, 'record')}: {span}")
    last = found.last_checkpoint
    if last is not None:
        lines.append(
            f"sealed:       to record {last.line.sequence:,}, by checkpoint {last.seal.number:,} "
            f"of log {last.seal.log}"
        )
    if found.unsealed:
        lines.append(
            f"unsealed:     {count_of(found.unsealed, 'record')} at the end: not protected yet"
        )
    if found.torn_bytes:
        lines.append(
            f"torn:         {count_of(found.torn_bytes, 'byte')} of a record at the very end"
        )
    return lines + [f"warning:      {escape(warning)}" for warning in found.warnings]


def _describe_integrity(found: Verification, *, is_anchored: bool) -> str:
    if found.fault is not None:
        return f"integrity:    CHANGED: {found.fault.change.value}"
    if found.authenticated:
        if not found.unsealed or found.last_checkpoint is None:
            return "integrity:    authentic: as it was written"
        rest = count_of(found.unsealed, "record after it is", "records after it are")
        sealed = f"{found.last_checkpoint.line.sequence:,}"
        return f"integrity:    authentic to record {sealed}; {rest} not sealed yet"
    if is_anchored and found.completeness.value == "cut":
        return "integrity:    unauthenticated: it fits together, and ends before the checkpoint"
    if is_anchored:
        return "integrity:    unauthenticated: it fits together, and nothing in it is sealed yet"
    return (
        "integrity:    unauthenticated: it fits together; give --public-key or --checkpoint to "
        "know that it is the one that was written"
    )


def _describe_fault(fault: Fault) -> list[str]:
    where = f"{escape(fault.place.file)} line {fault.place.line:,}"
    lines = [
        f"  first at:   {where}, where record {fault.sequence:,} belongs",
        f"  expected:   {escape(fault.expected)}",
        f"  found:      {escape(fault.found)}",
    ]
    if fault.since < fault.sequence:
        lines.append(f"  so:         record {fault.since:,} or a later one was changed")
    return lines


def _describe_as_json(found: Verification) -> dict[str, object]:
    fault, last = found.fault, found.last_checkpoint
    return {
        "integrity": "changed" if fault else "intact",
        "authenticated": found.authenticated,
        "completeness": found.completeness.value,
        "change": None
        if fault is None
        else {
            "kind": fault.change.value,
            "file": fault.place.file,
            "line": fault.place.line,
            "sequence": fault.sequence,
            "since_sequence": fault.since,
            "expected": fault.expected,
            "found": fault.found,
        },
        "records": found.records,
        "first_sequence": found.first_sequence or None,
        "last_sequence": found.last_sequence or None,
        "last_time": found.last_time or None,
        "head": found.head,
        "checkpoints": found.checkpoints,
        "last_checkpoint": last.line.fields if last else None,
        "unsealed": found.unsealed,
        "torn_bytes": found.torn_bytes,
        "warnings": list(found.warnings),
        "exit_code": _exit_code(found),
    }
