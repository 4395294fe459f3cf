"""Making a log, refusing to make it twice, and what ``keysided check`` says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.audit_scene import Scene, make_config

from keyside.audit import Completeness, parse_checkpoint
from keyside_sidecar.audit.creation import create_log
from keyside_sidecar.commands.audit_log import check_audit_log
from keyside_sidecar.commands.findings import Grade
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.make(tmp_path)


def test_new_log_is_one_checkpoint_signed_with_the_key_that_is_printed(scene: Scene) -> None:
    found = scene.verify()
    assert found.fault is None
    assert found.authenticated
    assert (found.records, found.completeness) == (1, Completeness.OPEN_ENDED)
    assert parse_checkpoint(scene.audit.path.read_bytes()).seal.number == 1


def test_files_are_private(scene: Scene) -> None:
    for path in (scene.audit.path, scene.places.key):
        assert path.stat().st_mode & 0o777 == 0o600


def test_private_half_of_the_first_key_is_nowhere(scene: Scene) -> None:
    """What is kept signs the second checkpoint, not another first one."""
    checkpoint = parse_checkpoint(scene.audit.path.read_bytes())
    assert checkpoint.seal.next_key != scene.public_key
    assert sorted(path.name for path in scene.audit.path.parent.iterdir()) == [
        "audit.jsonl",
        "audit.jsonl.key",
    ]


@pytest.mark.parametrize("left", ["audit.jsonl", "audit.jsonl.key", "audit-000000000001.jsonl"])
def test_what_is_left_of_a_log_is_never_overwritten(tmp_path: Path, left: str) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / left).write_text("kept")
    with pytest.raises(StartupError, match="already"):
        create_log(make_config(tmp_path).audit)
    assert (tmp_path / left).read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StartupError, match="nobody else may make files"):
        create_log(make_config(tmp_path).audit)
    with pytest.raises(StartupError, match="can't be used"):
        create_log(make_config(tmp_path / "none").audit)


def remove_key(scene: Scene) -> None:
    scene.places.key.unlink()


def open_key(scene: Scene) -> None:
    scene.places.key.chmod(0o640)


def remove_log(scene: Scene) -> None:
    scene.audit.path.unlink()


def open_directory(scene: Scene) -> None:
    scene.audit.path.parent.chmod(0o770)


def put_old_log_back(scene: Scene) -> None:
    old = scene.audit.path.read_bytes()
    scene.start()
    scene.stop()
    scene.audit.path.write_bytes(old)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove_key, "signing key"),
        (open_key, "others may have read it"),
        (remove_log, "there is none"),
        (open_directory, "nobody else may make files"),
        (put_old_log_back, "not the one that the last checkpoint names"),
    ],
)
def test_check_says_what_is_wrong(scene: Scene, spoil: Callable[[Scene], None], said: str) -> None:
    assert next(check_audit_log(scene.config)).grade is Grade.OK
    spoil(scene)
    (found,) = [it for it in check_audit_log(scene.config) if it.grade is Grade.FAILED]
    assert said in found.text
    assert found.remedy


def test_check_changes_nothing(scene: Scene) -> None:
    with scene.audit.path.open("ab") as file:
        file.write(b"torn")
    before = {path.name: path.read_bytes() for path in scene.audit.path.parent.iterdir()}
    list(check_audit_log(scene.config))
    assert {path.name: path.read_bytes() for path in scene.audit.path.parent.iterdir()} == before
