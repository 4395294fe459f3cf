"""One PAM transaction, on python-pam's bindings: authentication, and account management alone.

The bindings are python-pam's; its ``authenticate()`` isn't used. It passes no flags, so that an
account without a password is let in wherever the service says ``nullok``; it can't do account
management alone; it answers every first prompt of a call, whatever else is asked in it; and an
exception in its conversation is printed and taken for success.

Runs in the helper only (``helper.py``): a module may do anything to the process that it is in.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pam
from pam import __internals as internals

from keyside_sidecar.errors import StartupError
from keyside_sidecar.pam.errand import Fault, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

# Where libpam looks for a service, in its own order (pam.conf(5)); for one that it does not find it
# takes the service "other", which on Debian lets everybody in who has a password.
_PLACES: Final = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/etc/pam.d")
_FLAGS: Final = pam.PAM_SILENT | pam.PAM_DISALLOW_NULL_AUTHTOK
_OUTCOMES: Final = {
    pam.PAM_SUCCESS: Outcome.OK,
    pam.PAM_AUTH_ERR: Outcome.DENIED,
    pam.PAM_PERM_DENIED: Outcome.DENIED,
    pam.PAM_MAXTRIES: Outcome.DENIED,
    pam.PAM_CRED_ERR: Outcome.DENIED,
    pam.PAM_CRED_INSUFFICIENT: Outcome.DENIED,
    pam.PAM_USER_UNKNOWN: Outcome.UNKNOWN_ACCOUNT,
    pam.PAM_ACCT_EXPIRED: Outcome.EXPIRED,
    pam.PAM_NEW_AUTHTOK_REQD: Outcome.PASSWORD_EXPIRED,
    pam.PAM_AUTHTOK_EXPIRED: Outcome.PASSWORD_EXPIRED,
    pam.PAM_CRED_EXPIRED: Outcome.PASSWORD_EXPIRED,
}


def load_pam() -> None:
    """Load libpam, so that no helper has to; takes a few milliseconds.

    python-pam would ask ``find_library``, which runs ``ldconfig`` and looks for compilers on the
    PATH. Nothing of that is started here: the library's name is fixed by its ABI.

    Raises:
        StartupError: The host has no Linux-PAM.
    """
    internals.find_library = lambda name: f"lib{name}.so.0"
    try:
        # As in a program that is linked with it: some modules expect its functions to be there.
        ctypes.CDLL("libpam.so.0", mode=ctypes.RTLD_GLOBAL)
        internals.PamAuthenticator()
    except (OSError, AttributeError) as error:
        raise StartupError(
            f"people can't be authenticated: libpam can't be loaded: {error}",
            remedy="install Linux-PAM (Debian: libpam0g; Fedora: pam-libs), or drop [elevation]",
        ) from error


def has_service(service: str) -> bool:
    """Return whether PAM has a service of that name, rather than "other" in its place."""
    return any(Path(place, service.lower()).is_file() for place in _PLACES)


def run_transaction(service: str, account: bytes, password: bytes | None) -> Verdict:
    """Ask PAM about an account.

    Args:
        service: PAM's name for us.
        account: The account's name.
        password: What to answer to every prompt that doesn't echo; None: account management alone,
            which may prompt for nothing.

    Returns:
        What PAM says: authentication first, then account management. An account whose password is
        empty is denied.
    """
    library: Any = internals.PamAuthenticator()
    # Kept until pam_end: libpam has its address.
    conversation = internals.PamConv(
        internals.conv_func(_make_conversation(library, password)), None
    )
    handle = internals.PamHandle()
    code: int = library.pam_start(
        service.encode(), account, ctypes.byref(conversation), ctypes.byref(handle)
    )
    if code != pam.PAM_SUCCESS:
        return Verdict(Outcome.UNAVAILABLE, Fault.PAM_FAILED)
    if password is not None:
        code = library.pam_authenticate(handle, _FLAGS)
    if code == pam.PAM_SUCCESS:
        code = library.pam_acct_mgmt(handle, _FLAGS)
    library.pam_end(handle, code)
    outcome = _OUTCOMES.get(code)
    if outcome is None:
        return Verdict(Outcome.UNAVAILABLE, Fault.PAM_FAILED)
    return Verdict(outcome)


def _make_conversation(library: Any, password: bytes | None) -> Callable[..., int]:
    def copy(text: bytes) -> int:
        address: int = library.calloc(len(text) + 1, 1)
        ctypes.memmove(address, text, len(text))
        return address

    def converse(count: int, messages: Any, responses: Any, _data: Any) -> int:
        try:
            size = ctypes.sizeof(internals.PamResponse)
            # The module frees both; calloc leaves "no answer" in each.
            answers = ctypes.cast(
                library.calloc(count, size), ctypes.POINTER(internals.PamResponse)
            )
            for index in range(count):
                style = messages[index].contents.msg_style
                if style == pam.PAM_PROMPT_ECHO_OFF and password is not None:
                    answers[index].resp = copy(password)
                elif style not in {pam.PAM_ERROR_MSG, pam.PAM_TEXT_INFO}:
                    return pam.PAM_CONV_ERR  # type: ignore[no-any-return]
            responses[0] = answers
        except BaseException:  # noqa: BLE001  (ctypes would print it and answer "success")
            return pam.PAM_CONV_ERR  # type: ignore[no-any-return]
        return pam.PAM_SUCCESS  # type: ignore[no-any-return]

    return converse
