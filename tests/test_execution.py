"""Devices: the way that pictures go there, run on the processor; what is chosen; how a device that fails is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Trained
from onnx import ModelProto, TensorProto, helper
from tiny_backbone import make_pictures, make_tiny_backbone

import headstart
from headstart.backbones.catalog import Backbone
from headstart.errors import ConfigError, HeadstartError
from headstart.execution import (
    PROCESSOR,
    Device,
    DeviceRunner,
    Runner,
    choose_device,
    list_devices,
    open_device,
)
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, build_feature_graph, extract_features, plan_layout
from headstart.fixed_shapes import split_graph
from headstart.graph import FEATURES, IMAGE, IMAGE_INPUT, GraphBuilder, PreprocessSpec, add_preprocessing
from headstart.prediction import Prediction

SIZE_PX = 16
BATCHES = Device("test", PROCESSOR.provider, batch_size=4)


def build(add_rest: str, crop: str = "centre") -> bytes:
    """Preprocessing, then a rest that is named, to 3 features."""
    builder = GraphBuilder()
    half = (0.5, 0.5, 0.5)
    pixels = add_preprocessing(builder, PreprocessSpec(SIZE_PX, 0.875, half, half, crop=crop))
    if add_rest == "per channel":
        rest = builder.add("ReduceMean", pixels, builder.int_constant(2, 3), keepdims=0)
    elif add_rest == "mixes pictures":
        rest = builder.add("ReduceMean", pixels, builder.int_constant(0, 2, 3), keepdims=0)
    elif add_rest == "random":
        rest = builder.add("RandomUniformLike", builder.add("ReduceMean", pixels, builder.int_constant(2, 3)))
    else:  # fails on white pictures, where the index is too large
        mean = builder.add("ReduceMean", pixels, builder.int_constant(2, 3), keepdims=0)
        hundredths = builder.add("Mul", mean, builder.constant(np.array(100, np.float32)))
        index = builder.add("Cast", hundredths, to=TensorProto.INT64)
        table = builder.constant(np.arange(90, dtype=np.float32))
        rest = builder.add("Gather", table, builder.add("Abs", index))
    builder.add("Reshape", rest, builder.int_constant(-1), output=FEATURES)
    output = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [3])
    return bytes(builder.build([IMAGE_INPUT], [output]).SerializeToString())


def draw(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*rng.integers(20, 90, 2), 3), dtype=np.uint8) for _ in range(count)]


def serialize(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def test_the_network_runs_in_batches_and_gives_the_same_features(backbone: Backbone) -> None:
    data = serialize(build_feature_graph(backbone, plan_layout(backbone)))
    device = DeviceRunner(data, backbone.preprocess.input_size_px, BATCHES)
    (information,) = device._session.get_inputs()
    assert information.shape == [4, 3, 224, 224]
    pictures = draw(7)
    plain = Runner(data)
    with ThreadPoolExecutor(7) as pool:
        found = [outputs[0] for outputs in pool.map(device.run, pictures)]
    expected = [plain.run(picture)[0] for picture in pictures]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("crop", ["centre", "after-resize", "squash"])
def test_every_kind_of_preprocessing_is_cut_off(crop: str) -> None:
    data = build("per channel", crop)
    device, plain = DeviceRunner(data, SIZE_PX, BATCHES), Runner(data)
    assert {node.op_type for node in onnx.load_model_from_string(split_graph(data, SIZE_PX)[1]).graph.node} == {
        "ReduceMean",
        "Reshape",
    }
    for picture in draw(5):
        np.testing.assert_allclose(device.run(picture)[0], plain.run(picture)[0], atol=1e-6)


def test_many_threads_share_batches_and_each_gets_its_own() -> None:
    device = DeviceRunner(build("per channel"), SIZE_PX, BATCHES)
    pictures = [np.full((20, 20, 3), value, np.uint8) for value in range(0, 250, 2)]
    with ThreadPoolExecutor(16) as pool:
        found = [outputs[0] for outputs in pool.map(device.run, pictures)]
    expected = np.repeat(np.arange(0, 250, 2)[:, None] / 127.5 - 1, 3, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert device.num_threads >= 1 + 4


def test_batches_are_full_while_pictures_come() -> None:
    sizes = []

    class Counting(DeviceRunner):
        def _run_batch(self, rows: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
            sizes.append(len(rows))
            time.sleep(0.02)  # a device that is slower than the pictures come
            return super()._run_batch(rows)

    device = Counting(build("per channel"), SIZE_PX, BATCHES)
    sizes.clear()
    with ThreadPoolExecutor(device.num_threads) as pool:
        list(pool.map(device.run, draw(60)))
    assert sum(sizes) == 60
    assert len(sizes) <= 20  # 15 are the least


def test_a_graph_that_mixes_pictures_takes_one_at_a_time() -> None:
    device = DeviceRunner(build("mixes pictures"), SIZE_PX, BATCHES)
    assert device._session.get_inputs()[0].shape == [1, 3, SIZE_PX, SIZE_PX]
    for picture in draw(2):
        np.testing.assert_allclose(device.run(picture)[0], Runner(build("mixes pictures")).run(picture)[0], atol=1e-6)


def test_a_device_with_other_results_is_refused() -> None:
    with pytest.raises(RuntimeError, match="its results differ by .* from those of the processor"):
        DeviceRunner(build("random"), SIZE_PX, BATCHES)


def test_a_graph_without_preprocessing_is_refused() -> None:
    builder = GraphBuilder()
    flat = builder.add("Cast", IMAGE, to=TensorProto.FLOAT)
    builder.add("ReduceMean", flat, builder.int_constant(0, 1), keepdims=0, output=FEATURES)
    model = builder.build([IMAGE_INPUT], [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [3])])
    with pytest.raises(RuntimeError, match="no place where the picture has become the network's input"):
        DeviceRunner(serialize(model), SIZE_PX, BATCHES)


def test_a_device_that_fails_later_says_so_to_every_picture_that_was_with_it() -> None:
    device = DeviceRunner(build("fails on white"), SIZE_PX, BATCHES)
    grey, white = (np.full((20, 20, 3), value, np.uint8) for value in (140, 255))
    device.run(grey)

    def attempt(picture: np.ndarray) -> str:
        try:
            device.run(picture)
        except HeadstartError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        failures = list(pool.map(attempt, [white] * 4))
    for failure in failures:
        assert failure.startswith("The device test failed: ")
        assert failure.endswith(". Try again, or set HEADSTART_DEVICE=cpu to use the processor.")
    assert attempt(grey) == ""  # what fails does not stay in line


def read_rows(folder: Path, extractor: Extractor) -> np.ndarray:
    pictures = make_pictures(folder, 40)
    with FeatureCache() as cache:
        assert extract_features(pictures, extractor, cache).num_forward == 40
        recipe = cache.get_recipe(extractor.recipe_key, extractor.name)
        return cache.read_features(recipe, [picture.sha256 for picture in pictures])


def test_devices_have_rows_of_their_own_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every device that is here, each of which must agree with the processor or be left for it."""
    plain = Extractor(make_tiny_backbone())
    expected = read_rows(tmp_path, plain)
    names = list_devices()
    assert names[-2:] == ["cpu-batches", "cpu"]
    for name in names[:-1]:
        monkeypatch.setenv("HEADSTART_DEVICE", name)
        other = Extractor(make_tiny_backbone())
        if other.recipe_key == plain.recipe_key:
            assert name != "cpu-batches"  # a device that ONNX Runtime was built for, but that is not in this machine
            continue
        assert other.recipe_key == f"{plain.recipe_key}/{name}"
        np.testing.assert_allclose(read_rows(tmp_path, other), expected, atol=2e-3 * np.abs(expected).max())


def test_predictions_of_many_pictures_take_the_device(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = headstart.load(trained.file)
    pictures = draw(6) * 20
    expected = list(classifier.predict_each(pictures))
    monkeypatch.setenv("HEADSTART_DEVICE", "cpu-batches")
    assert isinstance(open_device(classifier.data, 224), DeviceRunner)
    for before, after in zip(expected, classifier.predict_each(pictures), strict=True):
        assert isinstance(before, Prediction)
        assert isinstance(after, Prediction)
        np.testing.assert_allclose(after.probs, before.probs, atol=1e-5)
        assert after.familiarity == pytest.approx(before.familiarity, abs=1e-4)
    monkeypatch.setenv("HEADSTART_DEVICE", "wrong")
    list(classifier.predict_each(pictures[:5]))  # of few it is not asked for
    with pytest.raises(ConfigError, match="HEADSTART_DEVICE is 'wrong'"):
        list(classifier.predict_each(pictures))


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    here = onnxruntime.get_available_providers()
    for chosen in (None, "", "auto"):
        monkeypatch.delenv("HEADSTART_DEVICE", raising=False)
        if chosen is not None:
            monkeypatch.setenv("HEADSTART_DEVICE", chosen)
        if not {"CUDAExecutionProvider", "DmlExecutionProvider"} & {*here}:
            assert choose_device() == PROCESSOR
    monkeypatch.setenv("HEADSTART_DEVICE", "tensorrt")
    assert choose_device().provider == "TensorrtExecutionProvider"
    monkeypatch.setenv("HEADSTART_DEVICE", "opnvino")
    with pytest.raises(ConfigError) as caught:
        choose_device()
    assert str(caught.value) == (
        "HEADSTART_DEVICE is 'opnvino'. Did you mean 'openvino'? Expected auto or one of cuda, directml, tensorrt, "
        "openvino, openvino-gpu, coreml, cpu-batches, cpu."
    )


def test_a_device_that_is_not_here_is_left_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    missing = next(name for name in ("coreml", "directml") if name not in list_devices())
    monkeypatch.setenv("HEADSTART_DEVICE", missing)
    with caplog.at_level(logging.WARNING, "headstart"):
        extractors = [Extractor(make_tiny_backbone()) for _ in range(3)]
    assert [record.getMessage() for record in caplog.records] == [
        f"The device {missing} cannot be used: this ONNX Runtime was not built for it, only for "
        f"{', '.join(list_devices())}. The processor is used instead; HEADSTART_DEVICE=cpu silences this."
    ]
    picture = draw(1)[0]
    monkeypatch.setenv("HEADSTART_DEVICE", "cpu")
    assert np.array_equal(extractors[0].run(picture), Extractor(make_tiny_backbone()).run(picture))
