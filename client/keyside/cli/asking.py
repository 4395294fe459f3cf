"""Asking before something that can't be taken back at once, or that others will notice."""

from __future__ import annotations

import sys

import click

from keyside.cli import exits
from keyside.cli.exits import CommandError


def require_somebody_to_ask(*, yes: bool) -> None:
    """Refuse to begin what would have to be asked where nobody can be.

    Args:
        yes: It was agreed to on the command line.

    Raises:
        click.UsageError: Standard input is no terminal, and ``yes`` was not given.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("standard input is no terminal, so nobody can be asked; give --yes")


def require_consent(explanation: str, question: str, *, yes: bool) -> None:
    """Explain on standard error, and go on only if somebody agrees.

    Args:
        explanation: What is about to happen.
        question: To be answered with y or n.
        yes: It was agreed to on the command line.

    Raises:
        CommandError: The answer was no.
        click.Abort: The terminal was closed.
    """
    click.echo(explanation, err=True)
    if yes:
        return
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer:
        click.echo(err=True)
        raise click.Abort
    if answer.strip().lower() not in {"y", "yes"}:
        raise CommandError("nothing was changed", exits.DECLINED)
