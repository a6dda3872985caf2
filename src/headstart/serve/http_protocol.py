"""HTTP/1.1 on a connection: uvicorn's protocol with deadlines and limits."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headstart.serve.settings import ServeSettings


def make_protocol(settings: ServeSettings) -> type[HttpToolsProtocol]:
    """The class for uvicorn, with the deadlines and limits of `settings`."""
    return HttpToolsProtocol
