"""Random views of a picture, at the network's input side. For training pictures only; to keep to that is the caller's.

Pillow does the work: it lets other threads run meanwhile, and one picture's pixels never depend on their number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from headstart.errors import ConfigError, raise_all, suggest
from headstart.graph import PreprocessSpec

VIEW_VERSION = 1
"""Part of every key made of an augmentation: raised whenever the same random numbers give other pixels."""

# Lowest and highest value. The limits on what is warped bound the memory that a warp may take.
_RANGES = {
    "rotation_deg": (0, 180),
    "shift_frac": (0, 1),
    "shear_frac": (0, 1),
    "zoom_frac": (0, 0.5),
    "colour_frac": (0, 1),
    "hue_frac": (0, 0.5),
    "randaugment_ops": (0, 20),
    "randaugment_magnitude": (0, 30),
    "resized_crop_min_frac": (0.01, 1),
    "mixup_alpha": (0, 100),
    "cutmix_alpha": (0, 100),
}
_WHOLE = ("randaugment_ops",)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is changed at random in a training picture; everything is off by default.

    horizontal_flip: mirrored in half of the views.
    rotation_deg: turned by up to so many degrees either way, about the middle.
    shift_frac: moved by up to this share of the side, in both directions on their own.
    shear_frac: slanted until top and bottom have moved apart by up to this share of the side. The tutorials'
        `shear_range=0.2` is meant: Keras took it as radians when they were written (sin 0.2 = 0.2) and takes it as
        degrees since, which hardly shows.
    zoom_frac: magnified to 1 - z .. 1 + z, width and height on their own, as Keras's `zoom_range` does.
    colour_frac: brightness, contrast and saturation, each times 1 - c .. 1 + c.
    hue_frac: hue turned by up to this share of the colour circle either way, at most 0.5.
    randaugment_ops, randaugment_magnitude: how many of 14 operations are drawn for a view and how strong they are, 0 to
        30 (Cubuk et al. 2020, with torchvision's operations and scale).
    resized_crop_min_frac: instead of the centred square a piece of the picture, from this share of its area to all
        of it, its sides between 3:4 and 4:3 (Szegedy et al. 2015). None is off.
    mixup_alpha, cutmix_alpha: parameter of the beta distribution, 0 is off; see headstart.finetuning.mixing.

    Raises ConfigError that lists every value out of range.
    """

    horizontal_flip: bool = False
    rotation_deg: float = 0.0
    shift_frac: float = 0.0
    shear_frac: float = 0.0
    zoom_frac: float = 0.0
    colour_frac: float = 0.0
    hue_frac: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: float = 9.0
    resized_crop_min_frac: float | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        raise_all(ConfigError, _find_problems(asdict(self)))

    def to_json(self) -> str:
        """One line that is the same for equal augmentations and for no others: for the key of a cache."""
        values = {
            name: float(value) if type(value) is int and name not in _WHOLE else value
            for name, value in asdict(self).items()
        }
        return json.dumps({"version": VIEW_VERSION, **values}, sort_keys=True)


def _find_problems(values: dict[str, object]) -> list[str]:
    problems = []
    if not isinstance(values["horizontal_flip"], bool):
        problems.append(f"horizontal_flip is {values['horizontal_flip']!r}. Expected True or False.")
    for name, (low, high) in _RANGES.items():
        value = values[name]
        if name == "resized_crop_min_frac" and value is None:
            continue
        kind = "a whole number" if name in _WHOLE else "a number"
        is_kind = isinstance(value, int if name in _WHOLE else (int, float)) and not isinstance(value, bool)
        if not (is_kind and low <= value <= high):  # type: ignore[operator]
            problems.append(f"{name} is {value!r}. Expected {kind} from {low} to {high}.")
    return problems


PRESETS = {
    "none": Augmentation(),
    "flip": Augmentation(horizontal_flip=True),
    "light": Augmentation(horizontal_flip=True, resized_crop_min_frac=0.7),
    "tutorial": Augmentation(horizontal_flip=True, rotation_deg=40, shift_frac=0.2, shear_frac=0.2, zoom_frac=0.2),
    "strong": Augmentation(
        horizontal_flip=True, resized_crop_min_frac=0.25, randaugment_ops=2, mixup_alpha=0.2, cutmix_alpha=1.0
    ),
}


def find_preset(name: str) -> Augmentation:
    """The preset of that name. Raises ConfigError with the nearest name."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset '{name}'.{suggest(name, PRESETS)} Known: {', '.join(PRESETS)}.")
    return PRESETS[name]


def draw_view(
    pixels: NDArray[np.uint8], augmentation: Augmentation, preprocess: PreprocessSpec, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """One random view, uint8 (S, S, 3) with S the network's input side, of an RGB picture uint8 (H, W, 3).

    In this order: cut (the square that the network's graph cuts, or a random piece) and resize; flip; rotation, shift,
    shear and zoom in one bilinear warp, what comes from outside being the nearest pixel; colour; RandAugment. Without
    augmentation it is the network's own input. Mixing is not done here. The same state of `rng` gives the same
    bytes, in any thread. The array is read-only; the network's mean and standard deviation are not applied. Validation
    and test pictures must never come here.
    """
    height, width = pixels.shape[:2]
    resample = Image.Resampling.BILINEAR if preprocess.interpolation == "linear" else Image.Resampling.BICUBIC
    side = preprocess.input_size_px
    is_cut_last = preprocess.crop == "squash" or (preprocess.crop == "after-resize" and min(height, width) > side)
    if augmentation.resized_crop_min_frac is None and is_cut_last:
        view = _resize_and_crop(pixels, preprocess, resample)
    else:
        if augmentation.resized_crop_min_frac is None:
            top, left, rows, columns = _find_square(height, width, preprocess)
        else:
            top, left, rows, columns = _draw_crop(height, width, augmentation.resized_crop_min_frac, rng)
        # Cut before the resize: with its `box` argument Pillow would look at the pixels beyond the edge.
        cut = Image.fromarray(np.ascontiguousarray(pixels[top : top + rows, left : left + columns]))
        view = cut.resize((side, side), resample)
    if augmentation.horizontal_flip and rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # exact, as no warp is
    view = _draw_warp(view, augmentation, rng)
    view = _draw_colours(view, augmentation, rng)
    for _ in range(augmentation.randaugment_ops):
        operation = RANDAUGMENT[list(RANDAUGMENT)[rng.integers(len(RANDAUGMENT))]]
        sign = 1 if rng.random() < 0.5 else -1
        view = operation(view, augmentation.randaugment_magnitude / 30, sign)
    return np.asarray(view)


def _find_square(height: int, width: int, preprocess: PreprocessSpec) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of the square that graph.add_preprocessing cuts, in its 32-bit arithmetic."""
    short = min(height, width)
    cropped = np.float32(short) * np.float32(preprocess.crop_frac)
    side = int(np.round(max(cropped, np.float32(min(short, preprocess.input_size_px)))))
    return (height - side) // 2, (width - side) // 2, side, side


def _resize_and_crop(pixels: NDArray[np.uint8], preprocess: PreprocessSpec, resample: Image.Resampling) -> Image.Image:
    """What graph.add_preprocessing does where the cut comes after the resize."""
    height, width = pixels.shape[:2]
    side = preprocess.input_size_px
    most = math.floor(side / preprocess.crop_frac)
    if preprocess.crop == "squash":
        rows = columns = most
    else:
        short = min(height, width)
        rows, columns = (length * min(short, most) // short for length in (height, width))
    top, left = round((rows - side) / 2), round((columns - side) / 2)
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize((columns, rows), resample)
    return resized.crop((left, top, left + side, top + side))


def _draw_crop(height: int, width: int, min_frac: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, rows and columns as torchvision's RandomResizedCrop draws them, ten tries and its way out included."""
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * rng.uniform(min_frac, 1)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns
    rows, columns = min(height, max(1, round(width / low))), min(width, max(1, round(height * high)))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _draw_warp(view: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    rotation, shift, shear, zoom = np.zeros(1), np.zeros(2), np.zeros(1), np.ones(2)
    if augmentation.rotation_deg:
        rotation = rng.uniform(-1, 1, 1) * augmentation.rotation_deg
    if augmentation.shift_frac:
        shift = rng.uniform(-1, 1, 2) * augmentation.shift_frac
    if augmentation.shear_frac:
        shear = rng.uniform(-1, 1, 1) * augmentation.shear_frac
    if augmentation.zoom_frac:
        zoom = 1 + rng.uniform(-1, 1, 2) * augmentation.zoom_frac
    matrix = _rotate(rotation[0]) @ np.array([[1, shear[0]], [0, 1]]) @ np.diag(zoom)
    return warp(view, matrix, (shift[0], shift[1]))


def _rotate(angle_deg: float) -> NDArray[np.float64]:
    """Counter-clockwise for the eye, with y pointing down."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array([[cos, sin], [-sin, cos]])


def warp(image: Image.Image, matrix: NDArray[np.float64], shift_frac: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """Move what is at (x, y) from the middle to matrix @ (x, y), then by the shares of the sides to the right and down.

    Bilinear; what comes from outside of the picture is the nearest pixel of its edge. `matrix` is (2, 2), x before y.
    """
    size = np.array(image.size, np.float64)
    shift = np.array(shift_frac) * size
    if np.array_equal(matrix, np.eye(2)) and not shift.any():
        return image
    back = np.linalg.inv(matrix)
    offset = size / 2 - back @ (size / 2 + shift)
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * size @ back.T + offset
    # Pillow leaves black what lies outside, so that many rows and columns are added as the corners reach beyond.
    before = np.maximum(0, np.ceil(-corners.min(axis=0))).astype(int)
    after = np.maximum(0, np.ceil(corners.max(axis=0) - size)).astype(int)
    padding = [(before[1], after[1]), (before[0], after[0]), (0, 0)]
    padded = Image.fromarray(np.pad(np.asarray(image), padding, mode="edge"))
    (a, b), (d, e) = back
    c, f = offset + before
    return padded.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)


def _draw_colours(view: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    if augmentation.colour_frac:
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            view = enhancer(view).enhance(1 + rng.uniform(-1, 1) * augmentation.colour_frac)
    if augmentation.hue_frac:
        turn = round(rng.uniform(-1, 1) * augmentation.hue_frac * 255)
        hue, saturation, value = view.convert("HSV").split()
        turned = hue.point([(level + turn) % 256 for level in range(256)])
        view = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    return view


# Name to operation on (picture, strength 0 .. 1, sign 1 or -1): torchvision's RandAugment, except that what comes from
# outside is the nearest pixel instead of black.
RANDAUGMENT: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "Identity": lambda image, strength, sign: image,
    "ShearX": lambda image, strength, sign: warp(image, np.array([[1, 0.3 * strength * sign], [0, 1]])),
    "ShearY": lambda image, strength, sign: warp(image, np.array([[1, 0], [0.3 * strength * sign, 1]])),
    "TranslateX": lambda image, strength, sign: warp(image, np.eye(2), (150 / 331 * strength * sign, 0)),
    "TranslateY": lambda image, strength, sign: warp(image, np.eye(2), (0, 150 / 331 * strength * sign)),
    "Rotate": lambda image, strength, sign: warp(image, _rotate(30 * strength * sign)),
    "Brightness": lambda image, strength, sign: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength * sign),
    "Color": lambda image, strength, sign: ImageEnhance.Color(image).enhance(1 + 0.9 * strength * sign),
    "Contrast": lambda image, strength, sign: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength * sign),
    "Sharpness": lambda image, strength, sign: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength * sign),
    "Posterize": lambda image, strength, sign: ImageOps.posterize(image, round(8 - 4 * strength)),
    "Solarize": lambda image, strength, sign: ImageOps.solarize(image, math.ceil(255 * (1 - strength))),
    "AutoContrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength, sign: ImageOps.equalize(image),
}
