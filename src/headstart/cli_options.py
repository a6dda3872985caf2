"""What commands share: arguments and options, the checks before any work, and what is written after it."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart import __version__
from headstart._files import show_path, write_atomic
from headstart.backbones.catalog import PRESETS
from headstart.errors import ConfigError, HeadstartError, MissingDependencyError, raise_all

if TYPE_CHECKING:
    from headstart.dataset import ImageDataset, Problem
    from headstart.parallel import Progress

SourceArgument = Annotated[
    str,
    typer.Argument(help="Folder with a folder per class, CSV or Parquet with path and label, or cifar10 or pets."),
]
ModelArgument = Annotated[Path, typer.Argument(help="Classifier file (.onnx).")]
PatternOption = Annotated[
    str | None, typer.Option(help="Regular expression with a group (?P<label>...) that finds the class in a file name.")
]
ExcludeOption = Annotated[list[str] | None, typer.Option(help="Class to leave out; may be given several times.")]
LinksOption = Annotated[bool, typer.Option("--follow-links", help="Follow symbolic links that lead out of the folder.")]
UnsignedOption = Annotated[
    bool, typer.Option("--allow-unsigned", help="Open an ONNX file of the same signature that headstart did not save.")
]
ParquetOption = Annotated[bool, typer.Option("--parquet", help="Write the rows as Parquet too (extra parquet).")]


# Every field of FitSettings that is an option of its own; without it, what suits the command is used.
_FIT_OPTIONS: dict[str, tuple[type, str]] = {
    "optimizer": (str, "adamw, adam, adamax, rmsprop or sgd."),
    "learning_rate": (float, "Of the head; the network's falls from there by --layer-decay."),
    "momentum": (float, "Of sgd."),
    "weight_decay": (float, "Of weights, not of biases and norms."),
    "epochs": (int, "At most so many; may be raised later to train on."),
    "batch_size": (int, "Pictures a step."),
    "patience": (int, "Epochs without a better validation value after which to stop."),
    "monitor": (str, "loss or accuracy of the validation pictures: what the best epoch is chosen by."),
    "validation_frac": (float, "Share of the training pictures put aside to stop and compare by."),
    "augment": (str, "none, flip, light, tutorial or strong; see headstart augment."),
    "num_views": (int, "Augmented views of a picture that the frozen part computes and keeps."),
    "label_smoothing": (float, "Share of the target spread over all classes."),
    "warmup_frac": (float, "Share of the steps in which the rate rises."),
    "schedule": (str, "constant or cosine."),
    "layer_decay": (float, "Rate of each module as a share of that of the one above."),
    "ema": (bool, "Average the weights over the last steps."),
}


def with_fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` an option for each of these; those that are used arrive as the dictionary `fit`."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in _FIT_OPTIONS}
        command(**values, fit={name: value for name, value in given.items() if value is not None})

    hints = inspect.get_annotations(command, eval_str=True)
    own = [param.replace(annotation=hints[name]) for name, param in inspect.signature(command).parameters.items()]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, typer.Option(help=text, rich_help_panel="Training in epochs")],
        )
        for name, (kind, text) in _FIT_OPTIONS.items()
    ]
    parameters = [*(param for param in own if param.name != "fit"), *options]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {param.name: param.annotation for param in parameters}
    return run


def resolve_source(source: str, progress: Progress) -> str:
    """The folder of a public collection, fetched where it is not here yet; any other source as it is."""
    from headstart.public_datasets import PUBLIC_DATASETS, fetch_public_dataset

    if source not in PUBLIC_DATASETS or os.path.lexists(source):
        return source
    return str(fetch_public_dataset(source, lambda done, total: progress("laying out pictures", done, total)))


def scan_hashed(source: str, options: dict[str, Any], progress: Progress) -> ImageDataset:
    """The pictures of a source with the SHA-256 of each; `options` are those of `scan_dataset`."""
    from headstart.data_check import hash_images
    from headstart.dataset import scan_dataset
    from headstart.parallel import count_cpus

    return hash_images(
        scan_dataset(source, **options),
        num_threads=count_cpus(),
        on_progress=lambda done, total: progress("reading files", done, total),
    )


def say_preset(name: str) -> str:
    backbone, side_px = PRESETS[name]
    return f"{_PRESET_HELP[name]}: --backbone {backbone} --input-size {side_px}."


_PRESET_HELP = {"fast": "Least time", "best": "Surer on large photographs, half as long again; not for small pictures"}


def choose_preset(fast: bool, best: bool) -> str | None:
    if fast and best:
        raise ConfigError("--fast and --best are two presets. Choose one.")
    return "fast" if fast else "best" if best else None


def parse_numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    """`256,128` as a tuple. Raises ConfigError."""
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        example = "256,128" if kind is int else "0.5,0.7"
        raise ConfigError(f"{option} is {show_path(text)}. Expected numbers with commas, such as {example}.") from None


def stop(note: str) -> typer.Exit:
    print(f"Stopped. {note}".rstrip(), file=sys.stderr)
    return typer.Exit(130)


def name_after(source: str) -> str:
    path = Path(source).resolve()
    return path.stem if path.is_file() else path.name or "classifier"


def parse_seconds(text: str) -> float:
    """`60s`, `2min` or `1h`; a number alone is seconds. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)?\s*", text)
    if not match:
        raise ConfigError(f"--budget is {show_path(text)}. Expected a time such as 60s, 5min or 1h.")
    return float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2] or "s"]


def parse_penalty(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def check_target(target: Path) -> None:
    """Before any work: a file that is not a classifier is never replaced. Raises ConfigError."""
    from headstart.artifact import read_artifact

    if target.suffix != ".onnx":
        raise ConfigError(
            f"--output is {show_path(str(target))}. Expected a name that ends in .onnx, such as pets.onnx."
        )
    check_folder_of(target)
    if target.exists():
        try:
            read_artifact(target)
        except HeadstartError as error:
            raise ConfigError(
                f"{show_path(str(target))} exists and is not a classifier of headstart, so it is not replaced. "
                f"Choose another --output. ({error})"
            ) from None


def check_folder_of(target: Path, option: str = "--output") -> None:
    shown = show_path(str(target.parent))
    if not target.parent.is_dir():
        raise ConfigError(f"The folder {shown} does not exist. Make it first, or choose another {option}.")
    if not os.access(target.parent, os.W_OK):
        raise ConfigError(f"The folder {shown} cannot be written to. Choose another {option}.")


def name_evaluation(target: Path) -> Path:
    return target.with_suffix(".evaluation")


def check_evaluation_folder(folder: Path, parquet: bool) -> None:
    """Before any work: a folder that is not an evaluation is never written to. Raises HeadstartError."""
    from headstart.evaluation_files import find_own_files

    find_own_files(folder)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"The folder {show_path(str(folder))} cannot be made or written to. Choose another --output.")
    if parquet:
        check_pyarrow("--parquet")


def check_pyarrow(option: str) -> None:
    if find_spec("pyarrow") is None:
        raise MissingDependencyError(f"{option} needs pyarrow. Install it with: pip install 'headstart[parquet]'")


def check_matplotlib(option: str) -> None:
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(f"{option} needs matplotlib. Install it with: pip install 'headstart[plots]'")


def refuse_inputs(targets: Sequence[Path], inputs: Sequence[str], option: str) -> None:
    """Before anything is written. Raises ConfigError that lists the inputs that would be replaced."""
    existing = {target: _identify(target) for target in targets if target.exists()}
    known = {_identify(path) for path in inputs if os.path.exists(path)} if existing else set()
    raise_all(
        ConfigError,
        [
            f"{option} would replace {show_path(str(target))}, which is an input. Name another place."
            for target, identity in existing.items()
            if identity in known
        ],
    )


def _identify(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def read_candidates(classifier: Any, target: Path) -> tuple[Any, ...]:
    """The candidates of the choice of layers, as `write_evaluation` kept them; none where it was for another file."""
    import json

    from headstart.graph import PooledLayer
    from headstart.heads.selection import CandidateScore

    try:
        extra = json.loads((name_evaluation(target) / "evaluation.json").read_bytes())["extra"]
        if extra["classifier"]["sha256"] != classifier.sha256:
            return ()
        layers = [tuple(PooledLayer(*pair) for pair in each.pop("layers")) for each in extra["candidates"]]
        return tuple(CandidateScore(each, **rest) for each, rest in zip(layers, extra["candidates"], strict=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or of another hand
        return ()


def write_evaluation(classifier: Any, target: Path, parquet: bool, seconds: float) -> Path:
    """The evaluation of a classifier that was just trained, into the folder beside `target`."""
    import json
    from dataclasses import asdict
    from datetime import datetime

    from headstart.evaluation_files import save_evaluation

    record, folder = classifier.training, name_evaluation(target)
    selection = getattr(record, "selection", None)
    extra = {
        "classifier": {"file": target.name, "sha256": classifier.sha256},
        "settings": classifier.metadata.settings,
        "parts": {name: part.compute_figures(record.settings.seed) for name, part in record.evaluations.items()},
        "data": record.report.to_json(),
        "candidates": [
            {**asdict(score), "layers": [[pooled.layer, pooled.grid] for pooled in score.layers]}
            for score in (selection.scores if selection else ())
        ],
    }
    save_evaluation(record.evaluation, folder, extra=extra, parquet=parquet, seed=record.settings.seed)
    # Apart from the evaluation, so that the same pictures and settings give the same evaluation.json.
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "num_forward": record.num_forward,
        "version": __version__,
    }
    write_atomic(folder / "run.json", json.dumps(run, indent=2).encode() + b"\n")
    return folder


def print_problems(problems: Sequence[Problem]) -> None:
    """What was passed over while pictures were looked for, on standard error."""
    for problem in problems:
        print(f"{show_path(problem.path or '')}: {problem.code}: {problem.message}", file=sys.stderr)
