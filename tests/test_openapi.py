"""The OpenAPI document against the real server, and its page."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Trained
from drawn_pictures import draw_picture, write_picture
from PIL import Image
from serving import Served, serving
from tiny_models import make_tiny_classifier, make_tiny_metadata

import headstart
from headstart.artifact import save_artifact
from headstart.serve.api_page import render_docs
from headstart.serve.app import ROUTES
from headstart.serve.neighbours import open_neighbours
from headstart.serve.openapi import build_document
from headstart.serve.openapi_parts import show_models

KEY = "a-key-for-tests"
NUM_EXAMPLES = int(os.environ.get("HEADSTART_TEST_EXAMPLES", "3"))  # of each call; 250 make over 5,000 requests
MARKUP = ("<img src=x onerror=alert(1)>", "</style><script>alert(1)</script>", "cat & \"dog\" 'd'")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    save_artifact(path, make_tiny_classifier(MARKUP), make_tiny_metadata(MARKUP))
    return path


@pytest.fixture(scope="module")
def served(tiny: Path) -> Iterator[Served]:
    with serving(tiny, f"pets-2={tiny}", max_pictures=3, max_body_bytes=123_456, max_pixels=2_000_000) as server:
        yield server


@pytest.fixture(scope="module")
def running_shapes(trained: Trained) -> Iterator[Served]:
    with serving(trained.file) as server:
        yield server


def run_schemathesis(url: str, folder: Path, *arguments: str) -> str:
    """Its summary; fails where it found anything."""
    # A body or list that is too large is refused with 413, which schemathesis does not count as a refusal by itself.
    config = folder / "schemathesis.toml"
    statuses = ["400", "401", "404", "405", "413", "415", "422"]
    config.write_text(f"[checks.negative_data_rejection]\nexpected-statuses = {statuses}\n")
    tests = Path(__file__).parent
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", f"{url}/openapi.json"),
            *("--checks", "all", "--generation-deterministic", "--no-shrink", "--no-color", "--continue-on-failure"),
            *arguments,
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(tests)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60 + 60 * NUM_EXAMPLES,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def count_cases(summary: str) -> int:
    found = re.search(r"(\d+) generated, (\d+) passed", summary)
    assert found, summary
    assert found[1] == found[2], summary
    return int(found[1])


def test_every_call_is_as_the_document_says(
    trained: Trained, classifier: headstart.Classifier, warm_cache: Path, tmp_path: Path
) -> None:
    pytest.importorskip("schemathesis")
    with serving(trained.file, f"again={trained.file}") as served:
        served.server.page.neighbours["shapes"] = open_neighbours(classifier, trained.shapes)
        summary = run_schemathesis(served.url, tmp_path, "--max-examples", str(NUM_EXAMPLES))
    print(summary[-500:])
    assert count_cases(summary) > (5_000 if NUM_EXAMPLES >= 250 else 500)


def test_calls_without_the_key_are_refused_as_the_document_says(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    with serving(tiny, api_keys=(KEY,)) as served:
        arguments = ["--max-examples", "1", "--header", f"Authorization: Bearer {KEY}"]
        only = ["--include-path-regex", "^/(models|predict|metrics|docs|v2/models/{model})$"]
        summary = run_schemathesis(served.url, tmp_path, *arguments, *only)
    assert count_cases(summary) > 50


def test_the_document_has_every_route_and_no_other(served: Served) -> None:
    document = served.send("GET", "/openapi.json").json
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    routed = {(route.path, method) for route in ROUTES for method in (route.methods or ()) if method != "HEAD"}
    assert described == routed


def test_operations_have_different_ids_and_every_reference_leads_somewhere(served: Served) -> None:
    document = served.send("GET", "/openapi.json").json
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    references = set(find_references(document))
    assert len(references) > 20
    for reference in references:
        _, kind, name = reference.removeprefix("#/").split("/")
        assert name in document["components"][kind], reference
    for kind, components in document["components"].items():
        for name in components:
            assert kind == "securitySchemes" or f"#/components/{kind}/{name}" in references, f"{name} is not used"


def find_references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from find_references(value)
    elif isinstance(node, list):
        for value in node:
            yield from find_references(value)


def test_the_document_holds_limits_names_and_labels(served: Served) -> None:
    answer = served.send("GET", "/openapi.json", headers={"Host": "localhost:81"})
    assert answer.headers["content-type"] == "application/json"
    document = answer.json
    schemas = document["components"]["schemas"]
    assert schemas["ModelName"]["enum"] == ["tiny", "pets-2"]
    assert schemas["Label"]["enum"] == sorted(MARKUP)
    assert schemas["PicturesAsJson"]["properties"]["pictures"]["maxItems"] == 3
    assert "123,456 bytes" in document["paths"]["/predict"]["post"]["description"]
    assert "2 megapixels" in document["components"]["responses"]["413"]["description"]
    assert document["servers"] == [{"url": "http://localhost:81"}]
    assert "http://localhost:81/predict" in document["paths"]["/predict"]["post"]["x-codeSamples"][0]["source"]


@pytest.mark.parametrize("host", ["localhost:81;touch$IFS/x", "localhost'", "127.0.0.1:80<b>"])
def test_an_odd_host_does_not_get_into_the_commands(served: Served, host: str) -> None:
    for path in ("/openapi.json", "/docs"):
        answer = served.send("GET", path, headers={"Host": host})
        assert answer.status == 400 or host.encode() not in answer.body


def test_with_keys_the_open_document_tells_no_names_and_labels(tiny: Path) -> None:
    with serving(f"secret-name={tiny}", api_keys=(KEY,)) as served:
        for path in ("/openapi.json", "/docs"):
            answer = served.send("GET", path)
            assert answer.status == 200
            assert b"secret-name" not in answer.body
            assert b"onerror" not in answer.body
        document = served.send("GET", "/openapi.json").json
    assert document["security"] == [{"Bearer": []}, {"Header": []}]
    assert document["paths"]["/docs"]["get"]["security"] == []
    assert "401" in document["paths"]["/predict"]["post"]["responses"]
    assert "401" not in document["paths"]["/docs"]["get"]["responses"]


class Elements(html.parser.HTMLParser):
    """The elements of a page, its text, and what must be closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_labels_as_text_and_loads_nothing(served: Served) -> None:
    answer = served.send("GET", "/docs")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    elements = Elements(answer.body.decode())
    tags = {tag for tag, _ in elements.found}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "form", "object"})
    attributes = [(name, value or "") for _, attrs in elements.found for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("style", "src")]
    ids = [value for name, value in attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    for link in (value for name, value in attributes if name == "href"):
        assert link in (".", "openapi.json") or link.removeprefix("#") in ids, link
    for label in MARKUP:
        assert label in "".join(elements.text)


def test_the_pages_policy_allows_its_style_and_nothing_else(served: Served) -> None:
    answer = served.send("GET", "/docs")
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    (style,) = re.findall(r"<style>(.*?)</style>", answer.body.decode(), re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert "url(" not in style


def test_the_page_is_made_for_many_labels(served: Served) -> None:
    document = build_document(show_models(served.server), served.server.settings, "http://localhost:1")
    document["components"]["schemas"]["Label"]["enum"] = [f"class {number}" for number in range(1000)]
    page, _ = render_docs(document)
    assert "class 29 and 970 more" in page
    assert "class 30" not in page


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="there is no curl and bash")
@pytest.mark.parametrize(
    "operation_id",
    ["predict", "predictWith", "explain", "listModels", "protocolModel", "protocolInfer", "protocolInferVersion"],
)
def test_the_examples_work_in_a_shell(running_shapes: Served, tmp_path: Path, operation_id: str) -> None:
    write_picture(tmp_path / "dog.png", "circles", 1)
    Image.fromarray(draw_picture("checks", 1)).save(tmp_path / "cat.jpg")
    document = running_shapes.send("GET", "/openapi.json").json
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    (operation,) = (each for each in operations if each["operationId"] == operation_id)
    for sample in operation["x-codeSamples"]:
        command = re.sub(r"\bcurl ", "curl --silent --show-error --fail --output answer ", sample["source"])
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "answer").stat().st_size > 20
