"""Labels changed at random and found again: how many of as many suspects are changed ones, and the estimate in all.

For each seed a share of the labels of the training pictures is changed to another class, each as likely, and the
classifier is trained on them as it would be on anybody's. `as_published` is what is said of the labels as they are.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import make_parser, report, round_figure, summarize, work_folder

import headstart
from headstart.dataset import ImageDataset, scan_dataset
from headstart.evaluation import Evaluation
from headstart.insight.suspects import Suspects, find_suspects


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", help="folders of pictures in class folders")
    parser.add_argument("--frac", type=float, default=0.05, help="share of the labels that is changed (default 0.05)")
    parser.add_argument("--keep-cache", action="store_true", help="use and fill the user's own feature cache")
    args = parser.parse_args()
    if args.keep_cache:
        results = {Path(folder).resolve().name: measure_folder(folder, args) for folder in args.folders}
    else:
        with work_folder():
            results = {Path(folder).resolve().name: measure_folder(folder, args) for folder in args.folders}
    report({"frac": args.frac, "folders": results})


def measure_folder(folder: str, args: Any) -> dict[str, Any]:
    dataset = scan_dataset(folder)
    labels = np.array([record.label for record in dataset.records])
    splits = [record.split or "train" for record in dataset.records]
    seconds: dict[str, list[float]] = {"train": [], "find": []}
    as_published = search(train(dataset, labels, splits, seconds), seconds)
    seeds = []
    for seed in range(args.repeats):
        rng = np.random.default_rng(seed)
        train_rows = np.flatnonzero(np.array(splits) == "train")
        rows = rng.choice(train_rows, round(args.frac * len(train_rows)), replace=False)
        flipped = labels.copy()
        flipped[rows] = (labels[rows] + rng.integers(1, len(dataset.classes), len(rows))) % len(dataset.classes)
        paths = {dataset.records[row].path for row in rows}
        out_of_fold = train(dataset, flipped, splits, seconds)
        changed = sum(path in paths for path in out_of_fold.paths)  # copies in another class are left out
        suspects = search(out_of_fold, seconds, changed)
        found = sum(item.path in paths for item in suspects.items)
        seeds.append(
            {"seed": seed, "changed": changed, "found": found, "precision": round_figure(found / max(changed, 1))}
            | say_estimate(suspects)
        )
    return {
        "as_published": say_estimate(as_published),
        "precision": summarize([seed["precision"] for seed in seeds]),
        "seconds": {name: summarize(each) for name, each in seconds.items()},
        "seeds": seeds,
    }


def train(dataset: ImageDataset, labels: np.ndarray, splits: list[str], seconds: dict[str, list[float]]) -> Evaluation:
    """The out-of-fold rows of a training on these labels."""
    paths = [record.path for record in dataset.records]
    names = [dataset.classes[label] for label in labels]
    began = time.perf_counter()
    trained = headstart.train(paths, labels=names, splits=splits, test_frac=0.0).training
    seconds["train"].append(time.perf_counter() - began)
    assert trained is not None
    return trained.out_of_fold


def search(out_of_fold: Evaluation, seconds: dict[str, list[float]], num_listed: int | None = None) -> Suspects:
    began = time.perf_counter()
    suspects = find_suspects(out_of_fold, num_listed=num_listed)
    seconds["find"].append(time.perf_counter() - began)
    return suspects


def say_estimate(suspects: Suspects) -> dict[str, Any]:
    figures = {"num_wrong": suspects.num_wrong, "low": suspects.low, "high": suspects.high}
    return {"n": suspects.num_images, **{name: round_figure(value) for name, value in figures.items()}}


if __name__ == "__main__":
    main()
