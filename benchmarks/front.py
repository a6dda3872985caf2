"""Time and accuracy of backbones, sizes and presets: the points from which `--fast` and `--best` were chosen.

A point is NAME or NAME@SIZE; `fast` and `best` are the presets. Time is decoding and the network for pictures of the
first folder, each point by turns so that other work on the machine falls on all alike: processor time of one thread,
and pictures a second of wall time on all processors. Accuracy is that of a training at its defaults on every folder:
on the pictures put aside with its Wilson interval, on those together with the training pictures out of fold, and the
difference from the default on the same pictures with Tango's interval. Features are cached as usual: HEADSTART_CACHE
keeps them from run to run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import make_parser, report, round_figure, summarize

import headstart
from headstart.backbones.catalog import DEFAULT_BACKBONE, PRESETS
from headstart.backbones.loading import load_backbone
from headstart.dataset import list_images
from headstart.features import Extractor
from headstart.heads.linear import describe_layers
from headstart.parallel import map_bounded
from headstart.pictures import load_picture
from headstart.plot_svg import render_svg
from headstart.plots import Line, Plot
from headstart.stats import mcnemar_exact, paired_difference_interval, wilson_interval

POINTS = f"{DEFAULT_BACKBONE},{DEFAULT_BACKBONE}-int8,fast,best"


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("folders", nargs="+", help="folders of pictures in class folders")
    parser.add_argument("--points", default=POINTS, help=f"commas between them; the first is the default ({POINTS})")
    parser.add_argument("--pictures", type=int, default=100, help="how many to time, every round (default 100)")
    parser.add_argument("--plot", type=Path, help="SVG file of time against errors on the first folder")
    args = parser.parse_args()
    names = args.points.split(",")
    points = {name: parse_point(name) for name in names}
    rates = measure_rates(points, args.folders[0], args.pictures, args.repeats)
    folders = {Path(folder).resolve().name: measure_accuracy(points, folder) for folder in args.folders}
    if args.plot:
        first, figures = next(iter(folders.items()))
        args.plot.write_text(render_svg(draw_front(first, rates, figures)), encoding="utf-8")
    report({"points": points, "rates": rates, "folders": folders})


def parse_point(text: str) -> tuple[str, int | None]:
    if text in PRESETS:
        return PRESETS[text]
    name, _, size = text.partition("@")
    return name, int(size) if size else None


def measure_rates(
    points: dict[str, tuple[str, int | None]], folder: str, num_pictures: int, num_rounds: int
) -> dict[str, Any]:
    paths = list_images([folder])[0]
    paths = paths[:: max(len(paths) // num_pictures, 1)][:num_pictures]
    extractors = {name: Extractor(load_backbone(*point)) for name, point in points.items()}
    used: dict[str, list[list[float]]] = {name: [] for name in points}
    rates: dict[str, list[float]] = {name: [] for name in points}
    for number in range(num_rounds + 1):
        for name, extractor in extractors.items():

            def run(path: str, extractor: Extractor = extractor) -> float:
                began = time.thread_time()
                extractor.run(load_picture(path, None, 2 * extractor.preprocess.input_size_px).pixels)
                return time.thread_time() - began

            began = time.perf_counter()
            seconds = [each for _, each in map_bounded(run, paths, extractor.num_threads)]
            if number:  # the first round warms up
                rates[name].append(len(paths) / (time.perf_counter() - began))
                used[name].append(seconds)
    # The least of a picture's times is the nearest to that of an idle machine.
    return {
        name: {
            "cpu_ms_per_picture_least": round_figure(1000 * float(np.min(used[name], axis=0).mean())),
            "cpu_ms_per_picture": summarize([1000 * float(np.mean(each)) for each in used[name]]),
            "pictures_per_s": summarize(rates[name]),
            "threads": extractors[name].num_threads,
            "pictures": len(paths),
        }
        for name in points
    }


def measure_accuracy(points: dict[str, tuple[str, int | None]], folder: str) -> dict[str, Any]:
    results: dict[str, Any] = {}
    default: dict[str, np.ndarray] = {}
    for name, (backbone, size) in points.items():
        record: Any = headstart.train(folder, backbone=backbone, input_size_px=size).training
        test = record.evaluation.correct
        correct = {"put_aside": test, "with_out_of_fold": np.concatenate([test, record.out_of_fold.correct])}
        default = default or correct
        results[name] = {
            "layers": describe_layers(record.head.layers),
            "log_loss": record.evaluation.compute_figures(0)["log_loss"],
            **{part: compare(each, default[part]) for part, each in correct.items()},
        }
    return results


def compare(correct: np.ndarray, default: np.ndarray) -> dict[str, Any]:
    only, only_default = int((correct & ~default).sum()), int((default & ~correct).sum())
    low, high = paired_difference_interval(only, only_default, len(correct))
    return {
        "accuracy": round_figure(float(correct.mean())),
        "interval": [round_figure(each) for each in wilson_interval(int(correct.sum()), len(correct))],
        "n": len(correct),
        "difference": round_figure(float(correct.mean()) - float(default.mean())),
        "difference_interval": [round_figure(low), round_figure(high)],
        "p_value": round_figure(mcnemar_exact(correct, default)),
    }


def draw_front(folder: str, rates: dict[str, Any], figures: dict[str, Any]) -> Plot:
    lines = []
    for name, each in figures.items():
        part = each["with_out_of_fold"]
        lines.append(
            Line(
                name,
                (rates[name]["cpu_ms_per_picture_least"],),
                (part["accuracy"],),
                (part["interval"][0],),
                (part["interval"][1],),
                style="points",
            )
        )
    return Plot(
        f"Time and accuracy, {folder}",
        "processor time a picture in ms, decoding included",
        "accuracy",
        tuple(lines),
        y_is_percent=True,
    )


if __name__ == "__main__":
    main()
