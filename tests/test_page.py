"""What the page asks the server for: its files, heat maps, nearest training pictures."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import draw_picture, run_python, write_shapes
from PIL import Image

import headstart
from headstart.errors import ConfigError, DataError
from headstart.prediction import Classifier

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from serving import Served, serving

from headstart.serve.app import Server
from headstart.serve.models import ServedModel
from headstart.serve.neighbours import Neighbours, open_neighbours
from headstart.serve.page import PageState, has_heat_maps
from headstart.serve.settings import ServeSettings


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = encode(draw_picture("circles", 60))


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Served]:
    with serving(trained.file, max_pixels=100_000) as served:
        yield served


@pytest.fixture
def near(classifier: headstart.Classifier, trained: Trained, warm_cache: Path) -> Neighbours:
    return open_neighbours(classifier, trained.shapes)


def test_the_files_of_the_page(served: Served) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        answer = served.send("GET", path)
        assert answer.status == 200
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "microphone=()" in answer.headers["permissions-policy"]
        again = served.send("GET", path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
        assert b"http://" not in answer.body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in answer.body
    assert served.send("POST", "/").status == 405


def test_what_the_page_is_told(served: Served, classifier: headstart.Classifier) -> None:
    answer = served.send("GET", "/page.json")
    assert answer.json == {
        "models": [
            {"name": "shapes", "labels": list(classifier.classes), "heat_maps": True, "num_training_pictures": 0}
        ],
        "limits": {"body_bytes": 20 * 2**20, "pixels": 100_000},
    }
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/heat-map", "/heat-map/shapes"])
def test_heat_maps_are_those_of_the_library(served: Served, classifier: headstart.Classifier, path: str) -> None:
    expected = headstart.explain(classifier, PICTURE)
    answer = served.send("POST", path, PICTURE)
    assert answer.json["class"] == expected.label
    assert answer.json["model"] == "shapes"
    assert answer.json["version"] == "1"
    np.testing.assert_allclose(answer.json["values"], expected.smoothed, atol=1e-5)
    np.testing.assert_allclose(answer.json["box"], expected.box, atol=1e-5)
    other = served.send("POST", f"{path}?class=stripes", PICTURE).json
    assert other["class"] == "stripes"
    np.testing.assert_allclose(other["values"], headstart.explain(classifier, PICTURE, "stripes").smoothed, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/heat-map?class=fish", PICTURE, 400, "unknown-class"),
        ("/heat-map/fish", PICTURE, 404, "unknown-model"),
        ("/heat-map", b"", 400, "empty"),
        ("/heat-map", b"no picture", 415, "not-an-image"),
        ("/heat-map", PICTURE[:-40], 422, "truncated"),
        ("/heat-map", encode(np.zeros((400, 400, 3), np.uint8)), 413, "too-many-pixels"),
        ("/neighbours", PICTURE, 404, "no-training-pictures"),
        ("/neighbours?count=0", PICTURE, 400, "bad-query"),
        ("/neighbours?count=21", PICTURE, 400, "bad-query"),
        ("/neighbours?count=²", PICTURE, 400, "bad-query"),
    ],
)
def test_what_is_refused(served: Served, path: str, body: bytes, status: int, code: str) -> None:
    answer = served.send("POST", path.replace("²", "%C2%B2"), body)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.json["error"].startswith(f"{code}: ")


def test_an_explainer_is_made_once_and_again_for_a_replaced_file(classifier: headstart.Classifier) -> None:
    state = PageState()
    model, replaced = (ServedModel("shapes", version, classifier, Path("shapes.onnx")) for version in "12")
    first = state.open_explainer(model)
    assert state.open_explainer(model) is first
    second = state.open_explainer(replaced)
    assert second is not first
    assert state.open_explainer(replaced) is second


def test_a_picture_is_nearest_to_itself(near: Neighbours, trained: Trained) -> None:
    assert 0 < len(near) < trained.num_forward  # the others are the test part
    assert near.rows.dtype == np.float16
    file = Path(near.records[-1].path)
    found = near.find(file.read_bytes(), 4)
    assert found[0].label == file.parent.name
    assert found[0].name == file.name
    assert found[0].similarity == pytest.approx(1, abs=1e-3)
    similarities = [each.similarity for each in found]
    assert similarities == sorted(similarities, reverse=True)
    shown = Image.open(io.BytesIO(found[0].thumbnail.data))
    np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), draw_picture(file.parent.name, int(file.stem)))


def test_nearest_over_http(served: Served, near: Neighbours) -> None:
    served.server.page.neighbours["shapes"] = near
    try:
        assert served.send("GET", "/page.json").json["models"][0]["num_training_pictures"] == len(near)
        found = served.send("POST", "/neighbours/shapes?count=2", PICTURE).json["neighbours"]
        expected = near.find(PICTURE, 2)
        assert [each["label"] for each in found] == [each.label for each in expected]
        assert [each["name"] for each in found] == [each.name for each in expected]
        start, _, code = found[0]["thumbnail"].partition(",")
        assert start == "data:image/webp;base64"
        assert base64.b64decode(code) == expected[0].thumbnail.data
        assert len(served.send("POST", "/neighbours", PICTURE).json["neighbours"]) == 5
        assert served.send("POST", "/neighbours", b"x").status == 415
    finally:
        served.server.page.neighbours.clear()


def test_a_server_that_keeps_training_pictures(trained: Trained, warm_cache: Path, tmp_path: Path) -> None:
    server = Server.build([trained.file, f"other={trained.file}"], ServeSettings(), training_pictures=trained.shapes)
    server.open_files()
    assert set(server.page.neighbours) == {"shapes", "other"}
    server = Server.build([trained.file], ServeSettings(), training_pictures=write_shapes(tmp_path, 2, ("checks",)))
    with pytest.raises(DataError, match="shapes: "):
        server.open_files()


def test_a_training_picture_that_is_gone_is_said(
    classifier: headstart.Classifier, trained: Trained, warm_cache: Path, tmp_path: Path
) -> None:
    shapes = shutil.copytree(trained.shapes, tmp_path / "shapes")
    near = open_neighbours(classifier, shapes)
    file = Path(near.records[0].path)
    data = file.read_bytes()
    file.unlink()
    (gone,) = near.find(data, 1)
    assert gone.thumbnail.data == b""
    assert gone.thumbnail.problem
    file.write_bytes(PICTURE)
    assert near.find(data, 1)[0].thumbnail.problem == "the file has changed since"


def test_other_classes_and_other_networks_do_not_fit(
    near: Neighbours, classifier: headstart.Classifier, tmp_path: Path
) -> None:
    assert near.fits(classifier)
    state = PageState({"shapes": near})
    model = ServedModel("shapes", "1", classifier, Path("shapes.onnx"))
    assert state.find_neighbours(model) is near
    others = headstart.train(write_shapes(tmp_path / "two", 6, ("checks", "stripes")), layers="top", penalty=0.1)
    assert state.find_neighbours(ServedModel("shapes", "2", others, Path("shapes.onnx"))) is None
    with pytest.raises(DataError, match="no class 'circles'"):
        open_neighbours(others, write_shapes(tmp_path / "three", 6))


def test_a_file_that_does_not_tell_its_training(classifier: headstart.Classifier, trained: Trained) -> None:
    foreign = Classifier(replace(classifier.metadata, settings={}), classifier.data)
    with pytest.raises(ConfigError, match="does not say how it was trained"):
        open_neighbours(foreign, trained.shapes)


def test_a_file_without_layers_has_no_heat_maps(classifier: headstart.Classifier) -> None:
    foreign = Classifier(replace(classifier.metadata, head={}), classifier.data)
    assert has_heat_maps(ServedModel("shapes", "1", classifier, Path("shapes.onnx")))
    assert not has_heat_maps(ServedModel("shapes", "1", foreign, Path("shapes.onnx")))


def test_what_the_page_needs_is_light(trained: Trained, warm_cache: Path, tmp_path: Path) -> None:
    code = """
import sys, headstart
from headstart.serve.neighbours import open_neighbours
from headstart.serve.page import routes
near = open_neighbours(headstart.load(sys.argv[1]), sys.argv[2])
print(len(near), *sorted({"torch", "sklearn", "scipy", "matplotlib", "pandas"} & set(sys.modules)))
"""
    done = run_python("-c", code, str(trained.file), str(trained.shapes), cwd=tmp_path, HEADSTART_CACHE=str(warm_cache))
    assert done.stdout.strip().isdecimal(), done.stdout + done.stderr
