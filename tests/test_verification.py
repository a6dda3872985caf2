"""The comparison with plain ONNX Runtime."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import Trained
from drawn_pictures import draw_picture
from PIL import Image
from tiny_models import TINY_FAMILIARITY, add_tiny_familiarity, make_tiny_classifier, make_tiny_metadata

import headstart
from headstart.artifact import save_artifact


def test_small_pictures_agree(trained: Trained) -> None:
    pictures = sorted(map(str, trained.shapes.rglob("*.png")))
    told: list[tuple[int, int]] = []
    agreement = headstart.verify_classifier(trained.file, pictures, on_progress=lambda *step: told.append(step))
    assert (agreement.num_images, agreement.num_same_class, agreement.left_out) == (36, 36, ())
    assert agreement.worst_difference < 1e-5
    assert agreement.worst_path in pictures
    assert told == [(done, 36) for done in range(1, 37)]


def test_a_reduced_scale_is_measured_against_full_scale_apart(trained: Trained, tmp_path: Path) -> None:
    """A large JPEG is read at a reduced scale by headstart only; the difference is computed here a second time."""
    small = str(trained.shapes / "checks" / "00.png")
    large = tmp_path / "large.jpg"
    rng = np.random.default_rng(0)
    pixels = np.kron(draw_picture("circles", 20), np.ones((24, 24, 1), np.uint8)).astype(np.int64)
    Image.fromarray((pixels + rng.integers(-60, 61, pixels.shape)).clip(0, 255).astype(np.uint8)).save(large)
    agreement = headstart.verify_classifier(trained.file, [small, str(large)])
    session = onnxruntime.InferenceSession(str(trained.file), providers=["CPUExecutionProvider"])
    (bare,) = session.run(["probabilities"], {"image": np.asarray(Image.open(large))})
    ours = headstart.load(trained.file).predict(large).probs
    assert agreement.num_reduced == 1
    assert agreement.worst_reduced == pytest.approx(np.abs(bare - ours).max(), abs=1e-6)
    assert 1e-5 < agreement.worst_reduced < 0.05
    assert agreement.worst_difference < 1e-5  # on the same pixels


def test_the_familiarity_is_compared_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_classifier(("cat", "dog"))
    add_tiny_familiarity(model)
    metadata = dataclasses.replace(make_tiny_metadata(("cat", "dog")), familiarity=TINY_FAMILIARITY)
    save_artifact(tmp_path / "both.onnx", model, metadata)
    Image.fromarray(draw_picture("circles", 20)).save(tmp_path / "a.png")
    pictures = [str(tmp_path / "a.png")]
    assert headstart.verify_classifier(tmp_path / "both.onnx", pictures).worst_difference < 1e-6
    honest = headstart.Classifier.run_all

    def run_all(classifier: headstart.Classifier, pixels: np.ndarray) -> tuple[np.ndarray, float | None]:
        probs, familiarity = honest(classifier, pixels)
        assert familiarity is not None
        return probs, familiarity - 0.125

    monkeypatch.setattr(headstart.Classifier, "run_all", run_all)
    found = headstart.verify_classifier(tmp_path / "both.onnx", pictures)
    assert found.worst_difference == pytest.approx(0.125, abs=1e-6)


def test_pictures_that_cannot_be_decoded_are_left_out(trained: Trained, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    agreement = headstart.verify_classifier(trained.file, [str(text), str(trained.shapes / "checks" / "00.png")])
    assert agreement.num_images == 1
    assert [(error.code, error.path) for error in agreement.left_out] == [("not-an-image", str(text))]


def test_paths_that_are_not_utf_8(trained: Trained, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("file names are text here")
    odd = os.fsencode(tmp_path) + b"/m\xff[red]\n.onnx"
    shutil.copy(os.fsencode(trained.file), odd)
    picture = os.fsencode(tmp_path) + b"/p\xff.png"
    shutil.copy(os.fsencode(trained.shapes / "checks" / "00.png"), picture)
    agreement = headstart.verify_classifier(os.fsdecode(odd), [os.fsdecode(picture)])
    assert (agreement.num_images, agreement.num_same_class) == (1, 1)


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(headstart.ArtifactError, match="There is no such file"):
        headstart.verify_classifier(tmp_path / "none.onnx", [])
