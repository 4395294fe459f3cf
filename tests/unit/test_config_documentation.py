"""docs/configuration.md says what the configuration is: every setting, default and example."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from keyside_sidecar.config import (
    AuditSettings,
    Config,
    ElevationSettings,
    IdentitySettings,
    KeySettings,
    LevelSettings,
    Principals,
    RootKeySettings,
    SidecarSettings,
    StoreSettings,
    load_config,
    parse_config,
)

DOC = Path(__file__).parents[2] / "docs" / "configuration.md"
TABLES: dict[str, Any] = {
    "sidecar": SidecarSettings,
    "identity": IdentitySettings,
    "store": StoreSettings,
    "root_key": RootKeySettings,
    "audit": AuditSettings,
    "operators": Principals,
    "auditors": Principals,
    "keys.NAME": KeySettings,
    "elevation": ElevationSettings,
    "elevation.levels": LevelSettings,
}


def documented() -> dict[str, dict[str, list[str]]]:
    """Each table's rows in docs/configuration.md: setting → its other columns."""
    found: dict[str, dict[str, list[str]]] = {}
    rows: dict[str, list[str]] = {}
    for line in DOC.read_text(encoding="utf-8").splitlines():
        heading = re.match(r"#+ `\[+([a-z_.A-Z]+)\]+`(?: and `\[([a-z_]+)\]`)?", line)
        if heading:
            rows = {}
            found |= {name: rows for name in heading.groups() if name}
        elif line.startswith("| `"):
            name, *columns = (cell.strip() for cell in line.strip("|").split(" | "))
            rows[name.strip("`")] = columns
    return found


def test_complete_example_in_the_documentation_loads(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    file = tmp_path / "keyside.toml"
    file.write_text(block[1], encoding="utf-8")
    file.chmod(0o640)
    config = load_config(file)
    assert config.warnings == ()
    given_settings = tomllib.loads(block[1])
    for table, kind in TABLES.items():
        given_here = given_settings[table.partition(".")[0]]
        if table == "keys.NAME":
            given_here = {name for key in given_here.values() for name in key} | {"name"}
        elif table == "elevation.levels":
            (given_here, *_) = given_here["levels"]
        # "complete": every setting is shown, except those that exclude another one.
        missing = {toml_name(f) for f in dataclasses.fields(kind)} - set(given_here)
        assert missing <= {"connection_max_age"}, table


def parse_with(table: str, line: str) -> Config:
    """A small configuration with one more setting."""
    text = f"""\
[sidecar]
socket = "/run/keyside.sock"
{line if table == "sidecar" else ""}
[identity]
{line if table == "identity" else ""}
[store]
url = "sqlite:////keyside.db"
[root_key]
provider = "file"
path = "/root.key"
[audit]
path = "/audit.jsonl"
{line if table == "audit" else ""}
[keys.mail]
allow_users = [1001]
{line if table == "keys.NAME" else ""}
[elevation]
requesters = [1002]
{line if table == "elevation" else ""}
[[elevation.levels]]
group = 1003
approvals = 1
"""
    return parse_config(text.encode(), Path("keyside.toml"))


def toml_name(field: dataclasses.Field[Any]) -> str:
    return field.name.removesuffix("_s")


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_has_its_row_in_the_documentation_and_no_other(table: str) -> None:
    fields = {toml_name(field) for field in dataclasses.fields(TABLES[table])} - {"name"}
    assert set(documented()[table]) == fields


def test_documented_defaults_are_the_defaults() -> None:
    plain = parse_with("", "")
    for table in ("sidecar", "identity", "audit", "keys.NAME", "elevation", "elevation.levels"):
        for name, (_type, default, *_rest) in documented()[table].items():
            if not default.startswith("`"):
                assert default in {"required", "none", "not narrowed"}
                continue
            if name.startswith("allow_"):
                continue  # one of the two is required
            config = parse_with(table, f"{name} = {default.strip('`')}")
            for part in ("sidecar", "identity", "audit", "keys", "elevation"):
                assert getattr(config, part) == getattr(plain, part), name
