"""A recipe on real pictures: train, fine-tune, and what was published beside what came out."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import headstart
from headstart._files import say_os_error, show_path
from headstart.dataset import ImageRecord, scan_dataset
from headstart.errors import ConfigError
from headstart.recipes.recipe import PublishedFigure, Recipe, Stage
from headstart.stats import format_percent, wilson_interval

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from headstart.data_check import DataReport
    from headstart.evaluation import Evaluation
    from headstart.finetuning.dense_training import FitRecord
    from headstart.finetuning.history import EpochRow
    from headstart.finetuning.outcome import TuningRecord
    from headstart.parallel import Progress
    from headstart.training import TrainingRecord


@dataclass(frozen=True)
class MeasuredFigure:
    """Right answers on some of the pictures. `what` is named as the published figures are; `conditions` say which."""

    what: str
    num_correct: int
    num_images: int
    conditions: str

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high at 95 % confidence."""
        return wilson_interval(self.num_correct, self.num_images)


@dataclass(frozen=True)
class StageResult:
    """What a stage gave. `trained` and `frozen` are numbers of parameters, `frozen` None where it is not known.

    `verdict` says, after the second stage, which of the two classifiers its file holds.
    """

    stage: Stage
    figures: tuple[MeasuredFigure, ...]
    trained: int
    frozen: int | None
    seconds: float
    verdict: str = ""


@dataclass(frozen=True)
class RecipeResult:
    """`conditions` says what was not as the recipe has it: classes, weights, epochs, input size, pictures."""

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

    The folder `output` gets NAME.onnx and NAME.training with checkpoints, history.csv and history.png; a second stage
    writes NAME-finetuned.onnx and NAME-finetuned.training. A recipe that was stopped goes on from there. `weights`,
    `epochs` (of each stage) and `input_size_px` take the place of the recipe's; `max_per_class` keeps the first so many
    pictures of each class in each split. Raises ConfigError and DataError as `train` and `finetune` do.
    """
    make_output(output)
    changed_fit: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    settings: dict[str, Any] = {**recipe.train, "backbone": recipe.backbone, "weights": weights}
    if input_size_px is not None:
        settings["input_size_px"] = input_size_px
    pictures = {"source": source} if max_per_class is None else take_first(source, max_per_class)

    start = time.monotonic()
    classifier = headstart.train(
        **pictures,
        fit=headstart.FitSettings(**{**recipe.fit, **changed_fit}),
        folder=output / f"{recipe.name}.training",
        on_progress=on_progress,
        **settings,
    )
    frozen_path = output / f"{recipe.name}.onnx"
    classifier.save(frozen_path)
    stages = [_measure_frozen(cast("TrainingRecord", classifier.training), start)]
    if recipe.finetune is not None:
        start = time.monotonic()
        finetuned = headstart.finetune(
            frozen_path,
            **pictures,
            weights=weights,
            from_layer=recipe.finetune.from_layer,
            output=output / f"{recipe.name}-finetuned.onnx",
            folder=output / f"{recipe.name}-finetuned.training",
            on_progress=on_progress,
            **{**recipe.finetune.fit, **changed_fit},
        )
        stages.append(_measure_finetuned(cast("TuningRecord", finetuned.training), start))
    num_classes = len(classifier.classes)
    changed = [
        f"{name} {value}"
        for name, value in (
            ("weights", weights),
            ("epochs", epochs),
            ("input size", input_size_px),
            ("pictures per class", max_per_class),
            ("classes", num_classes if num_classes != recipe.num_classes else None),
        )
        if value is not None
    ]
    return RecipeResult(recipe, tuple(stages), ", ".join(changed) or "as in the recipe")


def make_output(folder: Path) -> None:
    """Make the folder where it is missing. Raises ConfigError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {show_path(str(folder))} cannot be made: {say_os_error(error)}. Choose another with --output."
        ) from None


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


def _measure_frozen(record: TrainingRecord, start: float) -> StageResult:
    fit = cast("FitRecord", record.fit)
    course = _Course(fit.history, fit.best_epoch, len(fit.validation), record.report)
    figures = (*course.measure(), *_measure_parts(record.evaluations))
    counts = fit.parameters
    return StageResult("frozen", figures, counts.trained, counts.frozen, time.monotonic() - start)


def _measure_finetuned(record: TuningRecord, start: float) -> StageResult:
    """What fine-tuning gave, whichever of the two classifiers was kept."""
    comparison, counts = record.comparison, record.parameters
    course = _Course(record.history, record.best_epoch, comparison.num_images, record.report)
    figures = (*course.measure(), *_measure_parts(record.tuned))
    seconds = time.monotonic() - start
    return StageResult("fine-tuned", figures, counts.trained, counts.frozen, seconds, comparison.reason)


@dataclass(frozen=True)
class _Course:
    """A training's history, and how many pictures its accuracies are shares of."""

    history: tuple[EpochRow, ...]
    best_epoch: int
    num_validation: int
    report: DataReport

    def measure(self) -> Iterator[MeasuredFigure]:
        best = self.history[self.best_epoch]
        num_train = sum(record.split == "train" for record in self.report.dataset.records) - self.num_validation
        if best.train_accuracy is not None:
            num_correct = round(best.train_accuracy * num_train)
            conditions = f"mean over epoch {best.epoch}, augmented, with dropout"
            yield MeasuredFigure("training accuracy", num_correct, num_train, conditions)
        num_correct = round(best.validation_accuracy * self.num_validation)
        state = f"epoch {best.epoch}" if best.epoch else "the start"
        conditions = f"{state}, which was chosen by these pictures"
        yield MeasuredFigure("validation accuracy", num_correct, self.num_validation, conditions)


def _measure_parts(evaluations: Mapping[str, Evaluation]) -> Iterator[MeasuredFigure]:
    for part, rows in evaluations.items():
        conditions = "nothing was chosen by these pictures"
        yield MeasuredFigure(f"{part} accuracy", int(rows.correct.sum()), len(rows.paths), conditions)


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
            conditions = f"{low} to {high} at 95 % confidence, {figure.num_images:,} pictures; {figure.conditions}"
            value = format_percent(figure.accuracy)
            figures.add_row("measured", stage.stage, figure.what, value, Text(conditions), style="bold")
    yield figures
    yield Text(f"measured with: {result.conditions}")
    yield from (Text(stage.verdict) for stage in result.stages if stage.verdict)
    yield ""
    yield _render_parameters(result)
    if any(stage.trained != _count_in_recipe(recipe, stage)[0] for stage in result.stages):
        side = recipe.train["input_size_px"]
        yield Text(f"The recipe's counts are those at {side} pixels and with {recipe.num_classes} classes.")
    for note in recipe.notes:
        yield Text(f"- {note}", style="dim")


def format_published(figure: PublishedFigure) -> str:
    """`98.44` with the digits that were published, `88 to 90` for a range, `not found`."""
    if figure.value is None:
        return "not found"
    values = figure.value if isinstance(figure.value, tuple) else (figure.value,)
    return " to ".join(f"{100 * value:.4g}" for value in values)


def _render_parameters(result: RecipeResult) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("parameters", "trained, recipe", "trained, here", "frozen, recipe", "frozen, here", "seconds"):
        table.add_column(name, justify="left" if name == "parameters" else "right")
    for stage in result.stages:
        trained, frozen = _count_in_recipe(result.recipe, stage)
        counts = (trained, stage.trained, frozen, stage.frozen)
        table.add_row(
            stage.stage, *("-" if count is None else f"{count:,}" for count in counts), f"{stage.seconds:.0f}"
        )
    return table


def _count_in_recipe(recipe: Recipe, stage: StageResult) -> tuple[int | None, int | None]:
    """(trained, frozen) as the recipe has them; what the second stage unfreezes it takes from what was frozen."""
    counts = recipe.parameters
    if stage.stage == "frozen":
        return counts.head, counts.frozen
    return counts.unfrozen, None if counts.unfrozen is None else counts.head + counts.frozen - counts.unfrozen
