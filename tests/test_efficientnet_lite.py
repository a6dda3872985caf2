"""The built-in network against a forward pass in numpy that folds nothing, and what wrong weights lead to."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from headstart.backbones.catalog import CATALOG
from headstart.backbones.efficientnet_lite import build_efficientnet_lite
from headstart.backbones.torch_checkpoint import read_checkpoint
from headstart.errors import BackboneError
from headstart.graph import IMAGE, PreprocessSpec

HALF = (0.5, 0.5, 0.5)
# As the reference implementation writes the blocks of B0: repeats, kernel, stride, expansion, channels in, out.
BLOCKS = "r1_k3_s1_e1_i32_o16 r2_k3_s2_e6_i16_o24 r2_k5_s2_e6_i24_o40 r3_k3_s2_e6_i40_o80 r3_k5_s1_e6_i80_o112 \
r4_k5_s2_e6_i112_o192 r1_k3_s1_e6_i192_o320"

Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights() -> Weights:
    file = CATALOG["efficientnet-lite0"].find_weights()
    assert file is not None
    return read_checkpoint(file.read_bytes())


def pad_same(maps: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """TensorFlow's SAME: as many windows as ceil(size / stride), the odd row and column of zeros at the end."""
    windows = (maps.shape[1] + stride - 1) // stride
    total = max(0, kernel + stride * (windows - 1) - maps.shape[1])
    margin = (total // 2, total - total // 2)
    return np.pad(maps, ((0, 0), margin, margin))


def convolve(maps: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Maps (C, H, W) under a kernel (O, C, k, k), or (C, 1, k, k) for one kernel a channel."""
    side = kernel.shape[2]
    padded = pad_same(maps, side, stride)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::stride, ::stride]
    if kernel.shape[1] == 1 and maps.shape[0] > 1:
        return np.einsum("chwij,cij->chw", windows, kernel[:, 0])
    if side == 1:
        return np.tensordot(kernel[:, :, 0, 0], windows[..., 0, 0], axes=1)
    return np.einsum("chwij,ocij->ohw", windows, kernel)


def normalise(maps: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    part = {key: weights[f"{name}.{key}"].astype(np.float64)[:, None, None] for key in ("weight", "bias")}
    mean, variance = (weights[f"{name}.running_{key}"].astype(np.float64)[:, None, None] for key in ("mean", "var"))
    return (maps - mean) / np.sqrt(variance + 0.001) * part["weight"] + part["bias"]


def relu6(maps: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(maps, 0), 6)


def run_network(weights: Weights, image: np.ndarray) -> Weights:
    """Every stage's maps in float64 for a picture of exactly the input size."""

    def layer(maps: np.ndarray, conv: str, norm: str, stride: int = 1) -> np.ndarray:
        return normalise(convolve(maps, weights[f"{conv}.weight"].astype(np.float64), stride), weights, norm)

    maps = image.astype(np.float64).transpose(2, 0, 1) / 127.5 - 1
    maps = relu6(layer(maps, "_conv_stem", "_bn0", 2))
    found, number = {}, 0
    for stage, text in enumerate(BLOCKS.split(), start=1):
        repeats, _, stride, expansion, _, channels = (int(part[1:]) for part in text.split("_"))
        for repeat in range(repeats):
            name, inputs = f"_blocks.{number}", maps
            if expansion != 1:
                maps = relu6(layer(maps, f"{name}._expand_conv", f"{name}._bn0"))
            maps = relu6(layer(maps, f"{name}._depthwise_conv", f"{name}._bn1", 1 if repeat else stride))
            maps = layer(maps, f"{name}._project_conv", f"{name}._bn2")
            if repeat:
                maps = maps + inputs
            number += 1
        assert len(maps) == channels
        found[f"stage{stage}"] = maps
    found["head"] = relu6(layer(maps, "_conv_head", "_bn1"))
    return found


@pytest.mark.parametrize("size", [64, 75])  # 75, 38, 19, 10, 5, 3: odd sides are padded otherwise than even ones
def test_all_layers_equal_a_forward_pass_in_numpy(weights: Weights, size: int) -> None:
    model = build_efficientnet_lite(weights, PreprocessSpec(size, 1.0, HALF, HALF), 1.0)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(size)
    image = np.clip(rng.normal(128, 60, (size, size, 3)) + 50 * np.sin(np.arange(size) / 5)[:, None], 0, 255)
    image = image.astype(np.uint8)
    expected = run_network(weights, image)
    names = [output.name for output in session.get_outputs()]
    assert names == list(expected)
    for name, output in zip(names, session.run(None, {IMAGE: image}), strict=True):
        assert output.shape == (1, *expected[name].shape)
        scale = np.abs(expected[name]).max()
        assert scale > 0.5
        np.testing.assert_allclose(output[0] / scale, expected[name] / scale, atol=1e-4, err_msg=name)


def test_padding_is_uneven_where_the_side_is_even(weights: Weights) -> None:
    def find_pads(size: int) -> list[list[int]]:
        model = build_efficientnet_lite(weights, PreprocessSpec(size, 1.0, HALF, HALF), 1.0)
        attributes = [
            {attribute.name: list(attribute.ints) for attribute in node.attribute if attribute.ints}
            for node in model.graph.node
            if node.op_type == "Conv"
        ]
        return [values["pads"] for values in attributes if values["strides"] == [2, 2]]

    uneven_3, uneven_5 = [0, 0, 1, 1], [1, 1, 2, 2]  # top, left, bottom, right
    assert find_pads(64) == [uneven_3, uneven_3, uneven_5, uneven_3, uneven_5]
    assert find_pads(33) == [[1] * 4, [1] * 4, [2] * 4, [1] * 4, [2] * 4]  # 33, 17, 9, 5, 3: odd throughout


@pytest.mark.parametrize("name", ["_conv_stem.weight", "_blocks.9._bn1.running_var", "_bn1.bias"])
def test_a_missing_tensor_is_named(weights: Weights, name: str) -> None:
    others = {key: values for key, values in weights.items() if key != name}
    with pytest.raises(BackboneError) as caught:
        build_efficientnet_lite(others, PreprocessSpec(64, 1.0, HALF, HALF), 1.0)
    assert str(caught.value) == f"The weights hold no tensor '{name}'; they are not of this EfficientNet-Lite."


def test_a_misshapen_tensor_is_named(weights: Weights) -> None:
    wrong = {**weights, "_blocks.2._project_conv.weight": np.zeros((24, 96, 1, 1), np.float32)}
    norm = {**weights, "_bn0.bias": np.zeros(16, np.float32)}
    with pytest.raises(BackboneError, match=r"'_bn0.bias' of shape \(16,\), expected \(32,\)"):
        build_efficientnet_lite(norm, PreprocessSpec(64, 1.0, HALF, HALF), 1.0)
    with pytest.raises(BackboneError, match=r"'_blocks.2._project_conv.weight' of shape .*expected \(24, 144, 1, 1\)"):
        build_efficientnet_lite(wrong, PreprocessSpec(64, 1.0, HALF, HALF), 1.0)


@pytest.mark.parametrize("depth", [1.1, 1.2])
def test_weights_of_another_depth_are_refused(weights: Weights, depth: float) -> None:
    """The first block that lite1 has and lite0 has not stands where lite0 has a block of the next stage."""
    with pytest.raises(BackboneError, match=r"'_blocks\.3\."):
        build_efficientnet_lite(weights, PreprocessSpec(64, 1.0, HALF, HALF), depth)
