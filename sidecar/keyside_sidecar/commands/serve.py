"""``keysided serve``: from the configuration file to a running supervisor."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Final

from keyside_sidecar import hardening, notify
from keyside_sidecar.access.resolve import resolve_policy
from keyside_sidecar.commands.accounts import find_account
from keyside_sidecar.config import load_config
from keyside_sidecar.descriptors import check_descriptor_limit
from keyside_sidecar.errors import StartupError
from keyside_sidecar.log import event, set_up_logging
from keyside_sidecar.peer.accounts import NameService, NameServiceUnavailable
from keyside_sidecar.peer.listener import Listener, adopt, listen
from keyside_sidecar.supervisor import Supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from keyside_sidecar.config import Config

_log = logging.getLogger(__name__)

_EX_UNAVAILABLE: Final = 69


def run_serve(config_path: Path, *, accept_rollback: bool) -> int:
    """Serve until told to stop; return the exit code.

    Args:
        config_path: The configuration.
        accept_rollback: Serve a store that is older than its own audit log: an old backup that was
            put back on purpose. It is recorded, and all requests for access and grants end.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: Something else keeps the sidecar from starting.
    """
    # One that comes before there is anything to reload is answered when there is (supervisor.py).
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    config = load_config(config_path)
    set_up_logging(config.sidecar.log_level)
    # The configuration's digest is the first record of each run (I13).
    event(_log, logging.INFO, "starting", configuration=str(config.path), digest=config.digest)
    for warning in config.warnings:
        event(_log, logging.WARNING, "configuration", warning=warning)
    account = find_account(config)
    hardening.harden_process()
    hardening.raise_memlock_limit()
    check_descriptor_limit(config.sidecar.max_connections)
    try:
        policy = resolve_policy(config, NameService())
    except NameServiceUnavailable as error:
        raise StartupError(
            f"the name service is away, so the policy's names can't be looked up: {error}",
            remedy="restore the directory service and start again",
            exit_code=_EX_UNAVAILABLE,
        ) from error
    owners = frozenset({os.geteuid()} | ({account.uid} if account else set()))
    listener = _open_listener(config, owners)
    supervisor = Supervisor(config, policy, listener, account, accept_rollback=accept_rollback)
    return supervisor.run()


def _open_listener(config: Config, owners: frozenset[int]) -> Listener:
    inherited = notify.listen_fds()
    if len(inherited) > 1:
        raise StartupError(
            f"the service manager passed {len(inherited)} sockets, and one is served",
            remedy="keep one ListenStream= in the socket unit",
        )
    if inherited:
        return adopt(inherited[0])
    return listen(config.sidecar.socket, owners=owners)
