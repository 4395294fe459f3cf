"""What needs root skips without it; where CI runs, nothing may skip. One server for all tests."""

from __future__ import annotations

import os
import signal
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgresql import Server
    from tests.unit.made_store import MadeOnServer

_SKIPPED: list[str] = []


def pytest_configure() -> None:
    """Let ^C reach what tests start, also where a shell has started us in the background, deaf."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """A PostgreSQL server that all tests share; each makes a database of its own there."""
    from support.postgresql import running_server

    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def empty_store_on_server(
    postgresql_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> MadeOnServer:
    """An empty store on that server, to be copied, which is quicker than making one."""
    from tests.unit.made_store import make_store_on

    return make_store_on(postgresql_server, tmp_path_factory.mktemp("empty"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``root``, unless root runs it."""
    if item.get_closest_marker("hypothesis") is not None:
        _load_characters()
    if os.geteuid() != 0 and item.get_closest_marker("root") is not None:
        pytest.skip("needs root: takes other uids, namespaces or accounts")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take note of a test that was skipped; one that was expected to fail is none."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _SKIPPED.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Take note of a file that was skipped whole."""
    if report.skipped:
        _SKIPPED.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run with CI=true where anything was skipped."""
    if _fails_run() and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why the run fails."""
    if _fails_run():
        text = f"{len(_SKIPPED)} skipped, and CI=true: nothing may be skipped here"
        terminalreporter.write_line(text, red=True)


@cache
def _load_characters() -> None:
    """Have Hypothesis make its table of characters before a test's inputs are timed.

    It keeps the table in .hypothesis; in a fresh clone, making it takes a second or two.
    """
    from hypothesis import strategies

    strategies.text().validate()


def _fails_run() -> bool:
    return bool(_SKIPPED) and os.environ.get("CI") == "true"
