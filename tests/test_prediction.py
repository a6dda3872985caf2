"""A classifier file in use: every way to hand over a picture, and what is said of those that cannot be used."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import SHAPES, draw_picture, write_picture, write_shapes
from PIL import Image
from tiny_models import TINY_FAMILIARITY, add_tiny_familiarity, make_tiny_classifier, make_tiny_metadata

import headstart
from headstart import ImageError
from headstart.artifact import build_artifact, parse_artifact
from headstart.predictions_output import Doubts, Layout, write_rows


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One picture of each class, none of them trained on."""
    return [write_picture(tmp_path / f"{shape}.png", shape, 20) for shape in SHAPES]


def encode(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


# Ways to hand over a picture


def test_every_kind_of_source_gives_the_same(classifier: headstart.Classifier, files: list[Path]) -> None:
    pixels = draw_picture("circles", 20)
    path = files[1]
    expected = classifier.predict(path)
    assert expected.label == "circles"
    assert expected.probability > 0.8
    for source in (str(path), path.read_bytes(), pixels, Image.open(path), Image.fromarray(pixels)):
        prediction = classifier.predict(source)
        assert np.array_equal(prediction.probs, expected.probs), type(source)
    assert expected.name == str(path)
    assert classifier.predict(pixels).name == "picture 0"


def test_arrays_of_every_shape(classifier: headstart.Classifier) -> None:
    pixels = draw_picture("stripes", 20)
    grey = pixels[:, :, 0]
    expected = classifier.predict(np.stack([grey] * 3, axis=2)).probs
    assert np.array_equal(classifier.predict(grey).probs, expected)
    assert np.array_equal(classifier.predict(grey[:, :, None]).probs, expected)
    assert np.array_equal(classifier.predict(grey.astype(np.uint16) * 257).probs, expected)
    opaque = np.concatenate([pixels, np.full((*grey.shape, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(classifier.predict(opaque).probs, classifier.predict(pixels).probs)
    hidden = opaque.copy()
    hidden[:24, :, 3] = 0
    on_white = pixels.copy()
    on_white[:24] = 255
    assert np.array_equal(classifier.predict(hidden).probs, classifier.predict(on_white).probs)


def test_a_mixed_list_keeps_its_order(classifier: headstart.Classifier, files: list[Path]) -> None:
    sources = [files[2], str(files[0]), files[1].read_bytes(), draw_picture("stripes", 21), Image.open(files[0])]
    predictions = classifier.predict(sources)
    assert [each.label for each in predictions] == ["stripes", "checks", "circles", "stripes", "checks"]
    assert [each.name for each in predictions] == [
        str(files[2]),
        str(files[0]),
        "picture 2",
        "picture 3",
        "picture 4",
    ]
    for source, prediction in zip(sources, predictions, strict=True):
        assert np.array_equal(classifier.predict(source).probs, prediction.probs)


def test_order_is_kept_over_many(classifier: headstart.Classifier) -> None:
    numbers = [(SHAPES[i % 3], i) for i in range(40)]
    predictions = classifier.predict([draw_picture(shape, number) for shape, number in numbers])
    assert [each.label for each in predictions] == [shape for shape, _ in numbers]


def test_batches_and_generators(classifier: headstart.Classifier, files: list[Path]) -> None:
    batch = np.stack([draw_picture(shape, 20) for shape in SHAPES])
    assert [each.label for each in classifier.predict(batch)] == list(SHAPES)
    assert [each.label for each in classifier.predict(path for path in files)] == list(SHAPES)
    assert [each.label for each in classifier.predict(np.array([str(path) for path in files]))] == list(SHAPES)
    assert classifier.predict([]) == []


def test_the_number_of_threads_changes_nothing(classifier: headstart.Classifier, files: list[Path]) -> None:
    runs = [[outcome.probs for outcome in classifier.predict_each(files, num_threads=n)] for n in (1, 3)]
    assert np.array_equal(runs[0], runs[1])


def test_predict_each_is_lazy_and_bounded(classifier: headstart.Classifier) -> None:
    taken = 0

    def pictures() -> Any:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield draw_picture("checks", number)

    outcomes = classifier.predict_each(pictures(), num_threads=1)
    assert next(outcomes).label == "checks"
    outcomes.close()
    assert taken < 50


# Files in awkward forms


def test_a_rotated_photo_is_predicted_like_its_upright_copy(classifier: headstart.Classifier) -> None:
    # Far from square, so that a picture that is not turned gives other probabilities.
    upright = np.concatenate([draw_picture("stripes", 20), draw_picture("checks", 3)[:20]], axis=0)
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to see it upright
    rotated = np.rot90(upright).copy()
    stored = encode(rotated, "JPEG", quality=95, exif=exif)
    expected = np.rot90(np.asarray(Image.open(io.BytesIO(stored))), -1)
    assert np.array_equal(classifier.predict(stored).probs, classifier.predict(expected).probs)
    unturned = classifier.predict(encode(rotated, "JPEG", quality=95))
    assert np.abs(unturned.probs - classifier.predict(stored).probs).max() > 0.01


def test_grey_16_bit_cmyk_and_alpha_files(classifier: headstart.Classifier) -> None:
    pixels = draw_picture("checks", 20)
    grey = pixels[:, :, 0]
    rgb_of_grey = classifier.predict(np.stack([grey] * 3, axis=2)).probs
    assert np.array_equal(classifier.predict(encode(grey)).probs, rgb_of_grey)
    assert np.array_equal(classifier.predict(encode(grey.astype(np.uint16) * 257)).probs, rgb_of_grey)
    transparent = np.concatenate([pixels, np.full((48, 48, 1), 255, np.uint8)], axis=2)
    transparent[:10, :, 3] = 0
    on_white = pixels.copy()
    on_white[:10] = 255
    assert np.array_equal(classifier.predict(encode(transparent)).probs, classifier.predict(on_white).probs)
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "TIFF")
    assert np.allclose(classifier.predict(cmyk.getvalue()).probs, classifier.predict(pixels).probs, atol=0.02)


def test_a_large_jpeg_agrees_with_its_pixels(classifier: headstart.Classifier) -> None:
    """A file that is decoded at a reduced scale stays close to all its pixels; verify measures it."""
    large = np.kron(draw_picture("circles", 20), np.ones((40, 40, 1), np.uint8))
    data = encode(large, "JPEG", quality=90)
    full = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(classifier.predict(data).probs - classifier.run(full)).max() < 0.02


# What cannot be used


def test_one_picture_that_cannot_be_used(classifier: headstart.Classifier, tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<!doctype html>")
    for source, text in (
        (path, f"{path}: not-an-image: this is HTML text, not a picture"),
        (str(tmp_path / "none.png"), f"{tmp_path}/none.png: unreadable: there is no such file"),
        (b"", "picture 0: empty: the file is empty"),
        (
            np.zeros((4, 4), np.float32),
            "picture 0: unsupported-pixels: got float32, expected uint8, uint16 or bool in shape (H, W), (H, W, 1), "
            "(H, W, 3) or (H, W, 4), or a PIL image. Scale floats to 0..255 and round them",
        ),
    ):
        with pytest.raises(ImageError) as caught:
            classifier.predict(source)
        assert str(caught.value) == text
    # Things that iterate, but not over pictures, are one wrong picture and not thousands.
    content = bytearray(b"bytes")
    for source, found in (
        (5, "int"),
        (content, "bytearray"),
        (memoryview(content), "memoryview"),
        (io.BytesIO(content), "BytesIO"),
        (np.zeros((), np.uint8), r"shape \(\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
    ):
        with pytest.raises(ImageError, match=f"^picture 0: unsupported-pixels: got {found}, expected"):
            classifier.predict(source)


def test_a_list_names_all_that_cannot_be_used(classifier: headstart.Classifier, files: list[Path]) -> None:
    files[0].write_bytes(b"")
    files[2].write_bytes(files[1].read_bytes()[:500])
    with pytest.raises(headstart.DataError) as caught:
        classifier.predict(files)
    assert str(caught.value) == (
        "2 problems:\n"
        f"  {files[0]}: empty: the file is empty\n"
        f"  {files[2]}: truncated: the file ends early (copy or download it again)"
    )
    with pytest.raises(headstart.DataError) as caught:
        classifier.predict(files[:2])
    assert str(caught.value) == f"{files[0]}: empty: the file is empty"


def test_predict_each_gives_errors_in_their_place(classifier: headstart.Classifier, files: list[Path]) -> None:
    outcomes = [*classifier.predict_each([files[0], b"text", files[2], "nowhere.png"])]
    assert [type(each).__name__ for each in outcomes] == ["Prediction", "ImageError", "Prediction", "ImageError"]
    assert [getattr(each, "label", None) for each in outcomes] == ["checks", None, "stripes", None]
    errors = [each for each in outcomes if isinstance(each, ImageError)]
    assert [(each.code, each.path) for each in errors] == [("not-an-image", "picture 1"), ("unreadable", "nowhere.png")]


# Answers


def test_get_top_and_repr(classifier: headstart.Classifier, files: list[Path]) -> None:
    prediction = classifier.predict(files[0])
    top = prediction.get_top(2)
    order = sorted(zip(prediction.probs.tolist(), classifier.classes, strict=True), reverse=True)
    assert top == [(name, prob) for prob, name in order[:2]]
    assert top[0] == (prediction.label, prediction.probability)
    assert len(prediction.get_top(99)) == 3
    assert prediction.probs.dtype == np.float32
    assert prediction.probs.sum() == pytest.approx(1)
    assert repr(prediction) == f"Prediction({files[0]}: checks {prediction.probability:.1%})"
    assert repr(classifier) == "Classifier(3 classes, efficientnet-lite0)"


# Unknown pictures


@pytest.fixture
def tiny() -> headstart.Classifier:
    """With a familiarity."""
    model = make_tiny_classifier(SHAPES)
    add_tiny_familiarity(model)
    metadata = dataclasses.replace(make_tiny_metadata(SHAPES), familiarity=TINY_FAMILIARITY)
    return headstart.Classifier(*parse_artifact(build_artifact(model, metadata)))


def make_old() -> headstart.Classifier:
    metadata = make_tiny_metadata(SHAPES)
    return headstart.Classifier(*parse_artifact(build_artifact(make_tiny_classifier(SHAPES), metadata)))


def test_every_prediction_tells_the_familiarity(tiny: headstart.Classifier, files: list[Path]) -> None:
    for file in files:
        prediction = tiny.predict(file)
        pixels = np.asarray(Image.open(file).convert("RGB"))
        probs, familiarity = tiny._session.run(None, {"image": pixels})
        assert prediction.familiarity == pytest.approx(float(familiarity[0]))
        assert 0 < prediction.familiarity < 1
        np.testing.assert_array_equal(prediction.probs, probs)
        np.testing.assert_array_equal(tiny.run(pixels), probs)
        assert prediction.is_unknown(prediction.familiarity + 0.01)
        assert not prediction.is_unknown(prediction.familiarity - 0.01)


def test_is_unknown() -> None:
    known = headstart.Prediction("x", ("a", "b"), np.array([0.25, 0.75], np.float32), 0.011)
    assert not known.is_unknown()
    assert dataclasses.replace(known, familiarity=0.009).is_unknown()
    assert known.is_unknown(0.05)
    assert not known.is_unknown(0)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(headstart.ConfigError, match=r"expected a share from 0 to 1"):
            known.is_unknown(wrong)
    with pytest.raises(headstart.ArtifactError, match="Train it again"):
        dataclasses.replace(known, familiarity=None).is_unknown()


def test_a_file_without_familiarity_predicts_as_before(files: list[Path]) -> None:
    prediction = make_old().predict(files[0])
    assert prediction.familiarity is None
    assert prediction.probs.shape == (3,)


@pytest.mark.parametrize("is_old", [False, True])
def test_familiarity_in_every_format(
    tiny: headstart.Classifier, is_old: bool, files: list[Path], tmp_path: Path
) -> None:
    classifier = make_old() if is_old else tiny
    (tmp_path / "text.png").write_text("no picture")
    paths = [*map(str, files), str(tmp_path / "text.png")]
    expected = [prediction.familiarity for prediction in classifier.predict(paths[:3])]
    cut = float(np.mean([each or 0 for each in expected]))

    def write(format: str, **options: Any) -> Path:
        target = tmp_path / f"answers.{format}"
        rows = zip(paths, classifier.predict_each(paths), strict=True)
        write_rows(target, rows, Layout(format, classifier.classes, Doubts(**options)))
        return target

    rows = list(csv.DictReader(write("csv").read_text().splitlines()))
    assert [row["familiarity"] for row in rows] == ["" if each is None else f"{each:.6g}" for each in [*expected, None]]
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]
    objects = [json.loads(line) for line in write("jsonl").read_text().splitlines()]
    assert [row.get("familiarity") for row in objects] == [
        each if each is None else pytest.approx(each, rel=1e-5) for each in [*expected, None]
    ]
    lines = write("table", unknown_below=cut).read_text().splitlines()
    assert [line.endswith("none of these?") for line in lines[:3]] == [
        each is not None and each < cut for each in expected
    ]
    assert all(("   familiarity " in line) != is_old for line in lines[:3])
    parquet = pytest.importorskip("pyarrow.parquet")
    found = parquet.read_table(write("parquet")).column("familiarity").to_pylist()
    assert found == [each if each is None else pytest.approx(each) for each in [*expected, None]]


def test_ties_go_to_the_first_class() -> None:
    prediction = headstart.Prediction("x", ("a", "b", "c"), np.array([0.25, 0.375, 0.375], np.float32))
    assert prediction.label == "b"
    assert prediction.get_top(3) == [("b", 0.375), ("c", 0.375), ("a", 0.25)]


def test_save_and_load_give_the_same_bits(
    trained: Trained, warm_cache: Path, tmp_path: Path, files: list[Path]
) -> None:
    fresh = headstart.train(trained.shapes, layers="top")
    target = tmp_path / "again.onnx"
    fresh.save(target)
    loaded = headstart.load(target)
    assert loaded.training is None
    assert (loaded.classes, loaded.metadata, loaded.sha256) == (fresh.classes, fresh.metadata, fresh.sha256)
    for path in files:
        assert np.array_equal(loaded.predict(path).probs, fresh.predict(path).probs)
    assert headstart.load(target.read_bytes()).sha256 == fresh.sha256
    loaded.save(tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == target.read_bytes()


def test_files_that_are_no_classifier(tmp_path: Path, trained: Trained) -> None:
    with pytest.raises(headstart.ArtifactError, match=r"none\.onnx: There is no such file\."):
        headstart.load(tmp_path / "none.onnx")
    damaged = bytearray(trained.file.read_bytes())
    damaged[9999] ^= 1
    with pytest.raises(headstart.ArtifactError, match=r"^The file is damaged, or was edited after it was saved"):
        headstart.load(bytes(damaged))


# Evaluation


def test_evaluate_agrees_with_predict(classifier: headstart.Classifier, tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 3, first=20)
    evaluation = classifier.evaluate(root)
    paths = sorted(map(str, root.rglob("*.png")))
    assert list(evaluation.paths) == paths
    assert np.array_equal(evaluation.probs, [each.probs for each in classifier.predict(paths)])
    assert [evaluation.classes[label] for label in evaluation.labels] == [Path(path).parent.name for path in paths]
    listed = classifier.evaluate(paths, labels=[Path(path).parent.name for path in paths])
    assert listed == evaluation


def test_classes_go_by_name_not_by_number(classifier: headstart.Classifier, tmp_path: Path) -> None:
    """A source that lacks the first class has other numbers."""
    evaluation = classifier.evaluate(write_shapes(tmp_path / "shapes", 2, ("circles", "stripes"), first=20))
    assert evaluation.classes == SHAPES
    assert evaluation.labels.tolist() == [1, 1, 2, 2]
    assert evaluation.correct.all()


def test_unknown_classes_are_all_named(classifier: headstart.Classifier, tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 2)
    (root / "circles").rename(root / "cirles")
    (root / "stripes").rename(root / "zebras")
    with pytest.raises(headstart.DataError) as caught:
        classifier.evaluate(root)
    assert str(caught.value) == (
        "2 problems:\n"
        "  The classifier has no class 'cirles'. Did you mean 'circles'? Rename the class, or leave it out with "
        "--exclude.\n"
        "  The classifier has no class 'zebras'. Rename the class, or leave it out with --exclude."
    )
    (root / "cirles").rename(root / "circles")
    assert classifier.evaluate(root, exclude=["zebras"]).correct.all()


def test_evaluate_takes_the_part_that_was_asked_for(classifier: headstart.Classifier, tmp_path: Path) -> None:
    root = tmp_path / "splits"
    for split, first, count in (("train", 0, 3), ("validation", 3, 2), ("test", 5, 1)):
        write_shapes(root / split, count, SHAPES, first)
    sizes = {
        split: len(classifier.evaluate(root, split=split).paths) for split in (None, "train", "validation", "test")
    }
    assert sizes == {None: 3, "train": 9, "validation": 6, "test": 3}
    shutil.rmtree(root / "test")
    assert len(classifier.evaluate(root).paths) == 6
    with pytest.raises(headstart.DataError) as caught:
        classifier.evaluate(root, split="test")
    assert str(caught.value) == f"{root} has no split 'test'. Splits there: train, validation."


def test_evaluate_refuses_pictures_that_cannot_be_read(classifier: headstart.Classifier, tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 2)
    cut = root / "circles" / "00.png"
    cut.write_bytes(cut.read_bytes()[:700])
    with pytest.raises(headstart.DataError) as caught:
        classifier.evaluate(root)
    assert str(caught.value) == f"{cut}: the file ends early (copy or download it again)"
