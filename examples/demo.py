"""``make demo``: a sidecar, a service that uses it, rollovers, a stranger, the log, for real.

Everything happens in a directory of its own, which is removed at the end. Run by root, the sidecar,
the service, the operator and the stranger are different uids (no accounts are made); otherwise all
of them are you, and the demonstration says what it can't show.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = os.geteuid() == 0
START_TIMEOUT_S = 30.0
UNSET_LOGIN = 0xFFFFFFFF
BIN = Path(sys.prefix).resolve() / "bin"
GATEWAY = Path(__file__).resolve().with_name("mail_gateway.py")


@dataclass(frozen=True)
class Role:
    """Whom a process runs as. The uids need no accounts."""

    name: str
    uid: int


SIDECAR = Role("sidecar", 64100 if ROOT else os.geteuid())
SERVICE = Role("mail gateway", 64101 if ROOT else os.geteuid())
OPERATOR = Role("operator", 64102 if ROOT else os.geteuid())
STRANGER = Role("stranger", 64103 if ROOT else os.geteuid())


class DemoFailed(Exception):
    """A step did not do what it should."""


class Demo:
    """One demonstration in one directory."""

    def __init__(self, home: Path, records: int) -> None:
        self.home = home
        self.records = records
        self.config = home / "keyside.toml"
        self.socket = home / "run" / "keyside.sock"
        self.daemon: subprocess.Popen[bytes] | None = None
        self.public_key = ""
        self.step_number = 0

    # -- what is shown -----------------------------------------------------------------------

    def run(self, own_file: Path | None) -> None:
        """Show the main job from beginning to end."""
        self.say_who()
        self.step("Make a root key and a store, and start the sidecar on a Unix socket")
        self.prepare()
        self.start()
        self.step(f"The mail gateway stores {self.records:,} connected accounts")
        self.gateway("add", str(self.records))
        self.gateway("show")
        self.step("The key is rolled over twice; earlier versions are archived")
        self.rotate()
        self.rotate()
        self.keyside(SERVICE, "keys", "show", "mail-credentials")
        self.step("Every record is read back: archived versions still decrypt")
        self.gateway("check")
        self.step("Every record is rewrapped to the current version, and read again")
        self.gateway("rewrap")
        self.gateway("check")
        self.gateway("show")
        self.show_refusal()
        if own_file is not None:
            self.show_own_file(own_file)
        self.step("Stop; is the audit log of all this what was written, and whole?")
        self.stop()
        self.verify_log()
        self.summarise()

    def say_who(self) -> None:
        """Say what is shown, and what can't be."""
        if ROOT:
            print("Run by root: sidecar, gateway, operator and stranger are four different uids")
            print("(without accounts, so groups are those of the process).")
        else:
            print("Not run by root: sidecar, gateway, operator and stranger are all you.")
            print("What this can't show: that uids are told apart. For a rollover the sidecar is")
            print("restarted with a configuration that makes you the operator, because an")
            print("operator can never encrypt. Run it with sudo to see it with four uids.")
        if person_logins() == "off":
            print('This shell belongs to a login, so person_logins is "off" for the demonstration;')
            print("in production a person's processes are refused.")

    def show_refusal(self) -> None:
        """Show that somebody whom no policy names gets nothing."""
        if ROOT:
            self.step("A stranger on the same machine is refused")
            self.keyside(STRANGER, "encrypt", "mail-credentials", expect=77, stdin=b"hello")
            return
        self.step("A key that you are not allowed to use is refused")
        self.keyside(STRANGER, "encrypt", "payroll", expect=77, stdin=b"hello")

    def show_own_file(self, own_file: Path) -> None:
        """Take a file of the user's through encryption, rollover, rewrapping and decryption."""
        self.step(f"Your file {own_file}: encrypt, roll over, rewrap, decrypt, compare")
        work = self.home / "service"
        plain = work / "input"
        shutil.copyfile(own_file, plain)
        self.own(plain, SERVICE)
        context = ("--context", f"name={own_file.name}")
        self.keyside(
            SERVICE, "encrypt", "mail-credentials", *context, "-i", plain, "-o", work / "sealed"
        )
        self.rotate()
        self.keyside(SERVICE, "rewrap", "-i", work / "sealed", "-o", work / "rewrapped")
        self.keyside(SERVICE, "decrypt", *context, "-i", work / "rewrapped", "-o", work / "opened")
        if not filecmp.cmp(plain, work / "opened", shallow=False):
            raise DemoFailed("the decrypted file differs from yours")
        print(f"  identical: {own_file.stat().st_size:,} bytes")

    def verify_log(self) -> None:
        """Have the log proved, and show that one altered character is found."""
        files = [self.home / "state" / "audit.jsonl"]
        verify: list[str | Path] = [BIN / "keyside", "audit", "verify"]
        verify += ["--public-key", self.public_key, *files]
        self.show(verify, expect=0)
        print("  somebody changes one word of it, and a refusal becomes a success …")
        changed = files[0].read_text().replace('"outcome":"refused"', '"outcome":"ok"', 1)
        files[0].write_text(changed)
        self.show(verify, expect=65)

    def summarise(self) -> None:
        """Say what happened and where to go next."""
        print()
        print(f"Done. {self.records:,} secrets were encrypted by a service that never saw a key,")
        print("outlived rollovers of it, and were moved to its current version unopened.")
        print("Every call is on a record that nobody can quietly change.")
        print("Next: README.md (use it from your service), docs/configuration.md (set it up for")
        print("good), deploy/systemd/ (run it), docs/elevation.md (when a person has to look).")

    # -- how it is done ----------------------------------------------------------------------

    def prepare(self) -> None:
        """Make directories, configuration, root key and store."""
        self.home.chmod(0o755)
        for name, role in (("run", SIDECAR), ("state", SIDECAR), ("service", SERVICE)):
            directory = self.home / name
            directory.mkdir(mode=0o755)
            self.own(directory, role)
        (self.home / "state").chmod(0o700)
        self.write_config(operator=ROOT)
        made = self.show([BIN / "keysided", "--config", self.config, "init"], expect=0)
        self.public_key = made.partition("public key is ")[2].split()[0]

    def write_config(self, *, operator: bool) -> None:
        """Write a configuration; ``operator`` makes the operator's uid one."""
        run_as = f"user = {SIDECAR.uid}\ngroup = {SIDECAR.uid}" if ROOT else ""
        operators = f"[operators]\nusers = [{OPERATOR.uid}]" if operator else ""
        allowed = SERVICE.uid if ROOT or not operator else 64101
        self.config.write_text(
            f"""[sidecar]
socket = "{self.socket}"
{run_as}

[identity]
membership = "process"
person_logins = "{person_logins()}"

[store]
url = "sqlite:///{self.home}/state/keyside.db"

[root_key]
provider = "file"
path = "{self.home}/state/root.key"

[audit]
path = "{self.home}/state/audit.jsonl"

{operators}

[keys.mail-credentials]
allow_users = [{allowed}]

[keys.payroll]
allow_users = [64104]
"""
        )
        self.config.chmod(0o644)

    def start(self) -> None:
        """Start the sidecar and wait until it serves."""
        with (self.home / "log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [BIN / "keysided", "--config", self.config, "serve"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.daemon.poll() is None:
            probe = self.invoke(SERVICE, [BIN / "keyside", "--timeout", "1", "status"])
            if probe.returncode == 0:
                return
            time.sleep(0.05)
        raise DemoFailed(f"the sidecar did not start:\n{(self.home / 'log').read_text()}")

    def stop(self) -> None:
        """Stop the sidecar as a service manager would."""
        if self.daemon is None:
            return
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(START_TIMEOUT_S)
        self.daemon = None
        print(f"  the sidecar ended with exit code {code}")

    def rotate(self) -> None:
        """Roll the key over, as the operator."""
        if ROOT:
            self.keyside(OPERATOR, "keys", "rotate", "mail-credentials")
            return
        self.stop()
        self.write_config(operator=True)
        self.start()
        self.keyside(OPERATOR, "keys", "rotate", "mail-credentials")
        self.stop()
        self.write_config(operator=False)
        self.start()

    def gateway(self, *arguments: str) -> None:
        """Run the example service."""
        database = self.home / "service" / "accounts.db"
        script = self.home / "gateway.py"
        command: list[str | Path] = [BIN / "python", script, "--db", database, *arguments]
        shutil.copyfile(GATEWAY, script)
        started = time.monotonic()
        self.show(command, role=SERVICE, expect=0, quiet_name="mail_gateway.py")
        if arguments[0] in {"add", "check", "rewrap"}:
            print(f"  ({time.monotonic() - started:.1f} s, one gRPC call each)")

    def keyside(
        self, role: Role, *arguments: str | Path, expect: int = 0, stdin: bytes = b""
    ) -> None:
        """Run the ``keyside`` command as somebody."""
        self.show([BIN / "keyside", *arguments], role=role, expect=expect, stdin=stdin)

    def show(
        self,
        command: list[str | Path],
        *,
        role: Role = SIDECAR,
        expect: int,
        stdin: bytes = b"",
        quiet_name: str = "",
    ) -> str:
        """Run a command, print it with its output, check its exit code; return the output."""
        name = quiet_name or Path(command[0]).name
        words = [str(word) for word in command[1:] if word != self.home / "gateway.py"]
        print(f"  {role.name}$ {name} {' '.join(words).replace(str(self.home), '…')}")
        if role is SIDECAR:
            done = subprocess.run(command, input=stdin, capture_output=True, check=False)
        else:
            done = self.invoke(role, command, stdin)
        for line in (done.stdout + done.stderr).decode(errors="replace").splitlines():
            print(f"    {line.replace(str(self.home), '…')}")
        if done.returncode != expect:
            raise DemoFailed(f"{name} ended with {done.returncode}, not {expect}")
        if expect:
            print(f"    (exit code {done.returncode}, as it should)")
        return done.stdout.decode(errors="replace")

    def invoke(
        self, role: Role, command: list[str | Path], stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command as somebody."""
        environment = {
            "PATH": os.environ["PATH"],
            "KEYSIDE_SOCKET": str(self.socket),
            "KEYSIDE_EXPECTED_OWNER": str(SIDECAR.uid),
            "COLUMNS": "100",
        }
        if not ROOT:
            return subprocess.run(
                command, input=stdin, capture_output=True, env=environment, cwd="/", check=False
            )
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            env=environment,
            cwd="/",
            check=False,
            user=role.uid,
            group=role.uid,
            extra_groups=[],
        )

    def own(self, path: Path, role: Role) -> None:
        """Give a path to somebody."""
        if ROOT:
            os.chown(path, role.uid, role.uid)

    def step(self, title: str) -> None:
        """Print a step's title."""
        self.step_number += 1
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        print(f"\n{bold}{self.step_number}. {title}{plain}")


def person_logins() -> str:
    """Return what the demonstration needs: a shell of a login makes its children a person's."""
    try:
        login = int(Path("/proc/self/loginuid").read_text())
        session = int(Path("/proc/self/sessionid").read_text())
    except OSError:
        return "off"
    return "refuse" if login == session == UNSET_LOGIN else "off"


def main() -> int:
    """Run the demonstration; return an exit code."""
    parser = argparse.ArgumentParser(description="Show Keyside's main job on this machine.")
    parser.add_argument("--input", type=Path, help="a file of your own to take through it")
    parser.add_argument("--records", type=int, default=3000, help="how many accounts to store")
    arguments = parser.parse_args()
    own_file = arguments.input
    if own_file is not None and not own_file.is_file():
        print(f"demo: there is no file {own_file}", file=sys.stderr)
        return 66
    home = Path(tempfile.mkdtemp(prefix="keyside-demo-", dir="/tmp"))
    demo = Demo(home, arguments.records)
    try:
        demo.run(own_file)
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            if demo.daemon is not None:
                demo.daemon.kill()
        shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
