"""What ``keysided check`` looks at on the host: limits, PAM, namespaces, /proc, name caches."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyside.quantities import count_of
from keyside_sidecar import hardening
from keyside_sidecar.commands.findings import Finding, Grade
from keyside_sidecar.descriptors import check_descriptor_limit
from keyside_sidecar.errors import StartupError
from keyside_sidecar.pam.shadow import can_read_shadow
from keyside_sidecar.pam.transaction import has_service, load_pam
from keyside_sidecar.peer.login import read_login
from keyside_sidecar.peer.nsswitch import parse_nsswitch
from keyside_sidecar.weaknesses import (
    describe_unlocked_memory,
    find_person_logins_off,
    find_pidfd_fallback,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside_sidecar.config import Config
    from keyside_sidecar.supervisor import Account

# The inode numbers of the initial namespaces (include/linux/proc_ns.h).
_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"
_INITIAL_USER_NAMESPACE: Final = "user:[4026531837]"
_INIT_PID: Final = 1
_NSSWITCH: Final = Path("/etc/nsswitch.conf")
_PTRACE_SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
# Who may trace a process of the same account, by Yama's setting.
_TRACERS: Final = {
    "1": "a process can take connections of its own descendants only",
    "2": "only CAP_SYS_PTRACE can take a process's connections",
    "3": "nobody can take a process's connections",
}
_NSCD_SOCKETS: Final = (Path("/run/nscd/socket"), Path("/var/run/nscd/socket"))


def check_limits(config: Config, account: Account | None) -> Iterator[Finding]:
    """Look at limits as the supervisor will have them; call before becoming the account."""
    try:
        check_descriptor_limit(config.sidecar.max_connections)
    except StartupError as error:
        yield Finding("open files", Grade.FAILED, str(error), error.remedy)
    else:
        most = count_of(config.sidecar.max_connections, "connection")
        yield Finding("open files", Grade.OK, f"enough for {most}")
    hardening.raise_memlock_limit()
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if unlimited:
        yield Finding("memory", Grade.OK, "key material will be locked into memory")
    else:
        weakness = describe_unlocked_memory("RLIMIT_MEMLOCK is limited here")
        yield Finding.of_weakness("memory", weakness)
    who = f"uid {account.uid}" if account is not None else f"uid {os.geteuid()}, as started"
    yield Finding("account", Grade.OK, f"workers run as {who}")


def _install_pam_service(service: str) -> str:
    if service == "keyside":
        return "keysided files install pam/keyside"
    return f"keysided files show pam/keyside > /etc/pam.d/{service}"


def check_elevation(config: Config, account: Account | None) -> Iterator[Finding]:
    """Look at what people's passwords are checked with; call before becoming the account."""
    if config.elevation is None:
        return
    service = config.elevation.pam_service
    try:
        load_pam()
    except StartupError as error:
        yield Finding("elevation", Grade.FAILED, str(error), error.remedy)
        return
    if not has_service(service):
        yield Finding(
            "elevation",
            Grade.WARNING,
            f"PAM has no service {service}, so nobody can request or approve access",
            _install_pam_service(service),
        )
    elif not can_read_shadow():
        yield Finding(
            "elevation",
            Grade.WARNING,
            "the shadow file can't be read, so only accounts of a directory can be authenticated",
            "start the sidecar as root with user set under [sidecar] "
            "(keysided files install elevation.conf)",
        )
    elif account is None and os.geteuid() != 0:
        yield Finding(
            "elevation",
            Grade.WARNING,
            "the shadow file can be read, but by the workers too, which don't need it",
            "start the sidecar as root with user set under [sidecar] "
            "(keysided files install elevation.conf)",
        )
    else:
        yield Finding(
            "elevation", Grade.OK, f"people are authenticated by PAM as service {service}"
        )


def check_identity(config: Config) -> Iterator[Finding]:
    """Look at what telling callers apart depends on; call as the sidecar's account."""
    weaknesses = list(find_pidfd_fallback())
    for weakness in weaknesses:
        yield Finding.of_weakness("peer processes", weakness)
    if not weaknesses:
        yield Finding("peer processes", Grade.OK, "the kernel hands over callers' processes")
    yield _check_namespace(
        "user", _INITIAL_USER_NAMESPACE, "callers whose uid it does not map are refused"
    )
    yield _check_namespace("pid", _INITIAL_PID_NAMESPACE, "callers outside it are refused")
    yield _check_login(config)
    yield check_tracing()


def check_tracing(ptrace_scope: Path = _PTRACE_SCOPE) -> Finding:
    """Look at whether a process may take the connections of others of its account.

    What ``pidfd_getfd`` asks for is what a debugger needs: ptrace(2), PTRACE_MODE_ATTACH.
    """
    subject = "connections"
    remedy = (
        "set kernel.yama.ptrace_scope = 1 in /etc/sysctl.d, where the kernel has Yama; or have "
        "services call keyside.make_undumpable()"
    )
    everybody = "so any process of a service's account, a person's too, can take its connections"
    try:
        text = ptrace_scope.read_text().strip()
    except FileNotFoundError:
        return Finding(subject, Grade.WARNING, f"this kernel has no Yama, {everybody}", remedy)
    except OSError as error:
        unknown = f"{ptrace_scope} can't be read ({error.strerror}); where it is 0, any process of "
        return Finding(
            subject, Grade.WARNING, f"{unknown}a service's account can take its connections", remedy
        )
    known = _TRACERS.get(text)
    if known is None:
        return Finding(
            subject, Grade.WARNING, f"kernel.yama.ptrace_scope is {text[:20]}, {everybody}", remedy
        )
    return Finding(subject, Grade.OK, f"kernel.yama.ptrace_scope is {text}: {known}")


def _check_namespace(kind: str, initial: str, consequence: str) -> Finding:
    subject = f"{kind} namespace"
    if str(Path(f"/proc/self/ns/{kind}").readlink()) == initial:
        return Finding(subject, Grade.OK, "the host's own")
    return Finding(
        subject,
        Grade.WARNING if kind == "user" else Grade.NOTE,
        f"not the host's own; {consequence}",
        "drop PrivateUsers= from the unit" if kind == "user" else "",
    )


def _check_login(config: Config) -> Finding:
    """Prove that a foreign process's login uid can be read: init's, which everybody may read."""
    for weakness in find_person_logins_off(config):
        return Finding.of_weakness("login uids", weakness)
    if read_login(_INIT_PID).readable:
        return Finding("login uids", Grade.OK, "a foreign process's login uid can be read")
    if read_login(os.getpid()).readable:
        return Finding(
            "login uids",
            Grade.FAILED,
            "other accounts' processes are hidden, so every caller would be refused",
            "mount /proc without hidepid, and drop ProtectProc= and ProcSubset= from the unit",
        )
    return Finding(
        "login uids",
        Grade.FAILED,
        "this kernel has no audit login uids, so every caller would be refused",
        'use a kernel with CONFIG_AUDIT, or set person_logins = "off" and know what it means',
    )


def check_name_caches(config: Config) -> Iterator[Finding]:
    """Name the caches that stand between a directory and Keyside."""
    if config.identity.membership != "account":
        return
    try:
        databases = parse_nsswitch(_NSSWITCH.read_text())
    except (OSError, ValueError) as error:
        yield Finding("name service", Grade.WARNING, f"{_NSSWITCH} can't be understood: {error}")
        return
    services = {
        service.name
        for database in ("passwd", "group", "initgroups")
        for service in databases.get(database, ())
    }
    yield Finding("name service", Grade.OK, f"asks {', '.join(sorted(services)) or 'files'}")
    ttl = f"{config.identity.membership_ttl_s:g} s"
    if "sss" in services:
        yield Finding(
            "SSSD's cache",
            Grade.NOTE,
            f"SSSD answers from its own cache, so a removal takes its time and then {ttl}",
            "lower entry_cache_timeout and memcache_timeout in sssd.conf, or run sss_cache -E "
            "after a removal",
        )
    if any(place.exists() for place in _NSCD_SOCKETS):
        yield Finding(
            "nscd's cache",
            Grade.NOTE,
            f"nscd answers from its own cache, so a removal takes its time and then {ttl}",
            "set enable-cache group no and enable-cache passwd no in nscd.conf",
        )
