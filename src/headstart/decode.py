"""Encoded pictures to RGB: the only way from bytes to pixels, and the only judge of what is a picture."""

from __future__ import annotations

import ctypes
import io
import json
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
    features,
)

from headstart.errors import ImageError
from headstart.formats import refuse_format, sniff_format
from headstart.image_files import DEFAULT_LIMITS, DecodeLimits, check_length

DECODER_VERSION = 1
"""Part of every cache key: raised whenever the pixels of any picture change."""

# The readers are called directly. Image.open would add Pillow's own size limit (a process-wide setting that warns
# instead of refusing) and would turn a JPEG that holds several pictures into another class.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
if features.check("avif"):
    from PIL import AvifImagePlugin

    _READERS["AVIF"] = AvifImagePlugin.AvifImageFile

_ORIENTATION_TAG = 274
_ORIENTATIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_REFUSED_MODES = {"F": "32-bit float", "I": "32-bit or signed integer", "LAB": "LAB colour"}
_TRAILING_BYTES = 1000  # fewer after the end of a picture are not worth a note

_USUAL_SCANS = 32
_MAX_SCANNED_PIXELS = 2 * 10**9  # take 0.8 s
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")  # of a JPEG; with those left out no length follows
_COMPOSITE_PIXELS = 2**21

_this_thread = threading.local()


class _ReaderWarnings:
    """Stands for the module `warnings` inside Pillow's readers: silent in a thread that decodes here.

    Other threads keep their warnings. warnings.catch_warnings would change the filters of every thread, and with
    the filter "error" a warning would change the verdict on a picture.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, category: Any = None, stacklevel: int = 1, **options: Any) -> None:
        if not getattr(_this_thread, "is_reading", False):
            warnings.warn(message, category, stacklevel + 1, **options)


for _module in (PIL.Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin):
    vars(_module)["warnings"] = _ReaderWarnings()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Pillow's errors reach stderr where nothing is set up
# libtiff writes its errors to file descriptor 2. Pillow's extension module leads to the libtiff it is linked with;
# where that is linked statically (Windows) there is no such symbol and libtiff keeps its voice.
with suppress(OSError, AttributeError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known about a picture besides its pixels.

    The size is upright (after EXIF rotation) and full scale, also when fewer pixels were decoded. `dhash` is a
    difference hash of 256 bits as 64 hex digits: the number of differing bits is small for near-copies. `notes` are
    stable codes: exif-rotated, exif-ignored, first-frame, first-frame-of-N, tiny (under 16 px), small (under 32 px),
    extreme-aspect (over 1:20), trailing-bytes (over 1 kB after the end).
    """

    format: str
    width_px: int
    height_px: int
    notes: tuple[str, ...]
    dhash: str
    is_one_colour: bool

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> ImageFacts:
        values = json.loads(text)
        return cls(**{**values, "notes": tuple(values["notes"])})


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """`pixels` is uint8 (H, W, 3) RGB, C-contiguous, read-only; smaller than in the file if `min_side_px` allows it."""

    pixels: NDArray[np.uint8]
    facts: ImageFacts


def decode_image(data: bytes, *, min_side_px: int | None = None, limits: DecodeLimits = DEFAULT_LIMITS) -> DecodedImage:
    """Decode the first picture in `data`, turned upright, to RGB.

    16 bits become 8 by value / 257, transparent parts are laid on white, CMYK is converted without its profile. With
    `min_side_px` a JPEG may come at 1/2, 1/4 or 1/8 of its size, its short side never under that many pixels.
    May be called from several threads. Raises ImageError `empty`, `too-large`, `not-an-image`, `unsupported-format`,
    `too-many-pixels`, `unsupported-pixels`, `truncated`, `damaged`, `too-slow` or `too-much-memory`.
    """
    check_length(len(data), limits)
    format = sniff_format(data[:1024])
    if format not in _READERS:
        raise refuse_format(format)
    if format == "WEBP":
        _check_webp_header(data, limits)  # its reader takes memory for the whole canvas when it opens
    with _reading(format, data):
        return _decode(format, data, min_side_px, limits)


@contextmanager
def _reading(format: str, data: bytes) -> Iterator[None]:
    """Silence the readers in this thread and turn whatever they raise into ImageError."""
    _this_thread.is_reading = True
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("too-much-memory", "there is not enough memory to decode this picture") from None
    except Exception as error:  # the readers raise nearly everything on damaged files
        raise _judge_failure(format, data, error) from error
    finally:
        _this_thread.is_reading = False


def _check_webp_header(data: bytes, limits: DecodeLimits) -> None:
    if len(data) < 30 or len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise _truncated()
    kind, size = data[12:16], (0, 0)
    if kind == b"VP8X":
        size = (int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    elif kind == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        size = ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8 ":
        size = (int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF)
    _check_size(size, limits)


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width <= 0 or height <= 0:
        raise ImageError("damaged", f"the picture is {width} x {height} pixels")
    if width * height > limits.max_pixels:
        limit = f"{limits.max_pixels / 1e6:g} megapixels"
        raise ImageError("too-many-pixels", f"{width} x {height} (limit {limit})")
    if max(size) > limits.max_side_px:
        raise ImageError("too-many-pixels", f"{width} x {height} (limit {limits.max_side_px} pixels a side)")


def _decode(format: str, data: bytes, min_side_px: int | None, limits: DecodeLimits) -> DecodedImage:
    stream = io.BytesIO(data)
    image = _READERS[format](stream, "")
    full_size = image.size
    _check_size(full_size, limits)
    _check_mode(image.mode, format)
    notes: list[str] = []
    tiff_orientation = None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if 50706 in image.tag_v2 or (image.tag_v2.get(254) == 1 and 330 in image.tag_v2):
            raise refuse_format("camera raw")  # DNG, or IFD 0 holds only the preview (NEF, ARW)
        tiff_orientation = image.tag_v2.get(_ORIENTATION_TAG, 1)
        notes += ["first-frame"] if image.tag_v2.next else []
    if isinstance(image, PngImagePlugin.PngImageFile):
        _scale_png_transparency(image, bit_depth=data[24])
    pixels_at = image.tile[0].offset if format == "GIF" and image.tile else stream.tell()
    if format == "JPEG":
        _check_scans(data, pixels_at, full_size)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and min_side_px and min(full_size) >= 2 * min_side_px:
        image.draft(None, (min_side_px, min_side_px))
    is_scaled = image.size != full_size
    image.load()
    notes += _check_end(format, image, data, pixels_at)

    orientation, is_broken = _read_orientation(image) if tiff_orientation is None else (tiff_orientation, False)
    rgb = _to_rgb(image, format)
    if orientation in _ORIENTATIONS:
        notes.append("exif-rotated")
        if tiff_orientation is None:  # Pillow has turned a TIFF while it loaded it
            rgb = rgb.transpose(_ORIENTATIONS[orientation])
    elif is_broken or orientation != 1:
        notes.append("exif-ignored")
    width, height = rgb.size
    if is_scaled:
        width, height = full_size if orientation not in (5, 6, 7, 8) else full_size[::-1]
    short, long = sorted((width, height))
    notes += ["tiny"] if short < 16 else ["small"] if short < 32 else []
    notes += ["extreme-aspect"] if long > 20 * short else []
    dhash, is_one_colour = _hash_pixels(rgb)
    facts = ImageFacts(format, width, height, tuple(notes), dhash, is_one_colour)
    return DecodedImage(np.asarray(rgb), facts)


def _check_scans(data: bytes, pixels_at: int, size: tuple[int, int]) -> None:
    """Refuse a JPEG of very many scans: each is a pass over all pixels, whatever scale is asked for.

    A file of 0.5 MB can hold 1,000 of 64 megapixels, which take 25 s; usual ones have 1 or about 10.
    """
    most = max(_USUAL_SCANS, _MAX_SCANNED_PIXELS // (size[0] * size[1]))
    if 1 + data.count(b"\xff\xda", pixels_at) <= most:
        return
    # What looks like scans may be other data, such as a film after the picture: walk from marker to marker.
    num_scans, at = 1, pixels_at
    while num_scans <= most and (found := _MARKER.search(data, at)):
        at = found.end()
        if found[1] == b"\xd9":
            return
        num_scans += found[1] == b"\xda"
        at += int.from_bytes(data[at : at + 2], "big")
    if num_scans > most:
        raise ImageError("too-slow", f"more than {most} scans of {size[0]} x {size[1]} pixels. Save it again as JPEG")


def _check_end(format: str, image: PIL.Image.Image, data: bytes, pixels_at: int) -> list[str]:
    """Refuse what Pillow lets pass although its end is missing; note what follows the first picture.

    `pixels_at` is where the reader stopped in the header: the first byte of the compressed pixels in JPEG and GIF.
    """
    num_frames = 1
    end = len(data)
    if format == "JPEG":
        end = data.find(b"\xff\xd9", pixels_at) + 2
        if end == 1:
            raise _truncated()
        if "mp" in image.info:  # more pictures follow, as in MPO and Ultra HDR
            return ["first-frame"]
    elif format == "PNG":
        end = data.rfind(b"IEND") + 8
        if not pixels_at < end <= len(data):
            raise _truncated()
    elif format == "WEBP":
        end = 8 + int.from_bytes(data[4:8], "little")
    elif format == "GIF":
        end, is_last = _find_gif_frame_end(data, pixels_at)
        if not is_last:
            return ["first-frame"]
    if format in ("PNG", "WEBP", "AVIF"):  # known from the header; in the other formats asking walks the whole file
        num_frames = getattr(image, "n_frames", 1)
    notes = [f"first-frame-of-{num_frames}"] if num_frames > 1 else []
    return notes + (["trailing-bytes"] if len(data) - end > _TRAILING_BYTES else [])


def _find_gif_frame_end(data: bytes, at: int) -> tuple[int, bool]:
    """Walk the blocks of the frame whose compressed pixels start at `at`: its end, and whether it is the last one."""
    try:
        while data[at]:
            at += 1 + data[at]
        at += 1
        while data[at] == 0x21:  # extension blocks
            at += 2
            while data[at]:
                at += 1 + data[at]
            at += 1
        return at + 1, data[at] != 0x2C
    except IndexError:
        raise _truncated() from None


def _judge_failure(format: str, data: bytes, error: Exception) -> ImageError:
    words = " ".join(str(error).split())[:200]
    lowered = words.lower()
    if isinstance(error, PIL.Image.DecompressionBombError):
        return ImageError("too-many-pixels", words)
    if "decompressed data too large" in lowered:
        return ImageError("damaged", "oversized metadata")
    # A PNG says by its end chunk whether it is whole; Pillow also calls a chunk that is too short truncated.
    is_said_cut = format != "PNG" and any(hint in lowered for hint in ("truncated", "end of file", "not enough"))
    if "unsupported bmp" not in lowered and (is_said_cut or _is_cut(format, data)):
        return _truncated()
    if "unsupported bmp" in lowered or "unknown pixel mode" in lowered:
        advice = f"this kind of {format} is not supported ({words}). Save it again as 8-bit PNG"
        return ImageError("unsupported-pixels", advice)
    return ImageError("damaged", f"the picture data cannot be decoded ({words or type(error).__name__})")


def _truncated() -> ImageError:
    return ImageError("truncated", "the file ends early (copy or download it again)")


def _is_cut(format: str, data: bytes) -> bool:
    """Whether a file that failed to decode is shorter than its own header says."""
    if format == "JPEG":
        return b"\xff\xd9" not in data
    if format == "PNG":
        return b"IEND" not in data
    if format == "GIF":
        return not data.endswith(b";")
    if format == "BMP":
        return int.from_bytes(data[2:6], "little") > len(data)
    try:
        return _is_tiff_cut(data) if format == "TIFF" else format == "AVIF" and _is_avif_cut(data)
    except struct.error:
        return True


def _is_tiff_cut(data: bytes) -> bool:
    order = "<" if data.startswith(b"II") else ">"
    (folder_at,) = struct.unpack_from(f"{order}I", data, 4)
    (num_entries,) = struct.unpack_from(f"{order}H", data, folder_at)
    for entry in range(num_entries):
        _, kind, count, value_at = struct.unpack_from(f"{order}HHII", data, folder_at + 2 + 12 * entry)
        num_bytes = {3: 2, 4: 4, 5: 8, 10: 8, 12: 8}.get(kind, 1) * count
        if num_bytes > 4 and value_at + num_bytes > len(data):
            return True
    with suppress(Exception):
        tags = TiffImagePlugin.TiffImageFile(io.BytesIO(data), "").tag_v2
        starts, lengths = (tags.get(273) or tags[324]), (tags.get(279) or tags[325])
        return any(start + length > len(data) for start, length in zip(starts, lengths, strict=False))
    return False


def _is_avif_cut(data: bytes) -> bool:
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        if size < 8:  # up to the end of the file, or not usual in a picture
            return False
        at += size
    return at > len(data)


def _read_orientation(image: PIL.Image.Image) -> tuple[Any, bool]:
    """The EXIF orientation (1 where none is given, anything where it is wrong) and whether the EXIF data are broken."""
    try:
        exif = image.getexif()
        return exif.get(_ORIENTATION_TAG, 1), "exif" in image.info and not exif
    except Exception:
        return 1, True


def _scale_png_transparency(image: PngImagePlugin.PngImageFile, bit_depth: int) -> None:
    # Pillow brings the samples to 8 bits, but leaves the transparent colour in the file's scale.
    colour = image.info.get("transparency")
    if bit_depth == 16 and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif bit_depth in (2, 4) and image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2**bit_depth - 1)


def _check_mode(mode: str, what: str) -> None:
    if mode in _REFUSED_MODES:
        reason = f"{_REFUSED_MODES[mode]} {what} has no fixed range. Convert it to 8 or 16 bits a channel, grey or RGB"
        raise ImageError("unsupported-pixels", reason)


def _to_rgb(image: PIL.Image.Image, what: str = "image") -> PIL.Image.Image:
    _check_mode(image.mode, what)
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        grey = _to_8_bits(samples)
        if isinstance(hidden := image.info.get("transparency"), int):
            grey[samples == hidden] = 255
        tags = getattr(image, "tag_v2", {})
        if tags.get(258) == (12,):  # a TIFF of 12 bits has 4,095 as its white
            grey = _to_8_bits(samples * 16)
        if tags.get(262) == 0:  # WhiteIsZero, which Pillow heeds in 8 bits only
            grey = 255 - grey
        return PIL.Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        if image.mode in ("La", "PA"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        return _lay_on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _lay_on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """In strips: Pillow lets no other thread run meanwhile, and a large picture takes it half a second."""
    opaque = PIL.Image.new("RGB", image.size)
    step = max(1, _COMPOSITE_PIXELS // image.width)
    for top in range(0, image.height, step):
        strip = image.crop((0, top, image.width, min(top + step, image.height))).convert("RGBA")
        white = PIL.Image.new("RGBA", strip.size, "white")
        white.alpha_composite(strip)
        opaque.paste(white.convert("RGB"), (0, top))
    return opaque


def _to_8_bits(samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Divide by 257 and round."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _hash_pixels(rgb: PIL.Image.Image) -> tuple[str, bool]:
    """The difference hash of ImageFacts, and whether all pixels have one colour.

    The picture is sampled down to a short side of 160 px or a little more before it is averaged: all pixels would
    cost three times as much, fewer samples move more bits. A step counts from 3 levels up, so that noise in flat
    parts moves none.
    """
    step = max(1, min(rgb.size) // 160)
    sampled = rgb.resize((rgb.width // step, rgb.height // step), PIL.Image.Resampling.NEAREST) if step > 1 else rgb
    small = np.asarray(sampled.convert("L").resize((17, 16), PIL.Image.Resampling.BOX)).astype(np.int16)
    bits = small[:, 1:] - small[:, :-1] > 2
    return np.packbits(bits).tobytes().hex(), rgb.getcolors(1) is not None


def convert_pixels(image: NDArray[Any] | PIL.Image.Image) -> NDArray[np.uint8]:
    """A picture in memory to uint8 (H, W, 3) RGB, by the colour rules of decode_image.

    Takes arrays (H, W), (H, W, 1), (H, W, 3) and (H, W, 4) of uint8, uint16 or bool (the fourth channel is alpha), and
    PIL images, which are turned upright if they carry an EXIF orientation. Raises ImageError `unsupported-pixels` for
    anything else, and what decode_image raises for a PIL image that cannot be loaded.
    """
    if isinstance(image, PIL.Image.Image):
        if 0 in image.size:
            raise _unexpected_pixels(f"a picture of {image.width} x {image.height} pixels")
        with _reading("", b""):
            image.load()
            orientation, _ = _read_orientation(image)
            rgb = _to_rgb(image)
            return np.asarray(rgb.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else rgb)
    if not isinstance(image, np.ndarray):
        raise _unexpected_pixels(type(image).__name__)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise _unexpected_pixels(f"shape {image.shape}")
    if image.dtype == np.bool_:
        pixels = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype == np.uint16:
        pixels = _to_8_bits(image)
    elif image.dtype == np.uint8:
        pixels = image
    else:
        raise _unexpected_pixels(f"{image.dtype}")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == 4:
        return np.asarray(_to_rgb(PIL.Image.fromarray(np.ascontiguousarray(pixels), "RGBA")))
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _unexpected_pixels(found: str) -> ImageError:
    expected = "uint8, uint16 or bool in shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a PIL image"
    return ImageError("unsupported-pixels", f"got {found}, expected {expected}. Scale floats to 0..255 and round them")


def describe_pixels(pixels: NDArray[np.uint8]) -> ImageFacts:
    """The facts of a picture that came as pixels uint8 (H, W, 3); its format is `pixels`."""
    height, width = pixels.shape[:2]
    dhash, is_one_colour = _hash_pixels(PIL.Image.fromarray(pixels))
    return ImageFacts("pixels", width, height, (), dhash, is_one_colour)
