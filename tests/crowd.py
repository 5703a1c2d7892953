"""Many clients at once over HTTP: keep-alive connections, and requests repeated until answered."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

ANSWER_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One answer, and how many times its request was sent. Status 0: the connection was lost."""

    status: int
    body: dict[str, Any]
    sends: int = 1


@dataclass
class Client:
    """One keep-alive connection, made anew when it is lost."""

    host: str
    port: int
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None)

    async def post(
        self, path: str, body: dict[str, Any], key: str = "", *, prefer: str = ""
    ) -> Answer:
        """Send once, with an Idempotency-Key and a preference, or without."""
        return await self.send("POST", path, json.dumps(body).encode(), key, prefer=prefer)

    async def get(self, path: str) -> Answer:
        """Ask once."""
        return await self.send("GET", path, b"")

    async def post_until_answered(self, path: str, body: dict[str, Any], key: str = "") -> Answer:
        """Send, and send the same again while the outcome is unknown or the service is away."""
        sends = 0
        while True:
            sends += 1
            answer = await self.post(path, body, key)
            if answer.status not in (0, 503):
                return Answer(answer.status, answer.body, sends)
            await asyncio.sleep(0.02)

    async def send(
        self, method: str, path: str, body: bytes, key: str = "", *, prefer: str = ""
    ) -> Answer:
        """Send one request and read its answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self.host, self.port)
                reader, writer = self._streams
                head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\n"
                if key:
                    head += f"Idempotency-Key: {key}\r\n"
                if prefer:
                    head += f"Prefer: {prefer}\r\n"
                if body:
                    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                writer.write(head.encode() + b"\r\n" + body)
                headers = await reader.readuntil(b"\r\n\r\n")
                length = int(headers.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                raw = await reader.readexactly(length)
                if b"connection: close" in headers.lower():
                    await self.close()
                # A proxy's own refusals are pages.
                told = json.loads(raw) if raw.startswith(b"{") else {}
                return Answer(int(headers.split(b" ", 2)[1]), told)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            await self.close()
            return Answer(0, {})

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(address: str, connections: int) -> AsyncIterator[list[Client]]:
    """Lend so many clients of a service at `http://host:port`."""
    host, _, port = address.removeprefix("http://").partition(":")
    clients = [Client(host, int(port)) for _ in range(connections)]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


async def post_all(
    clients: Sequence[Client], path: str, bodies: Iterable[dict[str, Any]]
) -> list[Answer]:
    """Post each body once, all clients at work at the same time; answers in the bodies' order."""
    waiting = list(enumerate(bodies))
    answers: list[Answer] = [Answer(0, {})] * len(waiting)
    waiting.reverse()

    async def work(client: Client) -> None:
        while waiting:
            place, body = waiting.pop()
            answers[place] = await client.post(path, body)

    await asyncio.gather(*(work(client) for client in clients))
    return answers
