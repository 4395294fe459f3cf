"""The temporary credential of a grant, as a person's process holds it."""

from __future__ import annotations

import re
from hmac import compare_digest
from typing import Final, NoReturn, TypeAlias

from keyside.errors import InvalidArgument

CREDENTIAL_METADATA: Final = "keyside-credential"
_CREDENTIAL: Final = re.compile(r"ksc-[a-z2-7]{52}", re.ASCII)

Metadata: TypeAlias = tuple[tuple[str, str], ...]


class Credential:
    """What the holder of a grant sends besides being who the kernel says they are.

    Neither prints, pickles nor copies its text. To whoever is not the grant's holder it is worth
    nothing; it is kept secret all the same.

    Args:
        text: "ksc-" and 52 characters of a-z and 2-7, as ``activate_access`` returned it.

    Raises:
        InvalidArgument: ``text`` is not of that form; the error does not quote it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not _CREDENTIAL.fullmatch(text):
            raise InvalidArgument(
                'a credential is "ksc-" and 52 characters of a-z and 2-7',
                reason="INVALID_CREDENTIAL",
                remedy="give it whole, as it was handed out when the access was activated",
            )
        self._text = text

    def unsafe_export_text(self) -> str:
        """Return the credential itself, to keep it where only its holder can read it."""
        return self._text

    def __repr__(self) -> str:
        return "Credential(<redacted>)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Credential):
            return NotImplemented
        return compare_digest(self._text, other._text)

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Credential can't be pickled or copied")


def as_credential(given: Credential | str | None) -> Credential | None:
    """Return what was given as a credential; ``None`` stays ``None``.

    Raises:
        InvalidArgument: It is not of a credential's form.
    """
    return given if given is None or isinstance(given, Credential) else Credential(given)


def credential_metadata(credential: Credential | None) -> Metadata:
    """Return the call metadata that carries a credential; none without one."""
    if credential is None:
        return ()
    return ((CREDENTIAL_METADATA, credential.unsafe_export_text()),)
