"""An outage of the name service is not an absence (I1): libc and a real NSS module.

The module is compiled here and does what the test says. It gets into the place of a directory by a
private nsswitch.conf in a mount namespace of its own; the machine's own file is not touched.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.name_service import HERE, build_name_service, seeing_nsswitch_conf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root: mounts an nsswitch.conf of its own"),
]

UID, NESTED_GID, STAFF_GID, UNKNOWN = 70001, 70101, 70100, 3_999_999_999
DAEMON_UID = DAEMON_GID = 1
PEOPLE = f"""
user ks-svc {UID} {UID}
group ks-staff {STAFF_GID} ks-svc
group ks-nested {NESTED_GID} ks-svc
group ks-guests 70102 other
"""
LINES = [
    "files kstest",
    "files kstest systemd",
    "kstest files",
    "files [SUCCESS=merge] kstest [SUCCESS=merge] systemd",
    "files nosuchservice kstest nosuchservice",
    "files kstest [UNAVAIL=continue TRYAGAIN=continue] systemd",
    "files kstest [!SUCCESS=return] systemd",
]
AWAY = [
    f"unavail {errno.ECONNREFUSED}",
    f"unavail {errno.ENOENT}",
    f"unavail {errno.ESRCH}",
    f"unavail {errno.ERANGE}",
    "unavail 0",
    f"tryagain {errno.EAGAIN}",
    f"tryagain {errno.ETIMEDOUT}",
    "tryagain 0",
]


class Host:
    """A process that sees an nsswitch.conf of the test's own, and the directory's state."""

    def __init__(self, directory: Path, modules: Path, nsswitch: str) -> None:
        self.state = directory / "state"
        self.sssd_socket = directory / "sssd"
        conf = directory / "nsswitch.conf"
        conf.write_text(nsswitch)
        self.set("weather up", PEOPLE)
        self._asker = subprocess.Popen(
            [
                *seeing_nsswitch_conf(conf),
                *(sys.executable, HERE / "asker.py", self.sssd_socket),
            ],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(modules),
                "KSTEST_STATE": str(self.state),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def set(self, weather: str, people: str = PEOPLE) -> None:
        """Change what the directory does and knows."""
        new = self.state.with_suffix(".new")
        new.write_text(f"{weather}\n{people}")
        new.replace(self.state)

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Return what the sidecar's name service answers."""
        assert self._asker.stdin is not None
        assert self._asker.stdout is not None
        self._asker.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._asker.stdin.flush()
        answer: dict[str, Any] = json.loads(self._asker.stdout.readline())
        return answer

    def end(self) -> int:
        """End the process by itself; return its exit code."""
        assert self._asker.stdin is not None
        assert self._asker.stdout is not None
        self._asker.stdin.close()
        try:
            return self._asker.wait(10)
        finally:
            self._asker.kill()
            self._asker.wait()
            self._asker.stdout.close()


class Hosts:
    """Makes hosts for one test."""

    def __init__(self, directory: Path, modules: Path) -> None:
        self._directory = directory
        self._modules = modules
        self._made: list[Host] = []

    def make(self, line: str, more: str = "") -> Host:
        """Return a host whose accounts and groups come from ``line``."""
        directory = self._directory / str(len(self._made))
        directory.mkdir()
        text = f"passwd: {line}\ngroup: {line}\n{more}\n"
        self._made.append(Host(directory, self._modules, text))
        return self._made[-1]

    def end(self) -> None:
        """End them all."""
        assert [host.end() for host in self._made] == [0] * len(self._made)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the test's name services."""
    directory = tmp_path_factory.mktemp("modules")
    for name, options in (("kstest", ()), ("ksflat", ("-DNO_INITGROUPS",)), ("sss", ())):
        build_name_service(directory, name, *options)
    return directory


@pytest.fixture
def hosts(tmp_path: Path, modules: Path) -> Iterator[Hosts]:
    """Makes hosts, and ends them after the test."""
    made = Hosts(tmp_path, modules)
    yield made
    made.end()


def ask_groups(host: Host, *relevant: int) -> dict[str, Any]:
    return host.ask("groups", name="ks-svc", gid=UID, relevant=relevant)


@pytest.mark.parametrize("line", LINES)
def test_a_directory_that_is_up_gives_definite_answers(hosts: Hosts, line: str) -> None:
    """Nested groups too, which no group's member list shows."""
    host = hosts.make(line)
    assert host.ask("account", uid=UID) == {"answer": ["ks-svc", UID, UID]}
    assert host.ask("account", uid=UNKNOWN) == {"answer": None}
    assert host.ask("uid_of", name="ks-svc") == {"answer": UID}
    assert host.ask("uid_of", name="nobody-like-that") == {"answer": None}
    assert host.ask("gid_of", name="ks-staff") == {"answer": STAFF_GID}
    assert host.ask("gid_of", name="no-group-like-that") == {"answer": None}
    in_groups = {"answer": [UID, STAFF_GID, NESTED_GID]}
    assert ask_groups(host, STAFF_GID, NESTED_GID, 70102, UNKNOWN) == in_groups


@pytest.mark.parametrize("weather", AWAY)
@pytest.mark.parametrize("line", LINES)
def test_i1_a_directory_that_is_away_is_no_absence(hosts: Hosts, line: str, weather: str) -> None:
    host = hosts.make(line)
    host.set(f"weather {weather}")
    for what, arguments in (
        ("account", {"uid": UID}),
        ("account", {"uid": UNKNOWN}),
        ("uid_of", {"name": "ks-svc"}),
        ("gid_of", {"name": "ks-staff"}),
        ("groups", {"name": "ks-svc", "gid": UID, "relevant": [STAFF_GID]}),
        # A directory may put a local account into its groups, and into local ones.
        ("groups", {"name": "daemon", "gid": DAEMON_GID, "relevant": [STAFF_GID]}),
        ("groups", {"name": "daemon", "gid": DAEMON_GID, "relevant": [DAEMON_GID, 2]}),
    ):
        answer = host.ask(what, **arguments)
        assert list(answer) == ["outage"], (what, arguments, answer)
        # Which service it is has to be in the log, unless libc gave its errno at once.
        assert "kstest" in answer["outage"] or what != "groups"


def test_local_accounts_and_groups_that_are_found_need_no_directory(hosts: Hosts) -> None:
    host = hosts.make("files kstest systemd")
    host.set("weather unavail 111")
    assert host.ask("account", uid=DAEMON_UID) == {"answer": ["daemon", DAEMON_UID, DAEMON_GID]}
    assert host.ask("gid_of", name="daemon") == {"answer": DAEMON_GID}
    groups = host.ask("groups", name="daemon", gid=DAEMON_GID, relevant=[DAEMON_GID])
    assert groups == {"answer": [DAEMON_GID]}


@pytest.mark.parametrize("line", LINES)
def test_i1_a_directory_that_is_away_for_memberships_only_is_no_absence(
    hosts: Hosts, line: str
) -> None:
    host = hosts.make(line)
    host.set("initgroups unavail 111")
    assert host.ask("account", uid=UID) == {"answer": ["ks-svc", UID, UID]}
    assert host.ask("gid_of", name="ks-staff") == {"answer": STAFF_GID}
    assert "outage" in ask_groups(host, STAFF_GID)
    assert ask_groups(host, UID) == {"answer": [UID]}


@pytest.mark.parametrize("line", LINES)
def test_i1_a_removal_from_a_group_and_the_end_of_an_account_are_definite(
    hosts: Hosts, line: str
) -> None:
    host = hosts.make(line)
    assert ask_groups(host, STAFF_GID) == {"answer": [UID, STAFF_GID, NESTED_GID]}
    host.set("weather up", PEOPLE.replace(f"group ks-staff {STAFF_GID} ks-svc\n", ""))
    assert ask_groups(host, STAFF_GID) == {"answer": [UID, NESTED_GID]}
    host.set("weather up", "")
    assert host.ask("account", uid=UID) == {"answer": None}
    assert host.ask("uid_of", name="ks-svc") == {"answer": None}


def test_i1_a_directory_that_comes_back_while_it_is_asked_is_no_absence(hosts: Hosts) -> None:
    """The first call meets it away; a moment later it is up and knows better."""
    for weather, what, arguments in (
        ("getpw unavail 0 1", "account", {"uid": UID}),
        ("getpw unavail 0 1", "uid_of", {"name": "ks-svc"}),
        ("getgr unavail 0 1", "gid_of", {"name": "ks-staff"}),
        (
            "initgroups unavail 0 1",
            "groups",
            {"name": "ks-svc", "gid": UID, "relevant": [STAFF_GID]},
        ),
    ):
        host = hosts.make("files kstest systemd")
        host.set(weather)
        assert "otherwise" in host.ask(what, **arguments)["outage"], what
        assert "answer" in host.ask(what, **arguments), what


def test_a_directory_that_nsswitch_conf_does_not_ask_does_not_matter(hosts: Hosts) -> None:
    host = hosts.make("files [NOTFOUND=return] kstest")
    host.set("weather unavail 111")
    assert host.ask("account", uid=UID) == {"answer": None}
    assert host.ask("gid_of", name="ks-staff") == {"answer": None}
    # Finding a local group stops nobody from asking on, finding none does.
    assert ask_groups(host, STAFF_GID) == {"answer": [UID]}


def test_the_line_initgroups_decides_who_is_asked_for_memberships(hosts: Hosts) -> None:
    host = hosts.make("files kstest", "initgroups: files")
    assert ask_groups(host, STAFF_GID) == {"answer": [UID]}
    host.set("weather unavail 111")
    assert ask_groups(host, STAFF_GID) == {"answer": [UID]}
    host = hosts.make("files", "initgroups: kstest files")
    assert ask_groups(host, STAFF_GID) == {"answer": [UID, STAFF_GID, NESTED_GID]}
    host.set("weather unavail 111")
    assert "outage" in ask_groups(host, STAFF_GID)


def test_a_service_that_lists_groups_only_is_asked_for_them(hosts: Hosts) -> None:
    host = hosts.make("files ksflat systemd")
    assert ask_groups(host, STAFF_GID) == {"answer": [UID]}
    host.set("weather unavail 111")
    assert "ksflat" in ask_groups(host, STAFF_GID)["outage"]


def test_sssd_that_is_stopped_is_no_absence_whatever_its_module_says(hosts: Hosts) -> None:
    """Several distributions build it to say NOTFOUND then."""
    host = hosts.make("files sss systemd")
    host.set("weather notfound")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sssd:
        sssd.bind(str(host.sssd_socket))
        sssd.listen()
        assert host.ask("account", uid=UID) == {"answer": None}
        assert ask_groups(host, STAFF_GID) == {"answer": [UID]}
    assert "SSSD" in host.ask("account", uid=UID)["outage"]
    assert "SSSD" in ask_groups(host, STAFF_GID)["outage"]
    host.sssd_socket.unlink()
    assert host.ask("account", uid=UID) == {"answer": None}


def test_libc_alone_can_not_tell_an_outage_from_an_absence(hosts: Hosts) -> None:
    """Why every service is asked by itself; what the sidecar says is in the tests above."""
    last = hosts.make("files kstest")
    not_last = hosts.make("files kstest systemd")
    for host in (last, not_last):
        host.set("weather unavail 111")
        assert host.ask("libc groups", name="ks-svc", gid=UID) == {"answer": [UID]}
    assert last.ask("libc account", uid=UID) == {"answer": errno.ECONNREFUSED}
    assert not_last.ask("libc account", uid=UID) == {"answer": None}
    last.set("weather unavail 0")
    assert last.ask("libc account", uid=UID) == {"answer": None}


def test_i1_membership_over_a_directory_that_hangs_and_goes_away(hosts: Hosts) -> None:
    host = hosts.make("files kstest systemd")
    host.ask(
        "remember",
        relevant_gids=[STAFF_GID],
        ttl_s=0.5,
        stale_max_s=3.0,
        lookup_timeout_s=0.2,
        retry_after_s=0.1,
    )
    served = {"answer": [UID, STAFF_GID, NESTED_GID]}
    away = {"refused": "NAME_SERVICE_UNAVAILABLE"}
    assert host.ask("identify", uid=UID) == served
    assert host.ask("identify", uid=UNKNOWN) == {"refused": "ACCOUNT_UNKNOWN"}

    host.set("weather unavail 111")
    time.sleep(1)
    assert host.ask("identify", uid=UID) == served
    time.sleep(3)
    assert host.ask("identify", uid=UID) == away

    host.set("weather up")
    time.sleep(0.2)
    assert host.ask("identify", uid=UID) == served
    host.set("weather up", PEOPLE.replace(str(STAFF_GID), "70109"))
    time.sleep(0.5)
    assert STAFF_GID not in host.ask("identify", uid=UID)["answer"]

    host.set("weather hang")
    time.sleep(0.6)
    assert "answer" in host.ask("identify", uid=UID)
    time.sleep(3)
    assert host.ask("identify", uid=UID) == away
    # That the process still ends, though a lookup of it hangs for ever, is checked at the end.
