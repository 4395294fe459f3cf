"""A configuration that is to take another one's place: examined in a child, parsed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.candidate import CandidateRefused, examine, take_reply
from keyside_sidecar.config import load_config

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """[sidecar]
socket = "/run/keyside/keyside.sock"
user = "keyside"

[store]
url = "sqlite:////var/lib/keyside/keyside.db"

[root_key]
provider = "file"
path = "/etc/keyside/root.key"

[audit]
path = "/var/log/keyside/audit.jsonl"

[keys.mail]
allow_groups = ["root"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "keyside.toml"
    made.write_text(TEXT)
    made.chmod(0o600)
    return made


def test_what_can_be_used_comes_back_with_every_name_looked_up(path: Path) -> None:
    running = load_config(path)
    path.write_text(TEXT.replace('["root"]', '["root", 1234]') + "\n[operators]\nusers = [7]\n")
    candidate = take_reply(examine(path, running), path)
    assert candidate.policy.keys["mail"].allowed.gids == {0, 1234}
    assert candidate.policy.operators.uids == {7}
    assert candidate.config == load_config(path)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("[sidecar] socket", "keyside.sock", "other.sock"),
        ("[sidecar] user", 'user = "keyside"', 'user = "other"'),
        ("[sidecar] group", 'user = "keyside"', 'user = "keyside"\ngroup = 5'),
        ("[store] url", "keyside.db", "other.db"),
        ("[root_key] path", "root.key", "other.key"),
        ("[audit] path", "audit.jsonl", "other.jsonl"),
    ],
)
def test_what_only_a_restart_can_change_is_refused_with_its_place(
    path: Path, place: str, old: str, new: str
) -> None:
    running = load_config(path)
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(CandidateRefused) as refused:
        take_reply(examine(path, running), path)
    assert refused.value.reason == "CONFIG_INVALID"
    assert f"{place}: can't be changed by a reload" in refused.value.why


def test_every_problem_of_a_wrong_file_is_told(path: Path) -> None:
    running = load_config(path)
    path.write_text(TEXT.replace("allow_groups", "allow_group").replace("[store]", "[stor]"))
    with pytest.raises(CandidateRefused) as refused:
        take_reply(examine(path, running), path)
    assert "allow_group" in refused.value.why
    assert "stor" in refused.value.why


def test_a_name_that_does_not_exist_is_refused(path: Path) -> None:
    running = load_config(path)
    path.write_text(TEXT.replace('"root"', '"no-such-group-here"'))
    with pytest.raises(CandidateRefused, match="no-such-group-here"):
        take_reply(examine(path, running), path)


@pytest.mark.parametrize("reply", [b"", b"{", b"[]", b'{"file": 1}', b'{"refused": ["x"]}'])
def test_a_child_that_fails_is_a_refusal(path: Path, reply: bytes) -> None:
    """It was killed, or ended in the middle of what it had to say."""
    with pytest.raises(CandidateRefused) as refused:
        take_reply(reply, path)
    assert refused.value.reason == "CONFIG_NOT_READ"
