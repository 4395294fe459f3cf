"""Which services answer for a database, and when the asking stops."""

from __future__ import annotations

import pytest

from keyside_sidecar.peer.nsswitch import Service, Status, parse_nsswitch

SUCCESS, NOTFOUND, UNAVAIL, TRYAGAIN = (
    Status.SUCCESS,
    Status.NOTFOUND,
    Status.UNAVAIL,
    Status.TRYAGAIN,
)


def test_services_are_asked_in_their_order() -> None:
    text = (
        "# a comment\n\n  passwd:  files sss systemd # more\ngroup:files\ninitgroups:\nnonsense\n"
    )
    assert parse_nsswitch(text) == {
        "passwd": (Service("files"), Service("sss"), Service("systemd")),
        "group": (Service("files"),),
        "initgroups": (),
    }


def test_the_last_line_of_a_database_counts() -> None:
    assert parse_nsswitch("group: sss\ngroup: files") == {"group": (Service("files"),)}


@pytest.mark.parametrize(
    ("criteria", "stops_at"),
    [
        ("[NOTFOUND=return]", {SUCCESS, NOTFOUND}),
        ("[ notfound = RETURN  unavail=return ]", {SUCCESS, NOTFOUND, UNAVAIL}),
        ("[SUCCESS=merge]", set()),
        ("[SUCCESS=continue]", set()),
        ("[!UNAVAIL=return]", {SUCCESS, NOTFOUND, TRYAGAIN}),
        ("[!SUCCESS=continue]", {SUCCESS}),
        ("[!NOTFOUND=continue]", set()),
    ],
)
def test_criteria_say_when_the_asking_stops(criteria: str, stops_at: set[Status]) -> None:
    for text in (f"group: sss {criteria} files", f"group: sss{criteria}files"):
        assert parse_nsswitch(text) == {
            "group": (Service("sss", frozenset(stops_at)), Service("files"))
        }


@pytest.mark.parametrize(
    "services",
    [
        "[NOTFOUND=return]",
        "files [NOTFOUND=return",
        "files []",
        "files [NOTFOUND]",
        "files [NOTFOUND=stop]",
        "files [MAYBE=return]",
        "files [NOTFOUND=returnUNAVAIL=return]",
        "files ] sss",
        "../../tmp/evil",
        "files [NOTFOUND=return][UNAVAIL=return]",
    ],
)
def test_what_glibc_does_not_understand_is_an_error(services: str) -> None:
    with pytest.raises(ValueError, match="nsswitch"):
        parse_nsswitch(f"group: {services}")
