"""One line of JSON for each request and event, written by a thread, so that no slow reader of it slows the server."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

requests_logger = logging.getLogger("headstart.serve.requests")
"""Each request is logged here with its facts as `record.facts`."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_MAX_LINES_WAITING = 10_000


def choose_request_id(sent: bytes) -> bytes:
    """The id that the caller sent, where it is one that cannot harm a log, or a new one."""
    return sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8).encode()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class _Queued(logging.handlers.QueueHandler):
    """Hands records over as they are; with too many waiting they are dropped and counted."""

    num_dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.num_dropped += 1


@contextmanager
def writing_log(stream: TextIO, *, with_requests: bool = True) -> Iterator[None]:
    """Write what the server logs to `stream`, one JSON object a line, while the context is open."""
    output = logging.StreamHandler(stream)
    output.setFormatter(_JsonLines())
    lines: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_LINES_WAITING)
    handler = _Queued(lines)
    listener = logging.handlers.QueueListener(lines, output)
    loggers = [(logging.getLogger("headstart.serve"), logging.INFO), (logging.getLogger("uvicorn"), logging.ERROR)]
    for each, level in loggers:
        each.addHandler(handler)
        each.setLevel(level)
        each.propagate = False
    requests_logger.setLevel(logging.INFO if with_requests else logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        for each, _ in loggers:
            each.removeHandler(handler)
            each.propagate = True
            each.setLevel(logging.NOTSET)
        if handler.num_dropped:
            lines.put(
                requests_logger.makeRecord("", logging.WARNING, "", 0, f"{handler.num_dropped} lines lost", (), None)
            )
        listener.stop()
