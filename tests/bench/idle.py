"""A thousand connections that are open and do nothing: what they cost, and what others notice.

They are gRPC channels of the Python client, each of which has made a call. Counted is what all
processes of the sidecar hold in memory of their own (RssAnon), with them and before them.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from latency import PERCENTILES, Line, take_slices
from processes import family_of, memory_kib
from rows import Target, compare, pick
from support.remote import Remote
from support.sidecar import DEFAULT_KEYS, OTHER_GID, OTHER_UID, Sidecar, sidecar_directory
from unary import ECHO_METHOD, PAYLOAD, SERVERS, SERVICE, make_requests, running_echo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plan import Plan
    from rows import Row, Taken

CONNECTIONS = 1_000
MAX_KIB = 25
SETTINGS = "max_connections = 4096\nmax_connections_per_uid = 2048"
CONFIG = DEFAULT_KEYS.replace(
    "[keys.mail-credentials]\nallow_groups = [",
    f"[keys.mail-credentials]\nallow_groups = [{OTHER_GID}, ",
)
_OPEN = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
options = [("grpc.use_local_subchannel_pool", 1)]
channels = [grpc.insecure_channel(place, options) for _ in range(count)]
for channel in channels:
    channel.unary_unary(method)(bytes.fromhex(request), timeout=30)
"""
_SETTLE_S = 0.5
# Fill what fills once.
_FIRST_CALLS = 300
METHOD = f"{SERVICE}Encrypt"


def run(plan: Plan) -> Iterator[Row]:
    """Compare a sidecar that has them with another one that has none, in turns."""
    taken: Taken = {"with": [], "without": []}
    each_kib: list[float] = []
    echo_kib: list[float] = []
    for _ in range(plan.slow_rounds):
        with ExitStack() as stack:
            crowded, calm = Scene(stack), Scene(stack)
            each_kib.append(crowded.crowd(CONNECTIONS))
            echo_kib.append(crowded.crowd_echo(CONNECTIONS))
            found = take_slices(
                {"with": crowded.sample, "without": calm.sample}, plan.slow_rounds, plan.calls // 4
            )
            for name in taken:
                taken[name] += found[name]
    yield compare(
        f"1,000 idle connections, memory of each / echo on {SERVERS['aio']}",
        "KiB",
        each_kib,
        echo_kib,
        target=Target(MAX_KIB, of_ratio=False, at_least=False),
    )
    for part in PERCENTILES:
        yield compare(
            f"another caller beside 1,000 idle connections, {part} / without",
            "µs",
            pick(taken, "with", part),
            pick(taken, "without", part),
            # What two runs of the same differ by on a shared machine.
            target=Target(1.2, at_least=False),
        )


class Scene:
    """A sidecar, a caller that uses it, and one that only stays connected."""

    def __init__(self, stack: ExitStack) -> None:
        self._sidecar = Sidecar(stack.enter_context(sidecar_directory()), CONFIG, settings=SETTINGS)
        self._sidecar.prepare()
        self._sidecar.start()
        stack.callback(self._sidecar.kill)
        self._request, _ = make_requests(self._sidecar)["Encrypt"]
        self._line = Line(stack.enter_context(Remote(self._sidecar)))
        self._line.open("Encrypt", f"unix:{self._sidecar.socket}", METHOD, self._request)
        self._idler = stack.enter_context(Remote(self._sidecar, OTHER_UID))

    def crowd(self, connections: int) -> float:
        """Open the connections; return the KiB that each costs."""
        self.sample(_FIRST_CALLS)
        return _crowd(
            self._idler,
            family_of(self._sidecar),
            connections,
            place=f"unix:{self._sidecar.socket}",
            method=METHOD,
            request=self._request.hex(),
        )

    def crowd_echo(self, connections: int) -> float:
        """Open as many to a bare server, for as long as this takes; return the same."""
        with (
            sidecar_directory() as directory,
            running_echo("aio", directory) as echo,
            Remote(self._sidecar, OTHER_UID) as idler,
        ):
            echo.load(_FIRST_CALLS)
            return _crowd(
                idler,
                echo.pids,
                connections,
                place=f"unix:{echo.socket}",
                method=ECHO_METHOD,
                request=PAYLOAD.hex(),
            )

    def sample(self, count: int) -> list[float]:
        """Measure what the caller waits for."""
        return self._line.sample("Encrypt", count)


def _crowd(idler: Remote, pids: list[int], connections: int, **call: str) -> float:
    before = _own_kib(pids)
    idler.run(_OPEN, count=connections, **call)
    time.sleep(_SETTLE_S)
    return (_own_kib(pids) - before) / connections


def _own_kib(pids: list[int]) -> int:
    return sum(memory_kib(pid, "RssAnon") for pid in pids)
