"""A backbone of three layers and some 20,000 random weights, and real picture files for it: quick, and no mock."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import PIL.Image
from onnx import TensorProto, helper

from headstart.backbones.catalog import Backbone, Layer
from headstart.features import Picture
from headstart.graph import IMAGE_INPUT, GraphBuilder, PreprocessSpec, add_preprocessing

INPUT_SIZE_PX = 16
LAYERS = (Layer("first", 32, 8), Layer("second", 48, 4), Layer("top", 160, 4))


def make_tiny_backbone(
    input_size_px: int = INPUT_SIZE_PX, crop_frac: float = 0.875, seed: int = 0, layers: tuple[Layer, ...] = LAYERS
) -> Backbone:
    """Convolutions with ReLU; a layer half as large as the one before has stride 2."""
    rng = np.random.default_rng(seed)
    half = (0.5, 0.5, 0.5)
    preprocess = PreprocessSpec(input_size_px, crop_frac, half, half)
    builder = GraphBuilder()
    tensor, channels, size, outputs = add_preprocessing(builder, preprocess), 3, input_size_px, []
    for layer in layers:
        kernel = rng.normal(0, channels**-0.5, (layer.channels, channels, 1, 1)).astype(np.float32)
        stride = size // layer.size
        tensor = builder.add("Conv", tensor, builder.constant(kernel), strides=[stride, stride], kernel_shape=[1, 1])
        tensor = builder.add("Relu", tensor, output=layer.name)
        shape = [1, layer.channels, layer.size, layer.size]
        outputs.append(helper.make_tensor_value_info(layer.name, TensorProto.FLOAT, shape))
        channels, size = layer.channels, layer.size
    model = builder.build([IMAGE_INPUT], outputs)
    return Backbone("tiny", "0" * 64, "Apache-2.0", "tests/tiny_backbone.py", preprocess, layers, model)


def make_pictures(folder: Path, count: int, seed: int = 0) -> list[Picture]:
    """PNG files of random pixels, 20 to 40 px a side; the first ones do not depend on `count`."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        height, width = rng.integers(20, 40, 2)
        path = folder / f"{index}.png"
        PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        pictures.append(Picture(hashlib.sha256(path.read_bytes()).hexdigest(), str(path)))
    return pictures
