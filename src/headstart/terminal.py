"""What the command line prints besides an evaluation's summary: progress, data reports, choices, contents of a file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headstart._files import show_path
from headstart.backbones.catalog import CATALOG

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from headstart.artifact import ArtifactMetadata
    from headstart.backbones.listing import BackboneRow
    from headstart.data_check import DataReport
    from headstart.dataset import Problem
    from headstart.errors import HeadstartError
    from headstart.evaluation import Evaluation
    from headstart.finetuning.dense_training import Parameters
    from headstart.finetuning.history import EpochRow
    from headstart.finetuning.outcome import TuningRecord
    from headstart.heads.selection import Selection
    from headstart.recipes.recipe import Recipe
    from headstart.training import TrainingRecord

_SHOWN_PER_CODE = 3
_PICTURE_STAGES = (
    *("reading files", "extracting features", "decoding", "predicting", "comparing", "computing views"),
    *("running the frozen part", "evaluating", "measuring familiarity", "explaining mistakes", "embedding pictures"),
)


def make_console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_parts(console: Console, parts: Iterable[RenderableType]) -> None:
    """Tables in the console's width; text, which holds paths to copy, without breaking its lines."""
    from rich.text import Text

    for part in parts:
        console.print(part, soft_wrap=isinstance(part, (str, Text)))


@contextmanager
def track_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (stage, done, total) drawn as bars with pictures per second and the time left."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("starting", total=None, count="")
        current, began, drawn = "", time.monotonic(), 0.0

        def report(stage: str, done: int, total: int) -> None:
            nonlocal task, current, began, drawn
            now = time.monotonic()
            if stage != current:
                current, began = stage, now
                bars.remove_task(task)
                task = bars.add_task(stage, total=total or None, count="")
            elif now - drawn < 0.1 and done != total:
                return
            drawn = now
            count = f"{done:,}/{total:,}" if total else ""
            if stage in _PICTURE_STAGES and done and now - began > 0.5:
                count += f"  {done / (now - began):,.0f} pictures/s"
            bars.update(task, completed=done, count=count)

        yield report


def render_report(report: DataReport) -> Iterator[RenderableType]:
    """Counts per class and split, found = used + left out, and every problem by kind."""
    from rich.table import Table
    from rich.text import Text

    counts = report.counts
    splits = [name for name in ("train", "validation", "test", "unsplit") if any(name in c for c in counts.values())]
    if len(counts) <= 50:
        table = Table(box=None, pad_edge=False)
        table.add_column("class", overflow="fold")
        for name in splits:
            table.add_column("pictures" if name == "unsplit" else name, justify="right")
        for name, count in counts.items():
            table.add_row(Text(show_path(name)), *(str(count.get(split, 0)) for split in splits))
        yield table
        yield ""
    used, left_out = len(report.dataset.records), [p for p in report.all_problems if p.severity == "left-out"]
    yield Text(
        f"{report.dataset.num_found:,} pictures found = {used:,} used + {len(left_out):,} left out, "
        f"{len(counts):,} classes"
    )
    if report.dataset.ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.dataset.ignored.items()))
        yield Text(f"ignored, not counted: {kinds}", style="dim")
    yield from render_problems(report.all_problems)


def render_problems(problems: Sequence[Problem], shown: int = _SHOWN_PER_CODE) -> Iterator[Text]:
    """Left out first, then warnings, then notes; the first few of each kind with path and reason."""
    from rich.text import Text

    for severity, title, style in (
        ("left-out", "left out", "red"),
        ("warning", "warning", "yellow"),
        ("note", "note", "dim"),
    ):
        for code, count in Counter(p.code for p in problems if p.severity == severity).items():
            yield Text(f"{title}: {code}" + (f", {count} times" if count > 1 else ""), style=style)
            alike = [p for p in problems if p.severity == severity and p.code == code]
            for problem in alike[:shown]:
                where = f"{show_path(problem.path)}: " if problem.path else ""
                yield Text(f"  {where}{problem.message}")
            if count > shown:
                yield Text(f"  and {count - shown} more (headstart check --all lists them)", style="dim")


def render_selection(selection: Selection) -> Iterator[RenderableType]:
    """The candidates of the last round: the chosen one, the top layer, the others."""
    from rich.table import Table
    from rich.text import Text

    from headstart.heads.linear import describe_layers
    from headstart.stats import format_percent

    finalists = [score for score in selection.scores if score.is_finalist]
    finalists.sort(key=lambda score: score.layers != selection.head.layers)
    table = Table(box=None, pad_edge=False)
    for name in ("", "layers and pooling", "features", "cross-validated", "log loss"):
        table.add_column(name, justify="left" if name in ("", "layers and pooling") else "right", overflow="fold")
    for score in finalists:
        is_chosen = score.layers == selection.head.layers
        is_top = score.layers == selection.top_layer
        table.add_row(
            ("chosen: the top layer" if is_top else "chosen") if is_chosen else "the top layer" if is_top else "",
            describe_layers(score.layers),
            f"{score.num_features:,}",
            f"{format_percent(score.accuracy)} %",
            f"{score.log_loss:.3f}",
            style="bold" if is_chosen else "",
        )
    yield table
    if len(selection.scores) > 1:
        reason = (
            "a simpler one stays unless it is worse by more than one standard error."
            if len(finalists) > 1
            else "a quick round found no other that could beat it."
        )
        yield Text(
            f"Chosen from {len(selection.scores)} by {selection.num_folds}-fold cross-validation; {reason}", style="dim"
        )


def render_accuracy(what: str, evaluation: Evaluation) -> str:
    """`The validation part: 97.1 % accuracy (between 95.0 and 98.4 at 95 % confidence, 400 pictures)`"""
    from headstart.stats import format_percent, wilson_interval

    num_correct, count = int(evaluation.correct.sum()), len(evaluation.paths)
    low, high = (format_percent(frac) for frac in wilson_interval(num_correct, count))
    value = format_percent(num_correct / count)
    return f"{what}: {value} % accuracy (between {low} and {high} at 95 % confidence, {count:,} pictures)"


def render_metadata(metadata: ArtifactMetadata, num_bytes: int, sha256: str) -> Iterator[RenderableType]:
    """What is in a classifier file."""
    from rich.table import Table
    from rich.text import Text

    from headstart.stats import format_percent

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def add(name: str, value: Any) -> None:
        table.add_row(name, Text(str(value)))

    add("classes", f"{len(metadata.labels)}: " + ", ".join(show_path(name) for name in metadata.labels[:50]))
    if not metadata.format_version:
        yield table
        yield Text("A foreign ONNX file: it says nothing else about itself.")
        return
    head, data, backbone = metadata.head, metadata.data, metadata.backbone
    add("backbone", f"{backbone['name']} ({backbone['licence']}, {backbone['source']})")
    add("weights", f"SHA-256 {backbone['sha256']}")
    add("layers", " + ".join(f"{layer} {grid}x{grid}" for layer, grid in head["layers"]))
    add("head", _describe_head(head))
    spec = metadata.preprocess
    square = (
        "squeezed" if spec.get("crop") == "squash" else f"centre square ({spec['crop_frac']:.3g} of the short side)"
    )
    add("input", f"RGB of any size; {square} to {spec['input_size_px']} px")
    parts = [f"{data[f'num_{name}']:,} {name}" for name in ("train", "validation", "test") if data.get(f"num_{name}")]
    add("pictures", ", ".join(parts))
    if metadata.evaluation and "accuracy" in metadata.evaluation:
        accuracy = metadata.evaluation["accuracy"]
        value, low, high = (format_percent(accuracy[name]) for name in ("value", "low", "high"))
        add(
            "accuracy",
            f"{value} % (between {low} and {high} at 95 % confidence, {metadata.evaluation['n']:,} pictures)",
        )
        for name, title in (
            ("balanced_accuracy", "balanced"),
            ("macro_f1", "macro F1"),
            ("log_loss", "log loss"),
            ("ece", "ECE"),
        ):
            figure = metadata.evaluation[name]
            add(title, f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})")
    else:
        add("accuracy", "not measured: no picture was put aside")
    if tuning := (metadata.evaluation or {}).get("finetune"):
        add("fine-tuning", tuning["reason"])
    add("settings", ", ".join(f"{name} {value}" for name, value in metadata.settings.items()))
    add("data", f"fingerprint {data['fingerprint']}")
    add("file", f"{num_bytes:,} bytes, SHA-256 {sha256}, format {metadata.format_version}, {metadata.created_with}")
    yield table


def _describe_head(head: Mapping[str, Any]) -> str:
    kind = head.get("kind", "linear")
    if kind == "dense":
        units = "".join(f"{count} units, " for count in head["hidden"])
        what = f"dense, {head['pooling']} pooling, {units}{head['activation']}"
    else:
        name = "linear support vector machine" if kind == "svm" else "logistic regression"
        what = f"{name}, penalty {head['penalty']:g}"
    return f"{what}, temperature {head['temperature']:.3f}"


def render_fit(record: TrainingRecord) -> Iterator[RenderableType]:
    """What was trained of a dense head, and what its epochs say."""
    from rich.text import Text

    from headstart.heads.linear import describe_layers

    fit, settings = record.fit, record.settings
    assert fit is not None  # a record has either this or a selection
    parts = [f"{settings.pooling} pooling" if settings.pooling != "flatten" else "flattened"]
    parts += [f"{units} units" for units in settings.hidden]
    yield Text(f"Dense head on {describe_layers(fit.head.layers)}: {', '.join(parts)}, {settings.activation}")
    yield Text(_describe_parameters(fit.parameters))
    yield from _render_history(fit.history, fit.best_epoch)
    yield render_accuracy("Best epoch, on pictures put aside to choose it", record.out_of_fold)


def render_tuning(record: TuningRecord, with_layers: bool = False) -> Iterator[RenderableType]:
    """What was fine-tuned, what its epochs say, and which of the two is kept."""
    from rich.text import Text

    if with_layers:
        from headstart.finetuning.layer_table import render_layers

        yield from render_layers(record.layers)
    yield Text(f"Trained from {record.from_layer} on. {_describe_parameters(record.parameters)}")
    for note in record.notes:
        yield Text(f"warning: {note}", style="yellow")
    yield from _render_history(record.history, record.best_epoch)
    yield Text(record.comparison.reason, style="bold")
    for part in record.frozen:
        yield render_accuracy(f"Frozen, on the {part} part", record.frozen[part])
        yield render_accuracy(f"Fine-tuned, on the {part} part", record.tuned[part])


def _describe_parameters(parameters: Parameters) -> str:
    frozen = "" if parameters.frozen is None else f", {parameters.frozen:,} frozen"
    return f"Parameters: {parameters.trained:,} trained{frozen}"


def _render_history(history: Sequence[EpochRow], best_epoch: int) -> Iterator[RenderableType]:
    from rich.table import Table

    from headstart.stats import format_percent

    table = Table(box=None, pad_edge=False)
    for name in ("epoch", "train loss", "accuracy", "validation loss", "accuracy", ""):
        table.add_column(name, justify="right" if name else "left")
    for row in history:
        table.add_row(
            str(row.epoch),
            "" if row.train_loss is None else f"{row.train_loss:.3f}",
            "" if row.train_accuracy is None else f"{format_percent(row.train_accuracy)} %",
            f"{row.validation_loss:.3f}",
            f"{format_percent(row.validation_accuracy)} %",
            "best" if row.epoch == best_epoch else "",
            style="bold" if row.epoch == best_epoch else "",
        )
    yield table


def render_backbones(
    rows: Sequence[BackboneRow], speeds: Mapping[str, float | HeadstartError]
) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    names = ["name", "parameters", "features", "input", *(["pictures/s"] if speeds else []), "licence", "weights"]
    for name in names:
        is_text = name in ("name", "licence", "weights")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name == "name", overflow="fold")
    for row in rows:
        speed = speeds.get(row.name)
        table.add_row(
            Text(row.name),
            "" if row.num_params is None else f"{row.num_params / 1e6:.1f} M",
            "" if row.num_features is None else str(row.num_features),
            f"{row.input_size_px} px",
            *([f"{speed:,.1f}" if isinstance(speed, float) else "-"] if speeds else []),
            row.licence,
            Text(row.weights),  # its [torch] is not markup
        )
    yield table
    if any(row.name in CATALOG and CATALOG[row.name].is_int8 for row in rows):
        yield Text("int8: the same weights in 8 bits; faster, almost as accurate, not to be fine-tuned.")
    for name, error in speeds.items():
        if not isinstance(error, float):
            yield Text(f"{name}: {error}")


def render_recipes(recipes: Sequence[Recipe]) -> Iterator[RenderableType]:
    """The tutorials' experiments by name."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("recipe", "what", "pictures"):
        table.add_column(name, overflow="fold")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.title, recipe.data)
    table.add_row("transfer_gain", "from scratch, new head, fine-tuned: three curves", "any")
    yield table
