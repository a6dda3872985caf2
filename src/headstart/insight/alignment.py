"""Whether two small pictures show the same once one of them is shifted and scaled a little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

FloatArray = npt.NDArray[np.floating[Any]]
Thumbnails = npt.NDArray[np.uint8]

SIZE_PX = 32
_SCALES = (0.85, 1.18)  # what a crop by 5 % on one side, or on both of different sides, may ask for
_MAX_SHIFT_PX = 0.1 * SIZE_PX
_ROUNDS = ((1.5, 3), (0.75, 3))  # blur in pixels, steps of Gauss-Newton with it
_BAND = (0.35, 3.0)  # details between these blurs are compared
_NUM_TILES = 4  # a side
_LOW_TILE = 3  # of the 16 sorted: three tiles may differ, by a caption or a logo
_NOISE_VARIANCE = 1.0  # grey levels squared
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_POSITIONS = np.arange(SIZE_PX, dtype=np.float32) - (SIZE_PX - 1) / 2  # from the middle


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """How P pairs agree where they overlap, the first picture being scaled and shifted to lie on the second.

    `correlation` (P,) of details in colour, -1 .. 1. `low_tile` (P,) is the same in the fourth worst of 4 x 4 tiles:
    a few lines in common make a high correlation, but not everywhere; a tile without details agrees with one without.
    `scale` and `shift` (P, 2) are x and y; shifts are fractions of the side.
    """

    correlation: FloatArray
    low_tile: FloatArray
    scale: FloatArray
    shift: FloatArray


def make_thumbnail(pixels: npt.NDArray[np.uint8]) -> Thumbnails:
    """The whole of an RGB picture (H, W, 3) squeezed or stretched into a square, (32, 32, 3)."""
    small = PIL.Image.fromarray(pixels).resize((SIZE_PX, SIZE_PX), PIL.Image.Resampling.BILINEAR, reducing_gap=2)
    return np.asarray(small)


def compare_thumbnails(first: Thumbnails, second: Thumbnails) -> Agreement:
    """Align each of P pairs of thumbnails (P, 32, 32, 3) and measure how they agree.

    Alignment is Gauss-Newton on the grey levels, blurred first more, then less (Lucas and Kanade 1981), over scale and
    shift in x and y; gain and offset are fitted with them, so that brightness and contrast play no part.
    """
    place = _align(first @ _GREY, second @ _GREY)
    return _measure(first.astype(np.float32), second.astype(np.float32), place)


def _align(first: FloatArray, second: FloatArray) -> FloatArray:
    """Scale and shift in x, then in y (P, 4), so that `first` read there is like `second`."""
    place = np.tile(np.array([1.0, 0.0, 1.0, 0.0]), (len(first), 1))
    x, y = _POSITIONS[None, None, :], _POSITIONS[None, :, None]
    most = np.array([0.05, 0.05 * SIZE_PX, 0.05, 0.05 * SIZE_PX])  # in one step
    damping = np.diag([1e-4, 1e-4, 1e-4, 1e-4, 0.0, 0.0])
    for blur, num_steps in _ROUNDS:
        smooth = _make_blur(blur)
        source, target = smooth @ first @ smooth.T, smooth @ second @ smooth.T
        slope_y, slope_x = np.gradient(source, axis=(1, 2))
        for _ in range(num_steps):
            read_x, read_y, inside = _plan_reading(place)
            grey, by_x, by_y = (read_y @ levels @ read_x for levels in (source, slope_x, slope_y))
            columns = np.stack([by_x * x, by_x, by_y * y, by_y, grey, np.ones_like(grey)], axis=1) * inside[:, None]
            jacobian = columns.reshape(len(first), 6, -1)
            squares = (jacobian @ jacobian.transpose(0, 2, 1)).astype(np.float64)
            squares += damping * np.trace(squares, axis1=1, axis2=2)[:, None, None] + 1e-3 * np.eye(6)
            right = jacobian @ (target * inside).reshape(len(first), -1, 1)
            solved = np.linalg.solve(squares, right.astype(np.float64))[:, :, 0]
            gain = solved[:, 4:5]
            step = solved[:, :4] / np.where(np.abs(gain) < 0.2, 0.2, gain)
            place = place + np.clip(step, -most, most)
            place[:, 0::2] = np.clip(place[:, 0::2], *_SCALES)
            place[:, 1::2] = np.clip(place[:, 1::2], -_MAX_SHIFT_PX, _MAX_SHIFT_PX)
    return place


def _measure(first: FloatArray, second: FloatArray, place: FloatArray) -> Agreement:
    fine, coarse = map(_make_blur, _BAND)
    read_x, read_y, inside = _plan_reading(place)
    area = inside.sum(axis=(1, 2))
    parts = []
    for channel in range(3):
        one, other = (
            fine @ levels[..., channel] @ fine.T - coarse @ levels[..., channel] @ coarse.T
            for levels in (first, second)
        )
        one = read_y @ one @ read_x
        one, other = (
            (levels - ((levels * inside).sum(axis=(1, 2)) / area)[:, None, None]) * inside for levels in (one, other)
        )
        parts.append(np.stack([one * other, one * one, other * other]))
    # (3, P, tiles, side, tiles, side): sums of products over each tile, of all channels
    side = SIZE_PX // _NUM_TILES
    tiled = np.sum(parts, axis=0).reshape(3, len(first), _NUM_TILES, side, _NUM_TILES, side).sum(axis=(3, 5))
    noise = 3 * _NOISE_VARIANCE * inside.reshape(len(first), _NUM_TILES, side, _NUM_TILES, side).sum(axis=(2, 4))
    sums = tiled.sum(axis=(2, 3))
    whole_noise = noise.sum(axis=(1, 2))
    correlation = sums[0] / np.sqrt((sums[1] + whole_noise) * (sums[2] + whole_noise))
    tiles = (tiled[0] + noise) / np.sqrt((tiled[1] + noise) * (tiled[2] + noise))
    low_tile = np.sort(tiles.reshape(len(first), -1), axis=1)[:, _LOW_TILE]
    return Agreement(correlation, low_tile, place[:, 0::2], place[:, 1::2] / SIZE_PX)


def _plan_reading(place: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Matrices that read the first thumbnail between its pixels, and which pixels of the second it covers (0, 1)."""
    matrices, inside = [], []
    for scale, shift in ((place[:, 0], place[:, 1]), (place[:, 2], place[:, 3])):
        at = scale[:, None] * _POSITIONS + shift[:, None] + (SIZE_PX - 1) / 2
        matrices.append(np.maximum(0, 1 - np.abs(at[:, :, None] - np.arange(SIZE_PX))).astype(np.float32))
        inside.append((at >= 0) & (at <= SIZE_PX - 1))
    covered = inside[1][:, :, None] & inside[0][:, None, :]
    return matrices[0].transpose(0, 2, 1), matrices[1], covered.astype(np.float32)


def _make_blur(sigma_px: float) -> FloatArray:
    """A Gaussian as a matrix; at the border it weighs what is there."""
    weights = np.exp(-0.5 * ((_POSITIONS[:, None] - _POSITIONS[None, :]) / sigma_px) ** 2)
    blur: FloatArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return blur
