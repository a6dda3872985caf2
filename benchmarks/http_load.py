"""A client for load on one host and port: kept connections, requests as ready bytes, every answer timed and counted.

It runs in the calling process and costs about 0.1 ms of a processor a request, which `Load.client_cpu_s` tells.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one request: `status` is 0 where the connection ended without an answer, -1 where none could be opened.

    `began_s` is on the clock of time.perf_counter; `seconds` count from there, in an open load from the moment when
    the request was due. `number` is that of the request's bytes.
    """

    number: int
    status: int
    began_s: float
    seconds: float
    body: bytes = b""


@dataclass
class Load:
    """What a stretch of load gave."""

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    client_cpu_s: float = 0.0

    def count(self) -> dict[str, int]:
        return {str(status): count for status, count in sorted(Counter(o.status for o in self.outcomes).items())}

    def get_seconds(self, status: int = 200) -> list[float]:
        return [outcome.seconds for outcome in self.outcomes if outcome.status == status]

    @property
    def rate(self) -> float:
        """Requests answered with 200 a second."""
        return len(self.get_seconds()) / self.seconds


def make_request(path: str, body: bytes, content_type: str, host: str = "127.0.0.1", **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


MAX_IDLE_S = 20
"""Below the server's 30 s: a request on a connection that is just being closed would find no answer."""


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._end = 0
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self.is_open = True
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._end:
            at = self._buffer.find(b"\r\n\r\n")
            if at < 0:
                return
            self._head = bytes(self._buffer[:at])
            found = _LENGTH.search(self._head)
            self._end = at + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) < self._end:
            return
        if _CLOSE.search(self._head):
            self.is_open = False
        body = bytes(self._buffer[len(self._head) + 4 : self._end])
        self._buffer.clear()
        self._end = 0
        self._tell((int(self._head[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._tell((0, b""))

    def _tell(self, answer: tuple[int, bytes]) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(answer)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._waiting


class Client:
    """Connections that are used again; a new one where all are busy."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._address = host, port
        self._idle: list[_Connection] = []
        self.num_opened = 0

    async def send(self, number: int, request: bytes, due_s: float | None = None) -> Outcome:
        began = time.perf_counter()
        connection = None
        while self._idle and connection is None:
            connection = self._idle.pop()
            connection = connection if connection.is_open else None
        if connection is None:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(_Connection, *self._address)
                self.num_opened += 1
            except OSError:
                return Outcome(number, -1, began, time.perf_counter() - began)
            began = time.perf_counter()
        elif time.perf_counter() - connection.idle_since > MAX_IDLE_S:
            connection.transport.close()  # the server may be closing it this very moment
            return await self.send(number, request, due_s)
        status, body = await connection.ask(request)
        ended = time.perf_counter()
        if connection.is_open:
            connection.idle_since = ended
            self._idle.append(connection)
        else:
            connection.transport.close()
        return Outcome(number, status, began, ended - (due_s or began), body)

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()


async def load_closed(
    client: Client,
    requests: Sequence[bytes],
    num_connections: int,
    should_go_on: Callable[[], bool],
    pause_s: float = 0.0,
) -> Load:
    """Each of `num_connections` callers sends its next request when the last is answered, `pause_s` later."""
    load = Load()
    next_number = iter(range(10**9))

    async def call() -> None:
        while should_go_on():
            number = next(next_number) % len(requests)
            outcome = await client.send(number, requests[number])
            load.outcomes.append(outcome)
            if outcome.status <= 0:
                await asyncio.sleep(0.01)
            elif pause_s:
                await asyncio.sleep(pause_s)

    await _timed(load, [call() for _ in range(num_connections)])
    return load


async def load_open(
    client: Client, requests: Sequence[bytes], rate: float, seconds: float, rng: np.random.Generator
) -> Load:
    """Requests at random moments (a Poisson process of `rate` a second), whether earlier ones are answered or not."""
    load = Load()
    began = time.perf_counter()
    due = began + np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))

    async def call(number: int, due_s: float) -> None:
        load.outcomes.append(await client.send(number, requests[number], due_s))

    async def schedule() -> None:
        async with asyncio.TaskGroup() as group:
            for index, due_s in enumerate(due):
                if (wait_s := due_s - time.perf_counter()) > 0:
                    await asyncio.sleep(wait_s)
                elif index % 16 == 0:
                    await asyncio.sleep(0)
                group.create_task(call(index % len(requests), float(due_s)))

    await _timed(load, [schedule()])
    return load


async def _timed(load: Load, work: Sequence[object]) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*work)  # type: ignore[arg-type]
    load.seconds = time.perf_counter() - began
    load.client_cpu_s = time.process_time() - cpu


def run_for(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


def describe_times(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    if not values:
        return {"n": 0}
    shown = {"median_ms": statistics.median(values), "p99_ms": percentile(values, 99), "max_ms": max(values)}
    return {**{name: float(f"{1000 * value:.4g}") for name, value in shown.items()}, "n": len(values)}


def read_cpu_s(pid: int) -> float:
    """Processor seconds of a process, its threads included (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def read_rss_bytes(pid: int) -> int:
    """Memory of a process that is its own or shared (Linux)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0
