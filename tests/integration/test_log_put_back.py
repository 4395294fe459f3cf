"""An older audit log put back: either half alone is refused, both together are not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from support.sidecar import OPERATOR_UID, Sidecar, running_sidecar

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def put_back(kept: Path, place: Path, *names: str) -> None:
    for name in names:
        shutil.copyfile(kept / name, place / name)  # owner and mode stay


def test_only_a_checkpoint_kept_elsewhere_shows_that_log_and_key_were_put_back_together() -> None:
    with running_sidecar() as sidecar:
        log, kept = sidecar.audit_log, sidecar.directory / "kept"
        kept.mkdir()
        both = log.name, f"{log.name}.key"
        sidecar.stop()
        for name in both:
            shutil.copyfile(log.with_name(name), kept / name)
        sidecar.start()
        assert sidecar.keyside("encrypt", "mail-credentials", stdin=b"x").returncode == 0
        sidecar.stop()
        newest = [line for line in log.read_text().splitlines() if '"event":"checkpoint"' in line]
        checkpoint = kept / "elsewhere"
        checkpoint.write_text(newest[-1] + "\n")
        for name in both:
            shutil.copyfile(log.with_name(name), kept / f"new-{name}")
        for half in both:
            put_back(kept, log.parent, half)
            sidecar.start(wait=False)
            assert sidecar.wait() != 0, half
            shutil.copyfile(kept / f"new-{half}", log.with_name(half))
        put_back(kept, log.parent, *both)
        sidecar.start()
        assert alarms_of(sidecar) == []
        sidecar.stop()
        assert sidecar.verify_log().returncode == 0, "it is authentic, as far as it goes"
        found = sidecar.verify_log(
            "--public-key", sidecar.public_key, "--checkpoint", str(checkpoint)
        )
        assert found.returncode == 65, found.stdout


def alarms_of(sidecar: Sidecar) -> list[str]:
    status = sidecar.keyside("status", "--json", uid=OPERATOR_UID)
    assert status.returncode == 0
    return [word for word in ("AUDIT", "STORE_") if f'"reason": "{word}' in status.stdout.decode()]
