"""EfficientNet-Lite (Tan and Le 2019, https://arxiv.org/abs/1905.11946, without squeeze-and-excitation, with ReLU6):
its published weights, from state-dict names to an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from headstart.errors import BackboneError
from headstart.graph import IMAGE_INPUT, GraphBuilder, PreprocessSpec, add_preprocessing

_BATCH_NORM_EPS = 1e-3


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


# The lite variants keep the first and last stage, the stem and the head at their size.
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def build_efficientnet_lite(
    weights: Mapping[str, np.ndarray], preprocess: PreprocessSpec, depth: float
) -> onnx.ModelProto:
    """Picture to feature maps: outputs `stage1` ... `stage7` and `head`, float32 (1, C, h, h).

    Batch norm is folded into the convolutions and TensorFlow's SAME padding is written out for the input size.
    `depth` multiplies the repeats of the inner stages. Raises BackboneError when tensors are missing or misshapen.
    """
    return LiteWriter(weights, preprocess).build(depth)


def compute_stage_statistics(
    weights: Mapping[str, np.ndarray], depth: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Stage to mean and standard deviation, float64 (C,) each, of its channels over the pictures of the pretraining.

    A block ends in batch norm, whose outputs have mean `bias` and standard deviation `weight` there, and is added to
    what came before: means add exactly, variances as if blocks were uncorrelated.
    """
    statistics, block = {}, 0
    for number in range(1, len(_STAGES) + 1):
        blocks = range(block, block + _count_repeats(number, depth))
        biases = np.stack([weights[f"_blocks.{index}._bn2.bias"] for index in blocks]).astype(np.float64)
        gains = np.stack([weights[f"_blocks.{index}._bn2.weight"] for index in blocks]).astype(np.float64)
        statistics[f"stage{number}"] = (biases.sum(axis=0), np.sqrt((gains**2).sum(axis=0)))
        block += len(blocks)
    return statistics


def _count_repeats(number: int, depth: float) -> int:
    """Blocks of the stage of that number; the first and last do not grow with depth."""
    repeats = _STAGES[number - 1].repeats
    return math.ceil(repeats * depth) if 1 < number < len(_STAGES) else repeats


class LiteWriter:
    def __init__(self, weights: Mapping[str, np.ndarray], preprocess: PreprocessSpec) -> None:
        self.weights = weights
        self.builder = GraphBuilder()
        self.size = preprocess.input_size_px
        self.tensor = add_preprocessing(self.builder, preprocess)
        self.channels = 3
        self.outputs: list[onnx.ValueInfoProto] = []

    def build(self, depth: float) -> onnx.ModelProto:
        self.convolve("_conv_stem", "_bn0", side=3, stride=2)
        block = 0
        for number, stage in enumerate(_STAGES, start=1):
            for repeat in range(_count_repeats(number, depth)):
                self.add_block(
                    f"_blocks.{block}", stage, stride=stage.stride if repeat == 0 else 1, residual=repeat > 0
                )
                block += 1
            self.mark_layer(f"stage{number}")
        self.convolve("_conv_head", "_bn1")
        self.mark_layer("head")
        return self.builder.build([IMAGE_INPUT], self.outputs)

    def add_block(self, prefix: str, stage: _Stage, stride: int, residual: bool) -> None:
        shortcut = self.get_shortcut()
        if stage.expand > 1:
            self.convolve(f"{prefix}._expand_conv", f"{prefix}._bn0")
        self.convolve(f"{prefix}._depthwise_conv", f"{prefix}._bn1", stage.kernel, stride)
        self.convolve(f"{prefix}._project_conv", f"{prefix}._bn2", relu6=False)
        if residual:
            self.add_shortcut(shortcut)

    def convolve(self, conv: str, norm: str, side: int = 1, stride: int = 1, *, relu6: bool = True) -> None:
        """How many channels come out is the kernel's to say: the variants differ in width."""
        channels = len(self.weights.get(f"{conv}.weight", ()))
        group = self.channels if "_depthwise" in conv else 1
        kernel = self.get(f"{conv}.weight", channels, self.channels // group, side, side)
        gain = self.get(f"{norm}.weight", channels) / np.sqrt(
            self.get(f"{norm}.running_var", channels) + _BATCH_NORM_EPS
        )
        bias = self.get(f"{norm}.bias", channels) - self.get(f"{norm}.running_mean", channels) * gain
        size = -(-self.size // stride)
        padding = max((size - 1) * stride + side - self.size, 0)
        before, after = padding // 2, padding - padding // 2
        self.channels = channels
        self.size = size
        self.add_conv(
            kernel * gain.reshape(-1, 1, 1, 1),
            bias,
            conv,
            norm,
            relu6,
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=group,
            kernel_shape=[side, side],
        )

    def add_conv(
        self, kernel: np.ndarray, bias: np.ndarray, name: str, norm: str, relu6: bool, **attributes: Any
    ) -> None:
        self.tensor = self.builder.add(
            "Conv",
            self.tensor,
            self.builder.constant(kernel.astype(np.float32), f"{name}.weight"),
            self.builder.constant(bias.astype(np.float32), f"{name}.bias"),
            **attributes,
        )
        if relu6:
            zero, six = (self.builder.constant(np.array(value, np.float32)) for value in (0, 6))
            self.tensor = self.builder.add("Clip", self.tensor, zero, six)

    def get_shortcut(self) -> Any:
        return self.tensor

    def add_shortcut(self, shortcut: Any) -> None:
        self.tensor = self.builder.add("Add", self.tensor, shortcut)

    def mark_layer(self, name: str) -> None:
        self.tensor = self.builder.add("Identity", self.tensor, output=name)
        shape = [1, self.channels, self.size, self.size]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def get(self, name: str, *shape: int) -> np.ndarray:
        if name not in self.weights:
            raise BackboneError(f"The weights hold no tensor '{name}'; they are not of this EfficientNet-Lite.")
        tensor = self.weights[name]
        if tensor.shape != shape:
            raise BackboneError(
                f"The weights hold a tensor '{name}' of shape {tensor.shape}, expected {shape}; "
                "they are not of this EfficientNet-Lite."
            )
        return tensor.astype(np.float64)
