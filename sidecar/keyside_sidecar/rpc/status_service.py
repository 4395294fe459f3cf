"""keyside.v1.StatusService: what is wrong and since when, and who the sidecar thinks you are."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from keyside.names import KeyName
from keyside.v1 import status_pb2 as pb
from keyside_sidecar.serving import Phase

if TYPE_CHECKING:
    from datetime import datetime

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.rpc.guard import Call
    from keyside_sidecar.serving import ServingBoard


class StatusServicer:
    """Answers GetStatus.

    Args:
        board: What is wrong.
        identifier: For the caller's account name.
        policy: For the keys that the caller may see.
        keyring: For those keys' versions.
    """

    def __init__(
        self, board: ServingBoard, identifier: Identifier, policy: Policy, keyring: Keyring
    ) -> None:
        self._board = board
        self._identifier = identifier
        self._policy = policy
        self._keyring = keyring
        self._version = version("keyside")

    async def get_status(self, call: Call, _request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        """Say what is wrong. A stranger sees no key facts."""
        insider = self._policy.is_allowed_anything(call.subject)
        return pb.GetStatusResponse(
            serving=self._serving(),
            version=self._version if insider else "",
            started_at=_timestamp(self._board.started_at),
            problems=[
                pb.Problem(
                    reason=problem.reason,
                    summary=problem.summary if insider else problem.summary_for_strangers,
                    remedy=problem.remedy if insider else "",
                    since=_timestamp(problem.since),
                    blocking=problem.blocks_encryption or problem.blocks_keys,
                    severity=pb.ProblemSeverity.Value(f"PROBLEM_SEVERITY_{problem.severity.name}"),
                )
                for problem in self._board.problems()
            ],
            you=self._you(call),
            keys=[self._key(KeyName(name)) for name in self._visible(call)],
        )

    def _serving(self) -> pb.Serving.ValueType:
        if self._board.phase is Phase.STARTING:
            return pb.SERVING_STARTING
        if self._board.phase is Phase.DRAINING:
            return pb.SERVING_DRAINING
        if not self._board.serves_encryption():
            return pb.SERVING_NO
        return pb.SERVING_DEGRADED if self._board.is_degraded() else pb.SERVING_YES

    def _you(self, call: Call) -> pb.CallerIdentity:
        credential = call.connection.credential
        refused = call.subject.standing or call.subject.person
        return pb.CallerIdentity(
            pid=credential.pid,
            uid=credential.uid,
            gid=credential.gid,
            account=self._identifier.account_name(call.connection),
            login_uid=credential.login_uid,
            refused=refused.name if refused else "",
            remedy=refused.remedy if refused else "",
        )

    def _visible(self, call: Call) -> list[str]:
        return sorted(self._policy.visible_keys(call.subject))

    def _key(self, name: KeyName) -> pb.KeyStatus:
        number = self._keyring.current_number(name)
        return pb.KeyStatus(name=name, current_version=number or 0, ready=number is not None)


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
