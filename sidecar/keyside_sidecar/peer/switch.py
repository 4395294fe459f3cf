"""Finds out whether "not found" means that, by asking every name service by itself.

libc can't tell. Measured with glibc 2.36 and a service made for the purpose (tests/integration):

* ``passwd: files X``, X away: ``getpwuid_r`` gives X's errno, whatever X chose; ENOENT is one (what
  connecting to a stopped daemon's socket gives), and so is 0, which reads "no such account".
* ``passwd: files X systemd``, X away: rc 0 and NULL, "no such account", because the last service
  asked decides. This is the usual line of several distributions.
* ``getgrouplist`` passes over X, and returns the groups that the others know.

So each service on the line is asked directly, through the functions that every NSS module exports
(``_nss_SERVICE_getpwuid_r`` …), whose status says which it is: NOTFOUND, or UNAVAIL and TRYAGAIN.
libc stays the only source of accounts and groups: what is learnt here can only turn "not found"
into "can't know".

Asked *after* libc was, a service that says it is up proves nothing about a moment before. What it
answers does: if it knows of an account or a group of ours that libc did not report, it was away a
moment ago (or nscd answered, from its cache), and that is "can't know" as well. If it does not,
then libc's answer is the same as this one, which came from a service that was up.

A service whose library isn't installed is passed over, as libc does: nobody on this host can ask
it. A library that is there and can't be loaded is an outage.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import itertools
import os
import socket
from pathlib import Path
from typing import Any, Final

from keyside_sidecar.peer.libc import Group, Libc, Passwd, with_growing_buffer
from keyside_sidecar.peer.nsswitch import FILES_ONLY, Service, Status, parse_nsswitch

NSSWITCH_CONF: Final = Path("/etc/nsswitch.conf")
SSSD_SOCKET: Final = Path("/var/lib/sss/pipes/nss")

# Services that say UNAVAIL with this errno where they are in order and have nothing to say:
# systemd's without its user database running, and those that read a file which was never made.
_ABSENCES: Final = frozenset(
    {
        ("systemd", errno.ESRCH),
        ("db", errno.ENOENT),
        ("extrausers", errno.ENOENT),
        ("altfiles", errno.ENOENT),
    }
)
_FIRST_GROUPS: Final = 64
_SSSD_TIMEOUT_S: Final = 1.0

Libc.malloc.restype = ctypes.c_void_p
Libc.malloc.argtypes = (ctypes.c_size_t,)
Libc.free.restype = None
Libc.free.argtypes = (ctypes.c_void_p,)


class Switch:
    """The host's name services, one by one.

    Any thread may call; the file is read anew each time, as glibc notices its changes too.

    Args:
        path: nsswitch.conf.
        sssd_socket: Where SSSD answers its NSS module.
    """

    def __init__(self, path: Path = NSSWITCH_CONF, sssd_socket: Path = SSSD_SOCKET) -> None:
        self._path = path
        self._sssd_socket = sssd_socket
        # Only glibc has services; musl reads files, and asks an nscd whose failures it reports.
        self._has_services = hasattr(Libc, "gnu_get_libc_version")
        self._preload()

    def _preload(self) -> None:
        """Load the services' libraries before libc needs them.

        glibc never tries a library again that it could not load, not even when that was for want
        of descriptors, and passes over the service from then on. One that is loaded it finds.
        """
        with contextlib.suppress(OSError):
            for services in map(self._databases().get, ("passwd", "group", "initgroups")):
                for service in services or ():
                    _find(service.name, "getpwuid_r")

    def confirm_no_account(self, key: int | bytes) -> None:
        """Confirm that no service has an account of this uid or name.

        Raises:
            OSError: A service is away, or has it.
        """
        function = "getpwnam_r" if isinstance(key, bytes) else "getpwuid_r"
        self._confirm_absent("passwd", function, key)

    def confirm_no_group(self, name: bytes) -> None:
        """Confirm that no service has a group of this name.

        Raises:
            OSError: A service is away, or has it.
        """
        self._confirm_absent("group", "getgrnam_r", name)

    def confirm_not_member(self, name: bytes, gid: int, absent: frozenset[int]) -> None:
        """Confirm that no service has the account in any of the groups ``absent``.

        The services are asked as ``getgrouplist`` asks them (glibc's nss/initgroups.c): those of
        the line ``initgroups``, if there is one, with its rules; else all of ``group``, where
        success never stops the asking.

        Args:
            name: The account's name.
            gid: Its primary gid.
            absent: Gids that ``getgrouplist`` did not report for it.

        Raises:
            OSError: A service is away, or has it in one of them.
        """
        databases = self._databases()
        own_line = "initgroups" in databases
        for service in databases["initgroups" if own_line else "group"]:
            status, gids = self._ask_groups(service.name, name, gid, absent)
            if gids & absent:
                raise _outage(service.name, "says otherwise than libc did a moment ago")
            if (own_line or status is not Status.SUCCESS) and status in service.stops_at:
                return

    def _confirm_absent(self, database: str, function: str, key: int | bytes) -> None:
        for service in self._databases()[database]:
            status, _ = self._ask(service.name, function, key)
            if status is Status.SUCCESS:
                raise _outage(service.name, "says otherwise than libc did a moment ago")
            if status in service.stops_at:
                return

    def _databases(self) -> dict[str, tuple[Service, ...]]:
        if not self._has_services:
            return {"passwd": (), "group": ()}
        databases: dict[str, tuple[Service, ...]] = {"passwd": FILES_ONLY, "group": FILES_ONLY}
        try:
            text = self._path.read_text("utf-8", "surrogateescape")
            databases.update(parse_nsswitch(text))
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        return databases

    def _ask(
        self, service: str, function: str, key: int | bytes, *, member: bytes = b""
    ) -> tuple[Status, bool]:
        """Ask one service for one record, and whether the group lists ``member``.

        UNAVAIL is returned only where there is no such service, or nothing in it.
        """
        call = _find(service, function)
        if call is None:
            return Status.UNAVAIL, False
        record = Passwd() if function.startswith("getpw") else Group()
        error = ctypes.c_int(0)
        status = Status.UNAVAIL.value
        lists_member = False

        def attempt(buffer: ctypes.Array[ctypes.c_char]) -> int:
            nonlocal status, lists_member
            error.value = 0
            status = call(
                key if isinstance(key, bytes) else ctypes.c_uint32(key),
                ctypes.byref(record),
                buffer,
                ctypes.c_size_t(len(buffer)),
                ctypes.byref(error),
            )
            if status == Status.SUCCESS and isinstance(record, Group) and record.gr_mem:
                lists_member = member in itertools.takewhile(bool, record.gr_mem)
            return error.value if status == Status.TRYAGAIN else 0

        with_growing_buffer(attempt)
        return self._judge(service, status, error.value), lists_member

    def _ask_groups(
        self, service: str, name: bytes, gid: int, absent: frozenset[int]
    ) -> tuple[Status, frozenset[int]]:
        call = _find(service, "initgroups_dyn")
        if call is None:
            # glibc goes through the member lists of all of such a service's groups. That needs a
            # cursor which all threads share, so only the lists that matter are read.
            answers = {
                number: self._ask(service, "getgrgid_r", number, member=name) for number in absent
            }
            if any(status is Status.UNAVAIL for status, _ in answers.values()):
                return Status.UNAVAIL, frozenset()
            return Status.SUCCESS, frozenset(
                number for number, (_, lists_member) in answers.items() if lists_member
            )
        start, size = ctypes.c_long(0), ctypes.c_long(_FIRST_GROUPS)
        # The module may move it by realloc.
        gids = ctypes.cast(
            Libc.malloc(_FIRST_GROUPS * ctypes.sizeof(ctypes.c_uint32)),
            ctypes.POINTER(ctypes.c_uint32),
        )
        if not gids:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        error = ctypes.c_int(0)
        try:
            status = call(
                name,
                ctypes.c_uint32(gid),
                ctypes.byref(start),
                ctypes.byref(size),
                ctypes.byref(gids),
                ctypes.c_long(-1),
                ctypes.byref(error),
            )
            found = frozenset(gids[: start.value])
        finally:
            Libc.free(gids)
        return self._judge(service, status, error.value), found

    def _judge(self, service: str, status: int, failure: int) -> Status:
        if status == Status.NOTFOUND and service == "sss":
            self._check_sssd()
        if status in (Status.SUCCESS, Status.NOTFOUND) or (
            status == Status.UNAVAIL and (service, failure) in _ABSENCES
        ):
            return Status(status)
        raise _outage(service, os.strerror(failure) if failure else "is away", failure)

    def _check_sssd(self) -> None:
        """Check that SSSD runs, if it ever did.

        Built with ``--enable-sss-default-nss-plugin``, as some distributions do because they list
        ``sss`` on hosts that don't use it, its module says NOTFOUND when SSSD is away. A socket
        that refuses tells that it ran; no socket, that it is not in use here.

        Raises:
            OSError: SSSD is away.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_SSSD_TIMEOUT_S)
            try:
                probe.connect(str(self._sssd_socket))
            except FileNotFoundError:
                return
            except OSError as error:
                raise _outage("sss", f"SSSD: {error.strerror}", error.errno) from error


def _find(service: str, function: str) -> Any | None:
    """Return a service's function, or None where service or function don't exist on this host."""
    symbol = f"_nss_{service}_{function}"
    # glibc 2.34 and later hold "files" themselves.
    call = getattr(Libc, symbol, None) if service == "files" else None
    if call is None:
        library = f"libnss_{service}.so.2"
        try:
            call = getattr(_load(library), symbol, None)
        except OSError as error:
            # dlopen has no errno. Where its text isn't exactly this one, it is an outage.
            if str(error).startswith(f"{library}: ") and str(error).endswith(
                os.strerror(errno.ENOENT)
            ):
                return None
            raise _outage(service, "its library can't be loaded", errno.ELIBACC) from error
    if call is not None:
        call.restype = ctypes.c_int
    return call


@functools.cache
def _load(library: str) -> ctypes.CDLL:
    return ctypes.CDLL(library)


def _outage(service: str, what: str, failure: int | None = None) -> OSError:
    return OSError(failure or errno.EAGAIN, f'the name service "{service}" {what}')
