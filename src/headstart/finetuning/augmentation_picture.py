"""A picture of what an augmentation does to your own pictures: each operation alone, then all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from headstart.finetuning.augmentation import Augmentation, draw_view
from headstart.finetuning.mixing import Mix, draw_mix
from headstart.graph import PreprocessSpec

MAX_ROWS = 6
NUM_TOGETHER = 4
_CELL_PX = 160
_GAP_PX = 8
_HEADER_PX = 56
_NAME_PX = 20

# Caption, what is said below it, and the field that turns the operation on.
_OPERATIONS = (
    ("crop", "{resized_crop_min_frac:.0%} to 100% of area", "resized_crop_min_frac"),
    ("flip", "in half of the views", "horizontal_flip"),
    ("rotation", "up to ±{rotation_deg:g}°", "rotation_deg"),
    ("shift", "up to ±{shift_frac:.0%}", "shift_frac"),
    ("shear", "up to ±{shear_frac:.0%}", "shear_frac"),
    ("zoom", "up to ±{zoom_frac:.0%}", "zoom_frac"),
    ("colour", "up to ±{colour_frac:.0%}", "colour_frac"),
    ("hue", "up to ±{hue_frac:.0%} of circle", "hue_frac"),
    ("RandAugment", "{randaugment_ops} at magnitude {randaugment_magnitude:g}", "randaugment_ops"),
)
_SHOWN_KEPT_FRAC = 0.6  # most draws of mixup are too near 0 or 1 to show what it does
_SHOWN_MIXES = (
    ("mixup", "here 60 : 40", "mixup_alpha", None),
    ("cutmix", "here 60 : 40", "cutmix_alpha", (0.3, 0.3, 0.3 + 0.4**0.5, 0.3 + 0.4**0.5)),
)
Column = tuple[str, str, list[NDArray[np.uint8]]]


def render_grid(
    pictures: Sequence[tuple[str, NDArray[np.uint8]]], augmentation: Augmentation, preprocess: PreprocessSpec, seed: int
) -> Image.Image:
    """A row for each of the first 6 pictures, given as name and RGB pixels uint8 (H, W, 3).

    Columns: as the network sees it without augmentation; each operation that is on, alone; 4 views with all
    together, as training draws them. The flip is always shown; mixup and cutmix, where there is a second picture, with
    60 % of the picture and 40 % of the next.
    """
    rows = pictures[:MAX_ROWS]
    off = Augmentation(randaugment_magnitude=augmentation.randaugment_magnitude)
    values = asdict(augmentation)

    def draw_column(number: int, drawn: Augmentation) -> list[NDArray[np.uint8]]:
        generators = [np.random.default_rng([seed, number, row]) for row in range(len(rows))]
        return [draw_view(pixels, drawn, preprocess, rng) for (_, pixels), rng in zip(rows, generators, strict=True)]

    plain = draw_column(0, off)
    columns: list[Column] = [("as it is", "seen by the network", plain)]
    for number, (caption, below, field) in enumerate(_OPERATIONS, start=1):
        if values[field]:
            alone = replace(off, **{field: values[field]})
            views = [view[:, ::-1] for view in plain] if field == "horizontal_flip" else draw_column(number, alone)
            columns.append((caption, below.format(**values), views))
    for caption, below, field, box in _SHOWN_MIXES:
        if values[field] and len(rows) > 1:
            mix = Mix(np.roll(np.arange(len(rows)), -1), _SHOWN_KEPT_FRAC, box)
            columns.append((caption, below, _mix_views(plain, mix)))
    for number in range(1, NUM_TOGETHER + 1 if len(columns) > 1 else 1):
        together = draw_column(100 + number, augmentation)
        drawn = draw_mix(len(rows), augmentation, np.random.default_rng([seed, 100 + number]))
        columns.append(("together", f"view {number}", _mix_views(together, drawn) if drawn else together))
    return _lay_out([name for name, _ in rows], columns)


def _mix_views(views: Sequence[NDArray[np.uint8]], mix: Mix) -> list[NDArray[np.uint8]]:
    maps = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float()
    return list(mix.apply_maps(maps).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _lay_out(names: Sequence[str], columns: Sequence[Column]) -> Image.Image:
    step_px, row_px = _CELL_PX + _GAP_PX, _NAME_PX + _CELL_PX + _GAP_PX
    grid = Image.new("RGB", (_GAP_PX + step_px * len(columns), _HEADER_PX + row_px * len(names)), "white")
    draw = ImageDraw.Draw(grid)
    bold, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    for column, (caption, below, views) in enumerate(columns):
        left = _GAP_PX + step_px * column
        draw.text((left, 4), caption, fill="black", font=bold)
        draw.text((left, 27), below, fill="dimgrey", font=small)
        for row, view in enumerate(views):
            cell = Image.fromarray(np.ascontiguousarray(view)).resize((_CELL_PX, _CELL_PX), Image.Resampling.BICUBIC)
            grid.paste(cell, (left, _HEADER_PX + _NAME_PX + row_px * row))
    for row, name in enumerate(names):
        draw.text((_GAP_PX, _HEADER_PX + 2 + row_px * row), name, fill="dimgrey", font=small)
    return grid
