"""`/metrics` in Prometheus' text format: what the emitter took and lost, and how far the consumers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streams.progress import Progress

EMITTER = ("accepted", "acknowledged", "failed", "forwarded")
CONSUMER = ("handled", "put_off", "retried", "dead")
OUTBOX = ("waiting", "rejected", "killed", "lost", "torn", "damaged")


@dataclass(frozen=True)
class Figures:
    """What is counted now."""

    emitter: Mapping[str, int] = field(default_factory=dict)
    """`Emitter.counters` of this process; empty before it is opened."""
    outbox: Mapping[str, int] = field(default_factory=dict)
    """Counts of `OutboxStatus`; empty without an outbox."""
    consumers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Group to the `Consumer.counters` of its member in this process."""
    progress: Sequence[Progress] = ()
    """Where the groups stand, whichever process works for them."""
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """Topic to the records written to its dead letters."""
    log_up: bool = True
    """The log answered; without it progress and dead letters are not known."""


class Counted(Protocol):
    """What has figures."""

    def figures(self) -> Figures:
        """Asked at each scrape, from several threads; never raises because something is away."""
        ...


def router(counted: Counted) -> APIRouter:
    """The route `GET /metrics`."""
    routes = APIRouter()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FiguresCollector(counted))

    @routes.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


class _FiguresCollector(Collector):
    def __init__(self, counted: Counted) -> None:
        self._counted = counted

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise collect once before anybody asked."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, read now."""
        figures = self._counted.figures()
        yield from _of_the_emitter(figures)
        yield from _of_the_consumers(figures)
        up = GaugeMetricFamily("quill_log_up", "1 when the event log answered this scrape, else 0.")
        up.add_metric([], int(figures.log_up))
        yield up


def _of_the_emitter(figures: Figures) -> Iterator[Metric]:
    events = CounterMetricFamily(
        "quill_emitter_events",
        "Events since the start of the process. Acknowledged: durable. Forwarded: in the log, by way of the outbox.",
        labels=["outcome"],
    )
    for name in EMITTER:
        if name in figures.emitter:
            events.add_metric([name], figures.emitter[name])
    yield events
    outbox = GaugeMetricFamily(
        "quill_outbox_events", "Events in the outbox by state, and what killed processes cost.", labels=["state"]
    )
    for name in OUTBOX:
        if name in figures.outbox:
            outbox.add_metric([name], figures.outbox[name])
    yield outbox


def _of_the_consumers(figures: Figures) -> Iterator[Metric]:
    records = CounterMetricFamily(
        "quill_consumer_records",
        "Records since the start of the process. Put off: to the retry topic. Dead: to the dead letters.",
        labels=["group", "outcome"],
    )
    waiting = GaugeMetricFamily(
        "quill_consumer_waiting", "Records that wait for a retry in this process.", labels=["group"]
    )
    for group, counters in figures.consumers.items():
        for name in CONSUMER:
            records.add_metric([group, name], counters.get(name, 0))
        waiting.add_metric([group], counters.get("waiting", 0))
    yield from (records, waiting)
    labels = ["group", "topic", "partition"]
    lag = GaugeMetricFamily("quill_consumer_lag_events", "Events that a group has not handled yet.", labels=labels)
    age = GaugeMetricFamily(
        "quill_consumer_oldest_unhandled_seconds",
        "Age of the oldest event not handled yet; 0 with none.",
        labels=labels,
    )
    for each in figures.progress:
        names = [each.group, each.topic, str(each.partition)]
        lag.add_metric(names, each.behind)
        age.add_metric(names, each.oldest_seconds or 0.0)
    yield from (lag, age)
    dead = CounterMetricFamily(
        "quill_dead_letter_records",
        "Records written to the dead letters of a topic, replay notes too.",
        labels=["topic"],
    )
    for topic, count in figures.dead_letters.items():
        dead.add_metric([topic], count)
    yield dead
