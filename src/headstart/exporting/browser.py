"""A folder with a page that runs the classifier wholly in the browser, by onnxruntime-web."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from headstart._files import compute_sha256, show_path
from headstart.errors import ConfigError, ImageError
from headstart.exporting.browser_runtime import ONNXRUNTIME_WEB, find_program, get_runtime, run_node
from headstart.exporting.checking import ExportRefused, get_min_agreement
from headstart.exporting.targets import check_folder_target, write_folder
from headstart.palette import read_palette
from headstart.pictures import PictureSource, load_picture
from headstart.prediction import Classifier

TOLERANCE = 0.02
"""The page refuses to work where it computes a probability of its known picture that is further off than this."""
TOLERANCE_8_BITS = 0.25
"""The same for 8-bit networks, which processors round differently."""
_KNOWN_SIZE = 97, 131
_PAGE_FILES = ("index.html", "page.css", "page.js", "worker.js", "offline.js")
_NAMES = {"model.onnx", "onnxruntime-web.js", "onnxruntime-web.wasm", "settings.json", *_PAGE_FILES, "README.txt"}


@dataclass(frozen=True)
class BrowserExport:
    """What was written: the names with their sizes in bytes, and how the check on pictures went.

    Of `num_checked` pictures onnxruntime-web, run by node, gave `num_same_class` the original's class; the largest
    difference of a probability was `worst_difference`. `num_checked` is 0 where there is no node or no picture.
    """

    folder: Path
    sizes_bytes: dict[str, int]
    num_checked: int
    num_same_class: int
    worst_difference: float


def export_browser(
    classifier: Classifier,
    folder: str | os.PathLike[str],
    *,
    pictures: Sequence[PictureSource] = (),
    title: str | None = None,
    unknown_below: float = 0.01,
    runtime: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> BrowserExport:
    """Write the page for `classifier` into `folder`, to be served as it is by any web server.

    The classifier is first run by onnxruntime-web on `pictures` where node is installed; those that cannot be read are
    passed over. In every browser the page itself compares one known picture before it takes others. `runtime` is the
    folder of an unpacked onnxruntime-web; without it npm fetches that package once. Pictures with a familiarity below
    `unknown_below` are shown as perhaps none of the classes.

    The folder is written whole or not at all; an earlier page is replaced with `overwrite` only, a folder with other
    files never. Raises ConfigError where it cannot be, ExportRefused where the classes differ on more than 0.1 % of
    the pictures (1 % for 8-bit networks), HeadstartError where the runtime cannot be had or does not run the
    classifier; nothing is written then.
    """
    if not 0 <= unknown_below <= 1:
        raise ConfigError(f"unknown_below is {unknown_below}; expected a share from 0 to 1, such as 0.01.")
    target = Path(folder)
    check_folder_target(target, _NAMES, overwrite)
    script, wasm = get_runtime(runtime)
    settings = {
        "title": title or "Picture classifier",
        "labels": list(classifier.classes),
        "min_side_px": 2 * classifier.metadata.preprocess.get("input_size_px", 0),
        "unknown_below": unknown_below,
        "model_sha256": classifier.sha256,
        "check": _compute_check(classifier),
    }
    contents = {
        "model.onnx": classifier.data,
        "onnxruntime-web.js": script,
        "onnxruntime-web.wasm": wasm,
        "settings.json": json.dumps(settings, ensure_ascii=False, indent=1).encode(),
        **{name: _read_page_file(name) for name in _PAGE_FILES},
    }
    contents["page.css"] = read_palette().encode() + contents["page.css"]
    version = compute_sha256("".join(compute_sha256(data) for data in contents.values()).encode())[:16]
    contents["offline.js"] = contents["offline.js"].replace(b"@VERSION@", version.encode())
    agreement = _check_by_node(classifier, contents, pictures)
    contents["README.txt"] = _write_readme(settings["title"], agreement).encode()
    write_folder(target, contents, overwrite)
    return BrowserExport(target, {name: len(data) for name, data in contents.items()}, *agreement)


def make_known_picture() -> np.ndarray:
    """The picture of the page's own check, uint8 (97, 131, 3); worker.js makes the same."""
    height, width = _KNOWN_SIZE
    i = np.arange(height * width * 3, dtype=np.int64)
    return ((i * i * 31 + i * 7) % 251).astype(np.uint8).reshape(height, width, 3)


def _compute_check(classifier: Classifier) -> dict[str, Any]:
    probs, familiarity = classifier.run_all(make_known_picture())
    height, width = _KNOWN_SIZE
    return {
        "height": height,
        "width": width,
        "probabilities": [float(value) for value in probs],
        "familiarity": familiarity,
        "tolerance": TOLERANCE_8_BITS if b"QuantizeLinear" in classifier.data else TOLERANCE,
    }


def _read_page_file(name: str) -> bytes:
    return (files("headstart.exporting") / "browser_page" / name).read_bytes()


def _check_by_node(
    classifier: Classifier, contents: dict[str, bytes], pictures: Sequence[PictureSource]
) -> tuple[int, int, float]:
    """Number of pictures, number with the same class, largest difference. Raises HeadstartError."""
    node = find_program("node") if pictures else None
    if node is None:
        return 0, 0, 0.0
    expected: list[tuple[np.ndarray, float | None]] = []
    size = classifier.metadata.preprocess.get("input_size_px")

    def decode() -> Iterator[bytes]:
        for picture in pictures:
            with suppress(ImageError):
                pixels = load_picture(picture, None, 2 * size if size else None).pixels
                expected.append(classifier.run_all(pixels))
                yield struct.pack("<II", *pixels.shape[:2]) + pixels.tobytes()

    names = {"onnxruntime-web.js": "runtime.mjs", "onnxruntime-web.wasm": "runtime.wasm", "model.onnx": "model.onnx"}
    arguments = {given: contents[name] for name, given in names.items()}
    lines = run_node(node, _read_page_file("check.mjs"), arguments, decode())
    if len(lines) != len(expected):
        raise ExportRefused("onnxruntime-web cannot run this classifier: node stopped early. Nothing was written.")
    num_same, worst = 0, 0.0
    for line, (probs, familiarity) in zip(lines, expected, strict=True):
        found = json.loads(line)
        differences = np.abs(np.array(found["probabilities"]) - probs)
        worst = max(worst, float(differences.max()))
        if familiarity is not None:
            worst = max(worst, abs(found["familiarity"] - familiarity))
        num_same += int(np.argmax(found["probabilities"]) == probs.argmax())
    if num_same < get_min_agreement(classifier) * len(expected):
        raise ExportRefused(
            f"onnxruntime-web gives another class than the original for {len(expected) - num_same:,} of "
            f"{len(expected):,} pictures. Nothing was written. A classifier without 8-bit weights (another --backbone) "
            "may agree better."
        )
    return len(expected), num_same, worst


def _write_readme(title: str, agreement: tuple[int, int, float]) -> str:
    num_checked, num_same, worst = agreement
    if num_checked:
        checked = (
            f"Before it was written, onnxruntime-web (run by node) gave {num_same:,} of {num_checked:,} pictures the\n"
            f"same class as the original; the largest difference of a probability was {worst:.1e}."
        )
    else:
        checked = "It was not run by onnxruntime-web on pictures before it was written (no node, or no pictures)."
    runtime = f"{ONNXRUNTIME_WEB.name} {ONNXRUNTIME_WEB.version}"
    text = _read_page_file("README.txt").decode()
    return text.format(title=show_path(title), checked=checked, runtime=runtime)
