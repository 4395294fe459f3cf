"""Why a call is refused: each reason with its public text and what to do about it.

A reason is safe to show to the refused caller: it speaks about the caller, never about keys.
"""

from __future__ import annotations

import enum


class Reason(enum.Enum):
    """Why access control refuses. The value is (public text, remedy)."""

    PEER_UNKNOWN = (
        "this connection did not come through the sidecar's socket",
        "connect to the socket named in the sidecar's configuration",
    )
    PEER_NOT_UNIX = (
        "the peer is not on a Unix socket",
        "connect to the sidecar's Unix socket; there is no other way in",
    )
    PEER_CREDENTIAL_UNREADABLE = (
        "the kernel did not say who is calling",
        "see the sidecar's log for the system call that failed",
    )
    PEER_PID_ZERO = (
        "the calling process is not visible in the sidecar's PID namespace",
        "run the sidecar in the caller's PID namespace or in one above it",
    )
    PEER_OVERFLOW_UID = (
        "the caller's user id has no meaning in the sidecar's user namespace",
        "run the caller and the sidecar in user namespaces that map the caller's uid",
    )
    PEER_OVERFLOW_GID = (
        "the caller's group id has no meaning in the sidecar's user namespace",
        "run the caller and the sidecar in user namespaces that map the caller's gid",
    )
    PEER_ENDED = (
        "the process that opened this connection has ended",
        "open a connection from the process that makes the calls",
    )
    PEER_PERSON_LOGIN = (
        "this process belongs to a person's login, and people are not given encryption",
        "run the service from its service manager; a person requests elevated access",
    )
    PEER_LOGIN_UNREADABLE = (
        "the sidecar can't read whether this process belongs to a person's login",
        "let the sidecar read /proc (no hidepid or ProtectProc), then run keysided check",
    )
    ACCOUNT_UNKNOWN = (
        "the caller's user id has no account on this host",
        'create the account, or set identity.membership = "process" where uids have no names',
    )
    NAME_SERVICE_UNAVAILABLE = (
        "the name service that knows the caller's groups is away, or can't be asked soon enough",
        "restore the directory service; the call may be repeated",
    )
    NOT_ALLOWED = (
        "there is no such key, or this caller may not do this with it",
        "ask for the calling account to be put in a group that the key's policy allows",
    )
    DATA_KEYS_NOT_ALLOWED = (
        "this key's policy gives nobody data keys, which sealing outside the sidecar needs",
        "set allow_data_keys = true in the key's table, or encrypt through the sidecar",
    )
    OPERATOR_MAY_NOT_USE_KEYS = (
        "an operator manages keys and can never encrypt or decrypt",
        "call from a service's account that is in no operators' group",
    )
    NOT_AN_OPERATOR = (
        "only an operator may do this",
        "ask for the calling account to be put in the operators' group",
    )
    NOT_A_REQUESTER = (
        "this account may not ask for access",
        "ask for the account to be put in a group that [elevation] requesters names",
    )
    NOT_AN_APPROVER = (
        "this account decides about no requests for access",
        "an approver is a member of a group of [[elevation.levels]]",
    )
    LOGIN_OF_ANOTHER = (
        "this process belongs to another person's login than its account's",
        "log in as yourself and call from there, without su or sudo",
    )
    CREDENTIAL_REFUSED = (
        "the temporary credential opens nothing for this caller",
        "use the account that was granted access; keyside access list shows your grants",
    )
    GRANT_ENDED = (
        "the grant behind this credential has ended",
        "ask for access anew; keyside access show tells why it ended",
    )
    GRANT_SCOPE = (
        "the grant does not cover this",
        "keyside access show tells which key, operations, versions and context it covers",
    )
    METHOD_UNKNOWN = (
        "there is no such method, or nobody has been allowed to call it",
        "compare the client's and the sidecar's versions",
    )
    TOO_MANY_CALLS = (
        "too many calls are in flight",
        "wait for some of them to finish; see max_calls_per_uid and max_calls",
    )

    TOO_OFTEN = (
        "this account has asked for too much lately, or too often in vain",
        "wait a while, then try again",
    )

    @property
    def text(self) -> str:
        """What the caller is told."""
        return self.value[0]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.value[1]
