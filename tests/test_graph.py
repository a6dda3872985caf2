"""Preprocessing nodes against Pillow, pooling against plain means, and the cutting of graphs."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import PIL.Image
import pytest
from onnx import TensorProto, helper
from tiny_backbone import make_tiny_backbone

from headstart.backbones.catalog import Backbone
from headstart.graph import (
    FEATURES,
    IMAGE,
    IMAGE_INPUT,
    IR_VERSION,
    OPSET,
    GraphBuilder,
    PooledLayer,
    PreprocessSpec,
    add_pooling,
    add_preprocessing,
    compute_pooling_matrix,
    extend_graph,
    narrow_output,
)

HALF = (0.5, 0.5, 0.5)


def open_session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def make_preprocessor(spec: PreprocessSpec) -> onnxruntime.InferenceSession:
    builder = GraphBuilder()
    shape = [1, 3, spec.input_size_px, spec.input_size_px]
    output = helper.make_tensor_value_info(add_preprocessing(builder, spec), TensorProto.FLOAT, shape)
    return open_session(builder.build([IMAGE_INPUT], [output]).SerializeToString())


def in_grey_levels(input_size_px: int, crop_frac: float) -> PreprocessSpec:
    return PreprocessSpec(input_size_px, crop_frac, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))


def run(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    """The network's input as (S, S, 3)."""
    return session.run(None, {IMAGE: pixels})[0][0].transpose(1, 2, 0)


def make_scene(height: int, width: int) -> np.ndarray:
    """Waves, an edge and noise: something at every scale."""
    rng = np.random.default_rng([height, width])
    y, x = np.mgrid[:height, :width]
    waves = 90 * np.sin(x / 9 + y / 15) + 60 * np.sin(x / 2.5) + 80 * (x > 0.4 * width)
    scene = 110 + waves[..., None] * np.array([1, 0.6, -0.8]) + rng.normal(0, 25, (height, width, 3))
    return np.clip(scene, 0, 255).astype(np.uint8)


# Height, width, and the side of the centred square with an input of 224 px and a crop of 0.875.
SQUARES = [
    (1, 1, 1),
    (3, 500, 3),
    (32, 32, 32),
    (224, 224, 224),
    (223, 300, 223),
    (240, 320, 224),  # 0.875 of the short side would be 210, less than the input
    (257, 999, 225),
    (375, 500, 328),
    (500, 375, 328),
    (400, 401, 350),
    (5000, 30, 30),
    (300, 5000, 262),  # 262.5 to the even neighbour
    (1300, 1500, 1138),  # 1137.5
]


@pytest.fixture(scope="module")
def preprocessor_224() -> onnxruntime.InferenceSession:
    return make_preprocessor(in_grey_levels(224, 0.875))


@pytest.mark.parametrize(("height", "width", "side"), SQUARES)
def test_preprocessing_is_pillows_crop_and_bicubic_resize(
    preprocessor_224: onnxruntime.InferenceSession, height: int, width: int, side: int
) -> None:
    pixels = make_scene(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = pixels[top : top + side, left : left + side]
    found = run(preprocessor_224, pixels)
    for channel in range(3):
        image = PIL.Image.fromarray(square[..., channel].astype(np.float32))
        assert image.mode == "F"
        expected = np.clip(np.asarray(image.resize((224, 224), PIL.Image.Resampling.BICUBIC)), 0, 255)
        np.testing.assert_allclose(found[..., channel], expected, atol=0.02)
    # On bytes Pillow rounds and clips between the two directions and after them, which we do not.
    in_bytes = PIL.Image.fromarray(square).resize((224, 224), PIL.Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(in_bytes).astype(float)).mean() <= 0.35


@pytest.mark.parametrize(("height", "width", "top", "left"), [(40, 60, 5, 15), (41, 30, 5, 0), (30, 31, 0, 0)])
def test_the_square_is_cut_exactly_from_the_middle(height: int, width: int, top: int, left: int) -> None:
    """Input and square have one size, so nothing is resized and one pixel to the side would show."""
    session = make_preprocessor(in_grey_levels(30, 0.75))
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = run(session, pixels)
    np.testing.assert_allclose(found, pixels[top : top + 30, left : left + 30], atol=1e-3)


def test_grey_levels_are_clipped_where_the_cubic_overshoots() -> None:
    session = make_preprocessor(in_grey_levels(64, 1.0))
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    found = run(session, pixels)
    assert (found.min(), found.max()) == (0, 255)
    near_edge = found[32, [27, 28, 29, 30], 0]
    assert (near_edge == 0).any()
    assert (near_edge > 0).any()


def test_channels_are_normalised_each_by_its_own_mean_and_deviation() -> None:
    session = make_preprocessor(PreprocessSpec(8, 1.0, mean=(0.1, 0.5, 0.9), std=(0.2, 0.25, 0.5)))
    pixels = np.full((8, 8, 3), (51, 102, 204), np.uint8)
    np.testing.assert_allclose(run(session, pixels)[3, 4], [0.5, -0.4, -0.2], atol=1e-6)


def test_the_spec_as_json_tells_everything() -> None:
    assert PreprocessSpec(224, 0.875, HALF, HALF).to_json() == {
        "input_size_px": 224,
        "crop_frac": 0.875,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "cubic",
    }


def test_the_kind_of_crop_is_told_where_it_is_not_the_centre() -> None:
    for crop in ("after-resize", "squash"):
        assert PreprocessSpec(224, 0.875, HALF, HALF, "linear", crop).to_json()["crop"] == crop


RESAMPLING = {"cubic": PIL.Image.Resampling.BICUBIC, "linear": PIL.Image.Resampling.BILINEAR}


def resize_floats(pixels: np.ndarray, width: int, height: int, interpolation: str) -> np.ndarray:
    """Pillow's resize without rounding between its two directions, then clipped."""
    planes = [PIL.Image.fromarray(pixels[..., channel].astype(np.float32)) for channel in range(3)]
    resized = [np.asarray(plane.resize((width, height), RESAMPLING[interpolation])) for plane in planes]
    return np.clip(np.stack(resized, axis=-1), 0, 255)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 41), (64, 64), (90, 200), (375, 250)])
def test_bilinear_preprocessing_is_pillows(height: int, width: int) -> None:
    spec = dataclasses.replace(in_grey_levels(64, 1.0), interpolation="linear")
    pixels = make_scene(height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    expected = resize_floats(pixels[top : top + side, left : left + side], 64, 64, "linear")
    np.testing.assert_allclose(run(make_preprocessor(spec), pixels), expected, atol=0.02)


@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
@pytest.mark.parametrize(("crop_frac", "larger"), [(1.0, 64), (0.9, 71)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 41), (64, 64), (90, 200), (375, 20)])
def test_squashed_preprocessing_is_pillows(
    interpolation: str, crop_frac: float, larger: int, height: int, width: int
) -> None:
    spec = dataclasses.replace(in_grey_levels(64, crop_frac), interpolation=interpolation, crop="squash")
    pixels = make_scene(height, width)
    start = round((larger - 64) / 2)
    expected = resize_floats(pixels, larger, larger, interpolation)[start : start + 64, start : start + 64]
    np.testing.assert_allclose(run(make_preprocessor(spec), pixels), expected, atol=0.02)


@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
@pytest.mark.parametrize("crop_frac", [0.875, 0.95, 1.0])
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (3, 90), (64, 64), (65, 65), (66, 120), (67, 91), (73, 74), (250, 375), (377, 251), (900, 70)],
)
def test_cut_after_the_resize_is_pillows_to_fractions_of_a_pixel(
    interpolation: str, crop_frac: float, height: int, width: int
) -> None:
    spec = dataclasses.replace(in_grey_levels(64, crop_frac), interpolation=interpolation, crop="after-resize")
    pixels = make_scene(height, width)
    found = run(make_preprocessor(spec), pixels)
    short = min(height, width)
    if short <= 64:  # all of the short side, as for the centre
        top, left = (height - short) // 2, (width - short) // 2
        square = pixels[top : top + short, left : left + short]
        np.testing.assert_allclose(found, resize_floats(square, 64, 64, interpolation), atol=0.02)
        return
    short_resized = min(short, int(64 / crop_frac))
    rows, columns = height * short_resized // short, width * short_resized // short
    top, left = round((rows - 64) / 2), round((columns - 64) / 2)
    expected = resize_floats(pixels, columns, rows, interpolation)[top : top + 64, left : left + 64]
    # At the edges Pillow sees what lies beyond; inside, our filter is wider by the share of a pixel that is cut too many.
    difference = np.abs(found - expected)
    assert difference.mean() < 0.7
    assert difference[3:-3, 3:-3].max() < 4
    if short == short_resized:  # nothing is resized, and one pixel to the side would show
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_raster_as_fine_as_the_map_is_the_map() -> None:
    builder = GraphBuilder()
    row = add_pooling(builder, [(PooledLayer("map", 4), 5, 4), (PooledLayer("map", 2), 5, 4)])
    assert [node.op_type for node in builder.nodes].count("MatMul") == 1
    model = helper.make_model(
        helper.make_graph(
            builder.nodes,
            "pooling",
            [helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 5, 4, 4])],
            [helper.make_tensor_value_info(row, TensorProto.FLOAT, [1, 100])],
            builder.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    values = np.random.default_rng(0).normal(size=(1, 5, 4, 4)).astype(np.float32)
    found = open_session(model.SerializeToString()).run(None, {"map": values})[0]
    assert np.array_equal(found[0, :80], values.ravel())
    quarters = values.reshape(5, 2, 2, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(found[0, 80:], quarters.ravel(), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 14, 28])
@pytest.mark.parametrize("grid", [1, 2, 3, 4])
def test_pooling_cells_are_means_that_share_the_map_equally(size: int, grid: int) -> None:
    matrix = compute_pooling_matrix(size, grid)
    assert matrix.shape == (size * size, grid * grid)
    np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(matrix.sum(axis=1), grid**2 / size**2, rtol=1e-5)
    # A map so much enlarged that the cells divide it is averaged by plain reshaping.
    values = np.random.default_rng(0).normal(size=(size, size))
    large = np.kron(values, np.ones((grid, grid)))
    expected = large.reshape(grid, size, grid, size).mean(axis=(1, 3))
    np.testing.assert_allclose(values.ravel() @ matrix, expected.ravel(), atol=1e-6)


@pytest.mark.parametrize("size", [5, 7, 14])
def test_coarser_rasters_are_means_of_finer_ones(size: int) -> None:
    values = np.random.default_rng(1).normal(size=size * size).astype(np.float32)
    four = (values @ compute_pooling_matrix(size, 4)).reshape(2, 2, 2, 2)
    np.testing.assert_allclose(four.mean(axis=(1, 3)).ravel(), values @ compute_pooling_matrix(size, 2), atol=1e-6)
    for grid in (2, 3, 4):
        mean = (values @ compute_pooling_matrix(size, grid)).mean()
        np.testing.assert_allclose(mean, values.mean(), atol=1e-6)


def test_a_pooled_vector_holds_the_layers_side_by_side() -> None:
    backbone = make_tiny_backbone()
    builder = GraphBuilder("pool_")
    wanted = [PooledLayer("top", 2), PooledLayer("first", 1), PooledLayer("top", 1)]
    maps = {layer.name: layer for layer in backbone.layers}
    row = add_pooling(builder, [(block, maps[block.layer].channels, maps[block.layer].size) for block in wanted])
    builder.add("Reshape", row, builder.int_constant(-1), output=FEATURES)
    model = extend_graph(backbone.model, ["first", "top"], builder, FEATURES, 4 * 160 + 32 + 160)
    pixels = make_scene(21, 30)
    found = open_session(model.SerializeToString()).run(None, {IMAGE: pixels})[0]
    session = open_session(backbone.model.SerializeToString())
    first, top = session.run(["first", "top"], {IMAGE: pixels})
    quarters = top[0].reshape(160, 2, 2, 2, 2).mean(axis=(2, 4)).ravel()
    expected = np.concatenate([quarters, first[0].mean(axis=(1, 2)), top[0].mean(axis=(1, 2))])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert [str(block) for block in wanted] == ["top 2x2", "first 1x1", "top 1x1"]


def test_layers_that_are_not_needed_are_cut_away(backbone: Backbone) -> None:
    def measure(layer_name: str) -> tuple[int, int]:
        layer = backbone.get_layer(layer_name)
        builder = GraphBuilder("pool_")
        row = add_pooling(builder, [(PooledLayer(layer_name, 1), layer.channels, layer.size)])
        builder.add("Reshape", row, builder.int_constant(-1), output=FEATURES)
        model = extend_graph(backbone.model, [layer_name], builder, FEATURES, layer.channels)
        return len(model.graph.node), model.ByteSize()

    nodes, sizes = zip(*(measure(name) for name in ("stage3", "stage5", "stage7", "head")), strict=True)
    assert sorted(set(nodes)) == list(nodes)
    assert sorted(set(sizes)) == list(sizes)
    assert sizes[0] < 0.05 * sizes[-1]
    assert measure("head")[1] < backbone.model.ByteSize() + 2000


def test_half_precision_in_the_graph_is_numpys() -> None:
    builder = GraphBuilder()
    builder.add("Identity", "values", output="features")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("values", "features")]
    narrowed = narrow_output(builder.build(info[:1], info[1:]), "features", "half")
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.sort(halves[np.isfinite(halves)])
    middles = (halves[1:] + halves[:-1]) / 2
    up, down = (np.nextafter(middles, np.float32(towards)) for towards in (np.inf, -np.inf))
    beyond = np.array([65519, 65520, 1e9, -1e9, np.inf, -np.inf, np.nan, 1e-30], np.float32)
    values = np.concatenate([halves, middles, up, down, beyond])
    (found,) = open_session(narrowed.SerializeToString()).run(None, {"values": values})
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.clip(values, -65504, 65504).astype(np.float16))
