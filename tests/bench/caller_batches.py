"""What a caller's process runs for batches.py; given to it as text.

Requests are made once and sent as bytes, so that the caller's own work holds nothing up.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc

from keyside.v1 import encryption_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import keyside

KEY = "mail-credentials"
SERVICE = "/keyside.v1.EncryptionService/"
MAX_ANSWER_BYTES = 64 << 20
ANSWERS: dict[str, Any] = {
    "BatchEncrypt": pb.BatchEncryptResponse,
    "BatchDecrypt": pb.BatchDecryptResponse,
    "BatchRewrap": pb.BatchRewrapResponse,
}
channel = grpc.insecure_channel(
    f"unix:{os.environ['KEYSIDE_SOCKET']}",
    [("grpc.max_receive_message_length", MAX_ANSWER_BYTES)],
)
requests: dict[str, Iterator[bytes]] = {}
stopping = threading.Event()
under_way: list[threading.Thread] = []


def call(method: str, request: bytes) -> bytes:
    """Make one call."""
    make: Callable[..., bytes] = channel.unary_unary(SERVICE + method)
    return make(request, timeout=60)


def encrypt_request(count: int) -> bytes:
    """Return a request with that many items of 256 bytes."""
    item = pb.BatchEncryptItem(key=KEY, plaintext=bytes(256))
    return pb.BatchEncryptRequest(items=[item] * count).SerializeToString()


def prepare(client: keyside.Client, items: int, sets: int) -> None:
    """Make all requests."""
    encrypt = encrypt_request(items)
    requests["BatchEncrypt"] = itertools.repeat(encrypt)
    sealed = pb.BatchEncryptResponse.FromString(call("BatchEncrypt", encrypt))
    of_one = [pb.BatchDecryptItem(envelope=result.envelope) for result in sealed.results]
    requests["BatchDecrypt, of one call"] = itertools.repeat(
        pb.BatchDecryptRequest(items=of_one).SerializeToString()
    )
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: client.encrypt(KEY, bytes(256)), range(items * sets)))
    several = [made[start : start + items] for start in range(0, items * sets, items)]
    requests["BatchDecrypt, of 1,000 different calls"] = itertools.cycle(
        pb.BatchDecryptRequest(
            items=[pb.BatchDecryptItem(envelope=one) for one in part]
        ).SerializeToString()
        for part in several
    )
    requests["BatchRewrap, of 1,000 different calls"] = itertools.cycle(
        pb.BatchRewrapRequest(
            items=[pb.BatchRewrapItem(envelope=one) for one in part]
        ).SerializeToString()
        for part in several
    )


def send(name: str, count: int) -> float:
    """Send batches one after the other; return how long it took.

    Raises:
        RuntimeError: An item failed.
    """
    method = name.partition(",")[0]
    began = time.perf_counter()
    answers = [call(method, request) for request in itertools.islice(requests[name], count)]
    taken = time.perf_counter() - began
    for answer in (answers[0], answers[-1]):
        if any(result.status.code for result in ANSWERS[method].FromString(answer).results):
            raise RuntimeError(f"{name}: an item failed")
    if len(set(map(len, answers))) != 1:
        raise RuntimeError(f"{name}: the answers are not alike")
    return taken


def prepare_long(items: int) -> None:
    """Make the request of a long batch."""
    requests["long"] = itertools.repeat(encrypt_request(items))


def begin() -> None:
    """Send one long batch after the other, until ``end``."""
    stopping.clear()

    def work() -> None:
        while not stopping.is_set():
            call("BatchEncrypt", next(requests["long"]))

    under_way.append(threading.Thread(target=work))
    under_way[0].start()


def end() -> None:
    """Send no more."""
    stopping.set()
    under_way.pop().join()
