"""Probes by stock clients: the health protocol, reflection if configured, ``keyside status``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.remote import Remote, RemoteError
from support.sidecar import OPERATOR_UID, SERVICE_UID, Sidecar, running_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

STRANGER_UID = 64299
SERVICES = (
    "",
    "keyside.v1.EncryptionService",
    "keyside.v1.KeyService",
    "keyside.v1.AccessService",
    "keyside.v1.AuditService",
    "keyside.v1.StatusService",
)
# Everybody's probe: nothing in it is Keyside's.
PROBE = """
from grpc_health.v1 import health_pb2, health_pb2_grpc
channel = grpc.insecure_channel(target)
health = health_pb2_grpc.HealthStub(channel)
name = health_pb2.HealthCheckResponse.ServingStatus.Name
ask = lambda service: health_pb2.HealthCheckRequest(service=service)
"""
CHECK = "answer = name(health.Check(ask(service)).status)"
LIST = (
    "listed = health.List(health_pb2.HealthListRequest()).statuses\n"
    "answer = {service: name(found.status) for service, found in listed.items()}"
)
WATCH = "watch = health.Watch(ask(service)); answer = name(next(watch).status)"
REFLECT = """
from grpc_reflection.v1alpha import proto_reflection_descriptor_database as reflection
channel = grpc.insecure_channel(target)
database = reflection.ProtoReflectionDescriptorDatabase(channel)
"""


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """One that serves; no test here stops it."""
    with running_sidecar() as running:
        yield running


@pytest.fixture(params=[SERVICE_UID, OPERATOR_UID, STRANGER_UID, 0], ids=lambda uid: f"uid {uid}")
def probe(request: pytest.FixtureRequest, sidecar: Sidecar) -> Iterator[Remote]:
    """A prober: a service, an operator, somebody who is allowed nothing else, root."""
    with Remote(sidecar, request.param) as remote:
        remote.run(PROBE)
        yield remote


def test_anybody_may_check_list_and_watch(probe: Remote) -> None:
    for service in SERVICES:
        assert probe.run(CHECK, service=service) == "SERVING"
        assert probe.run(WATCH, service=service) == "SERVING"
        probe.run("watch.cancel()")
    assert probe.run(LIST) == dict.fromkeys(SERVICES, "SERVING")


@pytest.mark.parametrize("service", ["keyside.v1.Encryption", "grpc.health.v1.Health", "x" * 2000])
def test_an_unknown_service_is_not_found_and_watched_as_unknown(
    probe: Remote, service: str
) -> None:
    """As the protocol has it: a watch stays open, because the service may come."""
    with pytest.raises(RemoteError) as unknown:
        probe.run(CHECK, service=service)
    assert unknown.value.code == "NOT_FOUND"
    assert probe.run(WATCH, service=service) == "SERVICE_UNKNOWN"
    probe.run("watch.cancel()")


@pytest.mark.parametrize("uid", [SERVICE_UID, STRANGER_UID])
def test_every_watch_is_told_when_the_sidecar_drains(uid: int) -> None:
    watched = (*SERVICES[:3], "unknown.Service")  # four, which is as many as a stranger may have
    with running_sidecar() as sidecar, Remote(sidecar, uid) as probe:
        probe.run(PROBE)
        probe.run(
            "watches = {service: health.Watch(ask(service)) for service in services}\n"
            "first = [name(next(watch).status) for watch in watches.values()]",
            services=watched,
        )
        assert sidecar.stop() == 0
        rest = probe.run(
            "answer = {service: [name(status.status) for status in watch]"
            " for service, watch in watches.items()}"
        )
        told = {service: ["NOT_SERVING"] for service in SERVICES[:3]}
        assert rest == told | {"unknown.Service": []}


def test_keyside_status_is_a_container_s_health_check() -> None:
    """Exit 0 only while serving, whoever asks; 69 otherwise, at once."""
    with running_sidecar() as sidecar:
        for uid in (SERVICE_UID, STRANGER_UID, 0):
            done = sidecar.keyside("status", uid=uid)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith(b"serving: ")
        facts = json.loads(sidecar.keyside("status", "--json").stdout)
        assert facts["serving"] in {"YES", "DEGRADED"}
        assert [key["name"] for key in facts["keys"]] == ["mail-credentials"]
        strangers = json.loads(sidecar.keyside("status", "--json", uid=STRANGER_UID).stdout)
        assert strangers["keys"] == []

        assert sidecar.stop() == 0
        stopped = sidecar.keyside("status")
        assert stopped.returncode == 69
        assert b"there is no socket" in stopped.stderr

        sidecar.start()
        sidecar.kill()
        killed = sidecar.keyside("status")
        assert killed.returncode == 69
        assert b"nothing listens" in killed.stderr


def test_reflection_lists_the_services_where_it_is_configured() -> None:
    with running_sidecar(settings="reflection = true") as sidecar:
        with Remote(sidecar) as service:
            listed = service.run(REFLECT + "answer = sorted(database.get_services())")
            assert listed == [
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
                "keyside.v1.AccessService",
                "keyside.v1.AuditService",
                "keyside.v1.EncryptionService",
                "keyside.v1.KeyService",
                "keyside.v1.StatusService",
            ]
            described = service.run(
                "from google.protobuf.descriptor_pool import DescriptorPool\n"
                "found = DescriptorPool(database).FindServiceByName('keyside.v1.KeyService')\n"
                "answer = [method.name for method in found.methods]"
            )
            assert described == [
                "ListKeys",
                "GetKey",
                "RotateKey",
                "DisableVersion",
                "EnableVersion",
                "DestroyVersion",
                "CancelDestroyVersion",
            ]
        with Remote(sidecar, STRANGER_UID) as stranger:
            with pytest.raises(RemoteError) as refused:
                stranger.run(REFLECT + "answer = list(database.get_services())")
            assert refused.value.code == "PERMISSION_DENIED"


def test_reflection_is_off_unless_configured(sidecar: Sidecar) -> None:
    with Remote(sidecar) as service:
        with pytest.raises(RemoteError) as unimplemented:
            service.run(REFLECT + "answer = list(database.get_services())")
        assert unimplemented.value.code == "UNIMPLEMENTED"


def test_a_probe_that_stops_reading_holds_up_nobody(sidecar: Sidecar) -> None:
    """Watches that are never read, as many as one likes, leave every other answer as it is."""
    with Remote(sidecar, STRANGER_UID) as idle, Remote(sidecar, STRANGER_UID) as probe:
        idle.run(PROBE + "watches = [health.Watch(ask('')) for _ in range(50)]")
        probe.run(PROBE)
        assert probe.run(CHECK, service="") == "SERVING"
