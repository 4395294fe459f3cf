"""``keysided check``: everything that can be known without serving. It changes nothing.

Run by root it becomes the sidecar's account first: what root can read says nothing about what the
sidecar will be able to read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from keyside.quantities import count_of
from keyside_sidecar.access.resolve import resolve_policy
from keyside_sidecar.commands import host
from keyside_sidecar.commands.accounts import act_as, find_account
from keyside_sidecar.commands.audit_log import check_audit_log
from keyside_sidecar.commands.findings import Finding, Grade, print_findings
from keyside_sidecar.commands.server import check_server
from keyside_sidecar.config import load_config
from keyside_sidecar.custody import open_custodian
from keyside_sidecar.errors import (
    ConfigError,
    CustodyError,
    StartupError,
    StoreError,
    StoreUnavailable,
)
from keyside_sidecar.peer.accounts import NameService, NameServiceUnavailable
from keyside_sidecar.peer.listener import require_safe_path
from keyside_sidecar.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.config import Config
    from keyside_sidecar.custody import Custodian

_EX_UNAVAILABLE: Final = 69
_PAGE: Final = 1000
_NAMED: Final = 10


def run_check(config_path: Path, *, as_json: bool) -> int:
    """Print what was found; return 0 unless something would keep the sidecar from serving.

    Raises:
        ConfigError: The configuration is wrong; nothing else could be looked at.
        StartupError: The account to run as can't be used.
    """
    config = load_config(config_path)
    account = find_account(config)
    findings = [*host.check_limits(config, account), *host.check_elevation(config, account)]
    act_as(account)
    findings = [*_check_config(config), *findings]
    findings += _check_names(config)
    findings += _check_keys(config)
    findings += check_audit_log(config)
    findings += _check_socket(config)
    findings += host.check_identity(config)
    findings += host.check_name_caches(config)
    return print_findings(findings, as_json=as_json)


def _check_config(config: Config) -> Iterator[Finding]:
    yield Finding(
        "configuration", Grade.OK, f"{config.path} is valid, SHA-256 digest {config.digest}"
    )
    for warning in config.warnings:
        yield Finding("configuration", Grade.WARNING, warning)
    if not os.access(config.path, os.R_OK):
        yield Finding(
            "configuration file",
            Grade.NOTE,
            f"the sidecar's account (uid {os.geteuid()}) can't read {config.path}, so only root "
            "can start and reload the sidecar",
            f"let it, where the service manager starts the sidecar as that account: chmod o+r "
            f"{config.path}, and the directories above it o+x",
        )


def _check_names(config: Config) -> Iterator[Finding]:
    try:
        policy = resolve_policy(config, NameService())
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("policy", Grade.FAILED, str(problem), "make it, or correct the name")
        return
    except NameServiceUnavailable as error:
        yield Finding(
            "policy", Grade.FAILED, str(error), "restore the directory service", _EX_UNAVAILABLE
        )
        return
    yield Finding("policy", Grade.OK, f"all names are known; {count_of(len(policy.keys), 'key')}")
    yield from _check_numbers(config, policy)


def _check_numbers(config: Config, policy: Policy) -> Iterator[Finding]:
    """Look for uids that the policy allows and that are refused as nobody's (ACCOUNT_UNKNOWN)."""
    if config.identity.membership != "account":
        return
    names = NameService()
    uids = sorted({uid for key in policy.keys.values() for uid in key.allowed.uids})
    try:
        lost = [str(uid) for uid in uids if names.account(uid) is None]
    except NameServiceUnavailable:
        return
    if lost:
        yield Finding(
            "policy",
            Grade.WARNING,
            f"no account has the uid {', '.join(lost[:_NAMED])}, so it is refused all the same",
            'make an account with that uid, or set membership = "process" under [identity]',
        )


def _check_keys(config: Config) -> Iterator[Finding]:
    try:
        custodian = open_custodian(config.root_key)
    except CustodyError as error:
        yield Finding("root key", Grade.FAILED, str(error), error.remedy)
        return
    yield Finding(
        "root key",
        Grade.OK,
        f"{config.root_key.path} holds the root key {custodian.key_id}",
        "make sure that it is backed up apart from the store",
    )
    try:
        yield from check_server(config)
        yield _check_store(config, custodian)
    except StoreUnavailable as error:
        yield Finding("store", Grade.FAILED, str(error), error.remedy, _EX_UNAVAILABLE)
    except (StartupError, CustodyError) as error:
        yield Finding("store", Grade.FAILED, str(error), error.remedy)
    except StoreError as error:
        yield Finding("store", Grade.FAILED, str(error), error.remedy)


def _check_socket(config: Config) -> Iterator[Finding]:
    directory = config.sidecar.socket.parent
    if not directory.exists():
        yield Finding("socket", Grade.NOTE, f"{directory} does not exist yet; serve makes it")
        return
    try:
        require_safe_path(directory, frozenset({os.geteuid()}))
    except StartupError as error:
        yield Finding("socket", Grade.FAILED, str(error), error.remedy)
    else:
        yield Finding("socket", Grade.OK, f"nobody else can replace {config.sidecar.socket}")


def _check_store(config: Config, custodian: Custodian) -> Finding:
    store = Store.open(config.store.url, custodian)
    try:
        infos = store.list_keys()
        count = 0
        for info in infos:
            after: int | None = 0
            while after is not None:
                after = store.verify_page(info.name, after=after, limit=_PAGE)
            count += info.version_count
            store.load_key(info.name)
    finally:
        store.close()
    unserved = sorted({info.name for info in infos} - set(config.keys))
    text = (
        f"{count_of(count, 'version')} of {count_of(len(infos), 'key')} "
        f"{'is' if count == 1 else 'are'} authentic, and every current one unwraps"
    )
    if not unserved:
        return Finding("store", Grade.OK, text)
    return Finding(
        "store",
        Grade.NOTE,
        f"{text}; not configured, so not served: {', '.join(unserved)}",
        "what was encrypted under them opens again once they are configured",
    )
