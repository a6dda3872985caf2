"""How often the 95 % intervals hold the truth, simulated over numbers of pictures and accuracies.

Answers are drawn from a known truth: the probability that the predicted class is right is drawn for every picture, most
of them sure, and the label after it. `figures` are those that `Evaluation.compute_figures` gives; `functions` are the
intervals of headstart.stats, also where no figure carries them; `comparison` are those of two models' differences.
A cell is one number of pictures and one accuracy; coverage is in per cent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from measure import make_parser, report, round_figure

from headstart import metrics, stats
from headstart.evaluation import Evaluation
from headstart.insight.comparison import compare_evaluations

NUMBERS = (50, 100, 200, 500, 1000, 2000, 5000)
ACCURACIES = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
NUM_CLASSES = 4
# Shares of the predictions; stated probabilities are raised to `sharpness` and normalised: over 1 it is too sure.
SETTINGS = {
    "balanced, calibrated": (np.full(NUM_CLASSES, 1 / NUM_CLASSES), 1.0),
    "unbalanced, too sure": (np.array([0.4, 0.3, 0.2, 0.1]), 1.5),
}


@dataclass(frozen=True)
class Answers:
    """Labels (n,), stated probs (n, K), and the probability that the predicted class is right (n,)."""

    labels: np.ndarray
    probs: np.ndarray
    chance: np.ndarray


def draw_answers(rng: np.random.Generator, n: int, accuracy: float, shares: np.ndarray, sharpness: float) -> Answers:
    least = 1 / NUM_CLASSES
    mean = (accuracy - least) / (1 - least)
    chance = least + (1 - least) * rng.beta(2 * mean, 2 * (1 - mean), n)
    predicted = rng.choice(NUM_CLASSES, n, p=shares)
    others = (predicted + rng.integers(1, NUM_CLASSES, n)) % NUM_CLASSES
    labels = np.where(rng.random(n) < chance, predicted, others)
    rest = np.maximum((1 - chance) / (NUM_CLASSES - 1), 1e-30)
    probs = np.repeat(rest[:, None] ** sharpness, NUM_CLASSES, axis=1)
    probs[np.arange(n), predicted] = chance**sharpness
    return Answers(labels, (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32), chance)


def compute_truth(accuracy: float, shares: np.ndarray, sharpness: float) -> dict[str, float]:
    """What endless pictures would show: from the shares, and from many pictures' chances where there is no formula."""
    true = shares * accuracy + (1 - shares) * (1 - accuracy) / (NUM_CLASSES - 1)
    many = draw_answers(np.random.default_rng(1), 200_000, accuracy, shares, sharpness)
    stated = many.probs.max(axis=1).astype(np.float64)
    losses = -np.log(np.clip([stated, (1 - stated) / (NUM_CLASSES - 1)], metrics.LOG_LOSS_FLOOR, 1))
    gaps = np.bincount(metrics.assign_bins(stated), many.chance - stated)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": float((shares * accuracy / true).mean()),
        "macro_f1": float((2 * shares * accuracy / (shares + true)).mean()),
        "log_loss": float((many.chance * losses[0] + (1 - many.chance) * losses[1]).mean()),
        "ece": float(np.abs(gaps).sum() / len(stated)),
    }


def make_evaluation(answers: Answers) -> Evaluation:
    blank = [""] * len(answers.labels)
    return Evaluation([f"class {k}" for k in range(NUM_CLASSES)], blank, blank, answers.labels, answers.probs)


def list_figures(answers: Answers, seed: int) -> dict[str, tuple[float, float]]:
    figures = make_evaluation(answers).compute_figures(seed)
    return {
        name: (figures[name]["low"], figures[name]["high"])
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
    }


def list_functions(answers: Answers) -> dict[str, tuple[float, float]]:
    predicted = answers.probs.argmax(axis=1)
    confusion = metrics.compute_confusion_matrix(answers.labels, predicted, NUM_CLASSES)
    right, counts = confusion.diagonal(), confusion.sum(axis=1)
    known = counts > 0
    weights = np.full(known.sum(), 1 / known.sum())
    losses = metrics.compute_losses(answers.labels, answers.probs)
    return {
        "accuracy": stats.wilson_interval(int(right.sum()), len(predicted)),
        "balanced_accuracy": stats.weighted_rate_interval(right[known], counts[known], weights),
        "macro_f1": stats.macro_f1_interval(confusion),
        "log_loss": stats.log_loss_interval(losses, answers.probs),
    }


def cover_figures(num_trials: int, seed: int, *, bootstrap: bool) -> Iterator[tuple[str, str, float]]:
    """Name, cell and coverage; with `bootstrap` of the figures as they are shown, else of the functions alone."""
    for (setting, (shares, sharpness)), n in ((item, n) for item in SETTINGS.items() for n in NUMBERS):
        for accuracy in ACCURACIES:
            truth = compute_truth(accuracy, shares, sharpness)
            rng = np.random.default_rng([seed, n, round(1000 * accuracy)])
            hits: defaultdict[str, int] = defaultdict(int)
            for _ in range(num_trials):
                answers = draw_answers(rng, n, accuracy, shares, sharpness)
                found = list_figures(answers, int(rng.integers(2**31))) if bootstrap else list_functions(answers)
                for name, (low, high) in found.items():
                    hits[name] += low <= truth[name] <= high
            for name, count in hits.items():
                yield name, f"{setting}, n {n}, accuracy {accuracy}", count / num_trials


def cover_wilson() -> Iterator[tuple[str, str, float]]:
    """Not simulated: every possible count with its probability."""
    for n in NUMBERS:
        counts = np.arange(n + 1)
        limits = np.array([stats.wilson_interval(int(count), n) for count in counts])
        logs = np.concatenate([[0.0], np.log(counts[1:]).cumsum()])
        for accuracy in ACCURACIES:
            weights = logs[n] - logs - logs[::-1] + counts * np.log(accuracy) + (n - counts) * np.log1p(-accuracy)
            inside = (limits[:, 0] <= accuracy) & (accuracy <= limits[:, 1])
            yield "wilson, exact", f"n {n}, accuracy {accuracy}", float(np.exp(weights)[inside].sum())


def draw_pair(rng: np.random.Generator, n: int, accuracy: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels, and the probabilities of a calibrated model and of one that sees less and is too sure."""
    shares, _ = SETTINGS["balanced, calibrated"]
    answers = draw_answers(rng, n, accuracy, shares, 1.0)
    logits = np.log(np.clip(answers.probs, 1e-4, 1))
    worse = np.exp(1.3 * logits + 0.7 * rng.normal(size=logits.shape))
    return answers.labels, [answers.probs, (worse / worse.sum(axis=1, keepdims=True)).astype(np.float32)]


def cover_comparison(num_trials: int, seed: int) -> Iterator[tuple[str, str, float]]:
    classes = [f"class {k}" for k in range(NUM_CLASSES)]
    for n in NUMBERS:
        for accuracy in ACCURACIES:
            labels, pair = draw_pair(np.random.default_rng(1), 200_000, accuracy)
            right = [probs.argmax(axis=1) == labels for probs in pair]
            losses = [metrics.compute_losses(labels, probs) for probs in pair]
            true = float(right[0].mean() - right[1].mean()), float((losses[0] - losses[1]).mean())
            rng = np.random.default_rng([seed, n, round(1000 * accuracy)])
            hits = [0, 0]
            for _ in range(num_trials):
                labels, pair = draw_pair(rng, n, accuracy)
                paths = [str(number) for number in range(n)]
                models = {str(k): Evaluation(classes, paths, [""] * n, labels, probs) for k, probs in enumerate(pair)}
                found = compare_evaluations(models).pairs[0]
                for k, limits in enumerate((found.accuracy_difference_interval, found.log_loss_difference_interval)):
                    hits[k] += limits[0] <= true[k] <= limits[1]
            for name, count in zip(("accuracy difference", "log loss difference"), hits, strict=True):
                yield name, f"n {n}, accuracy {accuracy}", count / num_trials


def summarize_coverage(cells: Iterator[tuple[str, str, float]]) -> dict[str, dict[str, object]]:
    by_name: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, cell, covered in cells:
        by_name[name].append((covered, cell))
    return {
        name: {
            "mean_percent": round_figure(100 * float(np.mean([covered for covered, _ in found]))),
            "least_percent": round_figure(100 * min(found)[0]),
            "least_at": min(found)[1],
            "cells_under_90_percent": int(sum(covered < 0.9 for covered, _ in found)),
            "cells": len(found),
        }
        for name, found in by_name.items()
    }


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("--trials", type=int, default=400, help="samples a cell (default 400)")
    parser.add_argument("--bootstrap-trials", type=int, default=60, help="samples a cell of `figures` (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    report(
        {
            "trials": args.trials,
            "bootstrap_trials": args.bootstrap_trials,
            "wilson": summarize_coverage(cover_wilson()),
            "functions": summarize_coverage(cover_figures(args.trials, args.seed, bootstrap=False)),
            "comparison": summarize_coverage(cover_comparison(args.trials, args.seed)),
            "figures": summarize_coverage(cover_figures(args.bootstrap_trials, args.seed, bootstrap=True)),
        }
    )


if __name__ == "__main__":
    main()
