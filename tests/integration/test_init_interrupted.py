"""``keysided init`` goes on where it was interrupted, and only there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.sidecar import PYTHON, SIDECAR_GID, SIDECAR_UID, Sidecar, sidecar_directory

from keyside.audit import name_log, parse_checkpoint
from keyside_sidecar.custody import create_root_key_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

CONFIG, CANT_CREATE, KILLED = 78, 73, -9
# More than there are steps.
MANY = 60
STAGES = [
    [],
    ["state/root.key"],
    ["state/keyside.db", "state/root.key"],
    ["audit/audit.jsonl.key.next", "state/keyside.db", "state/root.key"],
    ["audit/audit.jsonl", "audit/audit.jsonl.key.next", "state/keyside.db", "state/root.key"],
    ["audit/audit.jsonl", "audit/audit.jsonl.key", "state/keyside.db", "state/root.key"],
]


@pytest.fixture(scope="module")
def runs() -> Iterator[list[dict[str, Any]]]:
    """An ``init`` killed before each of its steps, a second one, and ``check``; in directories."""
    with sidecar_directory() as directory:
        sidecars = []
        for number in range(MANY):
            place = directory / str(number)
            place.mkdir()
            sidecars.append(Sidecar(place))
            sidecars[-1].lay_out()
        done = subprocess.run(
            [PYTHON, "-m", "support.killed_init", *(it.config_path for it in sidecars)],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        yield [json.loads(line) for line in done.stdout.splitlines()]


def test_it_was_killed_at_every_step(runs: list[dict[str, Any]]) -> None:
    """At each stage on the way at least once; and the last run had no step to be killed at."""
    *killed, whole = runs
    assert len(killed) > 20
    assert all(run["first"][0] == KILLED for run in killed)
    assert whole["first"][0] == 0
    seen = [sorted(run["after_kill"]) for run in killed]
    assert all(stage in seen for stage in STAGES[:-1])


def test_killed_at_any_step_it_goes_on_until_all_is_there(runs: list[dict[str, Any]]) -> None:
    """The store opens with the root key, the log with the key that was told last."""
    for run in runs:
        whole = sorted(run["after_kill"]) == STAGES[-1]
        code, said = run["second"]
        assert code == (CANT_CREATE if whole else 0), run
        assert ("are there already" in said) is whole, said
        assert sorted(run["at_the_end"]) == STAGES[-1]
        assert run["checked"][0] == 0, run["checked"][1]
        told = re.findall("public key is ([0-9a-f]{64})", run["first"][1] + said)
        log = bytes.fromhex(run["at_the_end"]["audit/audit.jsonl"][1])
        assert parse_checkpoint(log).seal.log == name_log(bytes.fromhex(told[-1]))


def test_root_key_and_store_are_never_made_twice(runs: list[dict[str, Any]]) -> None:
    """What is there after the kill is there at the end: the same file, to the byte."""
    for run in runs:
        for name in ("state/root.key", "state/keyside.db"):
            if name in run["after_kill"]:
                assert run["at_the_end"][name] == run["after_kill"][name]
        if "state/root.key" in run["after_kill"] and run["second"][0] == 0:
            assert "goes on with the root key" in run["second"][1]


def test_what_was_gone_on_with_serves(runs: list[dict[str, Any]]) -> None:
    """One from each stage at which the first run was killed."""
    by_stage = {tuple(sorted(run["after_kill"])): run["config"] for run in runs}
    sidecars = [Sidecar(Path(config).parent) for config in by_stage.values()]
    assert len(sidecars) >= len(STAGES)
    for sidecar in sidecars:
        sidecar.start(wait=False)
    try:
        for sidecar in sidecars:
            sidecar.await_notification("READY=1")
            done = sidecar.call(
                "e = client.encrypt('mail-credentials', b's'); print(client.decrypt(e).decode())"
            )
            assert done.stdout == "s\n", done.stderr
    finally:
        for sidecar in sidecars:
            sidecar.kill()


# What is no interrupted init.


@pytest.fixture(scope="module")
def prepared() -> Iterator[Sidecar]:
    """A host that was set up; tests work on copies."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        yield sidecar


def copy(sidecar: Sidecar, directory: Path) -> Sidecar:
    subprocess.run(["cp", "-a", f"{sidecar.directory}/.", directory], check=True)
    copied = Sidecar(directory)
    copied.write_config()
    return copied


@dataclass(frozen=True)
class Loss:
    """Something that a host which was set up has lost, or that doesn't fit.

    Args:
        name: What is wrong.
        make: Makes it so.
        code: The exit code.
        says: What the message has to hold: what is wrong, and what to do.
        command: What is run.
    """

    name: str
    make: Callable[[Sidecar], object]
    code: int
    says: tuple[str, ...]
    command: tuple[str, ...] = ("init",)


def remove_log(sidecar: Sidecar, *names: str) -> None:
    for name in names or ("audit.jsonl", "audit.jsonl.key"):
        (sidecar.audit_log.parent / name).unlink()


def exchange_root_key(sidecar: Sidecar) -> None:
    """Put another root key in its place, as a host has that was set up anew halfway."""
    sidecar.root_key.unlink()
    create_root_key_file(sidecar.root_key, SIDECAR_UID, SIDECAR_GID)


def use(sidecar: Sidecar) -> None:
    """Let a sidecar make the keys."""
    sidecar.start()
    sidecar.stop()


def use_and_lose_the_log(sidecar: Sidecar) -> None:
    use(sidecar)
    for path in sidecar.audit_log.parent.iterdir():
        path.unlink()


def lose_root_key_and_log(sidecar: Sidecar) -> None:
    sidecar.root_key.unlink()
    remove_log(sidecar)


def lose_root_key_and_store(sidecar: Sidecar) -> None:
    sidecar.root_key.unlink()
    sidecar.store.unlink()


def damage_root_key(sidecar: Sidecar) -> None:
    os.truncate(sidecar.root_key, 40)


LOSSES = [
    Loss("nothing", lambda _: None, CANT_CREATE, ("are there already", "keysided check")),
    Loss(
        "root key",
        lambda sidecar: sidecar.root_key.unlink(),
        CANT_CREATE,
        ("there is no root key at", "restore the root key from its backup"),
    ),
    Loss(
        "root key and audit log",
        lose_root_key_and_log,
        CANT_CREATE,
        ("there is no root key at", "restore the root key from its backup"),
    ),
    Loss(
        "store",
        lambda sidecar: sidecar.store.unlink(),
        CANT_CREATE,
        ("no store at", "has lost its store", "keysided restore a backup"),
    ),
    Loss(
        "root key and store",
        lose_root_key_and_store,
        CANT_CREATE,
        ("there is an audit log at", "restore them from their backups"),
    ),
    Loss(
        "audit log of a store that was used",
        use_and_lose_the_log,
        CANT_CREATE,
        ("holds 2 keys already", "there is no audit log at", "keysided init --only-audit"),
    ),
    Loss(
        "audit log, and its signing key is there",
        lambda sidecar: remove_log(sidecar, "audit.jsonl"),
        CANT_CREATE,
        ("only what is left of an audit log", "audit.jsonl.key", "find out where the log went"),
    ),
    Loss(
        "another root key",
        exchange_root_key,
        CONFIG,
        ("belongs to root key", "configure the root key that the store was made with"),
    ),
    Loss(
        "damaged root key",
        damage_root_key,
        CONFIG,
        ("is cut short", "restore the root key from its backup"),
    ),
    Loss(
        "root key that others can read",
        lambda sidecar: sidecar.root_key.chmod(0o644),
        CONFIG,
        ("has mode 0644", "chmod 0600"),
    ),
    Loss(
        "nothing, and only the log is asked for",
        lambda _: None,
        CANT_CREATE,
        ("there is an audit log at",),
        ("init", "--only-audit"),
    ),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_what_is_no_interrupted_init_is_refused(prepared: Sidecar, loss: Loss) -> None:
    """With the right words, and nothing is changed."""
    with sidecar_directory() as directory:
        sidecar = copy(prepared, directory)
        loss.make(sidecar)
        before = look(directory)
        done = sidecar.keysided(*loss.command)
        assert done.returncode == loss.code, done.stdout + done.stderr
        for words in loss.says:
            assert words in done.stderr
        assert "nothing to do" not in done.stderr
        assert done.stdout in ("", f"makes the audit log in {sidecar.audit_log}\n")
        assert look(directory) == before


def look(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.read_bytes())
        for path in directory.glob("*/*")
        if path.is_file()
    }


def test_places_that_the_account_cant_reach_are_found_before_the_root_key_is_made() -> None:
    """Root could enter them; the sidecar, as its account, could not."""
    with sidecar_directory() as directory:
        closed = directory / "closed"
        closed.mkdir(mode=0o700)
        (closed / "keyside").mkdir()
        inner = Sidecar(closed / "keyside")
        inner.lay_out()
        done = inner.keysided("init")
        assert done.returncode == CONFIG, done.stdout + done.stderr
        assert "Permission denied" in done.stderr
        assert list(inner.directory.glob("*/*")) == []
