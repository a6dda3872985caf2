"""What choosing and fitting the head costs beside the extraction of the same pictures; and synthetic features.

The first part does to each folder what a training does: it extracts all pictures into a fresh cache, then chooses
layers, pooling and penalty on those to train on, and fits what tells unknown pictures. The ratio `_cpu` compares
processor time, which other work on the machine disturbs less than the clock. The second part solves what one candidate
of the last round asks for: 7 penalties x 5 folds of logistic regression at once, on 512 principal components of 5000 x
768 features with 50 classes.

OPENBLAS_NUM_THREADS=1 in the environment shows the same without BLAS threads, which wait badly on a busy machine.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import make_parser, report, summarize, work_folder

from headstart.backbones.loading import load_backbone
from headstart.config import make_settings
from headstart.data_check import hash_images, leave_out, resolve_duplicates
from headstart.dataset import scan_dataset
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features
from headstart.heads.cached import fit_head, fit_head_familiarity
from headstart.heads.components import fit_projection
from headstart.heads.fitting import fit_logistic
from headstart.heads.linear import describe_layers
from headstart.heads.selection import PENALTIES
from headstart.parallel import count_cpus
from headstart.splits import assign_folds, split_dataset

_ROWS, _FEATURES, _CLASSES, _COMPONENTS, _FOLDS = 5000, 768, 50, 512, 5


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", help="folders of pictures in class folders")
    args = parser.parse_args()
    extractor = Extractor(load_backbone())
    extractor.run(np.zeros((300, 300, 3), np.uint8))
    real: dict[str, list[dict[str, Any]]] = {Path(folder).resolve().name: [] for folder in args.folders}
    synthetic = []
    for _ in range(args.repeats):
        for folder in args.folders:
            with work_folder():
                real[Path(folder).resolve().name].append(time_folder(folder, extractor))
        synthetic.append(time_synthetic())
    last_synthetic = synthetic[-1]
    report(
        {
            "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
            "folders": {name: summarize_folder(repeats) for name, repeats in real.items()},
            "synthetic": {
                "rows": _ROWS,
                "features": _FEATURES,
                "classes": _CLASSES,
                "components": _COMPONENTS,
                "problems": len(PENALTIES) * _FOLDS,
                "projection_s": summarize([each["projection_s"] for each in synthetic]),
                "fitting_s": summarize([each["fitting_s"] for each in synthetic]),
                "accuracy_by_penalty": last_synthetic["accuracy_by_penalty"],
            },
        }
    )


def summarize_folder(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    def over_extraction(name: str, unit: str) -> dict[str, float]:
        return summarize([each[f"{name}_{unit}"] / each[f"extraction_{unit}"] for each in repeats])

    return {
        **{
            name: repeats[-1][name]
            for name in ("num_images", "num_train", "num_classes", "chosen", "penalty", "candidates")
        },
        **{
            f"{name}_{unit}": summarize([each[f"{name}_{unit}"] for each in repeats])
            for name in ("extraction", "selection", "familiarity")
            for unit in ("s", "cpu_s")
        },
        "selection_over_extraction": over_extraction("selection", "s"),
        "selection_over_extraction_cpu": over_extraction("selection", "cpu_s"),
    }


def time_folder(source: str, extractor: Extractor) -> dict[str, Any]:
    settings = make_settings({})
    dataset = hash_images(scan_dataset(source), num_threads=count_cpus())
    dataset = split_dataset(resolve_duplicates(dataset), test_frac=settings.test_frac, seed=settings.seed)
    pictures = [Picture(record.sha256, record.path) for record in dataset.records]
    times: list[tuple[float, float]] = []

    def mark() -> None:
        times.append((time.perf_counter(), time.process_time()))

    with FeatureCache() as cache:
        mark()
        extraction = extract_features(pictures, extractor, cache)
        mark()
        dataset = leave_out(dataset, extraction.failures)
        records = [record for record in dataset.records if record.split == "train"]
        chosen = fit_head(records, len(dataset.classes), extractor, cache, settings, lambda stage, done, total: None)
        mark()
        fit_head_familiarity(records, chosen.head, extractor, cache, settings)
        mark()
    figures: dict[str, Any] = {}
    for name, (began_s, began_cpu_s), (ended_s, ended_cpu_s) in zip(
        ("extraction", "selection", "familiarity"), times, times[1:], strict=False
    ):
        figures |= {f"{name}_s": ended_s - began_s, f"{name}_cpu_s": ended_cpu_s - began_cpu_s}
    return {
        "num_images": len(pictures),
        "num_train": len(records),
        "num_classes": len(dataset.classes),
        "chosen": describe_layers(chosen.head.layers),
        "penalty": chosen.head.penalty,
        "candidates": len(chosen.scores),
        **figures,
    }


def time_synthetic() -> dict[str, Any]:
    """Overlapping clouds of points as classes, then what selection does with one candidate."""
    rng = np.random.default_rng(0)
    labels = np.arange(_ROWS) % _CLASSES
    spread = np.geomspace(1, 0.05, _FEATURES)
    centres = rng.standard_normal((_CLASSES, _FEATURES)) * spread * 0.25
    rows = (centres[labels] + rng.standard_normal((_ROWS, _FEATURES)) * spread).astype(np.float32)
    folds = assign_folds(labels, [str(index) for index in range(_ROWS)], num_folds=_FOLDS)
    held_out = np.stack([folds == fold for fold in range(_FOLDS)])
    weights = (~held_out / (~held_out).sum(axis=1, keepdims=True)).astype(np.float32)

    began = time.perf_counter()
    inputs = fit_projection(rows, _COMPONENTS, rng)[1]
    projected = time.perf_counter()
    fits = fit_logistic(
        inputs, labels, np.tile(weights, (len(PENALTIES), 1)), np.repeat(PENALTIES, _FOLDS), _CLASSES
    ).reshape(len(PENALTIES), _FOLDS, _COMPONENTS + 1, _CLASSES)
    fitted = time.perf_counter()
    accuracies = {}
    for penalty, coefs in zip(PENALTIES, fits, strict=True):
        correct = 0
        for part, coef in zip(held_out, coefs, strict=True):
            correct += int(((inputs[part] @ coef[:-1] + coef[-1]).argmax(axis=1) == labels[part]).sum())
        accuracies[f"{penalty:g}"] = correct / _ROWS
    return {"projection_s": projected - began, "fitting_s": fitted - projected, "accuracy_by_penalty": accuracies}


if __name__ == "__main__":
    main()
