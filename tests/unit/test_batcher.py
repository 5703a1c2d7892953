"""Natural batching: what shares a call, what is bounded, and who hears of what."""

import asyncio
from dataclasses import dataclass

import pytest

from service.batcher import Batcher, Expired, WaitingRoomFull


@dataclass
class Call:
    """One call in flight; it ends when the test gives it a result."""

    items: list[str]
    deadline: float
    result: asyncio.Future[list[str]]

    def answer(self) -> None:
        """Give every item its own result."""
        self.result.set_result([item.upper() for item in self.items])


class Sender:
    """The `send` of a batcher, in the test's hand."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Call] = asyncio.Queue()

    async def __call__(self, items: list[str], deadline: float) -> list[str]:
        """Hold the call until the test ends it."""
        call = Call(items, deadline, asyncio.get_running_loop().create_future())
        self.calls.put_nowait(call)
        return await call.result

    async def next(self) -> Call:
        """Return the next call, once it is in flight."""
        async with asyncio.timeout(10):
            return await self.calls.get()


def batcher(
    sender: Sender, *, items_max: int = 100, waiting_max: int = 100, deadline_s: float = 30.0
) -> Batcher[str, str]:
    """Make a batcher with room for everything."""
    return Batcher(sender, items_max=items_max, waiting_max=waiting_max, deadline_s=deadline_s)


async def test_the_first_goes_at_once_and_the_others_share_the_next() -> None:
    """Nothing waits on an idle service; what arrives during a call leaves together after it."""
    sender = Sender()
    batch = batcher(sender)
    first = batch.submit("a")
    call = await sender.next()
    assert call.items == ["a"]
    others = [batch.submit(item) for item in "bcd"]
    assert batch.waiting == 3
    call.answer()
    call = await sender.next()
    assert call.items == ["b", "c", "d"]
    assert first.result() == "A"
    call.answer()
    assert await asyncio.gather(*others) == ["B", "C", "D"]


async def test_items_of_one_turn_share_the_first_call() -> None:
    """Requests that the loop reads together need no call each."""
    sender = Sender()
    batch = batcher(sender)
    futures = [batch.submit(item) for item in "abc"]
    call = await sender.next()
    assert call.items == ["a", "b", "c"]
    call.answer()
    assert await asyncio.gather(*futures) == ["A", "B", "C"]


async def test_one_call_is_in_flight() -> None:
    """A second one leaves only after the first has ended, however many wait."""
    sender = Sender()
    batch = batcher(sender, items_max=1)
    futures = [batch.submit(item) for item in "abcde"]
    for item in "abcde":
        call = await sender.next()
        assert call.items == [item]
        assert sender.calls.empty()
        call.answer()
    assert await asyncio.gather(*futures) == list("ABCDE")


async def test_a_call_has_at_most_items_max() -> None:
    """The rest follows in the order of arrival."""
    sender = Sender()
    batch = batcher(sender, items_max=2)
    futures = [batch.submit(item) for item in "abcde"]
    sizes = []
    for _ in range(3):
        call = await sender.next()
        sizes.append("".join(call.items))
        call.answer()
    assert sizes == ["ab", "cd", "e"]
    assert await asyncio.gather(*futures) == list("ABCDE")


async def test_what_is_shared_is_asked_once() -> None:
    """As long as it waits; who comes after it was sent has a question of his own."""
    sender = Sender()
    lane = batcher(sender)

    def share(item: str) -> asyncio.Future[str | Exception]:
        heard = asyncio.get_running_loop().create_future()
        lane.share(item, heard.set_result)
        return heard

    first = [share("a"), share("a")]
    assert lane.waiting == 1
    call = await sender.next()
    assert call.items == ["a"]
    later = [share("a"), share("b"), share("a")]
    call.answer()
    assert await asyncio.gather(*first) == ["A", "A"]
    call = await sender.next()
    assert call.items == ["a", "b"]
    assert not any(heard.done() for heard in later)
    call.answer()
    assert await asyncio.gather(*later) == ["A", "B", "A"]


async def test_the_next_call_leaves_before_the_last_ones_results_are_told() -> None:
    """Whoever is called does not wait meanwhile for a hundred answers to be written."""
    said: list[str] = []
    told = asyncio.Event()

    async def send(items: list[str], _: float) -> list[str]:
        said.append(f"sent {''.join(items)}")
        if items == ["a"]:
            batch.hand("b", lambda _: told.set())
        return items

    batch: Batcher[str, str] = Batcher(send, items_max=9, waiting_max=9, deadline_s=30.0)
    batch.hand("a", lambda result: said.append(f"told {result}"))
    await told.wait()
    assert said == ["sent a", "sent b", "told a"]


async def test_who_takes_a_result_badly_disturbs_nobody() -> None:
    """The loop hears of it; the others of that call, and those who come later, are served."""
    sender = Sender()
    batch = batcher(sender)
    heard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, about: heard.append(f"{about['message']}: {about['exception']!r}")
    )

    def fail(_: str | Exception) -> None:
        raise ValueError

    batch.hand("a", fail)
    beside = batch.submit("b")
    (await sender.next()).answer()
    assert await beside == "B"
    later = batch.submit("c")
    (await sender.next()).answer()
    assert await later == "C"
    assert heard == ["a result was not taken: ValueError()"]


async def test_who_is_called_back_hears_of_a_failure() -> None:
    """As an exception that is handed over: of the call, or that the time was up."""
    sender = Sender()
    batch = batcher(sender, deadline_s=Batcher._send_before_s + 0.01)
    heard: asyncio.Queue[str | Exception] = asyncio.Queue()
    batch.hand("a", heard.put_nowait)
    call = await sender.next()
    batch.hand("b", heard.put_nowait)
    batch.share("c", heard.put_nowait)
    assert [type(await heard.get()) for _ in "bc"] == [Expired, Expired]
    call.result.set_exception(OSError("lost"))
    assert repr(await heard.get()) == repr(OSError("lost"))


async def test_a_full_waiting_room_refuses() -> None:
    """At the bound, not counting what is in flight; and takes again once a call has left."""
    sender = Sender()
    batch = batcher(sender, waiting_max=2)
    futures = [batch.submit("a")]
    call = await sender.next()
    futures += [batch.submit("b"), batch.submit("c")]
    with pytest.raises(WaitingRoomFull):
        batch.submit("d")
    call.answer()
    call = await sender.next()
    futures.append(batch.submit("e"))
    call.answer()
    (await sender.next()).answer()
    assert await asyncio.gather(*futures) == ["A", "B", "C", "E"]


async def test_a_waiter_that_gives_up_before_its_call_is_not_sent() -> None:
    """Its neighbours are, and get their own results."""
    sender = Sender()
    batch = batcher(sender)
    batch.submit("a")
    call = await sender.next()
    futures = [batch.submit(item) for item in "bcd"]
    futures[1].cancel()
    call.answer()
    call = await sender.next()
    assert call.items == ["b", "d"]
    call.answer()
    assert (await futures[0], await futures[2]) == ("B", "D")


async def test_a_call_of_nobody_is_not_sent() -> None:
    """Where all have given up the batcher goes to rest, and wakes again."""
    sender = Sender()
    batch = batcher(sender)
    batch.submit("a")
    call = await sender.next()
    batch.submit("b").cancel()
    call.answer()
    await call.result
    last = batch.submit("c")
    call = await sender.next()
    assert call.items == ["c"]
    call.answer()
    assert await last == "C"


async def test_a_waiter_that_gives_up_during_its_call_disturbs_nobody() -> None:
    """The call goes on; the others get their own results, and so do those after it."""
    sender = Sender()
    batch = batcher(sender)
    futures = [batch.submit(item) for item in "abc"]
    call = await sender.next()
    futures[1].cancel()
    later = batch.submit("d")
    call.answer()
    assert (await futures[0], await futures[2]) == ("A", "C")
    (await sender.next()).answer()
    assert await later == "D"


async def test_a_request_that_is_cancelled_cancels_its_item_alone() -> None:
    """As the edge does it: a task that awaits the future."""
    sender = Sender()
    batch = batcher(sender)

    async def request(item: str) -> str:
        return await batch.submit(item)

    async with asyncio.TaskGroup() as group:
        stays, gives_up = group.create_task(request("a")), group.create_task(request("b"))
        call = await sender.next()
        gives_up.cancel()
        call.answer()
    assert stays.result() == "A"
    assert gives_up.cancelled()


async def test_an_exception_reaches_all_of_that_call_only() -> None:
    """Neither the one before nor the one after hears of it."""
    sender = Sender()
    batch = batcher(sender, items_max=2)
    futures = [batch.submit(item) for item in "abcdef"]
    (await sender.next()).answer()
    (await sender.next()).result.set_exception(OSError("lost"))
    (await sender.next()).answer()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [str(result) for result in results] == ["A", "B", "lost", "lost", "E", "F"]
    assert isinstance(results[2], OSError)


async def test_an_exception_among_the_results_is_one_items() -> None:
    """Its neighbours in the same call have their results."""
    sender = Sender()
    batch = batcher(sender)
    futures = [batch.submit(item) for item in "abc"]
    (await sender.next()).result.set_result(["A", OSError("refused"), "C"])  # type: ignore[list-item]  # that is its point
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [str(result) for result in results] == ["A", "refused", "C"]
    assert isinstance(results[1], OSError)


async def test_an_exception_for_somebody_who_gave_up_is_nobodys() -> None:
    """It is given to those who are left, and the batcher goes on."""
    sender = Sender()
    batch = batcher(sender)
    gone, stays = batch.submit("a"), batch.submit("b")
    call = await sender.next()
    gone.cancel()
    call.result.set_exception(OSError("lost"))
    with pytest.raises(OSError, match="lost"):
        await stays
    later = batch.submit("c")
    (await sender.next()).answer()
    assert await later == "C"


async def test_an_item_expires_in_the_waiting_room() -> None:
    """It is never sent; the call in flight goes on, and later items are served."""
    sender = Sender()
    batch = batcher(sender, deadline_s=Batcher._send_before_s + 0.01)
    first = batch.submit("a")
    call = await sender.next()
    late = batch.submit("b")
    with pytest.raises(Expired):
        await late
    assert not first.done()
    last = batch.submit("c")
    call.answer()
    call = await sender.next()
    assert call.items == ["c"]
    call.answer()
    assert (await first, await last) == ("A", "C")


async def test_expired_items_leave_the_waiting_room() -> None:
    """Their places are free again."""
    sender = Sender()
    batch = batcher(sender, waiting_max=1, deadline_s=Batcher._send_before_s + 0.01)
    batch.submit("a")
    call = await sender.next()
    with pytest.raises(Expired):
        await batch.submit("b")
    assert batch.waiting == 0
    batch.submit("c")
    call.answer()
    assert (await sender.next()).items == ["c"]


async def test_the_waiting_room_expires_again_and_again() -> None:
    """The clock is wound anew after it has run down."""
    sender = Sender()
    batch = batcher(sender, deadline_s=Batcher._send_before_s + 0.01)
    first = batch.submit("a")
    call = await sender.next()
    for _ in range(3):
        with pytest.raises(Expired):
            await batch.submit("b")
    call.answer()
    assert await first == "A"


async def test_a_call_is_given_the_earliest_deadline() -> None:
    """That of its oldest item, which is as long after its arrival as was set."""
    sender = Sender()
    batch = batcher(sender, deadline_s=30.0)
    loop = asyncio.get_running_loop()
    batch.submit("a")
    call = await sender.next()
    before = loop.time()
    batch.submit("b")
    after = loop.time()
    batch.submit("c")
    call.answer()
    call = await sender.next()
    assert before + 30.0 <= call.deadline <= after + 30.0


async def test_after_a_rest_it_goes_on() -> None:
    """Idle, it holds no task; the next item starts it."""
    sender = Sender()
    batch = batcher(sender)
    for item in "abc":
        future = batch.submit(item)
        call = await sender.next()
        assert call.items == [item]
        call.answer()
        assert await future == item.upper()
        await asyncio.gather(*([batch._runner] if batch._runner else []))
        assert batch._runner is None
        assert batch.waiting == 0


async def test_a_send_that_returns_too_little_strands_nobody() -> None:
    """Whatever is wrong, the waiters of that call hear of it, and later items are served."""
    sender = Sender()
    batch = batcher(sender)
    futures = [batch.submit("a"), batch.submit("b")]
    (await sender.next()).result.set_result(["A"])
    async with asyncio.timeout(10):
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert [isinstance(result, Exception) for result in results] == [True, True]
    later = batch.submit("c")
    (await sender.next()).answer()
    assert await later == "C"


async def test_a_send_that_is_cancelled_strands_nobody() -> None:
    """Its waiters hear of it; those who wait behind it are served."""
    sender = Sender()
    batch = batcher(sender, items_max=1)
    futures = [batch.submit("a"), batch.submit("b")]
    (await sender.next()).result.cancel()
    (await sender.next()).answer()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results[0], Exception)
    assert results[1] == "B"


async def test_only_who_does_not_fit_into_the_next_call_is_behind() -> None:
    """Those who fit wait for the store; beyond that, as many calls as there are before."""
    sender, loop = Sender(), asyncio.get_running_loop()
    batch = batcher(sender, items_max=2)
    futures = [batch.submit("a")]
    call = await sender.next()
    took_at = loop.time()
    futures += [batch.submit(item) for item in "bc"]
    assert batch.behind_s(took_at + 1.0) == 0.0
    futures += [batch.submit(item) for item in "de"]
    assert batch.behind_s(took_at + 1.0) == pytest.approx(2.0, abs=0.5)
    call.answer()
    for _ in range(2):
        call = await sender.next()
        assert batch.behind_s(loop.time()) == 0.0
        call.answer()
    assert await asyncio.gather(*futures) == ["A", "B", "C", "D", "E"]


async def test_how_long_a_call_lasts_is_learnt_while_items_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not from a pause in which nobody came."""
    sender, loop, now = Sender(), asyncio.get_running_loop(), 100.0
    monkeypatch.setattr(loop, "time", lambda: now)
    batch = batcher(sender, items_max=1, waiting_max=1_000)
    futures = [batch.submit("a")]
    (await sender.next()).answer()
    await futures[0]
    now += 7.0
    futures += [batch.submit("b") for _ in range(50)]
    for _ in range(40):
        call = await sender.next()
        assert batch.behind_s(now) <= batch.waiting * 0.011
        now += 0.01
        call.answer()
    call = await sender.next()
    assert batch.waiting == 9
    assert batch.behind_s(now) == pytest.approx(9 * 0.01, rel=0.01)
    call.answer()
    for _ in range(9):
        (await sender.next()).answer()
    await asyncio.gather(*futures)
