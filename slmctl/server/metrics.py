"""The server's counters, gauges and histograms, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


Samples = Sequence[tuple[Mapping[str, str], float]]  # labels, value


class Metrics:
    """The figures of one server. Labels hold nothing that a client can
    choose, so that their number is bounded.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Requests answered or refused", ["path", "status"]
        )
        self.answers = self._counter(
            "answers", "Answers given, by model and who gave them", ["model", "route", "reason"]
        )
        self.tokens = self._counter("tokens", "Tokens of prompts and answers", ["model", "kind"])
        self.refused = self._counter("refused", "Requests turned away by a limit", ["reason"])
        self.failed = self._counter(
            "failed", "Accepted requests without a whole answer", ["reason"]
        )
        self.restarts = self._counter(
            "engine_restarts", "Times that the engine died and was started again"
        )
        self.dropped = self._gauge(
            "log_lines_dropped", "Lines of the log that were not read in time"
        )
        self.running = self._gauge("requests_running", "Requests being answered or waiting")
        self.waiting = self._gauge("requests_waiting", "Requests that no sequence is free for")
        self.ready = self._gauge("ready", "Whether requests are answered")
        self.seconds = self._histogram(
            "answer_seconds", "From the request's arrival to the end of its answer"
        )
        self.first = self._histogram(
            "first_piece_seconds", "From the request's arrival to the first piece of its answer"
        )

    def include(
        self, families: Mapping[str, tuple[str, str]], figures: Callable[[], Mapping[str, Samples]]
    ) -> None:
        """Add metrics with samples from a function.

        Args:
            families: (`counter` or `gauge`, help) by name.
            figures: Returns the samples of each family; a family may be left out.
        """
        self.registry.register(_Counted(families, figures))

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"slmctl_{name}", help, labels or [], registry=self.registry)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(f"slmctl_{name}", help, registry=self.registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(f"slmctl_{name}", help, registry=self.registry, buckets=SECONDS)


class _Counted(Collector):
    """Metrics with samples from a function."""

    def __init__(
        self, families: Mapping[str, tuple[str, str]], figures: Callable[[], Mapping[str, Samples]]
    ) -> None:
        self._families, self._figures = families, figures

    def collect(self) -> Iterable[Metric]:
        for name, samples in self._figures().items():
            kind, help = self._families[name]
            labels = list(samples[0][0]) if samples else []
            family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(
                name, help, labels=labels
            )
            for named, value in samples:
                family.add_metric([named[label] for label in labels], value)
            yield family
