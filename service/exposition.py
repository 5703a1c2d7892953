"""`GET /metrics`: what all processes have counted, and how the stores stand, for Prometheus."""

from collections.abc import Awaitable, Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.metrics import Metrics
from service.vitals import PartitionVitals, Vitals

_OF_A_PARTITION: tuple[tuple[str, str, Callable[[PartitionVitals], float | None]], ...] = (
    ("epoch", "The epoch of Redis.", lambda v: v.meta.epoch if v.meta else 0),
    ("last_seq", "R, the last change in Redis.", lambda v: v.meta.seq if v.meta else 0),
    ("recorded_seq", "P, the last change on record.", lambda v: v.recorded.seq),
    (
        "watermark_seq",
        "W, the last change that Redis knows to be on record.",
        lambda v: v.meta.recorded.seq if v.meta else 0,
    ),
    ("lag_changes", "R less P: what the writer has still to do.", lambda v: v.lag_changes),
    ("lag_seconds", "Age of the oldest change that is not on record.", lambda v: v.lag_s),
    ("unrecorded_changes", "R less W.", lambda v: v.unrecorded),
    (
        "frozen_events",
        "Events with dead letters, which nobody books.",
        lambda v: len(v.meta.frozen) if v.meta else 0,
    ),
    (
        "dead_letters",
        "Changes that were set aside; absent while PostgreSQL is away.",
        lambda v: v.dead_letters,
    ),
    ("outbox_bytes", "Memory of the outbox, about.", lambda v: v.outbox_bytes),
)

_LABELS = {
    "onsale_info": ("version",),
    "onsale_store_up": ("store",),
    "onsale_closed": ("partition", "why"),
    "onsale_refused": ("partition", "code", "why"),
}


def described() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yield name, type, labels and meaning of what is asked at each scrape."""
    everything = _Everything(CollectorRegistry(), Vitals(redis_up=True, postgresql_up=True), "")
    for metric in everything.collect():
        labels = _LABELS.get(metric.name, ("partition",))
        yield metric.name, metric.type, labels, metric.documentation


class Exposition:
    """Answers scrapes by one API worker, in the name of all."""

    def __init__(
        self,
        metrics: Metrics,
        look: Callable[[], Awaitable[Vitals]],
        version: str,
    ) -> None:
        """`look` asks the stores; it raises nothing and takes three seconds at worst."""
        self._metrics = metrics
        self._look = look
        self._version = version

    def route(self) -> Route:
        """Return the route of the scrapes."""
        return Route("/metrics", self.scrape, methods=["GET"])

    async def scrape(self, request: Request) -> Response:
        """Answer 200, in the text format that the scraper asks for, whatever the stores do."""
        vitals = await self._look()
        self._metrics.flush()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = encode(_Everything(self._metrics.registry(), vitals, self._version))
        return Response(text, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


class _Everything(Collector):
    """What was counted until now, and how the stores stand now."""

    def __init__(self, counted: Collector, vitals: Vitals, version: str) -> None:
        self._counted = counted
        self._vitals = vitals
        self._version = version

    def collect(self) -> Iterable[Metric]:
        """Yield every family once."""
        yield from self._counted.collect()
        about = GaugeMetricFamily("onsale_info", "Always 1.", labels=["version"])
        about.add_metric([self._version], 1)
        yield about
        up = GaugeMetricFamily("onsale_store_up", "1 where the store answers.", labels=["store"])
        up.add_metric(["redis"], self._vitals.redis_up)
        up.add_metric(["postgresql"], self._vitals.postgresql_up)
        yield up
        for name, what, value_of in _OF_A_PARTITION:
            family = GaugeMetricFamily(f"onsale_{name}", what, labels=["partition"])
            for number, of in self._vitals.partitions.items():
                if (value := value_of(of)) is not None:
                    family.add_metric([str(number)], value)
            yield family
        yield self._open()
        yield self._refused()
        yield self._closed()

    def _open(self) -> Metric:
        """Tell of every partition, also while Redis cannot be asked."""
        family = GaugeMetricFamily(
            "onsale_open", "1 where bookings are taken.", labels=["partition"]
        )
        for number, problem in self._vitals.problems.items():
            of = self._vitals.partitions.get(number)
            is_open = of is not None and of.meta is not None and of.meta.open
            family.add_metric([str(number)], is_open and problem is None)
        return family

    def _refused(self) -> Metric:
        family = GaugeMetricFamily(
            "onsale_refused",
            "1 where bookings are refused, and why.",
            labels=["partition", "code", "why"],
        )
        for number, problem in self._vitals.problems.items():
            if problem is not None:
                family.add_metric([str(number), problem.code, problem.detail], 1)
        return family

    def _closed(self) -> Metric:
        family = GaugeMetricFamily(
            "onsale_closed",
            "1 where the stores do not agree, and why.",
            labels=["partition", "why"],
        )
        for number, of in self._vitals.partitions.items():
            if of.meta and not of.meta.open and of.meta.reason:
                family.add_metric([str(number), of.meta.reason], 1)
        return family
