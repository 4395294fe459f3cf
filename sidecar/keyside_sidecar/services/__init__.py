"""Services: what Keyside does, for callers and in plain values; they know no protos and no gRPC.

Each takes a :class:`~keyside_sidecar.peer.caller.Caller`, whom policy or a grant has allowed what
it asks for, and a command; and returns a result (shapes.py). Every front door calls these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyside_sidecar.services.access import AccessService
    from keyside_sidecar.services.audit import AuditService
    from keyside_sidecar.services.batches import BatchService
    from keyside_sidecar.services.data_keys import DataKeyService
    from keyside_sidecar.services.encryption import EncryptionService
    from keyside_sidecar.services.keys import KeyService
    from keyside_sidecar.services.status import StatusService
    from keyside_sidecar.services.turns import Turns
    from keyside_sidecar.serving import ServingBoard


@dataclass(frozen=True, slots=True)
class Services:
    """All of them, of one worker.

    Args:
        encryption: Seals and opens …
        batches: … many at once …
        data_keys: … or gives callers what to seal and open with.
        keys: Shows keys, and changes them.
        access: People's access.
        audit: Reads the audit log.
        status: Says how the sidecar is.
        board: What is wrong, for probes.
        turns: Who works when.
        max_batch_bytes: How much a batch's items may have in all.
    """

    encryption: EncryptionService
    batches: BatchService
    data_keys: DataKeyService
    keys: KeyService
    access: AccessService
    audit: AuditService
    status: StatusService
    board: ServingBoard
    turns: Turns
    max_batch_bytes: int
