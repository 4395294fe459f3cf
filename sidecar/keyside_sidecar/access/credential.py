"""The names of requests, and the temporary credentials of grants. Random bytes are passed in.

A request is ``ar-`` and 12 characters; a credential is ``ksc-`` and 52. The characters are those
of base32 (RFC 4648) in lower case, without padding. Of a credential only a hash is kept: SHA-256,
since 256 random bits can't be tried out and so need no slow one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.refusals import refuse_as
from keyside_sidecar.access.requests import AccessId
from keyside_sidecar.errors import BadRequest

ID_BYTES: Final = 8
CREDENTIAL_BYTES: Final = 32

_ID: Final = re.compile(r"ar-[a-z2-7]{12}", re.ASCII)
_ID_LENGTH: Final = 12
_CREDENTIAL_PREFIX: Final = "ksc-"
_CREDENTIAL: Final = re.compile(r"ksc-[a-z2-7]{52}", re.ASCII)
_LABEL: Final = b"keyside/v1/grant-credential\x00"


def make_access_id(random: bytes) -> AccessId:
    """Return the name of a new request: 60 of the bits of ``random``, 8 bytes."""
    if len(random) != ID_BYTES:
        raise ValueError(f"an id is made of {ID_BYTES} bytes")
    return AccessId(f"ar-{_encode(random)[:_ID_LENGTH]}")


def parse_access_id(text: str) -> AccessId:
    """Return ``text`` as the name of a request.

    Raises:
        BadRequest: It is none.
    """
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise BadRequest("id", 'a request\'s id is "ar-" and 12 characters, as in ar-2f7qk3zt5mxa')
    return AccessId(text)


def make_credential(random: bytes) -> str:
    """Return a temporary credential that holds ``random``, 32 bytes: a secret."""
    if len(random) != CREDENTIAL_BYTES:
        raise ValueError(f"a credential is made of {CREDENTIAL_BYTES} bytes")
    return _CREDENTIAL_PREFIX + _encode(random)


def hash_credential(text: str) -> bytes:
    """Return what is kept of a credential, 32 bytes.

    Raises:
        AccessRefused: It is none; the same error as for one that opens nothing.
    """
    if not isinstance(text, str) or not _CREDENTIAL.fullmatch(text) or not _is_canonical(text):
        raise refuse_as(Reason.CREDENTIAL_REFUSED)
    return hashlib.sha256(_LABEL + text.encode("ascii")).digest()


def _encode(random: bytes) -> str:
    return base64.b32encode(random).decode("ascii").rstrip("=").lower()


def _is_canonical(text: str) -> bool:
    # 52 characters hold 4 bits more than 32 bytes do; those must be 0.
    body = text.removeprefix(_CREDENTIAL_PREFIX)
    try:
        decoded = base64.b32decode(body.upper() + "====")
    except (binascii.Error, ValueError):
        return False
    return _encode(decoded) == body
