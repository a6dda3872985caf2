"""The command that writes a classifier in other forms."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart._files import show_path
from headstart.cli_options import (
    ExcludeOption,
    LinksOption,
    ModelArgument,
    PatternOption,
    print_problems,
    refuse_inputs,
    resolve_source,
    scan_hashed,
    stop,
)
from headstart.errors import ConfigError, suggest

if TYPE_CHECKING:
    from headstart.errors import ImageError
    from headstart.exporting.checking import Agreement
    from headstart.exporting.int8 import Int8Export
    from headstart.parallel import Progress

_KINDS = ("onnx", "int8", "openvino", "runner", "browser", "card")


def export(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(help="File (onnx, int8, card) or folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="onnx: a graph for several prepared pictures. int8: a smaller, faster classifier file. openvino. "
            "runner: the file with a short script. browser: a page. card: a model card."
        ),
    ],
    check_on: Annotated[
        list[str] | None,
        typer.Option(help="Pictures or folders to compare with the original before anything is written."),
    ] = None,
    input_type: Annotated[str, typer.Option(help="onnx: float32 or uint8 pixels.")] = "float32",
    calibrate_on: Annotated[
        str | None, typer.Option(help="int8: the pictures of the training, a few hundred of which are used.")
    ] = None,
    test_on: Annotated[
        str | None, typer.Option(help="int8: labelled pictures. Default: the test part of --calibrate-on.")
    ] = None,
    max_loss: Annotated[float, typer.Option(min=0, max=100, help="int8: points of accuracy that it may cost.")] = 0.5,
    runtime: Annotated[
        Path | None,
        typer.Option(help="browser: folder of an unpacked onnxruntime-web. Default: npm fetches it once."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="browser, card: the title. Default: the file's name.")] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=100, help="int8: per cent of the pictures that must keep their class.")
    ] = 99,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a classifier in another form, checked on pictures first. Exit code 1 where it does not say the same."""
    if to not in _KINDS:
        raise ConfigError(f"--to is {show_path(to)}.{suggest(to, _KINDS)} Expected one of {', '.join(_KINDS)}.")
    if to == "int8" and calibrate_on is None:
        raise ConfigError("--to int8 needs the pictures of the training: --calibrate-on FOLDER.")
    if to in ("onnx", "openvino", "runner", "browser") and not check_on:
        raise ConfigError(f"--to {to} needs pictures to compare with the original: --check-on FOLDER.")
    refuse_inputs([output], [str(model)], "OUTPUT")
    from headstart.exporting.checking import ExportRefused
    from headstart.prediction import load
    from headstart.terminal import make_console, track_progress

    classifier = load(model)
    common: dict[str, Any] = {"overwrite": overwrite}
    try:
        with track_progress(make_console(stderr=True)) as progress:
            if to == "int8":
                options = {"pattern": pattern, "exclude": exclude or (), "follow_links": follow_links}
                lines = _export_int8(
                    classifier, model, output, (str(calibrate_on), test_on), options, progress,
                    max_loss=max_loss / 100, min_agreement=min_agreement / 100, **common,
                )  # fmt: skip
            elif to == "card":
                lines = _write_card(classifier, title or model.stem, output, overwrite)
            else:
                paths = _list_pictures(check_on or [], output, follow_links)
                if to == "browser":
                    shown = title or model.stem
                    lines = _export_browser(classifier, shown, output, paths, runtime, overwrite, progress)
                else:
                    lines = _export(to, classifier, output, paths, input_type, overwrite, progress)
    except KeyboardInterrupt:
        raise stop("Nothing was written.") from None
    except ExportRefused as refusal:
        print(f"Refused: {refusal}", file=sys.stderr)
        raise typer.Exit(1) from None
    print("\n".join([*lines, f"Wrote {show_path(str(output))}"]))


def _list_pictures(sources: Sequence[str], output: Path, follow_links: bool) -> list[str]:
    from headstart.dataset import list_images

    paths, problems = list_images(sources, follow_links=follow_links)
    print_problems(problems)
    refuse_inputs([output], paths, "OUTPUT")
    return paths


def _export(
    to: str,
    classifier: Any,
    output: Path,
    paths: Sequence[str],
    input_type: Any,
    overwrite: bool,
    progress: Progress,
) -> list[str]:
    agreement: Any
    if to == "onnx":
        from headstart.exporting.batches import export_batches

        agreement = export_batches(
            classifier, output, paths, input_type=input_type, overwrite=overwrite, progress=progress
        )
    elif to == "openvino":
        from headstart.exporting.openvino_folder import export_openvino

        agreement = export_openvino(classifier, output, paths, overwrite=overwrite, progress=progress)
    else:
        from headstart.exporting.runner import export_runner

        agreement = export_runner(classifier, output, paths, overwrite=overwrite, progress=progress)
    return _render_agreement(agreement)


def _render_agreement(agreement: Agreement) -> list[str]:
    _print_left_out(agreement.left_out)
    return [
        f"same class: {agreement.num_same_class:,} of {agreement.num_checked:,} pictures",
        f"largest difference of a probability: {agreement.worst_difference:.2e}",
    ]


def _print_left_out(failures: Sequence[ImageError]) -> None:
    for failure in failures:
        print(f"{show_path(failure.path or '')}: {failure.code}: {failure.reason}", file=sys.stderr)


def _export_browser(
    classifier: Any,
    title: str,
    output: Path,
    paths: Sequence[str],
    runtime: Path | None,
    overwrite: bool,
    progress: Progress,
) -> list[str]:
    from headstart.exporting.browser import export_browser
    from headstart.exporting.checking import pick_evenly

    progress("comparing with the original", 0, 0)
    done = export_browser(
        classifier, output, pictures=pick_evenly(paths), title=title, runtime=runtime, overwrite=overwrite
    )
    if not done.num_checked:
        return ["not compared on pictures: there is no node here to run the page's runtime"]
    return [
        f"same class: {done.num_same_class:,} of {done.num_checked:,} pictures",
        f"largest difference of a probability: {done.worst_difference:.2e}",
    ]


def _write_card(classifier: Any, title: str, output: Path, overwrite: bool) -> list[str]:
    from headstart.exporting.model_card import write_model_card
    from headstart.exporting.targets import check_file_target

    check_file_target(output, ".md", overwrite)
    write_model_card(classifier, output, title=title)
    return []


def _export_int8(
    classifier: Any,
    model: Path,
    output: Path,
    sources: tuple[str, str | None],
    options: dict[str, Any],
    progress: Progress,
    **limits: Any,
) -> list[str]:
    from headstart.dataset import scan_dataset
    from headstart.exporting.int8 import export_int8
    from headstart.review import find_journal, read_decisions

    calibration = scan_dataset(resolve_source(sources[0], progress), **options)
    test = scan_hashed(resolve_source(sources[1], progress), options, progress) if sources[1] else None
    decisions = read_decisions(find_journal(model)).decisions
    inputs = [record.path for each in (calibration, test) if each for record in each.records]
    refuse_inputs([output], inputs, "OUTPUT")
    done = export_int8(classifier, output, calibration, test=test, decisions=decisions, progress=progress, **limits)
    return _render_int8(done)


def _render_int8(done: Int8Export) -> list[str]:
    from headstart.stats import format_percent, wilson_interval

    _print_left_out(done.agreement.left_out)

    def say_accuracy(evaluation: Any) -> str:
        right, count = int(evaluation.correct.sum()), len(evaluation.labels)
        low, high = wilson_interval(right, count)
        return f"{format_percent(right / count)} % ({format_percent(low)} to {format_percent(high)})"

    low, high = (100 * each for each in done.loss_interval)
    return [
        f"accuracy before: {say_accuracy(done.before)}",
        f"accuracy after:  {say_accuracy(done.after)} on {done.agreement.num_checked:,} pictures",
        f"it costs {100 * done.loss:.2f} points ({low:.2f} to {high:.2f}; paired test p = {done.p_value:.2g})",
        f"same class: {done.agreement.num_same_class:,} of {done.agreement.num_checked:,} pictures; largest difference "
        f"of a probability: {done.agreement.worst_difference:.2e}",
        f"log loss after less before: {done.log_loss_change[0]:.4f} to {done.log_loss_change[1]:.4f}",
        f"{done.num_convs - done.num_exact} of {done.num_convs} convolutions in 8 bits, fitted to "
        f"{done.num_calibration} training pictures",
        f"{done.size_before / 1e6:.1f} MB became {done.size_after / 1e6:.1f} MB",
    ]
