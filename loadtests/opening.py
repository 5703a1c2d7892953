"""The opening of a sale, for Locust: who comes when, and what all of them were told.

Owns the event (one of its own, made when the run starts), the schedule of arrivals and the file of
answers. It ends the run when the last person has left, or when that took too long.
"""

import bisect
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from gevent.lock import BoundedSemaphore
from locust import LoadTestShape
from locust.contrib.fasthttp import FastHttpSession, ResponseContextManager
from locust.env import Environment
from locust.event import EventHook

from loadtests.answers import AnswersFile, Sale
from service.crowd import Answer, Habits, Operation, Person, arrival

CONNECTIONS = 500
"""Lent to whoever clicks, as a balancer does: a connection each would need a higher `ulimit -n`.

Who waits for one has not sent anything yet: that time is in no answer's.
"""

AT_ONCE = 1_000_000
TELL_EVERY_S = 5.0


class Opening(LoadTestShape):
    """A spike at the opening and a long tail: who comes when, and what all of them were told."""

    def reset_time(self) -> None:
        """Begin anew: Locust calls this when a run starts."""
        super().reset_time()
        self.sale: Sale | None = None
        self.outcomes: Counter[str] = Counter()
        self.came = self.left = self.gave_up = 0
        self.seats = BoundedSemaphore(CONNECTIONS)
        self.schedule: list[float] = []
        self._told = 0.0
        self._cpu = _cpu_s()

    def tick(self) -> tuple[int, float] | None:
        """Let in who is due within the next second; end when all have gone, or it took too long."""
        assert self.runner is not None
        if self.sale is None and not self._open(self.runner.environment):
            return None
        now = self.get_run_time()
        if self.left == len(self.schedule) or now > self._limit:
            return None
        if now - self._told >= TELL_EVERY_S:
            self._told = now
            sys.stderr.write(f"{now:4.0f} s: {self.came:,} came, {self.left:,} left\n")
        # Who was let in and has not run yet is counted twice, and comes a little early. Never less
        # than nobody: Locust would send people away in the middle of their visit.
        due = max(0, bisect.bisect(self.schedule, now + 1) - self.came)
        # Locust compares the first number with those who are there, and lets the rest in at once;
        # each then waits for the moment at which it is expected.
        return self.runner.user_count + due, AT_ONCE

    def enter(self) -> int | None:
        """Return the number of who comes next; None when everybody has come."""
        if self.sale is None or self.came == len(self.schedule):
            return None
        self.came += 1
        return self.came - 1

    def note(self, person: Person, operation: Operation, answer: Answer) -> str:
        """Keep an answer; return why it is outside the contract, or nothing."""
        outcome, reason = person.judge(operation, answer)
        self.outcomes[outcome] += 1
        self.file.note(operation, person.user_id, answer)
        return reason

    def close(self) -> None:
        """End the file of answers, once."""
        if self.sale is not None:
            self.file.end(people=self.left, gave_up=self.gave_up)
            self.seconds = self.get_run_time()
            self.cpu = (_cpu_s() - self._cpu) / self.seconds

    @property
    def as_promised(self) -> bool:
        """Whether everybody came, had an answer in the end, and all answers are in the contract."""
        everybody = self.sale is not None and self.left == len(self.schedule)
        return everybody and not self.gave_up and not self.outcomes["outside"]

    def _open(self, environment: Environment) -> bool:
        """Open an event and the file; where there is none to be had, say so in a line."""
        chosen = environment.parsed_options
        assert chosen is not None
        assert environment.host is not None
        try:
            event = _initialize(environment, chosen.tickets)
        except NoEventError as error:
            sys.stderr.write(f"loadtest: {environment.host} opens no event: {error}\n")
            return False
        self.sale = Sale(event, chosen.tickets, chosen.people, environment.host)
        self.file = AnswersFile(Path(chosen.answers), self.sale)
        self.habits = Habits(
            cancel=chosen.cancel,
            double_click=chosen.repeat,
            reload=chosen.repeat,
            think_s=chosen.think,
        )
        self.prefer: str = chosen.prefer
        self._limit = chosen.limit
        numbers = range(chosen.people)
        self.schedule = [arrival(number / chosen.people) * chosen.span for number in numbers]
        return True


class NoEventError(Exception):
    """The service opens no event."""


def why_not_ready(host: str) -> str:
    """Return why a service takes no bookings, nothing when it does."""
    session = FastHttpSession(host, EventHook(), user=None, connection_timeout=5.0)
    with session.get("/readyz", catch_response=True) as response:
        response.success()
        return "" if response.status_code == 200 else _why(response)


def _initialize(environment: Environment, tickets: int) -> int:
    """Open an event and return its id."""
    session = FastHttpSession(environment.host, environment.events.request, user=None)
    body = {"name": "Load test", "totalTickets": tickets}
    with session.post("/initialize", json=body, catch_response=True) as response:
        if response.status_code != 201:
            raise NoEventError(_why(response))
        response.success()
        return int(json.loads(response.content)["event"]["id"])


def _why(response: ResponseContextManager) -> str:
    """Say in a line why an answer is not the one that was hoped for."""
    if not response.status_code:
        return str(getattr(response, "error", "no answer"))
    return f"{response.status_code} {body_of(response).get('detail', '')}".rstrip()


def body_of(response: ResponseContextManager) -> dict[str, Any]:
    """Return the JSON object that was answered, empty for anything else."""
    try:
        found = json.loads(response.content or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
