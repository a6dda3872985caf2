"""HTTP as no proper client sends it: answered with JSON and a closed connection, never a hang."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Iterator

import pytest
from conftest import Trained
from raw_http import connect, exchange, read_to_end
from serving import Served, serving, wait_for

from headstart.serve.http_protocol import Protocol

HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Served]:
    with serving(
        trained.file, max_body_bytes=2**20, head_timeout_s=0.6, body_timeout_s=1.0, keep_alive_s=0.5
    ) as served:
        yield served


@pytest.fixture(scope="module")
def picture(trained: Trained) -> bytes:
    return (trained.shapes / "checks" / "00.png").read_bytes()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad-request"),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400, "bad-request"),
        (HEAD + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400, "bad-request"),
        (HEAD + b"Content-Length: 4, 4\r\n\r\nabcd", 400, "bad-request"),
        (HEAD + b"Content-Length: +4\r\n\r\nabcd", 400, "bad-request"),
        (HEAD + b"Content-Length: -4\r\n\r\nabcd", 400, "bad-request"),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\nabcd", 400, "bad-request"),
        (HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400, "bad-request"),
        (b"POST /predict HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "bad-request"),
        (GET.replace(b"\r\n", b"\n") + b"\n", 400, "bad-request"),
        (GET + b"A: b\n\r\n", 400, "bad-request"),
        (GET + b" folded: b\r\n\r\n", 400, "bad-request"),
        (GET + b"A : b\r\n\r\n", 400, "bad-request"),
        (GET + b"A: b\x00c\r\n\r\n", 400, "bad-request"),
        (CHUNKED + b"4\r\nabcdX\r\n0\r\n\r\n", 400, "bad-request"),
        (CHUNKED + b"4\nabcd\n0\n\n", 400, "bad-request"),
        (CHUNKED + b"-4\r\nabcd\r\n0\r\n\r\n", 400, "bad-request"),
        (CHUNKED + b"0x4\r\nabcd\r\n0\r\n\r\n", 400, "bad-request"),
        (CHUNKED + b"fffffffffffffffff\r\nabcd", 400, "bad-request"),
        (CHUNKED + b"1\r\na\r\n" * 65_537, 400, "too-many-chunks"),
        (GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431, "head-too-large"),
        (GET + b"".join(b"X%d: a\r\n" % number for number in range(101)) + b"\r\n", 431, "head-too-large"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 414, "url-too-long"),
        (b"GET /health/live HTTP/1.1\r\n\r\n", 400, "no-host"),
        (GET + b"Host: 127.0.0.1\r\n\r\n", 400, "wrong-host"),
        (b"GET /health/live HTTP/2.0\r\nHost: a\r\n\r\n", 400, "bad-request"),
        (b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400, "bad-request"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400, "bad-request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad-request"),
        (b"hello\r\n\r\n", 400, "bad-request"),
        (HEAD + b"Content-Length: 1048577\r\n\r\n", 413, "too-large"),
        (CHUNKED + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 17, 413, "too-large"),
        (CHUNKED + b"1;" + b"a" * 3_000_000, 413, "too-large"),
    ],
)  # fmt: skip
def test_is_refused_and_closed(served: Served, sent: bytes, status: int, code: str) -> None:
    if code in ("no-host", "wrong-host"):
        sent = sent.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n")
    answer = exchange(served, sent)
    assert (answer.status, answer.is_reset) == (status, False), answer
    assert "connection: close" in answer.head
    assert "content-type: application/json" in answer.head
    assert json.loads(answer.body)["code"] == code


def test_slow_head_is_refused_in_time(served: Served) -> None:
    for first in (b"", b"GET / HT"):
        started_s = time.monotonic()
        with connect(served) as stream:
            stream.sendall(first)
            answer = read_to_end(stream)
        assert answer.status == 408
        assert 0.5 < time.monotonic() - started_s < 1.2


@pytest.mark.parametrize("first", [HEAD + b"Content-Length: 100\r\n\r\nabc", CHUNKED + b"5\r\nab"])
def test_slow_body_is_refused_in_time(served: Served, first: bytes) -> None:
    started_s = time.monotonic()
    with connect(served) as stream:
        stream.sendall(first)
        answer = read_to_end(stream)
    assert (answer.status, json.loads(answer.body)["code"]) == (408, "too-slow-sender")
    assert 0.9 < time.monotonic() - started_s < 1.7


@pytest.mark.parametrize(("first", "limit_s"), [(b"", 0.6), (HEAD + b"Content-Length: 100\r\n\r\n", 1.0)])
def test_a_byte_now_and_then_does_not_help(served: Served, first: bytes, limit_s: float) -> None:
    started_s, answer = time.monotonic(), b""
    with connect(served, timeout_s=0.1) as stream:
        stream.sendall(first)
        for byte in HEAD:
            stream.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                answer = stream.recv(1000)
                break
    assert b" 408 " in answer
    assert limit_s - 0.1 < time.monotonic() - started_s < limit_s + 0.6


def test_a_client_that_does_not_read_is_left(served: Served) -> None:
    wait_for(lambda: not served.running._state.connections)
    with connect(served) as stream:
        stream.sendall((GET.replace(b"/health/live", b"/docs") + b"\r\n") * 400)  # 30 MB
        wait_for(lambda: served.running._state.connections)
        wait_for(lambda: not served.running._state.connections, 5)


def test_idle_connections_are_closed(served: Served) -> None:
    with connect(served) as stream:
        stream.sendall(GET + b"\r\n")
        started_s = time.monotonic()
        answer = read_to_end(stream)
    assert answer.status == 200
    assert 0.4 < time.monotonic() - started_s < 1.2


def test_cut_off_uploads_are_answered(served: Served) -> None:
    for sent in (HEAD + b"Content-Length: 100\r\n\r\nabc", CHUNKED + b"5\r\nab", HEAD[:-4]):
        answer = exchange(served, sent, half_close=True)
        assert (answer.status, json.loads(answer.body)["code"]) == (400, "cut-off")


def test_too_large_is_answered_before_the_body_and_without_a_reset(served: Served) -> None:
    with connect(served) as stream:
        stream.sendall(HEAD + b"Content-Length: 50000000\r\nExpect: 100-continue\r\n\r\n")
        assert b" 413 " in stream.recv(1000)
    sent = HEAD + b"Content-Length: 8000000\r\n\r\n" + b"a" * 8_000_000
    for _ in range(5):
        answer = exchange(served, sent)
        assert (answer.status, answer.is_reset) == (413, False)


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    answer = exchange(served, (GET + b"\r\n") * 3 + b"nonsense\r\n\r\n")
    everything = answer.head.encode() + answer.body
    assert everything.lower().count(b"http/1.1 200") == 3
    last = exchange(served, (GET + b"\r\n") * 2 + GET + b"Connection: close\r\n\r\n")
    assert (last.head.encode() + last.body).lower().count(b"http/1.1 200") == 3


def test_upgrades_are_passed_over(served: Served, picture: bytes) -> None:
    asked = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    post = HEAD + asked + b"Content-Length: %d\r\n\r\n" % len(picture) + picture
    chunked = HEAD + asked + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(picture), picture)
    last = GET + b"Connection: close\r\n\r\n"
    for sent in (GET + asked + b"\r\n", post, chunked, post + chunked):
        answer = exchange(served, sent + last)
        everything = answer.head.encode() + answer.body
        assert everything.lower().count(b"http/1.1 200") == 2 + (sent == post + chunked)
    with connect(served) as stream:  # in pieces
        for start in range(0, len(post), 50):
            stream.sendall(post[start : start + 50])
            time.sleep(0.001)
        assert b" 200 " in stream.recv(1000)


def test_connections_beyond_the_limit_are_told(trained: Trained) -> None:
    with serving(trained.file, max_connections=3) as served:
        streams = [connect(served) for _ in range(3)]
        for stream in streams:
            stream.sendall(GET + b"\r\n")
            assert b" 200 " in stream.recv(1000)
        answer = exchange(served, b"")
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "overloaded")
        assert "retry-after" in answer.head
        for stream in streams:
            stream.close()
        assert served.send("GET", "/health/live").status == 200


def test_closed_connections_leave_nothing_to_the_garbage_collector(served: Served) -> None:
    requests = {
        "answered": GET + b"\r\n",
        "reset": GET.replace(b"/health/live", b"/docs") + b"\r\n",  # it is longer than what is read below
        "bad picture": HEAD + b"Content-Length: 5\r\n\r\nhello",
        "refused early": HEAD.replace(b"predict", b"x") + b"Content-Length: 50000\r\n\r\n" + b"a" * 50_000,
        "malformed": b"nonsense\r\n\r\n",
    }
    left = {}
    gc.collect()
    gc.disable()
    try:
        for name, sent in requests.items():
            with connect(served) as stream:
                stream.sendall(sent)
                stream.recv(100)
            end_s = time.monotonic() + 0.4  # the time for which a connection may rest is longer
            while (count := count_protocols()) and time.monotonic() < end_s:
                time.sleep(0.02)
            left[name] = count
    finally:
        gc.enable()
    assert left == dict.fromkeys(requests, 0)


def count_protocols() -> int:
    return sum(isinstance(each, Protocol) for each in gc.get_objects())
