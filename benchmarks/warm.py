"""What a second training costs: features are found by content, whatever happened to names, folders and dates.

Each repeat runs `headstart train` on a copy of the folder in a fresh cache, then again; then on a second copy under
another name, with pictures moved to other classes and every file touched; then with new pictures added to that, each
an old one with a single pixel changed. The number of forward passes is read from run.json.

`call` is `headstart.train` on the first copy in a running Python: a first call loads what it needs and is not counted.
`startup` is one command on it under `-X importtime`: milliseconds of importing, and their share of the run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from measure import HEADSTART, make_parser, read_run, report, summarize, work_folder
from startup import measure_imports, time_process

from headstart.dataset import ImageRecord, scan_dataset
from headstart.pictures import load_picture

_STEPS = ("fresh", "again", "moved_and_touched", "added")
_CALLS = """
import json, sys, time
import headstart
headstart.train(sys.argv[1])
figures = []
for _ in range(int(sys.argv[2])):
    began, cpu = time.perf_counter(), time.process_time()
    headstart.train(sys.argv[1])
    figures.append((time.perf_counter() - began, time.process_time() - cpu))
print(json.dumps(figures))
"""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("data", help="folder of pictures in class folders; worked on as a copy")
    parser.add_argument("--moved", type=int, default=100, help="pictures to move to another class (default 100)")
    parser.add_argument("--added", type=int, default=10, help="new pictures (default 10)")
    parser.add_argument("--calls", type=int, default=3, help="calls in a running Python in each repeat (default 3)")
    args = parser.parse_args()
    rounds = []
    for _ in range(args.repeats):
        with work_folder() as folder:
            rounds.append(measure_steps(Path(args.data), folder, args.moved, args.added, args.calls))
    report(
        {
            "num_images": rounds[0]["num_images"],
            "moved": args.moved,
            "added": args.added,
            **{
                step: {
                    "seconds": summarize([each[step]["seconds"] for each in rounds]),
                    "cpu_s": summarize([each[step]["cpu_s"] for each in rounds]),
                    "forward_passes": [each[step]["num_forward"] for each in rounds],
                }
                for step in _STEPS
            },
            "call": {
                "seconds": summarize([seconds for each in rounds for seconds, _ in each["calls"]]),
                "cpu_s": summarize([cpu_s for each in rounds for _, cpu_s in each["calls"]]),
            },
            "startup": {name: summarize([each["imports"][name] for each in rounds]) for name in ("ms", "share")},
            "fresh_over_again": summarize([each["fresh"]["seconds"] / each["again"]["seconds"] for each in rounds]),
        }
    )


def measure_steps(source: Path, folder: Path, num_moved: int, num_added: int, num_calls: int) -> dict[str, Any]:
    pictures = folder / "pictures"
    shutil.copytree(source, pictures)
    results: dict[str, Any] = {
        "num_images": len(scan_dataset(str(pictures)).records),
        "fresh": train(pictures, folder / "fresh.onnx"),
        "again": train(pictures, folder / "again.onnx"),
        "calls": time_calls(pictures, num_calls),
        "imports": measure_imports(["train", str(pictures), "--output", str(folder / "imports.onnx")]),
    }
    renamed = folder / "renamed"
    shutil.copytree(pictures, renamed)
    move_pictures(renamed, num_moved)
    for path in renamed.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    results["moved_and_touched"] = train(renamed, folder / "moved.onnx")
    add_pictures(renamed, num_added)
    results["added"] = train(renamed, folder / "added.onnx")
    return results


def train(source: Path, output: Path) -> dict[str, Any]:
    seconds, cpu_s = time_process([*HEADSTART, "train", str(source), "--output", str(output)])
    return {"seconds": seconds, "cpu_s": cpu_s, "num_forward": read_run(output)["num_forward"]}


def time_calls(source: Path, count: int) -> list[tuple[float, float]]:
    """Seconds and processor seconds of each call."""
    command = [sys.executable, "-c", _CALLS, str(source), str(count)]
    figures: list[tuple[float, float]] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return figures


def spread_out(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    if count > len(records):
        raise SystemExit(f"{count} pictures are asked for, the folder has {len(records)}.")
    return [records[place] for place in np.linspace(0, len(records) - 1, count).round().astype(int)]


def move_pictures(folder: Path, count: int) -> None:
    """From each class in turn to the folder of the next class of the same split, under a new name."""
    dataset = scan_dataset(str(folder))
    homes = {(record.split, record.label): Path(record.path).parent for record in dataset.records}
    for number, record in enumerate(spread_out(dataset.records, count)):
        target = homes[record.split, (record.label + 1) % len(dataset.classes)]
        path = Path(record.path)
        path.rename(target / f"moved-{number}{path.suffix}")


def add_pictures(folder: Path, count: int) -> None:
    for number, record in enumerate(spread_out(scan_dataset(str(folder)).records, count)):
        pixels = load_picture(record.path).pixels.copy()
        pixels[0, 0] ^= 1
        PIL.Image.fromarray(pixels).save(Path(record.path).parent / f"added-{number}.png")


if __name__ == "__main__":
    main()
