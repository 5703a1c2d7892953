"""Reads, and requests that change nothing: most of what a flash sale is asked."""

from loadtests.benching.stage import Stage
from loadtests.benching.traffic import BOOKING, Traffic, booking
from loadtests.benching.variants import OnsaleVariant

PEOPLE = 10_000
"""So many are there before the rounds, and are asked about at random."""

_PREFIX = "p-"


class Status(OnsaleVariant):
    """What everybody polls."""

    what = "GET /status/{event}"

    def traffic(self, number: int) -> Traffic:
        """Return one question, always the same."""
        del number
        return Traffic("GET", f"/status/{self.event}")


class _AmongPeople(OnsaleVariant):
    """Requests about people who are there already."""

    tickets = 10_000_000

    async def prepare(self, stage: Stage) -> None:
        """Open an event, and let people book."""
        await super().prepare(stage)
        self.event = await self.onsale.open(self.tickets)
        await stage.send_each(self.onsale.address, booking(self.event, _PREFIX), PEOPLE)

    def _of(self, method: str, path: str, body: str = "") -> Traffic:
        events = range(self.event, self.event + 1)
        return Traffic(method, path, body, events=events, users=_PREFIX, among=PEOPLE)


class User(_AmongPeople):
    """What a holder of a ticket polls."""

    what = "GET /events/{event}/users/{user}, of 10,000 who have booked"

    def traffic(self, number: int) -> Traffic:
        """Return questions about one of them each."""
        del number
        return self._of("GET", "/events/<event>/users/<user>")


class Repeat(_AmongPeople):
    """The same booking again."""

    what = "POST /book, by 10,000 who have booked"

    def traffic(self, number: int) -> Traffic:
        """Return bookings by those who hold a ticket."""
        del number
        return self._of("POST", "/book", BOOKING)


class SoldOutAgain(Repeat):
    """Those who wait ask again."""

    what = "POST /book of a sold-out event, by 10,000 who wait"
    tickets = 1

    def traffic(self, number: int) -> Traffic:
        """Return bookings by those who wait, and by the one who holds the ticket."""
        return super().traffic(number)
