"""Pictures as raw bytes, forms and JSON, packed and not, within the limits."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Trained
from raw_http import connect, exchange, read_to_end
from serving import Served, serving, wait_for

import headstart
from headstart.serve.body import unpack
from headstart.serve.predict_route import parse_pictures
from headstart.serve.refusals import Refusal

FORM = "multipart/form-data; boundary=xyz"
HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
END = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Served]:
    with serving(trained.file, max_body_bytes=2**20, max_pictures=4) as served:
        yield served


@pytest.fixture(scope="module")
def pictures(trained: Trained) -> list[bytes]:
    return [(trained.shapes / shape / "00.png").read_bytes() for shape in ("checks", "circles", "stripes")]


def build_form(files: list[tuple[str | None, bytes]], end: bytes = b"--xyz--\r\n") -> bytes:
    parts = []
    for name, data in files:
        file_name = "" if name is None else f'; filename="{name}"'
        head = f'--xyz\r\nContent-Disposition: form-data; name="file"{file_name}\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    return b"".join(parts) + end


def post(served: Served, body: bytes, content_type: str = "", path: str = "/predict", **headers: str) -> Any:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return served.send("POST", path, body, {"Content-Type": content_type, **headers} if content_type else headers)


def test_forms_and_json_give_what_raw_bytes_give(
    served: Served, pictures: list[bytes], classifier: headstart.Classifier
) -> None:
    form = build_form([("a.png", pictures[0]), (None, b"a field"), ("<b>.png", pictures[1]), ("", pictures[2])])
    document = json.dumps({"pictures": [base64.b64encode(data).decode() for data in pictures]}).encode()
    by_form = post(served, form, FORM).json["predictions"]
    by_json = post(served, document, "application/json; charset=utf-8").json["predictions"]
    assert [row.pop("name") for row in by_form] == ["a.png", "<b>.png", "picture 2"]
    assert [row.pop("name") for row in by_json] == ["picture 0", "picture 1", "picture 2"]
    assert by_form == by_json
    for row, expected in zip(by_form, classifier.predict(pictures), strict=True):
        assert list(row["probabilities"].items()) == expected.get_top(3)
        assert (row["predicted"], row["probability"]) == expected.get_top(1)[0]
        assert row["familiarity"] == expected.familiarity
        assert row["none_of_these"] == expected.is_unknown()


def test_top_and_model_are_chosen(served: Served, pictures: list[bytes]) -> None:
    answer = post(served, pictures[0], path="/predict/shapes?top=2").json
    assert (answer["model"], answer["version"]) == ("shapes", "1")
    assert len(answer["predictions"][0]["probabilities"]) == 2
    assert served.send("GET", "/models").json["models"][0]["labels"] == ["checks", "circles", "stripes"]


def test_bad_pictures_are_told_one_by_one(served: Served, pictures: list[bytes]) -> None:
    answer = post(served, build_form([("a", pictures[0]), ("b", b"<html>"), ("c", pictures[1][:60])]), FORM)
    assert answer.status == 200
    rows = answer.json["predictions"]
    assert [row.get("error", {}).get("code") for row in rows] == [None, "not-an-image", "truncated"]
    only_bad = post(served, build_form([("b", b"<html>"), ("c", b"")]), FORM)
    assert (only_bad.status, only_bad.json["code"]) == (415, "not-an-image")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
def test_packed_bodies_are_unpacked(served: Served, pictures: list[bytes], encoding: str) -> None:
    pack = zlib.compress if encoding == "deflate" else gzip.compress
    assert post(served, pack(pictures[0]), content_encoding=encoding).json == post(served, pictures[0]).json


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 400, "empty"),
        (b"x", {"content_encoding": "br"}, 415, "unsupported-encoding"),
        (b"x", {"content_encoding": "gzip"}, 400, "bad-encoding"),
        (gzip.compress(b"abc" * 1000)[:-9], {"content_encoding": "gzip"}, 400, "bad-encoding"),
        (gzip.compress(b"abc") + b"more", {"content_encoding": "gzip"}, 400, "bad-encoding"),
        (gzip.compress(bytes(2**20 + 1)), {"content_encoding": "gzip"}, 413, "too-large"),
        (zlib.compress(bytes(5 * 10**8), 1), {"content_encoding": "deflate"}, 413, "too-large"),
        (b"{", {"content_type": "application/json"}, 400, "bad-json"),
        (b"\xff", {"content_type": "application/json"}, 400, "bad-json"),
        (b"[" * 250_000, {"content_type": "application/json"}, 400, "bad-json"),
        (b"[]", {"content_type": "application/json"}, 400, "bad-json"),
        (b'{"pictures": "x"}', {"content_type": "application/json"}, 400, "bad-json"),
        (b'{"pictures": [1]}', {"content_type": "application/json"}, 400, "bad-json"),
        (b'{"pictures": []}', {"content_type": "application/json"}, 400, "no-picture"),
        (b'{"pictures": ["?"]}', {"content_type": "application/json"}, 400, "bad-base64"),
        (b'{"pictures": ["a", "a", "a", "a", "a"]}', {"content_type": "application/json"}, 413, "too-many-pictures"),
        (b"", {"content_type": FORM}, 400, "bad-form"),
        (b"x", {"content_type": "multipart/form-data"}, 400, "bad-form"),
        (build_form([("a", b"x")], end=b""), {"content_type": FORM}, 400, "bad-form"),
        (build_form([(None, b"x")]), {"content_type": FORM}, 400, "no-picture"),
        (build_form([("a", b"x")] * 5), {"content_type": FORM}, 413, "too-many-pictures"),
        (build_form([(None, b"x")] * 500), {"content_type": FORM}, 413, "too-many-pictures"),
    ],
)  # fmt: skip
def test_bad_bodies_are_refused(served: Served, body: bytes, headers: dict[str, str], status: int, code: str) -> None:
    answer = post(served, body, **headers)
    assert (answer.status, answer.json["code"]) == (status, code)


def test_limit_is_exact(served: Served) -> None:
    assert post(served, bytes(2**20)).status == 415
    assert post(served, bytes(2**20 + 1)).status == 413
    assert post(served, gzip.compress(bytes(2**20)), content_encoding="gzip").status == 415
    for size, status in ((2**20, 415), (2**20 + 1, 413)):
        chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n"
        assert exchange(served, chunked + END).status == status


def test_bodies_together_have_a_limit(trained: Trained) -> None:
    with serving(trained.file, max_body_bytes=10_000) as served, contextlib.ExitStack() as stack:
        room = served.server.body_room
        uploads = [stack.enter_context(connect(served)) for _ in range(16)]
        for stream in uploads:
            stream.sendall(HEAD + b"Content-Length: 10000\r\n\r\n" + bytes(9_999))
        wait_for(lambda: room.taken_bytes == 16 * 9_999)
        one_more = post(served, bytes(9_999))
        assert (one_more.status, one_more.json["code"], one_more.headers["retry-after"]) == (503, "overloaded", "1")
        uploads[0].sendall(b"x" + END)
        assert read_to_end(uploads[0]).status == 415
        assert post(served, bytes(9_999)).status == 415
        for stream in uploads:
            stream.close()
        wait_for(lambda: room.taken_bytes == 0)


def test_too_large_takes_no_memory(served: Served) -> None:
    bomb = gzip.compress(bytes(10**8))
    sent = [
        HEAD + b"Content-Length: 1048577\r\n\r\n" + bytes(2**20 + 1),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"100001\r\n" + bytes(2**20 + 1) + b"\r\n0\r\n\r\n",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb,
    ]
    for data, most_limits in zip([data + END for data in sent], (0.5, 2, 2), strict=True):
        tracemalloc.start()
        assert exchange(served, data).status == 413
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most_limits * 2**20 + 300_000  # besides, a read of the connection


def test_unpack_stops_at_the_limit() -> None:
    for bits, pack in ((31, gzip.compress), (15, zlib.compress)):
        assert unpack(pack(b"a" * 1000), bits, 1000) == b"a" * 1000
        with pytest.raises(Refusal, match="too-large"):
            unpack(pack(b"a" * 1001), bits, 1000)


def test_form_names_are_kept_as_they_are() -> None:
    ((name, data),) = parse_pictures(build_form([("../../etc/passwd", b"x")]), FORM, 4)
    assert (name, data) == ("../../etc/passwd", b"x")
