"""A real server for tests: uvicorn in a thread of this process, at a free port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.serve.app import Server
from headstart.serve.running import Running
from headstart.serve.settings import ServeSettings


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A running server: `url`, `host`, `port`, and the parts behind it."""

    url: str
    host: str
    port: int
    server: Server
    running: Running

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()


def wait_for(condition: Callable[[], object], limit_s: float = 10) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.02)


@contextlib.contextmanager
def serving(*files: str | Path, **settings: Any) -> Iterator[Served]:
    """Serve these files with these changes to ServeSettings; stopped (drained) at the end."""
    is_ready = threading.Event()
    server = Server.build(files, ServeSettings(**{"port": 0, "num_workers": 2, **settings}))
    running = Running(server, lambda url: is_ready.set())
    problems: list[BaseException] = []

    def run() -> None:
        try:
            running.run()
        except BaseException as error:
            problems.append(error)
        finally:
            is_ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_ready.wait(30), "the server did not start"
        if problems:
            raise problems[0]
        host, _, port = running.url.removeprefix("http://").rpartition(":")
        yield Served(running.url, host, int(port), server, running)
    finally:
        running.stop()
        thread.join(40)
        assert not thread.is_alive(), "the server did not stop"
