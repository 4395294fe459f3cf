"""Dependencies point one way; what must stay apart stays apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import keyside.envelope
import keyside_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = Path(keyside.envelope.__file__).parents[1]
SIDECAR = Path(keyside_sidecar.__file__).parent
REPOSITORY = Path(__file__).resolve().parents[2]
# What pure code must not import: whatever reads a clock, a file or a socket.
IMPURE = {"time", "socket", "subprocess", "asyncio", "pathlib", "sqlite3"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def modules(*places: Path) -> list[Path]:
    found = [
        path
        for place in places
        for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))
    ]
    assert found
    return found


def offenders(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.name}: {name}"
        for path in paths
        for name in imports(path)
        if within(name, forbidden)
    ]


def test_only_the_front_doors_know_the_protos() -> None:
    """Services, the pipeline and everything below know no messages."""
    others = [path for path in modules(SIDECAR) if path.relative_to(SIDECAR).parts[0] != "api"]
    assert offenders(others, {"google", "keyside.v1", "grpc_health", "grpc_reflection"}) == []


def test_grpc_stands_behind_its_seam() -> None:
    """The shell over grpc.aio, the servers that it runs in, and the sidecar's call to itself."""
    seam = {"grpc_aio.py", "inner_servers.py", "self_call.py"}
    others = [path for path in modules(SIDECAR) if path.name not in seam]
    assert offenders(others, {"grpc"}) == []


UPPER = {"commands", "supervisor", "worker", "assembly"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("api", UPPER),
        ("server", UPPER | {"api"}),
        ("services", UPPER | {"api", "server"}),
        ("access", UPPER | {"api", "server", "services", "keys", "store", "custody"}),
        ("peer", UPPER | {"api", "server", "services", "keys", "store", "custody"}),
        ("pam", UPPER | {"api", "server", "services", "keys", "store", "custody", "audit"}),
        (
            "audit",
            UPPER | {"api", "server", "services", "peer", "access", "keys", "store", "custody"},
        ),
        ("keys", UPPER | {"api", "server", "services", "peer", "access.policy"}),
        ("store", UPPER | {"api", "server", "services", "peer", "access.policy", "keys"}),
        (
            "custody",
            UPPER | {"api", "server", "services", "peer", "access.policy", "keys", "store"},
        ),
    ],
)
def test_dependencies_point_one_way(package: str, forbidden: set[str]) -> None:
    """From the front doors down to errors, never back."""
    names = {f"keyside_sidecar.{name}" for name in forbidden}
    found = offenders(modules(SIDECAR / package), names)
    # The caller's type, which requests for access are about; nothing of it is run there.
    assert [one for one in found if package != "access" or ".peer.caller" not in one] == []


def test_pure_modules_do_no_io_and_read_no_clock() -> None:
    """Policy, admission, the envelope and the chain are functions of what they are given."""
    pure = modules(
        CLIENT / "audit",
        CLIENT / "envelope",
        SIDECAR / "access",
        SIDECAR / "admission.py",
        SIDECAR / "serving.py",
        SIDECAR / "pam" / "errand.py",
        SIDECAR / "pam" / "limits.py",
    )
    assert offenders(pure, IMPURE) == []


def test_the_client_does_not_know_the_sidecar() -> None:
    """The light package stays light: grpcio, protobuf, cryptography, click."""
    heavy = {"keyside_sidecar", "sqlalchemy", "alembic", "uvloop", "grpc_health"}
    assert offenders(modules(CLIENT), heavy) == []


def test_nothing_imports_through_the_repositorys_folders() -> None:
    """``import client.keyside`` would make a second copy of a module."""
    places = [REPOSITORY / name for name in ("client", "sidecar", "tests", "tools", "examples")]
    assert offenders(modules(*places), {"client", "sidecar"}) == []


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import keyside", {"grpc", "google.protobuf", "cryptography", "click"}),
        ("import keyside.envelope", {"grpc", "google.protobuf", "click"}),
        ("import keyside_sidecar.supervisor", {"grpc", "google.protobuf", "alembic"}),
        ("import keyside_sidecar.audit.recording", {"grpc", "google.protobuf", "sqlalchemy"}),
        ("import keyside_sidecar.commands.serve", {"grpc", "google.protobuf", "alembic"}),
        ("import keyside_sidecar.assembly", {"alembic"}),
    ],
)
def test_what_an_import_leaves_unloaded(statement: str, absent: set[str]) -> None:
    """GRPC is never loaded before a fork, and Alembic only by those who migrate."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.split()
    assert {name for name in loaded if within(name, absent)} == set()


def test_no_two_test_files_have_one_name() -> None:
    """Otherwise pytest can't collect all of them in one run, as ``make soak`` does."""
    names = [path.name for path in (REPOSITORY / "tests").glob("*/test_*.py")]
    assert len(names) > 100
    assert [name for name in set(names) if names.count(name) > 1] == []
