"""The options that commands for bytes share: where these come from and go to, and the context."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside.cli.files import Output

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def _parse_context(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    context: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter("write NAME=VALUE; the value may be empty, the name not")
        if name in context:
            raise click.BadParameter(f"the name {name!r} is given twice")
        try:
            pair.encode()
        except UnicodeEncodeError:
            raise click.BadParameter("it is not valid UTF-8") from None
        context[name] = value
    return context


def stream_options(function: _Function) -> _Function:
    """Add -i and -o."""
    for option in (
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write here, whole or not at all; - is standard output, even a terminal.  "
            "[default: standard output]",
        ),
        click.option(
            "-i", "--input", "source", metavar="FILE", help="Read this.  [default: standard input]"
        ),
    ):
        function = option(function)
    return function


context_option = functools.partial(
    click.option,
    "-c",
    "--context",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parse_context,
)


def refuse_terminal(target: Output) -> None:
    """Refuse to write binary to a terminal that nobody asked to be written to.

    Raises:
        click.UsageError: It is one.
    """
    if target.is_guarded_terminal:
        raise click.UsageError(
            "the output is binary and would go to the terminal; use -o FILE, or -o - to insist"
        )
