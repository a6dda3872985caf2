"""What a hostile or broken client sends to the real command: refused with a reason as JSON, never 500, memory bounded."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from drawn_pictures import SHAPES, draw_picture, snapshot
from PIL import Image, PngImagePlugin
from prometheus_client.parser import text_string_to_metric_families
from tiny_models import make_tiny_classifier, make_tiny_metadata

import headstart
from headstart.artifact import save_artifact

MARKUP = ('<script>alert("1")</script>', "a\\b {{7*7}} ${x}", "%2e%2e%2f\u202egpj.exe")
REFUSED = {400, 404, 408, 413, 415, 422, 429, 431, 503}
LIMIT_BYTES = 2 * 2**20
HEAD_TIMEOUT_S, BODY_TIMEOUT_S = 2.0, 4.0
HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@dataclass(frozen=True)
class Command:
    """A running `headstart serve`."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    log: Path

    def read_rss_bytes(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    def send(
        self, body: bytes, content_type: str = "image/jpeg", path: str = "/predict", **headers: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = {"Content-Type": content_type, **{name.replace("_", "-"): text for name, text in headers.items()}}
            connection.request("POST" if body else "GET", path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def exchange(self, data: bytes, *, ends_early: bool = False) -> tuple[int, bytes]:
        """Status (0 without an answer) and body of the first answer on a connection that got exactly `data`."""
        with self.connect() as stream:
            stream.sendall(data)
            if ends_early:
                stream.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(stream)
            try:
                answer.begin()
            except (http.client.HTTPException, ConnectionError):
                return 0, b""
            return answer.status, answer.read()


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = tmp_path_factory.mktemp("served")
    save_artifact(folder / "tiny.onnx", make_tiny_classifier(MARKUP), make_tiny_metadata(MARKUP))
    start = [sys.executable, "-c", "from headstart.cli import main; main()", "serve", "tiny.onnx", "--port", "0"]
    limits = ["--max-body", str(LIMIT_BYTES / 2**20), "--head-timeout", str(HEAD_TIMEOUT_S)]
    limits += ["--body-timeout", str(BODY_TIMEOUT_S), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parents[1])}
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*start, *limits], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr
        )
        assert process.stdout
        try:
            for line in process.stdout:
                if found := re.search(rb"http://127\.0\.0\.1:(\d+)", line):
                    yield Command(process, int(found[1]), folder, log)
                    break
            else:
                pytest.fail(log.read_text())
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


@pytest.fixture(autouse=True)
def healthy_after(command: Command) -> Iterator[None]:
    """After each test the server still predicts, has nothing under way, and has logged no failure of its own."""
    yield
    status, body = command.send(encode("PNG"))
    assert (status, json.loads(body)["predictions"][0]["name"]) == (200, "picture 0")
    status, body = command.send(b"", path="/metrics")
    assert b'status="500"' not in body
    log = command.log.read_text()
    assert "Traceback" not in log
    assert str(command.folder) not in log.replace('"event"', "")


def encode(format: str, number: int = 0) -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(draw_picture(SHAPES[number % 3], number))
    picture.save(stream, format, **({"progressive": number % 2 == 1} if format == "JPEG" else {}))
    return stream.getvalue()


def check_refusal(status: int, body: bytes, allowed: Sequence[int] = tuple(REFUSED)) -> str:
    """The code of a refusal, which is JSON and tells nothing of the server's inside."""
    assert status in allowed, (status, body[:300])
    refusal = json.loads(body)
    assert refusal["error"].startswith(refusal["code"] + ": ")
    assert not re.search(r'Traceback|\.py\b|/tmp|tiny\.onnx|File "', refusal["error"]), refusal
    return str(refusal["code"])


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, bytes changed, a piece left out, doubled or moved, or one in the head set to an extreme."""
    changed = bytearray(data)
    first, second = sorted(rng.integers(0, len(data), 2).tolist())
    kind = rng.integers(6)
    if kind == 0:
        del changed[first:]
    elif kind == 1:
        for at in rng.integers(0, len(data), rng.integers(1, 20)).tolist():
            changed[at] = rng.integers(256)
    elif kind == 2:
        del changed[first:second]
    elif kind == 3:
        changed[first:first] = changed[first:second]
    elif kind == 4:
        changed[first:second] = rng.bytes(second - first)
    else:
        at = int(rng.integers(0, min(len(data), 60)))
        changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\0\0"])
    return bytes(changed)


def test_a_thousand_damaged_pictures(command: Command) -> None:
    rng = np.random.default_rng(0)
    formats = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")
    whole = [encode(format, number) for format in formats for number in range(4)]
    pictures = [damage(whole[number % len(whole)], rng) for number in range(1000)]
    connection = http.client.HTTPConnection("127.0.0.1", command.port, timeout=30)
    statuses: Counter[int] = Counter()
    before = command.read_rss_bytes()
    for picture in pictures:
        connection.request("POST", "/predict", picture, {"Content-Type": "application/octet-stream"})
        answer = connection.getresponse()
        body = answer.read()
        statuses[answer.status] += 1
        if answer.status != 200:
            check_refusal(answer.status, body, (400, 413, 415, 422))
    connection.close()
    assert statuses.total() == 1000
    assert statuses[422] > 300, statuses
    assert command.read_rss_bytes() - before < 100e6
    # The same through a form and JSON: each picture has its own verdict.
    form, boundary = make_form([("a.jpg", picture) for picture in pictures[:32]])
    document = json.dumps({"pictures": [base64.b64encode(picture).decode() for picture in pictures[:32]]}).encode()
    answers = [
        command.send(form, f"multipart/form-data; boundary={boundary}"),
        command.send(document, "application/json"),
    ]
    verdicts = [[row.get("error") for row in json.loads(body)["predictions"]] for _, body in answers]
    assert verdicts[0] == verdicts[1]
    assert len(verdicts[0]) == 32
    assert any(verdicts[0])


def make_form(files: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    boundary = "boundary-of-the-test"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), boundary


def enlarge_header(format: str) -> bytes:
    """A small picture whose header says 10,000 x 10,000 pixels."""
    data = bytearray(encode(format))
    side = 10_000
    if format == "PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif format == "WEBP":
        at = data.index(b"\x9d\x01\x2a") + 3
        data[at : at + 4] = struct.pack("<HH", side, side)
    else:
        stream = io.BytesIO()
        Image.new("1", (side, side)).save(stream, "TIFF", compression="group4")
        return stream.getvalue()
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_headers_of_a_hundred_megapixels(command: Command, format: str) -> None:
    picture = enlarge_header(format)
    before = command.read_rss_bytes()
    began = time.perf_counter()
    for _ in range(10):
        status, body = command.send(picture)
        assert check_refusal(status, body, [413]) == "too-many-pixels"
    assert time.perf_counter() - began < 5
    assert command.read_rss_bytes() - before < 50e6


def make_text_bomb() -> bytes:
    stream = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 5_000_000, zip=True)
    Image.fromarray(draw_picture("checks", 0)).save(stream, "PNG", pnginfo=text)
    return stream.getvalue()


def test_bombs_in_pictures(command: Command) -> None:
    flat = zlib.compress(bytes(10_001 * 10_000), 1)
    head = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", flat), (b"IEND", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    before = command.read_rss_bytes()
    for _ in range(3):
        assert check_refusal(*command.send(bomb)) == "too-many-pixels"
        assert check_refusal(*command.send(make_text_bomb())) == "damaged"
    assert command.read_rss_bytes() - before < 100e6


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bombs_in_the_content_encoding(command: Command, encoding: str) -> None:
    """60 MB of zeros, packed once and twice."""
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    once = pack(bytes(60_000_000))
    before = command.read_rss_bytes()
    for bomb in (once, pack(once), once[:-20]):
        status, body = command.send(bomb, Content_Encoding=encoding)
        check_refusal(status, body, [413] if bomb is once else [400, 413, 415])
    assert command.read_rss_bytes() - before < 2 * LIMIT_BYTES + 20e6


def test_a_body_over_the_limit_is_refused_before_it_is_read(command: Command) -> None:
    picture = encode("PNG")
    fits = picture + bytes(LIMIT_BYTES - len(picture))
    assert command.send(fits)[0] == 200
    # Only the head is sent: the answer cannot have waited for the body.
    status, body = command.exchange(HEAD + b"Content-Length: %d\r\n\r\n" % (LIMIT_BYTES + 1))
    assert check_refusal(status, body) == "too-large"
    before = command.read_rss_bytes()
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    status, body = command.exchange(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * (LIMIT_BYTES // 65536 + 1))
    assert check_refusal(status, body) == "too-large"
    status, body = command.send(gzip.compress(fits + b"\0"), Content_Encoding="gzip")
    assert check_refusal(status, body) == "too-large"
    assert command.read_rss_bytes() - before < 2 * LIMIT_BYTES


@pytest.mark.parametrize(
    ("data", "ends_early", "allowed"),
    [
        (b"Content-Length: 100\r\n\r\n" + b"x" * 50, True, [400]),
        (b"Content-Length: 0\r\n\r\n", False, [400]),
        (b"\r\n", False, [400]),
        (b"Content-Length: abc\r\n\r\n", False, [400]),
        (b"Content-Length: 0x10\r\n\r\n" + b"x" * 16, False, [400]),
        (b"Content-Length: 1e3\r\n\r\n", False, [400]),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", True, [400]),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", False, [400]),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\nabcdef\r\n0\r\n\r\n", False, [400]),
        (b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc", False, [400, 415]),
        (b"Content-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\nabc", False, [400]),
        (b"Content-Type: multipart/form-data; boundary=\r\nContent-Length: 3\r\n\r\nabc", False, [400]),
        (b'Content-Type: multipart/form-data; boundary="\xff"\r\nContent-Length: 3\r\n\r\nabc', False, [400]),
        (b"Content-Type: application/json\r\nContent-Length: 3\r\n\r\n[1]", False, [400]),
        (b"Content-Type: application/json\r\nContent-Length: 0\r\n\r\n", False, [400]),
        (b"Content-Type: \xff\xfe\r\nContent-Length: 3\r\n\r\nabc", False, [400, 415]),
        (b"Content-Type: application/json; charset=utf-99\r\nContent-Length: 2\r\n\r\n{}", False, [400]),
        (b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", False, [400]),
        (b"Content-Encoding: br, gzip\r\nContent-Length: 3\r\n\r\nabc", False, [415]),
    ],
)  # fmt: skip
def test_wrong_lengths_and_types(command: Command, data: bytes, ends_early: bool, allowed: list[int]) -> None:
    check_refusal(*command.exchange(HEAD + data, ends_early=ends_early), allowed)


@pytest.mark.parametrize(
    "document",
    [
        b'{"pictures": ' + b"[" * 250_000,
        b'{"a":' * 100_000,
        b'{"pictures": ["' + b"A" * 1_000_001 + b'"]}',
        b'{"pictures": [1e999]}',
        b'{"pictures": {"0": "AA=="}}',
        b'{"pictures": [null]}',
        b'{"pictures": ["\\ud800"]}',
        b'{"pictures": ["\xff"]}',
        b'{"pictures": []}',
        b'{"pictures": [""]}',
        b'{"pictures": ' + json.dumps(["AA=="] * 33).encode() + b"}",
        b'{"n": ' + b"9" * 1_000_000 + b"}",
        b"null",
        b"NaN",
    ],
)  # fmt: skip
def test_bad_documents(command: Command, document: bytes) -> None:
    began = time.perf_counter()
    check_refusal(*command.send(document, "application/json"), [400, 413, 415, 422])
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"--b--\r\n",
        b"--b\r\n\r\n\r\n--b--\r\n",
        b"--b\r\n" * 100_000,
        b"--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nno end",
        b"--b\r\n" + b"X-A: b\r\n" * 100_000 + b"\r\n\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data; name=file; filename=" + b"a" * 1_000_000 + b"\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data; name=text\r\n\r\nno file\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nx\r\n" * 10_000 + b"--b--\r\n",
        b"\r\n" * 500_000,
    ],
)  # fmt: skip
def test_bad_forms(command: Command, form: bytes) -> None:
    began = time.perf_counter()
    check_refusal(*command.send(form or b"\r\n", "multipart/form-data; boundary=b"), [400, 413, 415])
    assert time.perf_counter() - began < 5


def test_uploads_that_are_cut_off(command: Command) -> None:
    before = count_under_way(command)
    for number in range(60):
        with command.connect() as stream:
            stream.sendall((HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 50_000)[: 20 + 900 * number])
            if number % 2:  # a reset instead of an end
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 5
    while count_under_way(command) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert count_under_way(command) == before


def count_under_way(command: Command) -> float:
    _, body = command.send(b"", path="/metrics")
    found = re.search(rb"^headstart_requests_in_flight (\S+)$", body, re.M)
    assert found
    return float(found[1])


def test_two_hundred_slow_senders(command: Command) -> None:
    """60 that say nothing, 70 that send their head and 70 that send their body a byte at a time."""
    begin = time.monotonic()
    streams = [command.connect() for _ in range(200)]
    for stream in streams[130:]:
        stream.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
    ended: dict[int, float] = {}
    answers: dict[int, bytes] = {}
    normal: list[float] = []
    picture = encode("JPEG")
    for stream in streams:
        stream.settimeout(0)
    while len(ended) < 200 and time.monotonic() - begin < BODY_TIMEOUT_S + 6:
        for number, stream in enumerate(streams):
            if number in ended:
                continue
            try:
                part = stream.recv(65536)
                answers[number] = answers.get(number, b"") + part
                if not part:
                    ended[number] = time.monotonic() - begin
                elif number >= 60:
                    continue
            except BlockingIOError:
                if number >= 60:
                    with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
                        stream.send(HEAD[:1] if number < 130 else b"x")
            except ConnectionResetError:
                ended[number] = time.monotonic() - begin
        started = time.perf_counter()
        assert command.send(picture)[0] == 200
        normal.append(time.perf_counter() - started)
        time.sleep(0.2)
    for stream in streams:
        stream.close()
    assert len(ended) == 200
    assert max(ended[number] for number in range(130)) < HEAD_TIMEOUT_S + 3, "heads and silence"
    assert max(ended.values()) < BODY_TIMEOUT_S + 3, "bodies"
    told = [answers.get(number, b"") for number in range(130, 200)]
    assert all(b"408" in answer[:15] for answer in told if answer), "who hears anything hears why"
    assert sum(map(bool, told)) > 50
    assert float(np.median(normal)) < 1


def test_slow_readers_do_not_hold_others_up(command: Command) -> None:
    streams = [command.connect() for _ in range(50)]
    for stream in streams:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        stream.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50)
    assert command.send(encode("PNG"))[0] == 200
    for stream in streams:
        stream.close()


NAMES = [
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "C:\\Users\\x\\cat.jpg",
    "%2e%2e%2fcat.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "'; DROP TABLE x; --.jpg",
    "$(touch hacked).jpg",
    "{{7*7}}.jpg",
    "\u202egpj.tac",
    "a" * 2000 + ".jpg",
    "CON.jpg",
    "-rf",
    " ",
]


def test_file_names_are_text_and_nothing_else(command: Command) -> None:
    before = snapshot(command.folder)
    form, boundary = make_form([(name, encode("PNG")) for name in NAMES])
    status, body = command.send(form, f"multipart/form-data; boundary={boundary}")
    assert status == 200
    told = [row["name"] for row in json.loads(body)["predictions"]]
    assert all(told)
    assert "../" not in body.decode() or told[0] == NAMES[0]
    assert [name for name in told if name in NAMES or os.path.basename(name)] == told
    assert snapshot(command.folder) == before


@pytest.mark.parametrize("name", [b"a\0b.jpg", b"\xff\xfe.jpg", b'a\\"b.jpg', b"a\x1b[31mb.jpg", b"a\x7fb.jpg"])
def test_odd_bytes_in_file_names(command: Command, name: bytes) -> None:
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n'
    status, body = command.send(start + encode("PNG") + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")
    if status == 200:
        json.loads(body)
        assert b"\x1b" not in body
    else:
        check_refusal(status, body, [400])
    assert b"\x1b" not in command.log.read_bytes()


def test_markup_in_labels_stays_text(command: Command) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", command.port, timeout=30)
    for method, path in (("POST", "/predict"), ("GET", "/models"), ("GET", "/page.json"), ("GET", "/openapi.json")):
        connection.request(method, path, encode("PNG") if method == "POST" else None)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.getheader("Content-Type") == "application/json"
        assert answer.getheader("X-Content-Type-Options") == "nosniff", path
        assert set(find_strings(json.loads(body))) >= set(MARKUP), path
    connection.close()
    for path in ("/", "/docs"):
        assert b"<script>alert" not in command.send(b"", path=path)[1]
    text = command.send(b"", path="/metrics")[1].decode()
    labels = {
        sample.labels.get("label")
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "headstart_predictions_total"
    }
    assert labels
    assert labels <= {*MARKUP, None}


def find_strings(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from find_strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from find_strings(value)


@pytest.mark.parametrize(
    "path",
    [
        b"/../../../../etc/passwd",
        b"/page.js/../../../../etc/passwd",
        b"/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        b"/..%2f..%2f..%2fetc%2fpasswd",
        b"/..%5c..%5cwindows%5cwin.ini",
        b"/page/index.html",
        b"/page/../app.py",
        b"//etc/passwd",
        b"/tiny.onnx",
        b"/predict/..%2f..%2fmodels",
        b"/predict/tiny%00",
        b"/predict/%ff%fe",
        b"/v2/models/..",
        b"/v2/models/..%2f..%2fetc",
        b"/v2/models/tiny/versions/..%2f1",
        b"/v2/models/tiny.pixels.pixels",
        b"/v2/repository/index",
        b"/v2/models/tiny/config",
        b"/docs/",
        b"/Docs",
        b"/openapi.json/..",
        b"/.git/config",
        b"http://example.org/etc/passwd",
        b"*",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_paths_lead_nowhere_else(command: Command, method: bytes, path: bytes) -> None:
    request = method + b" " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    check_refusal(*command.exchange(request), [400, 404, 405])


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND", "get"])
def test_other_methods_are_refused(command: Command, method: str) -> None:
    for path in ("/predict", "/models", "/v2/models/tiny/infer", "/docs"):
        request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
        check_refusal(*command.exchange(request.encode()), [400, 405])


@pytest.mark.parametrize(
    "host",
    ["example.org", "127.0.0.1.example.org", "localhost.example.org", "127.0.0.1@example.org", "", "[::1", "a b", "0"],
)
def test_other_hosts_are_refused(command: Command, host: str) -> None:
    for path in ("/", "/models", "/health/live", "/v2"):
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"
        check_refusal(*command.exchange(request.encode()), [400])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost", "LOCALHOST:99", "[::1]:80"])
def test_its_own_hosts_are_served(command: Command, host: str) -> None:
    assert command.exchange(f"GET /models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())[0] == 200


@pytest.mark.parametrize("sent", ["a b", "a\tb", "x" * 65, "<b>", '"}', "é", ""])
def test_request_ids_that_could_harm_a_log_are_replaced(command: Command, sent: str) -> None:
    with command.connect() as stream:
        stream.sendall(f"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {sent}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(stream)
        answer.begin()
        answer.read()
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.getheader("X-Request-Id") or "")
        assert answer.getheader("X-Request-Id") != sent


def test_health_answers_while_large_pictures_are_decoded(command: Command) -> None:
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    noise = np.kron(rng.integers(0, 255, (125, 125), np.uint8), np.ones((48, 48), np.uint8))
    Image.fromarray(noise).save(stream, "PNG", compress_level=1)
    large = stream.getvalue()
    assert len(large) < LIMIT_BYTES
    threads = [threading.Thread(target=command.send, args=(large,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    waits = []
    while any(thread.is_alive() for thread in threads):
        began = time.perf_counter()
        assert command.send(b"", path="/health/live")[0] == 200
        waits.append(time.perf_counter() - began)
    assert len(waits) > 5
    assert float(np.median(waits)) < 0.1
