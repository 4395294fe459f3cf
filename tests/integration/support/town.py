"""The people of one host, with passwords, and a sidecar that gives them access to a key.

alice asks; bob is her manager; carol and dave are of the legal department; olga is an operator,
audrey an auditor; ``mail`` is a service; alice-legal is a second account of alice's, in the legal
department; erin is in every group. Each has a password of their own, which no log may ever hold.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from support.caller import SET_LOGIN, UNSET_LOGIN, Answer, Caller, Callers, callers_of
from support.pam import UNIX, People, made_people, pam_service
from support.sidecar import (
    PYTHON,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)

from keyside.v1 import access_pb2 as pb
from keyside.v1 import encryption_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

KEY = "mail-credentials"
# Who logged in where a service manager started the process.
NO_LOGIN = "nobody"
SERVICE = "/keyside.v1.AccessService/"
ENCRYPTION = "/keyside.v1.EncryptionService/"
GROUPS = ("mailers", "admins", "managers", "legal", "operators", "auditors")
MEMBERS = {
    "mail": ("mailers",),
    "alice": ("admins",),
    "bob": ("managers",),
    "carol": ("legal",),
    "dave": ("legal",),
    "olga": ("operators",),
    "audrey": ("auditors",),
    "alice-legal": ("legal",),
    "erin": ("admins", "managers", "legal"),
}
IDENTITY = 'membership = "account"\nmembership_ttl = "500ms"\nperson_logins = "refuse"'


def password_of(name: str) -> str:
    """Return a person's password: long, and nobody else's."""
    return f"{name}-S3cret-marked-password-{sum(name.encode()):05d}"


@dataclass
class Town:
    """The people, and how they call.

    Args:
        people: Their accounts.
        groups: The groups' full names, by their short ones.
        pam: The PAM service's name.
        undo: Ends callers.
    """

    people: People
    groups: Mapping[str, str]
    pam: str
    undo: contextlib.ExitStack
    _callers: dict[tuple[Path, str, int], Caller] = field(default_factory=dict)
    _targets: dict[Path, Callers] = field(default_factory=dict)

    def config(self, *, elevation: str = "", key: str = "", more: str = "") -> str:
        """Return what a sidecar's configuration says of them.

        Args:
            elevation: Further lines of ``[elevation]``.
            key: Further lines of the key's table.
            more: Further tables.
        """
        group = self.groups
        return f"""
[operators]
groups = ["{group["operators"]}"]

[auditors]
groups = ["{group["auditors"]}"]

[keys.{KEY}]
allow_groups = ["{group["mailers"]}"]
{key}

[keys.payroll]
allow_groups = ["{group["mailers"]}"]

[elevation]
pam_service = "{self.pam}"
requesters = ["{group["admins"]}"]
max_duration = "4h"
{elevation}

[[elevation.levels]]
group = "{group["managers"]}"
approvals = 1

[[elevation.levels]]
group = "{group["legal"]}"
approvals = 2

[people]
alice = ["{self.name("alice")}", "{self.name("alice-legal")}"]
{more}
"""

    def name(self, person: str) -> str:
        """Return the name of a person's account."""
        return self.people.full_name(person)

    def uid(self, person: str) -> int:
        """Return the uid of a person's account; root and nobody at all have theirs."""
        known = {"root": 0, NO_LOGIN: UNSET_LOGIN}
        return known[person] if person in known else self.people.uid_of(person)

    def ids(self, person: str) -> tuple[int, int, list[int]]:
        """Return uid, gid and groups of a person's account."""
        if person == "root":
            return 0, 0, []
        import pwd

        entry = pwd.getpwnam(self.name(person))
        return entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)

    def caller(self, sidecar: Sidecar, person: str, *, login: str = "") -> Caller:
        """Return a process of a person's that makes raw calls; it keeps its connection.

        Args:
            sidecar: Where it calls.
            person: Under whose account it runs.
            login: Who logged in; by default that person.
        """
        logged = self.uid(login or person)
        place = sidecar.socket, person, logged
        if place not in self._callers:
            if sidecar.socket not in self._targets:
                entered = self.undo.enter_context(callers_of(sidecar.socket))
                self._targets[sidecar.socket] = entered
            uid, gid, groups = self.ids(person)
            self._callers[place] = self._targets[sidecar.socket].start(
                uid, gid=gid, groups=groups, login=logged
            )
        return self._callers[place]

    def keyside(
        self,
        sidecar: Sidecar,
        person: str,
        *arguments: str,
        stdin: bytes | str = b"",
        runtime: Path | None = None,
        login: str = "",
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the ``keyside`` command as a person, to its end.

        Args:
            sidecar: Where it calls.
            person: Under whose account.
            arguments: The command's.
            stdin: What it reads.
            runtime: Its ``XDG_RUNTIME_DIR``.
            login: Who logged in; by default that person.
        """
        uid, gid, groups = self.ids(person)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        logged = self.uid(login or person)
        return subprocess.run(
            [
                *("sh", "-ec", SET_LOGIN, "sh", str(logged)),
                *("setpriv", f"--reuid={uid}", f"--regid={gid}"),
                f"--groups={','.join(map(str, groups))}",
                *(str(Path(PYTHON).with_name("keyside")), *arguments),
            ],
            env={
                "PATH": os.environ["PATH"],
                "KEYSIDE_SOCKET": str(sidecar.socket),
                "KEYSIDE_EXPECTED_OWNER": str(SIDECAR_UID),
                **({"XDG_RUNTIME_DIR": str(runtime)} if runtime else {}),
            },
            input=data,
            capture_output=True,
            timeout=60,
            cwd="/",
            check=False,
        )

    @contextlib.contextmanager
    def runtime_of(self, person: str) -> Iterator[Path]:
        """Give a person an ``XDG_RUNTIME_DIR``."""
        with sidecar_directory() as directory:
            place = directory / person
            place.mkdir(mode=0o700)
            os.chown(place, *self.ids(person)[:2])
            yield place

    # -- what they do, raw ----------------------------------------------------------------------

    def ask(self, sidecar: Sidecar, person: str = "alice", **wish: Any) -> Answer:
        """Ask for access."""
        password = wish.pop("password", password_of(person))
        seconds = wish.pop("seconds", 600)
        request = pb.RequestAccessRequest(
            **{"key": KEY, "reason": "an incident", **wish},
            duration=Duration(seconds=seconds),
            password=password.encode(),
        )
        return self.caller(sidecar, person).call(SERVICE + "RequestAccess", request)

    def do(self, sidecar: Sidecar, person: str, rpc: str, access_id: str, **fields: Any) -> Answer:
        """Make one of the calls that are about a request."""
        login = fields.pop("login", "")
        kind = getattr(pb, f"{rpc}Request")
        if "password" in kind.DESCRIPTOR.fields_by_name:
            fields.setdefault("password", password_of(person).encode())
        caller = self.caller(sidecar, person, login=login)
        return caller.call(SERVICE + rpc, kind(id=access_id, **fields))

    def show(self, sidecar: Sidecar, access_id: str, person: str = "audrey") -> pb.AccessRequest:
        """Return a request as the store has it."""
        answer = self.do(sidecar, person, "GetAccess", access_id)
        return answer.parse(pb.GetAccessResponse).request

    def approved(self, sidecar: Sidecar, **wish: Any) -> str:
        """Have alice's request approved by everybody; return its id."""
        access_id = self.ask(sidecar, **wish).parse(pb.RequestAccessResponse).request.id
        for person in ("bob", "carol", "dave"):
            answer = self.do(sidecar, person, "ApproveAccess", access_id)
            assert answer.code == "OK", answer
        return access_id

    def granted(self, sidecar: Sidecar, **wish: Any) -> tuple[str, str]:
        """Give alice a grant; return its id and her credential."""
        access_id = self.approved(sidecar, **wish)
        answer = self.do(sidecar, "alice", "ActivateAccess", access_id)
        return access_id, answer.parse(pb.ActivateAccessResponse).credential

    def seal(
        self, sidecar: Sidecar, plaintext: bytes = b"a token", key: str = KEY, **context: str
    ) -> bytes:
        """Return an envelope that the mail service made."""
        caller = self.caller(sidecar, "mail", login=NO_LOGIN)
        request = encryption_pb2.EncryptRequest(key=key, plaintext=plaintext, context=context)
        answer = caller.call(ENCRYPTION + "Encrypt", request)
        return answer.parse(encryption_pb2.EncryptResponse).envelope

    def open(
        self,
        sidecar: Sidecar,
        envelope: bytes,
        credential: str,
        person: str = "alice",
        *,
        login: str = "",
        **context: str,
    ) -> Answer:
        """Have a person decrypt with a credential."""
        request = encryption_pb2.DecryptRequest(envelope=envelope, context=context)
        metadata: Sequence[tuple[str, str]] = [("keyside-credential", credential)]
        caller = self.caller(sidecar, person, login=login)
        return caller.call(ENCRYPTION + "Decrypt", request, metadata=metadata)

    def audit(self, sidecar: Sidecar) -> str:
        """Return the audit log's text, all files of it."""
        return "".join(
            path.read_text() for path in sorted(sidecar.audit_log.parent.glob("*.jsonl"))
        )


@contextlib.contextmanager
def town(pam: str = UNIX) -> Iterator[Town]:
    """Make the people, and remove them afterwards."""
    with made_people() as people, pam_service(pam) as service, contextlib.ExitStack() as undo:
        groups = {name: people.add_group(name) for name in GROUPS}
        for name, member_of in MEMBERS.items():
            people.add_person(name, password_of(name), *(groups[one] for one in member_of))
        yield Town(people, groups, service, undo)


@contextlib.contextmanager
def sidecar_in(found: Town, *, settings: str = "workers = 2", **config: str) -> Iterator[Sidecar]:
    """Give a started sidecar that knows these people."""
    with running_sidecar(
        config=found.config(**config), identity=IDENTITY, settings=settings
    ) as sidecar:
        yield sidecar


def find_id(text: bytes) -> str:
    """Return the first request's id in what a command printed."""
    match = re.search(rb"ar-[a-z2-7]{12}", text)
    assert match, text
    return match[0].decode()
