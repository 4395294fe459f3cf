"""The configuration file: what loads, and what is reported, where (I13)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside_sidecar.config import (
    AuditSettings,
    Config,
    IdentitySettings,
    KeySettings,
    Principals,
    RootKeySettings,
    SidecarSettings,
    StoreSettings,
    parse_config,
)
from keyside_sidecar.errors import ConfigError

FILE = Path("/etc/keyside/keyside.toml")
MINIMAL = """\
[sidecar]
socket = "/run/keyside/keyside.sock"
[store]
url = "sqlite:////var/lib/keyside/keyside.db"
[root_key]
provider = "file"
path = "/etc/keyside/root.key"
[audit]
path = "/var/log/keyside/audit.jsonl"
[operators]
groups = ["keyside-operators"]
[keys.mail]
allow_groups = ["mail-services"]
"""


def parse(text: str) -> Config:
    return parse_config(text.encode(), FILE)


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return [str(problem) for problem in caught.value.problems]


def with_setting(table: str, line: str) -> str:
    """The minimal file with one more setting, in place of the same setting."""
    key = line.partition("=")[0].strip()
    kept: list[str] = []
    current = ""
    for old in MINIMAL.splitlines():
        current = old.strip("[]") if old.startswith("[") else current
        if current != table or not old.startswith(f"{key} "):
            kept.append(old)
    if f"[{table}]" not in kept:
        kept.append(f"[{table}]")
    kept.insert(kept.index(f"[{table}]") + 1, line)
    return "\n".join(kept) + "\n"


# --- what loads


def test_minimal_file_gives_the_documented_defaults() -> None:
    config = parse(MINIMAL)
    assert config.sidecar == SidecarSettings(socket=Path("/run/keyside/keyside.sock"))
    assert config.identity == IdentitySettings()
    assert config.store.url == "sqlite:////var/lib/keyside/keyside.db"
    assert config.root_key == RootKeySettings(provider="file", path=Path("/etc/keyside/root.key"))
    assert config.audit == AuditSettings(path=Path("/var/log/keyside/audit.jsonl"))
    assert config.operators == Principals(groups=("keyside-operators",))
    assert config.auditors == Principals()
    assert dict(config.keys) == {
        "mail": KeySettings(name=config.keys["mail"].name, allow_groups=("mail-services",))
    }
    assert config.warnings == ()


def test_every_setting_is_read() -> None:
    config = parse(
        MINIMAL.replace(
            "[store]",
            """\
workers = 4
user = "keyside"
group = 990
drain_timeout = "1m30s"
reflection = true
max_plaintext_bytes = "4MiB"
max_connections = 10
max_connections_per_uid = 5
max_calls = 20
max_calls_per_uid = 6
log_level = "debug"
[identity]
membership = "process"
person_logins = "allow-own"
connection_max_age = "1m"
[store]""",
        ).replace('groups = ["keyside-operators"]', "users = [1000]")
        + 'allow_users = [1001, "batch"]\nencrypt_groups = [7]\ndecrypt_groups = ["readers"]\n'
        + 'suite = "ChaCha20-Poly1305"\nrotate_every = "30d"\nrotate_after_messages = 5_000\n'
        + 'rotate_after_bytes = "2GiB"\npropagation = "5m"\ndestroy_after = "30d"\n'
        + '[auditors]\nusers = ["ann"]\n'
    )
    audit = parse(
        MINIMAL.replace(
            "[operators]",
            """\
service_calls = "summary"
on_failure = "buffer"
buffer_records = 5000
timeout = "500ms"
checkpoint_every = "10s"
checkpoint_syslog = false
checkpoint_command = ["/usr/bin/send", "--to", "elsewhere"]
rotate_bytes = "1GiB"
rotate_every = "7d"
[operators]""",
        )
    ).audit
    assert audit == AuditSettings(
        path=Path("/var/log/keyside/audit.jsonl"),
        service_calls="summary",
        on_failure="buffer",
        buffer_records=5000,
        timeout_s=0.5,
        checkpoint_every_s=10.0,
        checkpoint_syslog=False,
        checkpoint_command=("/usr/bin/send", "--to", "elsewhere"),
        rotate_bytes=1 << 30,
        rotate_every_s=7 * 86_400.0,
    )
    assert config.sidecar == SidecarSettings(
        socket=Path("/run/keyside/keyside.sock"),
        workers=4,
        user="keyside",
        group=990,
        drain_timeout_s=90.0,
        reflection=True,
        max_plaintext_bytes=4 << 20,
        max_connections=10,
        max_connections_per_uid=5,
        max_calls=20,
        max_calls_per_uid=6,
        log_level="debug",
    )
    assert config.identity == IdentitySettings(
        membership="process", person_logins="allow-own", connection_max_age_s=60.0
    )
    key = config.keys["mail"]
    assert key.allow_users == (1001, "batch")
    assert (key.encrypt_groups, key.decrypt_groups) == ((7,), ("readers",))
    assert key.suite == "ChaCha20-Poly1305"
    assert (key.rotate_every_s, key.propagation_s) == (30 * 86_400, 300)
    assert (key.rotate_after_messages, key.rotate_after_bytes) == (5_000, 2 << 30)
    assert key.destroy_after_s == 30 * 86_400
    assert config.auditors == Principals(users=("ann",))


def test_lower_total_lowers_the_default_per_uid() -> None:
    config = parse(with_setting("sidecar", "max_connections = 10"))
    assert config.sidecar.max_connections_per_uid == 10
    assert config.sidecar.max_calls_per_uid == 256


def test_larger_plaintexts_raise_the_default_of_batches() -> None:
    config = parse(with_setting("sidecar", 'max_plaintext_bytes = "9MiB"'))
    assert config.sidecar.max_batch_bytes == 9 << 20
    assert parse(MINIMAL).sidecar.max_batch_bytes == 8 << 20
    lines = 'max_plaintext_bytes = "9MiB"\nmax_batch_bytes = "8MiB"'
    (problem,) = problems(with_setting("sidecar", lines))
    assert "at least max_plaintext_bytes, which is 9MiB" in problem


def test_age_of_data_keys_without_data_keys_is_warned_of() -> None:
    config = parse(with_setting("keys.mail", 'data_key_max_age = "1m"'))
    assert [warning for warning in config.warnings if "allow_data_keys = true" in str(warning)]
    text = 'allow_data_keys = true\ndata_key_max_age = "1m"'
    key = parse(with_setting("keys.mail", text)).keys["mail"]
    assert (key.allow_data_keys, key.data_key_max_age_s) == (True, 60.0)


def test_configuration_can_not_be_changed_afterwards() -> None:
    config = parse(MINIMAL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.store = StoreSettings(url="")  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.keys["other"] = config.keys["mail"]  # type: ignore[index]


def test_root_by_name_or_number_may_be_allowed() -> None:
    """I3: root is nobody special, and so can be named like anybody."""
    assert parse(with_setting("keys.mail", "allow_users = ['root', 0]")).keys["mail"].allow_users


# --- one wrong value each: (table, line, what the problem must say)

WRONG = [
    ("sidecar", "workers = true", "whole number from 1 to 64, not True"),
    ("sidecar", "workers = 0", "from 1 to 64"),
    ("sidecar", "workers = 65", "from 1 to 64"),
    ("sidecar", "workers = 1.0", "whole number"),
    ("sidecar", 'workers = "2"', "whole number"),
    ("sidecar", "reflection = 1", "true or false"),
    ("sidecar", 'reflection = "true"', "true or false, without quotes"),
    ("sidecar", 'log_level = "inf"', '"error", not \'inf\'; did you mean "info"?'),
    ("sidecar", "log_level = []", 'must be "debug"'),
    ("sidecar", "drain_timeout = 10", "duration in quotes"),
    ("sidecar", 'drain_timeout = "11m"', "from 0s to 10m"),
    ("sidecar", 'max_plaintext_bytes = "17MiB"', "from 1 to 16MiB"),
    ("sidecar", "max_plaintext_bytes = 0", "from 1 to 16MiB"),
    ("sidecar", "max_plaintext_bytes = false", "number of bytes"),
    ("sidecar", 'max_plaintext_bytes = "1MB"', "KiB, MiB or GiB"),
    ("sidecar", 'max_batch_bytes = "65MiB"', "from 1MiB to 64MiB"),
    ("keys.mail", 'data_key_max_age = "0s"', "from 1s to 1h"),
    ("keys.mail", 'data_key_max_age = "2h"', "from 1s to 1h"),
    ("keys.mail", "allow_data_keys = 1", "true or false"),
    ("sidecar", "max_calls = 65537", "from 1 to 65536"),
    ("sidecar", "max_calls_per_uid = 1025", "at most max_calls, which is 1024"),
    ("sidecar", 'socket = "keyside.sock"', "absolute path"),
    ("sidecar", 'socket = "@keyside"', "absolute path"),
    ("sidecar", 'socket = "/run/../keyside.sock"', '".."'),
    ("sidecar", 'socket = "/run/keyside/"', 'final "/"'),
    ("sidecar", 'socket = "/"', "a file's path"),
    ("sidecar", 'socket = "/run/a\\u0000b"', "control characters"),
    ("sidecar", f'socket = "/run/{"x" * 96}"', "at most 100 bytes long, not 101"),
    ("sidecar", f'socket = "/run/{"é" * 50}"', "not 105"),
    ("sidecar", 'group = "keyside"', 'has no effect without "user"'),
    ("sidecar", "user = 65534", "can't be named"),
    ("sidecar", "user = 0", "ordinary account, not root"),
    ("sidecar", 'user = "root"', "ordinary account, not root"),
    ("identity", 'membership = "proces"', 'did you mean "process"?'),
    ("identity", 'membership_ttl = "0s"', "from 1ms to 1m"),
    ("identity", 'membership_ttl = "61s"', "from 1ms to 1m"),
    ("identity", 'membership_ttl = "5 s"', "duration in quotes"),
    ("identity", 'membership_stale_max = "11m"', "from 1ms to 10m"),
    ("identity", 'membership_stale_max = "4s"', "at least membership_ttl, which is 5s"),
    ("identity", "person_logins = false", 'must be "refuse", "allow-own" or "off"'),
    ("identity", 'connection_max_age = "25h"', "from 1s to 1d"),
    ("store", 'url = "postgresql://db/keyside"', "must begin with postgresql+psycopg://"),
    ("store", 'url = "mysql://db/keyside"', "can't be used: SQLite, as in"),
    ("store", 'url = "postgresql+psycopg://k@db/keyside"', "needs sslrootcert="),
    ("store", 'url = "sqlite:///keyside.db"', "four slashes"),
    ("store", 'url = "sqlite://"', "four slashes"),
    ("store", 'url = "sqlite:////a.db?mode=ro"', "no options"),
    ("store", 'url = "sqlite:////a/../b.db"', 'the path in it must be a file\'s path without ".."'),
    ("store", "url = 1", "text in quotes"),
    ("root_key", 'provider = "vault"', 'must be "file"'),
    ("root_key", 'path = "root.key"', "absolute path"),
    ("root_key", 'path = "/run/keyside/keyside.sock"', "same file as [sidecar] socket"),
    ("audit", 'path = "audit.jsonl"', "absolute path"),
    ("audit", 'path = "/var/log/audit.log"', "must end in .jsonl"),
    ("audit", 'path = "/run/keyside/keyside.sock.jsonl/"', "final"),
    ("audit", 'service_calls = "none"', 'must be "each" or "summary"'),
    ("audit", 'on_failure = "ignore"', 'must be "refuse" or "buffer"'),
    ("audit", "buffer_records = 999", "from 1000 to 1000000"),
    ("audit", 'timeout = "100ms"', "from 200ms to 30s"),
    ("audit", 'checkpoint_every = "0s"', "from 1s to 1h"),
    ("audit", 'checkpoint_syslog = "no"', "must be true or false"),
    ("audit", 'checkpoint_command = "logger"', "must be a list of texts"),
    ("audit", "checkpoint_command = [1]", "must be a list of texts"),
    ("audit", 'checkpoint_command = ["logger"]', "the program in it must be an absolute path"),
    ("audit", 'checkpoint_command = ["/bin/a", "b\\nc"]', "control characters"),
    ("audit", 'rotate_bytes = "1KiB"', "from 1MiB to 16GiB"),
    ("audit", 'rotate_every = "59s"', "from 1m to 366d"),
    ("operators", 'groups = "admins"', "must be a list, as in"),
    ("auditors", "users = [true]", "neither a name nor a number"),
    ("auditors", "users = [1.5]", "neither a name nor a number"),
    ("auditors", 'users = [""]', "is no name"),
    ("auditors", 'users = ["a,b"]', "is no name"),
    ("auditors", 'users = ["a:b"]', "is no name"),
    ("auditors", 'users = [" a"]', "is no name"),
    ("auditors", 'users = ["a\\u202eb"]', "is no name"),
    ("auditors", 'users = ["a\\nb"]', "is no name"),
    ("auditors", 'users = ["1001"]', "'1001' without quotes"),
    ("auditors", "users = [-1]", "from 0 to 4294967294"),
    ("auditors", "users = [4294967295]", "from 0 to 4294967294"),
    ("auditors", "users = [65534]", "no meaning in a user namespace"),
    ("keys.mail", 'allow_groups = ["a", "b", "a"]', "'a' is given twice"),
    ("keys.mail", "allow_groups = [7, 7]", "7 is given twice"),
    ("keys.mail", "allow_groups = []", "allows nobody"),
    ("keys.mail", 'suite = "AES-128-GCM"', 'must be "AES-256-GCM" or "ChaCha20-Poly1305"'),
    ("keys.mail", "encrypt_groups = []", "must name a group; leave it out"),
    ("keys.mail", "decrypt_groups = []", "must name a group; leave it out"),
    ("keys.mail", 'rotate_every = "59m59s"', "from 1h to 3650d, not '59m59s'"),
    ("keys.mail", 'rotate_every = "3651d"', "from 1h to 3650d"),
    ("keys.mail", "rotate_every = 90", "duration in quotes"),
    ("keys.mail", "rotate_after_messages = 999", "whole number from 1000 to 1000000000000000"),
    ("keys.mail", "rotate_after_messages = 0", "whole number from 1000"),
    ("keys.mail", 'rotate_after_messages = "1000"', "whole number from 1000"),
    ("keys.mail", "rotate_after_bytes = 1048575", "from 1MiB to 1048576GiB, not 1048575"),
    ("keys.mail", 'rotate_after_bytes = "1TiB"', "KiB, MiB or GiB"),
    ("keys.mail", 'propagation = "25h"', "from 0s to 1d"),
    ("keys.mail", 'destroy_after = "6d23h"', "from 7d to 3650d, not '6d23h'"),
    ("keys.mail", 'destroy_after = "0s"', "from 7d to 3650d"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "line", "expected"), WRONG)
def test_wrong_value_is_one_problem_with_its_line_and_what_is_right(
    table: str, line: str, expected: str
) -> None:
    text = with_setting(table, line)
    found = problems(text)
    assert len(found) == 1, found
    assert expected in found[0]
    key = line.partition(" =")[0]
    number = text.splitlines().index(line) + 1
    at = number - 1 if "allows nobody" in expected else number
    assert found[0].startswith(f"keyside.toml line {at}, [{table}]")
    assert "allows nobody" in expected or f"[{table}] {key}: " in found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (with_setting("sidecar", "worker = 2"), 'worker: unknown setting; did you mean "workers"?'),
        (with_setting("sidecar", 'membership_ttl = "5s"'), "it belongs in [identity]"),
        (with_setting("keys.mail", 'rotate_evry = "90d"'), 'did you mean "rotate_every"?'),
        (with_setting("sidecar", 'destroy_after = "7d"'), "it belongs in [keys.NAME]"),
        (MINIMAL + "[operator]\n", '[operator]: unknown table; did you mean "operators"?'),
        (MINIMAL + "[audits]\npath = '/a'\n", "keyside.toml line 14, [audits]: unknown table"),
        (MINIMAL + "[[elevations.levels]]\n", '[elevations]: unknown table; did you mean "elev'),
        ("workers = 2\n" + MINIMAL, "line 1, workers: unknown setting; it belongs in [sidecar]"),
        (MINIMAL + "[keys.Mail]\nallow_users=[1]\n", "[keys.Mail]: a key name is 1 to 63"),
        (MINIMAL + '[keys."a\\u202eb"]\nallow_users=[1]\n', '[keys."a\\u202eb"]: a key name'),
        (MINIMAL + "[keys]\nx = 1\n", "line 15, [keys.x]: must be a table"),
        ("identity = 1\n" + MINIMAL, "line 1, [identity]: must be a table"),
        ("keys = 1\n" + MINIMAL[: MINIMAL.index("[keys")], "keys: must be tables"),
    ],
)  # fmt: skip
def test_unknown_and_misplaced_settings_are_errors_with_a_suggestion(
    text: str, expected: str
) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert expected in found[0]


def test_empty_file_lacks_each_required_setting() -> None:
    assert problems("") == [
        'keyside.toml, [sidecar]: needs the setting "socket"',
        'keyside.toml, [store]: needs the setting "url"',
        'keyside.toml, [root_key]: needs the setting "provider"',
        'keyside.toml, [root_key]: needs the setting "path"',
        'keyside.toml, [audit]: needs the setting "path"',
    ]


def test_all_problems_are_reported_together() -> None:
    text = """\
[sidecar]
socket = "x"
workers = 0
[identity]
membership = 1
[keys.mail]
allow_groups = [
  "a",
  "1",
  "a",
]
"""
    found = problems(text)
    assert [place.partition(": ")[0] for place in found] == [
        "keyside.toml line 2, [sidecar] socket",
        "keyside.toml line 3, [sidecar] workers",
        "keyside.toml line 5, [identity] membership",
        "keyside.toml, [store]",
        "keyside.toml, [root_key]",
        "keyside.toml, [root_key]",
        "keyside.toml, [audit]",
        "keyside.toml line 9, [keys.mail] allow_groups",
        "keyside.toml line 10, [keys.mail] allow_groups",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[sidecar]\nsocket = \n", "keyside.toml line 2, column 10: Invalid value"),
        ("[sidecar]\n[sidecar]\n", "keyside.toml line 2, column 9: Cannot declare"),
        ('a = "', "keyside.toml line 1, column 6: "),
        ("a = 1\nb = '''\n\n", "keyside.toml line 4, column 1: "),
        (f"a = {'9' * 5000}", "keyside.toml line 1, column 5: "),
        ("a = " + "[" * 5000, "keyside.toml line 1, column 21: is nested more than"),
    ],
)
def test_what_is_not_toml_is_a_problem_with_its_line(text: str, expected: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_what_is_not_utf8_is_a_problem_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"keyside\.toml line 2, column 3: is not UTF-8"):
        parse_config(b"# one\n# \xff\n", FILE)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_configuration_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(data, FILE)


def test_wrong_store_url_is_never_quoted() -> None:
    """I7: a password in the URL does not appear in the error, nor in the settings' repr."""
    found = problems(with_setting("store", 'url = "postgresql://u:hunter2@db/keyside"'))
    assert "hunter2" not in str(found)
    assert "hunter2" not in repr(StoreSettings(url="x://u:hunter2@h"))


def test_key_with_a_wrong_name_is_read_for_further_problems() -> None:
    found = problems(MINIMAL + "[keys.Mail]\nsuite = 1\n")
    assert [text.partition(": ")[0] for text in found] == [
        "keyside.toml line 14, [keys.Mail]",
        "keyside.toml line 15, [keys.Mail] suite",
        "keyside.toml line 14, [keys.Mail]",
    ]


@pytest.mark.parametrize(("propagation", "fits"), [("30m", True), ("30m1ms", False), ("1h", False)])
def test_propagation_is_at_most_half_of_what_a_version_lives(
    propagation: str, *, fits: bool
) -> None:
    text = with_setting("keys.mail", 'rotate_every = "1h"') + f'propagation = "{propagation}"\n'
    if fits:
        assert parse(text).keys["mail"].propagation_s == 1800
    else:
        (found,) = problems(text)
        assert found.startswith("keyside.toml line 15, [keys.mail] propagation: ")
        assert found.endswith("must be at most half of rotate_every, which is 1h")


def test_least_values_of_a_key_s_life_are_taken() -> None:
    lines = 'rotate_every = "1h"\nrotate_after_messages = 1000\nrotate_after_bytes = "1MiB"\n'
    key = parse(MINIMAL + lines + 'propagation = "0s"\ndestroy_after = "7d"\n').keys["mail"]
    assert (key.rotate_every_s, key.propagation_s, key.destroy_after_s) == (3600, 0, 7 * 86_400)
    assert (key.rotate_after_messages, key.rotate_after_bytes) == (1000, 1 << 20)


# --- warnings


@pytest.mark.parametrize(
    ("table", "line", "expected"),
    [
        ("identity", 'person_logins = "off"', "not told from services"),
        ("identity", 'connection_max_age = "1m"', "no effect with membership"),
        ("operators", 'groups = ["mail-services"]', "'mail-services' is in [operators] too"),
        ("operators", "groups = []", "names nobody"),
        ("keys.mail", 'rotate_every = "731d"', "is 731d: all that is sealed in that time"),
    ],
)
def test_what_is_legal_but_doubtful_is_a_warning(table: str, line: str, expected: str) -> None:
    """I4 asks for a warning where logins are off; the others are an operator's likely mistakes."""
    warnings = parse(with_setting(table, line)).warnings
    assert len(warnings) == 1
    assert expected in warnings[0]


def test_ttl_has_no_effect_in_process_mode() -> None:
    text = MINIMAL.replace('groups = ["keyside-operators"]', "users = [1000]")
    text += '[identity]\nmembership = "process"\nmembership_ttl = "1s"\n'
    assert "membership_ttl: has no effect" in parse(text).warnings[0]


def test_no_key_is_a_warning() -> None:
    assert "nothing can be encrypted" in parse(MINIMAL[: MINIMAL.index("[keys")]).warnings[0]


def test_in_process_mode_operators_are_named_by_users() -> None:
    """A process can shed a group, and with it the ban on encryption."""
    text = MINIMAL + '[identity]\nmembership = "process"\n'
    assert any("can shed a group" in problem for problem in problems(text))
    assert parse(text.replace('groups = ["keyside-operators"]', "users = [1000]"))
