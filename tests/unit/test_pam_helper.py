"""What real PAM says of real accounts, in helpers that hang and crash like real modules."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.pam import UNIX, People, build_module, made_people, pam_service
from support.processes import await_ended
from tests.unit.pam_scene import Scene, made_scene

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

PASSWORD = b"correct horse \xc3\xa4"
# Asks twice, as a service does whose second module has its own password.
TWICE = """
auth required pam_unix.so nodelay
auth required pam_unix.so nodelay
account required pam_unix.so
"""
# Says yes before anything is asked: what is left is account management.
PERMIT = "auth required pam_permit.so\naccount required pam_unix.so\n"
DENY = "auth required pam_deny.so\naccount required pam_deny.so\n"
DENY_ACCOUNT = "auth required pam_unix.so nodelay\naccount required pam_deny.so\n"
NULLOK = "auth required pam_unix.so nullok nodelay\naccount required pam_unix.so\n"
MISSING = "auth required pam_ks_test_missing.so\naccount required pam_unix.so\n"


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    """One account for each thing that can be wrong with an account."""
    with made_people() as made:
        for name in ("well", "locked", "expired", "old-password"):
            made.add_person(name, PASSWORD.decode())
        made.lock("locked")
        made.expire("expired")
        made.expire_password("old-password")
        made.add_user("no-password")
        made.add_person("empty", "to be emptied")
        subprocess.run(
            ["passwd", "--delete", made.full_name("empty")], check=True, stdout=subprocess.DEVNULL
        )
        yield made


@pytest.fixture(scope="module")
def uids(people: People) -> dict[str, int]:
    """The accounts' uids; 64999 has no account."""
    names = ("well", "locked", "expired", "old-password", "no-password", "empty")
    return {"nobody's": 64999} | {name: people.uid_of(name) for name in names}


@pytest.fixture(scope="module")
def unix() -> Iterator[str]:
    """A service that asks pam_unix alone."""
    with pam_service(UNIX) as service:
        yield service


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PAM module that behaves as it is told."""
    return build_module(tmp_path_factory.mktemp("module"))


@pytest.fixture
def scene(unix: str) -> Iterator[Scene]:
    """A desk for that service."""
    with made_scene(unix) as made:
        yield made


@pytest.mark.parametrize(
    ("account", "password", "outcome"),
    [
        ("well", PASSWORD, "ok"),
        ("well", PASSWORD[:-1], "denied"),
        ("well", PASSWORD + b" ", "denied"),
        ("well", b"x" * 1024, "denied"),
        ("locked", PASSWORD, "locked"),
        ("locked", b"wrong", "locked"),
        ("expired", PASSWORD, "expired"),
        ("expired", b"wrong", "denied"),
        ("old-password", PASSWORD, "password_expired"),
        ("no-password", b"!", "locked"),
        ("empty", b"anything", "denied"),
        ("nobody's", PASSWORD, "unknown_account"),
        ("well", None, "ok"),
        ("locked", None, "locked"),
        ("expired", None, "expired"),
        ("old-password", None, "password_expired"),
        ("nobody's", None, "unknown_account"),
    ],
)
def test_each_account_is_found_as_it_is(
    scene: Scene, uids: dict[str, int], account: str, password: bytes | None, outcome: str
) -> None:
    """None stands for no password: account management alone, while a grant lives."""
    assert scene.ask(uids[account], password) == outcome


@pytest.mark.parametrize(
    ("service", "account", "password", "outcome"),
    [
        (DENY, "well", PASSWORD, "denied"),
        (DENY_ACCOUNT, "well", PASSWORD, "denied"),
        (DENY_ACCOUNT, "well", None, "denied"),
        (PERMIT, "locked", b"anything", "locked"),
        (NULLOK, "empty", b"anything", "denied"),
        (TWICE, "well", PASSWORD, "ok"),
        (MISSING, "well", PASSWORD, "unavailable"),
    ],
    ids=["deny", "deny-account", "deny-check", "locked", "nullok", "asks-twice", "no-such-module"],
)
def test_each_service_has_its_way(
    uids: dict[str, int], service: str, account: str, password: bytes | None, outcome: str
) -> None:
    """A service that is lenient with locked accounts and empty passwords changes nothing."""
    with pam_service(service) as name, made_scene(name) as scene:
        assert scene.ask(uids[account], password) == outcome


def test_a_service_that_pam_has_not_is_not_replaced_by_other(uids: dict[str, int]) -> None:
    """On Debian "other" would take everybody's password."""
    with made_scene("ks-test-no-such-service") as scene:
        assert scene.ask(uids["well"], PASSWORD) == "unavailable"


@pytest.mark.parametrize("password", [b"", b"a\0b", b"x" * 1025], ids=["empty", "NUL", "long"])
def test_what_is_no_password_is_not_passed_to_pam(uids: dict[str, int], password: bytes) -> None:
    with pam_service(PERMIT) as service, made_scene(service) as scene:
        assert scene.ask(uids["well"], password) == "unavailable"


def test_a_module_that_hangs_is_ended_with_everything_that_it_started(
    tmp_path: Path, uids: dict[str, int]
) -> None:
    """pam_exec gives its command a session of its own; the command forks, and its child too."""
    script = tmp_path / "hang"
    script.write_text(
        "#!/bin/sh\n(setsid sleep 300 & echo $! >>$0.pids)\n"
        "sleep 300 & echo $$ $! >>$0.pids\nwait\n"
    )
    script.chmod(0o755)
    text = f"auth required pam_exec.so {script}\naccount required pam_permit.so\n"
    with pam_service(text) as service, made_scene(service, timeout_s=0.5) as scene:
        began_s = time.monotonic()
        assert scene.ask(uids["well"], PASSWORD) is None
        assert time.monotonic() - began_s < 3
    pids = [int(pid) for pid in Path(f"{script}.pids").read_text().split()]
    assert len(pids) == 3
    await_ended(pids, timeout_s=2)


@pytest.mark.parametrize(
    ("behaviour", "answer"),
    [
        ("crash", None),
        ("exit", None),
        ("print", "ok"),
        ("ask-name anything", "unavailable"),
        ("ask-much secret", "ok"),
        ("ask-much other", "denied"),
        ("unheard-of", "denied"),
    ],
)
def test_a_module_may_do_what_it_likes(
    module: Path,
    uids: dict[str, int],
    capfd: pytest.CaptureFixture[str],
    behaviour: str,
    answer: str | None,
) -> None:
    """exit(0) is no success; what it prints goes nowhere; every silent prompt gets the password."""
    text = f"auth required {module} {behaviour}\naccount required pam_permit.so\n"
    with pam_service(text) as service, made_scene(service) as scene:
        assert scene.ask(uids["well"], b"secret") == answer
    assert "KS-PRINTED" not in "".join(capfd.readouterr())


def test_a_helper_has_nothing_of_the_supervisors_but_its_rights(
    module: Path, uids: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session, environment and descriptors are its own; it can leave no core dump."""
    monkeypatch.setenv("NOTIFY_SOCKET", "@nowhere")
    seen = tmp_path / "seen"
    text = f"auth required {module} describe {seen}\naccount required pam_permit.so\n"
    with pam_service(text) as service, made_scene(service) as scene:
        assert scene.ask(uids["well"], PASSWORD) == "ok"
    assert sorted(seen.read_text().splitlines()) == [
        *(f"descriptor {number} /dev/n" for number in range(3)),
        "descriptor 3 socket",
        "environment LC_ALL=C",
        "environment PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "leader=1 core=0 dumpable=0",
        "term=1 pipe=1",
    ]
