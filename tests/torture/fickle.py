"""People who hang up: at any byte of what they ask, or before they are answered.

What became of an operation they find out later, under its key, on another connection. Each answer
that they do wait for, some of them pipelined, must be about what was asked in its place.
"""

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.crowd import Answer, Client
from tests.http.raw import request
from tests.torture.history import Operation
from tests.torture.people import Forgetful, People

_OFTEN = 0.75
_BEFORE_IT_MAX = 3
_WAIT_S_MAX = 0.01
_ANSWER_S = 15.0
_RESET = struct.pack("ii", 1, 0)


@dataclass(repr=False)
class Fickle(People):
    """People of whom most hang up at first. `misled` has each answer that was another's."""

    hung_up: int = 0
    misled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Let what they do follow from the seed."""
        self.chance = Random(f"fickle {self.seed}")

    async def _ask(self, client: Client, one: Operation, prefer: str) -> Answer:
        if one.sends <= 2 and self.chance.random() < _OFTEN:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await self._hang_up(client, one, prefer)
            return Answer(0, {})
        return await super()._ask(client, one, prefer)

    async def _hang_up(self, client: Client, one: Operation, prefer: str) -> None:
        """Ask for a few things and for this one on a connection of its own; do not stay."""
        chance = self.chance
        looks = [self._look(chance.choice(self.event_ids), one.user) for _ in range(self._some())]
        data = b"".join(request("GET", path) for path, _ in looks)
        whole = _bytes_of(one, prefer)
        amid = chance.random() < 0.4
        data += whole[: chance.randrange(len(whole))] if amid else whole
        reader, writer = await asyncio.open_connection(client.host, client.port)
        try:
            writer.write(data)
            for _, about in looks[: chance.randint(0, len(looks))]:
                self._compare(about, await _answer(reader))
            if not amid:
                await self._wait_a_little(reader, one, looks)
            self.hung_up += 1
            if chance.random() < 0.5:
                _reset_at_close(writer)
        finally:
            writer.close()

    def _some(self) -> int:
        return self.chance.choice((0, 0, self.chance.randint(1, _BEFORE_IT_MAX)))

    def _look(self, event_id: int, user: str) -> tuple[str, dict[str, Any]]:
        """Return a path, and what an answer to it must be about."""
        if self.chance.random() < 0.5:
            return f"/status/{event_id}", {"eventId": event_id}
        return f"/events/{event_id}/users/{user}", {"eventId": event_id, "userId": user}

    async def _wait_a_little(
        self, reader: asyncio.StreamReader, one: Operation, looks: list[Any]
    ) -> None:
        """Leave at once, or later; some are answered meanwhile, and do not know."""
        if not looks and self.chance.random() < 0.1:
            self._compare({"eventId": one.event_id, "userId": one.user}, await _answer(reader))
        elif self.chance.random() < 0.6:
            await asyncio.sleep(self.chance.random() * _WAIT_S_MAX)

    def _compare(self, about: dict[str, Any], body: dict[str, Any]) -> None:
        """A problem names nothing; every other answer names what it is about."""
        if "code" not in body and any(body.get(name, it) != it for name, it in about.items()):
            self.misled.append(f"asked about {about}, answered {body}")


class FickleAndForgetful(Forgetful, Fickle):
    """Those who, in addition, repeat under another key."""


def _bytes_of(one: Operation, prefer: str) -> bytes:
    if one.kind == "look":
        return request("GET", f"/status/{one.event_id}")
    if one.kind == "poll":
        return request("GET", f"/events/{one.event_id}/users/{one.user}")
    headers = ["Content-Type: application/json", f"Idempotency-Key: {one.key}"]
    headers += [f"Prefer: {prefer}"] if prefer else []
    body = json.dumps({"eventId": one.event_id, "userId": one.user}).encode()
    return request("POST", f"/{one.kind}", *headers, body=body)


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    async with asyncio.timeout(_ANSWER_S):
        headers = await reader.readuntil(b"\r\n\r\n")
        length = int(headers.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found = json.loads(await reader.readexactly(length))
    assert isinstance(found, dict)
    return found


def _reset_at_close(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
