"""What every request passes: its id, whether it is let in, what is answered to errors, figures and log."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.body import HELD_KEY
from headstart.serve.http_protocol import IS_GONE_KEY, REFUSAL_KEY, TASK_KEY
from headstart.serve.refusals import Refusal
from headstart.serve.request_log import choose_request_id, log_request, requests_logger
from headstart.serve.settings import ServeSettings, is_address, is_loopback

if TYPE_CHECKING:
    from headstart.serve.app import Server

logger = logging.getLogger(__name__)

FACTS_KEY = "headstart.facts"
"""Where a request's scope holds what its line in the log shall say besides."""
GONE_STATUS = 499
"""The status in log and figures where the client did not wait for its answer, as in nginx."""
NO_ROUTE = "(none)"
"""The route in the figures of requests that have none."""

# Without an API key: what tells nothing of the classifiers, and the page, which asks for the key itself.
OPEN_PATHS = frozenset(
    {
        *("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"),
        *("/", "/page.js", "/page.css", "/docs", "/openapi.json"),
    }
)


class Admission:
    """Which requests are for this server, and carry a key where one is asked for."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._names = {name.lower() for name in settings.allowed_hosts} | {settings.host.lower()}
        self._keys = [key.encode() for key in settings.api_keys]

    def check(self, scope: Scope) -> None:
        """Raises Refusal 400 for a request to another host, 401 for one without a key."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        if not hosts and scope["http_version"] != "1.0":
            raise Refusal(400, "no-host", "HTTP/1.1 needs the header Host")
        if len(hosts) > 1 or (hosts and not self._serves(hosts[0].decode("latin-1").lower())):
            raise Refusal(400, "wrong-host", "the header Host does not name this server")
        if self._keys and scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            expected = "send an API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise Refusal(401, "no-key", expected, {"WWW-Authenticate": "Bearer"})

    def _serves(self, host: str) -> bool:
        name, closing, _ = host[1:].partition("]") if host.startswith("[") else (host.partition(":")[0], "]", "")
        if not closing:
            return False
        if name in self._names or "*" in self._names or is_loopback(name):
            return True
        # A page of somebody else's can make a browser call this server by a name of theirs, not by an address.
        return not self._settings.is_loopback and is_address(name)

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        sent = [
            value if name == b"x-api-key" else value[7:]
            for name, value in headers
            if name == b"x-api-key" or (name == b"authorization" and value[:7].lower() == b"bearer ")
        ]
        # All are compared, each in constant time.
        return any([hmac.compare_digest(key, value) for key in self._keys for value in sent])


class FrontDoor:
    """ASGI: request ids, admission, answers to whatever is raised, figures and log, round all routes."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server
        self._admission = Admission(server.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        server = self._server
        request_id = choose_request_id(
            next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        )
        status = 0
        facts: dict[str, Any] = {}
        scope[FACTS_KEY] = facts
        scope[TASK_KEY] = asyncio.current_task()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Labels and names of files are the users': nothing may take an answer for a page.
                added = [(b"x-request-id", request_id), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        server.metrics.in_flight.inc()
        try:
            if server.is_draining:
                raise Refusal(503, "stopping", "the server is stopping", {"Connection": "close"})
            self._admission.check(scope)
            await self._app(scope, receive, answer)
        except Refusal as refusal:
            await _give_refusal(refusal, scope, receive, answer)
        except asyncio.CancelledError:
            if IS_GONE_KEY not in scope:
                raise
            status = GONE_STATUS
        except HTTPException as error:
            await _give_refusal(_translate(error), scope, receive, answer)
        except Exception:
            if status:
                raise
            logger.exception("a request failed", extra={"facts": {"id": request_id.decode()}})
            failure = Refusal(500, "internal", "the server failed; its log says more under this request's id")
            await _give_refusal(failure, scope, receive, answer)
        finally:
            server.metrics.in_flight.dec()
            server.body_room.taken_bytes -= scope.get(HELD_KEY, 0)
            del scope[TASK_KEY]  # which leads back to the scope
            if REFUSAL_KEY in scope:
                status = scope[REFUSAL_KEY].status
            duration_s = time.perf_counter() - started_s
            route = scope["route"].path if "route" in scope else NO_ROUTE
            server.metrics.count_request(route, status, duration_s)
            if requests_logger.isEnabledFor(logging.INFO):
                facts |= {
                    "id": request_id.decode(),
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "ms": round(duration_s * 1000, 1),
                    "client": scope["client"][0] if scope["client"] else None,
                }
                log_request("request", facts)


async def _give_refusal(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    scope[FACTS_KEY]["code"] = refusal.code
    await refusal.to_response()(scope, receive, send)


def _translate(error: HTTPException) -> Refusal:
    """What the router itself refuses."""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return Refusal(404, "unknown-route", "there is nothing at this path", headers)
    if error.status_code == 405:
        return Refusal(405, "wrong-method", f"this path takes {headers.get('Allow')}", headers)
    return Refusal(error.status_code, "refused", error.detail, headers)
