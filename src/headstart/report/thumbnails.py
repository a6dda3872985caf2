"""Pictures as they stand in the page: small ones exactly as they are, large ones reduced once; each embedded once."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import PIL.Image

from headstart._files import compute_sha256
from headstart.decode import read_image_file
from headstart.errors import ImageError
from headstart.parallel import count_cpus, map_bounded
from headstart.pictures import PictureSource, load_picture

_QUALITY = 80
_BUDGET_BYTES = 24e6
_MAX_SIDES_PX = (112, 512)
_LOSSLESS_SIDES_PX = (48, 256)
# Measured on photographs and on CIFAR-10: at most 0.2 bytes a pixel at quality 80, at most 2 without loss. Lossy WebP
# is a fifth smaller than JPEG and takes 13 times as long.
_BYTES_PER_PIXEL, _LOSSLESS_BYTES_PER_PIXEL = 0.2, 2.0


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture file in `data`, `width_px` x `height_px`.

    It is WebP where these are the file's own pixels, all of them (`is_exact`), else JPEG. A picture that cannot be
    shown has `data` b"" and the reason in `problem`.
    """

    data: bytes
    width_px: int = 0
    height_px: int = 0
    is_exact: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A picture to embed. `sha256`, unless "", is compared with the file's; `is_small` asks for half the side."""

    path: str
    sha256: str = ""
    is_small: bool = False


def plan_sides(num_pictures: int) -> tuple[int, int]:
    """Largest side in pixels, and the largest side that is kept without loss, so that a page holds some 24 MB."""

    def fit(bytes_per_pixel: float, bounds: tuple[int, int]) -> int:
        side = (_BUDGET_BYTES / max(1, num_pictures) / bytes_per_pixel) ** 0.5
        return int(min(max(side, bounds[0]), bounds[1]))

    return fit(_BYTES_PER_PIXEL, _MAX_SIDES_PX), fit(_LOSSLESS_BYTES_PER_PIXEL, _LOSSLESS_SIDES_PX)


def make_thumbnail(
    source: PictureSource, max_side_px: int, *, lossless_side_px: int | None = None, sha256: str = ""
) -> Thumbnail:
    """Pictures up to `lossless_side_px` (default `max_side_px`) keep every pixel; larger ones become JPEG.

    What is larger than `max_side_px` is reduced to it with antialiasing (Lanczos). Raises ImageError, `changed` where
    the file's bytes no longer have `sha256`.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        source = read_image_file(path)
        if sha256 and compute_sha256(source) != sha256:
            raise ImageError("changed", "the file has changed since", path)
    # A JPEG may come at a reduced scale, but with twice the pixels that are kept, so that Lanczos does the rest.
    pixels = load_picture(source, min_side_px=2 * max_side_px).pixels
    image = PIL.Image.fromarray(pixels)
    is_exact = max(image.size) <= (max_side_px if lossless_side_px is None else min(lossless_side_px, max_side_px))
    if max(image.size) > max_side_px:
        scale = max_side_px / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if is_exact:
        image.save(buffer, "WEBP", lossless=True, method=0)
    else:
        image.save(buffer, "JPEG", quality=_QUALITY)
    return Thumbnail(buffer.getvalue(), *image.size, is_exact=is_exact)


def make_thumbnails(
    wanted: Iterable[Wanted], max_side_px: int, lossless_side_px: int, on_progress: Callable[[int, int], None] | None
) -> list[Thumbnail]:
    """One for each, in order, made in threads; where a picture cannot be read, the reason in its place."""

    def make(one: Wanted) -> Thumbnail:
        side = max_side_px // 2 if one.is_small else max_side_px
        try:
            return make_thumbnail(one.path, side, lossless_side_px=lossless_side_px, sha256=one.sha256)
        except ImageError as error:
            return Thumbnail(b"", problem=error.reason)

    pictures = list(wanted)
    thumbnails = []
    for _, thumbnail in map_bounded(make, pictures, count_cpus()):
        thumbnails.append(thumbnail)
        if on_progress:
            on_progress(len(thumbnails), len(pictures))
    return thumbnails
