"""The application: routes gathered from the modules, and what holds for every request."""

from __future__ import annotations

import hmac
import ipaddress
import logging
from dataclasses import dataclass, field
from functools import cached_property

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve import api_page, inference_protocol, metrics, openapi, page, predict_route
from headstart.serve.metrics import Metrics
from headstart.serve.models import ModelStore
from headstart.serve.page import PageState
from headstart.serve.refusals import Refusal
from headstart.serve.request_log import choose_request_id
from headstart.serve.settings import ServeSettings, is_loopback
from headstart.serve.workers import WorkerPool

logger = logging.getLogger(__name__)

ROUTES = [
    *predict_route.routes,
    *inference_protocol.routes,
    *metrics.routes,
    *openapi.routes,
    *api_page.routes,
    *page.routes,
]

# Without an API key: what tells nothing of the classifiers, and the page, which asks for the key itself.
OPEN_PATHS = {
    *("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"),
    *("/", "/page.js", "/page.css", "/docs", "/openapi.json"),
}


@dataclass
class Server:
    """What the routes share, as `request.app.state.server`."""

    settings: ServeSettings
    models: ModelStore
    pool: WorkerPool
    metrics: Metrics
    page: PageState = field(default_factory=PageState)
    is_draining: bool = False

    @property
    def is_ready(self) -> bool:
        return self.models.is_loaded and not self.is_draining

    @cached_property
    def _keys(self) -> list[bytes]:
        return [key.encode() for key in self.settings.api_keys]

    def admit(self, scope: Scope) -> None:
        """Raise Refusal for a request that is not for this server, lacks the key, or comes while it stops."""
        if self.is_draining:
            raise Refusal(503, "stopping", "the server is stopping", {"Connection": "close"})
        headers = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) > 1 or (hosts and not self._serves_host(hosts[0].decode("latin-1"))):
            raise Refusal(400, "wrong-host", "the header Host names another server")
        if self._keys and scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            expected = "send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            raise Refusal(401, "no-key", expected, {"WWW-Authenticate": "Bearer"})

    def _serves_host(self, host: str) -> bool:
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if self.settings.allowed_hosts:
            return "*" in self.settings.allowed_hosts or name.lower() in self.settings.allowed_hosts
        return is_loopback(name) or (
            not self.settings.is_loopback and (_is_address(name) or name == self.settings.host)
        )

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        sent = [
            value if name == b"x-api-key" else value[7:]
            for name, value in headers
            if name == b"x-api-key" or (name == b"authorization" and value[:7].lower() == b"bearer ")
        ]
        # All are compared, each in constant time.
        return any([hmac.compare_digest(key, value) for key in self._keys for value in sent])


class FrontDoor:
    """ASGI: request ids, admission and answers to whatever is raised, round all routes."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = choose_request_id(sent.decode("latin-1"))
        has_started = False

        async def answer(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._server.admit(scope)
            await self._app(scope, receive, answer)
        except Refusal as refusal:
            await refusal.to_response()(scope, receive, answer)
        except Exception:
            logger.exception("request %s", request_id)
            if has_started:
                raise
            await Refusal(500, "internal", "the server failed; its log says more").to_response()(scope, receive, answer)


def create_app(server: Server) -> Starlette:
    """All routes, with admission before them and JSON for every error."""
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(FrontDoor, server=server)],
        exception_handlers={Refusal: _answer_refusal, HTTPException: _answer_http_error},
    )
    app.router.redirect_slashes = False
    app.state.server = server
    return app


def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.to_response()


_REASONS = {
    404: ("unknown-route", "there is nothing at this path"),
    405: ("wrong-method", "this path does not take it"),
}


def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, reason = _REASONS.get(error.status_code, ("refused", error.detail))
    return Refusal(error.status_code, code, reason, error.headers).to_response()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
