"""Accuracy on pictures put aside, for several seeds: layers chosen by cross-validation against the top layer alone.

A folder that names its test part keeps it for every seed; otherwise each seed puts aside other pictures. Both sides of
a seed are tested on the same pictures; `p_value` is McNemar's exact test.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from measure import make_parser, report, round_figure, work_folder

import headstart
from headstart.heads.linear import describe_layers
from headstart.stats import mcnemar_exact


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", help="folders of pictures in class folders")
    args = parser.parse_args()
    with work_folder():
        results = {Path(folder).resolve().name: measure_folder(folder, args.repeats) for folder in args.folders}
    report({"folders": results})


def measure_folder(folder: str, num_seeds: int) -> dict[str, Any]:
    seeds = [measure_seed(folder, seed) for seed in range(num_seeds)]
    return {
        "mean_accuracy": {
            name: round_figure(statistics.mean(seed[name]["accuracy"]["value"] for seed in seeds))
            for name in ("chosen", "top")
        },
        "seeds": seeds,
    }


def measure_seed(folder: str, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = {"seed": seed}
    correct = []
    for name, layers in (("chosen", "auto"), ("top", "top")):
        record = headstart.train(folder, seed=seed, layers=layers).training
        assert record is not None
        assert record.evaluation is not None
        figures = record.evaluation.compute_figures(seed)
        correct.append(record.evaluation.correct)
        head = record.selection.head
        result[name] = {
            "layers": describe_layers(head.layers),
            "penalty": head.penalty,
            **{figure: figures[figure] for figure in ("n", "accuracy", "log_loss", "ece")},
        }
    result["p_value"] = round_figure(mcnemar_exact(*correct))
    return result


if __name__ == "__main__":
    main()
