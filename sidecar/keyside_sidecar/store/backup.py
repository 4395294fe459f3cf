"""Backups: every row of a store in one file, which only the root key can make and check.

Lines of ASCII, each a JSON object in one spelling only (no blanks, columns in the order of
tables.py)::

    {"keyside_backup":1,"program":…,"schema":…,"store_id":…,"generation":…,"root_key_id":…,"made_at":…}
    {"TABLE":{"COLUMN":VALUE,…}}            a row; bytes in base64, columns that are NULL left out
    {"mac":…}                               HMAC-SHA-256, in base64, over all that stands before

The rows come in the order of examination.py. They are as the store holds them, wrapped and with
their MACs; the file's own MAC says that they are all of one moment. Its key is derived from the
root key and the store's id. Nothing of a file is believed, or even parsed beyond the first line,
before its MAC was checked; and nothing is written before every row was.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, LargeBinary, insert

from keyside.timestamps import format_timestamp
from keyside_sidecar.errors import CustodyError, StartupError, StoreTampered
from keyside_sidecar.store import schema
from keyside_sidecar.store.examination import PAGE, TABLES, Contents, Examination, read_rows
from keyside_sidecar.store.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from typing import BinaryIO

    from sqlalchemy import Connection, Table

    from keyside_sidecar.custody import Custodian
    from keyside_sidecar.store.session import Session

    Row = Mapping[str, Any]

_LABEL: Final = b"keyside/v1/backup"
_FORMAT: Final = 1
MAGIC: Final = b'{"keyside_backup":'
_END: Final = re.compile(rb'\{"mac":"([A-Za-z0-9+/]{43}=)"\}\n')
# Above what a row takes (a request for access, with all that many people wrote), and little enough
# to be read as a whole.
_MAX_LINE: Final = 8 << 20
_STORE_ID: Final = re.compile(r"[0-9a-f]{32}")
_ROOT_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
_REVISION: Final = re.compile(r"[0-9]{4}")
_PROGRAM: Final = re.compile(r"[0-9A-Za-z.+-]{1,64}")
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_TABLES: Final = {table.name: table for table in TABLES}
_EX_DATAERR: Final = 65
_EX_CONFIG: Final = 78
_ANOTHER_COPY: Final = "take another copy of this backup, or another backup"


@dataclass(frozen=True, slots=True)
class Header:
    """What a backup says of itself.

    Args:
        program: The version of keyside that made it.
        schema: The store's schema.
        store_id: The store's id, 16 bytes.
        generation: The store's generation.
        root_key_id: The root key that it needs.
        made_at: When it was made, as text: UTC, ISO 8601.
    """

    program: str
    schema: str
    store_id: bytes
    generation: int
    root_key_id: str
    made_at: str

    def encode(self) -> bytes:
        """Return the first line."""
        return _encode(
            {
                "keyside_backup": _FORMAT,
                "program": self.program,
                "schema": self.schema,
                "store_id": self.store_id.hex(),
                "generation": self.generation,
                "root_key_id": self.root_key_id,
                "made_at": self.made_at,
            }
        )


def write_backup(
    session: Session, program: str, now: datetime, write: Callable[[bytes], object]
) -> tuple[Header, Contents]:
    """Write a store as it is at one moment; it may be in use.

    What was written is a backup only once this returns: it is checked on the way.

    Args:
        session: The store's.
        program: This program's version.
        now: The time, aware.
        write: Takes the file's bytes, piece by piece.

    Raises:
        StoreUnavailable: The store is away.
        StoreTampered: A row does not fit, or the rows together don't.
        CustodyError: A version does not unwrap.
    """
    with session.reading() as (reader, snapshot):
        # A newer program may have migrated it meanwhile, and this one would leave its tables out.
        schema.require_head(reader.connection)
        meta = snapshot.meta
        header = Header(
            program=program,
            schema=schema.HEAD,
            store_id=meta["store_id"],
            generation=meta["generation"],
            root_key_id=meta["root_key_id"],
            made_at=format_timestamp(now),
        )
        examination = Examination(session.trust)
        mac = _begin_mac(session.trust.use(header.root_key_id).custodian, header.store_id)
        line = header.encode()
        mac.update(line)
        write(line)
        for table, row in read_rows(reader.connection):
            examination.take(table, row)
            line = _encode_row(table, row)
            mac.update(line)
            write(line)
        contents = examination.finish()
    write(_encode({"mac": base64.b64encode(mac.digest()).decode()}))
    return header, contents


class Backup:
    """A backup whose MAC was checked; use :meth:`open`.

    Args:
        file: Can be read anew from its beginning.
        header: Its first line.
        custodian: Keeps its root key.
    """

    def __init__(self, file: BinaryIO, header: Header, custodian: Custodian) -> None:
        self._file = file
        self.header = header
        self.custodian = custodian

    @classmethod
    def open(cls, file: BinaryIO, custodian: Custodian) -> Backup:
        """Check the MAC of a backup, and whether this program knows its schema.

        Args:
            file: Can be read more than once, and can't be changed by others meanwhile; whether it
                was is noticed.
            custodian: Keeps the root key, or finds it.

        Raises:
            StartupError: It is no backup, is cut short, was altered or extended, or a newer program
                has made it.
            CustodyError: It belongs to another root key.
        """
        file.seek(0)
        header = _parse_header(file.readline(_MAX_LINE))
        backup = cls(file, header, _find_root_key(header, custodian))
        for _ in backup._read_lines():
            pass
        if header.schema not in schema.REVISIONS:
            raise StartupError(
                f"the backup has the schema {header.schema}, made by keyside {header.program}, and "
                f"this keyside knows {schema.HEAD}",
                remedy=f"restore it with keyside {header.program} or a newer one",
                exit_code=_EX_CONFIG,
            )
        return backup

    def read_rows(self) -> Iterator[tuple[Table, Row]]:
        """Yield its rows; what was yielded counts only once all were.

        Raises:
            StartupError: The file changed meanwhile, or holds what is no row.
        """
        lines = self._read_lines()
        next(lines)
        for line in lines:
            yield _parse_row(line)

    def examine(self) -> Contents:
        """Check every row, that each version unwraps, and that all of them make a sound store.

        Raises:
            StartupError: They don't.
            CustodyError: A version does not unwrap.
        """
        examination = Examination(Trust(self.custodian, self.header.store_id))
        try:
            for table, row in self.read_rows():
                examination.take(table, row)
            contents = examination.finish()
        except StoreTampered as error:
            raise _refuse(f"does not hold a sound store: {error.place}") from error
        if (
            contents.meta["store_id"] != self.header.store_id
            or contents.meta["generation"] != self.header.generation
        ):
            raise _refuse("does not hold the store that it names")
        return contents

    def write_into(self, connection: Connection) -> None:
        """Write every row into the empty tables of a new store, and check what is there then.

        Raises:
            StartupError: The file changed meanwhile.
            StoreTampered: What was written does not read back as it should.
        """
        batch: list[Row] = []
        batch_table = TABLES[0]
        for table, row in self.read_rows():
            if table is not batch_table or len(batch) == PAGE:
                _insert(connection, batch_table, batch)
                batch_table, batch = table, []
            batch.append(row)
        _insert(connection, batch_table, batch)
        examination = Examination(Trust(self.custodian, self.header.store_id))
        for table, row in read_rows(connection):
            examination.take(table, row)
        examination.finish()

    def _read_lines(self) -> Iterator[bytes]:
        """Yield every line but the last, which must be the MAC of all of them."""
        mac = _begin_mac(self.custodian, self.header.store_id)
        self._file.seek(0)
        is_first = True
        while True:
            line = self._file.readline(_MAX_LINE)
            if is_first and line != self.header.encode():
                raise _refuse("was exchanged while it was read")
            is_first = False
            end = _END.fullmatch(line)
            if end is not None:
                break
            if not line.endswith(b"\n"):
                if len(line) == _MAX_LINE:
                    raise _refuse("was altered or damaged: a line is too long")
                raise _refuse("is cut short: its last line is missing")
            mac.update(line)
            yield line
        # As text: some letters of base64 decode alike.
        if not hmac.compare_digest(end[1], base64.b64encode(mac.digest())):
            raise _refuse("was altered or damaged: its authentication code does not fit")
        if self._file.read(1):
            raise _refuse("goes on after its end: something was added to it")


def _begin_mac(custodian: Custodian, store_id: bytes) -> hmac.HMAC:
    return hmac.new(custodian.derive(_LABEL, store_id), digestmod="sha256")


def _find_root_key(header: Header, custodian: Custodian) -> Custodian:
    # Not checked yet: an altered id gives the wrong reason here, but never a restored store.
    if header.root_key_id == custodian.key_id:
        return custodian
    try:
        return custodian.find(header.root_key_id)
    except CustodyError as error:
        raise CustodyError(
            f"the backup belongs to root key {header.root_key_id}, and the configured one is "
            f"{custodian.key_id}",
            remedy="put that root key in its place for the restore: keysided root rotate keeps a "
            f"former one in a file whose name ends in .{header.root_key_id}",
        ) from error


def _insert(connection: Connection, table: Table, rows: list[Row]) -> None:
    if rows:
        connection.execute(insert(table), rows)


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _encode_row(table: Table, row: Row) -> bytes:
    columns = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name in table.columns.keys()  # noqa: SIM118  (iterating gives the columns)
        if (value := row[name]) is not None
    }
    return _encode({table.name: columns})


def require_backup(beginning: bytes) -> None:
    """Check that this is how a backup begins, as far as it goes.

    Raises:
        StartupError: It isn't.
    """
    if not beginning.startswith(MAGIC[: len(beginning)]):
        raise StartupError(
            "this is not a Keyside backup",
            remedy="name a file that keysided backup has made",
            exit_code=_EX_DATAERR,
        )


def _parse_header(line: bytes) -> Header:
    require_backup(line)
    if len(line) < _MAX_LINE and not line.endswith(b"\n"):
        raise _refuse("is cut short: it ends in its first line")
    fields = _parse(line)
    number = fields.pop("keyside_backup")
    if type(number) is int and number > _FORMAT:
        raise StartupError(
            f"this backup has a format that this program does not know ({str(number)[:20]})",
            remedy="restore it with the keyside that made it, or a newer one",
            exit_code=_EX_CONFIG,
        )
    patterns = {
        "program": _PROGRAM,
        "schema": _REVISION,
        "store_id": _STORE_ID,
        "root_key_id": _ROOT_KEY_ID,
        "made_at": _MOMENT,
    }
    sound = (
        all(
            isinstance(fields.get(name), str) and pattern.fullmatch(fields[name])
            for name, pattern in patterns.items()
        )
        and type(fields.get("generation")) is int
        and fields.keys() == {*patterns, "generation"}
    )
    if sound:
        store_id = bytes.fromhex(fields.pop("store_id"))
        header = Header(store_id=store_id, **fields)
        if header.encode() == line:
            return header
    raise _refuse("was altered or damaged: its first line")


def _parse_row(line: bytes) -> tuple[Table, Row]:
    found = _parse(line)
    name = next(iter(found), "")
    table, columns = _TABLES.get(name), found.get(name)
    if table is None or not isinstance(columns, dict):
        raise _refuse("holds something that is not a row")
    row = {}
    for column in table.columns:
        value = columns.get(column.name)
        if value is None and not column.nullable:
            raise _refuse(f"lacks the column {column.name} in a row of {table.name}")
        if value is not None:
            expected = int if isinstance(column.type, BigInteger) else str
            if type(value) is not expected or (isinstance(value, str) and not value.isascii()):
                raise _refuse(f"holds a wrong value for {column.name} in a row of {table.name}")
            if isinstance(value, str) and isinstance(column.type, LargeBinary):
                value = _decode(value)
        row[column.name] = value
    # There is one spelling of a row: this leaves no room for anything said twice, or besides.
    if _encode_row(table, row) != line:
        raise _refuse(f"spells a row of {table.name} in a way that Keyside does not")
    return table, row


def _parse(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refuse("was altered or damaged: a line is no JSON object")
    return found


def _decode(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _refuse("holds bytes that are not in base64") from None


def _refuse(problem: str) -> StartupError:
    return StartupError(f"the backup {problem}", remedy=_ANOTHER_COPY, exit_code=_EX_DATAERR)
