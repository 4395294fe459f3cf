"""Whether a process belongs to a person's login (I4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.peer.login import UNREADABLE, Login, person_refusal, read_login

if TYPE_CHECKING:
    from pathlib import Path

    from keyside_sidecar.config.settings import PersonLogins

SERVICE = 70001
LOGIN = Reason.PEER_PERSON_LOGIN
UNSEEN = Reason.PEER_LOGIN_UNREADABLE


@pytest.mark.parametrize(
    ("login_uid", "session_id", "readable", "refuse", "allow_own"),
    [
        pytest.param(None, None, True, None, None, id="service"),
        pytest.param(1000, 3, True, LOGIN, LOGIN, id="person"),
        pytest.param(1000, None, True, LOGIN, LOGIN, id="login uid alone"),
        pytest.param(None, 3, True, LOGIN, LOGIN, id="session alone"),
        pytest.param(0, 3, True, LOGIN, LOGIN, id="root's login"),
        pytest.param(SERVICE, 3, True, LOGIN, None, id="own login"),
        pytest.param(SERVICE, None, True, LOGIN, None, id="own login uid alone"),
        pytest.param(None, None, False, UNSEEN, UNSEEN, id="unreadable"),
        pytest.param(SERVICE, 3, False, UNSEEN, UNSEEN, id="unreadable, whatever else is said"),
    ],
)
def test_i4_who_belongs_to_a_persons_login(
    login_uid: int | None,
    session_id: int | None,
    *,
    readable: bool,
    refuse: Reason | None,
    allow_own: Reason | None,
) -> None:
    expected: dict[PersonLogins, Reason | None] = {
        "refuse": refuse,
        "allow-own": allow_own,
        "off": None,
    }
    for mode, reason in expected.items():
        assert (
            person_refusal(login_uid, session_id, readable=readable, account_uid=SERVICE, mode=mode)
            is reason
        )


def test_i4_roots_own_login_uid_is_told_from_unset() -> None:
    """0 is a login uid; it must not pass for "none"."""
    assert person_refusal(0, None, readable=True, account_uid=0, mode="refuse") is LOGIN
    assert person_refusal(0, None, readable=True, account_uid=0, mode="allow-own") is None


def write(proc: Path, login_uid: bytes | None, session_id: bytes | None) -> None:
    (proc / "7").mkdir()
    for name, text in (("loginuid", login_uid), ("sessionid", session_id)):
        if text is not None:
            (proc / "7" / name).write_bytes(text)


@pytest.mark.parametrize(
    ("login_uid", "session_id", "expected"),
    [
        (b"4294967295", b"4294967295", Login(None, None, readable=True)),
        (b"1000", b"3", Login(1000, 3, readable=True)),
        (b"0", b"1", Login(0, 1, readable=True)),
        (b"1000\n", b"3\n", Login(1000, 3, readable=True)),
        (b"4294967295", b"3", Login(None, 3, readable=True)),
        (b"4294967294", b"4294967295", Login(4294967294, None, readable=True)),
    ],
)
def test_i4_what_the_kernel_writes_is_read(
    tmp_path: Path, login_uid: bytes, session_id: bytes, expected: Login
) -> None:
    write(tmp_path, login_uid, session_id)
    assert read_login(7, tmp_path) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(None, b"", b"\n", b"-1", b"-1\n", b"+1", b" 1", b"1 ", b"1\n\n", b"0x10", b"1_0"),
        *(b"01", b"4294967296", b"99999999999", "\u0661".encode(), b"1\x00"),
    ],
)
def test_i4_anything_else_is_unreadable_and_never_unset(tmp_path: Path, text: bytes | None) -> None:
    write(tmp_path, text, b"4294967295")
    assert read_login(7, tmp_path) == UNREADABLE
    (tmp_path / "7" / "sessionid").unlink()
    (tmp_path / "7" / "loginuid").write_bytes(b"4294967295")
    if text is not None:
        (tmp_path / "7" / "sessionid").write_bytes(text)
    assert read_login(7, tmp_path) == UNREADABLE
