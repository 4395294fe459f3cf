"""May they: caller, operation and key to allowed, or a reason. Pure: no I/O, no clock, no names.

The table ``_RULES`` says which rule answers for each operation; an operation that isn't in it is
refused to everybody. The order of reasons: what is wrong with the caller's standing, then that an
operator never uses keys, then that the process belongs to a person, then policy.

==============================  =================================================================
operation                       allowed to
==============================  =================================================================
ENCRYPT                         services in the key's allow list (and its encrypt groups, if any)
DECRYPT, REWRAP                 services in the key's allow list (and its decrypt groups, if any)
REENCRYPT                       services that may decrypt and encrypt
GENERATE_DATA_KEY               services that may encrypt, where the key allows data keys
DECRYPT_DATA_KEY                services that may decrypt, where the key allows data keys
DESCRIBE_KEY                    operators, auditors, services with any operation on that key
LIST_KEYS, REFLECT              whoever is allowed anything; the list is cut to ``visible_keys``
ROTATE_KEY                      operators
DISABLE_VERSION, …              operators: ENABLE_, DESTROY_ and CANCEL_DESTROY_VERSION, too
REQUEST_ACCESS                  requesters, for any key of the configuration; never operators
ACTIVATE_ACCESS                 requesters (the machine: each its own); never operators
CANCEL_ACCESS                   requesters (the machine: each its own)
USE_ACCESS                      requesters, in place of the key's own policy; never operators. The
                                grant decides the rest (grants.py)
DECIDE_ACCESS                   approvers: members of any level's group, be they operators or not
LIST_ACCESS                     requesters (their own), approvers, operators, auditors (all)
REVOKE_ACCESS                   requesters (the machine: each its own), approvers, operators
READ_AUDIT                      whoever is allowed anything; cut to one's own records unless auditor
GET_STATUS, HEALTH              anybody who can connect
==============================  =================================================================

An operator is refused every encryption operation, whatever groups it is in. An auditor is no
service: its role opens no key, and takes none away from an account that is a service as well. Root
is nobody special. A person's login (I4) is no service; as operator, auditor, requester or approver
it is unaffected. But where its login is another account's (``su``), it can't ask, decide, activate
or use for the account that it has become; it can still cancel and revoke, which only take away.

Requesters may know the names of all keys, since they must name one: LIST_KEYS shows them these, and
no versions (DESCRIBE_KEY is refused). Approvers see the keys that requests name, in the requests.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from keyside_sidecar.access.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyside_sidecar.access.elevation_policy import ElevationPolicy


class Operation(enum.Enum):
    """What a caller asks for. A new member is refused until ``_RULES`` lists it."""

    ENCRYPT = "encrypt"
    DECRYPT = "decrypt"
    REWRAP = "rewrap"
    REENCRYPT = "reencrypt"
    GENERATE_DATA_KEY = "generate data key"
    DECRYPT_DATA_KEY = "decrypt data key"
    DESCRIBE_KEY = "describe key"
    LIST_KEYS = "list keys"
    ROTATE_KEY = "rotate key"
    DISABLE_VERSION = "disable version"
    ENABLE_VERSION = "enable version"
    DESTROY_VERSION = "destroy version"
    CANCEL_DESTROY_VERSION = "cancel destroy version"
    REQUEST_ACCESS = "request access"
    DECIDE_ACCESS = "decide access"
    LIST_ACCESS = "list access"
    CANCEL_ACCESS = "cancel access"
    ACTIVATE_ACCESS = "activate access"
    REVOKE_ACCESS = "revoke access"
    USE_ACCESS = "use access"
    READ_AUDIT = "read audit"
    GET_STATUS = "get status"
    HEALTH = "health"
    REFLECT = "reflect"


class Principal(Protocol):
    """What policy looks at in a caller."""

    @property
    def uid(self) -> int:
        """The user id."""

    @property
    def gids(self) -> frozenset[int]:
        """All its groups, the primary one too."""

    @property
    def standing(self) -> Reason | None:
        """Not None: it is refused everything but health and the public part of status."""

    @property
    def person(self) -> Reason | None:
        """Not None: the process belongs to a person's login, or that can't be read (I4)."""

    @property
    def borrowed(self) -> Reason | None:
        """Not None: the process belongs to the login of another account, or can't be read."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An account that policy is asked about although it is not calling.

    Args:
        uid: The caller's user id.
        gids: All its groups, the primary one too.
        standing: Not None: it is refused everything but health and the public part of status.
        person: Not None: the process belongs to a person's login, or that can't be read (I4).
        borrowed: Not None: the process belongs to the login of another account than its own, or
            that can't be read: whoever is behind it, it is not known to be that account's person.
    """

    uid: int
    gids: frozenset[int]
    standing: Reason | None = None
    person: Reason | None = None
    borrowed: Reason | None = None


@dataclass(frozen=True, slots=True)
class ResolvedPrincipals:
    """Groups and users by number; a subject belongs through either."""

    gids: frozenset[int] = frozenset()
    uids: frozenset[int] = frozenset()

    def include(self, subject: Principal) -> bool:
        """Return whether the subject is one of these."""
        return subject.uid in self.uids or not self.gids.isdisjoint(subject.gids)


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """Who may use one key.

    Args:
        allowed: Who may do anything with it.
        encrypt_gids: Where not None, whatever seals an envelope needs one of these groups too.
        decrypt_gids: Where not None, whatever opens an envelope needs one of these groups too.
        allows_data_keys: Who may encrypt or decrypt is given data keys, too.
    """

    allowed: ResolvedPrincipals
    encrypt_gids: frozenset[int] | None = None
    decrypt_gids: frozenset[int] | None = None
    allows_data_keys: bool = False

    def may_encrypt(self, subject: Principal) -> bool:
        """Return whether the policy lets the subject encrypt."""
        return self.allowed.include(subject) and (
            self.encrypt_gids is None or not self.encrypt_gids.isdisjoint(subject.gids)
        )

    def may_decrypt(self, subject: Principal) -> bool:
        """Return whether the policy lets the subject decrypt and rewrap."""
        return self.allowed.include(subject) and (
            self.decrypt_gids is None or not self.decrypt_gids.isdisjoint(subject.gids)
        )

    def serves(self, subject: Principal) -> bool:
        """Return whether the policy lets the subject do anything with the key."""
        return self.may_encrypt(subject) or self.may_decrypt(subject)


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole policy, as numbers.

    Args:
        operators: Who may manage keys.
        auditors: Who may look at keys (not through them).
        keys: Each key's policy by its name.
        elevation: Who may ask for access and who decides; None where nobody can have any.
    """

    operators: ResolvedPrincipals = field(default_factory=ResolvedPrincipals)
    auditors: ResolvedPrincipals = field(default_factory=ResolvedPrincipals)
    keys: Mapping[str, KeyPolicy] = field(default_factory=lambda: MappingProxyType({}))
    elevation: ElevationPolicy | None = None

    @property
    def gids(self) -> frozenset[int]:
        """All groups that the policy names; no other group of a caller matters."""
        named = [self.operators.gids, self.auditors.gids]
        for key in self.keys.values():
            named += [key.allowed.gids, key.encrypt_gids or frozenset()]
            named.append(key.decrypt_gids or frozenset())
        if self.elevation is not None:
            named += [self.elevation.requester_gids, self.elevation.level_gids]
        return frozenset().union(*named)

    @property
    def uids(self) -> frozenset[int]:
        """All users that the policy names."""
        named = [self.operators.uids, self.auditors.uids]
        named += [key.allowed.uids for key in self.keys.values()]
        return frozenset().union(*named)

    def decide(self, subject: Principal, operation: Operation, key: str | None) -> Reason | None:
        """Return None where the subject may carry out the operation, otherwise why not.

        A key that doesn't exist and one that the subject may not use give the same reason.

        Args:
            subject: The caller.
            operation: What it asks for.
            key: The name it gives; None for operations without a key.
        """
        rule = _RULES.get(operation)
        if rule is None:
            return subject.standing or Reason.METHOD_UNKNOWN
        return rule(self, subject, key)

    def decide_for_any(self, subject: Principal, operation: Operation) -> Reason | None:
        """Return None where there is a key that the subject may do this with, otherwise why not.

        Args:
            subject: The caller.
            operation: One that is about a key.
        """
        reason = self.decide(subject, operation, None)
        if reason is not Reason.NOT_ALLOWED:
            return reason
        allowed = any(self.decide(subject, operation, key) is None for key in self.keys)
        return None if allowed else reason

    def is_allowed_anything(self, subject: Principal) -> bool:
        """Return whether any operation but health and public status is open to the subject."""
        if subject.standing is not None:
            return False
        if self._may_look(subject) or self.is_requester(subject) or self.is_approver(subject):
            return True
        return subject.person is None and any(key.serves(subject) for key in self.keys.values())

    def visible_keys(self, subject: Principal) -> frozenset[str]:
        """Return the names of the keys that the subject may know of."""
        if subject.standing is not None:
            return frozenset()
        if self._may_look(subject) or self.is_requester(subject):
            return frozenset(self.keys)
        if subject.person is not None:
            return frozenset()
        return frozenset(name for name, key in self.keys.items() if key.serves(subject))

    def is_requester(self, subject: Principal) -> bool:
        """Return whether the subject is in a group that may ask for access."""
        return self.elevation is not None and not self.elevation.requester_gids.isdisjoint(
            subject.gids
        )

    def is_approver(self, subject: Principal) -> bool:
        """Return whether the subject is in a group of any level of approval."""
        return self.elevation is not None and not self.elevation.level_gids.isdisjoint(subject.gids)

    def may_see_all_access(self, subject: Principal) -> bool:
        """Return whether the subject sees everybody's requests and grants, not only its own."""
        return subject.standing is None and (self._may_look(subject) or self.is_approver(subject))

    def may_read_all_audit(self, subject: Principal) -> bool:
        """Return whether the subject reads everybody's audit records, not only its own."""
        return subject.standing is None and self.auditors.include(subject)

    def _may_look(self, subject: Principal) -> bool:
        return self.operators.include(subject) or self.auditors.include(subject)


def _refuse_as_service(policy: Policy, subject: Principal) -> Reason | None:
    """Return why the subject is no service at all, whatever the key."""
    if subject.standing is not None:
        return subject.standing
    if policy.operators.include(subject):
        return Reason.OPERATOR_MAY_NOT_USE_KEYS
    return subject.person


def _decide_encrypt(policy: Policy, subject: Principal, key: str | None) -> Reason | None:
    refusal = _refuse_as_service(policy, subject)
    if refusal is not None:
        return refusal
    found = policy.keys.get(key) if key is not None else None
    return None if found is not None and found.may_encrypt(subject) else Reason.NOT_ALLOWED


def _decide_decrypt(policy: Policy, subject: Principal, key: str | None) -> Reason | None:
    refusal = _refuse_as_service(policy, subject)
    if refusal is not None:
        return refusal
    found = policy.keys.get(key) if key is not None else None
    return None if found is not None and found.may_decrypt(subject) else Reason.NOT_ALLOWED


def _decide_reencrypt(policy: Policy, subject: Principal, key: str | None) -> Reason | None:
    return _decide_decrypt(policy, subject, key) or _decide_encrypt(policy, subject, key)


def _decide_generate_data_key(policy: Policy, subject: Principal, key: str | None) -> Reason | None:
    return _decide_encrypt(policy, subject, key) or _decide_data_keys(policy, key)


def _decide_decrypt_data_key(policy: Policy, subject: Principal, key: str | None) -> Reason | None:
    return _decide_decrypt(policy, subject, key) or _decide_data_keys(policy, key)


def _decide_data_keys(policy: Policy, key: str | None) -> Reason | None:
    """Return why nobody is given data keys of a key; asked only for who may use that key."""
    found = policy.keys.get(key) if key is not None else None
    allowed = found is not None and found.allows_data_keys
    return None if allowed else Reason.DATA_KEYS_NOT_ALLOWED


def _decide_describe(policy: Policy, subject: Principal, key: str | None) -> Reason | None:
    if subject.standing is not None:
        return subject.standing
    found = policy.keys.get(key) if key is not None else None
    if policy._may_look(subject):  # noqa: SLF001  (the rules are the policy's own)
        return None if found is not None else Reason.NOT_ALLOWED
    if subject.person is not None:
        return subject.person
    return None if found is not None and found.serves(subject) else Reason.NOT_ALLOWED


def _decide_list(policy: Policy, subject: Principal, _key: str | None) -> Reason | None:
    if policy.is_allowed_anything(subject):
        return None
    return subject.standing or subject.person or Reason.NOT_ALLOWED


def _decide_manage(policy: Policy, subject: Principal, key: str | None) -> Reason | None:
    if subject.standing is not None:
        return subject.standing
    if not policy.operators.include(subject):
        return Reason.NOT_AN_OPERATOR  # before the key is looked at: nothing leaks
    return None if key is not None and key in policy.keys else Reason.NOT_ALLOWED


def _decide_request(policy: Policy, subject: Principal, key: str | None) -> Reason | None:
    refusal = _refuse_as_requester(policy, subject)
    if refusal is not None:
        return refusal
    return None if key is not None and key in policy.keys else Reason.NOT_ALLOWED


def _refuse_as_requester(policy: Policy, subject: Principal) -> Reason | None:
    """Return why the subject can't get or hold a grant, whatever the key."""
    if subject.standing is not None:
        return subject.standing
    if policy.operators.include(subject):
        return Reason.OPERATOR_MAY_NOT_USE_KEYS
    if not policy.is_requester(subject):
        return Reason.NOT_A_REQUESTER
    return subject.borrowed


def _decide_activate(policy: Policy, subject: Principal, _key: str | None) -> Reason | None:
    return _refuse_as_requester(policy, subject)


def _decide_cancel(policy: Policy, subject: Principal, _key: str | None) -> Reason | None:
    if subject.standing is not None:
        return subject.standing
    return None if policy.is_requester(subject) else Reason.NOT_A_REQUESTER


def _decide_approval(policy: Policy, subject: Principal, _key: str | None) -> Reason | None:
    if subject.standing is not None:
        return subject.standing
    return subject.borrowed if policy.is_approver(subject) else Reason.NOT_AN_APPROVER


def _decide_list_access(policy: Policy, subject: Principal, _key: str | None) -> Reason | None:
    if subject.standing is not None:
        return subject.standing
    sees = policy.may_see_all_access(subject) or policy.is_requester(subject)
    return None if sees else Reason.NOT_ALLOWED


def _decide_revoke(policy: Policy, subject: Principal, _key: str | None) -> Reason | None:
    if subject.standing is not None:
        return subject.standing
    may = (
        policy.operators.include(subject)
        or policy.is_approver(subject)
        or policy.is_requester(subject)
    )
    return None if may else Reason.NOT_ALLOWED


def _allow_anybody(_policy: Policy, _subject: Principal, _key: str | None) -> Reason | None:
    return None


_RULES: Final[Mapping[Operation, Callable[[Policy, Principal, str | None], Reason | None]]] = (
    MappingProxyType(
        {
            Operation.ENCRYPT: _decide_encrypt,
            Operation.DECRYPT: _decide_decrypt,
            Operation.REWRAP: _decide_decrypt,
            Operation.REENCRYPT: _decide_reencrypt,
            Operation.GENERATE_DATA_KEY: _decide_generate_data_key,
            Operation.DECRYPT_DATA_KEY: _decide_decrypt_data_key,
            Operation.DESCRIBE_KEY: _decide_describe,
            Operation.LIST_KEYS: _decide_list,
            Operation.ROTATE_KEY: _decide_manage,
            Operation.DISABLE_VERSION: _decide_manage,
            Operation.ENABLE_VERSION: _decide_manage,
            Operation.DESTROY_VERSION: _decide_manage,
            Operation.CANCEL_DESTROY_VERSION: _decide_manage,
            Operation.REQUEST_ACCESS: _decide_request,
            Operation.DECIDE_ACCESS: _decide_approval,
            Operation.LIST_ACCESS: _decide_list_access,
            Operation.CANCEL_ACCESS: _decide_cancel,
            Operation.ACTIVATE_ACCESS: _decide_activate,
            Operation.REVOKE_ACCESS: _decide_revoke,
            Operation.USE_ACCESS: _decide_request,
            Operation.READ_AUDIT: _decide_list,
            Operation.GET_STATUS: _allow_anybody,
            Operation.HEALTH: _allow_anybody,
            Operation.REFLECT: _decide_list,
        }
    )
)
