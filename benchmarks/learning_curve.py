"""The forecast of a learning curve at twice the pictures, against what twice the pictures then give.

Of the training pictures a random half or quarter is taken, class by class; layers and penalty are chosen on it as a
training does, its learning curve is computed, and the error with twice as many is forecast. Then these many are drawn
(the first ones among them), layers and penalty are chosen anew, and the error is counted on the pictures put aside,
which are the same for every trial of a folder.

`within_2_points` is the share of trials whose forecast lies within 2 points of that error. `coverage` is the share of
trials in whose 95 % interval it lies; the error counted on n pictures varies by chance, so the interval is compared
alone and with the chance of n pictures added. The rivals: the last error of the curve stays; a straight line of
logarithms through the last 4 sizes (a power law without asymptote); half of that line's slope.

--cache names a feature cache to use in place of a fresh one, which saves the extraction.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import make_parser, report, round_figure, summarize, work_folder

from headstart.backbones.loading import load_backbone
from headstart.config import make_settings
from headstart.data_check import hash_images, leave_out, resolve_duplicates
from headstart.dataset import ImageRecord, scan_dataset
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features
from headstart.heads.cached import evaluate_head, fit_head
from headstart.heads.linear import LinearHead, describe_layers
from headstart.insight.forecast import Forecast, forecast
from headstart.insight.learning_curve import LearningCurve, compute_learning_curve
from headstart.parallel import count_cpus
from headstart.splits import get_split_key, split_dataset

_SHARES = (0.25, 0.5)
_ROWS_PER_READ = 1000


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", help="folders of pictures in class folders")
    parser.add_argument("--cache", help="folder of a feature cache to use")
    args = parser.parse_args()
    with work_folder():
        if args.cache:
            os.environ["HEADSTART_CACHE"] = args.cache
        extractor = Extractor(load_backbone())
        folders = {Path(each).resolve().name: measure_folder(each, args.repeats, extractor) for each in args.folders}
    trials = [trial for folder in folders.values() for trial in folder["trials"]]
    report({"all": count_hits(trials), "folders": folders})


def count_hits(trials: list[dict[str, Any]]) -> dict[str, Any]:
    found = np.array([trial["found"] for trial in trials])
    result: dict[str, Any] = {"trials": len(trials)}
    for name in ("forecast", "no_change", "log_line", "half_log_line"):
        off = np.array([trial[name] for trial in trials]) - found
        result[name] = {
            "within_2_points": round_figure(float((abs(off) <= 0.02).mean())),
            "rmse_points": round_figure(100 * float(np.sqrt((off**2).mean()))),
            "bias_points": round_figure(100 * float(off.mean())),
        }
    for name in ("interval", "interval_of_count"):
        low, high = np.array([trial[name] for trial in trials]).T
        result[f"coverage_{name}"] = round_figure(float(((low - 1e-9 <= found) & (found <= high + 1e-9)).mean()))
    return result


def measure_folder(source: str, num_seeds: int, extractor: Extractor) -> dict[str, Any]:
    settings = make_settings({})
    dataset = hash_images(scan_dataset(source), num_threads=count_cpus())
    dataset = split_dataset(resolve_duplicates(dataset), test_frac=settings.test_frac, seed=settings.seed)
    with FeatureCache() as cache:
        extraction = extract_features([Picture(r.sha256, r.path) for r in dataset.records], extractor, cache)
        dataset = leave_out(dataset, extraction.failures)
        parts = {name: [r for r in dataset.records if r.split == name] for name in ("train", "validation", "test")}
        aside = parts["test"] or parts["validation"]
        num_classes = len(dataset.classes)

        def fit(records: list[ImageRecord]) -> tuple[LinearHead, float]:
            chosen = fit_head(records, num_classes, extractor, cache, settings, lambda stage, done, total: None).head
            return chosen, 1 - float(evaluate_head(chosen, aside, dataset.classes, extractor, cache).correct.mean())

        trials = []
        for seed in range(num_seeds):
            ranks = rank_by_class(parts["train"], np.random.default_rng(seed))
            for share in _SHARES:
                fewer, more = ([parts["train"][i] for i in np.flatnonzero(ranks < s)] for s in (share, 2 * share))
                head, error = fit(fewer)
                later, found = fit(more)
                curve = draw_curve(head, fewer, num_classes, extractor, cache, seed)
                expected = forecast(curve, len(more) / len(fewer), rng=np.random.default_rng(seed))
                trials.append(
                    {
                        "seed": seed,
                        "pictures": len(fewer),
                        "layers": [describe_layers(each.layers) for each in (head, later)],
                        "before": round_figure(error),
                        "found": round_figure(found),
                        **judge(curve, expected, len(aside)),
                    }
                )
        whole, _ = fit(parts["train"])
        seconds = []
        for seed in range(num_seeds):
            began = time.perf_counter()
            draw_curve(whole, parts["train"], num_classes, extractor, cache, seed)
            seconds.append(time.perf_counter() - began)
    return {
        "put_aside": len(aside),
        "curve_of_all": {"pictures": len(parts["train"]), "seconds": summarize(seconds)},
        **count_hits(trials),
        "trials": trials,
    }


def rank_by_class(records: list[ImageRecord], rng: np.random.Generator) -> np.ndarray:
    """float64 (N,) from 0 to below 1: what lies below x is a random part x of every class."""
    labels = np.array([record.label for record in records])
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks[rng.permutation(members)] = np.arange(len(members)) / len(members)
    return ranks


def draw_curve(
    head: LinearHead,
    records: list[ImageRecord],
    num_classes: int,
    extractor: Extractor,
    cache: FeatureCache,
    seed: int,
) -> LearningCurve:
    recipe = cache.get_recipe(extractor.recipe_key, extractor.backbone.name)
    chunks = []
    for start in range(0, len(records), _ROWS_PER_READ):
        rows = cache.read_features(recipe, [record.sha256 for record in records[start : start + _ROWS_PER_READ]])
        chunks.append(np.concatenate([extractor.layout.read_block(rows, each) for each in head.layers], axis=1))
    return compute_learning_curve(
        np.concatenate(chunks).astype(np.float32),
        np.array([record.label for record in records]),
        [get_split_key(record) for record in records],
        num_classes,
        penalty=head.penalty,
        block_sizes=[extractor.layout.count_features(each) for each in head.layers],
        rng=np.random.default_rng(seed),
    )


def judge(curve: LearningCurve, expected: Forecast, num_aside: int) -> dict[str, Any]:
    errors = expected.shape.predict(expected.num_images)
    counted = np.random.default_rng(0).binomial(num_aside, errors) / num_aside
    smoothed = np.log((curve.unseen_error * curve.num_used + 0.5) / (curve.num_used + 1))
    slope = min(0.0, float(np.polyfit(np.log(curve.sizes[-4:]), smoothed[-4:], 1)[0]))
    step = np.log(expected.num_images / curve.sizes[-1])
    last = float(curve.unseen_error[-1])
    values = {
        "forecast": expected.then.error,
        "no_change": last,
        "log_line": last * np.exp(slope * step),
        "half_log_line": last * np.exp(slope * step / 2),
    }
    return {
        **{name: round_figure(value) for name, value in values.items()},
        "interval": [round_figure(expected.then.low), round_figure(expected.then.high)],
        "interval_of_count": [round_figure(float(value)) for value in np.quantile(counted, [0.025, 0.975])],
    }


if __name__ == "__main__":
    main()
