"""A sale under a crowd, for Locust: people who look, book, repeat, wait, and now and then cancel.

Opens an event of its own, sends `--people` of `service.crowd` at it, most of them at the opening
and the rest over `--span` seconds, and ends when the last one has left. Every answer about the sale
goes into `--answers`, for `loadtests.verify`. A sold-out sale is no failure, nor is a 503 that says
when to come again; what the contract does not allow is one, and so is somebody who gave up. One
process: the answers' times are of one clock, and their file has one writer.

    .venv/bin/locust -f loadtests/locustfile.py --headless --people 20000 --tickets 1000

Locust patches the standard library for gevent when it is imported: no test imports this file.
"""

import logging
import sys
import time
from functools import partial
from random import Random
from typing import Any, NoReturn

import gevent
from geventhttpclient.client import HTTPClientPool
from locust import FastHttpUser, events, task
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import LocalRunner

from loadtests.opening import CONNECTIONS, Opening, body_of, why_not_ready
from service.crowd import OUTCOMES, Answer, Click, Operation, Person, visit
from service.rundir import RunDirectory
from service.settings import load_settings

NAMES = {
    "look": "GET /status/{eventId}",
    "book": "POST /book",
    "poll": "GET /events/{eventId}/users/{userId}",
    "cancel": "POST /cancel",
}

ANSWER_S = 15.0


@events.init_command_line_parser.add_listener
def options(parser: Any) -> None:
    """Add what a sale is made of; each can be set from the environment too."""
    group = parser.add_argument_group("A sale")
    for name, kind, default, text in (
        ("people", int, 20_000, "how many come"),
        ("tickets", int, 1_000, "how many tickets there are"),
        ("cancel", float, 0.1, "the share of those holding a ticket or waiting who cancel"),
        ("repeat", float, 0.05, "the share of clicks sent twice at once; and of bookings, again"),
        ("think", float, 2.0, "mean seconds between a person's clicks"),
        ("span", float, 30.0, "seconds in which the people come, half in the first eighth"),
        ("limit", float, 600.0, "seconds after which the run ends, whoever is still there"),
        ("prefer", str, "", "the durability that bookings and cancellations ask for"),
        ("answers", str, "loadtests/out/answers.jsonl", "the file for what people were told"),
    ):
        group.add_argument(
            f"--{name}",
            type=kind,
            default=default,
            env_var=f"LOADTEST_{name.upper()}",
            help=f"{text} (default: {default})",
        )


@events.init.add_listener
def check(environment: Environment, **_: Any) -> None:
    """Refuse, in one line, what cannot work; find the running service where none is named."""
    chosen = environment.parsed_options
    assert chosen is not None
    if not isinstance(environment.runner, LocalRunner):
        _refuse("the sale runs in one process: no --master, --worker or --processes")
    for name in ("cancel", "repeat"):
        if not 0 <= getattr(chosen, name) <= 1:
            _refuse(f"--{name} is a share, from 0 to 1")
    if min(chosen.people, chosen.tickets) < 1:
        _refuse("--people and --tickets are at least 1")
    if environment.host is None:
        run = RunDirectory(load_settings().data_dir)
        service = run.read_service()
        if service is None:
            _refuse(f"no service runs on {run.data}: start one with `make run`, or name its --host")
        environment.host = service.http
    if reason := why_not_ready(environment.host):
        _refuse(f"{environment.host} takes no bookings: {reason}")
    logging.getLogger("locust.runners").addFilter(_is_news)
    events.quit.add_listener(partial(tell, environment))


def _refuse(reason: str) -> NoReturn:
    sys.stderr.write(f"loadtest: {reason}\n")
    sys.exit(2)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop Locust's warning that a spike is steep: it is meant to be, and repeats each second."""
    return "spawn rate is very high" not in record.getMessage()


class Visitor(FastHttpUser):
    """One person, from arrival to leaving."""

    client_pool = HTTPClientPool(
        concurrency=CONNECTIONS, network_timeout=ANSWER_S, connection_timeout=ANSWER_S
    )

    @task
    def attend(self) -> NoReturn:
        """Come when it is time, visit the sale, leave for good."""
        opening = self.environment.shape_class
        assert isinstance(opening, Opening)
        number = opening.enter()
        if number is not None and opening.sale is not None:
            gevent.sleep(max(0.0, opening.schedule[number] - opening.get_run_time()))
            self._person = Person(opening.sale.event, f"person-{number + 1}", opening.prefer)
            self._opening = opening
            try:
                opening.gave_up += not self._visit()
            except Exception as error:
                # A mistake of this file: it must end in the report and not in the next person.
                self.environment.events.user_error.fire(
                    user_instance=self, exception=error, tb=error.__traceback__
                )
            opening.left += 1
        raise StopUser

    def _visit(self) -> bool:
        """Return whether every click had an answer in the end."""
        way = visit(self._opening.habits, Random())
        step = next(way)
        try:
            while True:
                if isinstance(step, Click):
                    step = way.send(self._click(step))
                else:
                    gevent.sleep(step)
                    step = next(way)
        except StopIteration as end:
            return bool(end.value)

    def _click(self, click: Click) -> list[Answer]:
        requests = [self._person.request(click.operation) for _ in range(2 if click.twice else 1)]
        if len(requests) == 1:
            return [self._ask(click.operation, *requests[0])]
        both = [gevent.spawn(self._ask, click.operation, *request) for request in requests]
        try:
            gevent.joinall(both, raise_error=True)
        finally:
            gevent.killall(both)
        return [one.value for one in both]

    def _ask(
        self, operation: Operation, method: str, path: str, body: dict[str, object] | None
    ) -> Answer:
        headers = {"Prefer": f"durability={self._person.prefer}"} if self._person.prefer else {}
        with self._opening.seats:
            sent = time.monotonic()
            try:
                with self.client.request(
                    method,
                    path,
                    name=NAMES[operation],
                    json=body,
                    headers=headers,
                    catch_response=True,
                ) as response:
                    answer = _answer(response, sent)
                    reason = self._opening.note(self._person, operation, answer)
                    if reason:
                        response.failure(reason)
                    else:
                        response.success()
            except gevent.GreenletExit:
                # The run ends here and now: what this request did, nobody will know.
                self._opening.note(self._person, operation, _lost(sent))
                raise
        return answer


def _answer(response: ResponseContextManager, sent: float) -> Answer:
    if not response.status_code:
        return _lost(sent)
    after = str(response.headers.get("retry-after", "")) if response.headers else ""
    return Answer(
        status=response.status_code,
        body=body_of(response),
        retry_after=float(after) if after.isdecimal() else None,
        sent=sent,
        answered=time.monotonic(),
    )


def _lost(sent: float) -> Answer:
    return Answer(0, {}, None, sent, time.monotonic())


@events.test_stop.add_listener
def close(environment: Environment, **_: Any) -> None:
    """End the file of answers; nobody is at the sale any more."""
    assert isinstance(environment.shape_class, Opening)
    environment.shape_class.close()


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """End with 1, whatever Locust was told to do about errors, when a promise was not kept."""
    assert isinstance(environment.shape_class, Opening)
    if not environment.shape_class.as_promised:
        environment.process_exit_code = 1


def tell(environment: Environment, **_: Any) -> None:
    """Print the outcomes, below Locust's own tables."""
    opening = environment.shape_class
    assert isinstance(opening, Opening)
    sale = opening.sale
    if sale is None:
        return
    total = environment.stats.total
    half, most = (total.get_response_time_percentile(share) or 0 for share in (0.5, 0.99))
    answers = opening.outcomes.total() - opening.outcomes["no answer"]
    print(
        f"{opening.left:,} people at {sale.tickets:,} tickets of event {sale.event}:"
        f" {answers:,} answers in {opening.seconds:.1f} s, {answers / opening.seconds:,.0f} a"
        f" second; half within {half:.0f} ms, 99 of 100 within {most:.0f} ms"
    )
    print(f"(this client's own time included: it took {opening.cpu:.0%} of a core)\n")
    for outcome in OUTCOMES:
        print(f"  {outcome:<18}{opening.outcomes[outcome]:>9,}")
    print(f"  {'gave up':<18}{opening.gave_up:>9,}")
    if opening.left < sale.people:
        print(f"  {'still there':<18}{sale.people - opening.left:>9,}")
    print(f"\nWhat people were told: {opening.file.path}")
