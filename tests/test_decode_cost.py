"""Pictures that cost far more than their size, and large ones that are laid on white in strips."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from headstart.decode import decode_image
from headstart.errors import ImageError


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def add_scans(data: bytes, count: int, between: bytes = b"") -> bytes:
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + between + last * count + b"\xff\xd9"


@pytest.fixture(scope="module")
def progressive() -> bytes:
    return encode(Image.new("RGB", (4000, 4000), (200, 10, 30)), "JPEG", progressive=True)


def test_jpegs_of_very_many_scans_are_refused(progressive: bytes) -> None:
    comment = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"  # the end of a picture, as it seems
    for data in (add_scans(progressive, 500), add_scans(progressive, 500, comment)):
        with pytest.raises(ImageError, match="too-slow: more than 125 scans of 4000 x 4000"):
            decode_image(data, min_side_px=448)


def test_what_only_looks_like_scans_is_none(progressive: bytes) -> None:
    expected = decode_image(progressive, min_side_px=448).pixels
    film = b"\xff\xda" * 1000
    assert np.array_equal(decode_image(progressive + film, min_side_px=448).pixels, expected)
    assert np.array_equal(decode_image(add_scans(progressive, 3), min_side_px=448).pixels, expected)
    note = b"\xff\xfe\x07\xd2" + film
    assert np.array_equal(decode_image(progressive[:2] + note + progressive[2:], min_side_px=448).pixels, expected)
    within = add_scans(progressive, 1, note)
    assert np.array_equal(decode_image(within, min_side_px=448).pixels, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_strips_give_what_the_whole_gives(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (67, 50, 4), np.uint8), "RGBA")
    image = image.convert(mode) if mode != "P" else image.quantize(20)
    data = encode(image, "PNG")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(Image.open(io.BytesIO(data)).convert("RGBA"))
    for pixels in (2**21, 700, 1):
        monkeypatch.setattr("headstart.decode._COMPOSITE_PIXELS", pixels)
        assert np.array_equal(decode_image(data).pixels, np.asarray(white.convert("RGB")))
