"""The tutorials' experiments, all or some, on given pictures: what was published beside what is measured, and seconds.

Without options every recipe runs as its tutorial did, which takes hours on a CPU. `--weights none` needs no weights,
and its accuracies mean nothing.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import list_versions, make_parser, report, round_figure, work_folder

from headstart.errors import HeadstartError
from headstart.recipes import NAMES, find_recipe
from headstart.recipes.runner import StageResult, run_recipe


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument(
        "cats_dogs", help="folder of pictures in two class folders, for all recipes but resnet50_cifar10"
    )
    parser.add_argument("cifar10", help="folder of pictures in ten class folders, for resnet50_cifar10")
    parser.add_argument("--recipes", nargs="+", choices=NAMES, default=NAMES, help="which to run (default: all)")
    parser.add_argument("--weights", help="none: random weights")
    parser.add_argument("--epochs", type=int, help="of each stage, instead of the recipe's")
    parser.add_argument("--input-size", type=int, help="side in pixels, instead of the recipe's")
    parser.add_argument("--max-per-class", type=int, help="use the first so many pictures of each class")
    args = parser.parse_args()
    options = {
        "weights": args.weights,
        "epochs": args.epochs,
        "input_size_px": args.input_size,
        "max_per_class": args.max_per_class,
    }
    results = {}
    with work_folder() as folder:
        for name in args.recipes:
            print(name, file=sys.stderr)
            pictures = args.cifar10 if find_recipe(name).num_classes == 10 else args.cats_dogs
            results[name] = measure_recipe(name, pictures, folder / name, options)
    report({"torch": list_versions("torch", "timm"), "recipes": results})


def measure_recipe(name: str, pictures: str, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    recipe = find_recipe(name)
    published = [asdict(figure) for figure in recipe.published]
    try:
        result = run_recipe(recipe, pictures, output=output, **options)
    except HeadstartError as error:  # a network without its weights does not stop the others
        return {"published": published, "error": str(error)}
    return {
        "published": published,
        "measured": [figure for stage in result.stages for figure in describe_stage(stage)],
        "conditions": result.conditions,
        "stages": [
            {
                "stage": stage.stage,
                "trained": stage.trained,
                "frozen": stage.frozen,
                "seconds": round_figure(stage.seconds),
                "verdict": stage.verdict,
            }
            for stage in result.stages
        ],
        "parameters_in_recipe": asdict(recipe.parameters),
    }


def describe_stage(stage: StageResult) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage.stage,
            "what": figure.what,
            "value": round_figure(figure.accuracy),
            "interval": [round_figure(bound) for bound in figure.interval],
            "n": figure.num_images,
            "conditions": figure.conditions,
        }
        for figure in stage.figures
    ]


if __name__ == "__main__":
    main()
