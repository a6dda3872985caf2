"""How time and memory of `headstart train` grow with the pictures and with the classes.

Pictures are drawn from a fixed seed, each with bytes of its own and the look of its class. For every size `headstart
train` runs as a process of its own, with an empty feature cache and again with a full one. The process notes, stage by
stage as the command announces them, wall time, processor time of all its threads and the peak of its memory (the
kernel's VmHWM, set back between stages; where that cannot be had, the peak so far). Exponents are slopes of log-log
least squares with their 95 % intervals; of stages, only where one takes a noticeable time.

With `--rows`, class-dependent rows are written straight into the cache in place of the forward passes, so that all the
rest can be measured for many pictures in little time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from measure import make_parser, read_run, report, round_figure, summarize, work_folder
from scipy.stats import linregress, t

_ROWS_AT_ONCE = 500
_NOTICEABLE_S = 0.05  # of processor time, in the largest run
_SPREAD = 1.3  # of rows round the middle of their class: of ten classes a tenth of the pictures is mistaken
_RANK = 64


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_command(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--sizes", default="1000,3000,10000,30000,100000", help="numbers of pictures")
    parser.add_argument("--classes", type=int, default=10, help="classes of these (default 10)")
    parser.add_argument("--class-counts", default="2,10,100,1000", help="numbers of classes")
    parser.add_argument("--class-pictures", type=int, default=10_000, help="pictures for these (default 10000)")
    parser.add_argument("--side", type=int, default=160, help="sides of the pictures in pixels (default 160)")
    parser.add_argument("--rows", action="store_true", help="no forward passes: rows are written into the cache")
    parser.add_argument("--plot", type=Path, help="NAME.svg to write; memory goes to NAME-memory.svg")
    args = parser.parse_args()
    sizes, class_counts = (sorted(map(int, text.split(","))) for text in (args.sizes, args.class_counts))
    by_size = [measure(count, args.classes, args.side, args.rows, args.repeats) for count in sizes]
    by_classes = [measure(args.class_pictures, count, args.side, args.rows, args.repeats) for count in class_counts]
    kinds = ("warm",) if args.rows else ("cold", "warm")
    if args.plot:
        write_plots(args.plot, sizes, by_size, kinds)
    report(
        {
            "rows_written": args.rows,
            "side_px": args.side,
            "pictures": by_size,
            "classes": by_classes,
            "exponents_in_pictures": {kind: fit_all(sizes, [run[kind] for run in by_size]) for kind in kinds},
            "exponents_in_classes": {kind: fit_all(class_counts, [run[kind] for run in by_classes]) for kind in kinds},
            "bytes_per_picture": {
                kind: round_figure(1e6 * slope(sizes, [run[kind]["peak_mb"]["median"] for run in by_size]))
                for kind in kinds
                if len(sizes) > 1
            },
        }
    )


def measure(num_images: int, num_classes: int, side_px: int, with_rows: bool, repeats: int) -> dict[str, Any]:
    """Cold (without rows) and warm figures on fresh pictures, in a folder that is removed."""
    print(f"{num_images} pictures, {num_classes} classes", file=sys.stderr)
    result: dict[str, Any] = {"num_images": num_images, "num_classes": num_classes}
    with work_folder() as folder:
        pictures = folder / "pictures"
        began = time.perf_counter()
        make_pictures(pictures, num_images, num_classes, side_px)
        if with_rows:
            call_child("fill", pictures)
        result["making_them_s"] = round_figure(time.perf_counter() - began)
        if not with_rows:
            cold = []
            for _ in range(repeats):
                shutil.rmtree(os.environ["HEADSTART_CACHE"], ignore_errors=True)
                cold.append(train(pictures))
            result["cold"] = summarize_runs(cold)
        result["warm"] = summarize_runs([train(pictures) for _ in range(repeats)])
        evaluation = folder / "model.evaluation"
        files = [folder / "model.onnx", *sorted(evaluation.iterdir())]
        result["file_bytes"] = {file.name: file.stat().st_size for file in files}
        result["cache_bytes"] = sum(file.stat().st_size for file in (folder / "cache").iterdir())
        figures = json.loads((evaluation / "evaluation.json").read_text())["figures"]
        result["accuracy"] = round_figure(figures["accuracy"]["value"])
    return result


# Pictures and rows


def make_pictures(folder: Path, num_images: int, num_classes: int, side_px: int) -> None:
    for label in range(num_classes):
        (folder / f"class-{label:04d}").mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(
            make_picture, repeat(folder), range(num_images), repeat(num_classes), repeat(side_px), chunksize=200
        ):
            pass


def make_picture(folder: Path, number: int, num_classes: int, side_px: int) -> None:
    """Soft patches of colour of its own over the stripes and the tint of its class."""
    label = number % num_classes
    rng, class_rng = np.random.default_rng(number), np.random.default_rng([label, num_classes])
    patches = PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    pixels = np.asarray(patches.resize((side_px, side_px), PIL.Image.Resampling.BICUBIC), np.float32)
    tint, (across, down) = class_rng.uniform(0, 255, 3), class_rng.uniform(-40, 40, 2)
    y, x = np.mgrid[:side_px, :side_px].astype(np.float32) / side_px
    stripes = 0.5 + 0.5 * np.sin(across * x + down * y + rng.uniform(0, 6.3))
    mixed = 0.6 * pixels + 0.25 * tint + 38 * stripes[:, :, None] + rng.normal(0, 6, (side_px, side_px, 1))
    image = PIL.Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
    image.save(folder / f"class-{label:04d}" / f"{number:06d}.jpg", quality=88)


def fill_cache(pictures: Path) -> None:
    """Rows as long as the default backbone's, with facts: what an extraction would leave."""
    from headstart.backbones.loading import load_backbone
    from headstart.config import TrainSettings
    from headstart.data_check import hash_images
    from headstart.dataset import scan_dataset
    from headstart.decode import DECODER_VERSION, ImageFacts
    from headstart.feature_cache import FeatureCache
    from headstart.features import Extractor
    from headstart.heads.cached import make_layout

    settings = TrainSettings()
    backbone = load_backbone(settings.backbone, settings.input_size_px, settings.weights)
    extractor = Extractor(backbone, layout=make_layout(backbone, settings))
    dataset = hash_images(scan_dataset(str(pictures)))
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((len(dataset.classes), _RANK)) / np.sqrt(_RANK)
    axes = rng.standard_normal((_RANK, extractor.layout.num_features), np.float32)
    with FeatureCache() as cache:
        recipe = cache.get_recipe(extractor.recipe_key, extractor.name)
        for start in range(0, len(dataset.records), _ROWS_AT_ONCE):
            records = dataset.records[start : start + _ROWS_AT_ONCE]
            points = 4 * middles[[record.label for record in records]]
            points += _SPREAD * rng.standard_normal(points.shape)
            rows = np.maximum(points.astype(np.float32) @ axes / 8 + rng.standard_normal(axes.shape[1:], np.float32), 0)
            digests = [record.sha256 for record in records]
            cache.add_features(recipe, list(zip(digests, rows.astype(np.float16), strict=True)))
            facts = [ImageFacts("JPEG", 160, 160, (), rng.bytes(32).hex(), False).to_json() for _ in records]
            cache.add_facts(DECODER_VERSION, list(zip(digests, facts, strict=True)))


# Running


def call_child(*arguments: str | Path) -> bytes:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"The child process failed:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def train(pictures: Path) -> dict[str, Any]:
    """Figures of one `headstart train`, by stage and in all."""
    output, notes = pictures.parent / "model.onnx", pictures.parent / "stages.json"
    began = time.perf_counter()
    call_child(notes, "train", pictures, "--output", output)
    seconds = time.perf_counter() - began
    stages = json.loads(notes.read_text())
    return {"seconds": seconds, "stages": stages, "num_forward": read_run(output)["num_forward"]}


def run_command(notes: Path, arguments: list[str]) -> None:
    """In the child: `headstart ARGUMENTS`, with the stages that it announces noted instead of drawn."""
    if str(notes) == "fill":
        fill_cache(Path(arguments[0]))
        return
    from headstart import terminal
    from headstart.cli import main as run

    stages: dict[str, dict[str, float]] = {}
    state = {"stage": "starting", "wall": time.perf_counter(), "cpu": 0.0}

    def close() -> None:
        wall, cpu, peak = time.perf_counter(), time.process_time(), read_peak_mb()
        stage = stages.setdefault(str(state["stage"]), {"wall_s": 0.0, "cpu_s": 0.0, "peak_mb": 0.0})
        stage["wall_s"] += wall - float(state["wall"])
        stage["cpu_s"] += cpu - float(state["cpu"])
        stage["peak_mb"] = max(stage["peak_mb"], peak)
        state.update(wall=wall, cpu=cpu)

    def note(stage: str, done: int, total: int) -> None:
        if stage != state["stage"]:
            close()
            state["stage"] = stage
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is held now

    @contextmanager
    def track(console: object) -> Iterator[Callable[[str, int, int], None]]:
        yield note
        note("printing", 0, 0)

    terminal.track_progress = track
    sys.argv = ["headstart", *arguments]
    try:
        run()
    finally:  # a command ends with SystemExit
        close()
        notes.write_text(json.dumps(stages))


def read_peak_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# Figures


def summarize_runs(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for run in runs for name in run["stages"]))
    stages = {
        name: {
            key: round_figure(float(np.median([run["stages"].get(name, {}).get(key, 0.0) for run in runs])))
            for key in ("wall_s", "cpu_s", "peak_mb")
        }
        for name in names
    }
    cpu = [sum(stage["cpu_s"] for stage in run["stages"].values()) for run in runs]
    peaks = [max(stage["peak_mb"] for stage in run["stages"].values()) for run in runs]
    return {
        "seconds": summarize([run["seconds"] for run in runs]),
        "cpu_s": summarize(cpu),
        "peak_mb": summarize(peaks),
        "forward_passes": [run["num_forward"] for run in runs],
        "stages": stages,
    }


def fit_all(counts: Sequence[int], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Exponents of the whole, and of every stage that takes a noticeable time."""
    if len(counts) < 3:
        return {}
    fits = {
        "seconds": fit_exponent(counts, [run["seconds"]["median"] for run in runs]),
        "seconds_after_start": fit_exponent(
            counts, [run["seconds"]["median"] - run["stages"]["starting"]["wall_s"] for run in runs]
        ),
        "cpu_s": fit_exponent(counts, [run["cpu_s"]["median"] for run in runs]),
        "peak_mb": fit_exponent(counts, [run["peak_mb"]["median"] for run in runs]),
    }
    for name in runs[-1]["stages"]:
        cpu = [run["stages"].get(name, {}).get("cpu_s", 0.0) for run in runs]
        if cpu[-1] > _NOTICEABLE_S:
            fits[f"cpu_s of {name}"] = fit_exponent(counts, cpu)
    return fits


def fit_exponent(counts: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """The slope of ln value over ln count, with its 95 % interval."""
    kept = [(n, value) for n, value in zip(counts, values, strict=True) if value > 0]
    if len(kept) < 3:
        return {}
    fit = linregress(*np.log(np.array(kept)).T)
    half = float(t.ppf(0.975, len(kept) - 2) * fit.stderr)
    return {
        "exponent": round(fit.slope, 3),
        "low": round(fit.slope - half, 3),
        "high": round(fit.slope + half, 3),
        "last_over_first": round_figure(kept[-1][1] / kept[0][1]),
    }


def slope(counts: Sequence[int], values: Sequence[float]) -> float:
    """From the first point to the last."""
    return (values[-1] - values[0]) / (counts[-1] - counts[0])


def write_plots(path: Path, sizes: Sequence[int], runs: Sequence[dict[str, Any]], kinds: Sequence[str]) -> None:
    from headstart.plot_svg import render_svg
    from headstart.plots import Line, Plot

    def draw(title: str, y_label: str, read: Callable[[dict[str, Any], int], float]) -> str:
        lines = tuple(
            Line(
                f"{kind} run",
                tuple(map(float, sizes)),
                tuple(read(run[kind], n) for n, run in zip(sizes, runs, strict=True)),
            )
            for kind in kinds
        )
        highest = max(max(line.y) for line in lines)
        return render_svg(Plot(title, "pictures", y_label, lines, x_scale="log", y_range=(0, 1.1 * highest)), 560, 380)

    per_picture = draw("Time for each 1,000 pictures", "seconds", lambda run, n: 1000 * run["seconds"]["median"] / n)
    path.write_text(per_picture, "utf-8")
    memory = draw("Peak memory", "MB", lambda run, n: run["peak_mb"]["median"])
    path.with_stem(f"{path.stem}-memory").write_text(memory, "utf-8")


if __name__ == "__main__":
    main()
