"""The application: the parts of a server, and the routes gathered from the modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette

from headstart.serve import inference_protocol, metrics, page, predict_route
from headstart.serve.body import BodyRoom
from headstart.serve.front_door import NO_ROUTE, FrontDoor
from headstart.serve.metrics import Metrics
from headstart.serve.models import ModelStore
from headstart.serve.page import PageState
from headstart.serve.refusals import Refusal
from headstart.serve.request_log import log_request
from headstart.serve.settings import ServeSettings
from headstart.serve.workers import WorkerPool

ROUTES = [
    *predict_route.routes,
    *inference_protocol.routes,
    *metrics.routes,
    *page.routes,
]

BODIES_HELD = 16  # largest bodies that may be held at once; of smaller ones accordingly more


@dataclass
class Server:
    """What the routes share, as `request.app.state.server`."""

    settings: ServeSettings
    models: ModelStore
    pool: WorkerPool
    metrics: Metrics
    body_room: BodyRoom
    page: PageState = field(default_factory=PageState)
    training_pictures: Path | None = None
    is_draining: bool = False

    @classmethod
    def build(
        cls,
        files: Sequence[str | Path],
        settings: ServeSettings,
        *,
        allow_unsigned: bool = False,
        training_pictures: Path | None = None,
    ) -> Server:
        """The parts put together; no file is opened yet. Raises ConfigError for models' names."""
        models = ModelStore(files, allow_unsigned=allow_unsigned)
        figures = Metrics()
        room = BodyRoom(BODIES_HELD * settings.max_body_bytes)
        pool = WorkerPool(settings, figures)
        return cls(settings, models, pool, figures, room, training_pictures=training_pictures)

    def open_files(self) -> None:
        """The classifiers, then the training pictures. Raises ArtifactError, and ConfigError or DataError for these."""
        self.models.load()
        if self.training_pictures is not None:
            self.page.keep_training_pictures(self.models.models, self.training_pictures)

    @property
    def is_ready(self) -> bool:
        return self.models.is_loaded and not self.is_draining

    def count_refusal(self, refusal: Refusal) -> None:
        """Of a connection itself: what came was no request that a route could answer."""
        self.metrics.count_request(NO_ROUTE, refusal.status, 0)
        log_request("refused", {"status": refusal.status, "code": refusal.code})


def create_app(server: Server) -> Starlette:
    """All routes behind the front door, which answers every error with JSON."""
    app = Starlette(routes=ROUTES)
    app.router.redirect_slashes = False
    app.state.server = server
    # In the place of Starlette's own layers, which would answer errors as text; two fewer for each request to pass.
    app.middleware_stack = FrontDoor(app.router, server)
    return app
