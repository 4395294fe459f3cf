r"""The log: one line of logfmt for each event, on standard error.

``ts=2026-01-31T12:00:00.123Z level=info event="serving" logger=server process=4711 workers=2``

What can be written is a closed list, so that no secret gets in by accident (I7): text, numbers,
times, paths, names of enumerations, and lists of these. Bytes become ``<16 bytes>``, any other
object ``<ClassName>``; a traceback shows frames, but the message only of exceptions that are known
to quote no data. Control, bidirectional and otherwise invisible characters are escaped in every
value. Where standard error is the systemd journal, which stamps time and process itself, both are
left out, and each line begins with its priority (sd-daemon(3)).
"""

from __future__ import annotations

import enum
import logging
import os
import re
import sqlite3
import sys
import threading
import traceback
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, TextIO

from keyside.errors import KeysideError
from keyside.quantities import count_of
from keyside.timestamps import format_timestamp
from keyside_sidecar.errors import SidecarError

if TYPE_CHECKING:
    from types import TracebackType

_BARE: Final = re.compile(r"[A-Za-z0-9_.:/@+-]+", re.ASCII)
_KEY: Final = re.compile(r"[^A-Za-z0-9_.]", re.ASCII)
_OWN_KEYS: Final = frozenset({"ts", "level", "event", "logger", "process", "exception"})
_MAX_VALUE_LENGTH: Final = 2_000
_MAX_TRACEBACK_LENGTH: Final = 16_000
_MAX_DEPTH: Final = 4
_PRIORITIES: Final = {10: 7, 20: 6, 30: 4, 40: 3, 50: 2}
_MAX_FRAMES: Final = 25
# Their messages name types, attributes, files and tables, never values. A ValueError quotes what it
# was given, and SQLAlchemy's errors their parameters (but the SQLite error below them doesn't).
_SPEAKING_ERRORS: Final = (
    *(SidecarError, KeysideError, OSError, sqlite3.Error),
    *(TypeError, AttributeError, NameError, ImportError, NotImplementedError),
)
_OWN_LOGGERS: Final = ("keyside_sidecar", "keyside")
_log: Final = logging.getLogger(__name__)


def event(logger: logging.Logger, level: int, name: str, /, **facts: object) -> None:
    """Log one event.

    Args:
        logger: The module's own.
        level: ``logging.INFO`` and so on.
        name: What happened, in fixed words; what varies goes into ``facts``.
        facts: Each becomes ``key=value``.
    """
    if logger.isEnabledFor(level):
        logger.log(level, "%s", name, extra={"facts": facts}, stacklevel=2)


def set_up_logging(level: str, stream: TextIO | None = None) -> None:
    """Send all logging to standard error, in place of whatever was configured before.

    Exceptions that nobody catches are written there too; Python would print their messages.

    Other packages' loggers are kept at WARNING, whatever the level: below it, drivers write
    parameters.

    Args:
        level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``: that of Keyside's own loggers.
        stream: In place of standard error.
    """
    target = stream if stream is not None else sys.stderr
    handler = _Handler(target)
    handler.setFormatter(LogfmtFormatter(journal=_is_journal(target)))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    _log_uncaught_exceptions()


def _log_uncaught_exceptions() -> None:

    def log_uncaught(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not issubclass(kind, KeyboardInterrupt):
            _log.critical("uncaught exception", exc_info=(kind, error, trace))

    sys.excepthook = log_uncaught
    threading.excepthook = lambda args: log_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )
    sys.unraisablehook = lambda args: log_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )


def escape(text: str) -> str:
    """Return ``text`` with all but visible characters and spaces written as Python escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


class LogfmtFormatter(logging.Formatter):
    """One record, one line; see the module's docstring.

    Args:
        journal: Leave out time and process, and begin with the priority.
    """

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        parts = []
        if not self._journal:
            when = datetime.fromtimestamp(record.created, UTC)
            parts.append(f"ts={when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z")
        parts.append(f"level={record.levelname.lower()}")
        parts.append(f"event={_quote(_message(record))}")
        parts.append(f"logger={_value(record.name.removeprefix('keyside_sidecar.'))}")
        if not self._journal:
            parts.append(f"process={record.process}")
        facts: object = getattr(record, "facts", None)
        if isinstance(facts, dict):
            parts += [f"{_fact_key(key)}={_value(_plain(fact))}" for key, fact in facts.items()]
        if record.exc_info and record.exc_info[1] is not None:
            shown = describe_exception(record.exc_info[1])
            parts.append(f"exception={_quote(_cut(shown, _MAX_TRACEBACK_LENGTH))}")
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>" if self._journal else ""
        return prefix + " ".join(parts)


def describe_exception(error: BaseException) -> str:
    """Return an exception's chain, innermost first, with its frames and no data (I7)."""
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return "; then ".join(_describe_one(cause) for cause in reversed(causes))


def _describe_one(error: BaseException) -> str:
    frames = list(traceback.walk_tb(error.__traceback__))[-_MAX_FRAMES:]
    where = " > ".join(
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in frames
    )
    text = f"{_name_exception(error)}{' at ' if where else ''}{where}"
    if isinstance(error, BaseExceptionGroup):
        text += f" [{' | '.join(describe_exception(part) for part in error.exceptions)}]"
    return text


def _name_exception(error: BaseException) -> str:
    kind = type(error).__name__
    return f"{kind}: {error}" if isinstance(error, _SPEAKING_ERRORS) else kind


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Drop a record that can't be written; logging would print its arguments."""


def _is_journal(stream: TextIO) -> bool:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _message(record: logging.LogRecord) -> str:
    text = str(record.msg)
    if record.args:
        try:
            if isinstance(record.args, Mapping):
                text %= {key: _plain(arg) for key, arg in record.args.items()}
            else:
                text %= tuple(_plain(arg) for arg in record.args)
        except (TypeError, ValueError, KeyError):
            pass  # a wrong format string: the event's fixed words are still worth having
    if record.name == "asyncio":
        # Its further lines are reprs of tasks and futures, with their results.
        text = text.partition("\n")[0]
    return text


def _plain(value: object, depth: int = 0) -> object:
    """Return ``value`` if it can be shown, otherwise what stands for it."""
    shown: object = f"<{type(value).__name__}>"
    if isinstance(value, enum.Enum):
        shown = value.name
    elif value is None or isinstance(value, (bool, int, float, str)):
        shown = value
    elif isinstance(value, (bytes, bytearray, memoryview)):
        shown = f"<{count_of(memoryview(value).nbytes, 'byte')}>"
    elif isinstance(value, BaseException):
        shown = _name_exception(value)
    elif isinstance(value, datetime):
        shown = format_timestamp(value)
    elif isinstance(value, (PurePath, timedelta)):
        shown = str(value)
    elif depth < _MAX_DEPTH and isinstance(value, Mapping):
        shown = ",".join(
            f"{_plain(key, depth + 1)}:{_plain(item, depth + 1)}" for key, item in value.items()
        )
    elif depth < _MAX_DEPTH and isinstance(value, (list, tuple, AbstractSet)):
        shown = ",".join(str(_plain(item, depth + 1)) for item in value)
    return shown


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    text = _cut(str(value), _MAX_VALUE_LENGTH)
    return text if _BARE.fullmatch(text) else _quote(text)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escape(escaped)}"'


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…({len(text) - length} more)"


def _fact_key(key: object) -> str:
    name = _KEY.sub("_", str(key))
    return f"{name}_" if name in _OWN_KEYS else name
