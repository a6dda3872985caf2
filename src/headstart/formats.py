"""What a file is by its first bytes and by its extension, and what is said of those that are not decoded."""

from __future__ import annotations

import codecs
import os
import re
import struct

from headstart.errors import ImageError

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
}
"""The formats that are decoded, with the extensions (lower case) that promise them."""

# What the first bytes look like, as regular expressions, tried in this order.
_DECODED = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb".PNG",  # also where a transfer as text damaged the rest of the signature
    "GIF": rb"GIF8",
    "Canon raw": rb"II\*\0\x10\0\0\0CR|....ftypcrx ",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WEBP": rb"RIFF....WEBP",
    "AVIF": rb"....ftyp(....){0,10}?avi[fs]",
    "BMP": rb"BM.{0,30}\0",
}
_REFUSED_PICTURES = {
    "HEIC": rb"....ftyp(....){0,10}?(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "EPS or PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "Photoshop PSD": rb"8BPS",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG XR": rb"II\xbc",
    "ICO": rb"\0\0[\x01\x02]\0(?!\0\0)",
    "ICNS": rb"icns",
    "PNM": rb"P[1-7]\s",
    "DICOM": rb".{128}DICM",
    "FITS": rb"SIMPLE  =",
    "Fuji raw": rb"FUJIFILMCCD-RAW",
    "Olympus raw": rb"IIR[OS]",
    "Panasonic raw": rb"IIU\0",
    "QOI": rb"qoif",
    "DDS": rb"DDS ",
    "BLP": rb"BLP[12]",
    "SGI": rb"\x01\xda[\x00\x01]",
    "MSP": rb"DanM|LinS",
    "GIMP XCF": rb"gimp xcf",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?RADIANCE",
    "FLI animation": rb"....[\x11\x12]\xaf",
    "WMF": rb"\xd7\xcd\xc6\x9a",
    "DjVu": rb"AT&TFORM",
}
_OTHER_FILES = {
    "Git LFS pointer (run git lfs pull)": rb"version https://git-lfs",
    "PDF document": rb"%PDF",
    "ZIP archive": rb"PK(\x03\x04|\x05\x06)",
    "compressed archive": rb"\x1f\x8b|BZh|7z\xbc\xaf|\xfd7zXZ|\x28\xb5\x2f\xfd|Rar!",
    "tar archive": rb".{257}ustar",
    "pickle": rb"\x80[\x02-\x05]",
    "NumPy array": rb"\x93NUMPY",
    "HDF5 file": rb"\x89HDF",
    "SQLite database": rb"SQLite format 3",
    "program": rb"\x7fELF|MZ.{0,30}\0|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe",
    "video": rb"....ftyp|RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01",
    "sound file": rb"ID3|fLaC|OggS|RIFF....WAVE",
}
_MAGIC = {
    name: re.compile(pattern, re.DOTALL) for name, pattern in (_DECODED | _REFUSED_PICTURES | _OTHER_FILES).items()
}
_ADVICE = {
    "HEIC": "Convert to JPEG (iPhone: Settings, Camera, Formats, Most Compatible)",
    "SVG": "This is a drawing, not pixels. Export it as PNG",
    "EPS or PostScript": "This is a drawing, not pixels. Export it as PNG",
    "AVIF": "The installed Pillow cannot decode it. Upgrade Pillow, or convert to JPEG",
}


def extension_matches(path: str | os.PathLike[str], format: str) -> bool:
    """Whether the extension promises `format` (of ImageFacts). A name without extension promises nothing: True."""
    name = os.path.basename(path)  # PurePath takes ten times as long
    at = name.rfind(".")
    extension = name[at:].lower() if 0 < at < len(name) - 1 else ""
    return not extension or extension in EXTENSIONS.get(format, ())


def sniff_format(head: bytes) -> str:
    """What a file is by its first bytes (1,024 are enough): a key of EXTENSIONS, or the name of something refused."""
    for name, pattern in _MAGIC.items():
        if pattern.match(head):
            return name
    return _sniff_text(head) or ("TGA" if _looks_like_tga(head) else "unknown data")


def _sniff_text(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16 text"
    if any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head):
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "HTML text"
    if start.startswith(b"<"):
        return "SVG" if b"<svg" in start or b"<!doctype svg" in start else "XML text"
    return "text"


def _looks_like_tga(head: bytes) -> bool:
    # TGA has no magic number: a header whose fields agree with each other is all there is.
    if len(head) < 18:
        return False
    has_map, kind, map_bits, depth = head[1], head[2], head[7], head[16]
    width, height = struct.unpack_from("<HH", head, 12)
    is_mapped = has_map == 1 and kind in (1, 9) and map_bits in (15, 16, 24, 32) and depth in (8, 16)
    is_direct = has_map == 0 and kind in (2, 3, 10, 11) and depth in (8, 15, 16, 24, 32)
    return (is_mapped or is_direct) and width > 0 and height > 0


def refuse_format(kind: str) -> ImageError:
    """The verdict on a file that sniff_format took for something that is not decoded here."""
    if kind in (*_DECODED, *_REFUSED_PICTURES, "SVG", "TGA", "camera raw"):
        advice = _ADVICE.get(kind, "Convert it to JPEG or PNG")
        return ImageError("unsupported-format", f"{kind}. {advice}")
    article = "" if kind.endswith(("text", "data", "video")) else "a "
    return ImageError("not-an-image", f"this is {article}{kind}, not a picture")
