"""What the supervisor records of connections that it has no room for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from keyside_sidecar.reception import Reception

if TYPE_CHECKING:
    from collections.abc import Callable


class Later:
    """A loop whose time is the test's."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Call ``act`` in time."""
        self._timers.append((self.now_s + delay_s, act))

    def go_on(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        due = [act for at_s, act in self._timers if at_s <= self.now_s]
        self._timers = [timer for timer in self._timers if timer[0] > self.now_s]
        for act in due:
            act()


def test_refused_connections_are_recorded_at_growing_intervals() -> None:
    """Whoever is refused all the time must not be able to fill the disk by it."""
    loop = Later()
    records: list[tuple[float, int]] = []
    ledger = SimpleNamespace(count=lambda: 1, max_connections=1, max_connections_per_uid=1)
    reception = Reception(
        cast("Any", loop),
        cast("Any", None),
        cast("Any", None),
        cast("Any", ledger),
        cast("Any", SimpleNamespace(gids=frozenset(), uids=frozenset())),
        process_mode=False,
        record=lambda record: records.append((loop.now_s, cast("int", record["count"]))),
    )
    for _ in range(3_600):
        reception._note_refused(1001)
        loop.go_on(1.0)
    assert [at_s for at_s, _count in records] == [30, 90, 210, 450, 930, 1530, 2130, 2730, 3330]
    assert sum(count for _at_s, count in records) == 3_330
    # After a quiet interval it begins anew.
    for _ in range(1_300):
        loop.go_on(1.0)
    records.clear()
    reception._note_refused(1001)
    for _ in range(31):
        loop.go_on(1.0)
    assert [count for _at_s, count in records] == [1]
