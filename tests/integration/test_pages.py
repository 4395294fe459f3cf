"""README and docs, word for word: every block is run on a host of its own, from the wheel.

The host's /etc, /var, /opt and accounts are private (``support/private_host.py``). What each block
is for stands in ``support/page_blocks.py``. The tests follow one another: the host that the README
has set up is the one on which the other pages go on.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from typing import TYPE_CHECKING

import pytest
from support.page_host import PageHost
from support.pages import find_blocks
from support.private_host import private_host
from support.transcripts import Player

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
ELEVATED = 'alice$ keyside access request mail-credentials --reason "lost mail, INC-4711"'
OPERATORS = "keyside keys list"
SECOND_PYTHON = "for row, result"
PEOPLE = {
    "alice": "datacenter-admins",
    "bob": "datacenter-managers",
    "carol": "legal",
    "dave": "legal",
    "olga": "keyside-operators",
    "audrey": "keyside-auditors",
}
SERVER = "/usr/lib/postgresql/*/bin"
OPEN_TOKEN = "runuser -u mailgw -- keyside decrypt --context mailbox=42 < /root/token.sealed"
# More than two files of the log, of 1 MiB each.
FILL_LOG = """
import keyside
client = keyside.Client()
for _ in range(6_000):
    client.encrypt("mail-credentials", b"")
"""
# Eight requests, more than one worker takes at a time; what each was answered, in short.
ASK_SERVER = """
import http.client, socket
for _ in range(8):
    connection = http.client.HTTPConnection("app")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect("/srv/app/app.sock")
    connection.request("POST", "/", b"a token")
    answer = connection.getresponse()
    print(f"{answer.status}-{answer.read()[:3].decode()}")
"""
# What reaches registries here, for npm.
NETWORK = {
    name: value
    for name, value in os.environ.items()
    if name.lower().endswith("_proxy") or name.lower().startswith(("npm_config_", "node_extra_"))
}


@pytest.fixture(scope="module")
def place() -> Iterator[PageHost]:
    """A host on which nothing is installed."""
    with private_host(
        NO_COLOR="1", npm_config_audit="false", npm_config_fund="false", **NETWORK
    ) as host:
        made = PageHost(host, Player(host, {name: f"{name}-S3cret" for name in PEOPLE}))
        yield made
    made.close()


def test_readme_from_top_to_bottom(place: PageHost) -> None:
    """It gets from nothing to a first envelope, a program, a shell, an operator and Node."""
    place.follow("README.md", skip=(SECOND_PYTHON, OPERATORS, ELEVATED))
    # "where the key's policy has allow_data_keys"
    place.configure(
        ("[keys.mail-credentials]\n", "[keys.mail-credentials]\nallow_data_keys = true\n")
    )
    place.stop()
    place.start_unit("keyside.service")
    place.follow("README.md", only=SECOND_PYTHON)
    # "an account in keyside-operators"
    place.host.must("useradd --uid 2005 --user-group --create-home -G keyside-operators olga")
    place.follow("README.md", only=OPERATORS)


def test_elevation_as_each_of_them_sees_it(place: PageHost) -> None:
    """docs/elevation.md, and what the README and docs/cli.md show of it: real people, passwords."""
    settle_people(place)
    place.player.replace["8f261194…7a954f99"] = place.public_key
    (block, *_) = find_blocks("docs/elevation.md")
    # No checkpoint in the middle of the story, however long it takes here.
    place.configure(('audit.jsonl"\n', 'audit.jsonl"\ncheckpoint_every = "1h"\n'))
    place.configure(('[operators]\ngroups = ["keyside-operators"]\n', block.text))
    place.stop()
    place.start()
    place.follow("docs/elevation.md")
    place.follow("README.md", only=ELEVATED)


def test_the_commands_page(place: PageHost) -> None:
    """docs/cli.md: the members of all that --json prints, a request, completion."""
    place.follow("docs/cli.md")


def test_the_daemons_page(place: PageHost) -> None:
    """docs/keysided.md: the members of what --json prints."""
    place.follow("docs/keysided.md")


def test_an_auditor_without_root_and_retired_files(place: PageHost) -> None:
    """docs/audit.md: the socket's lines verify as the files' do; an archive's checkpoint counts."""
    place.player.replace["5c0d…e1"] = place.public_key
    place.configure(('audit.jsonl"\n', 'audit.jsonl"\nrotate_bytes = "1MiB"\n'))
    place.stop()
    place.start()
    place.host.must(f"/opt/keyside/bin/python -c '{FILL_LOG}'", account="mailgw")
    finished = "ls /var/log/keyside/audit-[0-9]*.jsonl"
    assert place.host.must(finished).count("\n") == 2
    place.follow("docs/audit.md")
    assert place.host.run(finished).code != 0
    lines = place.host.must("cat /home/audrey/log.jsonl")
    kept = "cat /var/backups/keyside-audit/audit-*.jsonl /var/log/keyside/audit.jsonl"
    assert place.host.must(kept).startswith(lines)


def test_containers(place: PageHost) -> None:
    """docs/containers.md: a service in a user namespace, and the probe."""
    place.follow("docs/containers.md")


def test_clients_in_servers(place: PageHost) -> None:
    """docs/clients.md: a pre-forking server, event loops, gevent."""
    python = "/opt/keyside/bin/pip install --quiet gunicorn gevent"
    place.host.must(python)
    program, server, *_ = find_blocks("docs/clients.md")
    place.host.must("install -d -o mailgw -g mailgw /srv/app")
    (place.host.directory / "app.py").write_text(program.text)
    place.host.must(f"cp {place.host.directory}/app.py /srv/app/app.py")
    command = f"cd /srv/app; PATH=/opt/keyside/bin:$PATH exec {server.text}"
    serving = place.host.begin(
        f"runuser -u mailgw -- sh -c {shlex.quote(command)}", "/var/log/gunicorn.log"
    )
    ask = f"/opt/keyside/bin/python -c {shlex.quote(ASK_SERVER)}"
    deadline = time.monotonic() + 30
    while place.host.run("test -S /srv/app/app.sock").code != 0:
        assert time.monotonic() < deadline, place.host.must("cat /var/log/gunicorn.log")
        time.sleep(0.1)
    workers = set(place.host.must(ask, account="mailgw").split())
    assert workers == {"200-KSE"}, place.host.must("cat /var/log/gunicorn.log")
    place.host.must("kill $(pgrep -u mailgw -o gunicorn)")
    serving.wait(30)
    place.follow("docs/clients.md")


def test_backup_restore_and_the_root_key(place: PageHost) -> None:
    """docs/backup.md: what was sealed before opens afterwards."""
    place.follow("docs/backup.md", only="keysided backup /var")
    place.stop()
    place.follow("docs/backup.md", only="keysided restore")
    place.start("keysided serve --accept-rollback")
    assert place.host.must(OPEN_TOKEN) == "a refresh token\n"
    place.follow("docs/backup.md", only="keysided root rotate")
    assert place.host.must(OPEN_TOKEN) == "a refresh token\n"
    place.follow("docs/keys.md")


def test_a_store_moves_from_sqlite_to_postgresql(place: PageHost) -> None:
    """docs/operations.md: set up by its own words; what SQLite's sidecar sealed opens."""
    host = place.host
    place.stop()
    roles, access, *_ = find_blocks("docs/operations.md")
    sqlite = 'url = "sqlite:////var/lib/keyside/keyside.db"'
    server = 'url = "postgresql+psycopg://keyside@/keyside?host=/run/postgresql"'
    with postgresql(place, access.text):
        # A new one, in place of the store that there is:
        query(place, roles.text)
        host.must("mkdir /root/aside; mv /etc/keyside/root.key /var/lib/keyside /root/aside")
        host.must("mv /var/log/keyside /root/aside/log")
        host.must("install -d -o keyside -g keyside -m 0700 /var/lib/keyside /var/log/keyside")
        place.configure((sqlite, server))
        place.follow("docs/operations.md", only="keysided init")
        place.configure((server, sqlite))
        host.must("rm -r /etc/keyside/root.key /var/lib/keyside /var/log/keyside")
        host.must("cd /root/aside; mv root.key /etc/keyside/; mv keyside /var/lib/")
        host.must("mv /root/aside/log /var/log/keyside")
        query(place, "DROP DATABASE keyside; DROP ROLE keyside; DROP ROLE keyside_owner;")
        # And the old one, moved:
        query(place, roles.text)
        place.follow("docs/operations.md", only="keysided backup")
        place.configure((sqlite, server))
        place.follow("docs/operations.md", only="keysided restore")
        place.start()
        assert host.must(OPEN_TOKEN) == "a refresh token\n"
        assert "postgresql" in host.must("keysided check")
        place.stop()


def test_a_unit_never_starts_a_program_that_it_could_not_reach(place: PageHost) -> None:
    """An installation below /root, which the unit's ProtectHome= hides: refused, with a remedy."""
    place.host.must("cp -a /opt/keyside /root/keyside")
    again = "python -m keyside_sidecar files install --force keyside.service"
    before = place.host.must("cat /etc/systemd/system/keyside.service")
    ran = place.host.run(f"/root/keyside/bin/{again}")
    assert (ran.code, "/opt/keyside" in ran.output) == (78, True), ran.output
    assert place.host.must("cat /etc/systemd/system/keyside.service") == before
    assert "is there already" in place.host.must(f"/opt/keyside/bin/{again}")


def settle_people(place: PageHost) -> None:
    """Make the people of docs/elevation.md, each with a password and a session's directory."""
    host = place.host
    for group in ("datacenter-admins", "datacenter-managers", "legal", "keyside-auditors"):
        host.must(f"groupadd {group}")
    for number, (name, group) in enumerate(PEOPLE.items(), start=2001):
        if name != "olga":
            host.must(f"useradd --uid {number} --user-group --create-home -G {group} {name}")
        password = place.player.passwords[name]
        host.must(f"echo {name}:{password} | chpasswd --crypt-method=SHA512 --sha-rounds=1000")
        host.must(f"install -d -o {name} -g {name} -m 0700 /run/user/$(id -u {name})")
    host.must("keysided files install pam/keyside")
    host.must("install -m 0755 /bin/true /usr/local/sbin/tell-approvers")
    host.must(
        "printf 'refresh token of mailbox 42\\n' | runuser -u mailgw -- "
        "keyside encrypt mail-credentials --context mailbox=42 > /home/alice/token.sealed"
    )


@contextlib.contextmanager
def postgresql(place: PageHost, access: str) -> Iterator[None]:
    """Run a PostgreSQL server on the host, with the page's pg_hba.conf."""
    host = place.host
    (place.host.directory / "pg_hba.conf").write_text(f"local all postgres peer\n{access}")
    host.must("install -d -o postgres -g postgres /var/lib/postgresql /run/postgresql")
    host.must(
        f"data=/var/lib/postgresql/data; runuser -u postgres -- $(ls -d {SERVER}/initdb) -D $data "
        f"-E UTF8 --locale=C.UTF-8 --no-sync >/dev/null; cp {host.directory}/pg_hba.conf $data/; "
        "echo 'keyside root keyside_owner' >> $data/pg_ident.conf; chown postgres: $data/*.conf"
    )
    running = host.begin(
        f"runuser -u postgres -- $(ls -d {SERVER}/postgres) -D /var/lib/postgresql/data "
        "-k /run/postgresql -c listen_addresses= -c fsync=off",
        "/var/log/postgresql.log",
    )
    try:
        deadline = time.monotonic() + 30
        while host.run("runuser -u postgres -- psql -c ''").code != 0:
            assert time.monotonic() < deadline, host.must("cat /var/log/postgresql.log")
            time.sleep(0.1)
        yield
    finally:
        host.run("kill -INT $(head -n 1 /var/lib/postgresql/data/postmaster.pid)")
        running.wait(30)


def query(place: PageHost, statements: str) -> None:
    """Run SQL as the server's administrator, stopping at the first error."""
    (place.host.directory / "statements.sql").write_text(statements)
    file = f"{place.host.directory}/statements.sql"
    place.host.must(f"runuser -u postgres -- psql --quiet -v ON_ERROR_STOP=1 --file={file}")
