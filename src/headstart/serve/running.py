"""The server as a process: start, signals, files that are replaced, and a stop that finishes what was taken."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

import uvicorn
from uvicorn.server import ServerState

from headstart._files import show_path
from headstart.errors import ConfigError
from headstart.serve.app import Server, create_app
from headstart.serve.http_protocol import Protocol, make_protocol
from headstart.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

# So long clients of idle connections are answered 503 once a stop was asked for, before their connections are closed.
NOTICE_S = 0.5
_TICK_S = 0.05
_BACKLOG = 2048
_TRIM_S = 10


class Running:
    """One server from start to stop. `url` is known once it listens."""

    def __init__(self, server: Server, on_ready: Callable[[str], None] = lambda url: None) -> None:
        self.server = server
        self.url = ""
        self._on_ready = on_ready
        self._num_stops = 0
        self._is_reload_asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state = ServerState()
        self._config = uvicorn.Config(
            create_app(server),
            http=make_protocol(server.settings, server.count_refusal),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        # uvicorn takes whole seconds only as an argument.
        self._config.timeout_keep_alive = server.settings.keep_alive_s  # type: ignore[assignment]

    def run(self) -> None:
        """Serve until `stop` or a signal. Raises ConfigError where it cannot listen, ArtifactError for the files."""
        with asyncio.Runner(loop_factory=self._config.get_loop_factory()) as runner:
            runner.run(self.serve())

    def stop(self) -> None:
        """Finish what was taken and stop; the second time, stop at once. From any thread."""
        self._num_stops += 1

    def reload(self) -> None:
        """Look at the classifier files now. From any thread."""
        self._is_reload_asked = True

    async def serve(self) -> None:
        self._config.load()
        self._loop = asyncio.get_running_loop()
        settings = self.server.settings
        self._set_date()
        try:
            listener = await self._loop.create_server(
                self._make_protocol, settings.host, settings.port, backlog=_BACKLOG
            )
        except (OSError, OverflowError) as error:
            raise ConfigError(_say_cannot_listen(settings, error)) from None
        with self._catching_signals():
            background = [asyncio.create_task(self.server.pool.supervise()), asyncio.create_task(_give_memory_back())]
            try:
                host, port = listener.sockets[0].getsockname()[:2]
                self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                await asyncio.to_thread(self.server.open_files)
                for model in self.server.models.models:
                    self.server.metrics.set_version(model.name, model.version)
                if not self._num_stops:
                    self._on_ready(self.url)
                await self._wait_for_stop()
                await self._drain(listener)
            finally:
                listener.close()
                for task in background:
                    task.cancel()
                self.server.pool.close()

    def _make_protocol(self) -> Protocol:
        return self._config.http_protocol_class(self._config, self._state, {}, self._loop)  # type: ignore[return-value, call-arg]

    def _set_date(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    async def _wait_for_stop(self) -> None:
        reload_s = self.server.settings.reload_s
        reloading: asyncio.Task[None] | None = None
        looked_s = dated_s = time.monotonic()
        while not self._num_stops:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            if now_s - dated_s >= 1:
                dated_s = now_s
                self._set_date()
            is_due = self._is_reload_asked or (reload_s and now_s - looked_s >= reload_s)
            if is_due and (reloading is None or reloading.done()):
                self._is_reload_asked, looked_s = False, now_s
                reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        try:
            for model in await asyncio.to_thread(self.server.models.reload):
                self.server.metrics.set_version(model.name, model.version)
        except Exception:  # such as no memory: the next look tries again
            logger.exception("looking at the classifier files failed")

    async def _drain(self, listener: asyncio.Server) -> None:
        """Answer what was taken and refuse what is new, at most for `drain_s`; then close all connections."""
        self.server.is_draining = True
        started_s = time.monotonic()
        taken = set(self._state.tasks)
        logger.info("stopping", extra={"facts": {"requests_under_way": len(taken)}})
        while self._num_stops < 2 and time.monotonic() - started_s < self.server.settings.drain_s:
            has_noticed = time.monotonic() - started_s >= NOTICE_S or not self._state.connections
            if has_noticed and all(task.done() for task in taken):
                break
            await asyncio.sleep(_TICK_S)
        listener.close()
        if num_left := sum(not task.done() for task in taken):
            logger.error("stopped before %d requests were answered", num_left)
        for connection in list(self._state.connections):
            connection.leave()  # type: ignore[union-attr]
        ending_s = time.monotonic()
        while self._state.connections and self._num_stops < 2 and time.monotonic() - ending_s < 2:
            await asyncio.sleep(_TICK_S)

    @contextlib.contextmanager
    def _catching_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        actions = {signal.SIGINT: self.stop, signal.SIGTERM: self.stop}
        if hasattr(signal, "SIGHUP"):
            actions[signal.SIGHUP] = self.reload
        before = {
            number: signal.signal(number, lambda *_, action=action: action()) for number, action in actions.items()
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _give_memory_back() -> None:
    """Every 10 s, until cancelled: glibc keeps what a burst of requests has left free, 50 MB and more.

    It takes a few milliseconds in a thread.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (TypeError, OSError, AttributeError):  # Windows, macOS, musl
        return
    while True:
        await asyncio.sleep(_TRIM_S)
        await asyncio.to_thread(trim, 0)


def _say_cannot_listen(settings: ServeSettings, error: Exception) -> str:
    where = f"{show_path(settings.host)}, port {settings.port}"
    words = getattr(error, "strerror", None) or str(error)
    if "in use" in words:
        return f"Cannot listen at {where}: another program does. Choose another port with --port, or stop that program."
    return f"Cannot listen at {where}: {words}. Check --host and --port."


def serve(
    files: Sequence[str | Path],
    settings: ServeSettings,
    *,
    allow_unsigned: bool = False,
    training_pictures: Path | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve these classifier files until SIGTERM or SIGINT, then finish what was taken; a second one stops at once.

    `on_ready` is called with the address once requests are answered. SIGHUP looks at the files at once. Raises
    ConfigError where it cannot listen, ArtifactError for the files, DataError for the training pictures.
    """
    server = Server.build(files, settings, allow_unsigned=allow_unsigned, training_pictures=training_pictures)
    Running(server, on_ready).run()
