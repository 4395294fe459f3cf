"""``[elevation]`` and ``[people]``: what is refused at load, what is resolved, what is bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.unit.access_scene import HOUR_US

from keyside_sidecar.access.credential import (
    hash_credential,
    make_access_id,
    make_credential,
    parse_access_id,
)
from keyside_sidecar.access.elevation_policy import PolicyLevel
from keyside_sidecar.access.requests import VersionRange, merge_ranges
from keyside_sidecar.access.resolve import resolve_policy
from keyside_sidecar.config import Config, ElevationSettings, LevelSettings, parse_config
from keyside_sidecar.errors import AccessRefused, BadRequest, ConfigError

if TYPE_CHECKING:
    from keyside_sidecar.access.policy import Policy

BASE: Final = """\
[sidecar]
socket = "/s"
[store]
url = "sqlite:////d"
[root_key]
provider = "file"
path = "/k"
[audit]
path = "/a.jsonl"
[operators]
groups = ["operators"]
[keys.mail]
allow_groups = ["mail"]
[keys.bank]
allow_users = [7]
"""
ELEVATION: Final = """\
[elevation]
requesters = ["admins"]
[[elevation.levels]]
group = "managers"
approvals = 1
[[elevation.levels]]
group = "legal"
approvals = 2
[people]
anna = ["anna", "anna-admin"]
"""
GROUPS = {"operators": 10, "mail": 20, "admins": 100, "managers": 200, "legal": 300, "bosses": 200}
USERS = {"anna": 1001, "anna-admin": 1101, "ann": 1001, "ben": 1002}


class Directory:
    """A name service with a few names."""

    def gid_of(self, name: str) -> int | None:
        return GROUPS.get(name)

    def uid_of(self, name: str) -> int | None:
        return USERS.get(name)


def parse(text: str) -> Config:
    return parse_config(text.encode(), Path("keyside.toml"))


def resolve(text: str) -> Policy:
    return resolve_policy(parse(text), Directory())


def test_without_the_table_nobody_can_get_access() -> None:
    config = parse(BASE)
    assert (config.elevation, dict(config.people)) == (None, {})
    assert resolve(BASE).elevation is None


def test_every_setting_is_read() -> None:
    text = BASE + ELEVATION.replace(
        "[[elevation.levels]]",
        'pam_service = "keyside-people"\npam_timeout = "3s"\nmax_duration = "90m"\n'
        'request_ttl = "2h"\nmax_open_requests = 3\nrollover_after_grant = true\n'
        'shared_ids = true\nnotify = ["/bin/tell", "--all"]\n[[elevation.levels]]',
        1,
    )
    config = parse(text)
    assert config.warnings == ()
    assert config.elevation == ElevationSettings(
        requesters=("admins",),
        levels=(LevelSettings("managers", 1), LevelSettings("legal", 2)),
        pam_service="keyside-people",
        pam_timeout_s=3.0,
        max_duration_s=5400.0,
        request_ttl_s=7200.0,
        max_open_requests=3,
        rollover_after_grant=True,
        shared_ids=True,
        notify=("/bin/tell", "--all"),
    )
    assert dict(config.people) == {"anna": ("anna", "anna-admin")}
    policy = resolve(text).elevation
    assert policy is not None
    assert policy.requester_gids == {100}
    assert policy.levels == (PolicyLevel(200, "managers", 1), PolicyLevel(300, "legal", 2))
    assert dict(policy.people) == {1001: "anna", 1101: "anna"}
    assert (policy.max_duration_us, policy.request_ttl_us) == (3 * HOUR_US // 2, 2 * HOUR_US)
    assert (policy.max_open_requests, policy.shared_ids, policy.rollover_after_grant) == (
        3,
        True,
        True,
    )
    assert policy.digests.keys() == {"mail", "bank"}
    assert policy.person_of(1001) == policy.person_of(1101) == "anna"
    assert policy.person_of(1002) == 1002


# What stands in place of what, and the problem that it is.
WRONG: Final = [
    ("approvals = 1", "approvals = 0", "line 20, [[elevation.levels]] approvals: must be a whole"),
    ("approvals = 2", "approvals = 0", "line 23, [[elevation.levels]] approvals: must be a whole"),
    ("approvals = 1", "approvals = true", "approvals: must be a whole number from 1 to 20"),
    ("approvals = 1\n", "", 'line 18, [[elevation.levels]]: needs the setting "approvals"'),
    ("approvals = 1", "approval = 1", 'unknown setting; did you mean "approvals"?'),
    ('group = "managers"\n', "", '[[elevation.levels]]: needs the setting "group"'),
    ('group = "legal"', 'group = "leagl"', "[[elevation.levels]] group: there is no group 'leagl'"),
    ('group = "legal"', "group = 65534", "can't be named"),
    ('requesters = ["admins"]\n', "", 'line 16, [elevation]: needs the setting "requesters"'),
    ('["admins"]', "[]", "line 17, [elevation] requesters: must name a group"),
    ('["admins"]', '["amdins"]', "line 17, [elevation] requesters: there is no group 'amdins'"),
    ('["admins"]', '"admins"', "requesters: must be a list"),
    ('["admins"]', '["admins"]\npam_service = "../x"', "must be the name of a file in /etc/pam.d"),
    ('["admins"]', '["admins"]\nmax_duration = "8d"', "must be from 1m to 7d"),
    ('["admins"]', '["admins"]\nrequest_ttl = "1s"', "must be from 1m to 30d"),
    ('["admins"]', '["admins"]\nmax_open_requests = 0', "must be a whole number from 1 to 100"),
    ('["admins"]', '["admins"]\nnotify = "tell"', "must be a list of texts"),
    ('["admins"]', '["admins"]\nshared_ids = 1', "must be true or false"),
    ('["admins"]', '["admins"]\nmembership_ttl = "5s"', "it belongs in [identity]"),
    ('["admins"]', '["admins"]\napprovals = 1', "it belongs in [elevation.levels]"),
    ('"anna-admin"]', '"anne"]', "line 25, [people] anna: there is no user 'anne'"),
    ('["anna", "anna-admin"]', "[]", "[people] anna: must name the person's accounts"),
    ('["anna", "anna-admin"]', '["anna"]\nben = ["anna"]', "is an account of 'anna' already"),
    ('["anna", "anna-admin"]', '["anna"]\nben = ["ann"]', "is an account of 'anna' already"),
    ('["anna", "anna-admin"]', '["anna"]\nben = [1001]', "is an account of 'anna' already"),
    ('["anna", "anna-admin"]', '["anna", "anna"]', "is given twice"),
    ("[store]", '[identity]\nmembership = "process"\n[store]', "[elevation]: needs membership"),
]


@pytest.mark.parametrize(("old", "new", "problem"), WRONG)
def test_what_is_wrong_is_refused_at_load_with_its_place(old: str, new: str, problem: str) -> None:
    text = BASE.replace('[operators]\ngroups = ["operators"]', "[operators]\nusers = [9]")
    text += ELEVATION
    assert text.count(old) >= 1
    with pytest.raises(ConfigError) as caught:
        resolve(text.replace(old, new, 1))
    assert any(problem in str(one) for one in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("levels", ["", "levels = []\n"])
def test_an_empty_list_of_levels_is_refused(levels: str) -> None:
    """Nobody would have to approve."""
    with pytest.raises(ConfigError, match=r"needs at least one \[\[elevation.levels\]\]"):
        parse(BASE + '[elevation]\nrequesters = ["admins"]\n' + levels)


def test_levels_that_are_no_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be tables, each under \[\[elevation.levels\]\]"):
        parse(BASE + '[elevation]\nrequesters = ["admins"]\nlevels = ["managers"]\n')


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (ELEVATION.replace('["admins"]', '["admins", "operators"]'), "operators can't ask"),
        (ELEVATION.replace('["admins"]', '["admins", "legal"]'), "approve one another's"),
        ('[people]\nanna = ["anna"]\n', "no effect without [elevation]"),
    ],
)
def test_what_is_legal_but_doubtful_is_warned_of(text: str, warning: str) -> None:
    assert any(warning in one for one in parse(BASE + text).warnings)


def digests(text: str) -> dict[str, bytes]:
    policy = resolve(text).elevation
    assert policy is not None
    return dict(policy.digests)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("approvals = 2", "approvals = 1"),
        ('group = "managers"', 'group = "bosses"'),  # of the same number
        ('requesters = ["admins"]', 'requesters = ["admins", "legal"]'),
        ('requesters = ["admins"]', 'requesters = ["admins"]\nmax_duration = "5h"'),
        ('requesters = ["admins"]', 'requesters = ["admins"]\nnotify = ["/bin/tell"]'),
        ('anna = ["anna", "anna-admin"]', 'anna = ["anna"]'),
    ],
)
def test_a_change_of_elevation_or_people_changes_what_every_request_is_bound_to(
    old: str, new: str
) -> None:
    before, after = digests(BASE + ELEVATION), digests(BASE + ELEVATION.replace(old, new))
    assert all(before[key] != after[key] for key in ("mail", "bank"))


def test_a_change_of_a_keys_table_changes_what_its_requests_are_bound_to() -> None:
    """And those of no other key."""
    before = digests(BASE + ELEVATION)
    for new in ('["mail", "legal"]', '["mail"]\nrotate_every = "30d"'):
        after = digests((BASE + ELEVATION).replace('["mail"]', new))
        assert before["mail"] != after["mail"]
        assert before["bank"] == after["bank"]
    assert before["mail"] != before["bank"]
    assert {len(digest) for digest in before.values()} == {32}


def test_another_number_behind_a_name_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(BASE + ELEVATION)
    monkeypatch.setitem(GROUPS, "legal", 301)
    assert digests(BASE + ELEVATION)["mail"] != before["mail"]


def test_what_changes_nothing_leaves_it_as_it_is() -> None:
    """Comments, the order of tables, a default written out, and other tables."""
    before = digests(BASE + ELEVATION)
    written_out = ELEVATION.replace('["admins"]', '["admins"]\nrequest_ttl = "24h"  # a day')
    assert digests(BASE + written_out) == before
    assert digests(ELEVATION + BASE + "[auditors]\nusers = [5]\n") == before


def test_ids_and_credentials_have_one_form() -> None:
    access_id = make_access_id(bytes(range(8)))
    assert access_id == "ar-aaaqeayeaudab"[:15]
    assert parse_access_id(access_id) == access_id
    credential = make_credential(bytes(range(32)))
    assert len(credential) == 56
    assert len(hash_credential(credential)) == 32


@pytest.mark.parametrize(
    "text", ["", "ar-", "ar-AAAQEAYEAUDA", "ar-aaaqeayeauda ", "ar-aaaqeayeaud1", "aaaqeayeauda"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_access_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ksc-",
        "ksc-" + "a" * 51,
        "ksc-" + "a" * 53,
        "ksc-" + "a" * 51 + "b",  # bits that stand for nothing are set
        "ksc-" + "A" * 52,
        "ksc-" + "1" * 52,
        "KSC-" + "a" * 52,
        "ksc-" + "a" * 52 + "\n",
    ],
)
def test_what_is_no_credential_is_refused_like_one_that_opens_nothing(text: str) -> None:
    with pytest.raises(AccessRefused, match="CREDENTIAL_REFUSED") as caught:
        hash_credential(text)
    assert "ksc-" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranges", "merged"),
    [
        ([], []),
        ([(1, 1), (2, 2)], [(1, 2)]),
        ([(5, 9), (1, 3)], [(1, 3), (5, 9)]),
        ([(1, 9), (3, 4), (10, 10)], [(1, 10)]),
        ([(4, 4), (4, 4)], [(4, 4)]),
    ],
)
def test_ranges_are_kept_in_one_form(
    ranges: list[tuple[int, int]], merged: list[tuple[int, int]]
) -> None:
    found = merge_ranges(VersionRange(*one) for one in ranges)
    assert [(one.first, one.last) for one in found] == merged
