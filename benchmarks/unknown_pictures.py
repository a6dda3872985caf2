"""How well the familiarity tells unknown pictures from known ones, beside other scores, and how many known are lost.

A head is chosen for the known classes of a collection; its training pictures are those of the part `train`. AUROC is
taken against pictures of other classes. `refused` is the share of known pictures of the other part below a threshold
that asks for a share: as the collection is divided, and on average over new divisions of it at random (`--repeats`),
which tells chance and a difference between the parts from a fault of the score.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from measure import make_parser, report, round_figure, summarize, work_folder
from sklearn.metrics import roc_auc_score

from headstart.backbones.loading import load_backbone
from headstart.data_check import hash_images
from headstart.dataset import scan_dataset
from headstart.familiarity import Familiarity, choose_layer, fit_familiarity, fit_head_familiarity
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features
from headstart.graph import IMAGE
from headstart.heads.linear import build_classifier, describe_layers
from headstart.heads.selection import Selection, select_head
from headstart.parallel import count_cpus
from headstart.splits import assign_folds

ASKED = (0.01, 0.02, 0.05, 0.1)
Score = Callable[[np.ndarray], np.ndarray]
"""Cached rows to a number each, greater for unknown pictures."""


@dataclass(frozen=True)
class Pictures:
    """Cached rows float16 (N, D) of a collection, labels, classes, SHA-256, and whether a picture is for training."""

    rows: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    sha256: np.ndarray
    is_train: np.ndarray

    def take(self, chosen: np.ndarray) -> Pictures:
        _, labels = np.unique(self.labels[chosen], return_inverse=True)
        return Pictures(self.rows[chosen], labels, self.classes, self.sha256[chosen], self.is_train[chosen])

    def take_classes(self, *names: str) -> Pictures:
        return self.take(np.isin(self.labels, [self.classes.index(name) for name in names]))


def read_pictures(folder: Path, extractor: Extractor, cache: FeatureCache) -> Pictures:
    dataset = hash_images(scan_dataset(folder), num_threads=count_cpus())
    done = extract_features([Picture(r.sha256, r.path) for r in dataset.records], extractor, cache)
    records = [record for record in dataset.records if record.sha256 not in done.failures]
    rows = cache.read_features(
        cache.get_recipe(extractor.recipe_key, extractor.backbone.name), [r.sha256 for r in records]
    )
    names = np.array([record.sha256 for record in records])
    splits = np.array([record.split or "" for record in records])
    # Where a folder is not divided, a fifth is put aside by its content.
    is_train = splits == "train" if "train" in splits else np.array([int(name[:8], 16) % 5 > 0 for name in names])
    return Pictures(rows, np.array([r.label for r in records]), dataset.classes, names, is_train)


def choose_head(train: Pictures, extractor: Extractor, folds: np.ndarray) -> Selection:
    rng = np.random.default_rng(0)
    num_classes = int(train.labels.max()) + 1
    return select_head(lambda i: train.rows[i], extractor.layout, train.labels, folds[None], num_classes, rng=rng)


def fit_rivals(train: Pictures, extractor: Extractor, selection: Selection) -> dict[str, Score]:
    """Other scores, on the same layer."""
    layout, head = extractor.layout, selection.head
    layer = choose_layer(head.layers, layout)

    def read(rows: np.ndarray) -> np.ndarray:
        features = layout.read_block(rows, layer)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    seen, labels = read(train.rows), train.labels
    means = np.stack([seen[labels == label].mean(axis=0) for label in np.unique(labels)])
    centre = seen.mean(axis=0)
    axes = np.linalg.eigh((seen - centre).T @ (seen - centre))[1][:, ::-1][:, : min(64, len(seen) // 8)]
    inside, centres = (seen - centre) @ axes, (means - centre) @ axes

    def whiten(rows: np.ndarray) -> np.ndarray:
        return np.linalg.cholesky(np.linalg.inv(np.cov(rows.T) + 1e-9 * np.eye(rows.shape[1])))

    within, total = whiten(inside - centres[labels]), whiten(inside)

    def project(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centred = read(rows) - centre
        return centred @ axes, np.square(centred).sum(axis=1)

    def mahalanobis(rows: np.ndarray) -> np.ndarray:
        found, _ = project(rows)
        return np.min([np.square((found - each) @ within).sum(axis=1) for each in centres], axis=0)

    def outside(rows: np.ndarray) -> np.ndarray:
        found, lengths = project(rows)
        return lengths - np.square(found).sum(axis=1)

    def nearest(rows: np.ndarray) -> np.ndarray:
        return -np.partition(read(rows) @ seen.T, -5, axis=1)[:, -5]

    def logits(rows: np.ndarray) -> np.ndarray:
        return head.compute_logits(rows, layout)

    return {
        "class mean, cosine": lambda rows: -(read(rows) @ (means / np.linalg.norm(means, axis=1)[:, None]).T).max(1),
        "Mahalanobis": mahalanobis,
        "relative Mahalanobis": lambda r: mahalanobis(r) - np.square(project(r)[0] @ total).sum(axis=1),
        "outside the principal subspace": outside,
        "fifth nearest training picture": nearest,
        "largest logit": lambda rows: -logits(rows).max(axis=1),
        "energy": lambda rows: -np.logaddexp.reduce(logits(rows), axis=1),
    }


def compute_refused(familiarity: Familiarity, known: np.ndarray) -> dict[str, float]:
    scores = familiarity.compute(known)
    return {f"{share:g}": round_figure(float(np.mean(scores < share)), 3) for share in ASKED}


def measure_known(
    known: Pictures, extractor: Extractor, unknown: dict[str, np.ndarray], repeats: int
) -> dict[str, Any]:
    layout = extractor.layout
    train, test = known.take(known.is_train), known.take(~known.is_train)
    folds = assign_folds(train.labels, list(train.sha256), num_folds=5, seed=0)
    selection = choose_head(train, extractor, folds)
    began = time.perf_counter()
    familiarity = fit_head_familiarity(
        selection.head.layers, lambda i: train.rows[i], layout, train.labels, folds, np.random.default_rng(0)
    )
    seconds = time.perf_counter() - began

    def read(rows: np.ndarray) -> np.ndarray:
        return layout.read_block(rows, familiarity.layer)

    scores: dict[str, Score] = {"familiarity": lambda rows: -familiarity.compute(read(rows))}
    scores |= fit_rivals(train, extractor, selection)
    auroc: dict[str, dict[str, float]] = {name: {} for name in unknown}
    for label, score in scores.items():
        seen = score(test.rows)
        for name, rows in unknown.items():
            is_unknown = np.repeat([0, 1], [len(seen), len(rows)])
            auroc[name][label] = round_figure(roc_auc_score(is_unknown, np.concatenate([seen, score(rows)])))
    features = read(known.rows)
    again = []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        order = rng.permutation(len(features))
        first, second = order[: len(train.labels)], order[len(train.labels) :]
        new_folds = assign_folds(known.labels[first], list(known.sha256[first]), num_folds=5, seed=repeat)
        fitted = fit_familiarity(features[first], known.labels[first], new_folds, familiarity.layer, rng)
        again.append(compute_refused(fitted, features[second]))
    return {
        "num_train": len(train.labels),
        "num_test": len(test.labels),
        "head": describe_layers(selection.head.layers),
        "familiarity_of": str(familiarity.layer),
        "fit_s": round_figure(seconds, 3),
        "auroc": auroc,
        "unknown_below_0.01": {
            name: round_figure(float(np.mean(familiarity.compute(read(rows)) < 0.01)), 3)
            for name, rows in unknown.items()
        },
        "refused": compute_refused(familiarity, read(test.rows)),
        "refused_divided_anew": {
            f"{share:g}": {"mean": round_figure(float(np.mean(each)), 3), **summarize(each, 3)}
            for share in ASKED
            for each in [[figures[f"{share:g}"] for figures in again]]
        },
        **measure_cost(extractor, selection, familiarity),
    }


def measure_cost(extractor: Extractor, selection: Selection, familiarity: Familiarity) -> dict[str, Any]:
    """Both files on one picture in turn, one thread."""
    models = [
        build_classifier(extractor.backbone, selection.head, each).SerializeToString() for each in (None, familiarity)
    ]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(m, options, providers=["CPUExecutionProvider"]) for m in models]
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(120):
        for side in (0, 1) if run % 2 else (1, 0):
            began = time.perf_counter()
            sessions[side].run(None, {IMAGE: picture})
            seconds[side].append(1000 * (time.perf_counter() - began))
    return {
        "bytes_more": len(models[1]) - len(models[0]),
        "one_output_ms": summarize(seconds[0][20:]),
        "two_outputs_ms": summarize(seconds[1][20:]),
    }


def main() -> None:
    parser = make_parser(__doc__, repeats=6)
    parser.add_argument("cats_dogs", type=Path)
    parser.add_argument("hymenoptera", type=Path)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--digits", type=Path, help="handwritten digits, classes 0 to 9")
    parser.add_argument("--cache", type=Path, help="folder of a feature cache to start from; it is copied")
    args: argparse.Namespace = parser.parse_args()
    with work_folder():
        if args.cache:
            shutil.copytree(args.cache, os.environ["HEADSTART_CACHE"])
        extractor = Extractor(load_backbone())
        with FeatureCache() as cache:
            pets, insects, cifar = (
                read_pictures(folder, extractor, cache) for folder in (args.cats_dogs, args.hymenoptera, args.cifar10)
            )
            digits = read_pictures(args.digits, extractor, cache) if args.digits else None
        others = cifar.take_classes(*(name for name in cifar.classes if name not in ("cat", "dog")))
        first, second = cifar.take_classes(*cifar.classes[:5]), cifar.take_classes(*cifar.classes[5:])
        unknown = {"cifar10 without cats and dogs": others.rows, "hymenoptera": insects.rows}
        results = {
            "cats_dogs": measure_known(pets, extractor, unknown, args.repeats),
            "hymenoptera": measure_known(insects, extractor, {"cats_dogs": pets.rows}, args.repeats),
            "cifar10": measure_known(cifar, extractor, {"hymenoptera": insects.rows}, args.repeats),
            "cifar10, 5 classes": measure_known(first, extractor, {"the other 5": second.rows}, args.repeats),
        }
        if digits:
            low, high = digits.take_classes(*"01234"), digits.take_classes(*"56789")
            results["digits 0 to 4"] = measure_known(low, extractor, {"5 to 9": high.rows}, args.repeats)
    report({"collections": results})


if __name__ == "__main__":
    main()
