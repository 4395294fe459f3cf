# ruff: noqa: N802, ARG002  (gRPC names the methods and their arguments)
"""A small sidecar for the client's tests: real gRPC on a real Unix socket, answers to order.

It "encrypts" by reversing; what it is for is statuses, pages, delays and restarts. Run as a
program (``python sidecar_double.py SOCKET``) it serves until it is killed.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent import futures
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from tests.unit.access_double import AccessDouble

from keyside.v1 import (
    access_pb2_grpc,
    audit_pb2_grpc,
    encryption_pb2,
    encryption_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    status_pb2_grpc,
)
from keyside.v1 import status_pb2 as keyside_status_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

STARTED_S = 1_700_000_000
VERSION_COUNT = 250
SLOW_CALL_S = 4.0
_WATCHED = {"keyside-credential"}


class Failure:
    """A status to answer with: Keyside's own where it has a reason, else a bare one."""

    def __init__(
        self,
        code: grpc.StatusCode,
        text: str = "",
        *,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        violations: dict[str, str] | None = None,
        domain: str = "keyside",
        packed: bytes | None = None,
    ) -> None:
        self.code = code
        self.text = text
        self.packed = packed
        if packed is None and (reason or violations):
            details: list[Message] = [
                error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
            ]
            if violations:
                field = error_details_pb2.BadRequest.FieldViolation
                details.append(
                    error_details_pb2.BadRequest(
                        field_violations=[
                            field(field=name, description=why) for name, why in violations.items()
                        ]
                    )
                )
            wrapped = []
            for detail in details:
                one = any_pb2.Any()
                one.Pack(detail)
                wrapped.append(one)
            number: int = code.value[0]
            whole = status_pb2.Status(code=number, message=text, details=wrapped)
            self.status = whole
            self.packed = whole.SerializeToString()


ITEM_REFUSED = Failure(
    grpc.StatusCode.PERMISSION_DENIED, "no", reason="NOT_ALLOWED", metadata={"remedy": "ask"}
)
ITEM_REJECTED = Failure(grpc.StatusCode.INVALID_ARGUMENT, "no", reason="ENVELOPE_REJECTED")


class Double(
    AccessDouble,
    encryption_pb2_grpc.EncryptionServiceServicer,
    keys_pb2_grpc.KeyServiceServicer,
    status_pb2_grpc.StatusServiceServicer,
):
    """All services; ``failures`` are answered first, one a call.

    ``versions`` stand in for the 250 of GetKey where a test sets them, ``key`` is merged into what
    is told about keys, and ``unacknowledged`` goes into the answers to changes. ``credentials``
    holds what came with each encryption call.
    """

    def __init__(self, socket: Path | str) -> None:
        super().__init__()
        self.socket = str(socket)
        self.failures: list[Failure] = []
        self.delay_s = 0.0
        self.max_batch_items = 10_000
        self.max_batch_bytes = 8 * 1024 * 1024
        self.batches: list[int] = []
        self.calls: list[str] = []
        self.credentials: list[str | None] = []
        self.requests: list[Any] = []
        self.versions: list[keys_pb2.KeyVersion] | None = None
        self.key = keys_pb2.Key()
        self.unacknowledged: list[keys_pb2.SidecarProcess] = []
        self.entered = threading.Event()
        self.serving: keyside_status_pb2.Serving.ValueType = keyside_status_pb2.SERVING_YES
        self.problems: list[keyside_status_pb2.Problem] = []
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Bind the socket and serve."""
        server = grpc.server(
            futures.ThreadPoolExecutor(8),
            options=[("grpc.max_receive_message_length", 18 * 1024 * 1024)],
        )
        encryption_pb2_grpc.add_EncryptionServiceServicer_to_server(self, server)
        keys_pb2_grpc.add_KeyServiceServicer_to_server(self, server)
        status_pb2_grpc.add_StatusServiceServicer_to_server(self, server)
        access_pb2_grpc.add_AccessServiceServicer_to_server(self, server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(self, server)
        server.add_insecure_port(f"unix:{self.socket}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """Stop at once, as a kill would; the socket file goes too."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def _begin(self, name: str, context: Any) -> None:
        self.calls.append(name)
        sent = {key: value for key, value in context.invocation_metadata() if key in _WATCHED}
        self.credentials.append(sent.get("keyside-credential"))
        self.entered.set()
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.failures:
            failure = self.failures.pop(0)
            if failure.packed is not None:
                context.set_trailing_metadata((("grpc-status-details-bin", failure.packed),))
            context.abort(failure.code, failure.text)

    def Encrypt(
        self, request: encryption_pb2.EncryptRequest, context: Any
    ) -> encryption_pb2.EncryptResponse:
        """Reverse the plaintext."""
        self._begin("Encrypt", context)
        pairs = "".join(f"{name}={value};" for name, value in sorted(request.context.items()))
        return encryption_pb2.EncryptResponse(
            envelope=b"KS:" + pairs.encode() + b":" + request.plaintext[::-1]
        )

    def Decrypt(
        self, request: encryption_pb2.DecryptRequest, context: Any
    ) -> encryption_pb2.DecryptResponse:
        """Reverse it back; a real envelope holds what it says here."""
        self._begin("Decrypt", context)
        if request.envelope.startswith(b"KSE"):
            return encryption_pb2.DecryptResponse(plaintext=b"opened")
        return encryption_pb2.DecryptResponse(plaintext=request.envelope.split(b":", 2)[2][::-1])

    def Rewrap(
        self, request: encryption_pb2.RewrapRequest, context: Any
    ) -> encryption_pb2.RewrapResponse:
        """Return the envelope as it is, with a mark; one that says "slow" takes its time."""
        self._begin("Rewrap", context)
        if request.envelope == b"slow":
            time.sleep(SLOW_CALL_S)
        return encryption_pb2.RewrapResponse(envelope=request.envelope.replace(b"KS", b"KT", 1))

    def Reencrypt(
        self, request: encryption_pb2.ReencryptRequest, context: Any
    ) -> encryption_pb2.ReencryptResponse:
        """Return the envelope as it is, with a mark."""
        self._begin("Reencrypt", context)
        self.requests.append(request)
        return encryption_pb2.ReencryptResponse(envelope=request.envelope.replace(b"KS", b"KR", 1))

    def BatchEncrypt(
        self, request: encryption_pb2.BatchEncryptRequest, context: Any
    ) -> encryption_pb2.BatchEncryptResponse:
        """Reverse the plaintexts; one that is "bad" is refused by itself."""
        self._begin("BatchEncrypt", context)
        self._admit_batch([item.plaintext for item in request.items], context)
        answer = encryption_pb2.BatchEncryptResponse()
        for item in request.items:
            result = answer.results.add()
            if item.plaintext == b"bad":
                result.status.CopyFrom(ITEM_REFUSED.status)
                continue
            pairs = "".join(f"{name}={value};" for name, value in sorted(item.context.items()))
            result.envelope = b"KS:" + pairs.encode() + b":" + item.plaintext[::-1]
            result.version.key, result.version.number = item.key, VERSION_COUNT
        return answer

    def BatchDecrypt(
        self, request: encryption_pb2.BatchDecryptRequest, context: Any
    ) -> encryption_pb2.BatchDecryptResponse:
        """Reverse them back; one that is "bad" is refused by itself."""
        self._begin("BatchDecrypt", context)
        self._admit_batch([item.envelope for item in request.items], context)
        answer = encryption_pb2.BatchDecryptResponse()
        for item in request.items:
            result = answer.results.add()
            if item.envelope == b"bad":
                result.status.CopyFrom(ITEM_REJECTED.status)
                continue
            result.plaintext = item.envelope.split(b":", 2)[2][::-1]
            result.version.key, result.version.number = "mail", VERSION_COUNT
        return answer

    def BatchRewrap(
        self, request: encryption_pb2.BatchRewrapRequest, context: Any
    ) -> encryption_pb2.BatchRewrapResponse:
        """Return the envelopes as they are, with a mark."""
        self._begin("BatchRewrap", context)
        self._admit_batch([item.envelope for item in request.items], context)
        answer = encryption_pb2.BatchRewrapResponse()
        for item in request.items:
            result = answer.results.add(envelope=item.envelope.replace(b"KS", b"KT", 1))
            result.version.key, result.version.number = "mail", VERSION_COUNT
        return answer

    def GenerateDataKey(
        self, request: encryption_pb2.GenerateDataKeyRequest, context: Any
    ) -> encryption_pb2.GenerateDataKeyResponse:
        """Refuse, as where a key's policy does not allow it."""
        self._begin("GenerateDataKey", context)
        self._refuse_data_keys(context)
        return encryption_pb2.GenerateDataKeyResponse()

    def DecryptDataKey(
        self, request: encryption_pb2.DecryptDataKeyRequest, context: Any
    ) -> encryption_pb2.DecryptDataKeyResponse:
        """Refuse, as where a key's policy does not allow it."""
        self._begin("DecryptDataKey", context)
        self._refuse_data_keys(context)
        return encryption_pb2.DecryptDataKeyResponse()

    def _refuse_data_keys(self, context: Any) -> None:
        self.failures.append(
            Failure(
                grpc.StatusCode.PERMISSION_DENIED,
                "this key's policy gives nobody data keys",
                reason="DATA_KEYS_NOT_ALLOWED",
                metadata={"remedy": "set allow_data_keys = true"},
            )
        )
        self._begin("refused", context)

    def _admit_batch(self, parts: list[bytes], context: Any) -> None:
        """Refuse a batch beyond the double's limits, as the sidecar does."""
        self.batches.append(len(parts))
        size_bytes = sum(len(part) for part in parts)
        if len(parts) > self.max_batch_items or size_bytes > self.max_batch_bytes:
            text = f"are {len(parts)} with {size_bytes} bytes; the limits are the double's"
            self.failures.append(
                Failure(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"items: {text}",
                    reason="INVALID_ARGUMENT",
                    violations={"items": text},
                )
            )
            self._begin("refused", context)

    def ListKeys(self, request: Any, context: Any) -> keys_pb2.ListKeysResponse:
        """Return two keys."""
        self._begin("ListKeys", context)
        return keys_pb2.ListKeysResponse(keys=[self._key("mail"), self._key("payroll")])

    def GetKey(self, request: keys_pb2.GetKeyRequest, context: Any) -> keys_pb2.GetKeyResponse:
        """Return a page of the versions."""
        self._begin("GetKey", context)
        newest_first = self.versions
        if newest_first is None:
            newest_first = [_version(number) for number in range(VERSION_COUNT, 0, -1)]
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or 100)
        return keys_pb2.GetKeyResponse(
            key=self._key(request.name),
            versions=newest_first[begin:end],
            next_page_token=str(end) if end < len(newest_first) else "",
        )

    def RotateKey(
        self, request: keys_pb2.RotateKeyRequest, context: Any
    ) -> keys_pb2.RotateKeyResponse:
        """Claim to have made version 251."""
        self._begin("RotateKey", context)
        self.requests.append(request)
        return keys_pb2.RotateKeyResponse(
            key=self._key(request.name, VERSION_COUNT + 1),
            version=_version(VERSION_COUNT + 1),
            previous=_version(VERSION_COUNT),
            unacknowledged=self.unacknowledged,
        )

    def DisableVersion(
        self, request: keys_pb2.DisableVersionRequest, context: Any
    ) -> keys_pb2.DisableVersionResponse:
        """Claim to have disabled it."""
        self._begin("DisableVersion", context)
        self.requests.append(request)
        return keys_pb2.DisableVersionResponse(
            version=_disabled(request.number), unacknowledged=self.unacknowledged
        )

    def EnableVersion(
        self, request: keys_pb2.EnableVersionRequest, context: Any
    ) -> keys_pb2.EnableVersionResponse:
        """Claim to have enabled it."""
        self._begin("EnableVersion", context)
        self.requests.append(request)
        return keys_pb2.EnableVersionResponse(
            version=_version(request.number), unacknowledged=self.unacknowledged
        )

    def DestroyVersion(
        self, request: keys_pb2.DestroyVersionRequest, context: Any
    ) -> keys_pb2.DestroyVersionResponse:
        """Claim that it will be destroyed in a week."""
        self._begin("DestroyVersion", context)
        self.requests.append(request)
        version = _disabled(request.number)
        version.destroy_requested_at.seconds = STARTED_S
        version.destroy_requested_by_uid = 1000
        version.destroy_in.seconds = 7 * 86_400
        return keys_pb2.DestroyVersionResponse(version=version, unacknowledged=self.unacknowledged)

    def CancelDestroyVersion(
        self, request: keys_pb2.CancelDestroyVersionRequest, context: Any
    ) -> keys_pb2.CancelDestroyVersionResponse:
        """Claim to have called it off."""
        self._begin("CancelDestroyVersion", context)
        self.requests.append(request)
        return keys_pb2.CancelDestroyVersionResponse(version=_disabled(request.number))

    def _key(self, name: str, current: int = VERSION_COUNT) -> keys_pb2.Key:
        key = keys_pb2.Key(
            name=name, current_version=current, version_count=current, suite="AES-256-GCM"
        )
        key.created_at.seconds = STARTED_S
        key.MergeFrom(self.key)
        return key

    def GetStatus(self, request: Any, context: Any) -> keyside_status_pb2.GetStatusResponse:
        """Return the serving state and the problems that the test set."""
        self._begin("GetStatus", context)
        answer = keyside_status_pb2.GetStatusResponse(
            serving=self.serving,
            version="0.1.0",
            problems=self.problems,
            you=keyside_status_pb2.CallerIdentity(pid=1, uid=2, gid=3, account="evil\u202e\x1b[2J"),
            keys=[keyside_status_pb2.KeyStatus(name="mail", current_version=7, ready=True)],
        )
        answer.started_at.seconds = STARTED_S
        return answer


def _version(number: int) -> keys_pb2.KeyVersion:
    version = keys_pb2.KeyVersion(
        number=number, id=number.to_bytes(16), state=keys_pb2.KEY_VERSION_STATE_ARCHIVED
    )
    version.created_at.seconds = STARTED_S + number
    return version


def _disabled(number: int) -> keys_pb2.KeyVersion:
    version = _version(number)
    version.state = keys_pb2.KEY_VERSION_STATE_DISABLED
    version.disabled_at.seconds = STARTED_S
    version.disabled_by_uid = 1000
    return version


if __name__ == "__main__":
    with Double(sys.argv[1]):
        print("ready", flush=True)
        threading.Event().wait()
