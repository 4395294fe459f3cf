"""docs/cli.md's synopsis and its drawing of versions are what the command has and draws."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import click
from support.pages import Block, find_blocks, replace_block
from tests.unit.test_cli_timeline import DAY, NOW, VERSIONS, plain, usage

from keyside.cli.commands import keyside
from keyside.cli.timeline import Canvas, draw
from keyside.facts import Key, RolloverPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = "docs/cli.md"


def block(opening: str) -> Block:
    (found,) = [one for one in find_blocks(PAGE) if one.opening.startswith(opening)]
    return found


def leaves(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_the_synopsis_has_every_command_and_option() -> None:
    """Nothing that isn't there is shown, and nothing that is there is left out."""
    text = re.sub(r"\n  +", " ", block("keyside [--socket").text)
    lines = text.splitlines()
    for path, command in leaves(keyside, "keyside"):
        mine = [line for line in lines if re.match(rf"{path}(?![\w-])", line)]
        assert mine, f"{path} is missing"
        shown = set(re.findall(r"(?<!\S)\[?(--?[a-z][\w-]*)", " ".join(mine)))
        options = [one for one in command.params if isinstance(one, click.Option)]
        spellings = {spelling: one for one in options for spelling in one.opts}
        assert shown <= spellings.keys() | {"--help"}, path
        hidden = {one.name for one in options if one.hidden}
        named = {spellings[spelling].name for spelling in shown - {"--help"}} | hidden
        assert {one.name for one in options} - named <= {"help"} | FILTERS, path


# What [FILTER]… stands for.
FILTERS = {"key", "account", "uid", "access_id", "event", "outcome", "after", "before"}


def test_the_time_line_is_what_keys_show_draws() -> None:
    """It must be there to the letter; make pages writes it."""
    counts = {5: usage(0, None, None), 2: usage(8_000, NOW - 181 * DAY, NOW - 126 * DAY)}
    counts[1] = usage(120, NOW - 271 * DAY, NOW - 193 * DAY)
    versions = [
        dataclasses.replace(one, usage=counts.get(one.number, one.usage)) for one in VERSIONS
    ]
    key = Key(
        "mail-credentials",
        4,
        5,
        NOW - 360 * DAY,
        NOW - 90 * DAY,
        "AES-256-GCM",
        5,
        RolloverPolicy(90 * DAY, None, None, timedelta(minutes=1)),
        NOW + timedelta(seconds=40),
    )
    describe = importlib.import_module("keyside.cli.show")._describe
    lines = [*describe(key, NOW), "", *draw(versions, Canvas(80, unicode=False, now=NOW))]
    text = "\n".join([*plain(lines), ""])
    shown = block("mail-credentials: version 4")
    if os.environ.get("KEYSIDE_UPDATE_PAGES") == "1" and shown.text != text:
        replace_block(shown, text)
        return
    assert shown.text == text
