"""The server as a process: start, signals, stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from headstart.errors import ConfigError
from headstart.serve.app import Server, create_app
from headstart.serve.http_protocol import make_protocol
from headstart.serve.metrics import Metrics
from headstart.serve.models import ModelStore
from headstart.serve.settings import ServeSettings
from headstart.serve.workers import WorkerPool

logger = logging.getLogger(__name__)


def make_server(files: Sequence[str | Path], settings: ServeSettings, *, allow_unsigned: bool = False) -> Server:
    """The parts put together; nothing is opened yet."""
    models = ModelStore(files, allow_unsigned=allow_unsigned)
    return Server(settings, models, WorkerPool(settings), Metrics())


class Running(uvicorn.Server):
    """uvicorn's server, which tells its port once it listens and once the classifiers are loaded."""

    def __init__(self, server: Server, on_ready: Callable[[str], None] = lambda url: None) -> None:
        settings = server.settings
        self.server = server
        self._on_ready = on_ready
        self._loading: asyncio.Task[None] | None = None
        self.url = ""
        super().__init__(
            uvicorn.Config(
                create_app(server),
                host=settings.host,
                port=settings.port,
                http=make_protocol(settings),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(settings.keep_alive_s),
                timeout_graceful_shutdown=int(settings.drain_s),
            )
        )

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        settings = self.server.settings
        try:
            await super().startup()
        except SystemExit:
            raise ConfigError(
                f"Cannot listen at {settings.host} port {settings.port}. Is it taken? Choose another with --port, "
                "or stop the other server."
            ) from None
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        await asyncio.to_thread(self.server.models.load)
        self._on_ready(self.url)


def serve(
    files: Sequence[str | Path],
    settings: ServeSettings,
    *,
    allow_unsigned: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve these classifier files until SIGTERM or SIGINT, then finish what was taken. Raises HeadstartError."""
    running = Running(make_server(files, settings, allow_unsigned=allow_unsigned), on_ready)
    running.run()
