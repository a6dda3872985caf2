"""Exports say what the classifier says, are written whole or not at all, and are refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Trained
from drawn_pictures import draw_picture, run_command, snapshot, write_shapes
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import headstart
from headstart.dataset import scan_dataset
from headstart.errors import ConfigError, DataError
from headstart.evaluation import Evaluation
from headstart.execution import open_session
from headstart.exporting import batches, int8, quantization, runner, targets
from headstart.exporting.checking import ExportRefused, compare_probs, pick_evenly
from headstart.exporting.prepare import open_picture, prepare
from headstart.feature_cache import FeatureCache
from headstart.graph import IMAGE_INPUT, GraphBuilder, PreprocessSpec, add_preprocessing
from headstart.insight.subject import open_subject


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures that no training saw."""
    return write_shapes(tmp_path_factory.mktemp("others") / "shapes", 6, first=40)


@pytest.fixture(scope="module")
def paths(others: Path) -> list[str]:
    return [str(path) for path in sorted(others.rglob("*.png"))]


# Preparing a picture


@pytest.mark.parametrize("crop", ["centre", "after-resize", "squash"])
@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_prepare_gives_what_the_graph_computes(crop: str, interpolation: str) -> None:
    spec = PreprocessSpec(48, 0.875, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255), interpolation, crop)
    builder = GraphBuilder()
    output = add_preprocessing(builder, spec)
    model = builder.build([IMAGE_INPUT], [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 3, 48, 48])])
    session = open_session(model.SerializeToString())
    rng = np.random.default_rng(0)
    for height, width in ((48, 48), (20, 33), (200, 131), (51, 50), (97, 300), (52, 53)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = session.run(None, {"image": pixels})[0][0].transpose(1, 2, 0)
        found = prepare(Image.fromarray(pixels), 48, 0.875, crop, interpolation)
        assert found.shape == (48, 48, 3)
        assert found.dtype == np.float32
        if crop == "after-resize" and min(height, width) > 53:  # which the graph does without resizing the whole
            assert np.abs(found - expected).mean() < 1
            assert np.abs(found - expected)[3:-3, 3:-3].max() < 4
        else:
            np.testing.assert_allclose(found, expected, atol=0.02)


def test_open_picture_turns_and_blends(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw_picture("checks", 1)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (9, 7), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    turned = np.asarray(open_picture(str(tmp_path / "turned.jpg")))
    stored = np.asarray(Image.open(tmp_path / "turned.jpg"))
    assert np.array_equal(turned, np.rot90(stored, -1))
    assert (np.asarray(open_picture(str(tmp_path / "clear.png"))) == 255).all()


# Several pictures at a time


@pytest.mark.parametrize("input_type", ["float32", "uint8"])
def test_a_graph_for_several_pictures(
    classifier: headstart.Classifier, paths: list[str], tmp_path: Path, input_type: str
) -> None:
    target = tmp_path / "shapes-batch.onnx"
    agreement = batches.export_batches(classifier, target, paths, input_type=input_type)  # type: ignore[arg-type]
    assert agreement.num_checked == agreement.num_same_class == len(paths)
    assert agreement.worst_difference < (1e-4 if input_type == "float32" else 0.1)
    session = onnxruntime.InferenceSession(target)
    facts = session.get_modelmeta().custom_metadata_map
    settings = json.loads(facts["prepare"])
    rows = np.stack([prepare(open_picture(path), **settings) for path in paths])
    rows = rows if input_type == "float32" else rows.round().astype(np.uint8)
    probs = session.run(["probabilities"], {"pictures": rows})[0]
    expected = np.stack([each.probs for each in classifier.predict(paths)])
    np.testing.assert_allclose(probs, expected, atol=1e-4 if input_type == "float32" else 0.1)
    assert json.loads(facts["labels"]) == list(classifier.classes)
    assert session.get_outputs()[0].shape == ["N", 3]
    graph = onnx.load_model(target).graph
    assert {each.name for each in graph.initializer} <= {name for node in graph.node for name in node.input}


def test_a_network_that_mixes_pictures_is_refused(classifier: headstart.Classifier, tmp_path: Path) -> None:
    """As attention with a class token does: the network's vectors lie on the axis of the pictures."""
    model = onnx.load_model_from_string(classifier.data)
    gemm = next(node for node in model.graph.node if "head.coef" in node.input)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first_axis"))
    mean = helper.make_node("ReduceMean", [gemm.input[0], "first_axis"], ["mixed"], keepdims=1)
    model.graph.node.insert(list(model.graph.node).index(gemm), mean)
    gemm.input[0] = "mixed"
    mixed = headstart.load(headstart.artifact.build_artifact(model, classifier.metadata))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="takes one picture at a time"):
        batches.build_batch_model(mixed)


def test_an_export_that_says_something_else_is_refused(
    classifier: headstart.Classifier, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classes' order turned round: nothing is written."""
    right = batches.build_batch_model

    def build_wrong(*arguments: object) -> onnx.ModelProto:
        model = right(*arguments)  # type: ignore[arg-type]
        for tensor in model.graph.initializer:
            if tensor.name in ("head.coef", "head.intercept"):
                turned = numpy_helper.to_array(tensor)[..., ::-1]
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), tensor.name))
        return model

    monkeypatch.setattr(batches, "build_batch_model", build_wrong)
    with pytest.raises(ExportRefused, match=r"same class as the classifier on \d+ of 18 pictures"):
        batches.export_batches(classifier, tmp_path / "x.onnx", paths)
    assert not list(tmp_path.iterdir())


# 8 bits


def test_int8_is_a_classifier_file_that_says_the_same(
    classifier: headstart.Classifier, trained: Trained, warm_cache: Path, others: Path, tmp_path: Path
) -> None:
    target = tmp_path / "shapes-int8.onnx"
    test = headstart.hash_images(scan_dataset(others))
    done = int8.export_int8(classifier, target, scan_dataset(trained.shapes), test=test)
    assert done.agreement.num_same_class == done.agreement.num_checked == 18
    assert done.size_after < 0.4 * done.size_before
    smaller = headstart.load(target)
    assert smaller.classes == classifier.classes
    assert smaller.evaluate(others) == done.after
    facts = smaller.metadata.settings["int8"]
    assert facts["made_from_sha256"] == classifier.sha256
    assert (facts["num_tested"], facts["num_exact_convolutions"], facts["num_convolutions"]) == (18, 5, 49)
    assert smaller.metadata.evaluation is not None
    assert smaller.metadata.evaluation["n"] == 18
    # The rest of headstart reads it as any other: heads, heat maps, its own network.
    from headstart.backbones.from_file import read_backbone
    from headstart.heads.from_file import read_head

    picture = next(str(path) for path in others.rglob("*.png"))
    assert abs(smaller.predict(picture).familiarity - classifier.predict(picture).familiarity) < 0.3
    head = headstart.explain(smaller, picture)
    assert head.probs.argmax() == smaller.predict(picture).probs.argmax()
    assert read_head(smaller.metadata, smaller.data).num_classes == 3
    assert read_backbone(smaller.metadata, smaller.data).layers[0].channels > 0
    # Not the features of the network before, which are cached.
    with FeatureCache() as cache:
        subject = open_subject(smaller, others, cache, lambda *_: None)
    tested = [str(record.path) for record in subject.tested]
    assert subject.evaluation is not None
    np.testing.assert_allclose(
        subject.evaluation.probs, np.stack([each.probs for each in smaller.predict(tested)]), atol=1e-4
    )
    # Once more would gain nothing.
    with pytest.raises(ConfigError, match="in 8 bits already"):
        int8.export_int8(smaller, tmp_path / "again.onnx", scan_dataset(trained.shapes), test=test)


def test_int8_runs_the_same_without_the_optimiser(
    classifier: headstart.Classifier, trained: Trained, paths: list[str]
) -> None:
    """What other runtimes do: round, and compute in floats."""
    model = onnx.load_model_from_string(classifier.data)
    pictures = [np.asarray(Image.open(path)) for path in paths]
    ranges = quantization.measure_maps(model, pictures, np.random.default_rng(0))
    data = quantization.quantize(model, ranges, 5).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(data, options)
    fast = open_session(data)
    for pixels in pictures[::5]:
        found = [session.run(["probabilities"], {"image": pixels})[0] for session in (plain, fast)]
        np.testing.assert_allclose(*found, atol=0.03)
        np.testing.assert_allclose(found[0], classifier.run(pixels), atol=0.2)


def test_int8_that_costs_too_much_is_refused(
    classifier: headstart.Classifier, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels rounded to nothing but their signs."""
    monkeypatch.setattr(quantization, "find_scales", lambda kernel: np.abs(kernel).max(axis=(1, 2, 3)) + 1e-12)
    done = run_command(
        "export", trained.file, tmp_path / "x.onnx", "--to", "int8", "--calibrate-on", trained.shapes, "--max-loss", 0
    )
    assert done.code == 1
    assert done.stderr.startswith("Refused: In 8 bits ")
    assert "keep their class" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_loss_of_just_what_is_allowed_is_allowed() -> None:
    labels = np.zeros(1000, np.int64)

    def evaluate(wrong: slice) -> Evaluation:
        probs = np.tile(np.array([[0.9, 0.1]], np.float32), (1000, 1))
        probs[wrong] = probs[wrong, ::-1]
        names = tuple(map(str, range(1000)))
        return Evaluation(("a", "b"), names, names, labels, probs)

    before, after = evaluate(slice(0, 20)), evaluate(slice(20, 45))
    done = int8.Int8Export(before, after, compare_probs(before.probs, after.probs), 1, 1, 1, 2, 1)
    assert done.loss == 0.005
    int8._refuse_if_costly(done, 0.005, 0)
    with pytest.raises(ExportRefused, match=r"the accuracy falls by 0\.50 points .* and 0\.4 were allowed"):
        int8._refuse_if_costly(done, 0.004, 0)


def test_nothing_is_fitted_to_pictures_that_are_tested_on(trained: Trained) -> None:
    records = headstart.hash_images(scan_dataset(trained.shapes)).records
    divided = replace(scan_dataset(trained.shapes), records=tuple(replace(each, split="train") for each in records))
    tested = {each.sha256 for each in records[::2]}
    drawn = int8._draw_calibration(divided, tested, np.random.default_rng(0))
    assert drawn
    assert not tested & {each.sha256 for each in drawn}


def test_int8_of_a_transformer_is_refused() -> None:
    product = helper.make_node("MatMul", ["a", "w"], ["b"])
    graph = helper.make_graph([product], "g", [], [], [numpy_helper.from_array(np.ones((8, 8), np.float32), "w")])
    with pytest.raises(ConfigError, match="Only 0% of the network's weights are in convolutions"):
        quantization.check_quantizable(helper.make_model(graph))


def test_int8_without_test_pictures_asks_for_some(trained: Trained, classifier: headstart.Classifier) -> None:
    divided = headstart.hash_images(scan_dataset(trained.shapes))
    with pytest.raises(DataError, match="--test-on"):
        int8._take_test(divided)


# A folder with a script

BLOCK = """
import sys
allowed = set(sys.stdlib_module_names) | {"numpy", "onnxruntime", "PIL", "__main__"}
before = set(sys.modules)
import runpy
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
print("foreign:", *sorted({name.split(".")[0] for name in set(sys.modules) - before} - allowed))
"""


def test_the_runner_needs_three_packages_and_says_the_same(
    classifier: headstart.Classifier, paths: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "runner"
    agreement = runner.export_runner(classifier, folder, paths)
    assert agreement.worst_difference < 1e-5
    assert (folder / "classifier.onnx").read_bytes() == classifier.data
    ours = classifier.predict(paths)
    command = [sys.executable, "-I", "-c", BLOCK, str(folder / "predict.py"), *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    *lines, last = done.stdout.splitlines()
    assert [line.split("\t") for line in lines] == [
        [path, each.label, f"{each.probability:.4f}"] for path, each in zip(paths, ours, strict=True)
    ], done.stderr
    assert last.removeprefix("foreign:").split() in ([], ["cython_runtime"], ["_cython_3_0_11", "cython_runtime"])


def test_openvino(classifier: headstart.Classifier, paths: list[str], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from headstart.exporting.openvino_folder import export_openvino

    agreement = export_openvino(classifier, tmp_path / "ov", paths)
    assert agreement.num_same_class == len(paths)
    assert agreement.worst_difference < 1e-3
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'ov')!r}); import runpy; "
               "script, *sys.argv[1:] = sys.argv[1:]; runpy.run_path(script, run_name='__main__')"]  # fmt: skip
    done = subprocess.run(
        [*command, str(tmp_path / "ov" / "predict.py"), *paths[:2]], capture_output=True, text=True, timeout=60
    )
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == [
        each.label for each in classifier.predict(paths[:2])
    ], done.stderr


def test_without_openvino_the_package_is_named(
    trained: Trained, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import headstart.exporting.openvino_folder as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    done = run_command("export", trained.file, tmp_path / "ov", "--to", "openvino", "--check-on", others)
    assert done.code == 2
    assert "pip install 'headstart[openvino]'" in done.stderr


# Targets


def test_a_folder_is_replaced_only_when_asked_and_only_an_export(tmp_path: Path) -> None:
    target = tmp_path / "out"
    targets.write_folder(target, {"a": b"1", "b": b"2"}, overwrite=False)
    before = snapshot(target)
    with pytest.raises(ConfigError, match="exists, and is not replaced"):
        targets.write_folder(target, {"a": b"3", "b": b"4"}, overwrite=False)
    assert snapshot(target) == before
    targets.write_folder(target, {"a": b"3", "b": b"4"}, overwrite=True)
    assert (target / "a").read_bytes() == b"3"
    (target / "__pycache__").mkdir()  # by a script that ran there
    targets.write_folder(target, {"a": b"3", "b": b"4"}, overwrite=True)
    (target / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds mine\.txt"):
        targets.write_folder(target, {"a": b"5", "b": b"6"}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    targets.write_folder(target, {"a": b"1"}, overwrite=False)
    before = snapshot(target)
    with pytest.raises(headstart.HeadstartError, match="Cannot write"):
        targets.write_folder(target, {"a": b"2", "x" * 300: b""}, overwrite=True)
    assert snapshot(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("last", [1, 2], ids=["before the second rename", "after it"])
def test_an_interrupt_between_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    target = tmp_path / "out"
    targets.write_folder(target, {"a": b"1"}, overwrite=False)
    rename, calls = os.rename, []

    def rename_until(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) != 2 or last == 2:
            rename(*paths)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename_until)
    with pytest.raises(KeyboardInterrupt):
        targets.write_folder(target, {"a": b"2"}, overwrite=True)
    assert (target / "a").read_bytes() == str(last).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "onxx"], "Did you mean 'onnx'?"),
        (["--to", "onnx"], "--check-on"),
        (["--to", "int8"], "--calibrate-on"),
        (["--to", "onnx", "--check-on", "{shapes}", "--input-type", "int4"], "Expected float32 or uint8"),
    ],
)
def test_wrong_commands(trained: Trained, tmp_path: Path, arguments: list[str], said: str) -> None:
    given = [text.format(shapes=trained.shapes) for text in arguments]
    done = run_command("export", trained.file, tmp_path / "x.onnx", *given)
    assert done.code == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_writes_once(trained: Trained, others: Path, tmp_path: Path) -> None:
    command = ["export", trained.file, tmp_path / "b.onnx", "--to", "onnx", "--check-on", others]
    done = run_command(*command)
    assert (done.code, done.lines[0]) == (0, "same class: 18 of 18 pictures"), done.stderr
    again = run_command(*command)
    assert again.code == 2
    assert "add --overwrite" in again.stderr
    assert run_command(*command, "--overwrite").code == 0
    same = run_command("export", trained.file, trained.file, "--to", "onnx", "--check-on", others, "--overwrite")
    assert same.code == 2
    assert "is an input" in same.stderr


def test_pictures_are_picked_evenly() -> None:
    names = [str(number) for number in range(2500)]
    picked = pick_evenly(names, 1000)
    assert (len(set(picked)), picked[0], picked[-1]) == (1000, "0", "2499")
    assert pick_evenly(names[:5]) == names[:5]


def test_agreement_counts_classes_and_differences() -> None:
    first = np.array([[0.9, 0.1], [0.4, 0.6]], np.float32)
    second = np.array([[0.9, 0.1], [0.6, 0.4]], np.float32)
    agreement = compare_probs(first, second)
    assert (agreement.num_checked, agreement.num_same_class) == (2, 1)
    assert agreement.worst_difference == pytest.approx(0.2)
    assert agreement.mean_difference == pytest.approx(0.1)
