"""The demonstration does what it says, as root and as anybody else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.sidecar import IS_ROOT, PYTHON, sidecar_directory

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SOMEBODY = 64300


@pytest.mark.parametrize("as_root", [pytest.param(True, marks=pytest.mark.root), False])
def test_the_demonstration_runs_to_its_end(as_root: bool) -> None:  # noqa: FBT001
    """Encryption, rollovers, rewrapping, a refusal and the user's own file."""
    with sidecar_directory() as directory:
        home = directory / "home"
        home.mkdir()
        for script in ("demo.py", "mail_gateway.py"):
            shutil.copyfile(EXAMPLES / script, home / script)
        own_file = home / "photograph.jpg"
        own_file.write_bytes(os.urandom(200_000))
        who: dict[str, object] = {}
        if IS_ROOT and not as_root:
            who = {"user": SOMEBODY, "group": SOMEBODY, "extra_groups": []}
        done = subprocess.run(  # type: ignore[call-overload]
            [PYTHON, home / "demo.py", "--records", "60", "--input", own_file],
            env={**os.environ, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/",
            check=False,
            **who,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "read back 60 of 60 accounts" in done.stdout
        assert "rewrapped 60 accounts" in done.stdout
        assert "(exit code 77, as it should)" in done.stdout
        assert "identical: 200,000 bytes" in done.stdout
        assert "(exit code 65, as it should)" in done.stdout
        assert ("What this can't show" in done.stdout) == (not as_root or not IS_ROOT)


def test_a_file_that_is_not_there_is_said_to_be_missing() -> None:
    """Bad input: a clear error and EX_NOINPUT."""
    done = subprocess.run(
        [PYTHON, EXAMPLES / "demo.py", "--input", "/nonexistent"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 66
    assert "there is no file /nonexistent" in done.stderr
