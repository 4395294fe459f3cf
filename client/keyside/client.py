"""The client for threads. ``keyside.aio`` has the same for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside._access import PeopleCalls
from keyside._attempts import ACKNOWLEDGED_TIMEOUT_S
from keyside._bulk import BulkCalls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyside.credential import Credential
    from keyside.facts import Key, KeyVersion, Rotation, Status, VersionChange
    from keyside.v1 import keys_pb2


class Client(BulkCalls, PeopleCalls):
    """Calls the sidecar on this host.

    Guarantees: nothing is sent before the socket was found to belong to whom it should
    (``keyside.socket_check``), and again whenever the socket file changed or the sidecar was
    unavailable. Every call has a deadline. A call that found the sidecar unavailable is made again
    within that deadline if it may be repeated, so a restarting sidecar is a pause, not an error.
    May be shared by threads.

    Forks (gunicorn --preload, uWSGI, multiprocessing): nothing of gRPC is loaded before the first
    call, so a client made before a fork and first used after it works in every child. One that
    was used before connects anew in the child. Two things spoil a child, whose calls then raise
    ``ClosedClient`` with reason ``FORKED`` instead of hanging: forking while another thread is in
    a call (or an ``AsyncClient`` is open), and forking after a call with
    ``GRPC_ENABLE_FORK_SUPPORT=0`` in the environment. The parent is never harmed. Not covered:
    other gRPC users in the same process, and gevent.

    Args:
        socket: A path, ``unix:PATH`` or ``unix://PATH``; ``None`` takes ``KEYSIDE_SOCKET`` and,
            where that is unset, /run/keyside/keyside.sock.
        timeout_s: Seconds that a call may take, its repetitions included; above 0.
        expected_owner: Uid or account name that must own the socket, if root does not; ``None``
            takes ``KEYSIDE_EXPECTED_OWNER`` and, where that is unset, accepts root, this process's
            own effective uid and the account ``keyside``.
        retry: ``False`` makes each call once.
        credential: A grant's, for a person who has been given access (``activate_access``). It goes
            with ``encrypt``, ``decrypt``, ``rewrap`` and ``reencrypt`` and with nothing else. Such
            a call is never made again by itself: each may count as a use.

    Raises:
        InvalidArgument: ``socket``, ``timeout_s`` or ``credential`` is not valid.
    """

    def encrypt(
        self,
        key: str,
        plaintext: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
        *,
        credential: Credential | str | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Seal a plaintext under the key's current version and a fresh data key.

        Args:
            key: The key's name.
            plaintext: At most the sidecar's ``max_plaintext_bytes`` (1 MiB unless configured).
            context: Pairs bound to the envelope, neither secret nor stored in it; the same must
                be given to ``decrypt``. At most 32; a name has 1 to 128 bytes, a value at most
                1,024, of UTF-8.
            credential: A grant's, instead of the client's.
            timeout_s: For this call, instead of the client's.

        Returns:
            The envelope: keep it whole. It names key and version itself.

        Raises:
            InvalidArgument: A value is not valid or beyond its limit, which the message states.
            NotPermitted: Policy refuses, or there is no such key.
            LimitExceeded: Too many calls at once, or too large a message.
            Unavailable: The sidecar is away, also after repetitions.
            UntrustedSocket: Someone else may have made the socket; nothing was sent.
            KeysideError: Anything else; see ``keyside.errors``.
        """
        from keyside._messages import encrypt_request

        request = encrypt_request(key, plaintext, context)
        metadata = self._metadata(credential)
        return self._call(
            lambda link, limit_s: link.encryption.Encrypt(
                request, timeout=limit_s, metadata=metadata
            ),
            timeout_s,
            repeatable=not metadata,
        ).envelope

    def decrypt(
        self,
        envelope: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
        *,
        credential: Credential | str | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Open an envelope made under any version that is not disabled or destroyed.

        Args:
            envelope: What ``encrypt`` or ``rewrap`` returned, whole.
            context: The pairs given to ``encrypt``.
            credential: A grant's, instead of the client's.
            timeout_s: For this call, instead of the client's.

        Raises:
            EnvelopeRejected: It does not open; deliberately no more is said.
            VersionUnusable: Its key version is disabled or destroyed.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import decrypt_request

        request = decrypt_request(envelope, context)
        metadata = self._metadata(credential)
        return self._call(
            lambda link, limit_s: link.encryption.Decrypt(
                request, timeout=limit_s, metadata=metadata
            ),
            timeout_s,
            repeatable=not metadata,
        ).plaintext

    def rewrap(
        self,
        envelope: bytes | bytearray | memoryview,
        *,
        credential: Credential | str | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Move an envelope's data key under the key's current version.

        The payload is carried over unopened: this needs no context, says nothing about the
        payload's integrity, and does not cure a leaked version. Needs the permission to decrypt.

        Args:
            envelope: A whole envelope, or its wrapping header alone (docs/envelope.md).
            credential: A grant's, instead of the client's.
            timeout_s: For this call, instead of the client's.

        Returns:
            What was given, with the wrapping header replaced.

        Raises:
            KeysideError: As for ``decrypt``.
        """
        from keyside._messages import rewrap_request

        request = rewrap_request(envelope)
        metadata = self._metadata(credential)
        return self._call(
            lambda link, limit_s: link.encryption.Rewrap(
                request, timeout=limit_s, metadata=metadata
            ),
            timeout_s,
            repeatable=not metadata,
        ).envelope

    def reencrypt(
        self,
        envelope: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        """Seal an envelope's plaintext anew: under the current version and a fresh data key.

        This is what helps after a version has leaked. The plaintext does not leave the sidecar.
        Needs the permissions to decrypt and to encrypt.

        Args:
            envelope: A whole envelope; its plaintext is at most what ``encrypt`` accepts.
            context: The pairs given to ``encrypt``; the new envelope is bound to the same.
            timeout_s: For this call, instead of the client's.

        Returns:
            A new envelope of the same plaintext and context.

        Raises:
            KeysideError: As for ``decrypt``.
        """
        from keyside._messages import reencrypt_request

        request = reencrypt_request(envelope, context)
        metadata = self._metadata()
        return self._call(
            lambda link, limit_s: link.encryption.Reencrypt(
                request, timeout=limit_s, metadata=metadata
            ),
            timeout_s,
            repeatable=not metadata,
        ).envelope

    def list_keys(self, *, timeout_s: float | None = None) -> list[Key]:
        """Return the keys that this caller may see, by name.

        Raises:
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_key
        from keyside.v1 import keys_pb2

        request = keys_pb2.ListKeysRequest()
        answer = self._call(
            lambda link, limit_s: link.keys.ListKeys(request, timeout=limit_s), timeout_s
        )
        return [read_key(key) for key in answer.keys]

    def get_key(self, name: str, *, timeout_s: float | None = None) -> Key:
        """Return one key.

        Raises:
            NotPermitted: Policy refuses, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import get_key_request, read_key

        return read_key(self._get_key(get_key_request(name, page_size=1), timeout_s).key)

    def iter_versions(
        self, name: str, *, page_size: int = 100, timeout_s: float | None = None
    ) -> Iterator[KeyVersion]:
        """Return an iterator over all of a key's versions, newest first, a page per call.

        Args:
            name: The key's name.
            page_size: Versions per call, 1 to 1,000.
            timeout_s: For each call, instead of the client's.

        Raises:
            KeysideError: As for ``get_key``; the iterator raises it as well.
        """
        from keyside._messages import get_key_request, read_version

        request = get_key_request(name, page_size)

        def iterate() -> Iterator[KeyVersion]:
            while True:
                answer = self._get_key(request, timeout_s)
                yield from (read_version(version) for version in answer.versions)
                if not answer.next_page_token:
                    return
                request.page_token = answer.next_page_token

        return iterate()

    def rotate_key(
        self,
        name: str,
        expected_current: int | None = None,
        *,
        compromised: bool = False,
        timeout_s: float | None = None,
    ) -> Rotation:
        """Make a new current version and archive its predecessor. For operators.

        Args:
            name: The key's name.
            expected_current: Rotate only if this is the current version's number. With it the call
                is repeated while the sidecar is unavailable; without it, never.
            compromised: The current version may have leaked: it is disabled everywhere, and so is
                a successor that was made already; a fresh version becomes current.
            timeout_s: For this call, instead of the client's, or of 10 s if that is longer.

        Raises:
            Conflict: Another version is current.
            NotPermitted: The caller is no operator, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_rotation, rotate_request

        request = rotate_request(name, expected_current, compromised=compromised)
        return read_rotation(
            self._call(
                lambda link, limit_s: link.keys.RotateKey(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
                repeatable=expected_current is not None,
            )
        )

    def disable_version(
        self, name: str, number: int, *, timeout_s: float | None = None
    ) -> VersionChange:
        """Refuse a version everywhere, until it is enabled again. For operators.

        What is sealed under it does not open until then. Repeating this changes nothing, so the
        call is made again while the sidecar is unavailable.

        Args:
            name: The key's name.
            number: The version's number.
            timeout_s: For this call, instead of the client's, or of 10 s if that is longer; the
                sidecar waits up to about 3 s for the others' acknowledgements.

        Raises:
            WrongVersionState: It is the current version, or destroyed.
            NoSuchVersion: The key has no version of that number.
            NotPermitted: The caller is no operator, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_change, version_request
        from keyside.v1 import keys_pb2

        request = version_request(keys_pb2.DisableVersionRequest, name, number)
        return read_change(
            self._call(
                lambda link, limit_s: link.keys.DisableVersion(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
            )
        )

    def enable_version(
        self, name: str, number: int, *, timeout_s: float | None = None
    ) -> VersionChange:
        """Let a disabled version decrypt again; it never encrypts again. For operators.

        Repeating this changes nothing, so the call is made again while the sidecar is unavailable.

        Args:
            name: The key's name.
            number: The version's number.
            timeout_s: For this call, instead of the client's, or of 10 s if that is longer; the
                sidecar waits up to about 3 s for the others' acknowledgements.

        Raises:
            WrongVersionState: It is destroyed, or its destruction is scheduled.
            NoSuchVersion: The key has no version of that number.
            NotPermitted: The caller is no operator, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_change, version_request
        from keyside.v1 import keys_pb2

        request = version_request(keys_pb2.EnableVersionRequest, name, number)
        return read_change(
            self._call(
                lambda link, limit_s: link.keys.EnableVersion(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
            )
        )

    def destroy_version(
        self, name: str, number: int, *, timeout_s: float | None = None
    ) -> VersionChange:
        """Disable a version now and schedule its destruction. For operators.

        What was sealed under it is lost for ever once the sidecars have run for
        ``version.destroy_in``; until then ``cancel_destroy_version`` calls it off. Repeating this
        changes nothing, so the call is made again while the sidecar is unavailable.

        Args:
            name: The key's name.
            number: The version's number.
            timeout_s: For this call, instead of the client's, or of 10 s if that is longer; the
                sidecar waits up to about 3 s for the others' acknowledgements.

        Raises:
            WrongVersionState: It is the current version, or destroyed.
            NoSuchVersion: The key has no version of that number.
            NotPermitted: The caller is no operator, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_change, version_request
        from keyside.v1 import keys_pb2

        request = version_request(keys_pb2.DestroyVersionRequest, name, number)
        return read_change(
            self._call(
                lambda link, limit_s: link.keys.DestroyVersion(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
            )
        )

    def cancel_destroy_version(
        self, name: str, number: int, *, timeout_s: float | None = None
    ) -> VersionChange:
        """Call a scheduled destruction off; the version stays disabled. For operators.

        Never made again by itself: a second call would find nothing scheduled.

        Args:
            name: The key's name.
            number: The version's number.
            timeout_s: For this call, instead of the client's, or of 10 s if that is longer; the
                sidecar waits up to about 3 s for the others' acknowledgements.

        Raises:
            WrongVersionState: Nothing is scheduled, or it is destroyed.
            NoSuchVersion: The key has no version of that number.
            NotPermitted: The caller is no operator, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_cancellation, version_request
        from keyside.v1 import keys_pb2

        request = version_request(keys_pb2.CancelDestroyVersionRequest, name, number)
        return read_cancellation(
            self._call(
                lambda link, limit_s: link.keys.CancelDestroyVersion(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
                repeatable=False,
            )
        )

    def status(self, *, timeout_s: float | None = None) -> Status:
        """Return how the sidecar is, and who it thinks is asking. Any caller may ask.

        Raises:
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_status
        from keyside.v1 import status_pb2

        request = status_pb2.GetStatusRequest()
        return read_status(
            self._call(
                lambda link, limit_s: link.status.GetStatus(request, timeout=limit_s), timeout_s
            )
        )

    def _get_key(
        self, request: keys_pb2.GetKeyRequest, timeout_s: float | None
    ) -> keys_pb2.GetKeyResponse:
        return self._call(
            lambda link, limit_s: link.keys.GetKey(request, timeout=limit_s), timeout_s
        )
