"""One line of JSON for each request and event, written by a thread, so that no slow reader of it slows the server."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

requests_logger = logging.getLogger("headstart.serve.requests")
"""Each request is logged here with its facts as `record.facts`."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_MAX_LINES_WAITING = 10_000
_PAUSE_S = 0.05  # a thread that wakes for each line takes the time of those that predict


def choose_request_id(sent: bytes) -> bytes:
    """The id that the caller sent, where it is one that cannot harm a log, or a new one."""
    return sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8).encode()


def log_request(event: str, facts: dict[str, Any]) -> None:
    """One line. As `requests_logger.info`, without the search for the calling line, which takes most of its time."""
    if requests_logger.isEnabledFor(logging.INFO):
        record = logging.LogRecord(requests_logger.name, logging.INFO, "", 0, event, None, None)
        record.facts = facts
        requests_logger.handle(record)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Writer(logging.Handler):
    """Takes records in any thread; one of its own writes them, all that have come in `_PAUSE_S` at once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.setFormatter(_JsonLines())
        self._stream = stream
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(_MAX_LINES_WAITING)
        self._num_lost = 0
        # As daemon: where nobody reads the stream, the thread may wait for ever.
        self._thread = threading.Thread(target=self._write, name="headstart-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._num_lost += 1

    def _write(self) -> None:
        record = self._records.get()
        while record is not None:
            lines = []
            while record is not None:
                lines.append(self.format(record) + "\n")
                if len(lines) > 1000 or self._records.empty():
                    break
                record = self._records.get()
            if self._num_lost:
                lost, self._num_lost = self._num_lost, 0
                lines.append(
                    json.dumps({"event": "log lines were lost: they were not read fast enough", "lines": lost}) + "\n"
                )
            with contextlib.suppress(OSError, ValueError):  # the reader has gone
                self._stream.write("".join(lines))
                self._stream.flush()
            if record is not None:
                time.sleep(_PAUSE_S)
                record = self._records.get()

    def close(self) -> None:
        """Write what has come, and stop; a stream that nobody reads is given up after a second."""
        with contextlib.suppress(queue.Full):
            self._records.put_nowait(None)
        self._thread.join(1)
        super().close()


@contextlib.contextmanager
def writing_log(stream: TextIO, *, with_requests: bool = True) -> Iterator[None]:
    """Write what the server logs to `stream`, one JSON object a line, while the context is open."""
    handler = _Writer(stream)
    loggers = [(logging.getLogger("headstart.serve"), logging.INFO), (logging.getLogger("uvicorn"), logging.ERROR)]
    for each, level in loggers:
        each.addHandler(handler)
        each.setLevel(level)
        each.propagate = False
    requests_logger.setLevel(logging.INFO if with_requests else logging.WARNING)
    try:
        yield
    finally:
        for each, _ in loggers:
            each.removeHandler(handler)
            each.propagate = True
            each.setLevel(logging.NOTSET)
        handler.close()
