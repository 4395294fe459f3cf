"""A start that can't go well ends at once, changes nothing, and says what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.sidecar import (
    OTHER_UID,
    SIDECAR_GID,
    SIDECAR_UID,
    Sidecar,
    sidecar_directory,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

UNAVAILABLE, NOT_PERMITTED, CONFIG, CANT_CREATE = 69, 77, 78, 73


@pytest.fixture(scope="module")
def prepared() -> Iterator[Sidecar]:
    """A sidecar that could be started."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        yield sidecar


@pytest.fixture
def sidecar(prepared: Sidecar) -> Iterator[Sidecar]:
    """One whose files a test may break; they are as before afterwards."""
    files = (prepared.config_path, prepared.root_key, prepared.store)
    before = [(path, path.read_bytes(), path.stat()) for path in files]
    yield prepared
    prepared.socket.parent.chmod(0o755)
    for path, content, facts in before:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        os.chown(path, facts.st_uid, facts.st_gid)
        path.chmod(facts.st_mode)


@dataclass(frozen=True)
class Fault:
    """Something that keeps the sidecar from starting.

    Args:
        name: What is wrong.
        make: Makes it so.
        code: The exit code.
        says: What the message has to hold: what is wrong, and what to do.
    """

    name: str
    make: Callable[[Sidecar], object]
    code: int
    says: tuple[str, ...]


def give_another_root_key(sidecar: Sidecar) -> None:
    """Put the root key of another store in its place."""
    with sidecar_directory() as directory:
        other = Sidecar(directory)
        other.prepare()
        sidecar.root_key.write_bytes(other.root_key.read_bytes())


def give_root_key_away(sidecar: Sidecar) -> None:
    """Let the root key be somebody else's, who lets everybody read it."""
    os.chown(sidecar.root_key, OTHER_UID, -1)
    sidecar.root_key.chmod(0o644)


def pretend_newer_schema(sidecar: Sidecar) -> None:
    """Let the store be one that a later program has migrated."""
    with sqlite3.connect(sidecar.store) as store:
        store.execute("UPDATE alembic_version SET version_num = '9999'")
    store.close()


def run_as_root(sidecar: Sidecar) -> None:
    """Leave out whom to run as."""
    text = sidecar.config_path.read_text()
    sidecar.config_path.write_text(text.replace(sidecar.account, ""))


FAULTS = [
    Fault(
        "root key of another account",
        lambda sidecar: os.chown(sidecar.root_key, OTHER_UID, -1),
        CONFIG,
        ("Permission denied", f"chown {SIDECAR_UID} ", "restore the root key from its backup"),
    ),
    Fault(
        "root key of another account, readable",
        give_root_key_away,
        CONFIG,
        (
            f"belongs to uid {OTHER_UID}",
            f"chown {SIDECAR_UID} ",
            "restore the root key from its backup",
        ),
    ),
    Fault(
        "root key that others can read",
        lambda sidecar: sidecar.root_key.chmod(0o644),
        CONFIG,
        ("has mode 0644", "chmod 0600", "replace the root key too"),
    ),
    Fault(
        "truncated root key",
        lambda sidecar: os.truncate(sidecar.root_key, 40),
        CONFIG,
        ("is cut short", "restore the root key from its backup"),
    ),
    Fault(
        "another store's root key",
        give_another_root_key,
        CONFIG,
        ("belongs to root key", "configure the root key that the store was made with"),
    ),
    Fault(
        "missing root key",
        lambda sidecar: sidecar.root_key.unlink(),
        CONFIG,
        ("does not exist", "keysided init", "restore the root key from its backup"),
    ),
    Fault(
        "store that others can read",
        lambda sidecar: sidecar.store.chmod(0o644),
        CONFIG,
        ("has mode 0644", "chmod 0600"),
    ),
    Fault(
        "missing store",
        lambda sidecar: sidecar.store.unlink(),
        UNAVAILABLE,
        ("there is no store at", "keysided init", "keysided restore FILE"),
    ),
    Fault(
        "store of a newer program",
        pretend_newer_schema,
        CONFIG,
        ("9999", "newer keyside", "restore a backup from before the upgrade"),
    ),
    Fault(
        "configuration that others can write",
        lambda sidecar: sidecar.config_path.chmod(0o666),
        CONFIG,
        ("can be written by others", "chmod"),
    ),
    Fault(
        "socket's directory that others can write",
        lambda sidecar: sidecar.socket.parent.chmod(0o777),
        CONFIG,
        ("can be written by others", "chmod go-w"),
    ),
    Fault(
        "root, with nobody to run as",
        run_as_root,
        CONFIG,
        ("started by root", 'set user = "keyside" under [sidecar]'),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_start_that_fails_says_what_to_do(sidecar: Sidecar, fault: Fault) -> None:
    fault.make(sidecar)
    kept = sidecar.root_key.read_bytes() if sidecar.root_key.exists() else b"(no root key)"
    done = sidecar.keysided("serve")
    assert done.returncode == fault.code, done.stderr
    for words in fault.says:
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert kept.decode() not in done.stderr
    assert sorted(path.name for path in sidecar.socket.parent.iterdir()) in (
        [],
        [".keyside.sock.lock"],
    )


def test_another_account_than_the_configured_one_is_refused(sidecar: Sidecar) -> None:
    launcher = ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups"]
    sidecar.launcher = launcher
    try:
        refused = sidecar.keysided("serve")
    finally:
        sidecar.launcher = ()
    assert refused.returncode == NOT_PERMITTED
    assert f"start it as root or as {SIDECAR_UID}" in refused.stderr


@pytest.mark.parametrize("missing", ["nothing", "store", "root key"])
def test_init_overwrites_nothing(sidecar: Sidecar, missing: str) -> None:
    """With either of the two there, both stay as they are, to the byte."""
    if missing == "store":
        sidecar.store.unlink()
    if missing == "root key":
        sidecar.root_key.unlink()
    state = sidecar.store.parent

    def look() -> dict[str, tuple[bytes, int, int]]:
        return {
            path.name: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
            for path in state.iterdir()
        }

    before = look()
    done = sidecar.keysided("init")
    assert done.returncode == CANT_CREATE
    assert "nothing was changed" in done.stderr
    assert look() == before


def test_init_makes_both_for_the_account_alone_and_says_to_back_up_the_root_key() -> None:
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        for path in (sidecar.root_key, sidecar.store):
            facts = path.stat()
            assert (facts.st_uid, facts.st_gid) == (SIDECAR_UID, SIDECAR_GID)
            assert facts.st_mode & 0o777 == 0o600
        shutil.rmtree(sidecar.store.parent)
        sidecar.store.parent.mkdir(mode=0o700)
        os.chown(sidecar.store.parent, SIDECAR_UID, SIDECAR_GID)
        refused = sidecar.keysided("init")
        assert refused.returncode == CANT_CREATE
        assert "move audit.jsonl and audit.jsonl.key out of" in refused.stderr
        for path in sidecar.audit_log.parent.glob("audit*"):
            path.unlink()
        done = sidecar.keysided("init")
        assert done.returncode == 0, done.stderr
        assert "Back up the root key now, and not in the same place as the store" in done.stdout
