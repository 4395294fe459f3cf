"""Another language, from the same protos: Node's @grpc/grpc-js over the Unix socket."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.sidecar import (
    IS_ROOT,
    SERVICE_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

HERE = Path(__file__).parent / "node"
PROTOS = Path(__file__).parents[2] / "protos"
KEY = "mail-credentials"
PLAINTEXT = "höchst geheim".encode()
CONTEXT = {"tenant": "Zoë", "record": "4711"}


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """A directory with the client, what it needs from npm, and the protos."""
    with sidecar_directory() as directory:
        for name in ("package.json", "package-lock.json", "client.js"):
            shutil.copy(HERE / name, directory)
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=240,
        )
        shutil.copytree(PROTOS, directory / "protos")
        subprocess.run(["chmod", "-R", "a+rX", directory], check=True)
        yield directory


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """One that serves."""
    with running_sidecar() as running:
        yield running


def run_node(program: Path, sidecar: Sidecar, request: dict[str, object]) -> dict[str, Any]:
    """Return what the Node client answers, run under the service's account."""
    who: dict[str, Any] = {}
    if IS_ROOT:
        who = {"user": SERVICE_UID, "group": SERVICE_UID, "extra_groups": []}
    done = subprocess.run(
        ["node", program / "client.js", sidecar.socket, program / "protos"],
        input=json.dumps(request),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
        **who,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_node_encrypts_decrypts_and_reads_errors(program: Path, sidecar: Sidecar) -> None:
    """What one language seals, the other opens."""
    arguments = [
        part for name, value in CONTEXT.items() for part in ("--context", f"{name}={value}")
    ]
    sealed = sidecar.keyside("encrypt", KEY, *arguments, stdin=PLAINTEXT)
    assert sealed.returncode == 0, sealed.stderr
    answer = run_node(
        program,
        sidecar,
        {
            "key": KEY,
            "plaintext": base64.b64encode(PLAINTEXT).decode(),
            "context": CONTEXT,
            "envelope": base64.b64encode(sealed.stdout).decode(),
        },
    )
    assert base64.b64decode(answer["opened"]) == PLAINTEXT
    assert base64.b64decode(answer["foreign"]) == PLAINTEXT
    assert answer["version"] == {"key": KEY, "number": 1}
    opened = sidecar.keyside("decrypt", *arguments, stdin=base64.b64decode(answer["envelope"]))
    assert opened.stdout == PLAINTEXT, opened.stderr

    rejected = answer["failures"]["wrong context"]
    assert rejected["code"] == "INVALID_ARGUMENT"
    assert rejected["text"] == "the envelope was not accepted"
    info = rejected["details"]["google.rpc.ErrorInfo"]
    assert (info["reason"], info["domain"]) == ("ENVELOPE_REJECTED", "keyside")
    assert "context" in info["metadata"]["remedy"]

    forbidden = answer["failures"]["no such key"]
    assert forbidden["code"] == "PERMISSION_DENIED"
    assert forbidden["details"]["google.rpc.ErrorInfo"]["reason"] == "NOT_ALLOWED"

    invalid = answer["failures"]["wrong field"]
    assert invalid["code"] == "INVALID_ARGUMENT"
    (violation,) = invalid["details"]["google.rpc.BadRequest"]["field_violations"]
    assert violation["field"] == "context"


def test_the_lock_file_pins_hashes_and_names_no_addresses() -> None:
    """What is installed is what was chosen, from whichever registry the host uses."""
    lock = json.loads((HERE / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert len(packages) > 2
    for package in packages.values():
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", package["integrity"])
        assert "resolved" not in package
