"""What fine-tuning gains over the frozen network on pictures put aside, for several seeds, and which one was kept.

The frozen side is the top layer under global average pooling with its head, at the same input size (or, with --layers
auto, the layers that cross-validation chose). `kept` is what the file would predict; `p_value` is McNemar's exact test
on the pictures put aside, which decided nothing.
"""

from __future__ import annotations

import time
from typing import Any

from measure import make_parser, report, round_figure, work_folder

import headstart
from headstart.stats import mcnemar_exact


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="folder of pictures in class folders")
    parser.add_argument("--from", dest="from_layer", default="auto", help="layer from which on to train")
    parser.add_argument("--layers", default="top", help="layers of the frozen head: top, auto or a name")
    parser.add_argument("--input-size", type=int, help="side of the network's input in pixels")
    parser.add_argument("--epochs", type=int, help="epochs, instead of the default")
    args = parser.parse_args()
    with work_folder():
        runs = [measure_seed(args, seed) for seed in range(args.repeats)]
    report({"folder": args.folder.rstrip("/").rsplit("/", 1)[-1], "seeds": runs})


def measure_seed(args: Any, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    frozen = headstart.train(args.folder, layers=args.layers, input_size_px=args.input_size, seed=seed)
    middle = time.perf_counter()
    epochs = {"epochs": args.epochs} if args.epochs else {}
    record: Any = headstart.finetune(frozen, args.folder, from_layer=args.from_layer, **epochs).training
    part = next(iter(record.frozen))
    sides = {"frozen": record.frozen[part], "tuned": record.tuned[part], "kept": record.evaluations[part]}
    return {
        "seed": seed,
        "from": record.from_layer,
        "num_train": len(frozen.training.out_of_fold.paths) - record.comparison.num_images,  # type: ignore[union-attr]
        **{name: side.compute_figures(seed)["accuracy"] | {"n": len(side.labels)} for name, side in sides.items()},
        "p_value": round_figure(mcnemar_exact(sides["frozen"].correct, sides["tuned"].correct)),
        "is_tuned_kept": record.comparison.is_tuned_kept,
        "reason": record.comparison.reason,
        "best_epoch": record.best_epoch,
        "validation_accuracy": [round_figure(row.validation_accuracy) for row in record.history],
        "seconds_frozen": round_figure(middle - began),
        "seconds_tuned": round_figure(time.perf_counter() - middle),
    }


if __name__ == "__main__":
    main()
