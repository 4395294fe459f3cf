"""What a command that root starts does as the sidecar's account, and what it does as root."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from keyside._standard_streams import let_parent_tell
from keyside_sidecar import hardening
from keyside_sidecar.commands.accounts import act_as
from keyside_sidecar.errors import RESTORE_STORE, CustodyError, StartupError, StoreTampered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside_sidecar.supervisor import Account

_EX_DATAERR: Final = 65


def continue_as(account: Account | None) -> int | None:
    """Go on as the account for good, in a process of its own.

    What it prints and raises comes out as it would here; so it should simply return to the end. Of
    what standard output did not take, whoever waited for it tells.

    Args:
        account: Whom to act as; None where nothing has to change, and no process is made.

    Returns:
        None to whoever shall go on; to the caller that waited for it, its exit code.
    """
    if account is None:
        settle_as(None)
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        let_parent_tell()
        settle_as(account)
        return None
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def settle_as(account: Account | None) -> None:
    """Become the account for good, as a process that will hold keys: no core dumps, no tracing."""
    act_as(account)
    hardening.harden_process()


@contextmanager
def leaving_as_it_was(consequence: str) -> Iterator[None]:
    """Have whatever the store's rows are refused for said together with what it means here."""
    try:
        yield
    except StoreTampered as error:
        raise StartupError(
            f"{error}; {consequence}",
            remedy=f"keysided check goes through all of it; {RESTORE_STORE}",
            exit_code=_EX_DATAERR,
        ) from error
    except CustodyError as error:
        raise type(error)(f"{error}; {consequence}", remedy=error.remedy) from error
