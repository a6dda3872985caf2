"""A picture as the network takes it, by Pillow and NumPy alone. This file is also put into exports, as it stands."""

import math

import numpy as np
from PIL import Image, ImageOps


def open_picture(path: str) -> Image.Image:
    """An upright RGB picture, transparency on white. (Channels of 16 bits need scaling to 8 first.)"""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def prepare(
    picture: Image.Image, size: int, crop_frac: float, crop: str = "centre", interpolation: str = "cubic"
) -> np.ndarray:
    """float32 (size, size, 3) from 0 to 255: an RGB picture cut and resized as in training.

    Channels are resized in floats. Rounded to whole numbers, small pictures that were enlarged change their class at
    times; photographs do not mind.
    """
    method = Image.Resampling.BICUBIC if interpolation == "cubic" else Image.Resampling.BILINEAR
    width, height = picture.size
    short = min(width, height)
    most = math.floor(size / crop_frac)
    if crop == "squash":  # the whole picture squeezed into a square, whose edges are cut
        box, resized = (0, 0, width, height), (most, most)
    elif crop == "after-resize" and short > size:
        scaled = min(short, most)
        box, resized = (0, 0, width, height), (width * scaled // short, height * scaled // short)
    else:  # a centred square
        side = short if crop == "after-resize" else round(max(short * crop_frac, min(short, size)))
        left, top = (width - side) // 2, (height - side) // 2
        box, resized = (left, top, left + side, top + side), (size, size)
    bands = [band.convert("F").resize(resized, method) for band in picture.crop(box).split()]
    pixels = np.stack([np.asarray(band) for band in bands], axis=-1)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return pixels[top : top + size, left : left + size].clip(0, 255)
