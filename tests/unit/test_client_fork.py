"""What clients do across real forks; keyside/_fork.py states what was found and these prove it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.fork_scenarios import CHILDREN
from tests.unit.test_client_retry import start_process

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "k.sock"
    process = start_process(path)
    yield path
    process.kill()
    process.wait()


def fork_in(scenario: str, socket: Path, **environment: str) -> list[str]:
    """Return what children and parent of a scenario said."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.unit.fork_scenarios", scenario, str(socket)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


@pytest.mark.parametrize("scenario", ["unused", "imported", "used", "async-closed", "grandchild"])
def test_children_can_call(scenario: str, socket: Path) -> None:
    """Inherited, fresh and asyncio clients work in each child; the parent's goes on working."""
    assert fork_in(scenario, socket) == ["child ok ok ok"] * CHILDREN + ["parent ok"]


@pytest.mark.parametrize("setting", ["1", "0"])
def test_a_client_unused_before_the_fork_works_whatever_grpc_is_told(
    setting: str, socket: Path
) -> None:
    said = fork_in("unused", socket, GRPC_ENABLE_FORK_SUPPORT=setting)
    assert said[:CHILDREN] == ["child ok ok ok"] * CHILDREN
    assert said[CHILDREN:] == ["parent ok"]


def test_children_of_a_fork_during_a_call_are_told_instead_of_hanging(socket: Path) -> None:
    said = fork_in("in-flight", socket)
    assert said == ["child FORKED FORKED FORKED"] * CHILDREN + ["parent ok"]


def test_children_of_a_fork_with_an_open_async_client_are_told(socket: Path) -> None:
    said = fork_in("async-open", socket)
    assert said == ["child FORKED FORKED FORKED"] * CHILDREN + ["parent ok"]


def test_children_are_told_where_grpcs_fork_support_is_off(socket: Path) -> None:
    said = fork_in("used", socket, GRPC_ENABLE_FORK_SUPPORT="0")
    assert said == ["child FORKED FORKED FORKED"] * CHILDREN + ["parent ok"]
