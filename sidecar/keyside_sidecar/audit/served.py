"""The form that a service's served Encrypt and Decrypt have in the log: most records, by far.

One pattern says all that ``intake.py`` asks of a record: JSON in the one form that lines have,
listed names with values of their types, an id, a time, and a worker. It takes less than is allowed
and nothing that is not; what it doesn't take is looked at field by field.
"""

from __future__ import annotations

import re
from typing import Final

from keyside.audit.lines import TIME

# ASCII that JSON has no need to escape; and a number that is below every limit there is.
_TEXT: Final = r'"[ !#-\[\]-~]*"'
_NUMBER: Final = r"(?:0|[1-9][0-9]{0,8})"
_SERVED: Final = re.compile(
    rf'"id":"([0-9a-f]{{1,32}}-[0-9a-f]{{1,32}})","time":"{TIME.pattern}",'
    r'"event":"encryption\.(?:encrypt|decrypt)",'
    rf'"caller":\{{"pid":{_NUMBER},"uid":{_NUMBER},"gid":{_NUMBER}'
    rf'(?:,"account":{_TEXT})?(?:,"login_uid":{_NUMBER})?(?:,"exe":{_TEXT})?\}},'
    rf'"key":{_TEXT},"digest":"[0-9a-f]{{64}}","version":{_NUMBER}'
    rf'(?:,"context":\[{_TEXT}(?:,{_TEXT})*\])?,"outcome":"ok",'
    rf'"worker":({_NUMBER})'.encode()
)


def match_served(body: bytes) -> tuple[str, int] | None:
    """Return id and worker of a record of that form; None: it has another one.

    Args:
        body: A line of the log without its number and hash; at most ``MAX_BODY_BYTES``.
    """
    found = _SERVED.fullmatch(body)
    return None if found is None else (found[1].decode("ascii"), int(found[2]))
