"""``completion``: the command that prints a shell's completion script, for both programs."""

from __future__ import annotations

from typing import Any, Final

import click

SHELLS: Final = ("bash", "zsh", "fish")


def add_completion(program: str, group: click.Group) -> None:
    """Give a program the command ``completion``.

    Args:
        program: The program's name.
        group: The program.
    """

    @group.command(help=_HELP.format(program=program))
    @click.argument("shell", type=click.Choice(SHELLS))
    def completion(shell: str) -> None:
        from click.shell_completion import ShellComplete, get_completion_class

        variable = f"_{program.upper()}_COMPLETE"
        kind: Any = get_completion_class(shell)
        # Bash's own would run bash for its version, which complains where the directory is gone.
        click.echo(ShellComplete.source(kind(group, {}, program, variable)))


_HELP: Final = """Print the completion script for a shell.

For bash: eval "$({program} completion bash)"
"""
