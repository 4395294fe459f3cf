"""The configuration file itself: whose it is, who may write and read it (I13)."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.config import load_config
from keyside_sidecar.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

URL = "sqlite:////var/lib/keyside/keyside.db"
MINIMAL = f"""\
[sidecar]
socket = "/run/keyside/keyside.sock"
[store]
url = "{URL}"
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


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_digest_is_the_sha256_of_the_file_s_bytes(tmp_path: Path) -> None:
    """I13: the digest names the bytes that were read, comments and line ends too."""
    data = MINIMAL.replace("\n", "\r\n").encode() + b"# comment\r\n"
    file = tmp_path / "keyside.toml"
    file.write_bytes(data)
    file.chmod(0o600)
    config = load_config(file)
    assert config.digest == hashlib.sha256(data).hexdigest()
    assert config.path == file


def test_file_of_root_or_of_the_running_account_loads(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "k.toml", MINIMAL)).keys


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o622])
def test_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """I13: whoever can write the file decides who may decrypt."""
    with pytest.raises(ConfigError, match="can be written by others"):
        load_config(write(tmp_path / "k.toml", MINIMAL, mode))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a file to another account")
def test_file_of_another_account_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "k.toml", MINIMAL)
    os.chown(file, 12345, 0)
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        load_config(file)


@pytest.mark.parametrize(
    "url", ["postgresql://u:hunter2@db/k", "postgresql://db/k?password=hunter2"]
)
@pytest.mark.parametrize(("mode", "refused"), [(0o640, True), (0o604, True), (0o600, False)])
def test_file_with_a_password_must_be_unreadable_to_others(
    tmp_path: Path, url: str, mode: int, *, refused: bool
) -> None:
    file = write(tmp_path / "k.toml", MINIMAL.replace(URL, url), mode)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert ("holds a password and can be read" in str(caught.value)) == refused
    assert "hunter2" not in str(caught.value)


def test_problems_of_the_file_and_in_it_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "k.toml", MINIMAL + "[keys.Mail]\nallow_users = [1]\n", 0o666))
    assert len(caught.value.problems) == 2


def test_missing_file_directory_and_fifo_are_problems(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing.toml", ".", "fifo"):
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name)
        assert str(tmp_path) in str(caught.value)


def test_symbolic_link_to_a_good_file_loads(tmp_path: Path) -> None:
    """Kubernetes mounts configuration as links."""
    target = write(tmp_path / "real.toml", MINIMAL)
    (tmp_path / "k.toml").symlink_to(target)
    assert load_config(tmp_path / "k.toml").keys


def test_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        load_config(write(tmp_path / "k.toml", "#" * (1 << 20) + "\n" + MINIMAL))
