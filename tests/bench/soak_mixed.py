"""``make soak``: ten minutes of mixed load with rollovers and group changes.

Two services use one key in every way there is: single calls, batches, rewrapping, a local cipher,
under the current version and older ones. An operator rolls the key over every few seconds. One
service stays in the key's group all the time, and no call of its may fail. The other is put into
the group and taken out again: from ``membership_ttl`` after it was taken out no call of its may be
served, and from as long after it was put back none may fail. What it asks within that time may go
either way. Needs root, for the accounts.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from processes import OWNER
from rows import Row, Target
from support.accounts import made_accounts
from support.remote import Remote
from support.sidecar import IS_ROOT, PYTHON, Sidecar, running_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plan import Plan
    from support.accounts import Accounts

TTL_S = 1.0
# The name service and the scheduler of a busy machine come on top.
SLACK_S = 1.5
ROLLOVER_EVERY_S = 3.0
CHANGE_EVERY_S = 8.0
IDENTITY = f'membership = "account"\nmembership_ttl = "{TTL_S:.0f}s"\nperson_logins = "off"'
_PROGRAM = Path(__file__).with_name("caller_mixed.py").read_text()


class Service:
    """A caller's process; it is told what it should get, and says what it got."""

    def __init__(self, sidecar: Sidecar, uid: int) -> None:
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [PYTHON, "-c", _PROGRAM],
            env={
                "PATH": os.environ["PATH"],
                "KEYSIDE_SOCKET": str(sidecar.socket),
                "KEYSIDE_EXPECTED_OWNER": str(OWNER),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=[],
        )

    def expect(self, what: str) -> None:
        """Say from now on: ``served``, ``refused`` or ``either``; return when it knows."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != f"{what}\n":
            raise SystemExit("a service of the mixed load has ended")

    def end(self) -> dict[str, Any]:
        """Have it end; return what it counted."""
        import json

        output, _ = self._process.communicate("end\n", timeout=120)
        counted: dict[str, Any] = json.loads(output)
        return counted

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()


def run(plan: Plan) -> Iterator[Row]:
    """Run it, and say what went wrong."""
    if not IS_ROOT:
        raise SystemExit("the mixed load needs root: it makes accounts and changes their groups")
    with ExitStack() as stack:
        accounts = stack.enter_context(made_accounts())
        group = accounts.add_group("services")
        uids = {name: accounts.add_user(name, group) for name in ("steady", "changing")}
        operator_uid = accounts.add_user("operator")
        config = (
            f"[operators]\nusers = [{operator_uid}]\n"
            f'[keys.mail-credentials]\nallow_groups = ["{group}"]\nallow_data_keys = true\n'
        )
        sidecar = stack.enter_context(
            running_sidecar(config=config, identity=IDENTITY, settings="workers = 2")
        )
        operator = stack.enter_context(Remote(sidecar, operator_uid))
        services = {}
        for name, uid in uids.items():
            services[name] = Service(sidecar, uid)
            stack.callback(services[name].kill)
        rollovers, changes = _rage(accounts, group, operator, services["changing"], plan.soak_s)
        counted = {name: service.end() for name, service in services.items()}
    for name, told in counted.items():
        for text in told["wrong"][:5]:
            print(f"  {name}: {text}")
    facts = {"rollovers": float(rollovers), "group changes": float(changes)}
    facts |= {
        f"{name}, {what}": float(told[what])
        for name, told in counted.items()
        for what in ("served", "refused", "either")
    }
    none = Target(0, of_ratio=False, at_least=False)
    title = f"{plan.soak_s / 60:.3g} minutes of mixed load"
    for what, text in (
        ("failed", "failed calls that should have succeeded"),
        ("let in", "calls served that should not have been"),
    ):
        wrong = sum(told[what] for told in counted.values())
        yield Row(f"{title}: {text}", "calls", wrong, 1, target=none, facts=facts)


def _rage(
    accounts: Accounts, group: str, operator: Remote, service: Service, duration_s: float
) -> tuple[int, int]:
    """Roll over and change the group until time is up; return how often."""
    rollovers = changes = 0
    began = time.monotonic()
    change_at = began + CHANGE_EVERY_S
    while (now := time.monotonic()) < began + duration_s:
        operator.run("client.rotate_key('mail-credentials')")
        rollovers += 1
        if now >= change_at:
            inside = changes % 2 == 1
            service.expect("either")
            (accounts.join if inside else accounts.leave)("changing", group)
            time.sleep(TTL_S + SLACK_S)
            service.expect("served" if inside else "refused")
            changes += 1
            change_at = time.monotonic() + CHANGE_EVERY_S
        time.sleep(ROLLOVER_EVERY_S)
    return rollovers, changes
