"""Batches: in order, each item for itself, the same envelopes as a plain call's (I11)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.batch_scene import Scene, reason_of, scene_of
from tests.unit.made_store import BANK, MAIL, MadeStore, make_store

from keyside.envelope import (
    VersionKey,
    cut_wrapping_header,
    open_envelope,
    parse_wrapping_header,
)
from keyside.names import VersionNumber
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import BadRequest, Refused
from keyside_sidecar.services.batch import Batch, Work
from keyside_sidecar.services.encryption import Opened, Renewed
from keyside_sidecar.services.tally import Tally
from keyside_sidecar.services.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

CONTEXT = {"mailbox": "42", "field": "token"}


@pytest.fixture
def made(tmp_path: Path) -> MadeStore:
    tmp_path.chmod(0o700)
    return make_store(tmp_path)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_a_batch_mixes_keys_and_contexts_and_keeps_its_order(made: MadeStore) -> None:
    """One data key per key and batch; what was sealed here opens in a plain call and back."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            items = [
                ((MAIL, BANK)[n % 2], b"text %d" % n, {"n": str(n)} if n % 3 else {})
                for n in range(30)
            ]
            sealed = await scene.encrypt(*items)
            assert [reason_of(result) for result in sealed] == [""] * 30
            assert [result.version.key for result in sealed] == [key for key, _, _ in items]
            assert len({cut_wrapping_header(result.envelope) for result in sealed}) == 2
            assert len({result.envelope for result in sealed}) == 30
            asked = [(r.envelope, c) for r, (_, _, c) in zip(sealed, items, strict=True)]
            opened = await scene.decrypt(*asked)
            assert [result.plaintext for result in opened] == [text for _, text, _ in items]
            for result, (_key, text, context) in zip(sealed, items, strict=True):
                request = pb.DecryptRequest(envelope=result.envelope, context=context)
                plain = await scene.call_one("decrypt", request)
                assert (plain.plaintext, plain.version) == (text, result.version)
            own = [await seal_plainly(scene, b"plain %d" % n) for n in range(3)]
            opened = await scene.decrypt(*((e, CONTEXT) for e in (*own, *own[:1])))
            texts = [b"plain 0", b"plain 1", b"plain 2", b"plain 0"]
            assert [result.plaintext for result in opened] == texts

    run(scenario())


async def seal_plainly(scene: Scene, plaintext: bytes) -> bytes:
    """Return an envelope made by Encrypt."""
    request = pb.EncryptRequest(key=MAIL, plaintext=plaintext, context=CONTEXT)
    envelope: bytes = (await scene.call_one("encrypt", request)).envelope
    return envelope


def test_one_bad_item_harms_no_other(made: MadeStore) -> None:
    """Each is told what a plain call would have been told; nothing else is in its result."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            scene.forbidden = {BANK}
            good = (MAIL, b"good", CONTEXT)
            sealed = await scene.encrypt(
                good,
                (BANK, b"forbidden", {}),
                ("no-such-key", b"unknown", {}),
                ("NO KEY", b"", {}),
                (MAIL, bytes((256 << 10) + 1), {}),
                (MAIL, b"", {"": "value"}),
                good,
            )
            assert [reason_of(result) for result in sealed] == [
                *("", "NOT_ALLOWED", "STORE_UNAVAILABLE", "INVALID_KEY_NAME"),
                *("INVALID_ARGUMENT", "INVALID_CONTEXT", ""),
            ]
            envelope = sealed[0].envelope
            alone = await seal_plainly(scene, b"alone")
            broken = [alone[:50] + bytes([alone[50] ^ 1]) + alone[51:], alone[:-1], alone + b"x"]
            opened = await scene.decrypt(
                (envelope, CONTEXT),
                (envelope, {}),
                (envelope[:-1] + bytes([envelope[-1] ^ 1]), CONTEXT),
                (envelope[:9], CONTEXT),
                (b"", CONTEXT),
                (b"KSE", {}),
                *((each, CONTEXT) for each in broken),
                (alone.replace(MAIL.encode(), BANK.encode().ljust(len(MAIL), b"x"), 1), {}),
                (alone, {"": "value"}),
                (sealed[6].envelope, CONTEXT),
                (alone, CONTEXT),
            )
            rejected = "ENVELOPE_REJECTED"
            reasons = [reason_of(result) for result in opened]
            assert reasons[:9] == ["", *[rejected] * 8]
            assert reasons[10:] == ["INVALID_CONTEXT", "", ""]
            texts = {result.status.message for result in opened[1:9]}
            assert len(texts) == 1, "one uniform error, whatever the cause"
            facts = scene.tally.describe()
            assert facts["outcome"] == "partial"
            assert facts["count"] == 13
            rewrapped = await scene.rewrap(
                envelope, cut_wrapping_header(envelope), b"none", alone, broken[0]
            )
            assert [reason_of(r) for r in rewrapped] == ["", "", rejected, "", rejected]

    run(scenario())


def test_what_policy_refuses_is_not_looked_at(made: MadeStore) -> None:
    """I11: unknown and forbidden look alike, however broken the rest of the item is."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            (sealed,) = await scene.encrypt((BANK, b"text", {}))
            scene.forbidden = {BANK, "no-such-key"}
            refused = await scene.encrypt(
                (BANK, bytes((256 << 10) + 1), {"": ""}), ("no-such-key", b"", {})
            )
            refused += await scene.decrypt((sealed.envelope, {"": ""}), (sealed.envelope[:-1], {}))
            refused += await scene.rewrap(sealed.envelope)
            assert [reason_of(result) for result in refused] == ["NOT_ALLOWED"] * 5
            assert len({result.status.SerializeToString() for result in refused}) == 1
            assert scene.tally.describe() == {
                "outcome": "refused",
                "reason": "NOT_ALLOWED",
                "count": 1,
                "details": {"refused": 1, "failed": 0, "reasons": {"NOT_ALLOWED": 1}},
            }

    run(scenario())


def test_items_that_were_refused_before_are_passed_over(made: MadeStore) -> None:
    """As the guard has them where a grant does not cover an item."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            scene.refused = {1: Refused(Reason.GRANT_SCOPE)}
            sealed = await scene.encrypt(*[(MAIL, b"text", {})] * 3)
            assert [reason_of(result) for result in sealed] == ["", "GRANT_SCOPE", ""]
            asked: list[Any] = [(sealed[0].envelope, {})] * 3
            reasons = [reason_of(result) for result in await scene.decrypt(*asked)]
            assert reasons == ["", "GRANT_SCOPE", ""]

    run(scenario())


def test_versions_that_may_not_be_used_say_so(made: MadeStore) -> None:
    """Old versions open and are rewrapped, once for each data key; disabled ones are named."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            sealed = await scene.encrypt(*[(MAIL, b"text %d" % n, {}) for n in range(5)])
            alone = await seal_plainly(scene, b"alone")
            await scene.keyring.rotate(MAIL, actor_uid=5, expected_current=1)
            envelopes = [*(result.envelope for result in sealed), alone]
            moved = await scene.rewrap(*envelopes)
            assert [(r.previous.number, r.version.number) for r in moved] == [(1, 2)] * 6
            assert len({cut_wrapping_header(r.envelope) for r in moved}) == 2
            facts = scene.tally.describe()
            assert (facts["outcome"], facts["key"], facts["version"]) == ("ok", MAIL, 1)
            listed = {"key": MAIL, "version": 1, "new_version": 2, "count": 6}
            assert facts["details"] == {"items": [listed], "refused": 0, "failed": 0}
            await scene.keyring.disable(MAIL, 1, actor_uid=5)
            reasons = [reason_of(r) for r in await scene.decrypt(*((e, {}) for e in envelopes))]
            assert reasons == ["VERSION_DISABLED"] * 6
            pairs: list[Any] = [(r.envelope, {}) for r in moved[:5]]
            opened = await scene.decrypt(*pairs, (moved[5].envelope, CONTEXT))
            assert [r.plaintext for r in opened] == [*(b"text %d" % n for n in range(5)), b"alone"]
            version = await scene.keyring.version(
                MAIL, 2, parse_wrapping_header(moved[0].envelope).version_id
            )
            assert open_envelope(version, moved[0].envelope, {}) == b"text 0"

    run(scenario())


def test_a_header_that_names_another_version_is_not_taken_for_the_one_before(
    made: MadeStore,
) -> None:
    """What is remembered of one header serves only those that name the same version by its id."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            one, two = await seal_plainly(scene, b"1"), await seal_plainly(scene, b"2")
            header = parse_wrapping_header(two)
            at = len(header.raw) - 104 - 16
            renamed = two[:at] + bytes(16) + two[at + 16 :]
            renumbered = two[: at - 4] + (9).to_bytes(4) + two[at:]
            other_suite = two[:4] + b"\x01" + two[5:]
            opened = await scene.decrypt(
                *((e, CONTEXT) for e in (one, renamed, renumbered, other_suite, two))
            )
            rejected = "ENVELOPE_REJECTED"
            assert [reason_of(r) for r in opened] == ["", rejected, rejected, rejected, ""]

    run(scenario())


def test_limits_are_told_and_nothing_is_done(made: MadeStore) -> None:
    """A batch that is too large is refused whole, and says both limits."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            many: list[Any] = [(MAIL, b"", {})] * 10_000
            items: list[Any] = [(MAIL, bytes(250_000), {})] * 5
            with pytest.raises(BadRequest, match=r"10000 items and 1048576 bytes") as refused:
                await scene.encrypt(*items)
            assert refused.value.field == "items"
            with pytest.raises(BadRequest, match=r"10000 items and 1048576 bytes"):
                await scene.decrypt(*((text, {}) for _, text, _ in items))
            with pytest.raises(BadRequest, match=r"10000 items and 1048576 bytes"):
                await scene.rewrap(*(text for _, text, _ in items))
            assert await scene.encrypt() == await scene.decrypt() == await scene.rewrap() == []
            sealed = await scene.encrypt(*many)
            assert len(sealed) == 10_000
            assert {reason_of(result) for result in sealed} == {""}

    run(scenario())


@pytest.mark.parametrize("act", ["disable", "compromise"])
def test_a_version_is_used_no_more_once_it_is_disabled(
    made: MadeStore, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of a batch: what is left of it is told so, item by item."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            sealed = await scene.encrypt(*[(MAIL, bytes(20), {})] * 4_000)
            envelopes = [result.envelope for result in sealed]
            if act == "disable":
                await scene.keyring.rotate(MAIL, actor_uid=5, expected_current=1)
            take, run_work, turns = scene.turns.take, Work.run, -1

            async def run_and_count(work: Work, sink: Any) -> None:
                nonlocal turns
                turns = 0
                await run_work(work, sink)

            async def take_and_disable() -> float:
                nonlocal turns
                turns += turns >= 0  # of the work itself: sorting comes before
                if turns == 2:
                    if act == "disable":
                        await scene.keyring.disable(MAIL, 1, actor_uid=5)
                    else:
                        await scene.keyring.rotate(
                            MAIL, actor_uid=5, expected_current=1, compromised=True
                        )
                return await take()

            monkeypatch.setattr(Work, "run", run_and_count)
            scene.turns.take = take_and_disable  # type: ignore[method-assign]
            if act == "disable":
                results = await scene.decrypt(*[(envelope, {}) for envelope in envelopes])
            else:
                results = await scene.encrypt(*[(MAIL, bytes(20), {})] * 4_000)
            reasons = [reason_of(result) for result in results]
            cut = reasons.index("VERSION_DISABLED")
            assert turns > 2
            assert reasons == [""] * cut + ["VERSION_DISABLED"] * (4_000 - cut)

    run(scenario())


def test_each_item_is_counted_as_a_message(made: MadeStore) -> None:
    """However many at once: also more than was reserved before."""

    async def scenario() -> None:
        async with scene_of(made) as scene:
            for _ in range(3):
                await scene.encrypt(*[(MAIL, b"12345", {})] * 1000)
            await scene.keyring.flush_usage()
            usage = (await scene.keyring.read_usage(MAIL, [1]))[1]
            assert usage.messages >= 3000
            assert usage.plaintext_bytes >= 15_000

    run(scenario())


def test_a_use_that_is_withdrawn_leaves_only_its_reason() -> None:
    tally = Tally("/path")
    batch = Batch(lambda _: None, tally)
    third, fourth = (VersionKey(MAIL, VersionNumber(n), bytes(16), bytes(32)) for n in (3, 4))
    tally.count(MAIL, 3, 2)
    withdrawn = batch.withdraw(Opened(b"s", third), Refused(Reason.GRANT_ENDED))
    assert withdrawn.reason == "GRANT_ENDED"
    tally.count(MAIL, 4, 1, new_version=4)
    withdrawn = batch.withdraw(Renewed(b"e", fourth, fourth), Refused(Reason.GRANT_ENDED))
    assert withdrawn.reason == "GRANT_ENDED"
    facts = tally.describe()
    assert (facts["count"], facts["outcome"]) == (3, "partial")
    assert facts["details"]["items"] == [{"key": MAIL, "version": 3, "count": 1}]


def test_many_versions_are_summed_up() -> None:
    """A record has room for a hundred; the rest is a number."""
    tally = Tally("/path")
    for number in range(1, 121):
        tally.count(MAIL, number, number)
    details = tally.describe()["details"]
    assert len(details["items"]) == 100
    assert details["unlisted"] == sum(range(1, 21))


def test_what_is_unexpected_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """And its text, which may quote an item, is told to nobody (I7)."""
    tally = Tally("/path")
    told = [tally.fail(ValueError("a secret")).text for _ in range(100)]
    assert len(set(told)) == 1
    assert len(caplog.records) == 1
    assert "a secret" not in told[0] + caplog.text


# --- turns


def test_short_work_is_done_between_the_turns_of_long_work() -> None:
    """Ten batches that would work for a second hold up a short call for some turns only."""

    async def scenario() -> None:
        turns = Turns()
        ends = time.perf_counter() + 1.0

        async def work() -> None:
            until = await turns.take()
            while time.perf_counter() < ends:
                if time.perf_counter() > until:
                    until = await turns.take()

        batches = [asyncio.create_task(work()) for _ in range(10)]
        waits = []
        while not all(batch.done() for batch in batches):
            began = time.perf_counter()
            await asyncio.sleep(0)
            waits.append(time.perf_counter() - began)
        waits.sort()
        # Each round of the loop has one turn of a millisecond in it, not ten.
        assert waits[len(waits) // 2] < 0.004

    run(scenario())


def test_no_turn_is_given_while_a_short_call_is_under_way_but_one_comes_in_the_end() -> None:
    """From its arrival to the rounds in which its answer leaves; and not for ever."""

    async def scenario() -> None:
        turns = Turns()
        await turns.enter(1)

        async def measure() -> float:
            began = time.perf_counter()
            await turns.take()
            return time.perf_counter() - began

        async def count() -> int:
            turn, rounds = asyncio.create_task(turns.take()), 0
            while not turn.done():
                await asyncio.sleep(0)
                rounds += 1
            return rounds

        quiet = await count()
        turns.begin_short()
        assert await measure() >= 0.002
        turns.begin_short()
        turns.end_short()
        asyncio.get_running_loop().call_later(0.001, turns.end_short)
        assert await measure() >= 0.0005
        assert await count() <= quiet + 2, "what has ended holds nobody up but to look for others"
        turns.expect_short()
        assert await measure() >= 0.0004, "what has arrived is not in flight at once"
        turns.leave(1)
        turns.expect_short()
        assert await count() <= quiet + 2, "without batches there is nothing to hold back"

    run(scenario())


def test_a_call_that_waits_for_something_else_holds_no_batch_up() -> None:
    async def scenario() -> None:
        turns = Turns()
        await turns.enter(1)
        turns.begin_short()
        await asyncio.sleep(0.01)
        began = time.perf_counter()
        for _ in range(100):
            await turns.take()
        assert time.perf_counter() - began < 100 * 0.002

    run(scenario())


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_short_calls_get_most_of_the_time_and_batches_their_share(batches: int) -> None:
    """A short call arrives whenever the loop comes round; however many batches there are."""

    async def scenario() -> None:
        turns, worked = Turns(), 0.0
        ends = time.perf_counter() + 0.5

        async def work() -> None:
            nonlocal worked
            await turns.enter(1)
            while time.perf_counter() < ends:
                until = await turns.take()
                began = time.perf_counter()
                while time.perf_counter() < until:
                    pass
                worked += time.perf_counter() - began

        tasks = [asyncio.create_task(work()) for _ in range(batches)]
        while time.perf_counter() < ends:
            turns.expect_short()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert 0.1 < worked / 0.5 < 0.6

    run(scenario())


def test_a_batch_that_is_cancelled_takes_nobodys_turn() -> None:
    async def scenario() -> None:
        turns = Turns()
        waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[1].cancel()
        async with asyncio.timeout(5):
            await waiting[2]
            await turns.take()

    run(scenario())


def test_one_account_has_four_batches_under_way_and_others_theirs() -> None:
    async def scenario() -> None:
        limit, inside = Turns(), []
        gone = asyncio.Event()

        async def stay(uid: int) -> None:
            await limit.enter(uid)
            inside.append(uid)
            await gone.wait()
            limit.leave(uid)

        tasks = [asyncio.create_task(stay(1)) for _ in range(6)]
        tasks += [asyncio.create_task(stay(2))]
        await asyncio.sleep(0.01)
        assert sorted(inside) == [1, 1, 1, 1, 2]
        tasks[5].cancel()
        gone.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(inside) == [1, 1, 1, 1, 1, 2]
        assert not limit._by_uid, "nothing is kept of who has none"

    run(scenario())
