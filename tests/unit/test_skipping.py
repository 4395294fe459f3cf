"""A test that needs root skips without it, and no skip goes unnoticed where CI runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
INI = "[pytest]\nmarkers =\n    root: needs root\n"
PASSES = "def test_one(): pass\n"
SKIPS = "import pytest\ndef test_two(): pytest.skip('why not')\n"
SKIPS_WHOLE = "import pytest\npytest.skip('all of it', allow_module_level=True)\n"
NEEDS_ROOT = "import pytest\n@pytest.mark.root\ndef test_one(): pass\n"
EXPECTED_TO_FAIL = "import pytest\n@pytest.mark.xfail\ndef test_one(): assert False\n"
FEW_PLUGINS = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]


def run(directory: Path, text: str, *, ci: str, uid: int = 0) -> tuple[int, str]:
    shutil.copy(CONFTEST, directory)
    (directory / "pytest.ini").write_text(INI)
    (directory / "test_it.py").write_text(text)
    (directory / "test_another.py").write_text(PASSES)
    code = f"import os, sys, pytest; os.geteuid = lambda: {uid}; "
    code += f"sys.exit(pytest.main({['-rs', *FEW_PLUGINS]}))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=directory,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("text", "ci", "code"),
    [
        (PASSES, "true", 0),
        (SKIPS, "", 0),
        (SKIPS, "true", 1),
        (SKIPS_WHOLE, "true", 1),
        (EXPECTED_TO_FAIL, "true", 0),
    ],
    ids=["none skipped", "not in CI", "one skipped", "a file skipped", "one expected to fail"],
)
def test_a_skip_fails_the_run_where_ci_runs(tmp_path: Path, text: str, ci: str, code: int) -> None:
    returned, output = run(tmp_path, text, ci=ci)
    assert returned == code, output
    assert ("nothing may be skipped" in output) == (code == 1)


@pytest.mark.parametrize("uid", [0, 1000])
def test_without_root_a_root_test_skips_and_says_why(tmp_path: Path, uid: int) -> None:
    returned, output = run(tmp_path, NEEDS_ROOT, ci="", uid=uid)
    assert returned == 0, output
    assert ("needs root: takes other uids" in output) == (uid != 0)
