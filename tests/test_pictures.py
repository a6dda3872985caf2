"""One picture as a path, as bytes, as an array and as a Pillow image."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from headstart.errors import ImageError
from headstart.pictures import hash_source, load_picture, name_source

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def encode(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(PIXELS))
    return path


def test_every_source_gives_the_same_pixels(picture: Path) -> None:
    for source in (picture, str(picture), picture.read_bytes(), PIXELS, PIL.Image.fromarray(PIXELS)):
        decoded = load_picture(source)
        np.testing.assert_array_equal(decoded.pixels, PIXELS)
        assert (decoded.facts.width_px, decoded.facts.height_px) == (30, 24)
    assert load_picture(picture).facts.format == "PNG"
    assert load_picture(PIXELS).facts.format == "pixels"
    assert load_picture(PIXELS).facts.dhash == load_picture(picture).facts.dhash


def test_a_file_is_hashed_by_its_bytes_and_pixels_by_themselves(picture: Path) -> None:
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    assert hash_source(picture) == hash_source(str(picture)) == hash_source(picture.read_bytes()) == digest
    assert hash_source(PIXELS) == hash_source(PIL.Image.fromarray(PIXELS)) == hash_source(PIXELS[:, ::-1][:, ::-1])
    # The hash of pixels holds their shape: the same bytes as another picture are another picture.
    others = [PIXELS, PIXELS.reshape(30, 24, 3), PIXELS.transpose(1, 0, 2), PIXELS[:-1], PIXELS ^ 1]
    assert len({hash_source(pixels) for pixels in others} | {digest}) == 6


def test_a_file_that_changed_since_it_was_hashed_is_told(picture: Path) -> None:
    digest = hash_source(picture)
    np.testing.assert_array_equal(load_picture(picture, digest).pixels, PIXELS)
    picture.write_bytes(encode(PIXELS[::-1]))
    with pytest.raises(ImageError) as caught:
        load_picture(picture, digest)
    assert caught.value.code == "changed-while-reading"
    assert caught.value.path == str(picture)


def test_a_large_jpeg_may_come_smaller(tmp_path: Path) -> None:
    large = np.asarray(PIL.Image.fromarray(PIXELS).resize((600, 480)))
    path = tmp_path / "large.jpg"
    path.write_bytes(encode(large, "JPEG"))
    for source in (path, path.read_bytes()):
        assert load_picture(source).pixels.shape == (480, 600, 3)
        decoded = load_picture(source, min_side_px=100)
        assert decoded.pixels.shape == (120, 150, 3)
        assert (decoded.facts.width_px, decoded.facts.height_px) == (600, 480)


def test_names_are_paths_or_positions(picture: Path) -> None:
    assert name_source(picture, 3) == name_source(str(picture), 3) == str(picture)
    assert name_source(b"", 3) == name_source(PIXELS, 3) == "picture 3"


@pytest.mark.parametrize("source", ["no/such/file.png", b"", PIXELS.astype(float), 3, None])
def test_what_is_no_picture_is_an_image_error(source: object) -> None:
    for use in (hash_source, load_picture):
        if use is hash_source and isinstance(source, bytes):
            continue  # any bytes have a hash
        with pytest.raises(ImageError):
            use(source)  # type: ignore[operator]


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="got a picture of 0 x 5 pixels"):
        load_picture(PIL.Image.new("RGB", (0, 5)))
