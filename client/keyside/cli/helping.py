"""Help as people read it: whole summaries at any width, and examples with every command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_HERE: Final = "{} "


class Group(click.Group):
    """A group whose help shows each command's whole summary, on as many lines as it takes."""

    group_class = type

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their summaries."""
        rows = [
            (name, summarise(command))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def summarise(command: click.Command) -> str:
    """Return the first paragraph of a command's help on one line."""
    paragraph = (command.short_help or command.help or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def walk_commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command below a group, groups too, with its path: ``keys rotate``."""
    for name in sorted(group.commands):
        command = group.commands[name]
        path = f"{prefix} {name}".strip()
        yield path, command
        if isinstance(command, click.Group):
            yield from walk_commands(command, path)


def add_examples(program: str, group: click.Group, examples: Mapping[str, Sequence[str]]) -> None:
    """Put examples below the help of commands.

    Args:
        program: The program's name.
        group: The program.
        examples: By a command's path (``""`` for the program itself), each without the program's
            name, which comes in front, or in the place of ``{}``.
    """
    commands: dict[str, Any] = {"": group, **dict(walk_commands(group))}
    for path, lines in examples.items():
        shown = []
        for line in lines:
            before, mark, rest = line.rpartition(_HERE)
            shown.append(f"  {before}{program} {rest}" if mark else f"  {program} {line}")
        # \b: click leaves these lines as they are.
        commands[path].epilog = "\n".join(("\b", "Examples:", *shown))
