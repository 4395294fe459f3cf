"""``keysided files``: the package has what its messages and pages name, and puts it in place."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import google.rpc
import pytest

import keyside
import keyside_sidecar
from keyside_sidecar.commands.shipped import find_shipped, list_shipped

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
KEYSIDED = Path(sysconfig.get_path("scripts")) / "keysided"
PACKAGES = [Path(str(package.__file__)).parent for package in (keyside, keyside_sidecar)]
# Every tracked file below these is shipped.
SHIPPED_PLACES = ("README.md", "CHANGELOG.md", "SECURITY.md", "deploy", "docs", "protos")
UNITS = ("keyside.service", "elevation.conf")
# What looks like one of our files in a text that people see.
NAMES_FILE = re.compile(
    r"(?:(?:deploy|docs|protos|pam|systemd|postgresql)/[\w./-]+\w"
    r"|[\w-]+\.(?:sql|md|proto|service|socket|conf|schema\.json))"
)
# Files of other programs, of the host's or of the user's.
FOREIGN = {"nsswitch.conf", "nscd.conf", "sssd.conf", "postgresql.conf"}


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [KEYSIDED, "files", *arguments], capture_output=True, check=False, timeout=60, cwd=cwd
    )


def test_everything_is_listed_with_its_purpose_and_is_what_the_repository_has() -> None:
    tracked = {
        path.relative_to(ROOT).as_posix()
        for place in SHIPPED_PLACES
        for path in [ROOT / place, *(ROOT / place).rglob("*")]
        if path.is_file()
    }
    listed = json.loads(run("list", "--json").stdout)["files"]
    assert {row["name"] for row in listed} == tracked
    assert all(row["purpose"] for row in listed)
    text = run("list").stdout.decode()
    for row in listed:
        assert row["name"] in text
        assert row["purpose"] in text
    digests = {file.name: hashlib.sha256(file.read()).digest() for file in list_shipped()}
    assert digests == {
        name: hashlib.sha256((ROOT / name).read_bytes()).digest() for name in tracked
    }


def texts_people_see() -> Iterator[tuple[str, str]]:
    """Every text in the code but docstrings, f-strings as one text each, with its place."""
    for package in PACKAGES:
        for source in package.rglob("*.py"):
            if {"v1", "shipped", "migrations"} & set(source.relative_to(package).parts):
                continue
            tree = ast.parse(source.read_text(encoding="utf-8"))
            inner = {
                id(node.value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    inner.update(map(id, node.values))
                    text = "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                        if isinstance(part, ast.Constant | ast.FormattedValue)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    if id(node) in inner:
                        continue
                    text = node.value
                else:
                    continue
                yield f"{source.relative_to(package.parent)}:{node.lineno}", text


def test_every_file_that_a_message_names_is_shipped_and_the_message_says_how_to_get_it() -> None:
    """The kind: grants, units, PAM file, pages, whoever names them."""
    seen = 0
    commands = re.compile(r"keysided files (?:show|install) ([\w./-]+)")
    for place, text in texts_people_see():
        if re.search(r"commands/(shipped|files|examples)\.py:", place):
            continue  # the table of these files, and the command itself
        named = {name for name in NAMES_FILE.findall(text) if " " in text} - FOREIGN
        named = {name for name in named if not name.startswith("postgresql/")}
        for name in named:
            assert find_shipped(name), f"{place} names {name}, which the wheel lacks"
            # A unit that is to be restarted is there.
            told = "keysided files" in text or "systemctl restart" in text
            assert told, f"{place}: {text}"
        for name in commands.findall(text):
            assert find_shipped(name), f"{place}: {text}"
            seen += 1
    assert seen >= 6


@pytest.mark.parametrize("page", [file.name for file in list_shipped() if file.name[-3:] == ".md"])
def test_every_file_that_a_page_tells_to_install_is_shipped(page: str) -> None:
    """Links between pages lead to pages that are there, and commands name files that exist."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(
        r"keysided files (?:show|install)(?: --\w+(?: \S+)?)*((?: [\w./-]+)+)", text
    ):
        for one in name.split():
            assert one == "NAME" or find_shipped(one), one
    if page == "CHANGELOG.md":
        return
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        target = os.path.normpath(Path(page).parent / link)
        assert find_shipped(target) or target.startswith(("client/", "examples/", "tests/")), link


@pytest.mark.parametrize("unit", UNITS)
def test_an_installed_unit_starts_the_program_of_this_installation(
    unit: str, tmp_path: Path
) -> None:
    done = run("install", "--to", tmp_path, unit)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "deploy" / "systemd" / unit).read_text()
    programs = re.findall(r"^Exec\w+=!?(/\S*keysided) ", text, re.MULTILINE)
    assert len(programs) == 2
    assert set(programs) == {str(KEYSIDED)}
    for page in re.findall(r"file://(\S+)", text):
        assert Path(page).is_file()


def test_what_is_there_already_is_not_overwritten_unless_that_is_said(tmp_path: Path) -> None:
    assert run("install", "--to", ".", "grants.sql", "pam/keyside", cwd=tmp_path).returncode == 0
    again = run("install", "--to", ".", "grants.sql", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (
        0,
        b"deploy/postgresql/grants.sql: is there already\n",
    )
    mine = tmp_path / "deploy" / "pam" / "keyside"
    mine.write_text("mine\n")
    (tmp_path / "deploy/postgresql/grants.sql").unlink()
    refused = run("install", "--to", ".", "grants.sql", "pam/keyside", cwd=tmp_path)
    assert refused.returncode == 73
    assert b"deploy/pam/keyside exists already" in refused.stderr
    assert b"what to do: " in refused.stderr
    assert mine.read_text() == "mine\n"
    assert not (tmp_path / "deploy/postgresql/grants.sql").exists()
    assert run("install", "--force", "--to", ".", "pam/keyside", cwd=tmp_path).returncode == 0
    assert mine.read_bytes() == (ROOT / "deploy/pam/keyside").read_bytes()
    assert sorted(path.name for path in mine.parent.iterdir()) == ["keyside"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nonsense"], 64, "keysided files list"),
        (["show", "protos"], 64, "keysided files install --to DIR protos"),
        (["show", "status.proto"], 64, "or several are"),
        (["install", "grants.sql"], 64, "--to DIR"),
        (["install", "--to", "/proc/nowhere", "grants.sql"], 73, "what to do"),
        (["install"], 64, "NAME"),
    ],
)
def test_what_can_not_be_done_has_its_exit_code_and_a_remedy(
    arguments: list[str], code: int, said: str
) -> None:
    done = run(*arguments)
    assert done.returncode == code, done
    assert said in done.stderr.decode()


def test_show_prints_a_file_by_its_name_or_the_end_of_it() -> None:
    sql = (ROOT / "deploy/postgresql/grants.sql").read_bytes()
    for name in ("deploy/postgresql/grants.sql", "postgresql/grants.sql", "grants.sql"):
        assert run("show", name).stdout == sql
    assert run("show", "README.md").stdout == (ROOT / "README.md").read_bytes()


def test_files_are_there_for_whoever_installed_the_client_alone() -> None:
    """Without the extra [sidecar] the daemon says what it lacks, and files works."""
    code = """
import sys
sys.modules["uvloop"] = None
sys.argv = ["keysided", *sys.argv[1:]]
from keyside_sidecar.__main__ import main
main()
"""
    listed = subprocess.run(
        [sys.executable, "-c", code, "files", "list"], capture_output=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    refused = subprocess.run(
        [sys.executable, "-c", code, "check"], capture_output=True, check=False
    )
    assert refused.returncode == 69
    assert b"keyside[sidecar]" in refused.stderr


def test_the_vendored_protos_are_what_the_installed_modules_were_made_from() -> None:
    """google/rpc in protos/ is whole: whoever generates stubs needs nothing else."""
    installed = Path(next(iter(google.rpc.__path__)))
    vendored = sorted((ROOT / "protos/google/rpc").glob("*.proto"))
    assert [path.name for path in vendored] == ["error_details.proto", "status.proto"]
    for path in vendored:
        assert path.read_bytes() == (installed / path.name).read_bytes()
