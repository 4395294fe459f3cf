"""Two workers of one sidecar tell the same, whichever is asked."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from support.remote import Remote
from support.sidecar import AUDITOR_UID, OPERATOR_UID, OTHER_UID, Sidecar, running_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

KEY = "mail-credentials"
LOOKS = 24
LOOK = (
    f"key = client.get_key({KEY!r}); status = client.status(); "
    "answer = [str(key.next_rollover_at), str(status.started_at), status.serving.value, "
    "[[p.reason, str(p.since), p.severity.value] for p in status.problems]]"
)


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(settings="workers = 2") as started:
        yield started


def test_every_worker_tells_the_same_times_again_and_again(sidecar: Sidecar) -> None:
    """Also after observed time has moved on, and for connections to either worker."""
    with Remote(sidecar, OPERATOR_UID) as operator, Remote(sidecar, AUDITOR_UID) as auditor:
        operator.run(f"client.rotate_key({KEY!r})")
        told = set()
        for _ in range(LOOKS):
            told |= {json.dumps(one.run(LOOK)) for one in (operator, auditor)}
            time.sleep(0.5)
    assert len(told) == 1


def test_a_stranger_is_told_null_where_the_page_says_so(sidecar: Sidecar) -> None:
    done = sidecar.keyside("status", "--json", uid=OTHER_UID + 100)
    facts = json.loads(done.stdout)
    assert facts["version"] is None
    assert all(problem["remedy"] is None for problem in facts["problems"])
    assert '""' not in done.stdout.decode()


def test_check_and_status_tell_the_same_with_the_same_severity(sidecar: Sidecar) -> None:
    """What holds for the host and the configuration; check runs as the sidecar does."""
    checked = json.loads(sidecar.keysided("check", "--json").stdout)["findings"]
    found = {one["reason"]: one["grade"] for one in checked if one["reason"]}
    with Remote(sidecar, OPERATOR_UID) as operator:
        _, _, serving, problems = operator.run(LOOK)
    told = {reason: severity.lower() for reason, _, severity in problems}
    assert {reason: told[reason] for reason in found} == found
    graver = [severity for severity in told.values() if severity != "note"]
    assert serving == ("DEGRADED" if graver else "YES")
