"""What is done with each code block of README.md and docs/*.md: the table.

A block that is not in it fails ``test_pages_classified.py``. A new block is a new line here: by its
page and its first line, what shows that it is true.
"""

from __future__ import annotations

from typing import Final

from support.pages import (
    Configuration,
    Facts,
    NotRun,
    Program,
    Shell,
    Shown,
    Transcript,
    Unit,
    Use,
)

MAIL: Final = "mailgw"
OPERATOR: Final = "olga"
# The rows that the README's programs take for granted.
_DATABASE = """
import keyside, shutil, io, types
class Database(dict):
    save = dict.__setitem__
    load = dict.__getitem__
database = Database()
"""
_ROWS = (
    _DATABASE
    + """
client = keyside.Client()
rows = [types.SimpleNamespace(id=str(n), envelope=client.encrypt(
    "mail-credentials", b"token %d" % n, {"mailbox": str(n)})) for n in range(3)]
used = []
use = lambda row, plaintext: used.append((row.id, plaintext))
mail = io.BytesIO(b"a mail" * 500_000)
"""
)
_FORMULA = NotRun("a definition; tests/vectors/second_reader.py is written from it")
_DIAGRAM = NotRun("a drawing")
_BASE = """
[sidecar]
socket = "/run/keyside/keyside.sock"
user = "keyside"
[store]
url = "sqlite:////var/lib/keyside/keyside.db"
[root_key]
provider = "file"
path = "/etc/keyside/root.key"
[audit]
path = "/var/log/keyside/audit.jsonl"
"""

_KEY = '[keys.mail-credentials]\nallow_groups = ["mail-services"]\n'

BLOCKS: Final[dict[str, dict[str, Use]]] = {
    "README.md": {
        "make demo                 # the main job, on this machine, in under a minute": NotRun(
            "it is the suite that this test is in; tests/integration/test_demo.py runs the demo"
        ),
        "python3 -m venv /opt/keyside": Shell(),
        "useradd --system --user-group keyside": Shell(),
        "[sidecar]": Configuration("/etc/keyside/keyside.toml"),
        "keysided init        # makes root key, store and audit log; back up the root key, "
        "apart from the": Shell(),
        "keysided files install keyside.service": Shell(),
        "systemctl daemon-reload": Unit("keyside.service"),
        "useradd --system --create-home --groups mail-services mailgw": Shell(),
        "root# runuser -u mailgw -- keyside decrypt --context mailbox=42 < token.sealed": (
            Transcript()
        ),
        "import keyside": Program(_DATABASE, 'assert token == b"refresh token"'),
        "for row, result in zip(rows, client.decrypt_batch("
        '(r.envelope, {"mailbox": r.id}) for r in rows)):': Program(
            _ROWS,
            'assert used == [(str(n), b"token %d" % n) for n in range(3)]\n'
            'assert cipher.open(envelope, {"mailbox": "42"}) == b"refresh token"\n'
            'assert keyside.open("mail.sealed", client=client).read() == mail.getvalue()',
        ),
        "keyside encrypt mail-credentials --context mailbox=42 < token > token.sealed": Shell(
            MAIL,
            cwd="/srv/shell",
            before="install -d -o mailgw -g mailgw /srv/shell /srv/mail; cp /root/token "
            "/srv/shell; install -o mailgw -g mailgw /root/token.sealed /srv/mail/1.sealed; "
            "chown mailgw /srv/shell/token",
        ),
        "keyside keys list": Shell(OPERATOR),
        'alice$ keyside access request mail-credentials --reason "lost mail, INC-4711" '
        "--duration 30m --context mailbox=42": Transcript(),
        "keysided files install --to . protos": Shell(cwd="/srv/node", before="mkdir /srv/node"),
        'const grpc = require("@grpc/grpc-js");': Program(),
        r"sed -i 's/ \[debug_redact = true\]//' protos/keyside/v1/*.proto": Shell(cwd="/srv/node"),
    },
    "docs/configuration.md": {
        "[sidecar]": Shown(
            "tests/unit/test_config_documentation.py::"
            "test_complete_example_in_the_documentation_loads"
        ),
    },
    "docs/design.md": {
        "client process ── unix socket ──►  supervisor: accepts; asks the kernel who is there; "
        "limits": _DIAGRAM,
    },
    "docs/elevation.md": {
        "[operators]": Configuration(around=_BASE + _KEY + "{block}"),
        'alice$ keyside access request mail-credentials --reason "lost mail in mailbox 42" '
        "--ticket INC-4711 \\": Transcript(),
        'bob$ keyside access approve ar-55nwyosswknj --comment "seen with the customer"': (
            Transcript()
        ),
        "carol$ keyside access approve ar-55nwyosswknj": Transcript(),
        "dave$ keyside access approve ar-55nwyosswknj": Transcript(),
        "alice$ keyside access activate ar-55nwyosswknj": Transcript(),
        "olga$ keyside access revoke ar-55nwyosswknj --reason done": Transcript(),
        "audrey$ keyside audit explain ar-55nwyosswknj": Transcript(),
        "audrey$ keyside audit tail -n 100000 --json > log.jsonl": Transcript(),
    },
    "docs/envelope.md": {
        "envelope = wrapping header || payload": _FORMULA,
        "KDF(key, label, context) = HMAC-SHA512(key, [1]_32 || label || 0x00 || context || "
        "[512]_32)": _FORMULA,
        "[number of pairs] in 2 bytes": _FORMULA,
        'P          = KDF(V, "keyside/v1/wrap", header[0 : 50+n])': _FORMULA,
        'whole:      Q = KDF(D, "keyside/v1/payload/whole",': _FORMULA,
        "body = AEAD(payload key, nonce = 0^4 || payload header[26:34], plaintext, AAD)": _FORMULA,
        "sealed segment i = AEAD(payload key, nonce = 0^3 || [i]_64 || last,": _FORMULA,
        "given": Shown("tests/unit/test_second_reader.py::EXAMPLE"),
    },
}
