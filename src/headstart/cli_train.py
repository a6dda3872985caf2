"""The command that trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart._files import show_path
from headstart.backbones.catalog import DEFAULT_BACKBONE
from headstart.cli_insight import write_training_report
from headstart.cli_options import (
    ExcludeOption,
    LinksOption,
    ParquetOption,
    PatternOption,
    SourceArgument,
    check_evaluation_folder,
    check_target,
    choose_preset,
    name_after,
    name_evaluation,
    parse_numbers,
    parse_penalty,
    parse_seconds,
    resolve_source,
    say_preset,
    stop,
    with_fit_options,
    write_evaluation,
)

if TYPE_CHECKING:
    from headstart.report.content import Advice


@with_fit_options
def train(
    source: SourceArgument,
    output: Annotated[Path | None, typer.Option(help="Classifier file to write. Default: SOURCE.onnx here.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help=say_preset("fast"))] = False,
    best: Annotated[bool, typer.Option("--best", help=say_preset("best"))] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Pretrained network; auto, or several with commas between them, to choose by trying. "
            f"Default: {DEFAULT_BACKBONE}."
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for choosing the backbone and training, such as 60s or 5min.")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Side that the network sees, in pixels.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="File of weights for the network, or none for random ones.")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="auto: choose layers and pooling; top: the last layer; or a layer's name.")
    ] = "auto",
    head: Annotated[str, typer.Option(help="linear, svm or dense (extra torch).")] = "linear",
    pooling: Annotated[str, typer.Option(help="Of a dense head: average, max or flatten.")] = "average",
    hidden: Annotated[str, typer.Option(help="Of a dense head: units of the hidden layers, such as 256,128.")] = "",
    dropout: Annotated[str, typer.Option(help="Of a dense head: share dropped after each, such as 0.5,0.7.")] = "",
    activation: Annotated[str, typer.Option(help="Of a dense head: softmax, or sigmoid for 2 classes.")] = "softmax",
    penalty: Annotated[str, typer.Option(help="auto: choose the L2 penalty; or a number above 0.")] = "auto",
    class_weights: Annotated[str, typer.Option(help="none, or balanced: every class weighs the same.")] = "none",
    test_frac: Annotated[
        float, typer.Option(help="Share put aside for the test where the data name no test part.")
    ] = 0.2,
    num_folds: Annotated[int, typer.Option(help="Folds of the cross-validation, 2 to 20.")] = 5,
    seed: Annotated[int, typer.Option(help="Of split, folds and everything random.")] = 0,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
    parquet: ParquetOption = False,
    *,
    fit: dict[str, Any],
) -> None:
    """Train a classifier, evaluate it on pictures put aside, and save both.

    Writes SOURCE.onnx and SOURCE.evaluation/ into the current folder. Features are cached by content: a second run,
    also after renaming or relabelling, computes only what is new. A dense head keeps its checkpoints and its history
    in SOURCE.training/; a second run continues it.
    """
    from headstart.terminal import (
        make_console,
        print_parts,
        render_accuracy,
        render_fit,
        render_problems,
        render_report,
        render_selection,
        track_progress,
    )

    target = output or Path(f"{name_after(source)}.onnx")
    check_target(target)
    check_evaluation_folder(name_evaluation(target), parquet)
    from headstart.config import make_fit_settings
    from headstart.review import find_journal, read_decisions
    from headstart.terminal_report import render_advice
    from headstart.training import train as train_classifier

    settings: dict[str, Any] = {
        "preset": choose_preset(fast, best),
        **({} if backbone is None else {"backbone": backbone}),
        "input_size_px": input_size,
        "weights": weights,
        "layers": layers,
        "head": head,
        "penalty": parse_penalty(penalty),
        "pooling": pooling,
        "hidden": parse_numbers("--hidden", hidden, int),
        "dropout": parse_numbers("--dropout", dropout, float),
        "activation": activation,
        "class_weights": class_weights,
        "test_frac": test_frac,
        "num_folds": num_folds,
        "seed": seed,
    }
    fitting: dict[str, Any] = {}
    if head == "dense" or fit:
        fitting["fit"] = make_fit_settings(fit, class_weights=class_weights, seed=seed)
        fitting["folder"] = target.with_suffix(".training")
    began = time.monotonic()
    journal = read_decisions(find_journal(target))
    advice: tuple[Advice, ...] = ()
    try:
        with track_progress(make_console(stderr=True)) as progress:
            classifier = train_classifier(
                resolve_source(source, progress),
                pattern=pattern,
                exclude=exclude or (),
                follow_links=follow_links,
                on_progress=progress,
                budget_s=None if budget is None else parse_seconds(budget),
                decisions=journal.decisions,
                **settings,
                **fitting,
            )
            record: Any = classifier.training
            # Files first: what is printed may go to a pipe that closes.
            classifier.save(target)
            written = [target]
            if record.evaluation is not None:
                written.append(write_evaluation(classifier, target, parquet, time.monotonic() - began))
                advice = write_training_report(classifier, target, source, journal.decisions, progress)
    except KeyboardInterrupt:
        raise stop("The features computed so far are kept; the same command continues.") from None
    console = make_console()
    print_parts(console, render_problems(journal.problems))
    print_parts(console, [*render_report(record.report), ""])
    print_parts(console, render_selection(record.selection) if record.selection else render_fit(record))
    if record.evaluation is not None:
        from headstart.summary import render_summary

        console.print(render_summary(record.evaluation, record.evaluation.compute_figures(record.settings.seed)))
        if len(record.evaluations) > 1:
            print_parts(console, [render_accuracy("The validation part", record.evaluations["validation"]), ""])
    else:
        console.print("\nNot evaluated: no picture was put aside. The cross-validated accuracy stands above.\n")
    print_parts(console, render_advice(advice))
    total = len(record.report.dataset.records)
    console.print(
        f"{total:,} pictures, {record.num_forward:,} through the network, {time.monotonic() - began:.1f} s. "
        f"Wrote {' and '.join(show_path(str(path)) for path in written)}",
        markup=False,
        soft_wrap=True,
    )
