"""The audit log's format: its lines, their chain, its checkpoints, and verifying them. Pure.

``docs/audit.md`` says what the log promises and what it doesn't. What is published here stays: a
log of format version 1 can be verified by every later release.
"""

from keyside.audit.checkpoints import (
    START_EVENTS,
    Checkpoint,
    Seal,
    is_generation,
    name_log,
    parse_checkpoint,
    parse_public_key,
    read_checkpoint,
    sign_checkpoint,
)
from keyside.audit.findings import (
    Anchor,
    Change,
    Completeness,
    Fault,
    LogFile,
    Place,
    Verification,
)
from keyside.audit.lines import (
    FIRST_PREVIOUS,
    MAX_BODY_BYTES,
    MAX_DEPTH,
    MAX_LINE_BYTES,
    MAX_NUMBER,
    Line,
    cover,
    encode_json,
    encode_line,
    hash_record,
    is_plain_number,
    parse_line,
    parse_object,
    parse_sequence,
    require_fields,
)
from keyside.audit.public_keys import is_sound_key
from keyside.audit.verification import verify_log

__all__ = [
    "FIRST_PREVIOUS",
    "MAX_BODY_BYTES",
    "MAX_DEPTH",
    "MAX_LINE_BYTES",
    "MAX_NUMBER",
    "START_EVENTS",
    "Anchor",
    "Change",
    "Checkpoint",
    "Completeness",
    "Fault",
    "Line",
    "LogFile",
    "Place",
    "Seal",
    "Verification",
    "cover",
    "encode_json",
    "encode_line",
    "hash_record",
    "is_generation",
    "is_plain_number",
    "is_sound_key",
    "name_log",
    "parse_checkpoint",
    "parse_line",
    "parse_object",
    "parse_public_key",
    "parse_sequence",
    "read_checkpoint",
    "require_fields",
    "sign_checkpoint",
    "verify_log",
]
