"""A whole sidecar whose store is on a PostgreSQL server, in the daemon's least-privileged role."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest
from support.on_server import OnServer
from support.postgresql import DAEMON, Database
from support.remote import Remote
from support.sidecar import (
    OPERATOR_UID,
    SIDECAR_GID,
    SIDECAR_UID,
    Sidecar,
    sidecar_directory,
)
from support.waiting import eventually

from keyside.envelope import parse_wrapping_header
from keyside_sidecar.commands.progress import acting_as
from keyside_sidecar.supervisor import Account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgresql import Server

pytestmark = pytest.mark.root
MAIL = "mail-credentials"
ENCRYPT = f"answer = client.encrypt({MAIL!r}, b'content').hex()"
DECRYPT = "answer = client.decrypt(bytes.fromhex(envelope)).decode()"
ROTATE = f"answer = client.rotate_key({MAIL!r}).version.number"


@pytest.fixture
def database(postgresql_server: Server) -> Iterator[Database]:
    made = postgresql_server.make_database()
    yield made
    made.drop()


@pytest.fixture
def sidecar(database: Database) -> Iterator[OnServer]:
    """A configured sidecar that does not run."""
    with sidecar_directory() as directory:
        made = OnServer(directory, database=database)
        made.prepare()
        try:
            yield made
        finally:
            made.kill()


def read_number(envelope: str) -> int:
    """Return which version an envelope in hex was made under."""
    return int(parse_wrapping_header(bytes.fromhex(envelope)).version_number)


def findings(sidecar: Sidecar, exit_code: int) -> dict[str, tuple[str, str]]:
    done = sidecar.keysided("check", "--json")
    assert done.returncode == exit_code, done.stdout + done.stderr
    rows = json.loads(done.stdout)["findings"]
    return {row["subject"]: (row["grade"], row["text"]) for row in rows}


def test_the_owners_role_makes_the_store_and_the_daemons_serves_from_it(
    sidecar: OnServer, database: Database
) -> None:
    """Under deploy/postgresql/grants.sql, a sidecar does all that it does on SQLite."""
    status = sidecar.root_key.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (SIDECAR_UID, 0o600)
    found = findings(sidecar, 0)
    assert found["store"][0] == "ok"
    assert found["database role"] == ("ok", f"the role {DAEMON} may do what it needs, and no more")
    assert found["database connection"][1].endswith("over a Unix socket")
    sidecar.start()
    with Remote(sidecar) as service, Remote(sidecar, OPERATOR_UID) as operator:
        first = service.run(ENCRYPT)
        assert operator.run(ROTATE) == 2
        second = service.run(ENCRYPT)
        for envelope in (first, second):
            assert service.run(DECRYPT, envelope=envelope) == "content"
    assert sidecar.stop() == 0
    assert "permission denied" not in sidecar.log.read_text()
    query = "SELECT state FROM key_versions WHERE key_name = %s ORDER BY number"
    assert database.run(query, MAIL) == [("ARCHIVED",), ("CURRENT",)]


def test_a_rotation_on_one_host_reaches_the_other_within_a_second(sidecar: OnServer) -> None:
    """Two sidecars with one root key on one store: what one makes, the other opens."""
    with sidecar_directory() as directory:
        other = OnServer(directory, database=sidecar.database, first=sidecar)
        other.prepare()
        sidecar.start()
        other.start()
        try:
            with (
                Remote(sidecar) as here,
                Remote(other) as there,
                Remote(other, OPERATOR_UID) as operator,
            ):
                envelope = there.run(ENCRYPT)
                assert here.run(DECRYPT, envelope=envelope) == "content"
                assert operator.run(ROTATE) == 2
                eventually(
                    lambda: read_number(here.run(ENCRYPT)), lambda seen: seen == 2, timeout_s=1.0
                )
        finally:
            other.kill()


def test_a_server_that_restarts_under_load_fails_no_call(
    sidecar: OnServer, database: Database
) -> None:
    """I12: versions that are in memory go on serving, and what needs the store heals by itself."""
    sidecar.start()
    with Remote(sidecar) as service, Remote(sidecar, OPERATOR_UID) as operator:
        envelope = service.run(ENCRYPT)
        database.server.stop()
        try:
            for _ in range(20):
                assert service.run(DECRYPT, envelope=service.run(ENCRYPT)) == "content"
        finally:
            database.server.start()
        assert service.run(DECRYPT, envelope=envelope) == "content"
        rotate = ROTATE.replace("client.", "keyside.Client(expected_owner=owner).")
        assert operator.run(rotate) == 2


def test_what_is_missing_or_too_much_is_found_by_check(
    sidecar: OnServer, database: Database
) -> None:
    database.run(f"GRANT DELETE ON keys TO {DAEMON}")
    grade, text = findings(sidecar, 0)["database role"]
    assert grade == "warning"
    assert "DELETE on keys" in text
    database.run(f"REVOKE ALL ON store_meta FROM {DAEMON}")
    done = sidecar.keysided("check")
    assert done.returncode == 78
    assert "lacks SELECT on store_meta, UPDATE on store_meta" in done.stdout
    assert "grants.sql" in done.stdout


def test_a_second_init_changes_nothing(sidecar: OnServer, database: Database) -> None:
    """Neither where the root key is there, nor where only the store is."""
    before = database.run("SELECT * FROM store_meta")
    assert sidecar.keysided("init").returncode == 73
    kept = sidecar.root_key.rename(sidecar.root_key.with_name("kept"))
    log = {path: path.rename(f"{path}.kept") for path in sidecar.audit_log.parent.iterdir()}
    done = sidecar.keysided("init")
    assert done.returncode == 73
    assert "already; nothing was changed" in done.stderr
    assert not sidecar.root_key.exists()
    kept.rename(sidecar.root_key)
    for path, aside in log.items():
        aside.rename(path)
    assert database.run("SELECT * FROM store_meta") == before
    assert findings(sidecar, 0)["store"][0] == "ok"


def test_an_interrupted_init_is_gone_on_with(sidecar: OnServer, database: Database) -> None:
    """From the root key, and from the store; where both roles look at what the server has."""
    kept = sidecar.root_key.read_bytes()
    for query in (None, "DROP SCHEMA public CASCADE; CREATE SCHEMA public; "):
        if query is not None:
            database.run(query + "ALTER SCHEMA public OWNER TO keyside_owner")
        for path in sidecar.audit_log.parent.iterdir():
            path.unlink()
        before = database.run("SELECT * FROM store_meta") if query is None else None
        done = sidecar.keysided("init")
        assert done.returncode == 0, done.stderr
        assert "goes on with the root key" in done.stdout
        assert sidecar.root_key.read_bytes() == kept
        if before is not None:
            assert database.run("SELECT * FROM store_meta") == before
    assert "made the store" in done.stdout


def test_a_role_that_may_not_make_tables_leaves_no_root_key(database: Database) -> None:
    """Without --store-url, init is the daemon's role; what it did is undone."""
    database.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with sidecar_directory() as directory:
        made = OnServer(directory, database=database, as_owner=False)
        with pytest.raises(AssertionError, match="permission denied for schema public"):
            made.prepare()
        assert not made.root_key.exists()


def test_migrate_says_what_it_did(sidecar: OnServer, database: Database) -> None:
    done = sidecar.keysided("migrate")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("already\n")
    database.run("UPDATE alembic_version SET version_num = '9999'")
    for command in ("migrate", "check"):
        done = sidecar.keysided(command)
        assert done.returncode == 78
        assert "newer keyside" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["init", "migrate"])
def test_a_password_in_an_argument_is_refused(sidecar: OnServer, command: str) -> None:
    """I7: and it is not repeated."""
    url = sidecar.server_url.replace("keyside@", "keyside_owner:hunter2@")
    done = Sidecar.keysided(sidecar, command, "--store-url", url)
    assert done.returncode == 64
    assert "passfile" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_another_database_in_an_argument_is_refused(sidecar: OnServer) -> None:
    assert sidecar.database is not None
    url = sidecar.database.owner_url.replace(sidecar.database.name, "postgres")
    for wrong in (url, "sqlite:////tmp/x.db"):
        done = Sidecar.keysided(sidecar, "migrate", "--store-url", wrong)
        assert done.returncode == 64


def test_the_server_is_asked_as_the_sidecars_account() -> None:
    """With ``peer``, the account that connects is the role: root is not asked to be one."""
    account = Account(SIDECAR_UID, SIDECAR_GID, (SIDECAR_GID,))
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    with acting_as(account):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (SIDECAR_UID, SIDECAR_GID, [64200])
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
