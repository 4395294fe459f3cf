"""Who gets a connection, and whether it is taken at all."""

from __future__ import annotations

from keyside_sidecar.admission import Ledger


def test_one_uid_can_not_take_all_connections() -> None:
    """The limit per uid leaves room for others."""
    ledger = Ledger(max_connections=10, max_connections_per_uid=3)
    for _ in range(3):
        assert ledger.has_room(1000)
        ledger.add(1000, worker=0)
    assert not ledger.has_room(1000)
    assert ledger.has_room(1001)


def test_the_host_limit_holds_for_everybody() -> None:
    """With the host's limit reached, nobody gets in until a connection ends."""
    ledger = Ledger(max_connections=2, max_connections_per_uid=2)
    first = ledger.add(1, worker=0)
    ledger.add(2, worker=0)
    assert not ledger.has_room(3)
    ledger.remove(first)
    assert ledger.has_room(3)
    assert ledger.count() == 1


def test_connections_are_spread_evenly() -> None:
    """Each goes to the worker that has the fewest."""
    ledger = Ledger(max_connections=100, max_connections_per_uid=100)
    for _ in range(30):
        ledger.add(1, worker=ledger.least_loaded([0, 1, 2]))
    assert [ledger._by_worker[worker] for worker in range(3)] == [10, 10, 10]


def test_a_worker_that_ended_takes_its_connections_with_it() -> None:
    """Its connections are forgotten; the others' stay; late reports about them change nothing."""
    ledger = Ledger(max_connections=100, max_connections_per_uid=2)
    lost = [ledger.add(1, worker=0), ledger.add(1, worker=0)]
    ledger.add(2, worker=1)
    ledger.remove_worker(0)
    assert ledger.count() == 1
    assert ledger.has_room(1)
    for number in lost:
        ledger.remove(number)
    assert ledger.count() == 1
