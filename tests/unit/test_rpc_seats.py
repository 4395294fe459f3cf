"""Connections are spread over a worker's main servers."""

from __future__ import annotations

from keyside_sidecar.peer.caller import Caller
from keyside_sidecar.peer.connection import Connection
from keyside_sidecar.server.inner_servers import InnerServers


def make_connection(number: int, *, public_only: bool = False) -> Connection:
    connection = Connection(number, Caller(1, 2, 3))
    connection.public_only = public_only
    return connection


def test_a_connection_goes_to_the_server_that_has_fewest() -> None:
    """Also where those that stay were all on one server."""
    servers = InnerServers.__new__(InnerServers)
    servers.main_paths, servers.public_path = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7"], "p"
    servers._seated = [0] * 8
    connections = [make_connection(number) for number in range(24)]
    paths = [servers.seat(connection) for connection in connections]
    assert sorted(paths) == sorted(servers.main_paths * 3)
    for connection in connections[1::8] + connections[1::8]:
        servers.leave(connection)  # the second time it is not there any more
    assert [servers.seat(make_connection(number)) for number in range(3)] == ["m1"] * 3
    stranger = make_connection(99, public_only=True)
    assert servers.seat(stranger) == "p"
    servers.leave(stranger)
    servers.leave(make_connection(100))  # closed before it was given a place
    assert servers._seated == [3] * 8
