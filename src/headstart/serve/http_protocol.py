"""HTTP/1.1 on one connection: uvicorn's protocol over llhttp, with deadlines, limits and a patient way of closing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from headstart.serve.refusals import Refusal
from headstart.serve.settings import ServeSettings

MAX_HEAD_BYTES = 64 * 1024
MAX_URL_BYTES = 8 * 1024
MAX_HEADERS = 100
MAX_CHUNKS = 65_536
# After an answer that ends the connection, what the client still sends is read and thrown away: closing on unread
# bytes would reset the connection, and the client could lose the answer.
LINGER_S = 5.0
LINGER_SILENCE_S = 1.0

_IN_TIME = 0.97  # of a deadline: the answer is out before it has passed

REFUSAL_KEY = "headstart.refusal"
"""Where a request's scope holds the Refusal that its connection was already answered with."""
TASK_KEY = "headstart.task"
"""Where the application leaves the task that works on a request: it is cancelled when the client has gone."""
IS_GONE_KEY = "headstart.is_gone"
"""True in the scope of a request whose client has gone."""


class PatientTransport:
    """The connection's transport, but `close` lets the client read the answer first."""

    def __init__(self, inner: asyncio.Transport, protocol: Protocol) -> None:
        self.inner = inner
        self._protocol: Protocol | None = protocol
        self.write = inner.write
        self.get_extra_info = inner.get_extra_info
        self.pause_reading = inner.pause_reading
        self.resume_reading = inner.resume_reading

    def is_closing(self) -> bool:
        return self._protocol is None or self._protocol.is_ending or self.inner.is_closing()

    def close(self) -> None:
        if self._protocol is not None:
            self._protocol.end()

    def let_go(self) -> None:
        """The connection is gone. Transport and protocol hold each other, and with them what was sent: thousands of
        short connections would stay in memory until the garbage collector comes."""
        self._protocol = None


class Protocol(HttpToolsProtocol):
    """One connection.

    A request is read in phases, `head`, `body` and then `rest`; a timer runs for the first two only where they did not
    arrive at once. `refuse` answers what is no proper request; `end` closes.
    """

    settings: ServeSettings
    on_refusal: Callable[[Refusal], None]

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.is_ending = False
        self._phase = "head"
        self._timed_phase = ""
        self._timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._refusal: Refusal | None = None
        self._num_head_bytes = 0
        self._num_body_bytes = 0
        self._num_chunks = 0
        self._may_stay = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(PatientTransport(transport, self))  # type: ignore[arg-type]
        if len(self.connections) > self.settings.max_connections:
            self.refuse(Refusal(503, "overloaded", "too many connections are open; try again", {"Retry-After": "1"}))
        else:
            self._time_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_ending = True
        for timer in (self._timer, self._end_timer, self._silence_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._end_timer = self._silence_timer = self._write_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            task = self.cycle.scope.get(TASK_KEY)
            if isinstance(task, asyncio.Task):
                self.cycle.scope[IS_GONE_KEY] = True  # type: ignore[literal-required]
                task.cancel()  # nobody waits for the answer, and others wait for their turn
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn does so only after a proper close
        self.transport.let_go()  # type: ignore[attr-defined]

    def eof_received(self) -> bool:  # type: ignore[override]
        if self.is_ending:
            return False
        if self._phase == "body":
            self.refuse(Refusal(400, "cut-off", "the connection was closed before the body was complete"))
        elif self._phase == "head" and self._num_head_bytes:
            self.refuse(Refusal(400, "cut-off", "the connection was closed before the head was complete"))
        # Who only ends its own side and waits cannot be told from who has gone, and the latter is what happens.
        return False

    def data_received(self, data: bytes) -> None:
        if self.is_ending:
            self._wait_for_silence()
            return
        self._unset_keepalive_if_required()
        try:
            if self._phase != "body":
                self._num_head_bytes += len(data)
            else:
                self._num_body_bytes += len(data)
            self._parse(data)
            self._check_sizes()
        except httptools.HttpParserError:
            self.refuse(self._refusal or _refuse_malformed())
        except Refusal as refusal:
            self.refuse(refusal)
        if not self.is_ending and self._phase != self._timed_phase:
            self._time_phase()

    def _parse(self, data: bytes) -> None:
        """Without the upgrades that are asked for, as a server may (RFC 9110, 7.8): Java's client asks for HTTP/2 each
        time, and llhttp takes what follows, the request's body, for that other protocol."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
                lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
                data = b"\r\n".join([*lines, b"", data[upgrade.args[0] :]])
                self.parser = httptools.HttpRequestParser(self)

    def _check_sizes(self) -> None:
        if self._phase == "head" and self._num_head_bytes > MAX_HEAD_BYTES:
            raise _refuse_head()
        # Chunks have headers and extensions of their own, so more may come than the body holds.
        if self._phase == "body" and self._num_body_bytes > 2 * self.settings.max_body_bytes + MAX_HEAD_BYTES:
            raise Refusal(413, "too-large", f"the body has more than {self.settings.max_body_bytes:,} bytes")

    # The parser's callbacks. What they raise ends the parsing; the Refusal is left where data_received finds it.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = "head"

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._stop(Refusal(414, "url-too-long", f"the URL has more than {MAX_URL_BYTES:,} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase == "body":  # a trailer
            return
        super().on_header(name, value)
        self._num_head_bytes = max(self._num_head_bytes, 1)
        if len(self.headers) > MAX_HEADERS:
            self._stop(_refuse_head())

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._stop(_refuse_head())
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._stop(_refuse_malformed())
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._stop(_refuse_malformed())
            return  # see `_parse`
        super().on_headers_complete()
        self._phase = "body"
        self._num_body_bytes = self._num_chunks = 0
        # An answer before the end of the body ends the connection: else that body would have to be read for nothing.
        self._may_stay, self.cycle.keep_alive = self.cycle.keep_alive, False

    def on_chunk_header(self) -> None:
        self._num_chunks += 1
        if self._num_chunks > MAX_CHUNKS:
            self._stop(Refusal(400, "too-many-chunks", f"the body comes in more than {MAX_CHUNKS:,} chunks"))

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.cycle.keep_alive = self._may_stay and not self.cycle.response_started
        super().on_message_complete()
        self._phase, self._timed_phase = "rest", ""
        self._num_head_bytes = 0

    def _stop(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise refusal

    # Deadlines

    def _time_phase(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed_phase = self._phase
        if self._phase == "head":
            self._timer = self.loop.call_later(_IN_TIME * self.settings.head_timeout_s, self._miss_deadline)
        elif self._phase == "body":
            self._timer = self.loop.call_later(_IN_TIME * self.settings.body_timeout_s, self._miss_deadline)

    def _miss_deadline(self) -> None:
        limit_s = self.settings.head_timeout_s if self._phase == "head" else self.settings.body_timeout_s
        self.refuse(Refusal(408, "too-slow-sender", f"the {self._phase} did not arrive within {limit_s:g} s"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.settings.body_timeout_s, self.transport.inner.abort)  # type: ignore[attr-defined]

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # Answers without the application, and the end

    def refuse(self, refusal: Refusal) -> None:
        """Answer what is no proper request and end the connection; its bytes are not looked at any more."""
        if self.is_ending:
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and self._phase != "body":
            # The one before is still being answered, and this one's refusal may not overtake it.
            cycle.keep_alive = False
            self.flow.pause_reading()
            self._phase = self._timed_phase = "rest"
            return
        has_begun = False
        if cycle is not None and self._phase == "body":
            has_begun = cycle.response_started or bool(self.pipeline)
            cycle.scope[REFUSAL_KEY] = refusal  # type: ignore[literal-required]
            cycle.disconnected = True  # nothing that the application sends for it is written any more
            cycle.message_event.set()
        else:
            self.on_refusal(refusal)
        self.pipeline.clear()
        if not has_begun:
            self.transport.write(self._format(refusal))
        self._phase = "refused"
        self.end()

    def leave(self) -> None:
        """The server stops: close a connection at rest, refuse a request whose head or body is still coming."""
        if self._phase == "rest" or not self._num_head_bytes:
            self.end()
        else:
            self.refuse(Refusal(503, "stopping", "the server is stopping"))

    def _format(self, refusal: Refusal) -> bytes:
        body = refusal.to_json()
        headers = [*self.server_state.default_headers, (b"content-type", b"application/json")]
        headers.append((b"x-content-type-options", b"nosniff"))
        headers += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines = [b"%s: %s\r\n" % header for header in headers]
        return b"".join([STATUS_LINE[refusal.status], *lines, b"\r\n", body])

    def send_400_response(self, msg: str) -> None:
        self.refuse(_refuse_malformed())

    def end(self) -> None:
        """Close; where the client may still be sending, only after it had the time to read the answer."""
        if self.is_ending:
            return
        self.is_ending = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        inner = self.transport.inner  # type: ignore[attr-defined]
        if inner.is_closing():
            return
        if self._phase in ("rest", "head") or not inner.can_write_eof():
            self._end_timer = self.loop.call_later(self.settings.body_timeout_s, inner.abort)  # if it does not read
            inner.close()
            return
        self._end_timer = self.loop.call_later(LINGER_S, inner.abort)
        inner.write_eof()
        inner.resume_reading()
        self._wait_for_silence()

    def _wait_for_silence(self) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        inner = self.transport.inner  # type: ignore[attr-defined]
        self._silence_timer = self.loop.call_later(LINGER_SILENCE_S, inner.close)


def make_protocol(settings: ServeSettings, on_refusal: Callable[[Refusal], None]) -> type[Protocol]:
    """The class for uvicorn, with the deadlines and limits of `settings`.

    `on_refusal` hears of the refusals that no request's application hears of.
    """
    return type("SetProtocol", (Protocol,), {"settings": settings, "on_refusal": staticmethod(on_refusal)})


def _refuse_head() -> Refusal:
    limits = f"{MAX_HEAD_BYTES // 1024} kB or {MAX_HEADERS} headers"
    return Refusal(431, "head-too-large", f"the head of the request has more than {limits}")


def _refuse_malformed() -> Refusal:
    return Refusal(400, "bad-request", "this is no well-formed HTTP/1.1 request")
