"""How far the store has come, as the log goes by it (I10).

A store's generation only grows, and a sidecar keeps its store. Another one, or an older copy, is
taken only when an operator has accepted it: the outcome of ``store.rollback_accepted``. The writer
seals that one at once, so a record that is not sealed may raise the generation and do no more:
whoever can write to the file can make such a record, and must not be able to lower it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.audit import is_generation

if TYPE_CHECKING:
    from collections.abc import Mapping

Generation = tuple[str, int]

ACCEPTED: Final = "store.rollback_accepted"


def take_generation(store_id: object, generation: object) -> Generation | None:
    """Return a store's id, in hex, and its generation; None where they are not that."""
    if is_generation(store_id, generation):
        assert isinstance(store_id, str)  # noqa: S101
        assert isinstance(generation, int)  # noqa: S101
        return store_id, generation
    return None


def raise_generation(known: Generation | None, found: Generation | None) -> Generation | None:
    """Return how far the store has come at least; ``found`` counts if it is the same store's."""
    if found is None or known is None:
        return known or found
    return found if found[0] == known[0] and found[1] > known[1] else known


def read_generation(fields: Mapping[str, object]) -> Generation | None:
    """Return what a record says of the store; None where it says nothing that can be used."""
    details = fields.get("details")
    if not isinstance(details, dict):
        return None
    return take_generation(details.get("store_id"), details.get("store_generation"))


def is_accepted(fields: Mapping[str, object]) -> bool:
    """Return whether a record says that another or an older store was taken."""
    return (
        fields.get("event") == ACCEPTED
        and fields.get("phase") == "outcome"
        and fields.get("outcome") == "ok"
    )
