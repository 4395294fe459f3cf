"""Between this package's values and the messages for batches and data keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from keyside._messages import as_bytes, as_context, read_duration
from keyside._translate import translate_item
from keyside.batch_results import BatchResult, OpenedResult, SealedResult
from keyside.data_keys import IssuedDataKey, OpenedDataKey
from keyside.envelope import DataKey, suite_by_name
from keyside.errors import InvalidArgument, KeysideError, UnexpectedAnswer
from keyside.names import parse_key_name
from keyside.v1 import encryption_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message
    from google.rpc import status_pb2

_Result = TypeVar("_Result", bound=BatchResult)


class BatchKind(Generic[_Result]):
    """One of the batch calls: how its items, requests and results are made.

    Args:
        method: The call's name.
        make_item: Makes an item's message of what the caller gave; raises InvalidArgument.
        make_request: Makes the request of items' messages.
        read_result: Makes the result of an item's answer without an error.
        make_failure: Makes the result of an item's error.
    """

    def __init__(
        self,
        method: str,
        make_item: Callable[[Any], Message],
        make_request: Callable[[Sequence[Any]], Message],
        read_result: Callable[[Any], _Result],
        make_failure: Callable[[KeysideError], _Result],
    ) -> None:
        self.method = method
        self.make_item = make_item
        self.make_request = make_request
        self.make_failure = make_failure
        self._read_result = read_result

    def read_results(self, answer: Any, count: int) -> list[_Result]:
        """Return the results of an answer, in the items' order.

        Raises:
            UnexpectedAnswer: There are not as many as there were items.
        """
        if len(answer.results) != count:
            del answer  # its repr shows plaintexts, and a traceback may show the locals
            raise UnexpectedAnswer("the sidecar's answer has not one result for each item")
        return [self._read_one(result) for result in answer.results]

    def _read_one(self, result: Any) -> _Result:
        if result.HasField("status") and result.status.code:
            status: status_pb2.Status = result.status
            return self.make_failure(translate_item(status))
        return self._read_result(result)


def _encrypt_item(given: Any) -> encryption_pb2.BatchEncryptItem:
    key, plaintext, context = _take_apart(given, 2, "(key, plaintext) or (key, plaintext, context)")
    return encryption_pb2.BatchEncryptItem(
        key=parse_key_name(key),
        plaintext=as_bytes("plaintext", plaintext),
        context=as_context(context),
    )


def _decrypt_item(given: Any) -> encryption_pb2.BatchDecryptItem:
    if isinstance(given, (bytes, bytearray, memoryview)):
        given = (given,)
    envelope, context = _take_apart(given, 1, "an envelope or (envelope, context)")
    return encryption_pb2.BatchDecryptItem(
        envelope=as_bytes("envelope", envelope), context=as_context(context)
    )


def _rewrap_item(given: Any) -> encryption_pb2.BatchRewrapItem:
    return encryption_pb2.BatchRewrapItem(envelope=as_bytes("envelope", given))


def _take_apart(given: Any, least: int, form: str) -> tuple[Any, ...]:
    if not isinstance(given, (tuple, list)) or not least <= len(given) <= least + 1:
        raise InvalidArgument(f"an item is {form}")
    return tuple(given) if len(given) > least else (*given, None)


ENCRYPT = BatchKind(
    "BatchEncrypt",
    _encrypt_item,
    lambda items: encryption_pb2.BatchEncryptRequest(items=items),
    lambda result: SealedResult(result.envelope, result.version.key, result.version.number),
    lambda error: SealedResult(error=error),
)
DECRYPT = BatchKind(
    "BatchDecrypt",
    _decrypt_item,
    lambda items: encryption_pb2.BatchDecryptRequest(items=items),
    lambda result: OpenedResult(result.plaintext, result.version.key, result.version.number),
    lambda error: OpenedResult(error=error),
)
REWRAP = BatchKind(
    "BatchRewrap",
    _rewrap_item,
    lambda items: encryption_pb2.BatchRewrapRequest(items=items),
    lambda result: SealedResult(result.envelope, result.version.key, result.version.number),
    lambda error: SealedResult(error=error),
)


def generate_request(key: str, *, wrapped_only: bool) -> encryption_pb2.GenerateDataKeyRequest:
    """Build a GenerateDataKeyRequest.

    Raises:
        InvalidArgument: The key's name is not valid.
    """
    return encryption_pb2.GenerateDataKeyRequest(
        key=parse_key_name(key), wrapped_only=bool(wrapped_only)
    )


def unwrap_request(wrapped: bytes) -> encryption_pb2.DecryptDataKeyRequest:
    """Build a DecryptDataKeyRequest.

    Raises:
        InvalidArgument: It is no bytes.
    """
    return encryption_pb2.DecryptDataKeyRequest(wrapped=as_bytes("wrapped", wrapped))


def read_issued(
    message: encryption_pb2.GenerateDataKeyResponse, *, wrapped_only: bool
) -> IssuedDataKey:
    """Return the data key that was made.

    Raises:
        UnexpectedAnswer: It is none, or its suite is not known here.
    """
    try:
        suite_by_name(message.suite)
        data_key = None if wrapped_only else DataKey(message.plaintext)
    except InvalidArgument:
        del message  # its repr shows the key, and a traceback may show the locals
        raise UnexpectedAnswer("the sidecar's answer holds no data key that can be used") from None
    return IssuedDataKey(
        data_key=data_key,
        wrapped=message.wrapped,
        key=message.version.key,
        version=message.version.number,
        suite=message.suite,
        max_age_s=read_duration(message.max_age).total_seconds(),
        max_messages=message.max_messages,
        max_bytes=message.max_bytes,
    )


def read_opened(message: encryption_pb2.DecryptDataKeyResponse) -> OpenedDataKey:
    """Return the data key that was unwrapped.

    Raises:
        UnexpectedAnswer: It is none.
    """
    try:
        data_key = DataKey(message.plaintext)
    except InvalidArgument:
        del message  # as above
        raise UnexpectedAnswer("the sidecar's answer holds no data key") from None
    return OpenedDataKey(
        data_key=data_key,
        key=message.version.key,
        version=message.version.number,
        max_age_s=read_duration(message.max_age).total_seconds(),
    )
