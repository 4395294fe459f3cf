"""Remedies are followed: the situation is made, what the message says is done, and it is gone.

What to do is taken out of the message itself: what is to be moved, the ``chown`` and ``chmod``, and
the commands of ``keysided``.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final

import pytest
from support.accounts import made_accounts
from support.sidecar import SIDECAR_GID, SIDECAR_UID, Sidecar, sidecar_directory

from keyside_sidecar import __main__ as daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

MOVE: Final = r"move (?P<names>[^;]*?) out of (?P<from>/[^\s,]+)"
STEP: Final = re.compile(
    rf"{MOVE}"
    r"|(?P<away>move the store away)"
    r"|(?P<put>(?:put|restore) the root key)"
    r"|(?P<chown>chown \d+ /[^\s,;]+)"
    r"|(?P<chmod>chmod [0-7go,=w-]+ /[^\s,;]+)"
    r"|keysided (?P<command>(?:init|restore|migrate|root rotate)[^,;.()]*)"
)


@pytest.fixture(scope="module")
def prepared() -> Iterator[Sidecar]:
    """A host that was set up, with a backup of its store and of its root key."""
    with sidecar_directory() as directory:
        made = Sidecar(directory)
        made.prepare()
        done = keysided(made, "backup", str(directory / "backup"))
        assert done.returncode == 0, done.stderr
        shutil.copy2(made.root_key, directory / "root.key.backup")
        assert failures(made) == []
        yield made


@pytest.fixture
def sidecar(prepared: Sidecar) -> Iterator[Sidecar]:
    """A host like it, in another directory."""
    with sidecar_directory() as directory:
        subprocess.run(["cp", "-a", f"{prepared.directory}/.", directory], check=True)
        made = Sidecar(directory)
        made.write_config()
        yield made


def keysided(sidecar: Sidecar, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, which has imported everything already."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                sys.argv = ["keysided", "--config", str(sidecar.config_path), *arguments]
                sys.stdout, sys.stderr = out, err
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                code = daemon._run()
                out.flush()
                err.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def failures(sidecar: Sidecar) -> list[tuple[str, str]]:
    """Return what ``check`` finds wrong: the subject, and what to do."""
    done = keysided(sidecar, "check", "--json")
    assert "Traceback" not in done.stderr
    if not done.stdout:
        return [("keysided", done.stderr)]
    rows = json.loads(done.stdout)["findings"]
    assert all(row["remedy"] for row in rows if row["grade"] == "failed")
    return [(row["subject"], row["remedy"]) for row in rows if row["grade"] == "failed"]


def follow(sidecar: Sidecar, remedy: str) -> int:
    """Do what ``remedy`` says, in its order; return how many steps that were."""
    count = 0
    for count, step in enumerate(STEP.finditer(remedy), 1):  # noqa: B007  (the last one counts)
        if step["names"]:
            kept = sidecar.directory / "kept"
            kept.mkdir(exist_ok=True)
            for name in re.split(r", | and ", step["names"]):
                (Path(step["from"]) / name).rename(kept / name)
        elif step["away"]:
            for path in sidecar.store.parent.glob("keyside.db*"):
                path.rename(sidecar.directory / f"former-{path.name}")
        elif step["put"]:
            shutil.copyfile(sidecar.directory / "root.key.backup", sidecar.root_key)
            sidecar.root_key.chmod(0o600)
            os.chown(sidecar.root_key, SIDECAR_UID, SIDECAR_GID)
        elif step["command"]:
            given = step["command"].replace("FILE", str(sidecar.directory / "backup")).split()
            words = given[: 2 if given[0] in {"init", "restore", "root"} else 1]
            done = keysided(sidecar, *words)
            assert done.returncode == 0, done.stderr
        else:
            subprocess.run((step["chown"] or step["chmod"]).split(), check=True)
    return count


# -- situations -------------------------------------------------------------------------------


def delete_log(sidecar: Sidecar) -> None:
    sidecar.audit_log.unlink()


def delete_log_with_finished_files(sidecar: Sidecar) -> None:
    sidecar.audit_log.rename(sidecar.audit_log.with_name("audit-000000000001.jsonl"))
    sidecar.audit_log.with_name("audit-000000000001.jsonl").write_bytes(b"not a log\n")


def empty_log(sidecar: Sidecar) -> None:
    sidecar.audit_log.write_bytes(b"")


def exchange_signing_key(sidecar: Sidecar) -> None:
    key = sidecar.audit_log.with_name("audit.jsonl.key")
    key.write_bytes(key.read_bytes()[:-1])


def open_signing_key(sidecar: Sidecar) -> None:
    sidecar.audit_log.with_name("audit.jsonl.key").chmod(0o644)


def open_log_directory(sidecar: Sidecar) -> None:
    sidecar.audit_log.parent.chmod(0o777)


def make_wal_as_root(sidecar: Sidecar) -> None:
    with closing(sqlite3.connect(sidecar.store)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for suffix in ("-wal", "-shm"):
            made = sidecar.store.with_name(f"keyside.db{suffix}")
            shutil.copyfile(made, sidecar.directory / f"x{suffix}")
    for suffix in ("-wal", "-shm"):
        path = sidecar.store.with_name(f"keyside.db{suffix}")
        shutil.copyfile(sidecar.directory / f"x{suffix}", path)
        path.chmod(0o600)
        os.chown(path, 0, 0)


def give_store_to_root(sidecar: Sidecar) -> None:
    os.chown(sidecar.store, 0, 0)


def open_store(sidecar: Sidecar) -> None:
    sidecar.store.chmod(0o644)


def open_store_directory(sidecar: Sidecar) -> None:
    sidecar.store.parent.chmod(0o777)


def change_row(sidecar: Sidecar) -> None:
    with closing(sqlite3.connect(sidecar.store)) as connection:
        connection.execute("UPDATE store_meta SET generation = generation + 1")
        connection.commit()
    for path in sidecar.store.parent.glob("keyside.db*"):
        os.chown(path, SIDECAR_UID, SIDECAR_GID)


def delete_store(sidecar: Sidecar) -> None:
    sidecar.store.unlink()


def delete_root_key(sidecar: Sidecar) -> None:
    sidecar.root_key.unlink()


def overwrite_root_key(sidecar: Sidecar) -> None:
    sidecar.root_key.write_bytes(b"something else\n")


def cut_root_key(sidecar: Sidecar) -> None:
    sidecar.root_key.write_bytes(sidecar.root_key.read_bytes()[:20])


def open_root_key(sidecar: Sidecar) -> None:
    sidecar.root_key.chmod(0o640)


def give_root_key_away(sidecar: Sidecar) -> None:
    os.chown(sidecar.root_key, 64999, 64999)


@dataclass(frozen=True)
class Situation:
    """Something that ``check`` finds.

    Args:
        make: Brings it about.
        subject: What ``check`` calls it.
        steps: How many steps there are to take.
        part: Which part of the remedy applies, where it has several for several causes.
    """

    make: Callable[[Sidecar], None]
    subject: str
    steps: int
    part: str = r".*"


SITUATIONS: Final = (
    Situation(delete_log, "audit log", 2, r"otherwise .*"),
    Situation(delete_log_with_finished_files, "audit log", 2, r"otherwise .*"),
    Situation(empty_log, "audit log", 2, r"otherwise .*"),
    Situation(exchange_signing_key, "audit log", 2, r"then .*"),
    Situation(open_signing_key, "audit log", 2, r"[^;]*; [^;]*"),
    Situation(open_signing_key, "audit log", 2, r"meanwhile, .*"),
    Situation(open_log_directory, "audit log", 1),
    Situation(make_wal_as_root, "store", 1),
    Situation(give_store_to_root, "store", 1),
    Situation(open_store, "store", 1),
    Situation(open_store_directory, "root key", 1),  # which lies there too, and is looked at first
    Situation(change_row, "store", 2),
    Situation(delete_store, "store", 1, r"keysided restore FILE"),
    Situation(delete_root_key, "root key", 1, r"[^,]*"),
    Situation(overwrite_root_key, "root key", 1),
    Situation(cut_root_key, "root key", 1),
    Situation(open_root_key, "root key", 1, r"[^;]*"),
    Situation(open_root_key, "root key", 2),
    Situation(give_root_key_away, "root key", 1, r"[^;]*"),
    Situation(give_root_key_away, "root key", 1, r"otherwise .*"),
)


@pytest.mark.parametrize(
    "situation", SITUATIONS, ids=lambda it: f"{it.make.__name__}-{it.steps}{it.part}"
)
def test_what_check_says_to_do_mends_what_it_found(sidecar: Sidecar, situation: Situation) -> None:
    situation.make(sidecar)
    found = failures(sidecar)
    assert [subject for subject, _ in found] == [situation.subject]
    part = re.search(situation.part, found[0][1], re.DOTALL)
    assert part, found
    assert follow(sidecar, part[0]) == situation.steps, found
    repeated = 0
    while (still := failures(sidecar)) and repeated < 2:
        # The same fault of another file of its kind: the second of the store's side files.
        assert [subject for subject, _ in still] == [situation.subject]
        assert still != found
        follow(sidecar, still[0][1])
        repeated += 1
    assert still == []


def test_restore_without_a_root_key_says_what_leads_to_a_store(sidecar: Sidecar) -> None:
    sidecar.root_key.unlink()
    for path in sidecar.store.parent.glob("keyside.db*"):
        path.unlink()
    done = keysided(sidecar, "restore", str(sidecar.directory / "backup"))
    assert done.returncode == 78
    assert "keysided init" not in done.stderr
    assert follow(sidecar, done.stderr) == 1
    done = keysided(sidecar, "restore", str(sidecar.directory / "backup"))
    assert done.returncode == 0, done.stderr
    assert failures(sidecar) == []


def test_endless_stream_that_is_no_backup_is_not_kept(sidecar: Sidecar) -> None:
    for path in sidecar.store.parent.glob("keyside.db*"):
        path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        done = keysided(sidecar, "restore", "/dev/zero")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.returncode == 65
    assert "this is not a Keyside backup" in done.stderr


def test_init_beside_a_log_says_how_to_begin_anew(sidecar: Sidecar) -> None:
    done = keysided(sidecar, "init", "--only-audit")
    assert done.returncode == 73
    assert follow(sidecar, done.stderr) == 2
    assert failures(sidecar) == []


def test_missing_store_says_where_init_makes_an_empty_one(sidecar: Sidecar) -> None:
    """Whether init does is up to the audit log, whatever becomes of the root key."""
    for path in sidecar.store.parent.glob("keyside.db*"):
        path.unlink()
    [(_, message)] = failures(sidecar)
    assert "where there is no audit log either" in message
    assert keysided(sidecar, "init").returncode == 73
    for path in sidecar.audit_log.parent.glob("audit.jsonl*"):
        path.unlink()
    done = keysided(sidecar, "init")
    assert done.returncode == 0, done.stderr
    assert sidecar.store.exists()
    assert failures(sidecar) == []


def test_account_and_group_are_made_as_the_message_says(sidecar: Sidecar) -> None:
    with made_accounts() as accounts:
        name = accounts.full_name("remedied")
        for given, steps in ((f'user = "{name}"', 1), (f'user = "{name}"\ngroup = "{name}g"', 2)):
            sidecar.account = given
            sidecar.write_config()
            if steps == 2:
                subprocess.run(["groupadd", "--system", name], check=True)
            for _ in range(steps):
                ((_, remedy),) = failures(sidecar)
                tool = re.search(r"make it: ((?:user|group)add .*)", remedy)
                assert tool, remedy
                subprocess.run(tool[1].split(), check=True)
            found = failures(sidecar)
            assert not any("there is no" in remedy for _, remedy in found), found
            subprocess.run(["userdel", "-f", name], check=True)
            subprocess.run(["groupdel", "-f", name], check=False, capture_output=True)
            subprocess.run(["groupdel", f"{name}g"], check=False, capture_output=True)


def test_number_without_an_account_is_warned_of_and_made(sidecar: Sidecar) -> None:
    """docs/configuration.md: with membership = "account" such a caller is refused."""
    uid = 64777
    sidecar.identity = 'membership = "account"\nperson_logins = "off"'
    sidecar.config = f"[keys.payroll]\nallow_users = [{uid}]\n"
    sidecar.write_config()

    def warnings() -> list[str]:
        rows = json.loads(keysided(sidecar, "check", "--json").stdout)["findings"]
        return [row["text"] for row in rows if row["grade"] == "warning" and "uid" in row["text"]]

    assert warnings() == [f"no account has the uid {uid}, so it is refused all the same"]
    with made_accounts() as accounts:
        name = accounts.full_name("numbered")
        subprocess.run(["useradd", "--system", "--uid", str(uid), name], check=True)
        try:
            assert warnings() == []
        finally:
            subprocess.run(["userdel", "-f", name], check=True)
