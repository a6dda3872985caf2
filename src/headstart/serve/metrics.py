"""What the server counts, for Prometheus, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "headstart_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "headstart_request_seconds", "From the head to the last byte of the answer.", registry=self.registry
        )
        self.in_flight = Gauge("headstart_requests_in_flight", "Requests under way.", registry=self.registry)
        self.pictures = Counter("headstart_pictures", "Pictures predicted.", ["model"], registry=self.registry)
        self.refused = Counter("headstart_pictures_refused", "Pictures refused.", ["code"], registry=self.registry)


async def show_metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.server.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


routes = [Route("/metrics", show_metrics)]
