"""The Open Inference Protocol v2 as its clients use it: 46 numbered checks, then every way to be refused.

tritonclient is the real one. KServe's package needs some sixty others, so its client is written out here as it sends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import SHAPES, draw_picture
from PIL import Image

import headstart

pytest.importorskip("tritonclient.http")
pytest.importorskip("tritonclient.http.aio")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

import tritonclient.http.aio  # noqa: E402
from serving import Answer, Served, serving  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.routing import Mount  # noqa: E402
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from headstart.serve.app import Server, create_app  # noqa: E402
from headstart.serve.settings import ServeSettings  # noqa: E402

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/shapes/infer"


def draw_files(count: int) -> list[bytes]:
    """PNG and JPEG files in turn, of pictures that were not trained on."""
    files = []
    for number in range(count):
        stream = io.BytesIO()
        picture = Image.fromarray(draw_picture(SHAPES[number % 3], 100 + number))
        picture.save(stream, "JPEG" if number % 2 else "PNG")
        files.append(stream.getvalue())
    return files


def make_slow_picture() -> bytes:
    """A PNG that takes a while to decode."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


FILES = draw_files(32)
PIXELS = draw_picture("circles", 200)


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Served]:
    with serving(trained.file) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"{served.host}:{served.port}") as client:
        yield client


@contextlib.contextmanager
def running(app: Any) -> Iterator[int]:
    """An application behind uvicorn at a free port, as it is."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for _ in range(1000):
            if server.started:
                break
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


def make_input(files: list[bytes], is_binary: bool = True) -> InferInput:
    found = InferInput("image", [len(files)], "BYTES")
    data = files if is_binary else [base64.b64encode(file) for file in files]
    return found.set_data_from_numpy(np.array(data, object), binary_data=is_binary)


def make_pixels(pixels: np.ndarray, is_binary: bool = True) -> InferInput:
    return InferInput("image", list(pixels.shape), "UINT8").set_data_from_numpy(pixels, binary_data=is_binary)


def expect(classifier: headstart.Classifier, pictures: list[Any]) -> list[headstart.Prediction]:
    return [classifier.predict(picture) for picture in pictures]


def same(result: Any, expected: list[headstart.Prediction]) -> None:
    """Bit for bit what the library says."""
    probs = result.as_numpy("probabilities")
    assert probs.dtype == np.float32
    assert probs.tobytes() == np.stack([prediction.probs for prediction in expected]).tobytes()
    labels = result.as_numpy("label")
    texts = [label if isinstance(label, str) else label.decode() for label in labels.tolist()]
    assert texts == [prediction.label for prediction in expected]
    familiarity = result.as_numpy("familiarity")
    assert familiarity.tobytes() == np.array([p.familiarity for p in expected], np.float32).tobytes()


def ask(*names: str, is_binary: bool) -> list[InferRequestedOutput]:
    return [InferRequestedOutput(name, binary_data=is_binary) for name in names]


ALL = ("probabilities", "label", "familiarity")


# Health


def test_01_the_server_is_live(client: InferenceServerClient, served: Served) -> None:
    assert client.is_server_live()
    assert served.send("GET", "/v2/health/live").json == {"live": True}


def test_02_the_server_is_ready(client: InferenceServerClient, served: Served) -> None:
    assert client.is_server_ready()
    assert served.send("GET", "/v2/health/ready").json == {"live": True, "ready": True}


def test_03_the_model_is_ready(client: InferenceServerClient, served: Served) -> None:
    assert client.is_model_ready("shapes")
    assert client.is_model_ready("shapes.pixels")
    assert served.send("GET", "/v2/models/shapes/ready").json == {"name": "shapes", "ready": True}


def test_04_the_model_is_ready_in_its_version(client: InferenceServerClient) -> None:
    assert client.is_model_ready("shapes", "1")
    assert not client.is_model_ready("shapes", "2")


def test_05_an_unknown_model_is_not_ready(client: InferenceServerClient) -> None:
    for name in ("other", "other.pixels", "a b/\u00fc", "shapes.pixels.pixels"):
        assert not client.is_model_ready(name)


def test_06_not_ready_while_loading(trained: Trained) -> None:
    server = Server.build([trained.file], ServeSettings())  # not told to load yet
    with running(create_app(server)) as port, InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("shapes")
        with pytest.raises(InferenceServerException, match="loaded") as caught:
            client.infer("shapes", [make_input(FILES[:1])])
        assert caught.value.status() == "503"
        server.models.load()
        assert client.is_server_ready()


# Metadata


def test_07_of_the_server(client: InferenceServerClient) -> None:
    extensions = ["binary_tensor_data", "classification"]
    expected = {"name": "headstart", "version": headstart.__version__, "extensions": extensions}
    assert client.get_server_metadata() == expected


def test_08_of_the_model(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    found = client.get_model_metadata("shapes")
    assert found["name"] == "shapes"
    assert found["versions"] == ["1"]
    assert found["platform"] == "onnx_onnxv1"
    assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert found["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "familiarity", "datatype": "FP32", "shape": [-1]},
    ]
    assert found["parameters"]["labels"] == list(classifier.classes)
    assert found["parameters"]["version"] == "1"
    assert found["parameters"]["sha256"] == classifier.sha256
    assert "base64" in found["parameters"]["input"]
    pixels = client.get_model_metadata("shapes.pixels")
    assert pixels["name"] == "shapes.pixels"
    assert pixels["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, 3]}]
    assert pixels["outputs"] == found["outputs"]


def test_09_of_a_version(client: InferenceServerClient) -> None:
    assert client.get_model_metadata("shapes", "1") == client.get_model_metadata("shapes")


def test_10_of_an_unknown_model(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="unknown-model: there is no model of this name"):
        client.get_model_metadata("other")
    with pytest.raises(InferenceServerException, match="unknown-version: shapes has no such version"):
        client.get_model_metadata("shapes", "7")


def test_11_with_and_without_a_slash(served: Served) -> None:
    answers = [served.send("GET", path) for path in ("/v2", "/v2/")]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body == answers[1].body


# Infer


def test_12_files_as_binary_data(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    result = client.infer("shapes", [make_input(FILES[:3])], outputs=ask(*ALL, is_binary=True))
    same(result, expect(classifier, FILES[:3]))
    assert client.infer("shapes", [make_input(FILES[:1])], "1").get_response()["model_version"] == "1"


def test_13_files_as_base64(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    result = client.infer("shapes", [make_input(FILES[:3], is_binary=False)], outputs=ask(*ALL, is_binary=True))
    same(result, expect(classifier, FILES[:3]))


def test_14_pixels_and_floats_as_binary_data(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    result = client.infer("shapes.pixels", [make_pixels(PIXELS)], outputs=ask(*ALL, is_binary=True))
    same(result, expect(classifier, [PIXELS]))
    assert result.get_response()["model_name"] == "shapes.pixels"


def test_15_pixels_and_floats_as_json(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    result = client.infer("shapes.pixels", [make_pixels(PIXELS, False)], outputs=ask(*ALL, is_binary=False))
    same(result, expect(classifier, [PIXELS]))
    assert "data" in result.get_output("probabilities")


def test_16_one_output_by_name(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    result = client.infer("shapes", [make_input(FILES[:1])], outputs=ask("label", is_binary=True))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["label"]
    assert result.as_numpy("label").tolist() == [classifier.predict(FILES[0]).label.encode()]


@pytest.mark.parametrize("is_binary", [True, False])
def test_17_without_named_outputs_all_come_back_binary(
    client: InferenceServerClient, classifier: headstart.Classifier, is_binary: bool
) -> None:
    result = client.infer("shapes", [make_input(FILES[:2], is_binary)])
    assert [output["name"] for output in result.get_response()["outputs"]] == list(ALL)
    assert all("data" not in output for output in result.get_response()["outputs"])
    same(result, expect(classifier, FILES[:2]))


def test_18_one_output_as_json_and_one_binary(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    outputs = [*ask("label", "familiarity", is_binary=False), *ask("probabilities", is_binary=True)]
    result = client.infer("shapes", [make_input(FILES[:2])], outputs=outputs)
    same(result, expect(classifier, FILES[:2]))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["label", "familiarity", "probabilities"]
    assert "data" in result.get_output("label")
    assert result.get_output("probabilities")["parameters"] == {"binary_data_size": 24}


def test_19_an_output_overrules_binary_data_output(served: Served, classifier: headstart.Classifier) -> None:
    for whole, single in ((True, False), (False, True)):
        outputs = [{"name": "label", "parameters": {"binary_data": single}}, {"name": "probabilities"}]
        body, length = make_body(FILES[:2], outputs=outputs, parameters={"binary_data_output": whole})
        answer = post(served.port, body, {LENGTH: str(length)})
        found = json.loads(answer.body[: int(answer.headers[LENGTH.lower()])])["outputs"]
        assert [output["name"] for output in found] == ["label", "probabilities"]
        assert ["parameters" in output for output in found] == [single, whole]
        assert ["data" in output for output in found] == [not single, not whole]


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize(("asked", "count"), [(1, 1), (3, 3), (99, 3)])
def test_20_classes_as_text(
    client: InferenceServerClient, classifier: headstart.Classifier, asked: int, count: int, is_binary: bool
) -> None:
    outputs = [InferRequestedOutput("probabilities", binary_data=is_binary, class_count=asked)]
    result = client.infer("shapes", [make_input(FILES[:2])], outputs=outputs)
    assert result.get_output("probabilities")["datatype"] == "BYTES"
    found = result.as_numpy("probabilities")
    assert found.shape == (2, count)
    for row, prediction in zip(found.tolist(), expect(classifier, FILES[:2]), strict=True):
        texts = [text if isinstance(text, str) else text.decode() for text in row]
        values, numbers, labels = zip(*(text.split(":", 2) for text in texts), strict=True)
        assert list(labels) == [label for label, _ in prediction.get_top(count)]
        assert [classifier.classes[int(number)] for number in numbers] == list(labels)
        assert list(values) == [f"{value:.6f}" for _, value in prediction.get_top(count)]


def test_21_the_id_comes_back(client: InferenceServerClient) -> None:
    for id in ("42", "\u00fc \U0001f600 \"'"):
        assert client.infer("shapes", [make_input(FILES[:1])], request_id=id).get_response()["id"] == id
    assert "id" not in client.infer("shapes", [make_input(FILES[:1])]).get_response()


def test_22_packed_requests_and_answers(
    client: InferenceServerClient, served: Served, classifier: headstart.Classifier
) -> None:
    expected = expect(classifier, FILES[:8])
    for is_binary in (True, False):
        image = make_input(FILES[:8], is_binary)
        for packing in ("gzip", "deflate"):
            outputs = ask(*ALL, is_binary=is_binary)
            more = {"outputs": outputs, "response_compression_algorithm": packing}
            same(client.infer("shapes", [image], request_compression_algorithm=packing, **more), expected)
    body, length = make_body(FILES[:8])
    for asked, found in [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, deflate, gzip", "gzip"),
        ("br", None),
        ("", None),
    ]:
        headers = {LENGTH: str(length), "Accept-Encoding": asked}
        answer = post(served.port, body, headers)
        assert answer.headers.get("content-encoding") == found
        plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[found](answer.body)
        assert json.loads(plain)["model_name"] == "shapes"


@pytest.mark.parametrize("count", [1, 8, 32])
def test_23_batches(client: InferenceServerClient, classifier: headstart.Classifier, count: int) -> None:
    same(client.infer("shapes", [make_input(FILES[:count])]), expect(classifier, FILES[:count]))


# Other clients


def run_aio(served: Served, use: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with tritonclient.http.aio.InferenceServerClient(f"{served.host}:{served.port}") as client:
            return await use(client)

    return asyncio.run(run())


def test_24_aio_health(served: Served) -> None:
    async def use(client: Any) -> list[bool]:
        return [await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready("shapes")]

    assert run_aio(served, use) == [True, True, True]


def test_25_aio_metadata(served: Served, client: InferenceServerClient) -> None:
    assert run_aio(served, lambda aio: aio.get_model_metadata("shapes")) == client.get_model_metadata("shapes")


def test_26_aio_binary(served: Served, classifier: headstart.Classifier) -> None:
    result = run_aio(served, lambda aio: aio.infer("shapes", [make_input(FILES[:8])]))
    same(result, expect(classifier, FILES[:8]))


def test_27_aio_json(served: Served, classifier: headstart.Classifier) -> None:
    inputs, outputs = [make_input(FILES[:2], is_binary=False)], ask(*ALL, is_binary=False)
    same(run_aio(served, lambda aio: aio.infer("shapes", inputs, outputs=outputs)), expect(classifier, FILES[:2]))


class KServeClient:
    """kserve.InferenceRESTClient 0.21 with protocol v2: its requests, and what it reads of the answers."""

    def __init__(self, served: Served) -> None:
        self._base = f"{served.url}/v2"

    async def _send(self, method: str, path: str, **options: Any) -> Any:
        async with httpx.AsyncClient(timeout=60) as client:
            response = await client.request(method, f"{self._base}/{path}", **options)
        response.raise_for_status()
        return response

    def read(self, path: str) -> Any:
        return asyncio.run(self._send("GET", path)).json()

    def infer(self, model: str, request: dict[str, Any], parts: bytes = b"") -> dict[str, np.ndarray]:
        content = json.dumps(request, separators=(",", ":"), ensure_ascii=False).encode()  # as orjson writes
        headers = {"content-type": "application/json"}
        if parts:
            headers = {LENGTH.lower(): str(len(content)), "content-type": "application/octet-stream"}
        response = asyncio.run(self._send("POST", f"models/{model}/infer", content=content + parts, headers=headers))
        end = int(response.headers.get(LENGTH.lower(), len(response.content)))
        found = json.loads(response.content[:end])
        assert found["model_name"] == model
        arrays = {}
        for output in found["outputs"]:
            if "binary_data_size" in (output.get("parameters") or {}):
                size = output["parameters"]["binary_data_size"]
                arrays[output["name"]] = response.content[end : end + size]
                end += size
            else:
                arrays[output["name"]] = np.array(output["data"]).reshape(output["shape"])
        return arrays


def test_28_kserve_live(served: Served) -> None:
    assert KServeClient(served).read("health/live").get("live") is True


def test_29_kserve_ready(served: Served) -> None:
    assert KServeClient(served).read("health/ready").get("ready") is True


def test_30_kserve_model_ready(served: Served) -> None:
    assert KServeClient(served).read("models/shapes/ready")["ready"] is True
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        KServeClient(served).read("models/other/ready")


def test_31_kserve_json(served: Served, classifier: headstart.Classifier) -> None:
    data = [base64.b64encode(file).decode() for file in FILES[:2]]
    image = {"name": "image", "shape": [2], "datatype": "BYTES", "data": data}
    found = KServeClient(served).infer("shapes", {"id": "7", "model_name": "shapes", "inputs": [image]})
    expected = expect(classifier, FILES[:2])
    assert (found["probabilities"].astype(np.float32) == np.stack([p.probs for p in expected])).all()
    assert found["label"].tolist() == [p.label for p in expected]


def test_32_kserve_binary(served: Served, classifier: headstart.Classifier) -> None:
    parameters = {"binary_data_size": PIXELS.size}
    image = {"name": "image", "shape": list(PIXELS.shape), "datatype": "UINT8", "parameters": parameters}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    request = {"id": "7", "model_name": "shapes.pixels", "inputs": [image], "outputs": outputs}
    found = KServeClient(served).infer("shapes.pixels", request, PIXELS.tobytes())
    assert found["probabilities"] == classifier.predict(PIXELS).probs.tobytes()


def run_curl(*arguments: str, data: bytes = b"") -> bytes:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return subprocess.run(["curl", "-sS", *arguments], input=data, capture_output=True, check=True, timeout=60).stdout


def test_33_curl_json(served: Served, classifier: headstart.Classifier) -> None:
    data = [base64.b64encode(FILES[0]).decode()]
    body = json.dumps({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}]}).encode()
    found = json.loads(run_curl("--data-binary", "@-", f"{served.url}{INFER}", data=body))
    assert found["outputs"][0]["data"] == classifier.predict(FILES[0]).probs.tolist()


def test_34_curl_raw(served: Served, classifier: headstart.Classifier) -> None:
    found = run_curl("-i", "--data-binary", "@-", "-H", f"{LENGTH}: 0", f"{served.url}{INFER}", data=FILES[0])
    head, body = found.split(b"\r\n\r\n", 1)
    length = int(re.search(rb"(?i)inference-header-content-length: (\d+)", head)[1])  # type: ignore[index]
    assert body[length : length + 12] == classifier.predict(FILES[0]).probs.tobytes()


# Agreement on 20 pictures


def test_35_json_agrees_bit_for_bit(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    inputs = [make_input(FILES[:20], is_binary=False)]
    same(client.infer("shapes", inputs, outputs=ask(*ALL, is_binary=False)), expect(classifier, FILES[:20]))


def test_36_binary_agrees_bit_for_bit(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    same(client.infer("shapes", [make_input(FILES[:20])]), expect(classifier, FILES[:20]))


def test_37_raw_agrees_bit_for_bit(served: Served, classifier: headstart.Classifier) -> None:
    for file, prediction in zip(FILES[:20], expect(classifier, FILES[:20]), strict=True):
        answer = post(served.port, file, {LENGTH: "0"})
        result = tritonclient.http.InferResult.from_response_body(
            answer.body, header_length=int(answer.headers[LENGTH.lower()])
        )
        same(result, [prediction])


def test_38_classes_agree_to_6_digits(client: InferenceServerClient, classifier: headstart.Classifier) -> None:
    outputs = [InferRequestedOutput("probabilities", class_count=3)]
    found = client.infer("shapes", [make_input(FILES[:20])], outputs=outputs).as_numpy("probabilities")
    for row, prediction in zip(found.tolist(), expect(classifier, FILES[:20]), strict=True):
        for text in row:
            value, number, label = text.decode().split(":", 2)
            assert classifier.classes[int(number)] == label
            assert float(value) == pytest.approx(float(prediction.probs[int(number)]), abs=5.1e-7)


# Concurrency and connections


def test_39_32_requests_at_once(served: Served, classifier: headstart.Classifier) -> None:
    with InferenceServerClient(f"{served.host}:{served.port}", concurrency=8) as client:
        waiting = [client.async_infer("shapes", [make_input([file])]) for file in FILES]
        for request, prediction in zip(waiting, expect(classifier, FILES), strict=True):
            same(request.get_result(), [prediction])


def test_40_two_clients(served: Served, classifier: headstart.Classifier) -> None:
    expected = expect(classifier, FILES[:10])
    failures: list[BaseException] = []

    def use(number: int) -> None:
        try:
            with InferenceServerClient(f"{served.host}:{served.port}") as client:
                for index in range(number, 10, 2):
                    same(client.infer("shapes", [make_input([FILES[index]])]), [expected[index]])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_41_100_requests_on_one_connection(served: Served) -> None:
    with contextlib.closing(http.client.HTTPConnection(served.host, served.port, timeout=30)) as connection:
        connection.connect()
        used = connection.sock
        for _ in range(100):
            connection.request("GET", "/v2/models/shapes/ready")
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["ready"]) == (200, True)
            assert connection.sock is used


def test_42_a_refusal_leaves_the_connection_usable(served: Served) -> None:
    with contextlib.closing(http.client.HTTPConnection(served.host, served.port, timeout=30)) as connection:
        connection.connect()
        used = connection.sock
        for body, status in [(b"{}", 400), (make_json(FILES[:1]), 200), (b"[", 400), (make_json(FILES[:1]), 200)]:
            connection.request("POST", INFER, body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
            assert connection.sock is used


def test_43_under_a_path(trained: Trained, classifier: headstart.Classifier) -> None:
    server = Server.build([trained.file], ServeSettings())
    server.models.load()
    app = Starlette(routes=[Mount("/pictures/one", create_app(server))])
    with running(app) as port, InferenceServerClient(f"127.0.0.1:{port}/pictures/one") as client:
        assert client.is_server_ready()
        assert client.get_model_metadata("shapes")["name"] == "shapes"
        same(client.infer("shapes", [make_input(FILES[:2])]), expect(classifier, FILES[:2]))


# Errors that tritonclient can read


def test_44_not_found(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="unknown-model: ") as caught:
        client.infer("other", [make_input(FILES[:1])])
    assert caught.value.status() == "404"
    for ask_for in (client.get_model_config, client.get_inference_statistics, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException, match="unknown-route: ") as caught:
            ask_for(*(["shapes"] if ask_for != client.get_system_shared_memory_status else []))
        assert caught.value.status() == "404"
    for call in (client.get_model_repository_index, client.get_trace_settings, client.get_log_settings):
        with pytest.raises(InferenceServerException, match="unknown-route: "):
            call()


def test_45_bad_request(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="bad-request: the datatype of image is UINT8; expected BYTES"):
        client.infer("shapes", [make_pixels(PIXELS)])
    with pytest.raises(InferenceServerException, match="not-an-image: element 1 of image: ") as caught:
        client.infer("shapes", [make_input([FILES[0], b"hello, this is text"])])
    assert caught.value.status() == "400"
    shared = InferInput("image", [1], "BYTES")
    shared.set_shared_memory("region", 100)
    with pytest.raises(InferenceServerException, match="shared memory is not served"):
        client.infer("shapes", [shared])


def test_46_unavailable(trained: Trained) -> None:
    with serving(trained.file, num_workers=1, queue_size=1, max_pictures=1) as served:
        address = f"{served.host}:{served.port}"
        with InferenceServerClient(address, concurrency=8) as client:
            image = make_input([make_slow_picture()])
            waiting = [client.async_infer("shapes", [image]) for _ in range(8)]
            refused = []
            for request in waiting:
                try:
                    assert request.get_result().as_numpy("label") is not None
                except InferenceServerException as error:
                    refused.append((error.status(), error.message().partition(":")[0]))
            assert 0 < len(refused) < 8
            assert set(refused) == {("503", "overloaded")}
            assert client.infer("shapes", [make_input(FILES[:1])]).as_numpy("label") is not None


def test_all_46_are_here() -> None:
    numbers = [int(name[5:7]) for name in globals() if re.match(r"test_\d\d_", name)]
    assert numbers == list(range(1, 47))


# What is refused. The table of bodies is in test_tensors; here it is that each answers as the protocol says.


def post(port: int, body: bytes, headers: dict[str, str] | None = None, path: str = INFER) -> Answer:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def make_body(files: list[bytes], **more: Any) -> tuple[bytes, int]:
    image = make_input(files)
    text = json.dumps({"inputs": [image._get_tensor()], **more}).encode()
    return text + image._get_binary_data(), len(text)


def make_json(files: list[bytes], **changes: Any) -> bytes:
    return json.dumps({"inputs": [{**make_input(files, is_binary=False)._get_tensor(), **changes}]}).encode()


def check_refusal(answer: Answer, status: int, said: str = "") -> None:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert said in answer.json["error"]
    assert answer.json["error"].startswith(f"{answer.json['code']}: ")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v2/models/other/infer", "unknown-model"),
        ("/v2/models/other.pixels/infer", "unknown-model"),
        ("/v2/models/shapes/versions/2/infer", "unknown-version"),
        ("/v2/models/shapes/versions//infer", "unknown-route"),
        ("/v2/models//infer", "unknown-route"),
        ("/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd/infer", "unknown-"),
        ("/v2/models/../../infer", "unknown-route"),
        ("/v2/models/<b>shapes/infer", "unknown-model"),
        ("/v2/models/shapes/generate", "unknown-route"),
        ("/v2/repository/index", "unknown-route"),
        ("/v2/repository/models/shapes/load", "unknown-route"),
        ("/v2/systemsharedmemory/region/r/register", "unknown-route"),
        ("/v2/trace/setting", "unknown-route"),
        ("/v2/logging", "unknown-route"),
    ],
)
def test_unknown_paths(served: Served, path: str, said: str) -> None:
    answer = post(served.port, make_json(FILES[:1]), path=path)
    check_refusal(answer, 404, said)
    assert b"passwd" not in answer.body
    assert b"<b>" not in answer.body


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, {"POST"}),
        ("PUT", INFER, {"POST"}),
        ("DELETE", "/v2/models/shapes", {"GET", "HEAD"}),
        ("POST", "/v2/health/live", {"GET", "HEAD"}),
        ("POST", "/v2", {"GET", "HEAD"}),
        ("POST", "/v2/models/shapes/versions/1/ready", {"GET", "HEAD"}),
    ],
)
def test_wrong_methods(served: Served, method: str, path: str, allowed: set[str]) -> None:
    answer = served.send(method, path)
    check_refusal(answer, 405, "wrong-method")
    assert set(answer.headers["allow"].split(", ")) == allowed


def claim_size(png: bytes, side_px: int) -> bytes:
    """The file with another size in its header."""
    header = b"IHDR" + side_px.to_bytes(4) * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4) + png[33:]


BODIES: dict[str, tuple[bytes, dict[str, str], str]] = {
    "empty": (b"", {}, "the body is empty"),
    "empty and raw": (b"", {LENGTH: "0"}, "the body is empty"),
    "not JSON": (b"<html>", {}, "the JSON is damaged"),
    "a picture without the header": (FILES[0], {}, "the JSON is not UTF-8"),
    "not an object": (b"[]", {}, "expected an object"),
    "no inputs": (b"{}", {}, "inputs is missing"),
    "no input": (b'{"inputs": []}', {}, "inputs is missing"),
    "inputs not a list": (b'{"inputs": 7}', {}, "inputs is a number"),
    "more after the JSON": (make_json(FILES[:1]) + FILES[0][:4], {}, "the JSON is not UTF-8"),
    "double keys": (b'{"inputs": [], "inputs": []}', {}, "the key inputs twice"),
    "nested": (b"[" * 101 + b"]" * 101, {}, "nested deeper than 100"),
    "nested without end": (b"[" * 250_000, {}, "nested deeper than 100"),
    "unknown input": (make_json(FILES[:1], name="picture"), {}, "no input picture"),
    "unknown datatype": (make_json(FILES[:1], datatype="STRING"), {}, "the datatype of image"),
    "negative shape": (make_json(FILES[:1], shape=[-1]), {}, "the shape of image"),
    "shape of fractions": (make_json(FILES[:1], shape=[1.5]), {}, "whole numbers"),
    "shape of booleans": (make_json(FILES[:1], shape=[True]), {}, "whole numbers"),
    "overflowing count": (make_json(FILES[:1], shape=[2**62]), {}, "the maximum is 32"),
    "overflowing shape": (make_json(FILES[:1], shape=[2, 2, 2, 2, 2**60 + 2]), {}, "the shape of image"),
    "fewer than the shape": (make_json(FILES[:1], shape=[2]), {}, "1 values; its shape needs 2"),
    "more than the shape": (make_json(FILES[:3], shape=[2]), {}, "3 values; its shape needs 2"),
    "nested unevenly": (make_json(FILES[:1], shape=[2], data=["", [""]]), {}, "element 1 of image is a list"),
    "null": (make_json(FILES[:1], data=[None]), {}, "is null; expected base64"),
    "NaN": (make_json(FILES[:1], data=[float("nan")]), {}, "holds NaN"),
    "not base64": (make_json(FILES[:1], data=["&&&&"]), {}, "is not base64"),
    "both data and binary": (make_json(FILES[:1], parameters={"binary_data_size": 0}), {}, "both data and"),
    "neither": (make_json(FILES[:1], data=None), {}, "neither data nor"),
    "too many": (make_json(FILES + FILES[:1]), {}, "has 33 elements; the maximum is 32"),
    "header too long": (make_json(FILES[:1]), {LENGTH: "99999999999"}, f"{LENGTH} is 99999999999"),
    "header negative": (make_json(FILES[:1]), {LENGTH: "-1"}, f"{LENGTH} is -1"),
    "header no number": (make_json(FILES[:1]), {LENGTH: "abc"}, f"{LENGTH} is abc"),
    "header one too long": (make_json(FILES[:1]), {LENGTH: str(len(make_json(FILES[:1])) + 1)}, f"{LENGTH} is"),
    "header in the middle": (make_json(FILES[:1]), {LENGTH: "20"}, "the JSON is damaged"),
    "binary without the header": (make_body(FILES[:1])[0], {}, "the JSON is not UTF-8"),
    "binary cut short": (make_body(FILES[:1])[0][:-1], {LENGTH: str(make_body(FILES[:1])[1])}, "bytes follow the JSON"),
    "binary too long": (make_body(FILES[:1])[0] + b"x", {LENGTH: str(make_body(FILES[:1])[1])}, "bytes follow the JSON"),
    "text": (make_json([b"hello, this is text"]), {}, "not-an-image: element 0"),
    "no picture": (make_json([b""]), {}, "empty: element 0"),
    "SVG": (make_json([b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"]), {}, "unsupported-format: element 0"),
    "HEIC, raw": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), {LENGTH: "0"}, "unsupported-format: element 0"),
    "cut picture": (make_json([FILES[0], FILES[1][:-200]]), {}, "truncated: element 1"),
    "damaged picture": (make_json([FILES[0][:60] + b"\xff" * 40 + FILES[0][100:]]), {}, "damaged: element 0"),
    "pixels over the limit": (make_json([claim_size(FILES[0], 65_500)]), {}, "too-many-pixels: element 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_bad_bodies(served: Served, case: str) -> None:
    body, headers, said = BODIES[case]
    check_refusal(post(served.port, body, headers), 400, said)


def test_two_headers_for_the_length_of_the_json(served: Served) -> None:
    body, length = make_body(FILES[:1])
    for values in ([length, length], [0, length]):
        lines = "".join(f"{LENGTH}: {value}\r\n" for value in values)
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        check_refusal(send_raw(served, head.encode() + body), 400, "is given 2 times")


def test_pixels_that_are_refused(served: Served) -> None:
    path = "/v2/models/shapes.pixels/infer"
    check_refusal(post(served.port, PIXELS.tobytes(), {LENGTH: "0"}, path), 400, "more than one -1")
    about = {"name": "image", "datatype": "UINT8", "data": [0, 1, 256]}
    for changes, said in [
        ({"shape": [1, 1, 3]}, "out of the range of UINT8"),
        ({"shape": [1, 1, 4]}, "the shape of image"),
        ({"shape": [1, 1, 1, 3]}, "the shape of image"),
        ({"shape": [2**60, 2**60, 3]}, "3 values; its shape needs"),
        ({"shape": [1, 1, 3], "data": [0, 1, 2.5]}, "a number with a fraction"),
    ]:
        body = json.dumps({"inputs": [{**about, **changes}]}).encode()
        check_refusal(post(served.port, body, path=path), 400, said)
    long = np.zeros((1, 40_000, 3), np.uint8)
    image = make_pixels(long)
    text = json.dumps({"inputs": [image._get_tensor()]}).encode()
    answer = post(served.port, text + image._get_binary_data(), {LENGTH: str(len(text))}, path)
    check_refusal(answer, 400, "too-many-pixels: image is 40000 x 1")


def test_packed_bodies_that_are_refused(served: Served) -> None:
    body, length = make_body(FILES[:1])
    for packed in (body, gzip.compress(body)[:-20], gzip.compress(body)[:30], b""):
        check_refusal(post(served.port, packed, {LENGTH: str(length), "Content-Encoding": "gzip"}), 400)
    check_refusal(post(served.port, b"\1\2\3", {"Content-Encoding": "deflate"}), 400)
    bomb = gzip.compress(bytes(served.server.settings.max_body_bytes + 1))
    assert len(bomb) < 100_000
    check_refusal(post(served.port, bomb, {LENGTH: "0", "Content-Encoding": "gzip"}), 413, "too-large")
    check_refusal(post(served.port, body, {LENGTH: str(length), "Content-Encoding": "br"}), 415)


def send_raw(served: Served, data: bytes) -> Answer:
    """What comes back for these bytes; `connection` in its headers is `closed` where the server closed it."""
    with socket.create_connection((served.host, served.port), 10) as connection:
        with contextlib.suppress(OSError):  # the server may have had enough before all is sent
            connection.sendall(data)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        connection.settimeout(2)
        try:
            while connection.recv(1000):
                pass
            headers["connection"] = "closed"
        except ConnectionResetError:
            headers["connection"] = "closed"
        except TimeoutError:
            pass
        return Answer(answer.status, headers, body)


HOST = b"Host: localhost\r\n"
WIRE: dict[str, tuple[bytes, set[int]]] = {
    "length and chunks": (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
    "chunks and length": (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", {400}),
    "two lengths": (b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", {400}),
    "length no number": (b"Content-Length: abc\r\n\r\nabc", {400}),
    "length negative": (b"Content-Length: -3\r\n\r\nabc", {400}),
    "bare line feeds": (b"Content-Length: 3\n\nabc", {400}),
    "bad end of a chunk": (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n", {400}),
    "bad size of a chunk": (b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n", {400}),
    "70,000 chunks": (b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n[\r\n" * 70_000 + b"0\r\n\r\n", {400, 413}),
    "a head of 70 kB": (b"X-More: " + b"a" * 70_000 + b"\r\n\r\n", {431}),
    "101 headers": (b"".join(b"X-%d: 1\r\n" % number for number in range(101)) + b"\r\n", {431}),
}


@pytest.mark.parametrize("case", WIRE)
def test_what_is_wrong_on_the_wire(served: Served, case: str) -> None:
    rest, statuses = WIRE[case]
    answer = send_raw(served, f"POST {INFER} HTTP/1.1\r\n".encode() + HOST + rest)
    check_refusal(answer, answer.status)
    assert answer.status in statuses
    assert answer.headers["connection"] == "closed"


def test_a_url_over_8_kb(served: Served) -> None:
    answer = send_raw(served, b"GET /v2/" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    check_refusal(answer, 414)
    assert answer.headers["connection"] == "closed"


def test_a_queue_that_is_full_says_when_to_come_again(trained: Trained) -> None:
    with serving(trained.file, num_workers=1, queue_size=1, max_pictures=1) as served:
        answers: list[Answer] = []
        body = make_json([make_slow_picture()])
        threads = [threading.Thread(target=lambda: answers.append(post(served.port, body))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        refused = [answer for answer in answers if answer.status != 200]
        assert len(answers) == 8
        assert 0 < len(refused) < 8
        for answer in refused:
            check_refusal(answer, 503, "overloaded")
            assert int(answer.headers["retry-after"]) > 0


def test_a_server_that_stops_says_so(trained: Trained) -> None:
    with serving(trained.file) as served:
        served.server.is_draining = True
        for path in (INFER, "/v2/health/ready"):
            answer = post(served.port, make_json(FILES[:1]), path=path)
            check_refusal(answer, 503, "stopping")
            assert answer.headers["connection"].lower() == "close"


def test_the_examples_of_the_documents_run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "inference-protocol.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name, file in zip(("cat.jpg", "dog.jpg"), FILES[1::2], strict=False):
        Path(name).write_bytes(file)
    with serving(f"pets={trained.file}") as served:
        page = page.replace("127.0.0.1:8000", f"{served.host}:{served.port}")
        names: dict[str, Any] = {}
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(block, "inference-protocol.md", "exec"), names)  # our own text, run as a reader would
        names["client"].close()
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        script = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
        done = subprocess.run(["sh", "-e"], input=script, capture_output=True, text=True, check=True, timeout=60)
    expected = headstart.load(trained.file).predict([FILES[1], FILES[3]])
    printed = capsys.readouterr().out
    assert str(list(expected[0].classes)) in printed
    assert all(str(prediction.probs) in printed.replace("[[", "[").replace("]]", "]") for prediction in expected)
    metadata, answer = done.stdout.replace("}{", "}\n{").splitlines()
    assert json.loads(metadata)["name"] == "pets"
    label, best = json.loads(answer)["outputs"]
    assert label["data"] == [expected[0].label]
    assert [text.split(":", 2)[2] for text in best["data"]] == [name for name, _ in expected[0].get_top(3)]
    assert expected[0].probs.tobytes() in (tmp_path / "answer.bin").read_bytes()
