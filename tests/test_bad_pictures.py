"""Public collections of awkward pictures, decoded in child processes: none crashes, hangs or writes to stderr."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.decode import decode_image
from headstart.image_files import read_image_file

# Names the file before it decodes it, so that a crash can be laid at its door.
CHILD = """
    import json, sys, time
    from headstart.decode import decode_image
    from headstart.image_files import read_image_file
    from headstart.errors import ImageError

    for path in json.load(sys.stdin):
        print(json.dumps({"path": path}), flush=True)
        start = time.perf_counter()
        try:
            data = read_image_file(path)
            notes = decode_image(data).facts.notes
            decode_image(data, min_side_px=64)
            verdict = {"code": "ok", "notes": notes}
        except ImageError as error:
            verdict = {"code": error.code, "reason": error.reason}
        print(json.dumps({"path": path, "seconds": time.perf_counter() - start, **verdict}), flush=True)
    print(json.dumps("done"), flush=True)
"""


@functools.cache
def judge_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The verdict on every file, by its path in `folder`. Fails where a child crashes, hangs or is not quiet."""
    paths = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    environment = {**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parents[1])}
    command = [sys.executable, "-W", "always", "-c", textwrap.dedent(CHILD)]
    children = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    for number, child in enumerate(children):
        assert child.stdin is not None
        child.stdin.write(json.dumps(paths[number::2]))
        child.stdin.close()
        child.stdin = None
    verdicts = {}
    for child in children:
        try:
            output, errors = child.communicate(timeout=50)
        except subprocess.TimeoutExpired:
            child.kill()
            output, errors = child.communicate()
        lines = [json.loads(line) for line in output.splitlines()]
        assert lines[-1:] == ["done"], f"the child ended with {child.returncode} at {lines[-1:]}: {errors}"
        assert errors == ""
        verdicts.update({os.path.relpath(line["path"], folder): line for line in lines if "code" in line})
    assert len(verdicts) == len(paths)
    return verdicts


def list_codes(folder: Path, pattern: str) -> dict[str, str]:
    return {name: found["code"] for name, found in judge_all(folder).items() if re.search(pattern, name)}


def test_nothing_crashes_and_nothing_is_slow(bad_pictures: Path) -> None:
    verdicts = judge_all(bad_pictures)
    assert len(verdicts) > 400
    assert {name: found["seconds"] for name, found in verdicts.items() if found["seconds"] > 10} == {}
    known = {
        "ok",
        "not-an-image",
        "unsupported-format",
        "truncated",
        "damaged",
        "too-many-pixels",
        "unsupported-pixels",
    }
    assert {found["code"] for found in verdicts.values()} <= known


def test_pngsuite(bad_pictures: Path) -> None:
    valid = list_codes(bad_pictures, r"^pngsuite/[^x][^/]*\.png$")
    assert len(valid) == 161
    assert set(valid.values()) == {"ok"}
    corrupt = list_codes(bad_pictures, r"^pngsuite/x[^/]*\.png$")
    assert len(corrupt) == 14
    passed = [name for name, code in corrupt.items() if code == "ok"]
    assert passed == ["pngsuite/xcsn0g01.png"]  # a wrong checksum of the pixels, which Pillow does not look at


def test_orientations_show_the_same_picture(bad_pictures: Path) -> None:
    def load(orientation: int) -> np.ndarray:
        image = decode_image(read_image_file(bad_pictures / f"exif-orientation/Landscape_{orientation}.jpg"))
        assert (image.facts.width_px, image.facts.height_px) == (1800, 1200)
        return np.asarray(Image.fromarray(image.pixels).resize((96, 96), Image.Resampling.BOX)).astype(int)

    upright = load(1)
    for orientation in range(2, 9):
        assert np.abs(load(orientation) - upright).mean() < 3, orientation
    assert judge_all(bad_pictures)["exif-orientation/Landscape_0.jpg"]["notes"] == ["exif-ignored"]


def test_wuffs_truncated_files_are_refused(bad_pictures: Path) -> None:
    cut = list_codes(bad_pictures, r"^wuffs/[^/]*\.truncated\.(gif|png|jpeg)$")
    assert len(cut) == 5
    assert set(cut.values()) == {"truncated"}


def test_wuffs_rest_decodes_or_is_refused_for_a_reason(bad_pictures: Path) -> None:
    refused = {name: code for name, code in list_codes(bad_pictures, r"^wuffs/").items() if code != "ok"}
    refused = {name.removeprefix("wuffs/"): code for name, code in refused.items() if ".truncated." not in name}
    unsupported = {name for name, code in refused.items() if code == "unsupported-format"}
    assert {name.rsplit(".")[-1] for name in unsupported} == {"ico", "pgm", "ppm", "qoi", "svg", "tga"}
    assert {name: code for name, code in refused.items() if name not in unsupported} == {
        "artificial-gif/no-frames.gif": "damaged",
        "artificial-gif/pixel-data-none.gif": "truncated",  # the file is whole, its picture is not
        "artificial-gif/pixel-data-not-enough.gif": "truncated",
        "artificial-gif/zero-width-frame.gif": "damaged",
        "bricks-nodither.wbmp": "not-an-image",  # WBMP has no magic number
        "hat.wbmp": "not-an-image",
        "muybridge-frame-000.wbmp": "not-an-image",
        "rgb24png.bmp": "unsupported-pixels",  # a PNG within a BMP
    }


@pytest.mark.parametrize(
    "names",
    [
        ["hippopotamus.regular.png", "hippopotamus.interlaced.png", "hippopotamus.bmp", "hippopotamus.lossless.webp"],
        ["hippopotamus.regular.png", "hippopotamus.tiff"],
        ["hibiscus.regular.png", "hibiscus.regular.lossless.webp", "hibiscus.regular.tiff"],
        ["bricks-color.png", "bricks-color.bmp", "bricks-color.lossless.webp", "bricks-color.tiff"],
        ["bricks-gray.png", "bricks-gray.bmp", "bricks-gray.gif", "bricks-gray.lossless.webp", "bricks-gray.tiff"],
        ["pjw-thumbnail.png", "pjw-thumbnail.bmp", "pjw-thumbnail.gif", "pjw-thumbnail.tiff"],
    ],
)
def test_the_same_picture_in_many_formats(names: list[str], bad_pictures: Path) -> None:
    first, *others = (decode_image((bad_pictures / "wuffs" / name).read_bytes()).pixels for name in names)
    for pixels in others:
        np.testing.assert_array_equal(pixels, first)


def test_image_rs(bad_pictures: Path) -> None:
    bad = list_codes(bad_pictures, r"^image-rs/bad/")
    assert len(bad) == 9
    assert "ok" not in bad.values()
    assert len(list_codes(bad_pictures, r"^image-rs/regression/")) == 17


def test_pillow_named_pictures_decode(bad_pictures: Path) -> None:
    pattern = r"truncated_app14|invalid-exif.*|hopper_bad_exif|junk_jpeg_header|jpeg_ff00_header|pil_sample_cmyk"
    named = list_codes(bad_pictures, rf"^pillow/({pattern})\.jpg$")
    assert len(named) == 7
    assert set(named.values()) == {"ok"}


def test_pillow_broken_pictures_are_refused(bad_pictures: Path) -> None:
    broken = list_codes(bad_pictures, r"^pillow/(truncated_|broken|decompression_bomb\.|png_decompression_dos|oom-)")
    # In these three only the EXIF data or the APP14 marker is cut or broken; the pixels are whole and EXIF is optional.
    whole = {f"pillow/{name}.jpg" for name in ("truncated_app14", "truncated_exif_dpi", "broken_exif_dpi")}
    assert {name for name, code in broken.items() if code == "ok"} == whole
    assert broken["pillow/truncated_image.png"] == broken["pillow/truncated_jpeg.jpg"] == "truncated"
    assert broken["pillow/decompression_bomb.gif"] == "too-many-pixels"
    assert broken["pillow/png_decompression_dos.png"] == "damaged"
    assert list_codes(bad_pictures, r"^pillow/.*\.(psd|dds|blp|sgi|j2k|fli|icns|ico|msp|p7)$").items() >= {
        ("pillow/decompression_bomb.ico", "unsupported-format"),
        ("pillow/hopper_bad.p7", "unsupported-format"),
    }
