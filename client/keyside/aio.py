"""The client for asyncio. ``keyside.client`` has the same for threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside._async_access import AsyncPeopleCalls
from keyside._async_bulk import AsyncBulkCalls
from keyside._attempts import ACKNOWLEDGED_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from keyside.credential import Credential
    from keyside.facts import Key, KeyVersion, Rotation, Status, VersionChange
    from keyside.v1 import keys_pb2


class AsyncClient(AsyncBulkCalls, AsyncPeopleCalls):
    """Calls the sidecar on this host, from one event loop.

    Guarantees and arguments are those of ``keyside.Client``; methods, arguments and errors are the
    same, awaited. Bound to the event loop of its first call: another loop's calls raise
    ``ClosedClient`` with reason ``OTHER_LOOP``. Looking at the path to the socket happens in a
    thread, off the loop.

    Forks: one that was made, but not used, before a fork works in every child. Forking while one
    is open spoils the child: every client there raises ``ClosedClient`` with reason ``FORKED``,
    and the child may hang as it exits, in grpcio's destructors. Close it before you fork.

    Args:
        socket: As for ``keyside.Client``.
        timeout_s: As for ``keyside.Client``.
        expected_owner: As for ``keyside.Client``.
        retry: As for ``keyside.Client``.
        credential: As for ``keyside.Client``.

    Raises:
        InvalidArgument: ``socket``, ``timeout_s`` or ``credential`` is not valid.
    """

    async def encrypt(
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
        answer = await self._call(
            lambda link, limit_s: link.encryption.Encrypt(
                request, timeout=limit_s, metadata=metadata
            ),
            timeout_s,
            repeatable=not metadata,
        )
        return answer.envelope

    async def decrypt(
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
        answer = await self._call(
            lambda link, limit_s: link.encryption.Decrypt(
                request, timeout=limit_s, metadata=metadata
            ),
            timeout_s,
            repeatable=not metadata,
        )
        return answer.plaintext

    async def rewrap(
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
        answer = await self._call(
            lambda link, limit_s: link.encryption.Rewrap(
                request, timeout=limit_s, metadata=metadata
            ),
            timeout_s,
            repeatable=not metadata,
        )
        return answer.envelope

    async def reencrypt(
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
        answer = await self._call(
            lambda link, limit_s: link.encryption.Reencrypt(
                request, timeout=limit_s, metadata=metadata
            ),
            timeout_s,
            repeatable=not metadata,
        )
        return answer.envelope

    async def list_keys(self, *, timeout_s: float | None = None) -> list[Key]:
        """Return the keys that this caller may see, by name.

        Raises:
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_key
        from keyside.v1 import keys_pb2

        request = keys_pb2.ListKeysRequest()
        answer = await self._call(
            lambda link, limit_s: link.keys.ListKeys(request, timeout=limit_s), timeout_s
        )
        return [read_key(key) for key in answer.keys]

    async def get_key(self, name: str, *, timeout_s: float | None = None) -> Key:
        """Return one key.

        Raises:
            NotPermitted: Policy refuses, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import get_key_request, read_key

        return read_key((await self._get_key(get_key_request(name, page_size=1), timeout_s)).key)

    def iter_versions(
        self, name: str, *, page_size: int = 100, timeout_s: float | None = None
    ) -> AsyncIterator[KeyVersion]:
        """Return an asynchronous iterator over all of a key's versions, newest first.

        It makes one call per page.

        Args:
            name: The key's name.
            page_size: Versions per call, 1 to 1,000.
            timeout_s: For each call, instead of the client's.

        Raises:
            KeysideError: As for ``get_key``; the iterator raises it as well.
        """
        from keyside._messages import get_key_request, read_version

        request = get_key_request(name, page_size)

        async def iterate() -> AsyncIterator[KeyVersion]:
            while True:
                answer = await self._get_key(request, timeout_s)
                for version in answer.versions:
                    yield read_version(version)
                if not answer.next_page_token:
                    return
                request.page_token = answer.next_page_token

        return iterate()

    async def rotate_key(
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
            await self._call(
                lambda link, limit_s: link.keys.RotateKey(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
                repeatable=expected_current is not None,
            )
        )

    async def disable_version(
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
            await self._call(
                lambda link, limit_s: link.keys.DisableVersion(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
            )
        )

    async def enable_version(
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
            await self._call(
                lambda link, limit_s: link.keys.EnableVersion(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
            )
        )

    async def destroy_version(
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
            await self._call(
                lambda link, limit_s: link.keys.DestroyVersion(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
            )
        )

    async def cancel_destroy_version(
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
            await self._call(
                lambda link, limit_s: link.keys.CancelDestroyVersion(request, timeout=limit_s),
                self._long_timeout_s(timeout_s, ACKNOWLEDGED_TIMEOUT_S),
                repeatable=False,
            )
        )

    async def status(self, *, timeout_s: float | None = None) -> Status:
        """Return how the sidecar is, and who it thinks is asking. Any caller may ask.

        Raises:
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_status
        from keyside.v1 import status_pb2

        request = status_pb2.GetStatusRequest()
        return read_status(
            await self._call(
                lambda link, limit_s: link.status.GetStatus(request, timeout=limit_s), timeout_s
            )
        )

    async def _get_key(
        self, request: keys_pb2.GetKeyRequest, timeout_s: float | None
    ) -> keys_pb2.GetKeyResponse:
        return await self._call(
            lambda link, limit_s: link.keys.GetKey(request, timeout=limit_s), timeout_s
        )
