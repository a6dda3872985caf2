"""The body of a request, read within a limit."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from headstart.serve.refusals import Refusal


async def read_body(request: Request, limit: int) -> bytes:
    """All of it, unpacked where Content-Encoding is gzip or deflate.

    Raises Refusal: 413 for more than `limit` bytes, before any is read where Content-Length says so; 415 for another
    encoding, 400 for a body that cannot be unpacked.
    """
    length = request.headers.get("content-length")
    if length is not None and int(length) > limit:
        raise refuse_large(limit)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise refuse_large(limit)
            parts.append(part)
    except ClientDisconnect:
        raise Refusal(400, "cut-off", "the connection was closed before the body was complete") from None
    return b"".join(parts)


def refuse_large(limit: int) -> Refusal:
    return Refusal(413, "too-large", f"the body has more than {limit:,} bytes", {"Connection": "close"})
