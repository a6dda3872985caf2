"""One picture as a user may hand it over: a path, the bytes of a file, an array or a Pillow image."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from headstart._files import compute_sha256
from headstart.decode import DecodedImage, convert_pixels, decode_image, describe_pixels
from headstart.errors import ImageError
from headstart.image_files import DEFAULT_LIMITS, DecodeLimits, read_image_file

if TYPE_CHECKING:
    import PIL.Image

PictureSource: TypeAlias = "str | os.PathLike[str] | bytes | np.ndarray | PIL.Image.Image"
"""Anything that can be predicted or trained on."""


def name_source(source: PictureSource, index: int) -> str:
    """The path, or what stands for it in rows and messages: `picture 3`."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"picture {index}"


def hash_source(source: PictureSource) -> str:
    """SHA-256 in hex of a file's bytes, or of the pixels and their shape. Raises ImageError."""
    if isinstance(source, bytes):
        return compute_sha256(source)
    if isinstance(source, (str, os.PathLike)):
        return compute_sha256(read_image_file(source))
    pixels = convert_pixels(source)
    return hashlib.sha256(f"pixels {pixels.shape} ".encode() + pixels.tobytes()).hexdigest()


def load_picture(
    source: PictureSource,
    sha256: str | None = None,
    min_side_px: int | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> DecodedImage:
    """Read and decode. Raises ImageError, `changed-while-reading` where a file is no longer the one with that SHA-256.

    `min_side_px` allows a large JPEG to come at a reduced scale (see decode_image).
    """
    if isinstance(source, (str, os.PathLike)):
        data = read_image_file(source, limits)
        if sha256 is not None and compute_sha256(data) != sha256:
            raise ImageError("changed-while-reading", "the file changed during the run (run again)", os.fspath(source))
        return decode_image(data, min_side_px=min_side_px, limits=limits)
    if isinstance(source, bytes):
        return decode_image(source, min_side_px=min_side_px, limits=limits)
    pixels = convert_pixels(source)
    return DecodedImage(pixels, describe_pixels(pixels))
