"""The commands that ask questions about a classifier and its data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart._files import show_path, write_atomic
from headstart.cli_options import (
    ExcludeOption,
    LinksOption,
    ModelArgument,
    PatternOption,
    SourceArgument,
    UnsignedOption,
    check_evaluation_folder,
    check_folder_of,
    check_matplotlib,
    name_after,
    name_evaluation,
    read_candidates,
    refuse_inputs,
    resolve_source,
    scan_hashed,
    stop,
)
from headstart.cli_review import SUSPECTS, find_suspects_file
from headstart.errors import ConfigError, DataError, ImageError, raise_all

if TYPE_CHECKING:
    from headstart.data_check import DataReport
    from headstart.evaluation import Evaluation
    from headstart.insight.subject import Subject
    from headstart.parallel import Progress
    from headstart.prediction import Classifier
    from headstart.report.content import Advice
    from headstart.review import Decision

_TIMED_PICTURES = 100
_MAX_STEM_BYTES = 200
TargetOption = Annotated[
    float | None, typer.Option(help="The accuracy that is wanted, such as 0.98: what is missing to it is told.")
]


def write_training_report(
    classifier: Classifier, target: Path, source: str, decisions: Sequence[Decision], progress: Progress
) -> tuple[Advice, ...]:
    """The report of a classifier that was just trained, and suspects.csv, into the folder beside `target`."""
    from headstart.feature_cache import FeatureCache
    from headstart.insight.subject import open_trained
    from headstart.insight.suspects import suspects_to_csv
    from headstart.report.assembly import Request, build_report
    from headstart.report.writing import write_page
    from headstart.review import find_settled

    folder = name_evaluation(target)
    for name in ("report.html", SUSPECTS):  # what tells of an earlier classifier must not stay beside this one
        (folder / name).unlink(missing_ok=True)
    record: Any = classifier.training
    fit = getattr(record, "fit", None) or record  # what has a history: of a dense head, of a fine-tuning
    request = Request(
        target.name,
        source,
        history=getattr(fit, "history", ()),
        best_epoch=getattr(fit, "best_epoch", None),
        trials=getattr(record, "trials", ()),
        settled=find_settled(decisions),
    )
    with FeatureCache() as cache:
        content, suspects = build_report(open_trained(classifier, cache, progress), request, progress)
    write_page(folder / "report.html", content, progress)
    if suspects is not None:
        write_atomic(folder / SUSPECTS, suspects_to_csv(suspects))
    return content.advice


def write_evaluation_report(
    classifier: Classifier, evaluation: Evaluation, data: DataReport, title: str, folder: Path
) -> None:
    from headstart.report.assembly import build_evaluation_report
    from headstart.report.writing import write_page

    with _track() as progress:
        content = build_evaluation_report(classifier, evaluation, data, title, progress)
        write_page(folder / "report.html", content, progress)


def report(
    model: ModelArgument,
    source: SourceArgument,
    output: Annotated[Path | None, typer.Option(help="Default: report.html in MODEL.evaluation.")] = None,
    target_accuracy: TargetOption = None,
    png: Annotated[Path | None, typer.Option(help="Folder for the plots as PNG too (extra plots).")] = None,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
) -> None:
    """Write the whole report of a classifier and its pictures as one page that any browser opens.

    SOURCE are the pictures it was trained on. Beyond what train writes, near-copies are looked for, and training and
    test pictures compared.
    """
    from headstart.insight.suspects import suspects_to_csv
    from headstart.report.assembly import Request, build_report
    from headstart.report.writing import write_page
    from headstart.review import find_settled
    from headstart.terminal import make_console, print_parts
    from headstart.terminal_report import render_advice

    folder = name_evaluation(model)
    # A folder with a page alone would not count as an evaluation, and the next training would refuse it.
    target = output or (folder / "report.html" if folder.is_dir() else model.with_suffix(".html"))
    if target.parent == folder:
        check_evaluation_folder(folder, parquet=False)
    _check_page(target)
    if png is not None:
        check_folder_of(png, "--png")
        if png.exists() and not png.is_dir():
            raise ConfigError(f"--png is {show_path(str(png))}, which is no folder. Name a folder for the plots.")
        check_matplotlib("--png")
    with _open(model, source, pattern, exclude, follow_links) as (subject, decisions, progress):
        request = Request(
            model.name,
            source,
            thorough=True,
            target_accuracy=target_accuracy,
            history=_read_history(model),
            settled=find_settled(decisions),
        )
        content, suspects = build_report(subject, request, progress)
        write_page(target, content, progress)
    written = [target]
    if suspects is not None and output is None:
        written.append(find_suspects_file(model))
        write_atomic(written[-1], suspects_to_csv(suspects))
    if png is not None:
        from headstart.plot_figure import save_png

        png.mkdir(exist_ok=True)
        for section in content.sections:
            for number, plot in enumerate(section.plots, start=1):
                written.append(png / f"{section.key}-{number}.png")
                save_png(plot, written[-1])
    print_parts(make_console(), render_advice(content.advice))
    print(f"Wrote {', '.join(show_path(str(path)) for path in written)}")


def show(
    source: SourceArgument,
    output: Annotated[Path | None, typer.Option(help="Page to write. Default: SOURCE.html here.")] = None,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
) -> None:
    """Draw a contact sheet: some pictures of every class on one page, and what is wrong with the data."""
    from headstart.backbones.catalog import CATALOG, DEFAULT_BACKBONE
    from headstart.data_check import check_dataset
    from headstart.dataset import scan_dataset
    from headstart.parallel import count_cpus
    from headstart.report.assembly import build_sheet_report
    from headstart.report.writing import write_page

    target = output or Path(f"{name_after(source)}.html")
    _check_page(target)
    entry = CATALOG[DEFAULT_BACKBONE]
    with _track() as progress:
        dataset = scan_dataset(
            resolve_source(source, progress), pattern=pattern, exclude=exclude or (), follow_links=follow_links
        )
        data = check_dataset(
            dataset, entry.crop_frac, entry.input_size_px, num_threads=count_cpus(), on_progress=progress
        )
        write_page(target, build_sheet_report(data), progress)
    print(f"Wrote {show_path(str(target))}")


def learning_curve(
    model: ModelArgument,
    source: SourceArgument,
    target_accuracy: TargetOption = None,
    png: Annotated[Path | None, typer.Option(help="File for the plot as PNG (extra plots).")] = None,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
) -> None:
    """Say what more pictures would bring: error against the number of pictures, forecast, bias and variance."""
    from headstart.report.assembly import Request, describe_growth
    from headstart.terminal import make_console, print_parts
    from headstart.terminal_report import render_section

    if png is not None:
        if png.suffix.lower() != ".png":
            raise ConfigError(f"--png is {show_path(str(png))}. Expected a name that ends in .png.")
        check_folder_of(png, "--png")
        check_matplotlib("--png")
    with _open(model, source, pattern, exclude, follow_links) as (subject, _, progress):
        if png is not None:
            refuse_inputs([png], [record.path for each in subject.records.values() for record in each], "--png")
        section = describe_growth(subject, Request(model.name, source, target_accuracy=target_accuracy), progress)
    if png is not None:
        from headstart.plot_figure import save_png

        save_png(section.plots[0], png)
    print_parts(make_console(), render_section(section))


def compare(
    models: Annotated[list[str], typer.Argument(help="Classifiers (.onnx), and last the pictures to compare them on.")],
    backbone: Annotated[
        str | None, typer.Option(help="Backbones with commas between them: one classifier is trained with each.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test. Default: test, else validation, else all.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Page with the plots to write.")] = None,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
    allow_unsigned: UnsignedOption = False,
) -> None:
    """Compare classifiers on the same pictures: paired tests, ties called ties, accuracy against time and size.

    Either several files and pictures, or --backbone A,B,C and a folder to train and test each on.
    """
    from headstart.backbones.catalog import is_known_backbone, say_unknown_backbone
    from headstart.insight.comparison import compare_evaluations
    from headstart.insight.comparison_section import describe_comparison
    from headstart.insight.speed import measure_classifiers
    from headstart.terminal import make_console, print_parts
    from headstart.terminal_report import render_section

    *files, source = models
    backbones = list(dict.fromkeys(name.strip() for name in (backbone or "").split(",") if name.strip()))
    if len(files) + len(backbones) < 2:
        raise ConfigError("Name two or more classifiers and then the pictures, or use --backbone A,B with a folder.")
    raise_all(ConfigError, [say_unknown_backbone(name) for name in backbones if not is_known_backbone(name)])
    if output is not None:
        _check_page(output)
    options: dict[str, Any] = {"pattern": pattern, "exclude": exclude or (), "follow_links": follow_links}
    with _track() as progress:
        resolved = resolve_source(source, progress)
        classifiers: dict[str, Any] = _load_all(files, allow_unsigned)
        evaluations: dict[str, Evaluation] = {}
        dataset = scan_hashed(resolved, options, progress) if classifiers else None
        for name, classifier in classifiers.items():
            evaluations[name], failures = classifier.evaluate_dataset(
                dataset, split, lambda done, total, name=name: progress(f"predicting with {name}", done, total)
            )
            for failure in failures:
                print(f"{show_path(failure.path or '')}: {failure.code}: {failure.reason}", file=sys.stderr)
        for name in backbones:
            classifiers[name], evaluations[name] = _train_one(resolved, name, options, progress)
        comparison = compare_evaluations(evaluations)
        pictures = next(iter(evaluations.values())).paths[:_TIMED_PICTURES]
        progress("measuring speed", 0, 0)
        section = describe_comparison(comparison, measure_classifiers(classifiers, pictures))
    print_parts(make_console(), render_section(section))
    if output is not None:
        from headstart.report.content import Report
        from headstart.report.page import render_page

        classes = next(iter(classifiers.values())).classes
        write_atomic(output, render_page(Report(" and ".join(classifiers), classes, sections=(section,))).encode())
        print(f"Wrote {show_path(str(output))}")


def explain(
    model: ModelArgument,
    pictures: Annotated[list[str], typer.Argument(help="Pictures, or folders with pictures in them.")],
    class_name: Annotated[
        str | None, typer.Option("--class", help="What spoke for this class; default: for the predicted one.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures with their heat maps.")] = Path("heat-maps"),
    follow_links: LinksOption = False,
) -> None:
    """Draw what part of a picture spoke for its class, and what against it."""
    from headstart.dataset import list_images
    from headstart.heat_maps import Explainer, draw_heat_map
    from headstart.pictures import load_picture
    from headstart.prediction import load
    from headstart.stats import format_percent

    paths, problems = list_images(pictures, follow_links=follow_links)
    # A name may be as long as a file system allows already.
    stems = [os.fsdecode(os.fsencode(Path(path).stem)[:_MAX_STEM_BYTES]) for path in paths]
    targets = [output / f"{number:04d}-{stem}.png" for number, stem in enumerate(stems, start=1)]
    refuse_inputs(targets, paths, "--output")
    explainer = Explainer(load(model).data)
    for problem in problems:
        print(f"{show_path(problem.path or '')}: {problem.code}: {problem.message}", file=sys.stderr)
    num_drawn = 0
    with _track("The heat maps drawn so far are kept.") as progress:
        for number, (path, target) in enumerate(zip(paths, targets, strict=True), start=1):
            progress("explaining", number, len(paths))
            try:
                heat = explainer.explain(path, class_name)
                drawn = draw_heat_map(load_picture(path).pixels, heat)
            except ImageError as error:
                print(f"{show_path(path)}: {error.code}: {error.reason}", file=sys.stderr)
                continue
            output.mkdir(parents=True, exist_ok=True)
            write_atomic(target, partial(drawn.save, format="PNG"))
            num_drawn += 1
            said = f"{show_path(heat.label)} {format_percent(heat.probability)} %"
            print(f"{show_path(path)}: {said}, {show_path(str(target))}")
    if not num_drawn:
        raise typer.Exit(1)


@contextmanager
def _track(note: str = "Nothing was written.") -> Iterator[Progress]:
    from headstart.terminal import make_console, track_progress

    try:
        with track_progress(make_console(stderr=True)) as progress:
            yield progress
    except KeyboardInterrupt:
        raise stop(note) from None


def _read_history(model: Path) -> Sequence[Any]:
    from headstart.finetuning.history import read_history

    file = model.with_suffix(".training") / "history.csv"
    return read_history(file) if file.is_file() else ()


def _check_page(target: Path) -> None:
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output is {show_path(str(target))}. Expected a page to write, such as report.html.")
    check_folder_of(target)


def _load_all(files: Sequence[str], allow_unsigned: bool) -> dict[str, Classifier]:
    """Classifiers by the names of their files; by their paths where two have one name, numbered where equal."""
    from headstart.prediction import load

    stems = [Path(file).stem for file in files]
    names = [stem if stems.count(stem) == 1 else file for stem, file in zip(stems, files, strict=True)]
    names = [f"{name} ({names[:n].count(name) + 1})" if name in names[:n] else name for n, name in enumerate(names)]
    return {name: load(file, allow_unsigned=allow_unsigned) for name, file in zip(names, files, strict=True)}


def _train_one(
    source: str, backbone: str, options: dict[str, Any], progress: Progress
) -> tuple[Classifier, Evaluation]:
    from headstart.training import train

    classifier = train(source, backbone=backbone, on_progress=progress, **options)
    record: Any = classifier.training
    if record.evaluation is None:
        raise DataError("No picture was put aside for a test, so there is nothing to compare by.")
    return classifier, record.evaluation


@contextmanager
def _open(
    model: Path, source: str, pattern: str | None, exclude: list[str] | None, follow_links: bool
) -> Iterator[tuple[Subject, Sequence[Any], Progress]]:
    """The classifier with the pictures of its training, divided as that divides them, review applied."""
    from headstart.feature_cache import FeatureCache
    from headstart.insight.subject import open_subject
    from headstart.prediction import load
    from headstart.review import find_journal, read_decisions

    classifier = load(model)
    decisions = read_decisions(find_journal(model)).decisions
    options: dict[str, Any] = {"pattern": pattern, "exclude": exclude or (), "follow_links": follow_links}
    with _track() as progress, FeatureCache() as cache:
        subject = open_subject(classifier, resolve_source(source, progress), cache, progress, decisions, **options)
        yield replace(subject, scores=read_candidates(classifier, model)), decisions, progress
