"""Simple properties of pictures, by which sources may differ: size, compression, light, colour, sharpness, border."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image

from headstart.decode import decode_image
from headstart.errors import ImageError
from headstart.image_files import read_image_file
from headstart.metrics import FloatArray
from headstart.parallel import count_cpus, map_bounded

_SIDE_PX = 96  # light and colour of a picture are taken at this size, so that its own size plays no part
_BORDER = _SIDE_PX // 10


def measure_properties(paths: Sequence[str]) -> dict[str, FloatArray]:
    """Every property, by name, as floats (N,); nan for a picture that cannot be read.

    A format is a property of its own, 1 or 0, where some pictures have it and some have not. Pictures are decoded at a
    reduced scale where their format allows it.
    """
    found = [values for _, values in map_bounded(_measure, paths, count_cpus())]
    formats = sorted({values[0] for values in found if values})
    columns = {
        name: np.array([values[1][name] if values else np.nan for values in found], np.float64) for name in _NAMES
    }
    for name in formats if len(formats) > 1 else []:
        columns[f"{name} file"] = np.array([float(values[0] == name) if values else np.nan for values in found])
    return columns


_NAMES = (
    "short side in pixels",
    "width / height",
    "bytes per pixel",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "border against middle",
    "evenness of the border",
)


def _measure(path: str) -> tuple[str, dict[str, float]] | None:
    """The format and the other properties of one picture.

    Contrast, sharpness and the border's figures are relative, so that a darker copy of a picture differs in brightness
    alone.
    """
    try:
        data = read_image_file(path)
        image = decode_image(data, min_side_px=_SIDE_PX)
    except ImageError:
        return None
    facts = image.facts
    picture = PIL.Image.fromarray(image.pixels).resize((_SIDE_PX, _SIDE_PX), PIL.Image.Resampling.BOX)
    grey = np.asarray(picture.convert("L"), np.float64)
    rgb = np.asarray(picture, np.float64)
    mean, spread = grey.mean() + 1, grey.std() + 1
    middle = grey[_BORDER:-_BORDER, _BORDER:-_BORDER]
    is_border = np.ones(grey.shape, bool)
    is_border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    values = (
        float(min(facts.width_px, facts.height_px)),
        facts.width_px / facts.height_px,
        len(data) / (facts.width_px * facts.height_px),
        float(grey.mean()),
        float(spread / mean),
        float((np.ptp(rgb, axis=2) / (rgb.max(axis=2) + 1)).mean()),
        float(steps / spread),
        float((grey[is_border].mean() + 1) / (middle.mean() + 1)),
        float(-grey[is_border].std() / spread),
    )
    return facts.format, dict(zip(_NAMES, values, strict=True))
