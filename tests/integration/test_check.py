"""``keysided check`` says what would keep the sidecar from serving, and what to do about it."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from support.pam import pam_service
from support.sidecar import DEFAULT_KEYS, SIDECAR_UID, Sidecar, running_sidecar, sidecar_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
ELEVATION = """
[elevation]
pam_service = "{service}"
requesters = [64207]

[[elevation.levels]]
group = 64208
approvals = 1
"""
REFUSE = 'membership = "account"\nperson_logins = "refuse"'


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    """A configured sidecar that does not run."""
    with sidecar_directory() as directory:
        made = Sidecar(directory, identity=REFUSE)
        made.prepare()
        yield made


def findings(sidecar: Sidecar, exit_code: int) -> dict[str, tuple[str, str]]:
    done = sidecar.keysided("check", "--json")
    assert done.returncode == exit_code, done.stdout + done.stderr
    rows = json.loads(done.stdout)["findings"]
    assert all(row["remedy"] for row in rows if row["grade"] == "failed")
    return {row["subject"]: (row["grade"], row["text"]) for row in rows}


def test_a_good_host_passes_and_nothing_is_changed(sidecar: Sidecar) -> None:
    """I4: a foreign process's login uid is read; the store is verified; no file appears."""
    before = sorted(path.name for path in sidecar.directory.rglob("*"))
    found = findings(sidecar, 0)
    assert found["login uids"] == ("ok", "a foreign process's login uid can be read")
    assert found["store"][0] == "ok"
    assert found["socket"][0] == "ok"
    assert sorted(path.name for path in sidecar.directory.rglob("*")) == before


def test_a_hidden_proc_is_found(sidecar: Sidecar) -> None:
    """With hidepid every caller would be refused, and check says so before anybody is."""
    script = 'mount -t proc -o hidepid=2 proc /proc && "$@"; exit $?'
    sidecar.launcher = ("unshare", "--mount", "--pid", "--fork", "sh", "-c", script, "sh")
    grade, text = findings(sidecar, 78)["login uids"]
    assert grade == "failed"
    assert "hidden" in text


def test_unknown_names_are_reported_together(sidecar: Sidecar) -> None:
    """Every group that does not exist, with its place in the file."""
    sidecar.config = DEFAULT_KEYS.replace(
        "[operators]", '[operators]\ngroups = ["ks-test-none-1", "ks-test-none-2"]'
    )
    sidecar.write_config()
    done = sidecar.keysided("check")
    assert done.returncode == 78
    assert "ks-test-none-1" in done.stdout
    assert "ks-test-none-2" in done.stdout


def test_an_unsafe_root_key_and_a_missing_store_are_found(sidecar: Sidecar) -> None:
    """Each with its own exit code: configuration, and unavailable."""
    sidecar.root_key.chmod(0o640)
    assert findings(sidecar, 78)["root key"][0] == "failed"
    sidecar.root_key.chmod(0o600)
    sidecar.store.rename(sidecar.store.with_suffix(".away"))
    assert findings(sidecar, 69)["store"][0] == "failed"


def test_a_configuration_that_the_account_cant_read_is_noted(sidecar: Sidecar) -> None:
    """Root can start the sidecar with it; the unit, as the account, could not."""
    assert "configuration file" not in findings(sidecar, 0)
    sidecar.config_path.chmod(0o600)
    grade, text = findings(sidecar, 0)["configuration file"]
    assert grade == "note"
    assert f"uid {SIDECAR_UID}) can't read {sidecar.config_path}" in text


def test_a_socket_that_others_could_replace_is_found(sidecar: Sidecar) -> None:
    """Whoever can write the directory could answer in the sidecar's place."""
    sidecar.socket.parent.chmod(0o777)
    assert findings(sidecar, 78)["socket"][0] == "failed"


def test_checking_beside_a_running_sidecar_disturbs_nothing() -> None:
    """The live store is read, the live socket left alone, and unserved keys are named."""
    with running_sidecar() as sidecar:
        sidecar.config = DEFAULT_KEYS.replace("keys.payroll", "keys.pensions")
        sidecar.write_config()
        grade, text = findings(sidecar, 0)["store"]
        assert grade == "note"
        assert "payroll" in text
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(sidecar.socket))
        assert sidecar.store.stat().st_uid == SIDECAR_UID
        assert all(path.stat().st_uid == SIDECAR_UID for path in sidecar.store.parent.iterdir()), (
            os.listdir(sidecar.store.parent)
        )


@pytest.mark.parametrize(
    ("has_service", "as_account", "grade", "words"),
    [
        (True, False, "ok", "people are authenticated by PAM as service"),
        (False, False, "warning", "PAM has no service"),
        (True, True, "warning", "the shadow file can't be read"),
    ],
    ids=["root", "no service", "unprivileged"],
)
def test_what_people_are_authenticated_with_is_looked_at(
    sidecar: Sidecar, grade: str, words: str, *, has_service: bool, as_account: bool
) -> None:
    """It keeps nothing from being served, but without it nobody gets access."""
    with pam_service() as service:
        name = service if has_service else "ks-test-no-such-service"
        sidecar.config = DEFAULT_KEYS + ELEVATION.format(service=name)
        sidecar.write_config()
        if as_account:
            ids = (f"--reuid={SIDECAR_UID}", f"--regid={SIDECAR_UID}", "--clear-groups")
            sidecar.launcher = ("setpriv", *ids)
        found = findings(sidecar, 0)["elevation"]
    assert found[0] == grade
    assert words in found[1]
