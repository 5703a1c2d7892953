"""How long one connection may let the service wait, in seconds: for a request, or to be read.

One timer per connection, set anew about once in `READ_S`: what happens in between only moves
`until`. Knows nothing of HTTP.
"""

import asyncio
import math
from collections.abc import Callable

READ_S = 10.0
"""From a request's first byte to its last; from the connection to the first byte; and between two
looks at an answer that nobody takes. No setting: an honest client with 4 KiB needs no longer."""

NEVER = math.inf


class Patience:
    """One connection's clock.

    `until`: the loop's time at which what is awaited must be there.
    """

    __slots__ = ("_full", "_loop", "_over", "_read_s", "_timer", "_transport", "_untaken", "until")

    def __init__(
        self,
        transport: asyncio.Transport,
        over: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        read_s: float,
    ) -> None:
        """Wait for the first byte. `over` is called when it is `until`, and may move that."""
        self._transport = transport
        self._over = over
        self._loop = loop
        self._untaken = 0
        self._full = False
        self._read_s = read_s
        self.begin(read_s)
        self._timer = loop.call_at(self.until, self._look)

    def begin(self, seconds: float) -> None:
        """Wait for so long, from now on."""
        self.until = self._loop.time() + seconds

    def full(self) -> None:
        """Note that nothing more is written until the client has taken what waits for it."""
        self._full = True

    def taken(self) -> None:
        """Note that the client has taken most of it."""
        self._full = False
        self._untaken = 0

    def end(self) -> None:
        """Look no more: the connection is gone."""
        self._timer.cancel()

    def _look(self) -> None:
        # While nothing is added to it, what is not taken can only become less.
        adds_nothing = self._full or self._transport.is_closing()
        untaken = self._transport.get_write_buffer_size() if adds_nothing else 0
        if untaken and untaken == self._untaken:
            self._transport.abort()
        elif self._loop.time() >= self.until:
            self.until = NEVER
            self._over()
        self._untaken = untaken
        at = min(self.until, self._loop.time() + self._read_s)
        self._timer = self._loop.call_at(at, self._look)
