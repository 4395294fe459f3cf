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
_GRAMMAR = NotRun("a definition; tests/vectors/second_verifier.py is written from it")
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

_MOVE = "tests/integration/test_pages.py::test_a_store_moves_from_sqlite_to_postgresql"
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
    "docs/audit.md": {
        "keyside audit verify --public-key 5c0d…e1 /var/log/keyside": Shell(
            within="sh -c '\"$@\" || test $? = 1' sh"  # the log is in use
        ),
        "journalctl _UID=$(id -u keyside) -t keyside-audit -o cat > kept.json": NotRun(
            "needs journald; tests/unit/test_audit_verify_cli.py gives verify kept checkpoints"
        ),
        "keyside audit tail -n 100000 --json > log.jsonl": Shell("audrey"),
        "cd /var/log/keyside": Shell(),
        'hash = SHA-256("keyside/v1/audit-record" || 0x00 || previous || covered)': _FORMULA,
        '{"v":1,"seq":7,"id":"a-1","time":"2026-11-25T22:45:11.123456Z","event":"key.rotate",'
        '"hash":"2d48a9d4e11a576d8ada0cd3ffc5e597d9f62a778f9542829cbb25d2543384bc"}': Shown(
            "tests/unit/test_audit_documentation.py::"
            "test_documented_example_has_the_hash_that_it_says"
        ),
        'log     = checkpoint of kind "start"  run run …': _GRAMMAR,
        'signature = Ed25519("keyside/v1/audit-checkpoint" || 0x00 || previous || start)': (
            NotRun("a definition; tests/unit/test_audit_verification.py verifies such signatures")
        ),
    },
    "docs/custody.md": {
        "python tests/vectors/second_reader.py root.key keyside.db --context mailbox=42 "
        "< token.sealed > token": Shown(
            "tests/integration/test_without_keyside.py::test_envelopes_open_from_root_key_and_store_or_backup"
        ),
        "derive(K, label, context) = the first 32 bytes of": _FORMULA,
        'key     = derive(K, "keyside/v1/root-wrap", salt)': _FORMULA,
        'HMAC-SHA-256(derive(K, "keyside/v1/store-mac", store id), encoded row)': _FORMULA,
        "term(row) = HMAC-SHA-256(S, 0x00 || row's mac), as an integer, big-endian": _FORMULA,
        '{"keyside_backup":1,"program":…,"schema":…,"store_id":…,"generation":…,'
        '"root_key_id":…,"made_at":…}': Shown(
            "tests/unit/test_second_custody.py::test_backup_lines_are_as_the_page_says"
        ),
        "the file": Shown(
            "tests/unit/test_second_custody.py::test_example_in_the_page_is_computed_by_keyside"
        ),
    },
    "docs/keysided.md": {
        "keysided [--config PATH] COMMAND …": Shown(
            "tests/unit/test_help.py::test_the_page_names_every_command_and_option"
        ),
        '{ "findings": [': Facts("keysided check --json", "root"),
        '{ "files": [': Facts("keysided root show --json", "root"),
        'eval "$(keysided completion bash)"                                   # in ~/.bashrc': (
            Shown("tests/unit/test_help.py::test_both_programs_complete_in_every_shell")
        ),
    },
    "docs/backup.md": {
        "keysided backup /var/backups/keyside-2026-01-31": Shell(),
        "keysided backup - | ssh vault 'cat > keyside-2026-01-31'": NotRun(
            "needs another host; tests/integration/test_backup.py backs up to standard output"
        ),
        "keysided restore /var/backups/keyside-2026-01-31": Shell(
            before="mkdir /var/lib/keyside/old; mv /var/lib/keyside/keyside.db* "
            "/var/lib/keyside/old"
        ),
        "keysided root rotate --prepare     # makes root.key.next; back it up": Shell(),
    },
    "docs/cli.md": {
        "keyside [--socket SOCKET] [--timeout SECONDS] [--expected-owner ACCOUNT] COMMAND …": Shown(
            "tests/unit/test_page_examples.py::test_the_synopsis_has_every_command_and_option"
        ),
        "mail-credentials: version 4 is current, since 2026-04-06T09:00:00Z": Shown(
            "tests/unit/test_page_examples.py::test_the_time_line_is_what_keys_show_draws"
        ),
        'alice$ keyside access request mail-credentials --reason "tokens of account 42 are '
        'refused" --duration 30m \\': Transcript(),
        '{ "name": "mail-credentials",': Facts("keyside keys list --json", pick="keys.0"),
        '{ "number": 2,': Facts("keyside keys show mail-credentials --json", pick="versions.-1"),
        '{"host": "mail-3", "pid": 4711, "seen_at": "2026-07-04T09:10:00Z"}': Shown(
            "tests/unit/test_cli_versions.py::"
            "test_who_has_not_acknowledged_is_named_and_the_code_is_75"
        ),
        '{ "command": "rewrap",': Facts(
            "ln -f /srv/mail/1.sealed /srv/mail/2.sealed; keyside rewrap /srv/mail --json", MAIL
        ),
        '{ "id": "ar-2f7qk3zt5mxa",': Facts("keyside access list --all --json", pick="requests.-1"),
        '{ "used_at": "2026-11-25T22:53:30Z",': Facts(
            "keyside access show --json "
            "$(keyside access list --all --json | grep -o 'ar-[a-z2-7]*' | tail -n 1)",
            pick="uses.0",
        ),
        '{ "serving": "DEGRADED",': Facts("keyside status --json"),
        'eval "$(keyside completion bash)"': Shell(shell="bash"),
        'eval "$(keyside completion zsh)"': NotRun(
            "zsh isn't on every host; tests/unit/test_cli_commands.py prints its completion"
        ),
        "mkdir -p ~/.config/fish/completions": Shell("alice"),
    },
    "docs/clients.md": {
        "import keyside": Shown("tests/integration/test_pages.py::test_clients_in_servers"),
        "gunicorn --preload --workers 2 --threads 4 --bind unix:app.sock app:app": Shown(
            "tests/integration/test_pages.py::test_clients_in_servers"
        ),
        "import asyncio": Program(
            after="for envelope, text in ((first, b'one'), (second, b'two')):\n"
            "    assert keyside.Client().decrypt(envelope) == text"
        ),
        "from gevent import monkey": Program(
            after="assert [client.decrypt(job.get()) for job in jobs] == [b'a token'] * 8"
        ),
    },
    "docs/containers.md": {
        "[sidecar]": Configuration(),
        "keyside --expected-owner 65534 status": Shell(
            MAIL, within="unshare --user --map-current-user"
        ),
        "keyside status --json > /dev/null": Shell(MAIL),
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
    "docs/keys.md": {
        "[keys.mail-credentials]": Configuration(
            around=_BASE + '{block}allow_groups = ["mail-services"]\n'
        ),
    },
    "docs/operations.md": {
        "CREATE ROLE keyside_owner LOGIN;": Shown(_MOVE),
        "# type   database  user                    address       method": Shown(_MOVE),
        "keysided init --store-url "
        "'postgresql+psycopg://keyside_owner@/keyside?host=/run/postgresql'": Shell(),
        "keysided backup /var/backups/keyside-move": Shell(),
        "keysided restore --store-url "
        "'postgresql+psycopg://keyside_owner@/keyside?host=/run/postgresql' "
        "/var/backups/keyside-move": Shell(),
    },
    "docs/performance.md": {},
    "docs/envelope.md": {
        "envelope = wrapping header || payload": _FORMULA,
        "KDF(key, label, context) = HMAC-SHA512(key, [1]_32 || label || 0x00 || context || "
        "[512]_32)": _FORMULA,
        "[number of pairs] in 2 bytes": _FORMULA,
        'P          = KDF(V, "keyside/v1/wrap", header[0 : 50+n])': _FORMULA,
        'whole:      Q = KDF(D, "keyside/v1/payload/whole",': _FORMULA,
        "body = AEAD(payload key, nonce = 0^4 || payload header[26:34], plaintext, AAD)": _FORMULA,
        "sealed segment i = AEAD(payload key, nonce = 0^3 || [i]_64 || last,": _FORMULA,
        "given": Shown("tests/unit/test_second_reader.py::test_example_in_the_page_is_the_vector"),
    },
}
