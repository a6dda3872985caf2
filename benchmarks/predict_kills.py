"""`headstart predict` killed (SIGKILL) again and again: whether each picture is in what it leaves once, and right.

A classifier of two drawn patterns at 64 px predicts small pictures in folders, many with the same file name, one in a
hundred cut short. For each kind of output the same command is started and killed at random moments, then runs to its
end. After every kill: is the output absent or that of a finished run, has the journal lost nothing, is every sorted
picture there once and at most the last one missing. At the end: is every picture in the output once, in the order of
an undisturbed run, with its values.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from measure import HEADSTART, list_versions, make_parser, report, round_figure, work_folder
from PIL import Image

KINDS = ("csv", "jsonl", "parquet", "links", "copies")
_SIZE_PX = 24
_FOLDERS = 40


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("--pictures", type=int, default=20_000, help="how many (default 20000)")
    parser.add_argument("--rounds", type=int, default=10, help="kills for each kind of output (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and moments (default 0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="outputs (default: all)")
    args = parser.parse_args()
    with work_folder() as place:
        os.chdir(place)
        classifier = train()
        draw_many(Path("pictures"), args.pictures, args.seed)
        began = time.perf_counter()
        if start(classifier, "csv", "undisturbed").wait():
            sys.exit("The undisturbed run failed; its message stands above.")
        undisturbed_s = time.perf_counter() - began
        expected = read_output("csv", "undisturbed")
        rng = random.Random(args.seed)
        runs = {kind: measure(classifier, kind, expected, args.rounds, undisturbed_s, rng) for kind in args.kinds}
        report(
            {
                **list_versions("pyarrow"),
                "pictures": len(expected),
                "not_usable": sum(row["error"] != "" for row in expected.values()),
                "undisturbed_s": round_figure(undisturbed_s),
                "kinds": runs,
                "all_right": all(not run["faults"] for run in runs.values()),
            }
        )


def train() -> Path:
    rng = np.random.default_rng(1)
    for number in range(80):
        name = ("stripes", "checks")[number % 2]
        Path("train", name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(rng, name)).save(Path("train", name, f"{number}.png"))
    command = ["train", "train", "--output", "patterns.onnx", "--layers", "top", "--input-size", "64"]
    subprocess.run([*HEADSTART, *command], check=True, stdout=subprocess.DEVNULL)
    return Path("patterns.onnx")


def draw(rng: np.random.Generator, name: str) -> np.ndarray:
    rows, columns = np.mgrid[:_SIZE_PX, :_SIZE_PX] // int(rng.integers(2, 7))
    pattern = columns % 2 if name == "stripes" else (rows + columns) % 2
    return np.clip(pattern[..., None] * 150 + rng.integers(0, 100, 3), 0, 255).astype(np.uint8)


def draw_many(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / f"{number % _FOLDERS:02}" / f"{number // _FOLDERS}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(draw(rng, ("stripes", "checks")[number % 2])).save(stream, "PNG")
        path.write_bytes(stream.getvalue()[: 60 if number % 100 == 7 else None])


def start(classifier: Path, kind: str, name: str) -> subprocess.Popen[bytes]:
    target = ["--output", f"{name}.{kind}"]
    if kind in ("links", "copies"):
        target = ["--sort-into", name, *(["--copy"] if kind == "copies" else [])]
    command = [*HEADSTART, "predict", str(classifier), "pictures", *target]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def measure(
    classifier: Path, kind: str, expected: dict[str, dict[str, Any]], num_rounds: int, run_s: float, rng: random.Random
) -> dict[str, Any]:
    name = f"killed-{kind}"
    faults: list[str] = []
    kept, is_hit = [0], []
    for _ in range(num_rounds):
        process = start(classifier, kind, name)
        # One in five falls into the start; the others, on average, leave time for nearly a run together.
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 1))
        else:
            wait_for_work(process, find_journal(kind, name))
            time.sleep(rng.uniform(0, 1.8 * run_s / num_rounds))
        is_hit.append(process.poll() is None)
        os.killpg(process.pid, signal.SIGKILL) if is_hit[-1] else None
        process.wait()
        faults += check_between(kind, name, expected, kept)
    began = time.perf_counter()
    if start(classifier, kind, name).wait():
        sys.exit("The last run failed.")
    last_s = time.perf_counter() - began
    faults += check_end(kind, name, expected)
    return {
        "kills": sum(is_hit),
        "done_at_each_kill": kept[1:],
        "last_run_s": round_figure(last_s),
        "faults": faults[:10],
        "num_faults": len(faults),
    }


def check_between(kind: str, name: str, expected: dict[str, dict[str, Any]], kept: list[int]) -> list[str]:
    journal = find_journal(kind, name)
    # Of a few pictures it is removed at the end.
    is_over = not journal.exists() and Path(f"{name}.{kind}").exists()
    entries = [*expected] if is_over else read_journal(journal)
    faults = [f"{path} is in the journal {count} times" for path, count in Counter(entries).items() if count > 1]
    if len(entries) < kept[-1]:
        faults.append(f"the journal had {kept[-1]} entries and has {len(entries)}")
    kept.append(len(entries))
    if is_sorted(kind):
        found = read_sorted(kind, name)
        usable = {path for path in entries if not expected[path]["error"]}
        faults += [f"{path} is sorted {count} times" for path, count in Counter(found.values()).items() if count > 1]
        faults += [f"{path} is sorted and not in the journal" for path in set(found.values()) - usable]
        # The last may be missing, and stays so to the start of the next run.
        if missing := usable - set(found.values()) - set(entries[-1:]):
            faults.append(f"{len(missing)} are not sorted, such as {min(missing)}")
    elif Path(f"{name}.{kind}").exists() and len(read_output(kind, name)) < len(expected):
        faults.append("the output was there before the end")
    return faults


def check_end(kind: str, name: str, expected: dict[str, dict[str, Any]]) -> list[str]:
    if not is_sorted(kind):
        found = read_output(kind, name)
        faults = [] if list(found) == list(expected) else ["other pictures or another order"]
        return faults + [f"{path} differs" for path in expected if not agree(kind, found[path], expected[path])]
    places = read_sorted(kind, name)
    usable = sorted(path for path, row in expected.items() if not row["error"])
    faults = [] if sorted(places.values()) == usable else ["not every picture is there once"]
    folders = {path: row["doubt"] or row["predicted"] for path, row in expected.items()}
    return faults + [f"{p} lies in {place}" for place, p in places.items() if place.split("/")[0] != folders[p]]


def find_journal(kind: str, name: str) -> Path:
    return Path(name, ".headstart-predictions.jsonl") if is_sorted(kind) else Path(f"{name}.{kind}.journal")


def wait_for_work(process: subprocess.Popen[bytes], journal: Path) -> None:
    """Until an entry is added, or the process ends."""
    before = journal.stat().st_size if journal.exists() else 1_000  # more than its first line
    while process.poll() is None and (not journal.exists() or journal.stat().st_size <= before):
        time.sleep(0.002)


def is_sorted(kind: str) -> bool:
    return kind in ("links", "copies")


def read_journal(path: Path) -> list[str]:
    """Paths of the entries that are whole, as the listing has them."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut
            continue
        if "path" in entry:
            found.append(os.path.relpath(entry["path"]))
    return found


def read_sorted(kind: str, name: str) -> dict[str, str]:
    """Place below the folder to the picture that stands there. A copy has its picture's time of change."""
    by_time = {}
    if kind == "copies":
        by_time = {os.stat(path).st_mtime_ns: str(path) for path in Path("pictures").rglob("*.png")}
    found = {}
    for path in Path(name).glob("*/*"):
        place = str(path.relative_to(name))
        found[place] = by_time[path.stat().st_mtime_ns] if by_time else os.path.relpath(os.readlink(path))
    return found


def read_output(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """Path to row. A path that is there twice is a fault of its own name."""
    path = Path(f"{name}.{kind}")
    if kind == "csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(path.read_text(), newline="")))
    elif kind == "jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found[row["path"] + (" again" if row["path"] in found else "")] = row
    return found


def agree(kind: str, found: dict[str, Any], expected: dict[str, Any]) -> bool:
    if kind == "csv":
        return found == expected
    if expected["error"]:
        return bool(found["error"])
    names = [name for name in expected if name.startswith("probability_")]
    if kind == "parquet":
        same = all(np.float32(found[name]) == np.float32(expected[name]) for name in names)
    else:
        same = found["probability"] == round(float(np.float32(expected["probability"])), 6)
    return bool(same and found["predicted"] == expected["predicted"])


if __name__ == "__main__":
    main()
