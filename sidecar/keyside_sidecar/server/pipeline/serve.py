"""Serve: the service carries the command out; a grant is checked before, and counted after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside_sidecar.services.batch import Outcomes
from keyside_sidecar.services.batches import UnreadableMany

if TYPE_CHECKING:
    from keyside_sidecar.server.call import BatchCall, ResponseSink, UnaryCall
    from keyside_sidecar.server.pipeline.grant import GrantUses
    from keyside_sidecar.services.shapes import Result


async def serve_unary(call: UnaryCall, uses: GrantUses) -> Result:
    """Return what came of a call.

    Raises:
        Exception: Whatever its service raises; or the grant does not cover it.
    """
    if call.use is None:
        result: Result = await call.rpc.serve(call.caller, call.command)
        return result
    uses.check(call.use, call.command)
    result = await call.rpc.serve(call.caller, call.command)
    await uses.spend(call.use, call.command, result)
    return result


async def serve_batch(call: BatchCall, uses: GrantUses, response: ResponseSink) -> None:
    """Carry a batch out, and make its response.

    Raises:
        Exception: Whatever its service raises; or the grant is over.
    """
    if call.use is None:
        _require_readable(call)
        await call.rpc.serve(call.caller, call.batch, call.command, response)
        return
    wished = uses.judge(call.use, call.command, call.batch)
    _require_readable(call)
    outcomes = Outcomes()
    await call.rpc.serve(call.caller, call.batch, call.command, outcomes)
    await uses.spend_each(call.use, wished, outcomes.found, call.batch)
    for outcome in outcomes.found:
        response.add(outcome)
    response.end_turn()


def _require_readable(call: BatchCall) -> None:
    if isinstance(call.command, UnreadableMany):
        raise call.command.error
