"""No secret leaves by an error or by the log (I7), not even when something fails that never should.

The sidecar of the first tests is a real one in which the envelope code raises exceptions that quote
what they were given, and health raises too. Of the others nothing is changed.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.marks import find_secrets, read_files, read_root_key, write_forms
from support.remote import Remote
from support.sidecar import (
    ENCRYPT_ONLY_UID,
    OPERATOR_UID,
    PYTHON,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)

from keyside.names import KeyName
from keyside_sidecar.custody.file import FileCustodian
from keyside_sidecar.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

KEY = "mail-credentials"
STRANGER_UID = 64299
OWNERS = frozenset({os.geteuid(), SIDECAR_UID})
# Replaces functions before the workers are forked, which then import them as they are.
SABOTAGE = """
import runpy, sys
import keyside.envelope as envelope
from keyside_sidecar.serving import ServingBoard

class Speaking(BaseException): pass

def blurt(kind, *secrets):
    try:
        raise KeyError(secrets)
    except KeyError as cause:
        error = kind(f"failed on {secrets!r}", secrets)
        error.add_note(f"it was {secrets!r}")
        raise error from cause

def seal(version, plaintext, context, suite):
    if plaintext.startswith(b"group"):
        raise ExceptionGroup(repr(plaintext), [ValueError(plaintext, version.material)])
    blurt(ValueError, plaintext, context, version.material)

def open_envelope(version, envelope, context):
    if "through" in context:
        return really_open(version, envelope, context)
    blurt(RuntimeError, really_open(version, envelope, context), context, version.material.hex())

def serves_keys(self):
    blurt(TypeError, "marked-health-0123456789")

really_seal, really_open = envelope.seal, envelope.open_envelope
envelope.seal, envelope.open_envelope = seal, open_envelope
ServingBoard.serves_keys = serves_keys
sys.argv = ["keysided", *sys.argv[4:]]
runpy.run_module("keyside_sidecar", run_name="__main__", alter_sys=True)
"""
# Every error, as it comes over the wire and as the package raises it.
RAW = """
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from keyside.v1 import encryption_pb2, encryption_pb2_grpc, keys_pb2, keys_pb2_grpc
channel = grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1)])
encryption = encryption_pb2_grpc.EncryptionServiceStub(channel)
health = health_pb2_grpc.HealthStub(channel)
def describe(error):
    trailing = {key: value for key, value in error.trailing_metadata() or ()}
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    infos = []
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            infos.append([info.reason, info.domain, dict(info.metadata)])
    return {
        "code": error.code().name,
        "text": error.details(),
        "infos": infos,
        "trailing": sorted(trailing),
        "everything": repr((error.details(), trailing, error.debug_error_string())),
    }
def fail(call, *arguments, **settings):
    try:
        call(*arguments, **settings)
    except grpc.RpcError as error:
        return describe(error)
    raise AssertionError("the call succeeded")
"""


@pytest.fixture(scope="module")
def broken() -> Iterator[Sidecar]:
    """A sidecar that fails inside, and tells everything to whoever asks its exceptions."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory, settings='log_level = "debug"')
        sidecar.prepare()
        sidecar.launcher = [PYTHON, "-c", SABOTAGE]
        sidecar.start()
        try:
            yield sidecar
        finally:
            sidecar.kill()


def list_versions(sidecar: Sidecar) -> dict[str, bytes]:
    """Return the material of all key versions, by what they are."""
    custodian = FileCustodian.load(sidecar.root_key, owner_uids=OWNERS)
    store = Store.open(f"sqlite:///{sidecar.store}", custodian, owner_uids=OWNERS)
    try:
        found = {}
        for key in store.list_keys():
            for number in range(1, key.version_count + 1):
                material = store.find_version(KeyName(key.name), number).material
                assert material is not None
                found[f"version {number} of {key.name}"] = material.material
    finally:
        store.close()
    return found


def check_is_internal(failure: dict[str, Any], log: str) -> None:
    """Check that the answer holds a request id and nothing else, and the log what it names."""
    request_id = failure["infos"][0][2]["request_id"]
    assert re.fullmatch("[0-9a-f]{16}", request_id)
    assert failure["code"] == "INTERNAL"
    assert failure["text"] == f"the sidecar failed inside; request id {request_id}"
    assert [info[:2] for info in failure["infos"]] == [["INTERNAL", "keyside"]]
    assert set(failure["infos"][0][2]) == {"request_id", "remedy"}
    assert failure["trailing"] == ["grpc-status-details-bin"]
    (line,) = (line for line in log.splitlines() if request_id in line)
    assert 'level=error event="unexpected error"' in line
    assert "frames=" in line


def test_i7_an_exception_that_is_not_ours_is_a_request_id_and_nothing_else(broken: Sidecar) -> None:
    plaintexts = {"plaintext": b"marked-plaintext-31415926", "group": b"group-marked-27182818"}
    context = "marked-context-16180339"
    with Remote(broken) as service, Remote(broken, STRANGER_UID) as stranger:
        service.run(RAW)
        stranger.run(RAW)
        failures = [
            service.run(
                "request = encryption_pb2.EncryptRequest(\n"
                "    key=key, plaintext=bytes.fromhex(plaintext), context={'record': context})\n"
                "answer = fail(encryption.Encrypt, request)",
                key=KEY,
                plaintext=plaintext.hex(),
                context=context,
            )
            for plaintext in plaintexts.values()
        ]
        for who in (service, stranger):
            failures += who.run(
                "key_health = health_pb2.HealthCheckRequest(service='keyside.v1.KeyService')\n"
                "answer = [fail(health.Check, key_health),\n"
                "          fail(health.List, health_pb2.HealthListRequest()),\n"
                "          fail(lambda: list(health.Watch(key_health)))]"
            )
        client_error = service.run(
            "try:\n    client.encrypt(key, bytes.fromhex(plaintext), {'record': context})\n"
            "except keyside.KeysideError as error:\n"
            "    import traceback\n"
            "    answer = [type(error).__name__, error.code, error.reason, error.request_id,\n"
            "              repr(error), ''.join(traceback.format_exception(error))]"
        )
        assert client_error[:3] == ["UnexpectedAnswer", "INTERNAL", "INTERNAL"]
        assert service.run("answer = health.Check(health_pb2.HealthCheckRequest()).status") == 1
        status = broken.keyside("status", "--json")
        assert status.returncode == 0, "what failed were single calls"
    log = broken.log.read_text()
    assert client_error[3] in log
    assert len(failures) == 8
    for failure in failures:
        check_is_internal(failure, log)
    secrets = {
        **plaintexts,
        "context": context.encode(),
        "health": b"marked-health-0123456789",
        **list_versions(broken),
    }
    places = {
        "log": log.encode(),
        "status": status.stdout + status.stderr,
        "errors": repr(failures).encode(),
        "client's error": repr(client_error).encode(),
    }
    assert find_secrets(places, secrets) == []


def test_i7_an_exception_after_decryption_tells_nothing_either(broken: Sidecar) -> None:
    """The envelope comes from the same store, sealed while nothing was broken."""
    assert broken.stop() == 0
    launcher, broken.launcher = broken.launcher, ()
    plaintext = b"marked-opened-14142135"
    with Remote(broken) as service:
        broken.start()
        sealed, sealed_too = service.run(
            "answer = [client.encrypt(key, bytes.fromhex(p), context)\n"
            "          for context in ({}, {'through': 'to the sealing'})]",
            key=KEY,
            p=plaintext.hex(),
        )
        assert broken.stop() == 0
        broken.launcher = launcher
        broken.start()
        service.run(RAW)
        failures = service.run(
            "opened, through = bytes.fromhex(opened), bytes.fromhex(through)\n"
            "Decrypt, Reencrypt = encryption_pb2.DecryptRequest, encryption_pb2.ReencryptRequest\n"
            "context = {'through': 'to the sealing'}\n"
            "answer = [\n"
            "    fail(encryption.Decrypt, Decrypt(envelope=opened), wait_for_ready=True),\n"
            "    fail(encryption.Reencrypt, Reencrypt(envelope=opened)),\n"
            "    fail(encryption.Reencrypt, Reencrypt(envelope=through, context=context)),\n"
            "]",
            opened=sealed,
            through=sealed_too,
        )
    log = broken.log.read_text()
    for failure in failures:
        check_is_internal(failure, log)
    secrets = {"plaintext": plaintext, **list_versions(broken)}
    places = {"log": log.encode(), "errors": repr(failures).encode()}
    assert find_secrets(places, secrets) == []


# What a service, a stranger and others do in a day, and what goes wrong with it.
TRAFFIC = (
    RAW
    + """
secret, context = bytes.fromhex(secret), {"record": context}
Encrypt, Decrypt = encryption_pb2.EncryptRequest, encryption_pb2.DecryptRequest
Rewrap, Reencrypt = encryption_pb2.RewrapRequest, encryption_pb2.ReencryptRequest
failures = []
def must_fail(call, *arguments, **settings):
    failures.append(fail(call, *arguments, **settings)["everything"])
def must_raise(call, *arguments):
    try:
        call(*arguments)
    except keyside.KeysideError as error:
        failures.append(repr((type(error), error, error.args, vars(error))))
        return
    raise AssertionError("the call succeeded")
"""
)
SERVICE_DAY = """
envelopes = [client.encrypt(key, secret, context) for key in ["mail-credentials"] * 3]
for envelope in envelopes:
    assert client.decrypt(envelope, context) == secret
    assert client.decrypt(client.rewrap(envelope), context) == secret
    renewed = encryption.Reencrypt(Reencrypt(envelope=envelope, context=context))
    assert client.decrypt(renewed.envelope, context) == secret
    other_context = {"record": "another"}
    must_fail(encryption.Reencrypt, Reencrypt(envelope=envelope, context=other_context))
    must_fail(encryption.Reencrypt, Reencrypt(envelope=envelope + secret, context=context))
    must_raise(client.decrypt, envelope, {"record": "another"})
    must_raise(client.decrypt, envelope[:-1], context)
    must_raise(client.decrypt, envelope + secret, context)
    must_raise(client.rewrap, secret)
    must_raise(client.decrypt, secret, context)
    for place in range(0, len(envelope), 16):
        flipped = bytearray(envelope)
        flipped[place] ^= 1
        must_raise(client.decrypt, bytes(flipped), context)
must_raise(client.encrypt, "payroll", secret, context)
must_raise(client.encrypt, "no-such-key", secret, context)
must_fail(encryption.Encrypt, Encrypt(key="mail-credentials", plaintext=secret * 60_000))
must_fail(encryption.Encrypt, Encrypt(key="mail-credentials", plaintext=secret * 300_000))
must_fail(encryption.Encrypt, Encrypt(key="mail-credentials", plaintext=secret,
                                      context={"record": context["record"] * 100}))
must_fail(encryption.Encrypt, Encrypt(key="mail-credentials", plaintext=secret,
                                      context={context["record"] * 10: "value"}))
must_fail(encryption.Encrypt, Encrypt(key="Mail Credentials", plaintext=secret, context=context))
must_fail(encryption.Decrypt, Decrypt(envelope=envelopes[0], context={"": "value"}))
raw = channel.unary_unary("/keyside.v1.EncryptionService/Encrypt")
must_fail(raw, b"\\xff" + secret)
must_fail(raw, Encrypt(key="mail-credentials", plaintext=secret).SerializeToString()[:-1])
must_fail(channel.unary_unary("/keyside.v1.EncryptionService/Missing"), secret)
answer = {"failures": failures, "envelopes": [envelope.hex() for envelope in envelopes]}
"""
OTHERS_DAY = """
must_fail(encryption.Encrypt, Encrypt(key="payroll", plaintext=secret, context=context))
must_fail(encryption.Decrypt, Decrypt(envelope=bytes.fromhex(envelope), context=context))
must_fail(encryption.Rewrap, Rewrap(envelope=bytes.fromhex(envelope)))
must_fail(encryption.Reencrypt, Reencrypt(envelope=bytes.fromhex(envelope), context=context))
must_fail(encryption.Decrypt, Decrypt(envelope=secret, context=context))
answer = {"failures": failures}
"""


def test_i7_a_day_s_traffic_at_level_debug_leaves_no_trace_of_what_was_in_it() -> None:
    secret, context = os.urandom(24), base64.b32encode(os.urandom(20)).decode()
    given = {"secret": secret.hex(), "context": context}
    said: dict[str, bytes] = {}
    with running_sidecar(settings='log_level = "debug"\nworkers = 2') as sidecar:
        with Remote(sidecar, OPERATOR_UID) as operator, Remote(sidecar) as service:
            for round_number in range(2):
                day = service.run(TRAFFIC + SERVICE_DAY, **given)
                said[f"errors of round {round_number}"] = repr(day["failures"]).encode()
                operator.run(f"client.rotate_key({KEY!r})")
            for uid in (STRANGER_UID, ENCRYPT_ONLY_UID, OPERATOR_UID):
                with Remote(sidecar, uid) as other:
                    envelope = day["envelopes"][0]
                    answer = other.run(TRAFFIC + OTHERS_DAY, envelope=envelope, **given)
                    said[f"errors of uid {uid}"] = repr(answer["failures"]).encode()
            status = sidecar.keyside("status", "--json")
            versions = list_versions(sidecar)
        assert sidecar.stop() == 0
        files = read_files(sidecar.directory.rglob("*"))
        root_key = files.pop(sidecar.root_key.name)
        assert {"sidecar.log", "keyside.db", "keyside.toml"} <= set(files)
        assert b"level=debug" in files["sidecar.log"]
        assert b'event="call refused"' in files["sidecar.log"]
        assert len(versions) == 4
        secrets = {
            "plaintext": secret,
            "context": context.encode(),
            "root key": read_root_key(sidecar.root_key),
            "root key's line": root_key.strip(),
            **versions,
        }
        places = {**files, **said, "status": status.stdout + status.stderr}
        assert find_secrets(places, secrets) == []


@pytest.mark.parametrize("offset", range(4))
def test_the_search_finds_a_secret_however_it_was_written(offset: int) -> None:
    """Else the tests above would show nothing."""
    secret = os.urandom(32)
    around = bytes(offset) + secret + b"more"
    written = {
        "raw": around,
        "hex": around.hex().encode(),
        "upper": around.hex().upper().encode(),
        "base64": base64.b64encode(around),
        "base64url": base64.urlsafe_b64encode(around),
        "repr": repr(around).encode(),
    }
    found = find_secrets(written, {"it": secret})
    assert {line.split(" in ")[1].split(" as ")[0] for line in found} == set(written)
    assert find_secrets({"other": os.urandom(1 << 16)}, {"it": secret}) == []
    assert len(write_forms(secret)) == 10
