"""Generate client/keyside/v1 from protos/keyside/v1, or check that it is fresh.

    python tools/generate_stubs.py            # writes the stubs (``make stubs``)
    python tools/generate_stubs.py --check    # exit 1 where a committed stub differs

The tools come from the ``dev`` dependency group: grpcio-tools makes the modules, mypy-protobuf
their types (those that protoc itself writes do not pass strict mypy). google/rpc is vendored
beside ours; its modules are those of googleapis-common-protos. Generated code refuses to run under
a grpcio or protobuf older than its generator, so ``pyproject.toml``'s lower bounds follow the
versions used here.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("keyside", "v1")
COMMITTED = ROOT / "client"
DIFF_LINES_SHOWN = 40


def generate(target: Path) -> None:
    """Write the stubs of every proto into ``target``/keyside/v1.

    Args:
        target: An existing directory; the root of the import path.

    Raises:
        SystemExit: protoc failed; its own words are on standard error.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / PACKAGE).glob("*.proto"))
    scripts = Path(sys.executable).parent
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTOS}",
        f"--python_out={target}",
        f"--plugin=protoc-gen-mypy={scripts}/protoc-gen-mypy",
        f"--mypy_out=quiet:{target}",
        f"--grpc_python_out={target}",
        f"--plugin=protoc-gen-mypy_grpc={scripts}/protoc-gen-mypy_grpc",
        f"--mypy_grpc_out=quiet:{target}",
        *sources,
    ]
    finished = subprocess.run(command, check=False, cwd=ROOT)
    if finished.returncode:
        raise SystemExit(finished.returncode)


def read_stubs(root: Path) -> dict[str, str]:
    """Return the generated files under ``root``, by name."""
    return {
        path.name: path.read_text(encoding="utf-8")
        for path in (root / PACKAGE).glob("*_pb2*.py*")
        if path.suffix in {".py", ".pyi"}
    }


def describe_differences(committed: dict[str, str], fresh: dict[str, str]) -> list[str]:
    """Return one line per missing or left-over file, and the first differing lines of others."""
    lines: list[str] = []
    for name in sorted(committed.keys() | fresh.keys()):
        if name not in committed:
            lines.append(f"{name}: is missing")
        elif name not in fresh:
            lines.append(f"{name}: belongs to no proto")
        elif committed[name] != fresh[name]:
            difference = difflib.unified_diff(
                committed[name].splitlines(),
                fresh[name].splitlines(),
                f"committed/{name}",
                f"fresh/{name}",
                lineterm="",
            )
            lines.extend(list(difference)[:DIFF_LINES_SHOWN])
    return lines


def check() -> int:
    """Compare the committed stubs with fresh ones; return the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        lines = describe_differences(read_stubs(COMMITTED), read_stubs(Path(directory)))
    if lines:
        print("\n".join(lines))
        print("The stubs are not what the protos give: run `make stubs` and commit the result.")
        return 1
    return 0


def write() -> int:
    """Replace the committed stubs; return the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        fresh = read_stubs(Path(directory))
    folder = COMMITTED / PACKAGE
    folder.mkdir(parents=True, exist_ok=True)
    for name in read_stubs(COMMITTED).keys() - fresh.keys():
        (folder / name).unlink()
    for name, text in fresh.items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Generate or check client/keyside/v1.")
    arguments.add_argument("--check", action="store_true", help="compare only; write nothing")
    raise SystemExit(check() if arguments.parse_args().check else write())
