"""Reading a password: from the terminal, or from standard input where somebody says so.

Never from an argument or the environment, which others can read, and never by a prompt that
nobody is there to answer.
"""

from __future__ import annotations

import os
import sys
import termios
from typing import Final

import click

from keyside._standard_streams import is_input_closed
from keyside.cli import exits
from keyside.cli.exits import CommandError

_MAX_BYTES: Final = 1024
_TERMINAL: Final = "/dev/tty"
_LOCAL_FLAGS: Final = 3  # of what termios.tcgetattr returns

password_option = click.option(
    "--password-stdin",
    is_flag=True,
    help="Read your password from the first line of standard input.",
)


def require_password_source(*, from_stdin: bool) -> None:
    """Refuse to begin what needs a password where none can be read without being seen.

    Args:
        from_stdin: ``--password-stdin`` was given.

    Raises:
        click.UsageError: Nobody can be asked, or what is typed would be shown.
    """
    terminal = sys.stdin.isatty()
    if from_stdin and terminal:
        raise click.UsageError(
            "standard input is the terminal, which would show the password; "
            "leave --password-stdin out to be asked for it"
        )
    if not from_stdin and not terminal:
        raise click.UsageError(
            "standard input is no terminal, so nobody can be asked for a password; "
            "give --password-stdin and the password as its first line"
        )
    if from_stdin and is_input_closed():
        raise click.UsageError("standard input is closed, so there is no password on it")


def read_password(prompt: str, *, from_stdin: bool) -> bytes:
    """Return the password, without its line's end.

    Args:
        prompt: What is asked, ending with a colon.
        from_stdin: Take the first line of standard input, and ask nobody.

    Raises:
        click.UsageError: As for ``require_password_source``.
        CommandError: There is none, or none that an account could have.
        click.Abort: The terminal was closed.
    """
    require_password_source(from_stdin=from_stdin)
    line = _read_from_stdin() if from_stdin else _read_from_terminal(prompt)
    password = line.removesuffix(b"\n")
    if not 1 <= len(password) <= _MAX_BYTES or b"\0" in password:
        raise CommandError(
            f"a password is 1 to {_MAX_BYTES:,} bytes, none of them zero", exits.USAGE
        )
    return password


def _read_from_stdin() -> bytes:
    try:
        return sys.stdin.buffer.readline(_MAX_BYTES + 2)
    except OSError as error:
        raise CommandError(
            f"can't read the password from standard input: {error.strerror}", exits.IO_ERROR
        ) from None


def _read_from_terminal(prompt: str) -> bytes:
    try:
        terminal = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise CommandError(
            "there is no terminal to read the password from",
            exits.USAGE,
            "give --password-stdin and the password as the first line of standard input",
        ) from None
    try:
        return _read_unseen(terminal, prompt)
    finally:
        os.close(terminal)


def _read_unseen(terminal: int, prompt: str) -> bytes:
    before = termios.tcgetattr(terminal)
    unseen = list(before)
    unseen[_LOCAL_FLAGS] &= ~termios.ECHO
    try:
        # Flushed: what was typed before the prompt was seen is not the password.
        termios.tcsetattr(terminal, termios.TCSAFLUSH, unseen)
        os.write(terminal, prompt.encode() + b" ")
        line = b""
        while not line.endswith(b"\n") and len(line) <= _MAX_BYTES:
            read = os.read(terminal, _MAX_BYTES)
            if not read:
                raise click.Abort
            line += read
        return line
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        os.write(terminal, b"\n")
