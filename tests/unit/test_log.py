"""The log: one line each, nothing secret in it, nothing that could fool a terminal (I7)."""

from __future__ import annotations

import enum
import io
import logging
import os
import sqlite3
import sys
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside_sidecar import log
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = logging.getLogger("keyside_sidecar.test")


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Configured logging into a buffer; everything global is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for holder, hook in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(holder, hook, getattr(holder, hook))
    buffer = io.StringIO()
    log.set_up_logging("info", buffer)
    yield buffer
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in log._OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)


def format_line(**facts: object) -> str:
    record = logging.LogRecord("keyside_sidecar.x", logging.INFO, "", 0, "it happened", (), None)
    record.facts = facts
    return log.LogfmtFormatter(journal=True).format(record)


def test_line_has_time_level_event_process_and_facts(stream: io.StringIO) -> None:
    log.event(OWN, logging.WARNING, "key rolled over", key="mail", version=3, done=True, by=None)
    line = stream.getvalue()
    assert line.startswith("ts=2")
    stamp, rest = line.split(" ", 1)
    assert datetime.fromisoformat(stamp[3:]).tzinfo == UTC
    assert rest == (
        f'level=warning event="key rolled over" logger=test process={os.getpid()} '
        "key=mail version=3 done=true by=null\n"
    )


def test_journal_gets_the_priority_and_neither_time_nor_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    with (tmp_path / "journal").open("w+", encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log.set_up_logging("info", file)
        log.event(OWN, logging.ERROR, "store away")
        file.seek(0)
        assert file.read() == '<3>level=error event="store away" logger=test\n'
    assert stream.getvalue() == ""


def test_stream_that_is_not_the_journal_keeps_its_time_stamps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """JOURNAL_STREAM is inherited by children whose standard error is somewhere else."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    with (tmp_path / "other").open("w", encoding="utf-8") as file:
        assert not log._is_journal(file)


def test_bytes_never_appear(stream: io.StringIO) -> None:
    """I7: in facts, in containers, as arguments of a message, in any spelling."""
    secret = b"correct horse battery"
    log.event(
        OWN,
        logging.INFO,
        "sealed",
        a=secret,
        b=bytearray(secret),
        c=memoryview(secret),
        d=[secret, {"k": secret}],
    )
    OWN.info("sealed %s %r", secret, secret)
    OWN.info("sealed %(a)s", {"a": secret})
    text = stream.getvalue()
    assert "horse" not in text
    assert 'a="<21 bytes>" b="<21 bytes>" c="<21 bytes>" d="<21 bytes>,k:<21 bytes>"' in text
    assert "event=\"sealed <21 bytes> '<21 bytes>'\"" in text


def test_unknown_objects_are_named_by_class_only() -> None:
    """I7: an object's repr may show what it holds (a protobuf message's does)."""

    @dataclass
    class Message:
        payload: bytes = b"secret"

    assert format_line(m=Message(), u=[Message()]).endswith('m="<Message>" u="<Message>"')


def test_known_values_are_written_plainly() -> None:
    class State(enum.Enum):
        CURRENT = b"x"

    line = format_line(
        state=State.CURRENT,
        at=datetime(2026, 1, 31, tzinfo=UTC),
        path=Path("/run/k"),
        rate=0.5,
        ids=(1, 2),
        odd=uuid.UUID(int=1),
    )
    assert line.endswith(
        'state=CURRENT at=2026-01-31T00:00:00Z path=/run/k rate=0.5 ids="1,2" odd="<UUID>"'
    )


def test_control_and_bidirectional_characters_are_escaped() -> None:
    line = format_line(reason='a\nts=1 level=x "q" \\ \x1b[31m\u202e\u2066\u200b\u2028\x85é')
    assert line.endswith(r'reason="a\nts=1 level=x \"q\" \\ \x1b[31m\u202e\u2066\u200b\u2028\x85é"')


@given(st.text(), st.text(max_size=5))
def test_any_text_stays_on_one_printable_line(value: str, key: str) -> None:
    line = format_line(**{key: value})
    assert line.isprintable()


def test_facts_can_not_stand_in_for_the_line_s_own_keys() -> None:
    assert "level_=x" in format_line(level="x")
    assert 'a_b_="1"' not in format_line(**{"a b=": 1})
    assert format_line(**{"a b=": 1}).endswith("a_b_=1")


def test_long_values_are_cut() -> None:
    line = format_line(reason="x" * 100_000)
    assert len(line) < 3000
    assert "(98000 more)" in line


def raise_value_error() -> None:
    int("hunter2")


def test_traceback_shows_frames_but_no_data(stream: io.StringIO) -> None:
    """I7: a ValueError quotes what it was given; its place is enough to find it."""
    try:
        try:
            raise_value_error()
        except ValueError as error:
            raise StartupError("the number is wrong") from error
    except StartupError:
        OWN.exception("failed")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert "hunter2" not in line
    assert "ValueError at " in line
    assert "raise_value_error" in line
    assert "; then StartupError: the number is wrong at " in line


def test_suppressed_context_and_groups_are_described() -> None:
    try:
        try:
            raise_value_error()
        except ValueError:
            raise ExceptionGroup("many", [OSError(2, "No such file"), KeyError("x")]) from None
    except ExceptionGroup as error:
        text = log.describe_exception(error)
    assert text.startswith("ExceptionGroup at ")
    assert text.endswith("[FileNotFoundError: [Errno 2] No such file | KeyError]")
    assert "ValueError" not in text


def test_database_s_own_message_is_kept() -> None:
    error = sqlite3.OperationalError("database is locked")
    assert log.describe_exception(error) == "OperationalError: database is locked"


def test_exception_as_a_fact_is_its_name_and_safe_message() -> None:
    assert format_line(cause=OSError(13, "Permission denied")).endswith(
        'cause="PermissionError: [Errno 13] Permission denied"'
    )
    assert format_line(cause=ValueError("hunter2")).endswith("cause=ValueError")


def test_asyncio_s_reprs_of_tasks_are_left_out(stream: io.StringIO) -> None:
    """I7: a finished future's repr shows its result."""
    logging.getLogger("asyncio").error("Task failed\nfuture: <Task result=b'hunter2'>")
    assert 'event="Task failed"' in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_wrong_format_string_still_logs_the_event() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "count is %d", (b"hunter2",), None)
    assert log.LogfmtFormatter(journal=True).format(record).endswith('event="count is %d" logger=x')


def test_record_that_can_not_be_written_is_dropped_without_its_arguments(
    capsys: pytest.CaptureFixture[str], stream: io.StringIO
) -> None:
    stream.close()
    OWN.info("sealed %s", b"hunter2")
    assert capsys.readouterr().err == ""


def test_level_is_keyside_s_own_and_others_stay_at_warning(stream: io.StringIO) -> None:
    log.set_up_logging("debug", stream)
    OWN.debug("seen")
    logging.getLogger("sqlalchemy.engine").info("parameters")
    logging.getLogger("elsewhere").warning("also seen")
    assert stream.getvalue().count("seen") == 2
    assert "parameters" not in stream.getvalue()
    log.set_up_logging("error", stream)
    OWN.warning("unheard")
    assert "unheard" not in stream.getvalue()


def test_uncaught_exceptions_go_through_the_log(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """I7: in the main thread, in others and in finalizers."""
    try:
        raise_value_error()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=raise_value_error)
    thread.start()
    thread.join()
    assert stream.getvalue().count('event="uncaught exception"') == 2
    assert "hunter2" not in stream.getvalue() + capsys.readouterr().err


def test_interrupt_is_no_uncaught_exception(stream: io.StringIO) -> None:
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert stream.getvalue() == ""
