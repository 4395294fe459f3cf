"""A reader written from docs/envelope.md alone agrees with Keyside on every vector."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyside.envelope import VersionKey, open_envelope
from keyside.errors import EnvelopeRejected

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
VECTORS = json.loads((ROOT / "tests/vectors/envelope_v1.json").read_text("ascii"))
LAYERS = {"framing", "commitment", "wrapping", "context", "payload", "segment"}

Vector = dict[str, Any]


def load(path: str) -> ModuleType:
    """Import a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


second_reader = load("tests/vectors/second_reader.py")

every_valid = pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["name"])
every_invalid = pytest.mark.parametrize(
    "vector", VECTORS["invalid"], ids=lambda vector: vector["name"]
)


def version_table(vector: Vector) -> dict[tuple[str, int, bytes], bytes]:
    """Return the vector's version as the second reader wants it."""
    version = VECTORS["versions"][vector["version"]]
    name = (version["key_name"], version["number"], bytes.fromhex(version["version_id"]))
    return {name: bytes.fromhex(version["material"])}


def version_key(vector: Vector) -> VersionKey:
    """Return the vector's version as Keyside wants it."""
    ((name, material),) = version_table(vector).items()
    return VersionKey(*name, material)  # type: ignore[arg-type]


@every_valid
def test_second_reader_opens(vector: Vector) -> None:
    """The page is enough to read every kind of envelope."""
    envelope = bytes.fromhex(vector["envelope"])
    opened = second_reader.open_envelope(version_table(vector), envelope, vector["context"])
    assert opened.hex() == vector["plaintext"]


@every_valid
def test_keyside_opens(vector: Vector) -> None:
    """What was sealed once opens for ever (I5)."""
    envelope = bytes.fromhex(vector["envelope"])
    assert (
        open_envelope(version_key(vector), envelope, vector["context"]).hex()
        == (vector["plaintext"])
    )


@every_valid
def test_derived_values_are_those_of_the_page(vector: Vector) -> None:
    """The values in between are derived anew, by the second reader's KDF."""
    derived = vector["derived"]
    envelope = bytes.fromhex(vector["envelope"])
    n = envelope[5]
    (material,) = version_table(vector).values()
    wrapping = second_reader.derive(material, b"keyside/v1/wrap", envelope[: 50 + n])
    assert [part.hex() for part in wrapping] == [
        derived["wrapping_key"],
        derived["key_commitment"],
    ]
    payload = envelope[130 + n :]
    if payload[1] == 0:
        label, context = b"keyside/v1/payload/whole", b"KSE\x01" + payload[:26]
    else:
        label = b"keyside/v1/payload/segmented"
        context = b"KSE\x01" + payload[:34] + payload[66:70]
    keys = second_reader.derive(bytes.fromhex(derived["data_key"]), label, context)
    assert [part.hex() for part in keys] == [derived["payload_key"], derived["context_key"]]
    canonical = second_reader.canonical(vector["context"])
    assert hashlib.sha256(canonical).hexdigest() == derived["canonical_context_sha256"]
    assert derived.get("canonical_context", canonical.hex()) == canonical.hex()


@every_invalid
def test_second_reader_refuses_in_the_named_layer(vector: Vector) -> None:
    """Each invalid vector fails for the reason it was made for (I11)."""
    envelope = bytes.fromhex(vector["envelope"])
    with pytest.raises(second_reader.Rejected) as caught:
        second_reader.open_envelope(version_table(vector), envelope, vector["context"])
    assert caught.value.layer == vector["layer"]


@every_invalid
def test_keyside_refuses_with_the_one_error(vector: Vector) -> None:
    """Whatever the layer, Keyside says the same (I11)."""
    envelope = bytes.fromhex(vector["envelope"])
    with pytest.raises(EnvelopeRejected) as caught:
        open_envelope(version_key(vector), envelope, vector["context"])
    assert str(caught.value) == str(EnvelopeRejected())


def test_every_layer_has_invalid_vectors() -> None:
    """No layer is left untested."""
    assert {vector["layer"] for vector in VECTORS["invalid"]} == LAYERS


def test_vector_names_are_distinct() -> None:
    """A name leads to one vector."""
    names = [vector["name"] for vector in VECTORS["valid"] + VECTORS["invalid"]]
    assert len(names) == len(set(names))


def test_second_reader_shares_no_code_with_keyside() -> None:
    """It imports `cryptography` and the standard library, and nothing of ours."""
    source = (ROOT / "tests/vectors/second_reader.py").read_text("utf-8")
    assert not re.search(r"^\s*(from|import)\s+keyside", source, re.MULTILINE)


def test_example_in_the_page_is_the_vector() -> None:
    """The worked example can be followed byte for byte."""
    page = (ROOT / "docs/envelope.md").read_text("utf-8")
    example = page[page.index("\nenvelope\n") : page.rindex("```")]
    shown = "".join(re.findall(r" ([0-9a-f]+)$", example, re.MULTILINE))
    assert shown == VECTORS["valid"][0]["envelope"]


def test_generator_still_makes_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealing has not changed: the same keys and salts give the same bytes (I5)."""
    monkeypatch.syspath_prepend(ROOT)
    generator = importlib.import_module("tools.make_envelope_vectors")
    assert generator.main(["--check"]) == 0
