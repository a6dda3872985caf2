"""Bytes on a socket, for tests of what no HTTP client would send."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from serving import Served


@dataclass(frozen=True)
class RawAnswer:
    """`status` is 0 where nothing came; `is_reset` where the connection was not ended properly."""

    status: int
    head: str
    body: bytes
    is_reset: bool


def connect(served: Served, timeout_s: float = 10) -> socket.socket:
    return socket.create_connection((served.host, served.port), timeout=timeout_s)


def read_to_end(stream: socket.socket) -> RawAnswer:
    """Everything up to the end of the connection."""
    data, is_reset = b"", False
    try:
        while part := stream.recv(65536):
            data += part
    except ConnectionResetError:
        is_reset = True
    head, _, body = data.partition(b"\r\n\r\n")
    return RawAnswer(int(head[9:12] or 0), head.decode().lower(), body, is_reset)


def exchange(served: Served, data: bytes, *, half_close: bool = False) -> RawAnswer:
    """Send these bytes, then read to the end of the connection."""
    with connect(served) as stream:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what it said before still counts
            stream.sendall(data)
        if half_close:
            stream.shutdown(socket.SHUT_WR)
        return read_to_end(stream)
