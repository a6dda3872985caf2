"""200 photographs through tritonclient give the values of `headstart predict`, however they are sent."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import run_command

import headstart
from headstart.decode import decode_image

pytest.importorskip("tritonclient.http")
pytest.importorskip("uvicorn")

from serving import serving
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

NUM_PICTURES, BATCH = 200, 20

Ask = Callable[[str, np.ndarray, bool], InferResult]


@pytest.fixture(scope="module")
def ask(trained: Trained) -> Iterator[Ask]:
    """Send a tensor to the model, all of it binary or all of it JSON."""
    with serving(trained.file) as served, InferenceServerClient(f"{served.host}:{served.port}") as client:

        def ask(model: str, tensor: np.ndarray, is_binary: bool) -> InferResult:
            image = InferInput("image", list(tensor.shape), "BYTES" if tensor.dtype == object else "UINT8")
            image.set_data_from_numpy(tensor, binary_data=is_binary)
            outputs = [InferRequestedOutput(name, binary_data=is_binary) for name in ("probabilities", "label")]
            return client.infer(model, [image], outputs=outputs)

        yield ask


def choose_paths(cats_dogs: Path) -> list[Path]:
    paths = sorted((cats_dogs / "validation").rglob("*.jpg"))
    return paths[:: len(paths) // NUM_PICTURES][:NUM_PICTURES]


def test_files_give_what_the_command_says(cats_dogs: Path, trained: Trained, ask: Ask) -> None:
    paths = choose_paths(cats_dogs)
    done = run_command("predict", trained.file, *paths, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    columns = [name for name in rows[0] if name.startswith("probability_")]
    expected = np.array([[np.float32(row[name]) for name in columns] for row in rows])  # written so that they come back
    for is_binary in (True, False):
        for start in range(0, NUM_PICTURES, BATCH):
            files = [path.read_bytes() for path in paths[start : start + BATCH]]
            elements = files if is_binary else [base64.b64encode(file) for file in files]
            result = ask("shapes", np.array(elements, object), is_binary)
            assert result.as_numpy("probabilities").tobytes() == expected[start : start + BATCH].tobytes()
            labels = [row["predicted"] for row in rows[start : start + BATCH]]
            assert result.as_numpy("label").astype(str).tolist() == labels


@pytest.mark.parametrize("is_binary", [True, False])
def test_pixels_give_what_the_library_says(
    cats_dogs: Path, classifier: headstart.Classifier, ask: Ask, is_binary: bool
) -> None:
    for path in choose_paths(cats_dogs):
        pixels = decode_image(path.read_bytes()).pixels
        if not is_binary:  # half a million numbers as text take the client a tenth of a second
            pixels = np.ascontiguousarray(pixels[::6, ::6])
        result = ask("shapes.pixels", pixels, is_binary)
        prediction = classifier.predict(pixels)
        assert result.as_numpy("probabilities").tobytes() == prediction.probs.tobytes()
        assert result.as_numpy("label").astype(str).tolist() == [prediction.label]
