"""The recorder's process: from its fork to its exit.

Like the supervisor it is a plain loop and never imports gRPC. It becomes the sidecar's account,
opens the log, and from then on owns it: nobody else has the signing key.
"""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyside_sidecar import hardening
from keyside_sidecar.errors import StartupError
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from keyside_sidecar.config import Config
    from keyside_sidecar.handover import Channel

_log = logging.getLogger(__name__)

_EXIT_FAILED: Final = 70


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """What the recorder is given when it is forked.

    Args:
        config: The configuration.
        uid: The account to run as; None to stay as it is.
        gid: That account's group.
        groups: That account's supplementary groups.
    """

    config: Config
    uid: int | None
    gid: int | None
    groups: tuple[int, ...]


def run_recorder(settings: RecorderSettings, control: Channel) -> int:
    """Run the recorder to its end, in a process of its own.

    Returns:
        The process's exit code: 0 after ``{"stop": true}``; 75 where another process has the log.
    """
    try:
        # All imports happen here: after privileges are dropped an interpreter under a private
        # directory might not be readable any more.
        from keyside_sidecar.audit.recording import Recording

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # The supervisor decides; a ^C reaches the whole group, and so us as well.
            signal.signal(number, _ignore)  # (SIG_IGN would be handed on to commands)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if settings.uid is not None and settings.gid is not None:
            hardening.drop_privileges(settings.uid, settings.gid, settings.groups)
        hardening.harden_process(no_new_privs=True)
        hardening.lock_memory()  # the signing key is in it
        return Recording(settings.config, control).run()
    except StartupError as error:
        event(
            _log, logging.ERROR, "recorder can't start", error=str(error), what_to_do=error.remedy
        )
        return error.exit_code
    except Exception:  # noqa: BLE001  (the supervisor decides what follows)
        _log.exception("recorder failed")
        return _EXIT_FAILED


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing."""
