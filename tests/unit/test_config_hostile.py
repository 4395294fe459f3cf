"""Configuration files that are hostile or odd: a typed error with its place, in bounded resources.

The long form (``make soak``) takes 100,000 mutations of real configurations; the usual one 3,000.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Final

import pytest

from keyside_sidecar.access.resolve import resolve_policy
from keyside_sidecar.config import load_config, parse_config
from keyside_sidecar.errors import ConfigError

FILE: Final = Path("/etc/keyside/keyside.toml")
SOAK: Final = os.environ.get("KEYSIDE_SOAK") == "1"
MUTATIONS: Final = 100_000 if SOAK else 3_000
MAX_INPUT_S: Final = 10.0  # of processor time; the worst known needs two on a slow machine
MAX_MEMORY_BYTES: Final = 512 << 20
MAX_TEXT: Final = 64 << 10
REPOSITORY: Final = Path(__file__).parents[2]
PAGES: Final = ("README.md", "docs/configuration.md", "docs/elevation.md", "docs/operations.md")
MINIMAL: Final = """\
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
URL: Final = 'url = "sqlite:////var/lib/keyside/keyside.db"'
SERVER: Final = "postgresql+psycopg://keyside@/keyside?host=/run/postgresql"
MIB: Final = 1 << 20


def with_url(url: str) -> str:
    return MINIMAL.replace(URL, f'url = "{url}"')


def names(count: int) -> str:
    return ", ".join(f"'g{number}'" for number in range(count))


# What it is, and the one line that says what is wrong with it.
SYNTAX: Final[dict[str, tuple[str | bytes, str]]] = {
    "dotted name of 100,000 parts": (
        "a" + ".a" * 99_999 + " = 1\n",
        "line 1, column 32: a name has more than 16 parts",
    ),
    "header of 100,000 parts": ("[a" + ".a" * 99_999 + "]", "line 1, column 33: a name has more"),
    "quoted parts": ('"a" . ' * 20 + "b = 1", "line 1, column 95: a name has more than 16 parts"),
    "arrays in arrays": ("a = " + "[" * 300_000, "line 1, column 21: is nested more than 16 deep"),
    "tables in tables": ("a = " + "{a=" * 300_000, "line 1, column 53: is nested more than 16"),
    "number of 5,000 digits": (f"a = {'9' * 5000}", "line 1, column 5: a name or number without"),
    "hexadecimal number": (f"a = 0x{'f' * 5000}", "line 1, column 5: a name or number without"),
    "fraction": (f"a = 1.{'9' * 5000}", "line 1, column 7: a name or number without quotes has"),
    "byte-order mark": (
        b"\xef\xbb\xbf" + MINIMAL.encode(),
        "line 1, column 1: begins with a byte-order mark; save it as UTF-8 without one",
    ),
    "byte-order mark within": (MINIMAL + "\ufeffa = 1", "line 14, column 1: Invalid statement; "),
    "no-break space": ("a\u00a0= 1", "line 1, column 2: Expected '=' after a key in a key/value"),
    "UTF-16": (MINIMAL.encode("utf-16-le"), "line 1, column 2: holds a NUL character; if it is"),
    "UTF-16 with a mark": (MINIMAL.encode("utf-16"), "line 1, column 1: is UTF-16; save it as"),
    "not UTF-8": (b"# one\n# \xc3\xa9 \xff\n", "line 2, column 5: is not UTF-8"),
    "surrogate's bytes": (b"a = '\xed\xa0\x80'", "line 1, column 6: is not UTF-8"),
    "surrogate's escape": ('a = "\\ud800"', "line 1, column "),
    "NUL": ("a = 1\n\0", "line 2, column 1: holds a NUL character"),
    "CR alone": (MINIMAL.replace("\n", "\r"), "line 1, column 10: ends its lines with CR alone"),
    "other digits": ("a = ١٢", "line 1, column 5: Invalid value; there is U+0661"),
    "other digits in a name": ("[keys.١٢]", "line 1, column 7: Invalid initial character for a"),
    "twice": ("[sidecar]\nworkers = 1\nworkers = 2", "line 3, column "),
    "twice, with a long name": (f"['{'x' * 9999}']\n" * 2, "line 2, column 10003: Cannot declare"),
    "no end of text": ('a = "' + '\\"' * 500_000, "line 1, column 1000006: Unterminated string"),
    "no end of lines": ('a = """' + '\\"""\n' * 200_000, "line 200001, column 1: Unterminated"),
    "month 13": ("a = 2020-13-01", "line 1, column "),
    "too many tables": ("[a]\n[[b]]\n" * 90_000, "column 1: holds more than 200000 names, values"),
    "too large": ("#" * (MIB + 1), "is larger than 1048576 bytes"),
}
# Valid TOML with wrong values: a part of one of the problems.
VALUES: Final[dict[str, tuple[str, str]]] = {
    "port of 4,301 digits": (with_url(f"{SERVER}&port={'9' * 4301}"), "needs a port from 1 to"),
    "port of zeros": (with_url(f"{SERVER}&port={'0' * 9999}1"), "needs a port from 1 to 65535"),
    "port of 4,301 digits after the host": (
        with_url(f"postgresql+psycopg://u@h:{'9' * 4301}/d"),
        "is no URL",
    ),
    "port of other digits": (with_url(f"{SERVER}&port=١٢"), "needs a port from 1 to 65535"),
    "no number": (MINIMAL.replace("[store]", "workers = nan\n[store]"), "line 3, [sidecar] wor"),
    "infinity": (MINIMAL.replace("[store]", "workers = -inf\n[store]"), "must be a whole number"),
    "a date": (MINIMAL.replace("[store]", "workers = 2020-01-01\n[store]"), "must be a whole num"),
    "256 digits": (MINIMAL.replace("[store]", f"workers = {'9' * 256}\n[store]"), "must be a who"),
    "negative": (MINIMAL.replace("[store]", "drain_timeout = '-1s'\n[store]"), "is a duration in"),
    "other digits": (
        MINIMAL.replace("[store]", "drain_timeout = '\u0661s'\n[store]"),
        "is a duration",
    ),
    "ages": (
        MINIMAL.replace("[store]", f"drain_timeout = '{'9' * 9999}d'\n[store]"),
        "is a duration in",
    ),
    "bytes": (MINIMAL.replace("[store]", f"max_plaintext_bytes = '{'9' * 9999}MiB'\n[store]"), "s"),
    "NUL in a path": (MINIMAL.replace("/etc/keyside/root.key", "/etc/\\u0000"), "control charac"),
    "NUL in a store's path": (with_url("sqlite:////a\\u0000b"), "must not hold control charac"),
    "line end in a name": (MINIMAL.replace("mail-services", "mail\\nservices"), "is no name"),
    "line end at its end": (MINIMAL.replace("mail-services", "mail-services\\n"), "is no name"),
    "line end in a key": (MINIMAL.replace("keys.mail", 'keys."mail\\n"'), '[keys."mail\\n"]'),
    "path of 5,000 bytes": (MINIMAL.replace("root.key", "a/" * 2500 + "b"), "must be at most 4000"),
    "name of 300 bytes": (MINIMAL.replace("root.key", "é" * 150), "each name in it 240"),
    "key of half a million": (MINIMAL.replace("keys.mail", f'keys."{"x" * 500_000}"'), "…"),
    "unknown of 60,000": (MINIMAL + "".join(f"a{n} = 1\n" for n in range(60_000)), "enough for"),
    "unknown tables": (MINIMAL + "".join(f"[a{n}]\n" for n in range(50_000)), "enough for now"),
    "wrong items": (MINIMAL + f"allow_users = [{'0.5, ' * 60_000}]", "enough"),
    "many items": (MINIMAL + f"allow_users = [{', '.join(map(str, range(99_999)))}, 1]", "twice"),
    "many levels": (
        f"{MINIMAL}[elevation]\nrequesters = [{names(50_000)}]\n"
        + "[[elevation.levels]]\ngroup = 1\napprovals = 1\n" * 9_000,
        "must be at most 8",
    ),
}
# Valid ones that would take quadratic time or print without end.
ODD_BUT_VALID: Final = {
    "CR LF": MINIMAL.replace("\n", "\r\n"),
    "a mebibyte of blank lines": MINIMAL + "\n" * (MIB - len(MINIMAL)),
    "a mebibyte of comments": MINIMAL + "#\n" * ((MIB - len(MINIMAL)) // 2),
    "many keys": MINIMAL + "".join(f"[keys.k{n}]\nallow_groups = ['a']\n" for n in range(15_000)),
    "many who are warned of": MINIMAL.replace('"keyside-operators"', names(30_000))
    + f"[keys.other]\nallow_groups = [{names(30_000)}]\n"
    + "".join(f"[keys.k{n}]\nallow_groups = ['g1']\n" for n in range(5_000)),
}


@pytest.fixture(autouse=True)
def _bounded_time() -> object:
    began = time.process_time()
    yield
    assert time.process_time() - began < MAX_INPUT_S


def refuse(data: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(data if isinstance(data, bytes) else data.encode(), FILE)
    assert len(str(caught.value)) < MAX_TEXT
    assert str(caught.value).isascii() or "…" in str(caught.value) or "é" in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("what", SYNTAX)
def test_what_is_no_toml_is_one_problem_with_line_and_column(what: str) -> None:
    data, expected = SYNTAX[what]
    (found,) = refuse(data)
    assert found.startswith("keyside.toml ") or what == "too large"
    assert expected in found


@pytest.mark.parametrize("what", VALUES)
def test_hostile_value_is_a_problem_with_its_place(what: str) -> None:
    text, expected = VALUES[what]
    found = refuse(text)
    assert any(expected in problem for problem in found), found
    assert len(found) <= 102
    assert all(problem.startswith("keyside.toml") for problem in found)
    assert "line " in found[0]


@pytest.mark.parametrize("what", ODD_BUT_VALID)
def test_odd_but_valid_configuration_loads(what: str) -> None:
    config = parse_config(ODD_BUT_VALID[what].encode(), FILE)
    assert len("\n".join(config.warnings)) < MAX_TEXT


def test_thousands_of_unknown_names_are_reported_in_bounded_length() -> None:
    class Nobody:
        def gid_of(self, _: str) -> int | None:
            return None

        uid_of = gid_of

    config = parse_config((MINIMAL + f"allow_users = [{names(50_000)}]\n").encode(), FILE)
    with pytest.raises(ConfigError) as caught:
        resolve_policy(config, Nobody())
    assert len(caught.value.problems) == 101
    assert "more names" in str(caught.value.problems[-1])


def test_file_that_is_none_neither_hangs_nor_exhausts(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "endless").touch(0o600)
    os.truncate(tmp_path / "endless", 1 << 40)
    for path, expected in (
        (tmp_path, "Is a directory"),
        (tmp_path / "fifo", "is not a regular file"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / "endless", "is larger than 1048576 bytes"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "\0", "can't be a file's name"),
        (Path("/dev/zero"), "is not a regular file"),
        (Path("/dev/stdin/x"), "can't be read"),
        (Path("/proc/self/mem"), "can't be read"),
    ):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            load_config(path)


def test_control_characters_of_a_file_s_name_are_not_printed(tmp_path: Path) -> None:
    for name in ("a\x1b[31m\n", "b\udcff"):
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name)
        assert str(caught.value).isprintable()


def test_path_that_the_locale_can_t_write_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "k.toml"
    file.write_text(MINIMAL.replace("/etc/keyside", "/etc/schlüssel"), encoding="utf-8")
    file.chmod(0o600)
    result = subprocess.run(
        [sys.executable, "-m", "keyside_sidecar", "--config", file, "check"],
        capture_output=True,
        check=False,
        env={"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": "/usr/bin"},
        timeout=30,
    )
    assert result.returncode == 78
    assert b"can't be written in this process's locale" in result.stderr
    assert b"Traceback" not in result.stderr


INSERTS: Final = tuple(
    text.encode() if isinstance(text, str) else text
    for text in (
        *("[", "]", "{", "}", '"', "'", '"""', "'''", "\\", "=", ".", ",", "#", "\n", "\r", "\t"),
        *("a." * 40, "[" * 40, "{a=" * 40, "9" * 5000, "0x" + "f" * 5000, "-1", "1e999", "0.5"),
        *("inf", "nan", "true", "1979-05-27", "١٢", "\u202e", "\ufeff", "\u00a0", "\0", "\\u0000"),
        *("\\ud800", "\\n", "99999999999d", "999999999GiB", "%00", "%ff", "?port=1,2", "//", ".."),
        *("@", ":", "?", "[[elevation.levels]]\n", "[people]\n", '["a", 1, 2.5]', "[[1], {a = 1}]"),
        *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xff\xfe"),
    )
)


def collect_configurations() -> list[bytes]:
    blocks = [MINIMAL, with_url(f"{SERVER}&port=5432")]
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        blocks += re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block.encode() for block in blocks]


def mutate(seeds: list[bytes], choices: random.Random) -> bytes:
    data = bytearray(choices.choice(seeds))
    for _ in range(choices.choice((1, 1, 2, 3, 8))):
        at = choices.randrange(len(data) + 1)
        end = min(len(data), at + choices.choice((1, 1, 4, 16, 200)))
        match choices.randrange(7):
            case 0:
                data[at:end] = b""
            case 1:
                data[at:at] = choices.choice(INSERTS)
            case 2:
                data[at:end] = choices.choice(INSERTS)
            case 3 if at < len(data):
                data[at] = choices.randrange(256)
            case 4:
                data[at:at] = data[at:end] * choices.choice((1, 2, 50))
            case 5:
                other = choices.choice(seeds)
                start = choices.randrange(len(other))
                data[at:end] = other[start : start + choices.randrange(1, 300)]
            case _:
                lines = bytes(data).split(b"\n")
                choices.shuffle(lines)
                data = bytearray(b"\n".join(lines))
    return bytes(data)


def examine(data: bytes) -> str:
    """Return what is wrong with how a configuration was taken, or ``""``; "valid" if it loaded."""
    began = time.process_time()
    try:
        parse_config(data, FILE)
    except ConfigError as error:
        text = str(error)
        if not all(problem.place.startswith("keyside.toml") for problem in error.problems):
            return f"no place: {text}"
        if len(text) > MAX_TEXT or not error.problems:
            return f"{len(error.problems)} problems in {len(text)} characters"
    except Exception:  # noqa: BLE001  (whatever it is, is the finding)
        return traceback.format_exc()
    else:
        return "valid"
    took_s = time.process_time() - began
    return f"took {took_s} s" if took_s > MAX_INPUT_S else ""


def run_mutations(seed: int, count: int) -> None:
    """Examine mutations in this process, its memory limited; print what is found, as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    choices, seeds = random.Random(seed), collect_configurations()
    began, slowest_s, valid, found = time.process_time(), 0.0, 0, []
    for _ in range(count):
        data = mutate(seeds, choices)
        before = time.process_time()
        wrong = examine(data)
        slowest_s = max(slowest_s, time.process_time() - before)
        valid += wrong == "valid"
        if wrong not in {"", "valid"}:
            found.append((data.hex(), wrong))
    print(
        json.dumps(
            {
                "found": found[:10],
                "valid": valid,
                "seconds": time.process_time() - began,
                "slowest_s": slowest_s,
                "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


@pytest.mark.soak
@pytest.mark.timeout(3600 if SOAK else 120)
def test_mutated_configurations_give_a_configuration_or_its_error_and_nothing_else() -> None:
    seed = int(os.environ.get("KEYSIDE_FUZZ_SEED", "0")) or random.randrange(1, 2**32)
    print(f"KEYSIDE_FUZZ_SEED={seed}")
    result = subprocess.run(
        [sys.executable, __file__, str(seed), str(MUTATIONS)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    print({name: told[name] for name in ("valid", "seconds", "slowest_s", "memory_mib")})
    assert told["found"] == []
    assert MUTATIONS / 50 < told["valid"] < MUTATIONS  # some get through the syntax, and most don't
    assert told["seconds"] < MUTATIONS * 0.05


if __name__ == "__main__":
    run_mutations(int(sys.argv[1]), int(sys.argv[2]))
