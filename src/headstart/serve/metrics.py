"""What the server counts, for Prometheus, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headstart.errors import ImageError
from headstart.prediction import Prediction

# Every label value is a series that lives as long as the server; classes beyond these are counted as one.
MAX_CLASSES = 200
OTHER_CLASSES = "(other)"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "headstart_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "headstart_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("headstart_requests_in_flight", "Requests under way.", registry=self.registry)
        self._waiting = Gauge("headstart_queue_pictures", "Pictures that wait for a worker.", registry=self.registry)
        self._stuck = Gauge("headstart_stuck_workers", "Workers busy with what was given up.", registry=self.registry)
        self._pictures = Counter("headstart_pictures", "Pictures predicted.", ["model"], registry=self.registry)
        self._refused = Counter(
            "headstart_pictures_refused", "Pictures refused, by reason.", ["code"], registry=self.registry
        )
        self._predicted = Counter(
            "headstart_predictions", "Pictures by predicted class.", ["model", "label"], registry=self.registry
        )
        self._versions = Gauge(
            "headstart_model_version", "Counts up each time that the file is loaded.", ["model"], registry=self.registry
        )
        # labels() takes longer than counting.
        self._find_requests = lru_cache(1000)(self._requests.labels)
        self._find_seconds = lru_cache(1000)(self._seconds.labels)

    def watch_queue(self, count_waiting: Callable[[], float], count_stuck: Callable[[], float]) -> None:
        self._waiting.set_function(count_waiting)
        self._stuck.set_function(count_stuck)

    def count_request(self, route: str, status: int, duration_s: float) -> None:
        self._find_requests(route, str(status)).inc()
        self._find_seconds(route).observe(duration_s)

    def count_pictures(self, model: str, outcomes: Sequence[Prediction | ImageError]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, ImageError):
                self._refused.labels(outcome.code).inc()
                continue
            number = int(outcome.probs.argmax())
            label = outcome.classes[number] if number < MAX_CLASSES else OTHER_CLASSES
            self._pictures.labels(model).inc()
            self._predicted.labels(model, label).inc()

    def set_version(self, model: str, version: str) -> None:
        self._versions.labels(model).set(int(version))


async def show_metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format."""
    text = generate_latest(request.app.state.server.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


routes = [Route("/metrics", show_metrics)]
