"""Pictures for the page: small ones exactly, large ones reduced once, unreadable ones as a reason."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.errors import ImageError
from headstart.pictures import load_picture
from headstart.report.thumbnails import Thumbnail, Wanted, make_thumbnail, make_thumbnails, plan_sides


def decode(thumbnail: Thumbnail) -> np.ndarray:
    image = Image.open(io.BytesIO(thumbnail.data))
    assert image.format == ("WEBP" if thumbnail.is_exact else "JPEG")
    assert image.size == (thumbnail.width_px, thumbnail.height_px)
    return np.asarray(image.convert("RGB"))


def draw_noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "RGBA", "P", "1", "CMYK", "turned"])
def test_small_pictures_keep_every_pixel(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    noise = draw_noise(20, 33)
    exif = Image.Exif()
    if mode == "I;16":
        Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(path)
    elif mode == "RGBA":
        Image.fromarray(np.dstack([noise, draw_noise(20, 33, 1)[..., 0]])).save(path)
    else:
        exif[274] = 6 if mode == "turned" else 1
        Image.fromarray(noise).convert("RGB" if mode == "turned" else mode).save(path, exif=exif)
    thumbnail = make_thumbnail(path, 33)
    assert thumbnail.is_exact
    assert (thumbnail.width_px, thumbnail.height_px) == ((20, 33) if mode == "turned" else (33, 20))
    assert np.array_equal(decode(thumbnail), load_picture(path).pixels)


def test_larger_pictures_are_reduced_with_antialiasing() -> None:
    rows, columns = np.mgrid[:300, :400]
    smooth = np.dstack([rows * 255 // 299, columns * 255 // 399, (rows + columns) % 2 * 255]).astype(np.uint8)
    thumbnail = make_thumbnail(smooth, 100)
    assert not thumbnail.is_exact
    pixels = decode(thumbnail).astype(int)
    assert pixels.shape == (75, 100, 3)
    means = smooth.reshape(75, 4, 100, 4, 3).mean(axis=(1, 3))
    assert np.abs(pixels - means)[2:-2, 2:-2].mean() < 6  # checks of one pixel become grey, which no sampling gives
    assert np.abs(pixels[..., 2] - 127).mean() < 12


def test_large_jpeg_is_reduced(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(draw_noise(4, 6)).resize((1800, 1200)).save(path, quality=95)
    pixels = decode(make_thumbnail(path, 120)).astype(int)
    expected = np.asarray(Image.open(path).resize((120, 80), Image.Resampling.LANCZOS)).astype(int)
    assert pixels.shape == (80, 120, 3)
    assert np.abs(pixels - expected).mean() < 12


def test_between_the_sides_nothing_is_reduced() -> None:
    thumbnail = make_thumbnail(draw_noise(60, 50), 64, lossless_side_px=59)
    assert (thumbnail.width_px, thumbnail.height_px, thumbnail.is_exact) == (50, 60, False)
    assert make_thumbnail(draw_noise(60, 50), 64, lossless_side_px=60).is_exact
    assert not make_thumbnail(draw_noise(60, 50), 40, lossless_side_px=60).is_exact


def test_a_thin_picture_keeps_a_pixel() -> None:
    thumbnail = make_thumbnail(draw_noise(1, 900), 100)
    assert (thumbnail.width_px, thumbnail.height_px) == (100, 1)


def test_the_hash_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(draw_noise(8, 8)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert make_thumbnail(path, 8, sha256=digest).is_exact
    Image.fromarray(draw_noise(8, 8, 1)).save(path)
    with pytest.raises(ImageError, match="the file has changed since"):
        make_thumbnail(path, 8, sha256=digest)


def test_many_keep_their_order_and_say_what_is_wrong(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:03}.png" for i in range(60)]
    for i, path in enumerate(paths):
        Image.fromarray(draw_noise(6, 40, i)).save(path)
    paths[7].unlink()
    paths[8].write_bytes(b"GIF89a")
    wanted = [Wanted(str(path), is_small=i == 9) for i, path in enumerate(paths)]
    wanted[10] = Wanted(str(paths[10]), sha256="0" * 64)
    seen: list[tuple[int, int]] = []
    made = make_thumbnails(wanted, 40, 40, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 60) for i in range(1, 61)]
    assert made[7] == Thumbnail(b"", problem="there is no such file")
    assert made[8].problem
    assert made[9].width_px == 20
    assert made[10].problem == "the file has changed since"
    for i in set(range(60)) - {7, 8, 9, 10}:
        assert np.array_equal(decode(made[i]), draw_noise(6, 40, i))


def test_sides_shrink_with_the_number_of_pictures() -> None:
    sides = [plan_sides(number) for number in (0, 1, 100, 1000, 10_000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == (512, 256)
    assert sides[-1] == (112, 48)
    assert all(largest >= lossless for largest, lossless in sides)
