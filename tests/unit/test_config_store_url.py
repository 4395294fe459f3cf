"""What a store's URL may say, and that a wrong one is never repeated (I7)."""

from __future__ import annotations

import pytest

from keyside_sidecar.config.store_url import PostgresqlServer, parse_postgresql_url
from keyside_sidecar.config.units import WrongValueError
from keyside_sidecar.config.values import holds_password, parse_store_url
from keyside_sidecar.errors import StartupError
from keyside_sidecar.store.location import SqliteFile, locate_store

HEAD = "postgresql+psycopg://"
CA = "sslrootcert=/etc/keyside/ca.pem"


def parse(rest: str) -> PostgresqlServer:
    return parse_postgresql_url(HEAD + rest)


def test_a_unix_socket_needs_no_password_and_has_no_tls() -> None:
    server = parse("keyside@/store?host=/run/postgresql")
    assert server.parameters == {
        "dbname": "store",
        "user": "keyside",
        "host": "/run/postgresql",
        "port": "5432",
        "sslmode": "disable",
        "application_name": "keyside",
    }
    assert server.place == "PostgreSQL keyside@/run/postgresql:5432/store"
    assert server.warnings == ()


def test_another_host_must_prove_its_name_unless_told_otherwise() -> None:
    parameters = parse(f"keyside@db.example:5433/store?{CA}").parameters
    assert (parameters["sslmode"], parameters["port"]) == ("verify-full", "5433")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_this_host_needs_no_certificate(host: str) -> None:
    assert parse(f"keyside@{host}/store").parameters["sslmode"] == "prefer"


@pytest.mark.parametrize("mode", ["require", "verify-ca"])
def test_a_weaker_check_of_another_host_is_a_warning(mode: str) -> None:
    (warning,) = parse(f"keyside@db.example/store?sslmode={mode}&{CA}").warnings
    assert warning.startswith(f"sslmode={mode} ")
    assert "verify-full" in warning


def test_several_hosts_are_taken_and_the_least_safe_one_counts() -> None:
    several = f"keyside@/store?host=a,b&port=5432,5433&target_session_attrs=read-write&{CA}"
    parameters = parse(several).parameters
    assert parameters["host"] == "a,b"
    assert parameters["port"] == "5432,5433"
    assert parameters["sslmode"] == "verify-full"
    assert parse(f"keyside@/store?host=localhost,db&{CA}").parameters["sslmode"] == "verify-full"


def test_a_password_is_decoded_and_shown_nowhere() -> None:
    server = parse(f"keyside:p%40ss%2Fw%3Ard%3F%25@db.example/my%20store?{CA}")
    assert server.parameters["password"] == "p@ss/w:rd?%"
    assert server.parameters["dbname"] == "my store"
    assert "p@ss" not in repr(server)
    assert "p@ss" not in server.place


WRONG = [
    ("keyside:hunter2@/store", "needs one host"),
    ("keyside:hunter2@db.example/", "name of one database"),
    ("keyside:hunter2@db.example", "name of one database"),
    ("keyside:hunter2@db.example/a/b", "name of one database"),
    ("keyside:hunter2@db.example/a#b", "name of one database"),
    ("keyside:hunter2@db.example:port/store", "is no URL"),
    ("keyside:hunter2@db.example:99999/store", "is no URL"),
    ("keyside:hunter2@[::1/store", "is no URL"),
    ("keyside:hunter2@db.example/store", "sslrootcert"),
    (f"keyside:hunter2@db.example/store?sslmode=disable&{CA}", "read the role's password"),
    (f"keyside:hunter2@db.example/store?sslmode=allow&{CA}", "read the role's password"),
    (f"keyside:hunter2@db.example/store?sslmode=prefer&{CA}", "read the role's password"),
    (f"keyside:hunter2@db.example/store?sslmode=hunter2&{CA}", "verify-full"),
    ("keyside@db.example/store?sslrootcert=ca.pem", "absolute path for sslrootcert"),
    ("keyside@db.example/store?sslrootcert=system", "absolute path for sslrootcert"),
    ("keyside@db.example/store?passfile=/etc/../pgpass", "absolute path for passfile"),
    ("keyside@db.example/store?password=hunter2", "no passwords"),
    ("keyside@db.example/store?sslpassword=hunter2", "no passwords"),
    ("keyside@db.example/store?hunter2=1", "takes only these"),
    ("keyside@db.example/store?hostaddr=10.0.0.1", "takes only these"),
    ("keyside@db.example/store?options=-csearch_path=x", "takes only these"),
    ("keyside@db.example/store?service=hunter2", "takes only these"),
    ("keyside@db.example/store?hunter2", "NAME=VALUE"),
    (f"keyside@db.example/store?{CA}&{CA}", "twice"),
    (f"keyside@db.example:5432/store?port=5432&{CA}", "port twice"),
    (f"keyside@/store?host=a,b&port=1,2,3&{CA}", "one for each host"),
    (f"keyside@/store?host=a&port=0&{CA}", "from 1 to 65535"),
    (f"keyside@db.example/store?host=other&{CA}", "needs one host"),
    ("keyside@/store?host=/run/postgresql,db.example", "can't mix"),
    ("keyside@/store?host=run/postgresql", "host that can't be one"),
    ("keyside@/store?host=@abstract", "host that can't be one"),
    ("keyside@/store?host=/run/../tmp", "absolute path for the server's"),
    (f"keyside@/store?host=/run/postgresql&{CA}", "TLS over a Unix socket"),
    ("keyside@/store?host=/run/postgresql&sslmode=require", "TLS over a Unix socket"),
    ("keyside:hunter2@db.example/st ore", "%20"),
    ("keyside:hunter2@db.example/st\nore", "%20"),
    (f"keyside:hunter2%00@db.example/store?{CA}", "control characters"),
]


@pytest.mark.parametrize(("rest", "what"), WRONG)
def test_a_wrong_url_is_one_problem_that_does_not_repeat_it(rest: str, what: str) -> None:
    for parser in (parse_store_url, parse_postgresql_url):
        with pytest.raises(WrongValueError, match=what) as caught:
            parser(HEAD + rest)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(StartupError, match=what) as refused:
        locate_store(HEAD + rest)
    assert "hunter2" not in f"{refused.value}{refused.value.remedy}"


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"]
)
def test_another_drivers_url_says_what_is_right(scheme: str) -> None:
    with pytest.raises(WrongValueError, match=r"postgresql\+psycopg://") as caught:
        parse_store_url(f"{scheme}://keyside:hunter2@db.example/store")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        (f"{HEAD}keyside@/store?host=/run/postgresql", False),
        (f"{HEAD}keyside:x@/store?host=/run/postgresql", True),
        (f"{HEAD}keyside:@/store?host=/run/postgresql", True),
        (f"{HEAD}keyside@db/store?passfile=/etc/keyside/pgpass", False),
        (f"{HEAD}keyside@db/store?sslpassword=x", True),
        (f"{HEAD}keyside@db/store?PASSWORD=x", True),
    ],
)
def test_a_password_is_noticed(url: str, *, holds: bool) -> None:
    assert holds_password(url) is holds


def test_a_file_is_located_as_before() -> None:
    found = locate_store("sqlite:////var/lib/keyside/keyside.db")
    assert isinstance(found, SqliteFile)
    assert found.place == "/var/lib/keyside/keyside.db"
