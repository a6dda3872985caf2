"""decode: every format that is read, every verdict on what is not, and the same pixels in all circumstances."""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from headstart.decode import ImageFacts, convert_pixels, decode_image
from headstart.errors import ImageError
from headstart.formats import extension_matches, sniff_format
from headstart.image_files import DecodeLimits, read_image_file

HAS_AVIF = features.check("avif")


def make_scene(width: int = 160, height: int = 120, seed: int = 0) -> Image.Image:
    """A smooth picture without any symmetry."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def get_verdict(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    return caught.value.code


def compute_difference(pixels: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(pixels.astype(int) - other.astype(int)).mean())


def count_differing_bits(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


SCENE = make_scene()
PALETTE = SCENE.quantize(64)

ACCEPTED: dict[str, tuple[str, Image.Image, dict[str, Any], float]] = {
    # name: format, picture, how it is written, greatest mean difference to the picture in grey levels
    "baseline JPEG": ("JPEG", SCENE, {"quality": 95}, 3),
    "progressive JPEG": ("JPEG", SCENE, {"quality": 95, "progressive": True}, 3),
    "JPEG 4:4:4": ("JPEG", SCENE, {"quality": 95, "subsampling": 0}, 2),
    "JPEG 4:2:2 with restart markers": ("JPEG", SCENE, {"quality": 95, "subsampling": 1, "restart_marker_rows": 1}, 3),
    "grey JPEG": ("JPEG", SCENE.convert("L"), {"quality": 95}, 2),
    "CMYK JPEG": ("JPEG", SCENE.convert("CMYK"), {"quality": 95}, 4),
    "PNG": ("PNG", SCENE, {}, 0),
    "1-bit PNG": ("PNG", SCENE.convert("1"), {}, 0),
    "grey PNG": ("PNG", SCENE.convert("L"), {}, 0),
    "palette PNG": ("PNG", PALETTE, {}, 0),
    "4-bit palette PNG": ("PNG", SCENE.quantize(16), {"bits": 4}, 0),
    "GIF": ("GIF", PALETTE, {}, 0),
    "interlaced GIF": ("GIF", PALETTE, {"interlace": 1}, 0),
    "24-bit BMP": ("BMP", SCENE, {}, 0),
    "32-bit BMP": ("BMP", SCENE.convert("RGBA"), {}, 0),
    "8-bit BMP": ("BMP", PALETTE, {}, 0),
    "1-bit BMP": ("BMP", SCENE.convert("1"), {}, 0),
    "lossy WebP": ("WEBP", SCENE, {"quality": 95}, 4),
    "lossless WebP": ("WEBP", SCENE, {"lossless": True}, 0),
    "raw TIFF": ("TIFF", SCENE, {}, 0),
    "LZW TIFF": ("TIFF", SCENE, {"compression": "tiff_lzw"}, 0),
    "deflate TIFF": ("TIFF", SCENE, {"compression": "tiff_adobe_deflate"}, 0),
    "PackBits TIFF": ("TIFF", SCENE, {"compression": "packbits"}, 0),
    "JPEG TIFF": ("TIFF", SCENE, {"compression": "jpeg", "quality": 95}, 3),
    "G4 TIFF": ("TIFF", SCENE.convert("1"), {"compression": "group4"}, 0),
    "CMYK TIFF": ("TIFF", SCENE.convert("CMYK"), {}, 0),
    "BigTIFF": ("TIFF", SCENE, {"big_tiff": True}, 0),
}
if HAS_AVIF:
    ACCEPTED["AVIF"] = ("AVIF", SCENE, {"quality": 95}, 4)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_formats_give_their_picture(name: str) -> None:
    format, picture, options, tolerance = ACCEPTED[name]
    image = decode_image(encode(picture, format, **options))
    assert image.facts.format == format
    assert (image.facts.width_px, image.facts.height_px) == picture.size
    assert image.facts.notes == ()
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    assert compute_difference(image.pixels, np.asarray(picture.convert("RGB"))) <= tolerance


def test_red_in_cmyk_stays_red() -> None:
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    for data in (encode(red, "JPEG"), encode(red, "TIFF")):
        assert compute_difference(decode_image(data).pixels, np.full((32, 32, 3), (255, 0, 0))) < 3


# --- 16 bits, alpha, orientation


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_become_8_by_division_neither_clipped_nor_stretched(format: str) -> None:
    samples = np.linspace(20_000, 60_000, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = decode_image(encode(Image.fromarray(samples), format)).pixels
    np.testing.assert_array_equal(pixels[:, :, 1], np.rint(samples / 257))
    assert abs(pixels.mean() - samples.mean() / 257) < 1


def test_16_bit_colour_is_within_one_level() -> None:
    samples = np.random.default_rng(0).integers(0, 65_536, (32, 32, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    pixels = decode_image(make_png(32, 32, depth=16, colour_type=2, rows=rows)).pixels
    assert np.abs(pixels - samples / 257).max() <= 1


def test_16_bit_tiff_with_white_as_zero_is_no_negative() -> None:
    samples = np.linspace(0, 65_535, 32 * 32).astype(np.uint16).reshape(32, 32)
    data = encode(Image.fromarray(samples), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(decode_image(data).pixels[:, :, 0], 255 - np.rint(samples / 257))


def make_png(
    width: int, height: int, *, depth: int = 8, colour_type: int = 0, rows: bytes = b"", extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = make_png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + make_png_chunk(b"IHDR", header) + extra + pixels + make_png_chunk(b"IEND", b"")


def make_png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_transparent() -> dict[str, bytes]:
    """Pictures whose upper left corner is transparent with a hidden colour that is not white, and grey elsewhere."""
    rgba = np.full((16, 16, 4), (90, 90, 90, 255), np.uint8)
    rgba[:8, :8] = (255, 0, 0, 0)
    grey_alpha = np.full((16, 16, 2), (90, 255), np.uint8)
    grey_alpha[:8, :8] = (10, 0)
    indices = np.ones((16, 16), np.uint8)
    indices[:8, :8] = 0
    palette = Image.fromarray(indices, "P")
    palette.putpalette([255, 0, 0, 90, 90, 90])
    keyed = np.full((16, 16, 3), 90, np.uint8)
    keyed[:8, :8] = (255, 0, 0)
    four_bits = b"".join(b"\0" + (b"\x00" * 4 if y < 8 else b"\x55" * 4) + b"\x55" * 4 for y in range(16))
    colour_16 = b"".join(
        b"\0" + b"".join((b"\x12\x34" if x < 8 and y < 8 else b"\x5a\x5a") * 3 for x in range(16)) for y in range(16)
    )
    grey_16 = b"".join(
        b"\0" + b"".join(b"\x12\x34" if x < 8 and y < 8 else b"\x5a\x5a" for x in range(16)) for y in range(16)
    )
    return {
        "RGBA PNG": encode(Image.fromarray(rgba), "PNG"),
        "RGBA WebP": encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
        "RGBA TIFF": encode(Image.fromarray(rgba), "TIFF"),
        "grey and alpha PNG": encode(Image.fromarray(grey_alpha, "LA"), "PNG"),
        "palette PNG": encode(palette, "PNG", transparency=0),
        "GIF": encode(palette, "GIF", transparency=0),
        "RGB PNG with a transparent colour": encode(Image.fromarray(keyed), "PNG", transparency=(255, 0, 0)),
        "4-bit grey PNG with a transparent colour": make_png(
            16, 16, depth=4, rows=four_bits, extra=make_png_chunk(b"tRNS", b"\0\0")
        ),
        "16-bit RGB PNG with a transparent colour": make_png(
            16, 16, depth=16, colour_type=2, rows=colour_16, extra=make_png_chunk(b"tRNS", b"\x12\x34" * 3)
        ),
        "16-bit grey PNG with a transparent colour": make_png(
            16, 16, depth=16, rows=grey_16, extra=make_png_chunk(b"tRNS", b"\x12\x34")
        ),
    }


@pytest.mark.parametrize("name", make_transparent())
def test_transparent_parts_are_white_whatever_colour_they_hide(name: str) -> None:
    pixels = decode_image(make_transparent()[name]).pixels
    assert (pixels[:8, :8] == 255).all()
    assert np.abs(pixels[8:, 8:].astype(int) - 90).max() <= 5  # 4 bits have 85


def test_4_bit_transparent_colour_other_than_black() -> None:
    rows = b"".join(b"\0" + b"\xee" * 4 + b"\x55" * 4 for _ in range(16))
    pixels = decode_image(make_png(16, 16, depth=4, rows=rows, extra=make_png_chunk(b"tRNS", b"\0\x0e"))).pixels
    assert (pixels[:, :8] == 255).all()
    assert (pixels[:, 8:] == 85).all()


def test_half_transparent_is_mixed_with_white() -> None:
    data = encode(Image.new("RGBA", (40, 40), (0, 0, 0, 51)), "PNG")
    assert (decode_image(data).pixels == 204).all()


TO_STORED = {  # what a camera does to the upright picture before it writes this orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
ORIENTED_FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", *(["AVIF"] if HAS_AVIF else [])]


def make_oriented(orientation: Any, format: str = "JPEG", scene: Image.Image = SCENE) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    method = TO_STORED.get(orientation)
    stored = scene if method is None else scene.transpose(method)
    return encode(stored, format, exif=exif, **({} if format in ("PNG", "TIFF") else {"quality": 95}))


@pytest.mark.parametrize("format", ORIENTED_FORMATS)
@pytest.mark.parametrize("orientation", TO_STORED)
def test_exif_orientation_is_applied_once(orientation: int, format: str) -> None:
    image = decode_image(make_oriented(orientation, format))
    assert compute_difference(image.pixels, np.asarray(SCENE)) < 4
    assert (image.facts.width_px, image.facts.height_px) == SCENE.size
    assert image.facts.notes == (("exif-rotated",) if orientation != 1 else ())


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_meaningless_orientation_is_ignored_and_noted(orientation: int) -> None:
    image = decode_image(make_oriented(orientation))
    assert image.facts.notes == ("exif-ignored",)
    assert compute_difference(image.pixels, np.asarray(SCENE)) < 4


TEXT_ORIENTATION = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI", 274, 2, 4) + b"six\0" + bytes(4)


@pytest.mark.parametrize(
    "exif", [TEXT_ORIENTATION, b"Exif\0\0XX", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_broken_exif_is_ignored_and_noted(exif: bytes) -> None:
    assert decode_image(encode(SCENE, "JPEG", exif=exif)).facts.notes == ("exif-ignored",)


# --- several pictures, trailing bytes, sizes


def test_the_first_of_several_pictures_is_used() -> None:
    others = [make_scene(seed=seed) for seed in (1, 2)]
    many = {"save_all": True, "append_images": others}
    cases = {
        "first-frame-of-3": [
            encode(SCENE, "PNG", **many),
            encode(SCENE, "WEBP", lossless=True, **many),
        ],
        "first-frame": [
            encode(PALETTE, "GIF", **many),
            encode(SCENE, "TIFF", **many),
            encode(SCENE, "MPO", quality=95, **many),
        ],
    }
    for note, pictures in cases.items():
        for data in pictures:
            image = decode_image(data)
            assert image.facts.notes == (note,)
            assert compute_difference(image.pixels, np.asarray(SCENE)) < 20
    assert decode_image(cases["first-frame"][2]).facts.format == "JPEG"  # not MPO


def test_many_gif_frames_cost_nothing() -> None:
    first = Image.new("L", (8, 8), 200)
    frames = [Image.new("L", (8, 8), shade % 200) for shade in range(3000)]
    data = encode(first, "GIF", save_all=True, append_images=frames)
    start = time.perf_counter()
    assert (decode_image(data).pixels == 200).all()
    assert time.perf_counter() - start < 0.1


def test_bytes_after_the_end_are_ignored_and_noted_over_1_kb() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", os.urandom(2000))
    for format in ("JPEG", "PNG", "GIF", "WEBP"):
        data = encode(PALETTE if format == "GIF" else SCENE, format)
        assert decode_image(data + b"x" * 500).facts.notes == ()
        appended = decode_image(data + archive.getvalue())
        assert appended.facts.notes == ("trailing-bytes",)
        np.testing.assert_array_equal(appended.pixels, decode_image(data).pixels)


@pytest.mark.parametrize(
    ("size", "notes"),
    [
        ((1, 1), ("tiny",)),
        ((15, 15), ("tiny",)),
        ((16, 16), ("small",)),
        ((32, 31), ("small",)),
        ((32, 32), ()),
        ((32, 640), ()),
        ((32, 641), ("extreme-aspect",)),
        ((1, 9000), ("tiny", "extreme-aspect")),
        ((30_000, 2), ("tiny", "extreme-aspect")),
    ],
)
def test_unusual_sizes_are_used_and_noted(size: tuple[int, int], notes: tuple[str, ...]) -> None:
    image = decode_image(encode(Image.new("RGB", size, "navy"), "PNG"))
    assert image.facts.notes == notes
    assert image.pixels.shape == (size[1], size[0], 3)


def test_lying_bmp_fields_do_not_matter() -> None:
    data = bytearray(encode(SCENE, "BMP"))
    data[2:6] = b"\xff\xff\xff\x7f"  # length of the file
    data[38:46] = b"\xff" * 8  # pixels per metre
    np.testing.assert_array_equal(decode_image(bytes(data)).pixels, np.asarray(SCENE))


# --- draft mode


@pytest.mark.parametrize("min_side_px", [1, 90, 93, 94, 187, 188, 375, 376, 749, 750, 751, 5000])
def test_draft_mode_keeps_the_short_side(min_side_px: int) -> None:
    data = encode(make_scene(1000, 750), "JPEG", quality=90)
    full = decode_image(data)
    image = decode_image(data, min_side_px=min_side_px)
    assert min(image.pixels.shape[:2]) >= min(min_side_px, 750)
    assert (image.pixels.shape == full.pixels.shape) == (min_side_px > 375)
    assert (image.facts.width_px, image.facts.height_px) == (1000, 750)
    small, expected = (
        np.asarray(Image.fromarray(pixels).resize((64, 48), Image.Resampling.BOX))
        for pixels in (image.pixels, full.pixels)
    )
    assert compute_difference(small, expected) < 2.5


def test_draft_mode_turns_upright_too() -> None:
    data = make_oriented(6, scene=make_scene(600, 400))
    image = decode_image(data, min_side_px=100)
    assert image.pixels.shape == (100, 150, 3)
    assert (image.facts.width_px, image.facts.height_px) == (600, 400)
    expected = make_scene(600, 400).resize((150, 100), Image.Resampling.BOX)
    assert compute_difference(image.pixels, np.asarray(expected)) < 4


def test_other_formats_ignore_min_side() -> None:
    assert decode_image(encode(SCENE, "PNG"), min_side_px=10).pixels.shape == (120, 160, 3)


# --- refused: not a picture, or not one that is read

FTYP = struct.pack(">I", 24) + b"ftyp"
KINDS: dict[str, tuple[bytes, str, str]] = {
    # name: content, code, words of the reason
    "HTML": (b"\n<!DOCTYPE html><html><body>404 <svg/></body></html>", "not-an-image", "this is HTML text, not a pict"),
    "text": ("Möwen am Strand\n".encode() * 100, "not-an-image", "this is text, not"),
    "UTF-16": ("not a picture".encode("utf-16"), "not-an-image", "UTF-16 text"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not-an-image", "git lfs pull"),
    "pickle": (pickle.dumps([1, 2]), "not-an-image", "this is a pickle"),
    "ZIP": (b"PK\x03\x04" + bytes(40), "not-an-image", "this is a ZIP archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "not-an-image", "archive"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "not-an-image", "this is a PDF document"),
    "ELF": (b"\x7fELF\2\1\1" + bytes(40), "not-an-image", "program"),
    "EXE": (b"MZ\x90\0\3" + bytes(60), "not-an-image", "program"),
    "MP4": (FTYP + b"isom\0\0\2\0isomiso2", "not-an-image", "this is video"),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(40), "not-an-image", "video"),
    "AVI": (b"RIFF\0\1\0\0AVI LIST", "not-an-image", "video"),
    "WAV": (b"RIFF\0\1\0\0WAVEfmt ", "not-an-image", "sound"),
    "zeros": (bytes(1000), "not-an-image", "unknown data"),
    "HEIC": (FTYP + b"heic\0\0\0\0mif1heic", "unsupported-format", "Convert to JPEG (iPhone"),
    "HEIF of brand mif1": (FTYP + b"mif1\0\0\0\0mif1heic", "unsupported-format", "HEIC"),
    "SVG": (b'<?xml version="1.0"?>\n<!-- made --><svg xmlns="x"/>', "unsupported-format", "Export it as PNG"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported-format", "EPS"),
    "DOS EPS": (b"\xc5\xd0\xd3\xc6" + bytes(40), "unsupported-format", "EPS"),
    "PSD": (b"8BPS\0\1" + bytes(40), "unsupported-format", "Photoshop"),
    "DICOM": (bytes(128) + b"DICM" + bytes(20), "unsupported-format", "DICOM"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "unsupported-format", "JPEG 2000"),
    "JPEG XL": (b"\xff\x0a" + bytes(20), "unsupported-format", "JPEG XL"),
    "ICO": (encode(SCENE.resize((16, 16)), "ICO"), "unsupported-format", "ICO"),
    "TGA": (encode(SCENE, "TGA"), "unsupported-format", "TGA"),
    "PNM": (encode(SCENE, "PPM"), "unsupported-format", "PNM"),
    "FITS": (b"SIMPLE  =                    T", "unsupported-format", "FITS"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "unsupported-format", "Canon raw"),
    "CR3": (FTYP + b"crx \0\0\0\1crx isom", "unsupported-format", "Canon raw"),
    "DNG": (encode(SCENE, "TIFF", tiffinfo={50706: b"\1\4\0\0"}), "unsupported-format", "camera raw"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_files_are_named(name: str) -> None:
    content, code, words = KINDS[name]
    with pytest.raises(ImageError) as caught:
        decode_image(content)
    assert caught.value.code == code
    assert words in caught.value.reason


def test_empty() -> None:
    assert get_verdict(b"") == "empty"


def test_sniffing_needs_little() -> None:
    for format in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", *(["AVIF"] if HAS_AVIF else [])):
        assert sniff_format(encode(SCENE, format)[:32]) == format
    assert sniff_format("ü".encode()[:1]) == "text"  # cut within a character
    assert sniff_format(b"\xff") == "unknown data"


# --- refused: cut or damaged

CUT_FORMATS = {
    "JPEG": ("JPEG", {}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "lossy WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "raw TIFF": ("TIFF", {}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate TIFF": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "JPEG TIFF": ("TIFF", {"compression": "jpeg"}),
}
if HAS_AVIF:
    CUT_FORMATS["AVIF"] = ("AVIF", {})


@pytest.mark.parametrize("name", CUT_FORMATS)
def test_files_cut_anywhere_are_truncated(name: str) -> None:
    format, options = CUT_FORMATS[name]
    data = encode(PALETTE if format == "GIF" else SCENE, format, **options)
    decode_image(data)
    # A GIF that is cut just after a semicolon looks as if it ended there.
    lengths = [length for length in (*range(13, 60), *(len(data) * part // 20 for part in range(1, 20)), len(data) - 1)]
    for length in lengths:
        if format == "GIF" and data[length - 1 : length] == b";":
            continue
        assert get_verdict(data[:length]) == "truncated", length


@pytest.mark.parametrize("seed", range(12))
def test_a_jpeg_without_its_end_marker_is_truncated(seed: int) -> None:
    data = encode(make_scene(seed=seed), "JPEG", quality=60 + seed)
    assert data.endswith(b"\xff\xd9")
    assert get_verdict(data[:-2]) == "truncated"  # Pillow lets about one in twenty pass


def test_a_thumbnail_does_not_stand_for_the_end() -> None:
    thumbnail = encode(SCENE.resize((16, 12)), "JPEG")
    for seed in range(12):
        data = encode(make_scene(seed=seed), "JPEG", comment=thumbnail)
        assert decode_image(data).facts.notes == ()
        assert get_verdict(data[:-2]) == "truncated"


def test_a_png_without_its_end_chunk_is_truncated() -> None:
    data = encode(SCENE, "PNG")
    assert get_verdict(data[:-12]) == "truncated"


def damage(data: bytes, at: float, with_: bytes = b"\xa5" * 40) -> bytes:
    start = int(len(data) * at)
    return data[:start] + with_ + data[start + len(with_) :]


DAMAGED = {
    "Huffman table": damage(encode(SCENE, "JPEG"), 0, b"\xff\xd8" + b"\xff\xc4\0\x14" + b"\xff" * 17),
    "PNG data": damage(encode(SCENE, "PNG"), 0.5),
    "PNG checksum": encode(SCENE, "PNG")[:29] + b"\0\0\0\0" + encode(SCENE, "PNG")[33:],
    "PNG signature": b"\x89PNG\n\x1a\n" + encode(SCENE, "PNG")[8:],
    "GIF data": damage(encode(PALETTE, "GIF"), 0.5, b"\xff" * 400),
    "lossless WebP data": damage(encode(SCENE, "WEBP", lossless=True), 0.01, b"\xff" * 200),
    "LZW TIFF data": damage(encode(SCENE, "TIFF", compression="tiff_lzw"), 0.3),
    "deflate TIFF data": damage(encode(SCENE, "TIFF", compression="tiff_adobe_deflate"), 0.02),
    "zero width": make_png(0, 10, rows=b"\0" * 10),
    "GIF without a frame": encode(PALETTE, "GIF")[:13] + b"\0" * 192 + b";",
    "oversized text": b"",
}
TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("comment", "x" * 5_000_000, zip=True)
DAMAGED["oversized text"] = encode(SCENE, "PNG", pnginfo=TEXT)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(DAMAGED[name])
    assert caught.value.code == "damaged"
    assert "\n" not in caught.value.reason
    if name == "oversized text":
        assert caught.value.reason == "oversized metadata"


def test_wrong_optional_chunks_do_not_matter() -> None:
    for kind, body in (
        (b"iCCP", b"name\0\0junk"),
        (b"gAMA", bytes(4)),
        (b"iTXt", b"\xff\xfe\0\0"),
        (b"zTXt", b"a\0\0junk"),
        (b"acTL", bytes(8)),
    ):
        rows = b"".join(b"\0" + bytes(range(40)) for _ in range(40))
        data = make_png(40, 40, rows=rows, extra=make_png_chunk(kind, body))
        assert decode_image(data).pixels[7, 20, 0] == 20


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.ones((40, 40), np.float32)),
        Image.fromarray(np.ones((40, 40), np.int32)),
        Image.new("LAB", (40, 40)),
    ],
    ids=["float", "int32", "LAB"],
)
def test_pixels_without_a_fixed_range_are_refused(image: Image.Image) -> None:
    with pytest.raises(ImageError, match="Convert it to 8 or 16 bits") as caught:
        decode_image(encode(image, "TIFF"))
    assert caught.value.code == "unsupported-pixels"
    with pytest.raises(ImageError) as caught:
        convert_pixels(image)
    assert caught.value.code == "unsupported-pixels"


def test_unknown_bmp_layout_is_unsupported() -> None:
    data = bytearray(encode(SCENE, "BMP"))
    data[28:30] = b"\x05\0"  # bits a pixel
    assert get_verdict(bytes(data)) == "unsupported-pixels"


# --- limits


def forge(format: str, width: int, height: int) -> bytes:
    """A small file whose header claims another size."""
    data = bytearray(encode(SCENE.convert("P") if format == "GIF" else SCENE, format))
    if format == "PNG":
        return make_png(width, height, rows=b"\0")
    if format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif format == "BMP":
        data[18:26] = struct.pack("<II", width, height)
    elif format == "TIFF":
        for tag, old, new in ((256, 160, width), (257, 120, height)):
            at = data.index(struct.pack("<HHII", tag, 4, 1, old)) + 8
            data[at : at + 4] = struct.pack("<I", new)
    elif format == "WEBP":
        header = b"VP8X" + struct.pack("<II", 10, 0) + (width - 1).to_bytes(3, "little")
        body = b"WEBP" + header + (height - 1).to_bytes(3, "little") + data[12:]
        return b"RIFF" + struct.pack("<I", len(body)) + body
    return bytes(data)


@pytest.mark.parametrize(
    ("format", "size"),
    [
        ("JPEG", (65_500, 65_500)),
        ("JPEG", (8_001, 8_000)),
        ("PNG", (2_000_000, 2_000_000)),
        ("PNG", (33_000, 10)),
        ("GIF", (65_535, 65_535)),
        ("BMP", (2_000_000, 3_000_000)),
        ("WEBP", (16_000, 16_000)),
        ("TIFF", (70_000, 70_000)),
    ],
)
def test_bombs_are_refused_from_the_header(format: str, size: tuple[int, int]) -> None:
    data = forge(format, *size)
    assert len(data) < 100_000
    start = time.perf_counter()
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.code == "too-many-pixels"
    assert time.perf_counter() - start < 0.5
    if format != "GIF" or size[0] < 13_000:  # Pillow itself refuses more than 179 million pixels there
        assert caught.value.reason.startswith(f"{size[0]} x {size[1]} (limit ")


def test_limits_are_inclusive_and_can_be_changed() -> None:
    data = encode(SCENE, "PNG")
    exact = DecodeLimits(max_file_bytes=len(data), max_pixels=160 * 120, max_side_px=160)
    assert decode_image(data, limits=exact).pixels.shape == (120, 160, 3)
    assert get_verdict(data, limits=DecodeLimits(max_file_bytes=len(data) - 1)) == "too-large"
    assert get_verdict(data, limits=DecodeLimits(max_pixels=160 * 120 - 1)) == "too-many-pixels"
    assert get_verdict(data, limits=DecodeLimits(max_side_px=159)) == "too-many-pixels"


def test_pillows_own_limit_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(encode(SCENE, "PNG")).pixels.shape == (120, 160, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a child through RLIMIT_AS")
def test_too_much_memory(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(encode(Image.new("L", (7000, 7000), 7), "PNG", compress_level=1))
    code = """
        import resource, sys
        from headstart.decode import decode_image
        from headstart.errors import ImageError
        data = open(sys.argv[1], "rb").read()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000,) * 2)
        try:
            decode_image(data)
        except ImageError as error:
            print(error.code)
    """
    found = run_python(code, str(tmp_path / "large.png"))
    assert found.stdout == "too-much-memory\n", found.stderr


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- quiet and safe in threads


def make_noisy_tiff() -> bytes:
    """A sound picture with a text tag that claims more bytes than the file has: Pillow warns."""
    data = bytearray(encode(SCENE, "TIFF", tiffinfo={270: "x" * 50}))
    at = data.index(struct.pack("<HHI", 270, 2, 51)) + 4
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(data)


def test_warnings_of_the_readers_neither_leak_nor_change_the_verdict() -> None:
    data = make_noisy_tiff()
    with pytest.warns(UserWarning, match="Tag data larger than file"):
        Image.open(io.BytesIO(data)).load()  # outside of decode_image Pillow still warns
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_image(data)
        filters = list(warnings.filters)
    assert not caught
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_image(data).pixels, np.asarray(SCENE))
        assert warnings.filters != filters  # ours to change, and not changed by decode_image
    with pytest.warns(UserWarning, match="Tag data larger than file"):
        Image.open(io.BytesIO(data)).load()


def test_libraries_write_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    for data in (
        DAMAGED["LZW TIFF data"],
        DAMAGED["deflate TIFF data"],
        encode(SCENE, "TIFF", compression="tiff_lzw")[:3000],
    ):
        get_verdict(data)
    assert capfd.readouterr().err == ""


def test_errors_that_pillow_logs_stay_out_of_stderr() -> None:
    code = """
        import io, struct
        from PIL import Image
        from headstart.decode import decode_image
        from headstart.errors import ImageError
        stream = io.BytesIO()
        Image.new("RGB", (40, 40)).save(stream, "TIFF")
        samples = struct.pack("<HHII", 277, 3, 1, 3)
        try:
            decode_image(stream.getvalue().replace(samples, samples[:8] + b"\\xff\\xff\\0\\0"))
        except ImageError as error:
            print(error.code)
    """
    found = run_python(code)
    assert (found.stdout, found.stderr) == ("damaged\n", "")


def test_threads_decode_the_same_bytes() -> None:
    noisy = make_noisy_tiff()
    pictures = [
        encode(make_scene(seed=seed), format) for seed in range(6) for format in ("JPEG", "PNG", "WEBP", "TIFF")
    ]
    pictures += [make_oriented(orientation) for orientation in TO_STORED] + [noisy] * 8
    expected = [(image.pixels.tobytes(), image.facts) for image in map(decode_image, pictures)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(3):
            found = [(image.pixels.tobytes(), image.facts) for image in threads.map(decode_image, pictures)]
            assert found == expected


# --- facts


def test_facts_survive_json() -> None:
    facts = decode_image(make_oriented(6)).facts
    assert facts.notes == ("exif-rotated",)
    assert ImageFacts.from_json(facts.to_json()) == facts
    assert len(facts.dhash) == 64


def make_photo(seed: int) -> Image.Image:
    """Coarse shapes with fine noise over them."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((500, 375))
    noise = random.normal(0, 12, (375, 500, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def test_hash_is_near_for_copies_and_far_for_others() -> None:
    photos = [make_photo(seed) for seed in range(8)]
    hashes = [decode_image(encode(photo, "PNG")).facts.dhash for photo in photos]
    for photo, original in zip(photos, hashes, strict=True):
        data = encode(photo, "JPEG", quality=90)
        copies = {
            "recompressed": decode_image(encode(photo, "JPEG", quality=40)),
            "halved": decode_image(encode(photo.resize((250, 188), Image.Resampling.LANCZOS), "JPEG", quality=70)),
            "doubled": decode_image(encode(photo.resize((1000, 750), Image.Resampling.BICUBIC), "JPEG", quality=70)),
            "brighter": decode_image(encode(photo.point([min(255, value + 12) for value in range(256)] * 3), "PNG")),
            "draft": decode_image(data, min_side_px=180),
        }
        for name, copy in copies.items():
            assert count_differing_bits(copy.facts.dhash, original) <= 24, name
    distances = [count_differing_bits(one, other) for at, one in enumerate(hashes) for other in hashes[:at]]
    assert min(distances) >= 70


def test_noise_in_a_flat_picture_moves_no_bits() -> None:
    noise = np.random.default_rng(0).integers(126, 130, (200, 200, 3), dtype=np.uint8)
    assert int(decode_image(encode(Image.fromarray(noise), "PNG")).facts.dhash, 16) == 0


def test_hash_on_real_photographs(cats_dogs: Path) -> None:
    paths = sorted(cats_dogs.rglob("*.jpg"))[::60]
    hashes = []
    for path in paths:
        data = read_image_file(path)
        original = decode_image(data)
        hashes.append(original.facts.dhash)
        photo = Image.fromarray(original.pixels)
        copy = encode(photo.resize((photo.width * 7 // 10, photo.height * 7 // 10)), "JPEG", quality=70)
        assert count_differing_bits(decode_image(copy).facts.dhash, hashes[-1]) <= 36, path
        draft = decode_image(data, min_side_px=max(1, min(photo.size) // 2))
        assert count_differing_bits(draft.facts.dhash, hashes[-1]) <= 36, path
    distances = [count_differing_bits(one, other) for at, one in enumerate(hashes) for other in hashes[:at]]
    assert min(distances) > 50


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_one_colour(format: str) -> None:
    flat = Image.new("RGB", (64, 64), (80, 90, 100))
    assert decode_image(encode(flat, format)).facts.is_one_colour
    flat.putpixel((63, 63), (255, 0, 0))
    assert not decode_image(encode(flat, format)).facts.is_one_colour


@pytest.mark.parametrize(
    ("path", "format", "expected"),
    [
        ("a/cat.jpg", "JPEG", True),
        ("CAT.JPEG", "JPEG", True),
        ("cat.v2.final.png", "PNG", True),
        ("cat.jpg", "PNG", False),
        ("cat.heic", "JPEG", False),
        ("photo.d/cat", "JPEG", True),
        ("cat.mpo", "JPEG", True),
        ("cat\udcff.tif", "TIFF", True),
        (".png", "JPEG", True),  # a hidden file without extension
        ("cat.", "JPEG", True),
    ],
)
def test_extension_matches(path: str, format: str, expected: bool) -> None:
    assert extension_matches(path, format) is expected


def test_whole_real_files_are_all_accepted(hymenoptera: Path, cats_dogs: Path) -> None:
    paths = [path for folder in (hymenoptera, cats_dogs) for path in sorted(folder.rglob("*.*")) if path.is_file()]
    refused = []
    for path in paths[::4]:
        try:
            decode_image(read_image_file(path), min_side_px=112)
        except ImageError as error:
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif"):
                refused.append(f"{path}: {error}")
    assert refused == []


# --- arrays and PIL images


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((4, 5), 7, np.uint8), 7),
        (np.full((4, 5, 1), 7, np.uint8), 7),
        (np.full((4, 5, 3), 7, np.uint8), 7),
        (np.full((4, 5, 4), (9, 9, 9, 0), np.uint8), 255),
        (np.full((4, 5, 4), (9, 9, 9, 255), np.uint8), 9),
        (np.full((4, 5), 257 * 7, np.uint16), 7),
        (np.full((4, 5, 3), 257 * 7 + 128, np.uint16), 7),
        (np.full((4, 5, 3), 257 * 7 + 129, np.uint16), 8),
        (np.full((4, 5, 3), 65_535, np.uint16), 255),
        (np.full((4, 5), True), 255),
        (np.full((4, 5), False), 0),
        (np.full((5, 4, 3), 7, np.uint8).transpose(1, 0, 2)[:, ::-1], 7),
    ],
)
def test_arrays_follow_the_same_rules(array: np.ndarray, expected: int) -> None:
    pixels = convert_pixels(array)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, 5, 3)
    assert pixels.flags.c_contiguous
    assert (pixels == expected).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 3), np.int64),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((3, 40, 50), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        [[1, 2], [3, 4]],
        None,
    ],
    ids=str,
)
def test_other_arrays_are_refused_with_what_was_expected(array: Any) -> None:
    with pytest.raises(ImageError, match=r"got .*expected uint8, uint16 or bool in shape \(H, W\)") as caught:
        convert_pixels(array)
    assert caught.value.code == "unsupported-pixels"


@pytest.mark.parametrize("format", ORIENTED_FORMATS)
def test_pil_images_give_what_their_file_gives(format: str) -> None:
    for orientation in (1, 6):
        data = make_oriented(orientation, format)
        image = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(convert_pixels(image), decode_image(data).pixels)
    for data in (encode(Image.new("RGBA", (9, 9), (1, 2, 3, 99)), "PNG"), encode(SCENE.convert("CMYK"), "JPEG")):
        np.testing.assert_array_equal(convert_pixels(Image.open(io.BytesIO(data))), decode_image(data).pixels)


def test_pil_images_that_cannot_be_loaded() -> None:
    with pytest.raises(ImageError) as caught:
        convert_pixels(Image.open(io.BytesIO(encode(SCENE, "JPEG")[:-500])))
    assert caught.value.code == "truncated"


# --- files


def get_file_verdict(path: str | os.PathLike[str], **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image_file(path, **options)
    assert caught.value.path == os.fspath(path)
    return caught.value.code


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    data = encode(SCENE, "PNG")
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff.png")
    Path(name).write_bytes(data)
    (tmp_path / "link.png").symlink_to(name)
    assert read_image_file(name) == data
    assert read_image_file(tmp_path / "link.png") == data


@pytest.mark.skipif(os.name == "nt", reason="needs pipes and sockets as files")
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "to_pipe.jpg").symlink_to("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(tmp_path, os.O_RDONLY)  # a socket's path must be short
        try:
            server.bind(f"/proc/self/fd/{folder}/s.jpg")
        finally:
            os.close(folder)
        for path in (tmp_path / "pipe.jpg", tmp_path / "folder.jpg", tmp_path / "to_pipe.jpg", tmp_path / "s.jpg"):
            assert get_file_verdict(path) == "not-a-regular-file"
    assert get_file_verdict("/dev/zero") == "not-a-regular-file"


def test_broken_links(tmp_path: Path) -> None:
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert get_file_verdict(tmp_path / "dangling.jpg") == "broken-link"
    assert get_file_verdict(tmp_path / "self.jpg") == "broken-link"


def test_unreadable(tmp_path: Path) -> None:
    assert get_file_verdict(tmp_path / "missing.jpg") == "unreadable"
    assert get_file_verdict(tmp_path / ("x" * 5000)) == "unreadable"
    assert get_file_verdict(f"{tmp_path}/nul\0.jpg") == "unreadable"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ImageError, match="permission denied") as caught:
        read_image_file(path)
    assert caught.value.code == "unreadable"


def test_size_of_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert get_file_verdict(tmp_path / "empty.jpg") == "empty"
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(83 * 2**20)
    assert get_file_verdict(tmp_path / "large.jpg") == "too-large"
    with pytest.raises(ImageError, match=r"83\.0 MB \(limit 64 MB\)"):
        read_image_file(tmp_path / "large.jpg")
    limits = DecodeLimits(max_file_bytes=3)
    (tmp_path / "four.jpg").write_bytes(b"four")
    assert get_file_verdict(tmp_path / "four.jpg", limits=limits) == "too-large"
    assert read_image_file(tmp_path / "four.jpg", DecodeLimits(max_file_bytes=4)) == b"four"


def test_a_file_that_comes_in_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 4
    (tmp_path / "x.jpg").write_bytes(data)
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: read(descriptor, min(count, 341)))  # a third and one left
    assert read_image_file(tmp_path / "x.jpg") == data


def test_a_file_that_grows_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "growing.jpg"
    path.write_bytes(bytes(2_000_000))
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            for _ in range(200_000):
                if stop.is_set():
                    return
                file.write(b"x")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        verdicts = set()
        deadline = time.monotonic() + 5
        while not verdicts and time.monotonic() < deadline:
            try:
                read_image_file(path)
            except ImageError as error:
                verdicts.add(error.code)
    finally:
        stop.set()
        writer.join()
    assert verdicts == {"changed-while-reading"}
