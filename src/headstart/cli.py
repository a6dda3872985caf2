"""The command line: parse, call the library, print. Every import that costs time stands inside its command."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from headstart import (
    __version__,
    cli_export,
    cli_hub,
    cli_insight,
    cli_predict,
    cli_review,
    cli_serve,
    cli_torch,
    cli_train,
)
from headstart._files import show_path
from headstart.backbones.catalog import DEFAULT_BACKBONE
from headstart.cli_options import (
    ExcludeOption,
    LinksOption,
    ModelArgument,
    ParquetOption,
    PatternOption,
    SourceArgument,
    UnsignedOption,
    check_evaluation_folder,
    print_problems,
    resolve_source,
    scan_hashed,
    stop,
)
from headstart.errors import HeadstartError

app = typer.Typer(
    name="headstart",
    help="Train a classifier for your own pictures: a folder in, an evaluated classifier in one file out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cache_app = typer.Typer(help="Look at the cache of features, or clear it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
for command in (cli_train.train, cli_torch.finetune, cli_torch.augment, cli_torch.recipe, cli_predict.predict):
    app.command()(command)
for command in (
    cli_insight.report,
    cli_insight.show,
    cli_insight.compare,
    cli_insight.learning_curve,
    cli_insight.explain,
    cli_review.review,
    cli_export.export,
    cli_hub.push,
    cli_hub.pull,
    cli_serve.serve,
):
    app.command()(command)


def main() -> None:
    """Entry point: errors that a user can mend become one message and exit code 2."""
    _prepare_output()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    except HeadstartError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _discard_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            _discard_output()
        where = show_path(str(error.filename)) if error.filename else "standard output"
        print(
            f"Error: {where} cannot be used: {error.strerror or error}. Check the disk and permissions.",
            file=sys.stderr,
        )
        sys.exit(2)


def _prepare_output() -> None:
    """Streams that take any text: what the terminal cannot show is escaped, and a closed stream swallows it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """What is still buffered would fail again, loudly, at exit."""
    with suppress(OSError):
        sys.stdout.close()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"headstart {__version__}")
        raise typer.Exit


@app.callback()
def _set_up(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    import logging

    # Our own words only: Pillow logs what it thinks of damaged pictures, and the verdict on them says it better.
    logging.getLogger("headstart").addHandler(logging.StreamHandler())


def _count_pictures(count: int) -> str:
    return f"{count:,} {'picture' if count == 1 else 'pictures'}"


@app.command()
def evaluate(
    model: ModelArgument,
    source: SourceArgument,
    output: Annotated[Path | None, typer.Option(help="Folder for evaluation.json, rows.csv and mistakes.csv.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test. Default: test, else validation, else all.")
    ] = None,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
    parquet: ParquetOption = False,
    allow_unsigned: UnsignedOption = False,
) -> None:
    """Measure a classifier on labelled pictures: one row per picture, every figure with its interval."""
    from dataclasses import replace

    from headstart.data_check import DataReport
    from headstart.dataset import Problem
    from headstart.evaluation_files import save_evaluation
    from headstart.prediction import load
    from headstart.summary import render_summary
    from headstart.terminal import make_console, print_parts, render_problems, track_progress

    if output is not None:
        check_evaluation_folder(output, parquet)
    classifier = load(model, allow_unsigned=allow_unsigned)
    try:
        with track_progress(make_console(stderr=True)) as progress:
            options = {"pattern": pattern, "exclude": exclude or (), "follow_links": follow_links}
            dataset = scan_hashed(resolve_source(source, progress), options, progress)
            evaluation, failures = classifier.evaluate_dataset(
                dataset, split, lambda done, total: progress("predicting", done, total)
            )
    except KeyboardInterrupt:
        raise stop("Nothing was written.") from None
    console = make_console()
    failed = {failure.path for failure in failures}
    report = DataReport(
        replace(
            dataset,
            records=tuple(record for record in dataset.records if record.path not in failed),
            problems=(*dataset.problems, *(Problem(f.code, f.reason, f.path) for f in failures)),
        )
    )
    print_parts(console, render_problems(report.all_problems))
    figures = evaluation.compute_figures()
    console.print(render_summary(evaluation, figures))
    if output is not None:
        extra = {"classifier": {"file": model.name, "sha256": classifier.sha256}, "data": report.to_json()}
        save_evaluation(evaluation, output, extra=extra, parquet=parquet)
        cli_insight.write_evaluation_report(classifier, evaluation, report, model.name, output)
        console.print(f"Wrote {show_path(str(output))}", markup=False, soft_wrap=True)


@app.command()
def inspect(
    model: ModelArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metadata as JSON.")] = False,
    allow_unsigned: UnsignedOption = False,
) -> None:
    """Show what is in a classifier file: classes, backbone, layers, data, figures, licence."""
    import json
    from dataclasses import asdict

    from headstart._files import compute_sha256
    from headstart.artifact import read_artifact
    from headstart.terminal import make_console, print_parts, render_metadata

    metadata, data = read_artifact(model, allow_unsigned=allow_unsigned)
    if as_json:
        print(json.dumps(asdict(metadata), indent=2))
        return
    console = make_console()
    print_parts(console, render_metadata(metadata, len(data), compute_sha256(data)))


@app.command()
def check(
    source: SourceArgument,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
    show_all: Annotated[bool, typer.Option("--all", help="List every problem, not the first of each kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Look at the data and compute nothing: what would be used, what left out and why, what looks wrong."""
    import json

    from headstart.backbones.catalog import CATALOG
    from headstart.data_check import check_dataset
    from headstart.dataset import scan_dataset
    from headstart.parallel import count_cpus
    from headstart.terminal import make_console, print_parts, render_problems, render_report, track_progress

    entry = CATALOG[DEFAULT_BACKBONE]
    try:
        with track_progress(make_console(stderr=True)) as progress:
            dataset = scan_dataset(
                resolve_source(source, progress), pattern=pattern, exclude=exclude or (), follow_links=follow_links
            )
            report = check_dataset(
                dataset, entry.crop_frac, entry.input_size_px, num_threads=count_cpus(), on_progress=progress
            )
    except KeyboardInterrupt:
        raise stop("") from None
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
        return
    console = make_console()
    print_parts(console, render_problems(report.all_problems, shown=10**9) if show_all else render_report(report))


@app.command()
def backbones(
    pattern: Annotated[
        str, typer.Argument(help="Names to list, such as 'timm:convnext*'; without it the usual ones.")
    ] = "",
    measure: Annotated[
        bool, typer.Option("--measure", help="Run each on this machine and say how many pictures a second it takes.")
    ] = False,
) -> None:
    """List the pretrained networks: size, features, input, licence, and whether their weights are here."""
    from headstart.backbones.listing import list_backbones, measure_speed
    from headstart.terminal import make_console, print_parts, render_backbones, track_progress

    try:
        with track_progress(make_console(stderr=True)) as progress:
            rows = list_backbones(pattern)
            speeds = measure_speed(rows, progress) if measure else {}
    except KeyboardInterrupt:
        raise stop("") from None
    print_parts(make_console(), render_backbones(rows, speeds))


@app.command()
def verify(
    model: ModelArgument,
    pictures: Annotated[list[str], typer.Argument(help="Pictures, or folders with pictures in them.")],
    allow_unsigned: UnsignedOption = False,
) -> None:
    """Compare predictions with plain ONNX Runtime on the bare file; exit code 1 where they disagree."""
    from headstart.dataset import list_images
    from headstart.terminal import make_console, track_progress
    from headstart.verification import verify_classifier

    paths, problems = list_images(pictures)
    print_problems(problems)
    try:
        with track_progress(make_console(stderr=True)) as progress:
            agreement = verify_classifier(
                model,
                paths,
                allow_unsigned=allow_unsigned,
                on_progress=lambda done, total: progress("comparing", done, total),
            )
    except KeyboardInterrupt:
        raise stop("") from None
    for failure in agreement.left_out:
        print(f"{show_path(failure.path or '')}: {failure.code}: {failure.reason}", file=sys.stderr)
    print(f"{_count_pictures(agreement.num_images)} compared, {len(agreement.left_out):,} cannot be decoded")
    if not agreement.num_images:
        raise typer.Exit(1)
    print(f"same class: {agreement.num_same_class:,} of {agreement.num_images:,}")
    print(f"largest difference of a probability: {agreement.worst_difference:.2e} at {show_path(agreement.worst_path)}")
    if agreement.num_reduced:
        print(
            f"{agreement.num_reduced:,} large JPEGs are decoded at a reduced scale; "
            f"against full scale the largest difference is {agreement.worst_reduced:.2e}"
        )
    if agreement.num_same_class < 0.999 * agreement.num_images:
        raise typer.Exit(1)


@cache_app.command("show")
def show_cache() -> None:
    """Where the cache is and how much each backbone's features take."""
    from headstart.feature_cache import FeatureCache

    with FeatureCache() as cache:
        print(
            f"{show_path(str(cache.path))}: {cache.measure_size() / 1e6:,.1f} MB of {cache.limit_bytes / 1e6:,.0f} MB"
        )
        for usage in cache.measure_usage():
            print(f"  {usage.name}: {usage.num_pictures:,} pictures, {usage.size_bytes / 1e6:,.1f} MB")


@cache_app.command("clear")
def clear_cache_command(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the cache. Everything in it can be computed again."""
    from headstart.feature_cache import clear_cache, get_cache_file

    if not yes and not typer.confirm(f"Delete {get_cache_file()}?"):
        raise typer.Exit(1)
    print(f"{clear_cache() / 1e6:,.1f} MB freed")


if __name__ == "__main__":
    main()
