"""What looks like a sound log and is weaker than one is refused, by both verifiers.

Whoever holds the signing key can seal any of these; so hashes and signatures fit everywhere here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from tests.unit.audit_chain import Chain, make_chain
from tests.unit.test_second_verifier import Log, assert_agreed, name_files, second_verifier

from keyside.audit import (
    Seal,
    cover,
    encode_line,
    hash_record,
    is_sound_key,
    parse_public_key,
    sign_checkpoint,
)
from keyside.cli.audit_verify import verify
from keyside.errors import MalformedRecord

if TYPE_CHECKING:
    from pathlib import Path

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
TOP = 1 << 255

# --- public keys


def encode(point: tuple[int, int]) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = one, other
    both = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + both, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - both, -1, P) % P


def find_x(y: int) -> int:
    """Return the even one of the two x that belong to y on the curve."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return x if x % 2 == 0 else P - x


# A point of order 8: known from any list of the points of small order.
OCTIC_Y = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
OCTIC = (find_x(OCTIC_Y), OCTIC_Y)
BASE_Y = 4 * pow(5, -1, P) % P
BASE = (find_x(BASE_Y), BASE_Y)


def list_small() -> list[tuple[int, int]]:
    points = [(0, 1)]
    while (following := add(points[-1], OCTIC)) != (0, 1):
        points.append(following)
    assert len(points) == 8
    return points


SMALL = list_small()
WEAK = {
    **{f"small order {index}": encode(point) for index, point in enumerate(SMALL)},
    **{
        f"a part of small order {index}": encode(add(BASE, it))
        for index, it in enumerate(SMALL)
        if index
    },
    **{f"y above p, by {more}": (P + more).to_bytes(32, "little") for more in range(19)},
    **{
        f"y above p, by {more}, and a sign": (TOP + P + more).to_bytes(32, "little")
        for more in range(19)
    },
    "a sign where x is 0": (TOP + 1).to_bytes(32, "little"),
    "a sign where x is 0, the other": (TOP + P - 1).to_bytes(32, "little"),
    "no point": (2).to_bytes(32, "little"),
    "all ones": b"\xff" * 32,
    "31 bytes": bytes(31),
    "33 bytes": bytes(33),
    "nothing": b"",
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_key_is_not_sound(name: str) -> None:
    key = WEAK[name]
    assert not is_sound_key(key)
    assert not second_verifier.is_sound(key)
    with pytest.raises(MalformedRecord):
        parse_public_key(key.hex())


def test_keys_that_are_made_are_sound() -> None:
    made = [Ed25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(20)]
    # RFC 8032, 7.1, tests 1 to 3; and the base point itself.
    published = [
        bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
        bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"),
        bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"),
        encode(BASE),
    ]
    for key in made + published:
        assert is_sound_key(key)
        assert second_verifier.is_sound(key)
        assert parse_public_key(key.hex()) == key


@pytest.mark.parametrize("name", [name for name in WEAK if len(WEAK[name]) == 32])
def test_command_refuses_a_weak_key_as_wrong_usage(tmp_path: Path, name: str) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b"".join(make_chain(3, files=1).files[0]))
    done = CliRunner().invoke(verify, ["--public-key", WEAK[name].hex(), str(tmp_path)])
    assert done.exit_code == 2  # (as click has it; `keyside` makes 64 of a UsageError)
    assert "--public-key is a key that no log has" in done.output


class ForgedChain(Chain):
    """Names the public key that it is told to."""

    def seal_naming(self, key: bytes, kind: str = "interval") -> None:
        self.number += 1
        seal = Seal(self.number, kind, self.log, 60, key)
        start = cover(self.sequence + 1, self._body("checkpoint"))
        self._append(sign_checkpoint(seal, start, self.head, self.key.sign))

    def seal_for_anybody(self) -> None:
        """Append a checkpoint that is signed under the neutral element, by nobody's key."""
        self.number += 1
        following = Ed25519PrivateKey.generate()
        seal = Seal(
            self.number, "interval", self.log, 60, following.public_key().public_bytes_raw()
        )
        start = cover(self.sequence + 1, self._body("checkpoint"))
        anybodys = (1).to_bytes(32, "little") + bytes(32)
        Ed25519PublicKey.from_public_bytes(encode(SMALL[0])).verify(anybodys, b"anything")
        self._append(sign_checkpoint(seal, start, self.head, lambda _data: anybodys))
        self.key = following


@pytest.mark.parametrize("name", [name for name in WEAK if len(WEAK[name]) == 32])
def test_checkpoint_that_names_a_weak_key_is_a_change(tmp_path: Path, name: str) -> None:
    """As the log's last record, too, before anything was signed with it."""
    chain = ForgedChain()
    chain.seal("start")
    chain.append("run.start")
    chain.seal_naming(WEAK[name], "start")
    found = assert_agreed(Log(name_files(chain.files), chain.public_key), tmp_path / "log")
    assert (found["integrity"], found["records"]) == ("changed", 2)


def test_signature_that_anybody_can_make_is_a_change(tmp_path: Path) -> None:
    chain = ForgedChain()
    chain.seal("start")
    chain.seal_naming(encode(SMALL[0]), "start")
    chain.append("access.approve")
    chain.seal_for_anybody()
    chain.close()
    found = assert_agreed(Log(name_files(chain.files), chain.public_key), tmp_path / "log")
    assert (found["integrity"], found["records"]) == ("changed", 1)


# --- numbers of checkpoints


@pytest.mark.parametrize("kept", [False, True], ids=["from the key", "from a kept checkpoint"])
@pytest.mark.parametrize(
    ("number", "good"), [(4, False), (2, False), (1, False), (0, False), (3, True)]
)
def test_checkpoints_are_counted_without_a_gap(
    tmp_path: Path, number: int, *, good: bool, kept: bool
) -> None:
    chain = make_chain(20, files=1, closed=False)
    chain.seal()
    place = len(chain.files[0])
    chain.append()
    chain.number = number - 1
    chain.seal()
    chain.seal()
    lines = chain.files[0][place:] if kept else chain.files[0]
    log = Log(name_files([lines]), None if kept else chain.public_key)
    log.kept = [chain.checkpoints[1]] if kept else []
    found = assert_agreed(log, tmp_path / "log")
    assert found["integrity"] == ("intact" if good else "changed")


def test_first_checkpoint_has_the_number_1(tmp_path: Path) -> None:
    for anchored in (True, False):
        chain = Chain(number=4)
        chain.seal("start")
        key = chain.public_key if anchored else None
        found = assert_agreed(Log(name_files(chain.files), key), tmp_path / "log")
        assert found["integrity"] == "changed"


# --- spellings


def put(chain: Chain, text: bytes) -> None:
    """Append a record with these fields, whatever they are; its hash fits."""
    body = b'"id":"x-1","time":"2026-11-25T09:00:00.000000Z","event":"key.rotate"'
    covered = cover(chain.sequence + 1, body + text)
    chain.head = hash_record(chain.head, covered)
    chain.sequence += 1
    chain.files[-1].append(encode_line(covered, chain.head))


DEEP = 31  # beside the line itself
SPELLINGS = {
    "nothing more": (b"", True),
    "0": (b',"count":0', True),
    "a negative number": (b',"details":{"since":-5}', True),
    "-0": (b',"count":-0', False),
    "0.0": (b',"count":0.0', False),
    "1.0": (b',"count":1.0', False),
    "1.5": (b',"count":1.5', False),
    "1e0": (b',"count":1e0', False),
    "1E0": (b',"count":1E0', False),
    "1e5": (b',"count":1e5', False),
    "01": (b',"count":01', False),
    "+1": (b',"count":+1', False),
    "0x1": (b',"count":0x1', False),
    "1.": (b',"count":1.', False),
    ".5": (b',"count":.5', False),
    "NaN": (b',"count":NaN', False),
    "Infinity": (b',"count":Infinity', False),
    "-Infinity": (b',"count":-Infinity', False),
    "the largest number": (b',"count":9223372036854775807', True),
    "one more": (b',"count":9223372036854775808', False),
    "the least number": (b',"count":-9223372036854775807', True),
    "one less": (b',"count":-9223372036854775808', False),
    "20 digits": (b',"count":18446744073709551616', False),
    "4,000 digits": (b',"count":' + b"9" * 4000, False),
    "5,000 digits": (b',"count":' + b"9" * 5000, False),
    "a number inside": (b',"details":{"items":[{"count":1.5}]}', False),
    "truth": (b',"details":{"lost":true,"since":false,"why":null}', True),
    "True": (b',"details":{"lost":True}', False),
    "a name twice": (b',"key":"a","key":"a"', False),
    "a name twice, inside": (b',"details":{"since":1,"since":1}', False),
    "a name twice, spelled otherwise": (b',"key":"a","ke\\u0079":"a"', False),
    "the event twice": (b',"event":"key.rotate"', False),
    "the number twice": (b',"seq":1', False),
    "a hash inside": (b',"details":{"hash":"00"}', True),
    "a second hash": (b',"hash":"' + b"0" * 64 + b'"', False),
    "a blank": (b', "key":"a"', False),
    "a blank inside": (b',"context":["a", "b"]', False),
    "a tab": (b',\t"key":"a"', False),
    "a comma too many": (b',"context":["a",]', False),
    "a comma too few": (b',"context":["a""b"]', False),
    "an open array": (b',"context":["a"', False),
    "a comment": (b',/**/"key":"a"', False),
    "single quotes": (b",'key':\"a\"", False),
    "an object closed twice": (b"}", False),
    "a second object": (b'}{"key":"a"', False),
    "the short escapes": (b',"key":"\\"\\\\\\b\\f\\n\\r\\t"', True),
    "a long escape for a short one": (b',"key":"\\u000a"', False),
    "an escaped letter": (b',"key":"\\u0061"', False),
    "an escaped slash": (b',"key":"\\/"', False),
    "a slash": (b',"key":"/"', True),
    "delete": (b',"key":"\\u007f"', True),
    "delete, raw": (b',"key":"\x7f"', False),
    "a control character, raw": (b',"key":"\x01"', False),
    "a control character": (b',"key":"\\u0001"', True),
    "an escape in capitals": (b',"key":"\\u00E4"', False),
    "an escape": (b',"key":"\\u00e4"', True),
    "UTF-8": (b',"key":"\xc3\xa4"', False),
    "Latin-1": (b',"key":"\xe4"', False),
    "a line separator": (b',"key":"\\u2028"', True),
    "a pair of surrogates": (b',"key":"\\ud83d\\ude00"', True),
    "a pair in capitals": (b',"key":"\\uD83D\\uDE00"', False),
    "half a pair, the first": (b',"key":"\\ud83d"', True),
    "half a pair, the second": (b',"key":"\\udcff"', True),
    "half a pair, turned round": (b',"key":"\\ude00\\ud83d"', True),
    "a short escape": (b',"key":"\\u00e"', False),
    "an unknown escape": (b',"key":"\\x41"', False),
    "a carriage return": (b',"key":"a\r"', False),
    "arrays as deep as may be": (b',"x":' + b"[" * DEEP + b"]" * DEEP, True),
    "arrays deeper": (b',"x":' + b"[" * (DEEP + 1) + b"]" * (DEEP + 1), False),
    "objects as deep as may be": (b',"x":' + b'{"x":' * DEEP + b"1" + b"}" * DEEP, True),
    "objects deeper": (b',"x":' + b'{"x":' * (DEEP + 1) + b"1" + b"}" * (DEEP + 1), False),
    "many brackets, not deep": (b',"x":[' + b"[]," * 50 + b"[{}]]", True),
    "brackets in a text": (b',"x":"' + b"[{" * 200 + b'"', True),
    "very deep": (b',"x":' + b"[" * 900 + b"]" * 900, False),
    "deeper than Python goes": (b',"x":' + b"[" * 9000 + b"]" * 9000, False),
    "an unknown field": (b',"field_of_a_later_release":{"x":[1]}', True),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_line_has_one_spelling(tmp_path: Path, name: str) -> None:
    text, good = SPELLINGS[name]
    chain = make_chain(5, files=1, closed=False)
    put(chain, text)
    chain.close()
    found = assert_agreed(Log(name_files(chain.files), chain.public_key), tmp_path / "log")
    assert found["integrity"] == ("intact" if good else "changed")
    assert found["completeness"] == ("closed" if good else "unknown")


@pytest.mark.parametrize(("length", "good"), [(33 * 1024, True), (33 * 1024 + 1, False)])
def test_longest_line_does_not_count_its_end(tmp_path: Path, length: int, *, good: bool) -> None:
    chain = make_chain(5, files=1, closed=False)
    put(chain, b',"x":""')
    spare = length - (len(chain.files[0].pop()) - 1)
    chain = make_chain(5, files=1, closed=False)
    put(chain, b',"x":"%b"' % (b"x" * spare))
    assert len(chain.files[0][-1]) == length + 1
    chain.close()
    found = assert_agreed(Log(name_files(chain.files), chain.public_key), tmp_path / "log")
    assert found["integrity"] == ("intact" if good else "changed")


FACTS: list[tuple[str, bytes, bool]] = [
    ("id", b"a" * 100, True),
    ("id", b"a" * 101, False),
    ("id", b"\\u00e4" * 100, True),
    ("id", b"\\ud83d\\ude00" * 100, True),
    ("id", b"\\ud83d\\ude00" * 101, False),
    ("id", b"", False),
    ("time", b"2028-02-29T23:59:59.999999Z", True),
    ("time", b"2026-02-29T23:59:59.999999Z", False),
    ("time", b"2026-13-01T00:00:00.000000Z", False),
    ("time", b"2026-01-01T24:00:00.000000Z", False),
    ("time", b"2026-01-01T23:59:60.000000Z", False),
    ("time", b"0000-01-01T00:00:00.000000Z", False),
    ("time", b"2026-01-01T00:00:00Z", False),
    ("event", b"a", True),
    ("event", b"a.b_c.d9", True),
    ("event", b"a.", False),
    ("event", b".a", False),
    ("event", b"A", False),
    ("event", b"a-b", False),
    ("event", b"", False),
]


@pytest.mark.parametrize(("name", "value", "good"), FACTS)
def test_what_every_record_says_has_its_form(
    tmp_path: Path, name: str, value: bytes, *, good: bool
) -> None:
    chain = make_chain(5, files=1, closed=False)
    facts = {"id": b"x", "time": b"2026-11-25T09:00:00.000000Z", "event": b"key.rotate"}
    facts[name] = value
    body = b",".join(b'"%b":"%b"' % (field.encode(), text) for field, text in facts.items())
    covered = cover(chain.sequence + 1, body)
    chain.head = hash_record(chain.head, covered)
    chain.sequence += 1
    chain.files[-1].append(encode_line(covered, chain.head))
    chain.close()
    found = assert_agreed(Log(name_files(chain.files), chain.public_key), tmp_path / "log")
    assert found["integrity"] == ("intact" if good else "changed")


# --- checkpoints that say something else, and are signed


def seal_saying(change: dict[bytes, bytes]) -> Chain:
    """Return a log whose last record is a checkpoint with other bytes, signed."""
    chain = make_chain(5, files=1, closed=False)
    number, key = chain.number + 1, chain.key
    chain.seal()
    line = chain.files[0].pop()
    start = line[: line.rindex(b',"signature":"')]
    for old, new in change.items():
        assert re.search(old, start)
        start = re.sub(old, new, start, count=1)
    previous = bytes.fromhex(chain.files[0][-1][-67:-3].decode())
    signature = key.sign(b"keyside/v1/audit-checkpoint\x00" + previous + start)
    covered = b'%b,"signature":"%b"}' % (start, signature.hex().encode())
    chain.files[0].append(encode_line(covered, hash_record(previous, covered)))
    assert number > 1
    return chain


STORE = b'"store_id":"%b","store_generation":' % (b"ab" * 16)
NO_STORE = rb'"store_id":null,"store_generation":null'
SEALS: dict[str, tuple[dict[bytes, bytes], bool]] = {
    "as it is": ({}, True),
    "a store": ({NO_STORE: STORE + b"7"}, True),
    "a store of generation 0": ({NO_STORE: STORE + b"0"}, True),
    "a store without a generation": ({NO_STORE: STORE + b"null"}, False),
    "a negative generation": ({NO_STORE: STORE + b"-1"}, False),
    "a generation without a store": ({rb'generation":null': b'generation":1'}, False),
    "a store in capitals": ({NO_STORE: STORE.replace(b"ab", b"AB") + b"7"}, False),
    "another kind": ({rb'"kind":"interval"': b'"kind":"often"'}, False),
    "a kind that is a list": ({rb'"kind":"interval"': b'"kind":["interval"]'}, False),
    "no interval": ({rb'"every_s":60': b'"every_s":0'}, False),
    "an interval of text": ({rb'"every_s":60': b'"every_s":"60"'}, False),
    "a number of truth": ({rb'"number":2': b'"number":true'}, False),
    "another log": ({rb'"log":"[0-9a-f]{16}': b'"log":"' + b"0" * 16}, False),
    "a short log": ({rb'"log":"[0-9a-f]': b'"log":"'}, False),
    "a key in capitals": ({rb'"next_key":"[0-9a-f]{64}': b'"next_key":"' + b"AB" * 32}, False),
    "a detail more": ({rb'"every_s":60': b'"every_s":60,"since":1'}, False),
    "a detail less": ({rb'"every_s":60,': b""}, False),
    "details in another order": (
        {rb'"number":2,"kind":"interval"': b'"kind":"interval","number":2'},
        False,
    ),
    "a field more": ({rb',"details"': b',"count":1,"details"'}, False),
    "fields in another order": (
        {rb'("time":"[^"]*"),("event":"checkpoint")': rb"\2,\1"},
        False,
    ),
}


@pytest.mark.parametrize("name", SEALS)
def test_checkpoint_has_one_form(tmp_path: Path, name: str) -> None:
    change, good = SEALS[name]
    chain = seal_saying(change)
    found = assert_agreed(Log(name_files(chain.files), chain.public_key), tmp_path / "log")
    assert found["integrity"] == ("intact" if good else "changed")


LINKS: dict[str, tuple[Any, Any, bool]] = {
    "as it is": (None, None, True),
    "a hash in capitals": (str.upper, None, False),
    "a hash with blanks": (lambda it: f"{it[:2]} {it[2:]}", None, False),
    "a short hash": (lambda it: it[2:], None, False),
    "no text": (lambda _it: 1, None, False),
    "another number": (None, lambda it: it + 1, False),
    "a number of text": (None, str, False),
}


@pytest.mark.parametrize("name", LINKS)
def test_newer_files_alone_go_on_from_what_their_first_line_says(tmp_path: Path, name: str) -> None:
    change_hash, change_number, good = LINKS[name]
    chain = make_chain(50, files=1, closed=False)
    former, number = chain.head.hex(), chain.sequence
    chain.files.append([])
    details = {
        "previous_hash": change_hash(former) if change_hash else former,
        "previous_sequence": change_number(number) if change_number else number,
    }
    chain.append("log.continued", details=details)
    chain.append()
    chain.seal()
    found = assert_agreed(Log(name_files(chain.files[1:])), tmp_path / "log")
    assert found["integrity"] == ("intact" if good else "changed")
    assert not found["authenticated"]
