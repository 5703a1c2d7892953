"""`onsale demo`: a sale, a crowd, and what came of it.

Sends people of `crowd` at an event of its own, shows how far they are, and ends with a summary and
a reconcile of the two stores. It never touches another event; the service that it started for
this it stops again.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from statistics import quantiles

from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service import reconcile_report, reconciler
from service.browser import Browser
from service.crowd import Answer, Click, Habits, Operation, Person, arrival, visit
from service.findings import EXIT_CODES
from service.ledger import UNAVAILABLE
from service.rundir import Service
from service.serving import serving
from service.settings import Settings

CONNECTIONS = 200
"""Lent to whoever clicks, as a balancer does: a connection each would need a higher `ulimit -n`."""

HABITS = Habits(look_s=0.3, think_s=0.7)

PEOPLE_PER_SECOND = 600
"""In the mean of the time in which they come; ten times less at its end than at its beginning."""

SPAN_MIN_S = 1.0
INTERRUPTED = 130
NAME = "Onsale demo"


class DemoError(Exception):
    """The demo could not be held; the text is for the terminal."""


@dataclass
class Sale:
    """What a crowd was answered at one event."""

    event_id: int
    tickets: int
    people: int
    cancel: float
    done: int = 0
    gave_up: int = 0
    promoted: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    times_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, person: Person, operation: Operation, answer: Answer) -> None:
        """Count an answer."""
        outcome, reason = person.judge(operation, answer)
        self.outcomes[outcome] += 1
        self.promoted += outcome == "cancelled" and bool(answer.body.get("reassigned"))
        if outcome == "outside":
            self.outside[f"{operation}: {reason}"] += 1
        if answer.status:
            self.times_ms.append((answer.answered - answer.sent) * 1000)

    @property
    def as_promised(self) -> bool:
        """Whether everybody had an answer, and all answers are in the contract."""
        return not self.outside and not self.gave_up

    def table(self) -> Iterator[tuple[str, int, str]]:
        """Yield the summary's lines: what, how often, and what that means."""
        found = self.outcomes
        yield "booked at once", found["booked"], ""
        yield "put on the waiting list", found["waiting"], ""
        yield "cancelled a ticket", found["cancelled"], f"{self.promoted:,} waiters promoted"
        yield "left the waiting list", found["left"], ""
        again = found["repeated"] + found["cancelled before"]
        yield "repeated", again, "answered as the first time, without effect"
        yield "positions asked for", found["polled"], ""
        yield "busy (503), no answer", found["busy"] + found["no answer"], "asked again"
        yield "gave up", self.gave_up, ""
        yield "outside the contract", sum(self.outside.values()), ""


def demo(settings: Settings, *, people: int, tickets: int, cancel: float) -> int:
    """Hold a sale; return the exit code: reconcile's, or 1 when an answer was not as promised.

    Raises ServingError and DemoError. A signal ends it in order, with INTERRUPTED.
    """
    return asyncio.run(_until_signal(settings, people=people, tickets=tickets, cancel=cancel))


async def _until_signal(settings: Settings, *, people: int, tickets: int, cancel: float) -> int:
    signals: list[int] = []
    interrupted = asyncio.Event()

    def note(number: int) -> None:
        signals.append(number)
        interrupted.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Under nohup a hang-up is ignored, and stays so.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, note, number)
    sale = Sale(0, tickets, people, cancel)
    held = asyncio.create_task(_hold(settings, sale, lambda: len(signals) > 1))
    waiting = asyncio.create_task(interrupted.wait())
    await asyncio.wait({held, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if held.done():
        return held.result()
    # What it has started it stops on this way out, however long that takes.
    held.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await held
    return INTERRUPTED


async def _hold(settings: Settings, sale: Sale, hurried: Callable[[], bool]) -> int:
    console = Console(highlight=False, soft_wrap=True)
    console.print("Looking for a service, or starting one ...")
    async with serving(settings, hurried) as found:
        address = found.service.http
        console.print(f"{'Started' if found.started else 'Found'} Onsale on {address}")
        await _open(sale, address)
        console.print(f"Event {sale.event_id}: {sale.people:,} people for {sale.tickets:,} tickets")
        await _send(sale, address, console)
        _summary(sale, console)
        code = await _reconcile(sale, found.service, console)
    _farewell(sale, address, console, gone=found.started)
    return code if sale.as_promised else 1


async def _open(sale: Sale, address: str) -> None:
    browser = Browser(address)
    body: dict[str, object] = {"name": NAME, "totalTickets": sale.tickets}
    answer = await browser.ask("POST", "/initialize", body)
    await browser.close()
    if answer.status != 201:
        msg = f"{address} opens no event: {answer.status} {answer.body.get('detail', '')}"
        raise DemoError(msg)
    sale.event_id = int(answer.body["event"]["id"])


async def _send(sale: Sale, address: str, console: Console) -> None:
    """Send everybody, and come back when the last one has gone."""
    span = max(SPAN_MIN_S, sale.people / PEOPLE_PER_SECOND)
    habits = Habits(cancel=sale.cancel, look_s=HABITS.look_s, think_s=HABITS.think_s)
    began = time.monotonic()
    async with _browsers(address) as idle, asyncio.TaskGroup() as group:
        for number in range(sale.people):
            person = Person(sale.event_id, f"demo-{number + 1}")
            comes = arrival(number / sale.people) * span
            group.create_task(_attend(sale, person, habits, idle, comes))
        group.create_task(_show(sale, console))
    sale.seconds = time.monotonic() - began


@contextlib.asynccontextmanager
async def _browsers(address: str) -> AsyncIterator[asyncio.LifoQueue[Browser]]:
    idle: asyncio.LifoQueue[Browser] = asyncio.LifoQueue()
    browsers = [Browser(address) for _ in range(CONNECTIONS)]
    for browser in browsers:
        idle.put_nowait(browser)
    try:
        yield idle
    finally:
        for browser in browsers:
            await browser.close()


async def _attend(
    sale: Sale,
    person: Person,
    habits: Habits,
    idle: asyncio.LifoQueue[Browser],
    comes: float,
) -> None:
    """Be one person, from arrival to leaving."""
    await asyncio.sleep(comes)
    way = visit(habits, random.Random())
    step = next(way)
    try:
        while True:
            if isinstance(step, Click):
                step = way.send(await _click(sale, person, step, idle))
            else:
                await asyncio.sleep(step)
                step = next(way)
    except StopIteration as end:
        sale.gave_up += not end.value
    sale.done += 1


async def _click(
    sale: Sale, person: Person, click: Click, idle: asyncio.LifoQueue[Browser]
) -> list[Answer]:
    async def once(method: str, path: str, body: dict[str, object] | None) -> Answer:
        browser = await idle.get()
        try:
            return await browser.ask(method, path, body)
        finally:
            idle.put_nowait(browser)

    requests = [person.request(click.operation) for _ in range(2 if click.twice else 1)]
    answers = await asyncio.gather(*(once(*request) for request in requests))
    for answer in answers:
        sale.note(person, click.operation, answer)
    return answers


async def _show(sale: Sale, console: Console) -> None:
    """Keep a bar up to date; nothing at all where stdout is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, auto_refresh=False, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("people", total=sale.people)
        while sale.done < sale.people:
            # The people signal nobody when they leave; the bar looks ten times a second.
            await asyncio.sleep(0.1)
            waiting = sale.outcomes["waiting"]
            text = f"{sale.outcomes['booked']:,} booked, {waiting:,} waiting; people"
            progress.update(task, completed=sale.done, description=text)
            progress.refresh()


def _summary(sale: Sale, console: Console) -> None:
    console.print(f"\nThe last of them left after {sale.seconds:.1f} s.\n")
    for what, count, meaning in sale.table():
        console.print(f"  {what:<24}{count:>8,}  {meaning}".rstrip())
    for reason, count in sale.outside.most_common(5):
        console.print(f"    {count:,} times {reason}", markup=False)
    if len(sale.times_ms) > 1:
        cuts = quantiles(sale.times_ms, n=100)
        rate = len(sale.times_ms) / sale.seconds
        console.print(
            f"\n  {len(sale.times_ms):,} answers, {rate:,.0f} a second;"
            f" half within {cuts[49]:.1f} ms, 99 of 100 within {cuts[98]:.1f} ms"
        )


async def _reconcile(sale: Sale, service: Service, console: Console) -> int:
    """Compare both stores, show what was found, and return the exit code of `onsale reconcile`."""
    console.print("\nDo Redis and PostgreSQL agree?\n")
    try:
        report = await reconciler.reconcile(
            service.redis, service.postgresql, event_ids=[sale.event_id]
        )
    except (RedisError, reconciler.UnknownEventError, *UNAVAILABLE) as error:
        console.print(f"That cannot be told: {error or type(error).__name__}", markup=False)
        return EXIT_CODES["cannot_tell"]
    console.print(reconcile_report.render(report).rstrip(), markup=False)
    return report.exit_code


def _farewell(sale: Sale, address: str, console: Console, *, gone: bool) -> None:
    if gone:
        console.print(
            f"\nStopped Onsale again. `onsale up` serves the event at /status/{sale.event_id}"
        )
    else:
        console.print(f"\nLook at it: {address}/status/{sale.event_id}")
