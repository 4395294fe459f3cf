"""A private host on which pages are followed, from their top to their bottom."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.page_blocks import BLOCKS, MAIL
from support.pages import (
    Block,
    Configuration,
    Facts,
    NotRun,
    Program,
    Shell,
    Shown,
    Transcript,
    Unit,
    find_blocks,
    replace_block,
)

from keyside_sidecar.config import parse_config

if TYPE_CHECKING:
    import subprocess

    from support.private_host import PrivateHost
    from support.transcripts import Player

CONFIG = "/etc/keyside/keyside.toml"
START_TIMEOUT_S = 30.0
# Rewrites what pages show of outputs, instead of comparing: make pages.
UPDATES = os.environ.get("KEYSIDE_UPDATE_PAGES") == "1"


@dataclass
class PageHost:
    """The host, the daemon that it runs, and what is done with blocks there.

    Args:
        host: The host.
        player: Runs transcripts.
        public_key: The audit log's first, once ``keysided init`` has printed it.
    """

    host: PrivateHost
    player: Player
    public_key: str = ""
    _daemon: subprocess.Popen[bytes] | None = None
    _played: list[tuple[Block, str]] = field(default_factory=list)
    _differences: list[str] = field(default_factory=list)

    def follow(self, page: str, *, only: str = "", skip: tuple[str, ...] = ()) -> None:
        """Do with each block of a page, in order, what the table says.

        Args:
            page: The page.
            only: The beginning of the first line of the one block that is meant.
            skip: Such beginnings, of blocks for which another time comes.
        """
        if not only:
            self.player.begin_page()
        for block in find_blocks(page):
            use = BLOCKS[page][block.opening]
            if block.opening.startswith(only) and not block.opening.startswith(skip or ("\0",)):
                self.do(block, use)
        self.settle()

    def do(self, block: Block, use: object) -> None:
        """Do with one block what the table says."""
        match use:
            case Shell():
                self._type(block, use)
            case Configuration():
                self._configure(block, use)
            case Program():
                self._run_program(block, use)
            case Transcript():
                self._compare(block)
            case Unit():
                self.start_unit(use.name)
            case Facts():
                self._compare_facts(block, use)
            case NotRun() | Shown():
                pass
            case _:
                raise AssertionError(f"{block}: nobody knows what to do with {use}")

    def settle(self) -> None:
        """Fail where a page shows what is not printed; what was rewritten is as it should be."""
        played, self._played = self._played, []
        differences, self._differences = self._differences, []
        if not UPDATES:
            assert not differences, "\n\n".join(["make pages, and look:", *differences])
        elif differences:  # all of one run, so that its times fit together
            for block, text in played:
                if text != block.text:
                    replace_block(block, text)

    # -- the daemon -----------------------------------------------------------------------------

    def start(self, command: str = "keysided serve") -> None:
        """Start the daemon as root, as any service manager would, and wait until it serves."""
        self._daemon = self.host.begin(command, "/var/log/keysided.log")
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.host.run("keyside status").code != 0:
            assert self._daemon.poll() is None, self.host.must("tail -n 20 /var/log/keysided.log")
            assert time.monotonic() < deadline, self.host.must("tail -n 20 /var/log/keysided.log")
            time.sleep(0.1)

    def start_unit(self, name: str) -> None:
        """Run the commands of an installed unit as its account, as systemd does."""
        text = self.host.must(f"cat /etc/systemd/system/{name}")
        found = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
        account = f"--reuid={found['User']} --regid={found['Group']} --init-groups"
        runtime = f"/run/{found['RuntimeDirectory']}"
        owners = f"-o {found['User']} -g {found['Group']} -m {found['RuntimeDirectoryMode']}"
        self.host.must(f"install -d {owners} {runtime}")
        self.host.must(f"setpriv {account} {found['ExecStartPre']}")
        self.start(f"setpriv {account} {found['ExecStart']}")

    def stop(self) -> None:
        """Stop the daemon as a service manager does."""
        assert self._daemon is not None
        children = Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children")
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGTERM)
        assert self._daemon.wait(START_TIMEOUT_S) == 0
        self._daemon = None

    def close(self) -> None:
        """Wait for the daemon, which has ended with the host."""
        if self._daemon is not None:
            self._daemon.wait(START_TIMEOUT_S)

    def configure(self, *changes: tuple[str, str]) -> None:
        """Change the configuration: replace one text of it by another, each time."""
        text = self.host.must(f"cat {CONFIG}")
        for before, after in changes:
            assert before in text, before
            text = text.replace(before, after)
        self._write(CONFIG, text)

    def _write(self, path: str, text: str) -> None:
        aside = self.host.directory / "written"
        aside.write_text(text, encoding="utf-8")
        self.host.must(f"install -m 0644 {aside} {path}")

    # -- blocks ---------------------------------------------------------------------------------

    def _type(self, block: Block, use: Shell) -> None:
        if use.before:
            self.host.must(use.before)
        text = block.text
        for shown, real in {**self.player.replace, **use.replace}.items():
            text = text.replace(shown, real)
        command = f"{use.within} {use.shell} -ec {shlex.quote(text)}"
        ran = self.host.run(command, account=use.account, cwd=use.cwd)
        assert ran.code == 0, f"{block}\n{ran.output}"
        found = re.search(r"public key is ([0-9a-f]{64})", ran.output)
        if found:
            self.public_key = found[1]

    def _configure(self, block: Block, use: Configuration) -> None:
        text = use.around.replace("{block}", block.text)
        parse_config(text.encode(), Path(CONFIG))
        if use.path:
            self._write(use.path, block.text)

    def _run_program(self, block: Block, use: Program) -> None:
        text = f"{use.before}\n{block.text}\n{use.after}\n"
        if block.language == "js":
            self._write("/srv/node/example.js", text)
            ran = self.host.run("node example.js", account=MAIL, cwd="/srv/node")
            assert ran.code == 0, f"{block}\n{ran.output}"
            assert ran.output.startswith("S1NF"), f"{block}\n{ran.output}"  # "KSE", in base64
            return
        self._write("/srv/example.py", text)
        self.host.must("install -d -o mailgw -g mailgw /srv/python")
        ran = self.host.run(
            "/opt/keyside/bin/python /srv/example.py", account=MAIL, cwd="/srv/python"
        )
        assert ran.code == 0, f"{block}\n{ran.output}"

    def _compare(self, block: Block) -> None:
        text, differences = self.player.play(block)
        self._played.append((block, text))
        self._differences += differences

    def _compare_facts(self, block: Block, use: Facts) -> None:
        ran = self.host.run(use.command, account=use.account)
        real: Any = json.loads(ran.output)
        for part in filter(None, use.pick.split(".")):
            real = real[int(part) if part.lstrip("-").isdigit() else part]
        found = _compare_members(json.loads(block.text), real, "")
        assert not found, f"{block}: {found}"


def _compare_members(shown: Any, real: Any, place: str) -> list[str]:
    """Return how two documents' members differ; what is null, or an empty list, fits anything."""
    if isinstance(shown, dict) and isinstance(real, dict):
        if place.endswith("context"):
            return []
        differing = [f"{place}: {name}" for name in shown.keys() ^ real.keys()]
        return differing + [
            line
            for name in shown.keys() & real.keys()
            for line in _compare_members(shown[name], real[name], f"{place}.{name}")
        ]
    if isinstance(shown, list) and isinstance(real, list):
        return _compare_members(shown[0], real[0], f"{place}[]") if shown and real else []
    same = shown is None or real is None or type(shown) is type(real)
    return [] if same else [f"{place}: {shown!r} and {real!r}"]
