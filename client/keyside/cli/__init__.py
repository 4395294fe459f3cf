"""The ``keyside`` command; docs/cli.md describes it for its users.

Nothing here imports gRPC before a command makes a call, so that ``--help`` and completion are
quick.
"""

from __future__ import annotations

import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from keyside._standard_streams import OutputLost, prepare_streams, settle_streams
from keyside.cli import exits
from keyside.cli.text import escape
from keyside.errors import KeysideError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with a code of sysexits(3); see ``keyside.cli.exits``."""
    prepare_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_by_signal)
    sys.exit(settle_streams(_run(arguments), "keyside"))


def _run(arguments: Sequence[str] | None) -> int:
    import click

    from keyside.cli.commands import keyside

    try:
        answer = keyside.main(
            args=None if arguments is None else list(arguments),
            prog_name="keyside",
            standalone_mode=False,
        )
        code = answer if isinstance(answer, int) else exits.OK
    except exits.CommandError as error:
        _complain(str(error), error.remedy)
        code = error.exit_code
    except KeysideError as error:
        _complain(str(error), error.remedy, error.request_id)
        code = exits.code_of(error)
    except click.ClickException as error:
        error.show()
        code = exits.USAGE
    except (KeyboardInterrupt, click.Abort):
        code = exits.INTERRUPTED
    except OutputLost:
        code = exits.OK  # until it is settled
    except BrokenPipeError:
        code = exits.BROKEN_PIPE
    except SystemExit as error:
        # A signal's; completion's 0; or click's own 1 for a pipe, named with -o, that nobody reads.
        code = error.code if isinstance(error.code, int) else exits.INTERNAL
        code = exits.BROKEN_PIPE if code == 1 else code
    except Exception as error:  # noqa: BLE001  (the text of an unforeseen error may hold data)
        sys.stderr.write("".join(traceback.format_tb(error.__traceback__)))
        _complain(f"internal error ({type(error).__name__})", "report this with the lines above it")
        code = exits.INTERNAL
    return code


def _complain(message: str, remedy: str, request_id: str = "") -> None:
    lines = [f"keyside: {escape(message)}"]
    if request_id:
        lines.append(f"  request id: {escape(request_id)}")
    if remedy:
        lines.append(f"  what to do: {escape(remedy)}")
    print("\n".join(lines), file=sys.stderr)


def _end_by_signal(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # so that a half-written temporary file is removed
