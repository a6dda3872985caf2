"""The body of a request, read within a limit and unpacked within the same."""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from headstart.serve.http_protocol import REFUSAL_KEY
from headstart.serve.refusals import Refusal

HELD_KEY = "headstart.held_bytes"
"""Where a request's scope holds how much of the room its body has taken."""

_UNPACK_STEP_BYTES = 256 * 1024
# Bodies of this size and more are unpacked and parsed in a thread: it takes the event loop too long.
LARGE_BODY_BYTES = 256 * 1024


class BodyRoom:
    """What all bodies that are held at once may take; `taken_bytes` of it is in use."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.taken_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Raises Refusal 503 `overloaded` where there is not that much room left."""
        if self.taken_bytes + num_bytes > self._limit_bytes:
            reason = "too much is being uploaded at once; try again"
            raise Refusal(503, "overloaded", reason, {"Retry-After": "1"})
        self.taken_bytes += num_bytes


async def read_body(request: Request, limit: int) -> bytes:
    """All of it, unpacked where Content-Encoding is gzip or deflate.

    Raises Refusal: 413 for more than `limit` bytes, before any is read where Content-Length says so, 415 for another
    encoding, 400 for what cannot be unpacked or was cut off, 408 when it came too slowly, and 503 `overloaded`, also
    before any is read, where there is no room for its picture or for the body.
    """
    server = request.app.state.server
    server.pool.check_room()
    length = request.headers.get("content-length")
    if length is not None and int(length) > limit:
        raise _refuse_large(limit)
    window_bits = _choose_unpacking(request.headers.get("content-encoding", "identity"))
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _refuse_large(limit)
            server.body_room.take(len(part))
            request.scope[HELD_KEY] = size  # given back when the request ends
            parts.append(part)
    except ClientDisconnect:
        cut_off = Refusal(400, "cut-off", "the connection was closed before the body was complete")
        raise request.scope.get(REFUSAL_KEY, cut_off) from None
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    del parts
    if window_bits is None:
        return data
    if len(data) < LARGE_BODY_BYTES // 16:  # deflate shrinks to a thousandth at most, and the limit holds
        return unpack(data, window_bits, limit)
    return await asyncio.to_thread(unpack, data, window_bits, limit)


def _choose_unpacking(encoding: str) -> int | None:
    """zlib's window bits; None for a body that is not packed."""
    known = {"identity": None, "": None, "gzip": 31, "x-gzip": 31, "deflate": 15}
    name = encoding.strip().lower()
    if name not in known:
        raise Refusal(415, "unsupported-encoding", "Content-Encoding must be gzip, deflate or identity")
    return known[name]


def unpack(data: bytes, window_bits: int, limit: int) -> bytes:
    """Unpack a whole gzip (31) or zlib (15) stream. Raises Refusal 400 for a bad one, 413 for over `limit` bytes."""
    unpacker = zlib.decompressobj(window_bits)
    parts, size, rest = [], 0, data
    try:
        while not unpacker.eof and rest:
            part = unpacker.decompress(rest, _UNPACK_STEP_BYTES)
            size += len(part)
            if size > limit:
                raise _refuse_large(limit)
            parts.append(part)
            rest = unpacker.unconsumed_tail
        if not unpacker.eof:
            parts.append(unpacker.flush())
            size += len(parts[-1])
    except zlib.error:
        raise Refusal(400, "bad-encoding", "the body is not what its Content-Encoding says") from None
    if not unpacker.eof or unpacker.unused_data:
        raise Refusal(400, "bad-encoding", "the packed body ends early, or goes on after its end")
    if size > limit:
        raise _refuse_large(limit)
    return b"".join(parts)


def _refuse_large(limit: int) -> Refusal:
    return Refusal(413, "too-large", f"the body has more than {limit:,} bytes")
