"""Grant: a person's grant is looked at before it is used, and the use is counted before any answer.

What is asked is recorded, the grant is looked at, the envelope is opened in memory, the use is
counted in the store, what came of it is recorded; only then is anything answered (I8, I9). So an
envelope that does not open costs no use, a grant that ended meanwhile gives nothing away, and one
that is over or does not cover the call uses up nothing of the key.

Each item of a batch is one use. All of a batch's uses are counted at once, and leave one intent and
one outcome.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyside.envelope import cut_wrapping_header, parse_wrapping_header
from keyside.errors import EnvelopeRejected
from keyside.names import KeyName
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.refusals import refuse_as
from keyside_sidecar.access.requests import AccessItem, AccessOperation
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.services.batches import OpenMany, RewrapMany, SealMany, UnreadableMany
from keyside_sidecar.services.encryption import Open, Rewrap, Seal, Sealed
from keyside_sidecar.services.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyside_sidecar.elevation.office import AccessOffice, PendingUse
    from keyside_sidecar.services.batch import Batch, Outcome
    from keyside_sidecar.services.shapes import Command, Result

# Each is a row that is written before anything is answered.
MAX_GRANTED_ITEMS: Final = 1_000


class GrantUses:
    """Looks at grants, and has their uses counted.

    Args:
        office: Knows the grants.
    """

    def __init__(self, office: AccessOffice) -> None:
        self._office = office

    def check(self, use: PendingUse, command: Command) -> None:
        """Refuse what the grant does not cover, before anything is opened.

        Raises:
            AccessRefused: Why.
        """
        self._office.check(use, self._describe(command, None))

    async def spend(self, use: PendingUse, command: Command, result: Result) -> None:
        """Count a use; what came of it may be answered only after this.

        Raises:
            AccessRefused: The grant is over by now, or does not cover it.
            StoreError: The store is away, or fails its checks.
        """
        await self._office.spend(use, self._describe(command, result))

    def judge(self, use: PendingUse, command: Command, batch: Batch) -> dict[int, AccessItem]:
        """Return what the grant shall cover, by place; have what it does not cover refused.

        Items that policy alone allows need no grant.

        Raises:
            BadRequest: There are too many items.
            AccessRefused: It covers nothing any more.
        """
        items = _describe_items(command)
        own, by_policy = use.found.key, batch.decide
        wished: dict[int, AccessItem] = {}
        refused: dict[int, Exception] = {}
        for place, wish in enumerate(items):
            if wish is None or by_policy(KeyName(wish.key)) is None:
                continue
            if wish.key != own:
                refused[place] = refuse_as(Reason.GRANT_SCOPE)
            else:
                wished[place] = wish
        known = list(wished.values())
        if isinstance(command, SealMany):  # they are sealed with the current version
            number = self._office.current_version(own)
            known = [replace(wish, version=number) for wish in known]
        verdicts = self._office.check_each(use, known)
        refused |= {
            place: verdict
            for place, verdict in zip(wished, verdicts, strict=True)
            if verdict is not None
        }
        batch.refused = refused
        batch.decide = lambda key: None if key == own else by_policy(key)
        return {place: wish for place, wish in wished.items() if place not in refused}

    async def spend_each(
        self,
        use: PendingUse,
        wished: Mapping[int, AccessItem],
        outcomes: list[Outcome],
        batch: Batch,
    ) -> None:
        """Have the uses counted that came to something; take back what may not be answered.

        Args:
            use: The grant.
            wished: What it shall cover, by place.
            outcomes: What the items came to; what may not be answered is replaced.
            batch: Counts them.

        Raises:
            AccessRefused: The grant is over by now.
            StoreError: The store is away, or fails its checks.
        """
        done: dict[int, AccessItem] = {}
        for place, wish in wished.items():
            outcome = outcomes[place]
            if isinstance(outcome, Sealed):
                number, envelope = int(outcome.version.number), _digest(outcome.envelope)
                done[place] = replace(wish, version=number, envelope_sha256=envelope)
            elif not isinstance(outcome, Failure):
                done[place] = wish
        if not done:
            return
        verdicts = await self._office.spend_each(use, list(done.values()))
        batch.uses = verdicts.count(None)
        for place, verdict in zip(done, verdicts, strict=True):
            if verdict is not None:
                outcomes[place] = batch.withdraw(outcomes[place], verdict)

    def _describe(self, command: Command, result: Result | None) -> AccessItem:
        """Return what a grant is asked to cover. Rewrapping sees no context.

        Of what is only going to be sealed there is no envelope yet; the version is the current one.
        """
        context: dict[str, str] | None
        match command:
            case Seal():
                if isinstance(result, Sealed):
                    version, envelope = int(result.version.number), result.envelope
                else:
                    version, envelope = self._office.current_version(command.key), b""
                context = dict(command.context)
                asked = AccessOperation.ENCRYPT
            case Open():
                version, envelope = int(command.header.version_number), command.envelope
                context, asked = dict(command.context), AccessOperation.DECRYPT
            case Rewrap():
                version, envelope = int(command.header.version_number), command.envelope
                context, asked = None, AccessOperation.REWRAP
            case _:
                raise TypeError(f"no grant covers {type(command).__name__}")
        return AccessItem(asked, command.key, version, context, _digest(envelope))


def _describe_items(command: Command) -> Sequence[AccessItem | None]:
    """Return what a grant is asked to cover for each item; None for an item that fails anyway.

    Raises:
        BadRequest: There are too many items.
    """
    if isinstance(command, UnreadableMany):
        return ()
    if not isinstance(command, (SealMany, OpenMany, RewrapMany)):
        raise TypeError(f"no grant covers {type(command).__name__}")
    count = len(command.items)
    if count > MAX_GRANTED_ITEMS:
        raise BadRequest(
            "items", f"are {count}; a grant is used for at most {MAX_GRANTED_ITEMS} at once"
        )
    return [_describe_item(command, place) for place in range(count)]


def _describe_item(command: SealMany | OpenMany | RewrapMany, place: int) -> AccessItem | None:
    if isinstance(command, SealMany):
        items = command.items
        context = dict(items.context(place))
        return AccessItem(AccessOperation.ENCRYPT, items.key(place), 0, context, b"")
    envelope = command.items.envelope(place)
    try:
        header = parse_wrapping_header(cut_wrapping_header(envelope))
    except EnvelopeRejected:
        return None
    rewraps = isinstance(command, RewrapMany)
    return AccessItem(
        AccessOperation.REWRAP if rewraps else AccessOperation.DECRYPT,
        header.key_name,
        int(header.version_number),
        None if rewraps else dict(command.items.context(place)),
        _digest(envelope),
    )


def _digest(envelope: bytes) -> bytes:
    return hashlib.sha256(envelope).digest()
