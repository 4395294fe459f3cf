"""keyside.v1.StatusService as messages: requests to commands, results to responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.v1 import status_pb2 as pb
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.api.rows import Row
from keyside_sidecar.api.v1.times import make_timestamp
from keyside_sidecar.services.status import GetStatus

if TYPE_CHECKING:
    from keyside_sidecar.services.status import Status
    from keyside_sidecar.serving import Problem

SERVICE: Final = pb.DESCRIPTOR.services_by_name["StatusService"]
ROWS: Final = (Row("GetStatus", Operation.GET_STATUS, public=True),)


def read_get_status(_request: pb.GetStatusRequest) -> GetStatus:
    """Return what is asked for."""
    return GetStatus()


def write_get_status(status: Status) -> pb.GetStatusResponse:
    """Return the response."""
    return pb.GetStatusResponse(
        serving=pb.Serving.Value(f"SERVING_{status.serving.name}"),
        version=status.version,
        started_at=make_timestamp(status.started_at),
        problems=[
            _make_problem(problem, is_insider=status.is_insider) for problem in status.problems
        ],
        you=_make_identity(status),
        keys=[
            pb.KeyStatus(
                name=key.name,
                current_version=key.current_number or 0,
                ready=key.current_number is not None,
            )
            for key in status.keys
        ],
    )


def _make_problem(problem: Problem, *, is_insider: bool) -> pb.Problem:
    return pb.Problem(
        reason=problem.reason,
        summary=problem.summary if is_insider else problem.summary_for_strangers,
        remedy=problem.remedy if is_insider else "",
        since=make_timestamp(problem.since),
        blocking=problem.blocks_encryption or problem.blocks_keys,
        severity=pb.ProblemSeverity.Value(f"PROBLEM_SEVERITY_{problem.severity.name}"),
    )


def _make_identity(status: Status) -> pb.CallerIdentity:
    caller, refused = status.caller, status.refused
    return pb.CallerIdentity(
        pid=caller.pid,
        uid=caller.uid,
        gid=caller.gid,
        account=caller.account,
        login_uid=caller.login_uid,
        refused=refused.name if refused else "",
        remedy=refused.remedy if refused else "",
    )
