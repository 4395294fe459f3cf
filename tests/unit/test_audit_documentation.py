"""docs/audit.md and the schema say what a record is, and so does the code; they agree."""

from __future__ import annotations

import json
import re
from pathlib import Path

from keyside.audit import FIRST_PREVIOUS, parse_line
from keyside_sidecar.audit.records import CALLER, DETAILS, FIELDS, OWN_EVENTS, SERVICE_EVENTS
from keyside_sidecar.keys import health
from keyside_sidecar.keys.root_key_watch import ROOT_KEY_NOT_KEPT

DOCS = Path(__file__).parents[2] / "docs"
SEAL = {"number", "kind", "log", "every_s", "next_key", "signature"}


def test_schema_knows_every_field_and_detail_and_no_other() -> None:
    schema = json.loads((DOCS / "audit-record.schema.json").read_text())
    fields, parts = schema["properties"], schema["$defs"]
    assert set(fields) == FIELDS | {"v", "seq", "hash"}
    assert set(fields["caller"]["properties"]) == CALLER
    assert set(parts["details"]["properties"]) == DETAILS
    assert set(parts["checkpoint"]["properties"]) == SEAL | {"store_id", "store_generation"}
    for part in (schema, fields["caller"], parts["details"], parts["checkpoint"]):
        assert part["additionalProperties"] is False


def test_documentation_describes_every_field() -> None:
    text = (DOCS / "audit.md").read_text(encoding="utf-8")
    rows = text[text.index("| field | |") : text.index("| event | |")]
    described = set(
        re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (.*?) \|", rows, re.MULTILINE)))
    )
    assert described == FIELDS | {"v", "seq", "hash"}


def test_documentation_describes_the_logs_own_events() -> None:
    text = (DOCS / "audit.md").read_text(encoding="utf-8")
    for event in OWN_EVENTS | {"encryption.encrypt"}:
        assert f"`{event}`" in text
    assert all(event.startswith("encryption.") for event in SERVICE_EVENTS)


def test_documentation_names_every_reason_of_a_store_problem() -> None:
    text = (DOCS / "audit.md").read_text(encoding="utf-8")
    row = re.search(r"^\| `store\.problem` \|.*$", text, re.MULTILINE)
    assert row
    assert set(re.findall(r"`([A-Z_]+)`", row[0])) == {
        health.ROOT_KEY_UNUSABLE,
        health.STORE_SCHEMA,
        health.STORE_TAMPERED,
        health.STORE_UNAVAILABLE,
        ROOT_KEY_NOT_KEPT,
    }


def test_documented_example_has_the_hash_that_it_says() -> None:
    text = (DOCS / "audit.md").read_text(encoding="utf-8")
    match = re.search(r'^    (\{"v":1,"seq":7,.*\})$', text, re.MULTILINE)
    assert match
    assert parse_line(match[1].encode()).follows(FIRST_PREVIOUS)
