"""What people do, for threads: asking for access, deciding on it, reading the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside._connection import Connection
from keyside.access_facts import AccessOperation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime, timedelta

    from keyside.access_facts import (
        AccessRequest,
        AccessStory,
        ActivatedAccess,
        AuditRecord,
        VersionRange,
    )


class PeopleCalls(Connection):
    """The calls that people make; see ``Client``.

    A call with a password is never made again by itself, and waits for PAM: 30 s, or the client's
    ``timeout_s`` if that is longer, unless it is given a time of its own. When its outcome is not
    known (``DeadlineExceeded``, ``Unavailable``), look with ``get_access`` before doing it again.
    """

    def request_access(
        self,
        key: str,
        *,
        reason: str,
        duration: timedelta,
        password: str | bytes,
        ticket: str = "",
        operations: Iterable[AccessOperation] = (AccessOperation.DECRYPT,),
        versions: Iterable[VersionRange | int] = (),
        context: Mapping[str, str] | None = None,
        max_uses: int | None = None,
        timeout_s: float | None = None,
    ) -> AccessRequest:
        """Ask for access to one key, for a while. For members of the requesters' groups.

        Never made again by itself: two calls make two requests.

        Args:
            key: The key's name.
            reason: Why, for the approvers and for the record; a line of 1 to 1,000 characters.
            duration: How long the grant is to last once it is activated; whole seconds.
            password: This account's own; text is encoded as UTF-8; 1 to 1,024 bytes.
            ticket: Where this is asked for elsewhere; at most 128 characters.
            operations: What is asked.
            versions: Only these versions; empty for any.
            context: Pairs that an envelope's context must contain; none for any. REWRAP sees no
                context, and so is not covered where there are some.
            max_uses: How many envelopes; ``None`` for any number.
            timeout_s: For this call, instead of 30 s.

        Raises:
            InvalidArgument: A value is not valid or beyond its limit, which the message states.
            AuthenticationFailed: The password is wrong, or the account can't be used.
            NotPermitted: The caller may not ask, or there is no such key.
            Unavailable: The sidecar, its store, its audit log or PAM is away.
            KeysideError: As for ``encrypt``.
        """
        from keyside._access_messages import read_request, request_message

        request = request_message(
            key,
            reason=reason,
            duration=duration,
            password=password,
            ticket=ticket,
            operations=operations,
            versions=versions,
            context=context,
            max_uses=max_uses,
        )
        answer = self._call(
            lambda link, limit_s: link.access.RequestAccess(request, timeout=limit_s),
            self._long_timeout_s(timeout_s),
            repeatable=False,
        )
        return read_request(answer.request)

    def check_access_request(
        self,
        key: str,
        *,
        reason: str,
        duration: timedelta,
        ticket: str = "",
        operations: Iterable[AccessOperation] = (AccessOperation.DECRYPT,),
        versions: Iterable[VersionRange | int] = (),
        context: Mapping[str, str] | None = None,
        max_uses: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Raise what ``request_access`` would with the same values, but for the password.

        Asks for nothing, and promises nothing. The arguments are those of ``request_access``.

        Raises:
            InvalidArgument: A value is not valid or beyond its limit, which the message states.
            NotPermitted: The caller may not ask, or there is no such key.
            AccessRefused: Too many requests are open.
            KeysideError: As for ``encrypt``.
        """
        from keyside._access_messages import check_message

        request = check_message(
            key,
            reason=reason,
            duration=duration,
            ticket=ticket,
            operations=operations,
            versions=versions,
            context=context,
            max_uses=max_uses,
        )
        self._call(
            lambda link, limit_s: link.access.CheckAccessRequest(request, timeout=limit_s),
            timeout_s,
        )

    def list_access(
        self,
        *,
        include_ended: bool = False,
        page_size: int = 100,
        timeout_s: float | None = None,
    ) -> Iterator[AccessRequest]:
        """Return an iterator over requests and grants, a page per call.

        What is open comes first, then what is over, each newest first. Approvers,
        operators and auditors see everybody's, others their own.

        Args:
            include_ended: Those too that are over.
            page_size: Requests per call, 1 to 1,000.
            timeout_s: For each call, instead of the client's.

        Raises:
            KeysideError: As for ``get_access``; the iterator raises it as well.
        """
        from keyside._access_messages import list_message, read_request

        request = list_message(include_ended=include_ended, page_size=page_size)

        def iterate() -> Iterator[AccessRequest]:
            while True:
                answer = self._call(
                    lambda link, limit_s: link.access.ListAccess(request, timeout=limit_s),
                    timeout_s,
                )
                yield from (read_request(one) for one in answer.requests)
                if not answer.next_page_token:
                    return
                request.page_token = answer.next_page_token

        return iterate()

    def get_access(self, access_id: str, *, timeout_s: float | None = None) -> AccessStory:
        """Return a request and all uses of the grant that it became.

        Args:
            access_id: The request's id.
            timeout_s: For this call, instead of the client's.

        Raises:
            NoSuchRequest: There is none of that id.
            NotPermitted: The caller may not see it.
            KeysideError: As for ``encrypt``.
        """
        from keyside._access_messages import get_message, read_story

        request = get_message(access_id)
        return read_story(
            self._call(
                lambda link, limit_s: link.access.GetAccess(request, timeout=limit_s), timeout_s
            )
        )

    def approve_access(
        self,
        access_id: str,
        *,
        password: str | bytes,
        comment: str = "",
        timeout_s: float | None = None,
    ) -> AccessRequest:
        """Approve a request at the level that is next. For that level's members.

        Never made again by itself.

        Args:
            access_id: The request's id.
            password: The approver's own, as for ``request_access``.
            comment: For the record; a line of at most 1,000 characters.
            timeout_s: For this call, instead of 30 s.

        Raises:
            AccessRefused: The caller has approved it already, or it is not pending.
            NotPermitted: The caller made it, or is not of the level that is next.
            NoSuchRequest: There is none of that id.
            KeysideError: As for ``request_access``.
        """
        from keyside._access_messages import approve_message, read_request

        request = approve_message(access_id, password=password, comment=comment)
        answer = self._call(
            lambda link, limit_s: link.access.ApproveAccess(request, timeout=limit_s),
            self._long_timeout_s(timeout_s),
            repeatable=False,
        )
        return read_request(answer.request)

    def deny_access(
        self,
        access_id: str,
        *,
        password: str | bytes,
        reason: str,
        timeout_s: float | None = None,
    ) -> AccessRequest:
        """End a request that is not active yet. For approvers.

        Never made again by itself.

        Args:
            access_id: The request's id.
            password: The approver's own, as for ``request_access``.
            reason: Why; a line of 1 to 1,000 characters.
            timeout_s: For this call, instead of 30 s.

        Raises:
            KeysideError: As for ``approve_access``.
        """
        from keyside._access_messages import deny_message, read_request

        request = deny_message(access_id, password=password, reason=reason)
        answer = self._call(
            lambda link, limit_s: link.access.DenyAccess(request, timeout=limit_s),
            self._long_timeout_s(timeout_s),
            repeatable=False,
        )
        return read_request(answer.request)

    def cancel_access(self, access_id: str, *, timeout_s: float | None = None) -> AccessRequest:
        """End one's own request that is not active yet; one that is over stays as it ended.

        Repeating this changes nothing, so the call is made again while the sidecar is unavailable.

        Args:
            access_id: The request's id.
            timeout_s: For this call, instead of the client's.

        Raises:
            AccessRefused: It is a grant already.
            NotPermitted: It is somebody else's.
            NoSuchRequest: There is none of that id.
            KeysideError: As for ``encrypt``.
        """
        from keyside._access_messages import cancel_message, read_request

        request = cancel_message(access_id)
        answer = self._call(
            lambda link, limit_s: link.access.CancelAccess(request, timeout=limit_s), timeout_s
        )
        return read_request(answer.request)

    def activate_access(
        self, access_id: str, *, password: str | bytes, timeout_s: float | None = None
    ) -> ActivatedAccess:
        """Make the grant of one's own approved request; its time begins now.

        Never made again by itself: the credential is told once. Where the answer is lost, revoke
        the grant and ask again.

        Args:
            access_id: The request's id.
            password: The requester's own, as for ``request_access``.
            timeout_s: For this call, instead of 30 s.

        Returns:
            The grant and its credential, for ``Client(credential=…)`` or ``decrypt``.

        Raises:
            AccessRefused: It is not approved yet, a grant already, or over.
            NoSuchRequest: There is none of that id.
            KeysideError: As for ``request_access``.
        """
        from keyside._access_messages import activate_message, read_activated

        request = activate_message(access_id, password=password)
        return read_activated(
            self._call(
                lambda link, limit_s: link.access.ActivateAccess(request, timeout=limit_s),
                self._long_timeout_s(timeout_s),
                repeatable=False,
            )
        )

    def revoke_access(
        self, access_id: str, *, reason: str = "", timeout_s: float | None = None
    ) -> AccessRequest:
        """End a request or a grant at once. For its holder, approvers and operators.

        When this returns, it is so in the store, and no sidecar serves the grant any more. One that
        is over stays as it ended. Repeating this changes nothing, so the call is made again while
        the sidecar is unavailable.

        Args:
            access_id: The request's id.
            reason: Why; a line of at most 1,000 characters.
            timeout_s: For this call, instead of the client's.

        Raises:
            NotPermitted: The caller is neither of those.
            NoSuchRequest: There is none of that id.
            KeysideError: As for ``encrypt``.
        """
        from keyside._access_messages import read_request, revoke_message

        request = revoke_message(access_id, reason=reason)
        answer = self._call(
            lambda link, limit_s: link.access.RevokeAccess(request, timeout=limit_s), timeout_s
        )
        return read_request(answer.request)

    def search_audit(
        self,
        *,
        key: str | None = None,
        account: str | None = None,
        uid: int | None = None,
        access_id: str | None = None,
        event: str | None = None,
        outcome: str | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        record_id: str | None = None,
        first_sequence: int | None = None,
        last_sequence: int | None = None,
        oldest_first: bool = False,
        page_size: int = 100,
        timeout_s: float | None = None,
    ) -> Iterator[AuditRecord]:
        """Return an iterator over this host's audit records, newest first, a page per call.

        Auditors see all, others the records that they made. What it tells is what the log says;
        ``keyside audit verify`` proves, from the files, that nobody changed it.

        Args:
            key: Records that name this key.
            account: Records of this account's actions.
            uid: Records of this uid's actions.
            access_id: Records that name this access request or grant.
            event: Records of this event, or of those that begin with it and a dot.
            outcome: ``"ok"``, ``"refused"`` or ``"failed"``.
            after: Not before this time.
            before: Before this time.
            record_id: The record of this id.
            first_sequence: From this place in the log on.
            last_sequence: Up to this place in the log, included.
            oldest_first: In the log's own order.
            page_size: Records per call, 1 to 1,000.
            timeout_s: For each call, instead of 30 s: a long log takes a while to read.

        Raises:
            InvalidArgument: A value is not valid.
            NotPermitted: The caller may not read it.
            KeysideError: As for ``encrypt``; the iterator raises it as well.
        """
        from keyside._access_messages import read_record, search_message

        request = search_message(
            key=key,
            account=account,
            uid=uid,
            access_id=access_id,
            event=event,
            outcome=outcome,
            after=after,
            before=before,
            record_id=record_id,
            first_sequence=first_sequence,
            last_sequence=last_sequence,
            oldest_first=oldest_first,
            page_size=page_size,
        )

        def iterate() -> Iterator[AuditRecord]:
            while True:
                answer = self._call(
                    lambda link, limit_s: link.audit.SearchRecords(request, timeout=limit_s),
                    self._long_timeout_s(timeout_s),
                )
                yield from (read_record(record) for record in answer.records)
                if not answer.next_page_token:
                    return
                request.page_token = answer.next_page_token

        return iterate()

    def get_audit_checkpoint(self, *, timeout_s: float | None = None) -> AuditRecord:
        """Return the audit log's newest checkpoint, to be kept somewhere else. For auditors.

        Raises:
            NoSuchRecord: There is none yet.
            NotPermitted: The caller may not read it.
            KeysideError: As for ``encrypt``.
        """
        from keyside._access_messages import read_record
        from keyside.v1 import audit_pb2

        request = audit_pb2.GetCheckpointRequest()
        return read_record(
            self._call(
                lambda link, limit_s: link.audit.GetCheckpoint(request, timeout=limit_s),
                self._long_timeout_s(timeout_s),
            )
        )
