"""What is sent: one kind of request with its blanks, the same for wrk and for the own sender.

Pure. A blank is `<event>` (one of a range, at random when there are several) or `<user>` (a prefix
and nine digits: counted up, so that each user comes once, or one of so many at random).
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

_BLANK = re.compile(r"<(event|user|length)>")
_USER_DIGITS = 9

BOOKING = '{"eventId":<event>,"userId":"<user>"}'
"""The body of `POST /book` and `POST /cancel`."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of request.

    `among`: users are taken at random from so many, the first being `<prefix>000000000`; 0 counts
    up from `first`. `counts_statuses`: wrk shall tell each status, which costs it about 1 µs an
    answer (measured: 16.6 for 15.7); without it wrk tells only how many were 400 and above.
    """

    method: str
    path: str
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    events: range = range(1, 2)
    users: str = ""
    among: int = 0
    first: int = 0
    counts_statuses: bool = False

    def template(self, host: str) -> list[str]:
        """Return the request's text, literals and names of blanks in turn, a literal first."""
        headers = [("Host", host), *self.headers]
        if self.body:
            headers += [("Content-Type", "application/json"), ("Content-Length", "<length>")]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return _BLANK.split(f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n{self.body}")

    def length_parts(self) -> tuple[int, int, int]:
        """Return the body's bytes outside of blanks, and how many events and users it holds."""
        parts = _BLANK.split(self.body)
        return sum(map(len, parts[::2])), parts.count("event"), parts.count("user")

    def requests(self, host: str) -> Iterator[bytes]:
        """Yield requests, for ever."""
        parts = self.template(host)
        base, events, users = self.length_parts()
        number = self.first
        while True:
            event = str(random.choice(self.events))
            who = random.randrange(self.among) if self.among else number
            user = f"{self.users}{who:0{_USER_DIGITS}}"
            length = str(base + events * len(event) + users * len(user))
            blanks = {"event": event, "user": user, "length": length}
            texts = [blanks[part] if at % 2 else part for at, part in enumerate(parts)]
            yield "".join(texts).encode()
            number += 1

    def lua(self, host: str, seed: int) -> str:
        """Return the part of a wrk script that makes requests."""
        parts = self.template(host)
        used = set(parts[1::2])
        lines = [f"math.randomseed({seed})", f"local number = {self.first}", "function request()"]
        if "event" in used or "length" in used:
            first, last = self.events[0], self.events[-1]
            several = f"tostring(math.random({first}, {last}))"
            lines.append(f"  local event = {several if last > first else json.dumps(str(first))}")
        if "user" in used or "length" in used:
            who = f"math.random(0, {self.among - 1})" if self.among else "number"
            form = json.dumps(f"{self.users}%0{_USER_DIGITS}d")
            lines += [f"  local user = string.format({form}, {who})", "  number = number + 1"]
        if "length" in used:
            base, events, users = self.length_parts()
            lines.append(f"  local length = {base} + {events} * #event + {users} * #user")
        # A literal in JSON is one in Lua as long as it is ASCII.
        texts = [part if at % 2 else json.dumps(part) for at, part in enumerate(parts)]
        lines += [f"  return {' .. '.join(texts)}", "end"]
        return "\n".join(lines) + "\n"


def booking(event: int | range, users: str, *, first: int = 0, prefer: str = "") -> Traffic:
    """Return bookings, each of another user."""
    headers = (("Prefer", f"durability={prefer}"),) if prefer else ()
    events = event if isinstance(event, range) else range(event, event + 1)
    return Traffic("POST", "/book", BOOKING, headers, events=events, users=users, first=first)
