"""EfficientNet-Lite in 8 bits: weights and feature maps as bytes but for the first, from the published weights alone.

Written as QuantizeLinear and DequantizeLinear around plain operations, which any ONNX Runtime can run as they stand and
which its optimiser turns into integer arithmetic. Weights have a scale for each output channel, maps one scale each.
No pictures are needed: batch norm says what mean and spread its outputs had over those of the pretraining (Nagel et al.
2019, https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from headstart.backbones.efficientnet_lite import LiteWriter
from headstart.graph import PreprocessSpec

# What a map's scale reaches, in standard deviations from the mean of its widest channel.
_RANGE = 4.0
# The first convolutions stay as they are. What they round goes through all the rest (it was half of the whole error),
# and on few channels integer arithmetic is not faster.
_EXACT = ("_conv_stem", "_blocks.0.", "_blocks.1.")
_LAST_EXACT = "_blocks.1._project_conv"
_PAIR_LIMIT = 128  # 255 * 128 < 2**15


def build_efficientnet_lite_int8(
    weights: Mapping[str, np.ndarray], preprocess: PreprocessSpec, depth: float
) -> onnx.ModelProto:
    """Picture to feature maps as `build_efficientnet_lite` gives them: float32, rounded to 256 values from stage2 on.

    Raises BackboneError when tensors are missing or misshapen.
    """
    return _Int8Writer(weights, preprocess).build(depth)


class _Int8Writer(LiteWriter):
    """`mean` and `variance` float64 (C,) are those of the tensor's channels, `scale` its step."""

    def __init__(self, weights: Mapping[str, np.ndarray], preprocess: PreprocessSpec) -> None:
        super().__init__(weights, preprocess)
        self.mean = self.variance = np.zeros(3)
        self.scale, self.zero, self.rounded = 0.0, 0, ""

    def add_conv(
        self, kernel: np.ndarray, bias: np.ndarray, name: str, norm: str, relu6: bool, **attributes: Any
    ) -> None:
        if name.startswith(_EXACT):
            super().add_conv(kernel, bias, name, norm, relu6, **attributes)
            self.mean, self.variance = self.get(f"{norm}.bias", len(bias)), self.get(f"{norm}.weight", len(bias)) ** 2
            if name == _LAST_EXACT:
                self.round_signed(self.tensor)
            return
        scales = np.maximum(find_scales(kernel), np.abs(bias) / (self.scale * 2.0**30))
        rounded = np.round(kernel / scales.reshape(-1, 1, 1, 1))
        error = (rounded * scales.reshape(-1, 1, 1, 1) - kernel).sum(axis=(2, 3))
        bias = bias - (error[:, 0] * self.mean if attributes["group"] > 1 else error @ self.mean)
        scales = scales.astype(np.float32)
        bias_scales = scales * np.float32(self.scale)
        conv = self.builder.add(
            "Conv",
            self.tensor,
            self.dequantize(self.constant(rounded.astype(np.int8)), scales, np.zeros(len(scales), np.int8), axis=0),
            self.dequantize(
                self.constant(np.round(bias / bias_scales).astype(np.int32)),
                bias_scales,
                np.zeros(len(scales), np.int32),
                axis=0,
            ),
            **attributes,
        )
        self.mean, self.variance = self.get(f"{norm}.bias", len(bias)), self.get(f"{norm}.weight", len(bias)) ** 2
        if relu6:  # what lies below 0 or above 6 has no byte
            self.round_map(conv, 6 / 255, 0)
            self.mean = _compute_clipped_mean(self.mean, np.sqrt(self.variance))
        else:
            self.round_signed(conv)

    def add_shortcut(self, shortcut: Any) -> None:
        tensor, mean, variance = shortcut
        self.mean, self.variance = self.mean + mean, self.variance + variance
        self.round_signed(self.builder.add("Add", self.tensor, tensor))

    def get_shortcut(self) -> Any:
        return self.tensor, self.mean, self.variance

    def round_signed(self, tensor: str) -> None:
        reach = float((np.abs(self.mean) + _RANGE * np.sqrt(self.variance)).max())
        self.round_map(tensor, reach / 127.5, 128)

    def round_map(self, tensor: str, scale: float, zero: int) -> None:
        self.scale, self.zero = float(np.float32(scale)), zero
        self.rounded = self.quantize(tensor, scale, zero)
        self.tensor = self.dequantize(self.rounded, scale, zero)

    def mark_layer(self, name: str) -> None:
        """A copy, so that what comes after the layer still begins with bytes."""
        tensor = self.tensor
        if self.rounded:
            self.tensor = self.dequantize(self.rounded, self.scale, self.zero)
        super().mark_layer(name)
        self.tensor = tensor

    def quantize(self, tensor: str, scale: float, zero: int) -> str:
        return self.builder.add(
            "QuantizeLinear", tensor, self.constant(np.float32(scale)), self.constant(np.uint8(zero))
        )

    def dequantize(self, tensor: str, scale: Any, zero: Any, **attributes: Any) -> str:
        zero = np.uint8(zero) if isinstance(zero, int) else zero
        return self.builder.add(
            "DequantizeLinear", tensor, self.constant(np.asarray(scale, np.float32)), self.constant(zero), **attributes
        )

    def constant(self, value: Any) -> str:
        """Also of no dimension, which a scale of a whole tensor must have."""
        name = f"q{len(self.builder.initializers)}"
        self.builder.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def find_scales(kernel: np.ndarray) -> np.ndarray:
    """float64 (C,): as fine as 8 bits allow, and so that no processor's arithmetic overflows.

    Those without VNNI instructions add two neighbouring products of an unsigned and a signed byte in 16 bits and cut
    off what does not fit. Halving all weights would avoid it and cost 5 dB; it is enough that no two neighbours of the
    same sign add up to more than 128.
    """
    largest = np.abs(kernel).max(axis=(1, 2, 3))
    scales = largest / 127
    if kernel.shape[1] > 1:
        flat = kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)
        pairs = np.pad(flat, ((0, 0), (0, flat.shape[1] % 2))).reshape(len(kernel), -1, 2)
        sums = np.maximum(np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2)).max(axis=1)
        scales = np.maximum(scales, sums / (_PAIR_LIMIT - 1))  # one less: rounding may add a half to both
    return np.maximum(scales, 1e-12)


def _compute_clipped_mean(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The mean of a normal variable that is cut to 0 ... 6."""
    deviation = np.maximum(deviation, 1e-9)
    low, high = -mean / deviation, (6 - mean) / deviation
    below, under = (np.array([0.5 + math.erf(x / math.sqrt(2)) / 2 for x in end]) for end in (low, high))
    density_low, density_high = (np.exp(-(end**2) / 2) / math.sqrt(2 * math.pi) for end in (low, high))
    return mean * (under - below) - deviation * (density_high - density_low) + 6 * (1 - under)
