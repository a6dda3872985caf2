"""Start, replaced files, keys, hosts, log, figures and the stop: a real server, and the command in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Trained
from drawn_pictures import run_command, run_python
from raw_http import connect, exchange, read_to_end
from serving import serving, wait_for

import headstart
import headstart.serve.running
from headstart.errors import ArtifactError, ConfigError
from headstart.serve.app import ROUTES
from headstart.serve.front_door import Admission
from headstart.serve.models import name_models
from headstart.serve.refusals import Refusal
from headstart.serve.settings import ServeSettings

GET = b"GET /health/live HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def picture(trained: Trained) -> bytes:
    return (trained.shapes / "checks" / "00.png").read_bytes()


# Settings and names


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ServeSettings(port=-1, num_workers=0, max_pictures=100, body_timeout_s=0, api_keys=("too-few",), host="a b")
    lines = str(caught.value).splitlines()
    assert len(lines) == 7  # a line over the six
    assert "too-few" not in str(caught.value)
    assert "secret-key" not in repr(ServeSettings(api_keys=("secret-key",)))


def test_models_have_names_for_urls() -> None:
    assert {name: str(path) for name, path in name_models(["a/pets.onnx", "b=a/pets.onnx"]).items()} == {
        "pets": "a/pets.onnx",
        "b": "a/pets.onnx",
    }
    with pytest.raises(ConfigError, match="(?s)2 problems.*a b cannot be.*Two files are called pets"):
        name_models(["a b.onnx", "pets.onnx", "other/pets.onnx"])


def test_files_that_cannot_be_used_stop_the_start(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    files = [trained.file, tmp_path / "bad.onnx", tmp_path / "missing.onnx"]
    with pytest.raises(ArtifactError, match=r"(?s)2 problems.*bad.onnx.*missing.onnx"), serving(*files):
        pass


# Who is let in


def test_other_hosts_are_refused(trained: Trained) -> None:
    with serving(trained.file, allowed_hosts=("pets.example.org",)) as served:
        for host in ("127.0.0.1", "localhost:80", "[::1]:8000", "LOCALHOST", "Pets.example.org:1"):
            assert exchange(served, GET % host.encode()).status == 200, host
        for host in (
            "evil.example.org",
            "127.0.0.1.evil.org",
            "",
            "192.168.1.1",
            "localhost@evil.org",
            "pets.example.org.evil",
            "evil-pets.example.org",
        ):
            answer = exchange(served, GET % host.encode())
            assert (answer.status, json.loads(answer.body)["code"]) == (400, "wrong-host"), host


def test_elsewhere_than_at_loopback_addresses_are_let_in() -> None:
    def check(host: bytes, settings: ServeSettings) -> None:
        Admission(settings).check({"headers": [(b"host", host)], "http_version": "1.1", "path": "/"})

    everywhere = ServeSettings(host="0.0.0.0")
    for host in (b"192.168.1.1:8000", b"[fe80::1]", b"localhost", b"0.0.0.0"):
        check(host, everywhere)
    check(b"evil.example.org", ServeSettings(allowed_hosts=("*",)))
    for host, settings in ((b"evil.example.org", everywhere), (b"192.168.1.1", ServeSettings())):
        with pytest.raises(Refusal, match="wrong-host"):
            check(host, settings)


OPEN = {"/", "/page.js", "/page.css", "/docs", "/openapi.json", "/health/live", "/health/ready"}
OPEN |= {"/v2/health/live", "/v2/health/ready"}


def test_a_key_is_asked_for(trained: Trained, picture: bytes) -> None:
    with serving(trained.file, api_keys=("a-long-key-1", "a-long-key-2")) as served:
        for headers in (
            {},
            {"X-API-Key": "a-long-key-"},
            {"Authorization": "Basic a-long-key-1"},
            {"X-API-Key": "\xff"},
        ):
            answer = served.send("POST", "/predict", picture, headers)
            assert (answer.status, answer.json["code"]) == (401, "no-key")
            assert answer.headers["www-authenticate"] == "Bearer"
        for headers in ({"X-API-Key": "a-long-key-2"}, {"Authorization": "bearer a-long-key-1"}):
            assert served.send("POST", "/predict", picture, headers).status == 200
        for route in ROUTES:
            method = "POST" if "POST" in (route.methods or ()) else "GET"
            answer = served.send(method, route.path.format(model="shapes", version="1"))
            assert answer.status == (200 if route.path in OPEN else 401), route.path


# Queue and workers


def test_beyond_the_queue_is_refused_at_once(trained: Trained, picture: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go = threading.Event()
    original = headstart.Classifier.predict_one

    def wait(*arguments: object) -> object:
        may_go.wait(10)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(headstart.Classifier, "predict_one", wait)
    with serving(trained.file, num_workers=2, queue_size=3, max_pictures=3) as served:
        statuses: list[int] = []

        def send() -> None:
            statuses.append(served.send("POST", "/predict", picture).status)

        threads = [threading.Thread(target=send) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_for(lambda: served.server.pool.num_waiting == 3 and len(served.running._state.tasks) == 5)
        started_s = time.monotonic()
        answer = served.send("POST", "/predict", picture)
        assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
        assert served.send("GET", "/health/live").status == 200
        assert time.monotonic() - started_s < 1
        assert b"headstart_queue_pictures 3.0" in served.send("GET", "/metrics").body
        may_go.set()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 5


def test_pictures_of_clients_that_have_gone_are_not_predicted(
    trained: Trained, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go = threading.Event()
    predicted = []
    original = headstart.Classifier.predict_one

    def wait(*arguments: object) -> object:
        predicted.append(arguments)
        may_go.wait(10)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(headstart.Classifier, "predict_one", wait)
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(picture)
    with serving(trained.file, num_workers=1) as served:
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stream = stack.enter_context(connect(served))
                stream.sendall(head + picture)
            wait_for(lambda: served.server.pool.num_waiting == 4)
        wait_for(lambda: b'status="499"} 5.0' in served.send("GET", "/metrics").body)
        assert served.server.pool.num_waiting == 0
        may_go.set()
        assert served.send("POST", "/predict", picture).status == 200
    assert len(predicted) == 2


def test_a_picture_that_takes_too_long_is_given_up(
    trained: Trained, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go = threading.Event()
    original = headstart.Classifier.predict_one

    def hang(self: headstart.Classifier, data: bytes, *arguments: object) -> object:
        if data == b"slow":
            may_go.wait(20)
        return original(self, data, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(headstart.Classifier, "predict_one", hang)
    with serving(trained.file, num_workers=1, predict_timeout_s=1) as served:
        for _ in range(2):  # the worker, and the one in its place
            answer = served.send("POST", "/predict", b"slow")
            assert (answer.status, answer.json["code"]) == (422, "too-slow")
            if served.server.pool.num_stuck == 1:
                assert served.send("POST", "/predict", picture).status == 200
        assert served.server.pool.num_stuck == 2
        answer = served.send("POST", "/predict", picture)  # nobody is left
        assert (answer.status, answer.json["code"]) == (503, "overloaded")
        may_go.set()
        wait_for(lambda: served.server.pool.num_stuck == 0)
        assert served.send("POST", "/predict", picture).status == 200
        wait_for(lambda: len(served.server.pool._workers) == 1)
    may_go.clear()
    with serving(trained.file, num_workers=1, predict_timeout_s=1.5) as served:
        slow = threading.Thread(target=served.send, args=("POST", "/predict", b"slow"))
        slow.start()
        time.sleep(0.75)
        assert served.send("POST", "/predict", picture).status == 200  # it waited already when the worker was replaced
        may_go.set()
        slow.join()


def test_a_mistake_of_ours_is_answered_without_its_details(
    trained: Trained, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> object:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(headstart.Classifier, "predict_one", fail)
    with serving(trained.file) as served:
        answer = served.send("POST", "/predict", picture)
        assert (answer.status, answer.json["code"]) == (500, "internal")
        assert b"secret" not in answer.body
        assert b"Error" not in answer.body
        assert served.send("GET", "/health/ready").status == 200


# Replaced files


@pytest.fixture
def other_file(tmp_path: Path, trained: Trained, warm_cache: Path) -> Path:
    path = tmp_path / "other.onnx"
    headstart.train(trained.shapes, layers="top", penalty=1.0).save(path)
    return path


def test_a_replaced_file_is_taken_up_and_a_bad_one_is_not(
    tmp_path: Path, trained: Trained, other_file: Path, picture: bytes
) -> None:
    file = Path(shutil.copy(trained.file, tmp_path / "pets.onnx"))
    expected = {"1": headstart.load(file).predict(picture), "2": headstart.load(other_file).predict(picture)}
    with serving(file, reload_s=0.1) as served:
        seen: list[tuple[str, float]] = []
        is_over = threading.Event()
        statuses = set()

        def ask() -> None:
            connection = http.client.HTTPConnection(served.host, served.port)
            while not is_over.is_set():
                connection.request("POST", "/predict", picture)
                answer = connection.getresponse()
                statuses.add(answer.status)
                document = json.loads(answer.read())
                seen.append((document["version"], document["predictions"][0]["probability"]))
            connection.close()

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        data = other_file.read_bytes()
        with file.open("r+b") as stream:  # in place, and for a while only half
            stream.write(data[: len(data) // 2])
            stream.flush()
            time.sleep(0.4)
            stream.write(data[len(data) // 2 :])
            stream.truncate()
        wait_for(lambda: served.server.models.get("pets").version == "2")
        wait_for(lambda: seen[-1][0] == "2")
        (tmp_path / "bad.onnx").write_bytes(b"hello")
        os.replace(tmp_path / "bad.onnx", file)
        time.sleep(0.5)
        assert served.server.models.get().version == "2"
        file.unlink()
        time.sleep(0.3)
        other_file.replace(file)  # the same bytes as version 2
        time.sleep(0.3)
        assert served.server.models.get().version == "2"
        is_over.set()
        for thread in threads:
            thread.join()
    assert statuses == {200}
    assert set(seen) == {(version, one.probability) for version, one in expected.items()}


# The stop


def test_what_was_taken_is_answered_and_what_is_new_refused(
    trained: Trained, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = headstart.Classifier.predict_one

    def wait(*arguments: object) -> object:
        time.sleep(0.3)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(headstart.Classifier, "predict_one", wait)
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(picture)
    with serving(trained.file, num_workers=2) as served, contextlib.ExitStack() as stack:
        taken = [stack.enter_context(connect(served)) for _ in range(6)]
        for stream in taken[:5]:
            stream.sendall(head + picture)
        taken[5].sendall(head + picture[:10])  # its head was taken: its body may come
        resting = stack.enter_context(connect(served))
        resting.sendall(GET.replace(b"Connection: close\r\n", b"") % b"127.0.0.1")
        assert b" 200 " in resting.recv(1000)
        wait_for(lambda: len(served.running._state.tasks) == 6)
        served.running.stop()
        wait_for(lambda: served.server.is_draining)
        resting.sendall(GET.replace(b"Connection: close\r\n", b"") % b"127.0.0.1")
        refused = read_to_end(resting)
        assert (refused.status, json.loads(refused.body)["code"]) == (503, "stopping")
        assert "connection: close" in refused.head
        assert exchange(served, GET % b"127.0.0.1").status == 503
        taken[5].sendall(picture[10:])
        for stream in taken:
            answer = read_to_end(stream)
            assert (answer.status, answer.is_reset) == (200, False)


def test_clients_hear_of_a_stop_and_the_slow_ones_are_not_waited_for(trained: Trained) -> None:
    with serving(trained.file) as served, connect(served) as resting:
        resting.sendall(GET.replace(b"Connection: close\r\n", b"") % b"127.0.0.1")
        assert b" 200 " in resting.recv(1000)
        served.running.stop()
        wait_for(lambda: served.server.is_draining)
        resting.sendall(GET.replace(b"Connection: close\r\n", b"") % b"127.0.0.1")
        assert read_to_end(resting).status == 503
    with serving(trained.file, drain_s=0.5) as served, connect(served) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nhalf")
        wait_for(lambda: len(served.running._state.tasks) == 1)
        started_s = time.monotonic()
        served.running.stop()
        answer = read_to_end(slow)
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "stopping")
        assert 0.4 < time.monotonic() - started_s < 5


def start_command(*arguments: object, **variables: str) -> tuple[subprocess.Popen[str], str]:
    """`headstart serve` in a process of its own, and the line that it prints once it serves."""
    source = str(Path(headstart.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "headstart.cli", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.fixture
def command(trained: Trained) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    process, line = start_command(trained.file, HEADSTART_API_KEY="do-not-log-this")
    yield process, line, int(line.split("//127.0.0.1:")[1].split("/")[0])
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_command_says_where_logs_and_stops_on_a_signal(
    command: tuple[subprocess.Popen[str], str, int], picture: bytes
) -> None:
    process, line, port = command
    assert line == f"Serving shapes at http://127.0.0.1:{port}/ (interface: /docs). Ctrl-C stops.\n"
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"X-Request-Id": "my-id.1", "X-API-Key": "do-not-log-this"}
    connection.request("POST", "/predict?top=1", picture, headers)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["x-request-id"]) == (200, "my-id.1")
    answer.read()
    connection.request("GET", "/a%0Ab", headers={"X-Request-Id": "a b\x01", "X-API-Key": "do-not-log-this"})
    refused = connection.getresponse()
    assert refused.status == 400  # a control character in a header
    connection.close()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stderr is not None
    text = process.stderr.read()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    (logged,) = (line for line in lines if line.get("id") == "my-id.1")
    assert {key: logged[key] for key in ("event", "level", "method", "path", "status", "model", "pictures")} == {
        "event": "request", "level": "info", "method": "POST", "path": "/predict", "status": 200,
        "model": "shapes", "pictures": 1,
    }  # fmt: skip
    assert "do-not-log-this" not in text
    assert text.endswith("Stopped.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_second_signal_stops_at_once(command: tuple[subprocess.Popen[str], str, int]) -> None:
    process, _, port = command
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.putrequest("POST", "/predict")
    connection.putheader("X-API-Key", "do-not-log-this")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"half")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None  # it waits for the body
    process.send_signal(signal.SIGINT)
    process.wait(3)
    connection.close()


def test_a_taken_port_is_told(trained: Trained) -> None:
    with serving(trained.file) as served:
        done = run_command("serve", trained.file, "--port", served.port)
    assert done.code == 2
    assert done.stderr == (
        f"Error: Cannot listen at 127.0.0.1, port {served.port}: another program does. "
        "Choose another port with --port, or stop that program.\n"
    )


def test_bad_options_are_told(tmp_path: Path, trained: Trained) -> None:
    empty = tmp_path / "keys"
    empty.write_text("\n")
    for options, words in (
        (["--queue", "0", "--keep-alive", "0"], "queue_size is 0"),
        (["--api-key-file", tmp_path / "none"], "cannot be read: No such file"),
        (["--api-key-file", empty], "holds no key"),
        (["--log", "x"], "Expected requests or events"),
        (["--max-body", "inf", "--max-megapixels", "nan"], "2 problems:"),
    ):
        done = run_command("serve", trained.file, *options)
        assert done.code == 2
        assert words in done.stderr
    assert "There is no such file" in run_command("serve", tmp_path / "x.onnx", "--port", 0).stderr


NO_EXTRA = """
import sys
for name in ("starlette", "uvicorn", "httptools", "prometheus_client", "multipart"):
    sys.modules[name] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if sys.modules.get(name, 0) is None else real(name, *rest)
from headstart import cli
sys.argv = ["headstart", *sys.argv[1:]]
cli.main()
"""


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, trained: Trained) -> None:
    done = run_python("-c", NO_EXTRA, "serve", str(trained.file), cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'headstart[serve]'" in done.stderr
    assert "Traceback" not in done.stderr


SERVE_AND_LIST = """
import sys
sys.path.insert(0, sys.argv[2])
from serving import serving
with serving(sys.argv[1]) as served:
    served.send("POST", "/predict", open(sys.argv[3], "rb").read())
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_serving_imports_little(tmp_path: Path, trained: Trained) -> None:
    picture = trained.shapes / "checks" / "00.png"
    done = run_python("-c", SERVE_AND_LIST, str(trained.file), str(Path(__file__).parent), str(picture), cwd=tmp_path)
    assert not set(done.stdout.split()) & {"torch", "sklearn", "scipy", "onnx", "matplotlib", "rich", "pandas"}, (
        done.stderr
    )
    assert {"starlette", "uvicorn", "onnxruntime"} <= set(done.stdout.split()), done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back when asked")
def test_memory_is_given_back(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headstart.serve.running, "_TRIM_S", 0.1)
    with serving(trained.file):
        taken = [bytes(2000) for _ in range(50_000)]
        kept = taken[::100]  # between the others, so that these cannot be given back by themselves
        taken.clear()
        most = read_memory_bytes()
        wait_for(lambda: read_memory_bytes() < most - 50_000_000)
    assert len(kept) == 500


def read_memory_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# Figures


def test_figures_are_counted(trained: Trained, picture: bytes) -> None:
    with serving(trained.file, max_body_bytes=10_000) as served:
        served.send("POST", "/predict", picture)
        served.send("POST", "/predict", b"<html>")
        served.send("POST", "/predict", bytes(10_001))
        served.send("GET", "/nothing")
        exchange(served, b"nonsense\r\n\r\n")
        lines = served.send("GET", "/metrics").body.decode().splitlines()
    for line in (
        'headstart_requests_total{route="/predict",status="200"} 1.0',
        'headstart_requests_total{route="/predict",status="413"} 1.0',
        'headstart_requests_total{route="/predict",status="415"} 1.0',
        'headstart_requests_total{route="(none)",status="404"} 1.0',
        'headstart_requests_total{route="(none)",status="400"} 1.0',
        'headstart_request_seconds_count{route="/predict"} 3.0',
        'headstart_pictures_total{model="shapes"} 1.0',
        'headstart_pictures_refused_total{code="not-an-image"} 1.0',
        'headstart_predictions_total{label="checks",model="shapes"} 1.0',
        'headstart_model_version{model="shapes"} 1.0',
        "headstart_requests_in_flight 1.0",
        "headstart_queue_pictures 0.0",
    ):
        assert line in lines
