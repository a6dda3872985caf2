"""Peak memory of `headstart train` on few and on ten times as many pictures.

The pictures are made from a folder by crops, mirrors and brightness drawn from a fixed seed and saved as JPEG, so that
no two have the same content. Each training runs as a process of its own in a fresh cache; its peak is what the kernel
counted for it (ru_maxrss).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
from measure import HEADSTART, make_parser, read_run, report, round_figure, summarize, work_folder

_SIZE_PX = (320, 240)


def main() -> None:
    # A process starts with its parent's peak, so nothing large is imported here.
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("data", help="folder of pictures; the folder that holds a picture is its class")
    parser.add_argument("--small", type=int, default=2000, help="pictures (default 2000)")
    parser.add_argument("--large", type=int, default=20_000, help="pictures (default 20000)")
    args = parser.parse_args()
    sources = list_sources(Path(args.data))
    results: dict[str, Any] = {}
    peaks: dict[str, list[float]] = {}
    for name, count in (("small", args.small), ("large", args.large)):
        with work_folder() as folder:
            began = time.perf_counter()
            make_pictures(sources, folder / "pictures", count)
            making_s = time.perf_counter() - began
            runs = [train(folder, number) for number in range(args.repeats)]
        peaks[name] = [run["peak_mb"] for run in runs]
        results[name] = {
            "num_images": count,
            "making_them_s": round_figure(making_s),
            "peak_mb": summarize(peaks[name]),
            "seconds": summarize([run["seconds"] for run in runs]),
            "forward_passes": [run["num_forward"] for run in runs],
        }
    ratios = [large / small for small, large in zip(peaks["small"], peaks["large"], strict=True)]
    report({**results, "large_over_small": summarize(ratios)})


def list_sources(data: Path) -> list[Path]:
    suffixes = {".jpg", ".jpeg", ".png"}
    sources = sorted(path for path in data.rglob("*") if path.suffix.lower() in suffixes)
    if not sources:
        sys.exit(f"{data} holds no pictures.")
    # Turn by turn through the folder, so that any first part of the list has all classes.
    random.Random(0).shuffle(sources)
    return sources


def make_pictures(sources: list[Path], folder: Path, count: int) -> None:
    chosen = [sources[number % len(sources)] for number in range(count)]
    for name in {path.parent.name for path in chosen}:
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(make_picture, chosen, repeat(folder), range(count), chunksize=100):
            pass


def make_picture(source: Path, folder: Path, number: int) -> None:
    """A part of `source` of 60 to 95 % of its sides, maybe mirrored, darker or brighter."""
    rng = random.Random(number)
    with PIL.Image.open(source) as image:
        share = rng.uniform(0.6, 0.95)
        width, height = (round(share * side) for side in image.size)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        part = image.convert("RGB").resize(_SIZE_PX, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        part = PIL.ImageOps.mirror(part)
    part = PIL.ImageEnhance.Brightness(part).enhance(rng.uniform(0.6, 1.4))
    part.save(folder / source.parent.name / f"{number:06d}.jpg", quality=88)


def train(folder: Path, number: int) -> dict[str, Any]:
    output = folder / f"{number}.onnx"
    os.environ["HEADSTART_CACHE"] = str(folder / f"cache-{number}")
    command = [*HEADSTART, "train", str(folder / "pictures"), "--output", str(output)]
    began = time.perf_counter()
    with open(folder / "messages", "wb") as messages:
        child = subprocess.Popen(command, stdout=messages, stderr=messages)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if child.returncode:
        sys.exit(f"headstart train failed:\n{(folder / 'messages').read_text(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_mb": usage.ru_maxrss * unit / 1e6,
        "seconds": seconds,
        "num_forward": read_run(output)["num_forward"],
    }


if __name__ == "__main__":
    main()
