"""A recipe on real pictures: train, fine-tune, and what was published beside what came out."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import headstart
from headstart.dataset import ImageRecord, scan_dataset
from headstart.errors import ConfigError
from headstart.recipes.recipe import PublishedFigure, Recipe, Stage
from headstart.stats import format_percent, wilson_interval

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from headstart.prediction import Classifier
    from headstart.training import Progress


@dataclass(frozen=True)
class MeasuredFigure:
    """Right answers on one part of the pictures, `validation` or `test`."""

    part: str
    num_correct: int
    num_images: int

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high at 95 % confidence."""
        return wilson_interval(self.num_correct, self.num_images)


@dataclass(frozen=True)
class StageResult:
    """What a stage gave. `trained` and `frozen` are numbers of parameters, None where the training does not say."""

    stage: Stage
    figures: tuple[MeasuredFigure, ...]
    trained: int | None
    frozen: int | None
    seconds: float


@dataclass(frozen=True)
class RecipeResult:
    """`conditions` says what was not as the recipe has it: pictures, weights, epochs, input size."""

    recipe: Recipe
    stages: tuple[StageResult, ...]
    conditions: str


def run_recipe(
    recipe: Recipe,
    source: Any,
    *,
    output: Path,
    weights: str | None = None,
    epochs: int | None = None,
    input_size_px: int | None = None,
    max_per_class: int | None = None,
    on_progress: Progress | None = None,
) -> RecipeResult:
    """Run the stages of `recipe` on the pictures of `source` (as for `train`) and measure each.

    The classifiers are written to the folder `output`: NAME.onnx and, after a second stage, NAME-finetuned.onnx.
    `weights`, `epochs` (of each stage) and `input_size_px` take the place of the recipe's; `max_per_class` keeps the
    first so many pictures of each class in each split. Raises ConfigError and DataError as `train` does.
    """
    fit: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    settings: dict[str, Any] = {**recipe.train, "backbone": recipe.backbone, "weights": weights}
    if input_size_px is not None:
        settings["input_size_px"] = input_size_px
    pictures = {"source": source} if max_per_class is None else take_first(source, max_per_class)
    output.mkdir(parents=True, exist_ok=True)

    frozen_path = output / f"{recipe.name}.onnx"
    start = time.monotonic()
    classifier = headstart.train(
        **pictures, fit=headstart.FitSettings(**{**recipe.fit, **fit}), on_progress=on_progress, **settings
    )
    classifier.save(frozen_path)
    stages = [_measure("frozen", classifier, time.monotonic() - start)]
    if recipe.finetune is not None:
        start = time.monotonic()
        finetuned = headstart.finetune(
            frozen_path,
            **pictures,
            from_layer=recipe.finetune.from_layer,
            output=output / f"{recipe.name}-finetuned.onnx",
            on_progress=on_progress,
            **{**recipe.finetune.fit, **fit},
        )
        stages.append(_measure("fine-tuned", finetuned, time.monotonic() - start))
    changed = [
        f"{name} {value}"
        for name, value in (
            ("weights", weights),
            ("epochs", epochs),
            ("input size", input_size_px),
            ("pictures per class", max_per_class),
        )
        if value is not None
    ]
    return RecipeResult(recipe, tuple(stages), ", ".join(changed) or "as in the recipe")


def take_first(source: Any, max_per_class: int) -> dict[str, Any]:
    """The first pictures of each class in each split, by path, as arguments of `train`. Raises ConfigError under 2."""
    if max_per_class < 2:
        raise ConfigError(f"max_per_class is {max_per_class}. Expected at least 2; a class needs as many for training.")
    dataset = scan_dataset(source)
    groups: defaultdict[tuple[str | None, int], list[ImageRecord]] = defaultdict(list)
    for record in dataset.records:
        groups[record.split, record.label].append(record)
    records = [record for group in groups.values() for record in group[:max_per_class]]
    return {
        "source": [record.path for record in records],
        "labels": [dataset.classes[record.label] for record in records],
        "splits": [record.split for record in records] if records[0].split is not None else None,
    }


def _measure(stage: Stage, classifier: Classifier, seconds: float) -> StageResult:
    record = classifier.training
    evaluations = record.evaluations if record else {}
    figures = tuple(MeasuredFigure(part, int(e.correct.sum()), len(e.paths)) for part, e in evaluations.items())
    counts = getattr(record, "parameters", None)
    trained, frozen = (counts.trained, counts.frozen) if counts else (None, None)
    return StageResult(stage, figures, trained, frozen, seconds)


def render_result(result: RecipeResult) -> Iterator[RenderableType]:
    """What rich prints: every published figure above what was measured in that stage, each with its conditions."""
    from rich.table import Table
    from rich.text import Text

    recipe = result.recipe
    source = recipe.source
    yield Text(recipe.title, style="bold")
    yield Text(f"{source.author}: {source.title}, {source.address}" if source else "The tutorial was not found.")
    yield Text(f"published for: {recipe.data}")
    yield ""
    figures = Table(box=None, pad_edge=False)
    for name, justify in (
        ("", "left"),
        ("stage", "left"),
        ("accuracy", "left"),
        ("%", "right"),
        ("conditions", "left"),
    ):
        figures.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for stage in result.stages:
        for published in recipe.published:
            if published.stage == stage.stage:
                value = format_published(published)
                figures.add_row("published", stage.stage, published.what, value, Text(published.conditions))
        for figure in stage.figures:
            low, high = (format_percent(frac) for frac in figure.interval)
            conditions = f"{low} to {high} at 95 % confidence, {figure.num_images:,} pictures; {result.conditions}"
            value = format_percent(figure.accuracy)
            figures.add_row("measured", stage.stage, f"{figure.part} accuracy", value, Text(conditions), style="bold")
    yield figures
    yield ""
    yield _render_parameters(result)
    for note in recipe.notes:
        yield Text(f"- {note}", style="dim")


def format_published(figure: PublishedFigure) -> str:
    """`98.44` with the digits that were published, `88 to 90` for a range, `not found`."""
    if figure.value is None:
        return "not found"
    values = figure.value if isinstance(figure.value, tuple) else (figure.value,)
    return " to ".join(f"{100 * value:.4g}" for value in values)


def _render_parameters(result: RecipeResult) -> Table:
    """Counts of the recipe hold for the published number of classes, so those measured may differ in the last layer."""
    from rich.table import Table

    expected = result.recipe.parameters
    table = Table(box=None, pad_edge=False)
    for name in ("parameters", "trained, recipe", "trained, here", "frozen, recipe", "frozen, here", "seconds"):
        table.add_column(name, justify="left" if name == "parameters" else "right")
    for stage in result.stages:
        trained = expected.head if stage.stage == "frozen" else expected.unfrozen
        frozen = None if trained is None else expected.head + expected.frozen - trained
        counts = (trained, stage.trained, frozen, stage.frozen)
        table.add_row(
            stage.stage, *("-" if count is None else f"{count:,}" for count in counts), f"{stage.seconds:.0f}"
        )
    return table
