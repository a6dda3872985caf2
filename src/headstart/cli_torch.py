"""The commands that need the extra torch: fine-tuning, pictures of augmentation, the tutorials' recipes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from headstart._files import show_path
from headstart.backbones.catalog import DEFAULT_BACKBONE
from headstart.cli_insight import write_training_report
from headstart.cli_options import (
    ExcludeOption,
    LinksOption,
    ModelArgument,
    ParquetOption,
    PatternOption,
    SourceArgument,
    check_evaluation_folder,
    check_folder_of,
    check_target,
    name_evaluation,
    resolve_source,
    stop,
    with_fit_options,
    write_evaluation,
)
from headstart.errors import ConfigError, ImageError, require_torch

_GRID_PICTURES = 6


@with_fit_options
def finetune(
    model: ModelArgument,
    source: SourceArgument,
    output: Annotated[
        Path | None, typer.Option(help="Classifier file to write. Default: MODEL-finetuned.onnx here.")
    ] = None,
    from_layer: Annotated[
        str, typer.Option("--from", help="Layer from which on to train, input for all, auto by number of pictures.")
    ] = "auto",
    weights: Annotated[
        str | None, typer.Option(help="File that the network's weights came from, where it was one.")
    ] = None,
    class_weights: Annotated[str | None, typer.Option(help="none, or balanced: every class weighs the same.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. Default: that of the training.")] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print the network's layers and which are trained.")
    ] = False,
    pattern: PatternOption = None,
    exclude: ExcludeOption = None,
    follow_links: LinksOption = False,
    parquet: ParquetOption = False,
    *,
    fit: dict[str, Any],
) -> None:
    """Fine-tune the network of a classifier on its own pictures, and keep that only where it is better.

    Training starts from the classifier's head. A paired test on validation pictures decides whether the fine-tuned
    network replaces the frozen one; both figures are in the file. Checkpoints and the history of epochs are in
    OUTPUT.training/; the same command continues a training that was stopped, and one with more --epochs trains on.
    """
    from headstart.terminal import make_console, print_parts, render_tuning, track_progress
    from headstart.terminal_report import render_advice

    require_torch("Fine-tuning")
    target = output or Path(f"{model.stem}-finetuned.onnx")
    check_target(target)
    if target.exists() and model.exists() and target.samefile(model):
        raise ConfigError(f"--output {show_path(str(target))} is the classifier to fine-tune. Name another file.")
    check_evaluation_folder(name_evaluation(target), parquet)
    from headstart.review import find_journal, read_decisions
    from headstart.tuning import finetune as finetune_classifier

    given = {**fit, **{n: v for n, v in (("class_weights", class_weights), ("seed", seed)) if v is not None}}
    folder = target.with_suffix(".training")
    decisions = read_decisions(find_journal(model)).decisions
    began = time.monotonic()
    try:
        with track_progress(make_console(stderr=True)) as progress:
            classifier = finetune_classifier(
                model,
                resolve_source(source, progress),
                from_layer=from_layer,
                weights=weights,
                pattern=pattern,
                exclude=exclude or (),
                follow_links=follow_links,
                folder=folder,
                on_progress=progress,
                decisions=decisions,
                **given,
            )
            record: Any = classifier.training
            classifier.save(target)
            written = [target, folder]
            if record.evaluation is not None:
                written.append(write_evaluation(classifier, target, parquet, time.monotonic() - began))
                advice = write_training_report(classifier, target, source, decisions, progress)
    except KeyboardInterrupt:
        raise stop(f"Checkpoints are in {show_path(str(folder))}; the same command continues.") from None
    console = make_console()
    print_parts(console, render_tuning(record, with_layers=summary))
    if record.evaluation is not None:
        from headstart.summary import render_summary

        console.print(render_summary(record.evaluation, record.evaluation.compute_figures(record.settings.seed)))
        print_parts(console, render_advice(advice))
    console.print(
        f"{time.monotonic() - began:.1f} s. Wrote {', '.join(show_path(str(path)) for path in written)}",
        markup=False,
        soft_wrap=True,
    )


def augment(
    pictures: Annotated[list[str], typer.Argument(help="Pictures, or folders with pictures in them.")],
    preset: Annotated[str, typer.Option(help="none, flip, light, tutorial or strong.")] = "tutorial",
    output: Annotated[Path, typer.Option(help="Picture to write (.png or .jpg).")] = Path("augmentation.png"),
    backbone: Annotated[str, typer.Option(help="Network whose input the views are for.")] = DEFAULT_BACKBONE,
    input_size: Annotated[int | None, typer.Option(help="Side that the network sees, in pixels.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Draw what a preset of augmentation does to your own pictures: each operation alone, then all together."""
    require_torch("headstart augment")
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--output is {show_path(str(output))}. Expected a name that ends in .png or .jpg.")
    check_folder_of(output)
    from headstart.backbones.loading import load_backbone
    from headstart.dataset import list_images
    from headstart.finetuning.augmentation import find_preset
    from headstart.finetuning.augmentation_picture import render_grid
    from headstart.pictures import load_picture

    chosen = find_preset(preset)
    paths, _ = list_images(pictures)
    if output.exists() and any(Path(path).exists() and output.samefile(path) for path in paths):
        raise ConfigError(
            f"--output {show_path(str(output))} is also an input, and is not replaced. Name another file."
        )
    found: list[tuple[str, Any]] = []
    # Spread over the folders, which come class after class.
    step = max(1, len(paths) // _GRID_PICTURES)
    for path in [*paths[::step], *paths]:
        try:
            if len(found) < _GRID_PICTURES and path not in [name for name, _ in found]:
                found.append((path, load_picture(path).pixels))
        except ImageError:
            continue
    if not found:
        raise ConfigError(f"None of the {len(paths):,} pictures can be read. headstart check says why.")
    spec = load_backbone(backbone, input_size).preprocess
    grid = render_grid([(Path(name).name, pixels) for name, pixels in found], chosen, spec, seed)
    try:
        grid.save(output)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{show_path(str(output))} cannot be written: {error}. Choose another --output.") from error
    print(f"Wrote {show_path(str(output))}: {len(found)} pictures, preset {preset}")


def recipe(
    name: Annotated[str, typer.Argument(help="Name of a recipe; without it they are listed.")] = "",
    source: Annotated[str, typer.Argument(help="Pictures, as for train; cifar10 and pets are fetched.")] = "",
    output: Annotated[Path | None, typer.Option(help="Folder for what it makes. Default: NAME here.")] = None,
    weights: Annotated[str | None, typer.Option(help="File of weights, or none for random ones.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each stage, instead of the recipe's.")] = None,
    input_size: Annotated[int | None, typer.Option(help="Side in pixels, instead of the recipe's.")] = None,
    max_per_class: Annotated[int | None, typer.Option(help="Use the first so many pictures of each class.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Network, for transfer_gain.")] = None,
) -> None:
    """Run an experiment of the Keras tutorials and print its published figures beside those measured here.

    transfer_gain trains a network from scratch, under a new head, and fine-tuned, and draws the three curves.
    """
    from headstart.recipes import TRANSFER_GAIN, find_recipe, list_recipes
    from headstart.terminal import make_console, print_parts, render_recipes, track_progress

    console = make_console()
    if not name:
        print_parts(console, render_recipes(list_recipes()))
        return
    chosen = None if name == TRANSFER_GAIN else find_recipe(name)
    if not source:
        purpose = f" The recipe is for: {chosen.data}" if chosen else ""
        raise ConfigError(f"Which pictures? headstart recipe {name} PICTURES.{purpose}")
    require_torch("A recipe")
    if chosen and backbone:
        raise ConfigError(f"--backbone is for {TRANSFER_GAIN}; the recipe {name} has its own.")
    from headstart.recipes.runner import render_result, run_recipe
    from headstart.recipes.transfer_gain import render_gain, run_transfer_gain

    options: dict[str, Any] = {
        "output": output or Path(name),
        "weights": weights,
        "input_size_px": input_size,
        "max_per_class": max_per_class,
    }
    options |= {"epochs": epochs} if epochs else {}
    try:
        with track_progress(make_console(stderr=True)) as progress:
            pictures = resolve_source(source, progress)
            if chosen:
                parts = render_result(run_recipe(chosen, pictures, on_progress=progress, **options))
            else:
                options |= {"backbone": backbone} if backbone else {}
                parts = render_gain(run_transfer_gain(pictures, on_progress=progress, **options))
    except KeyboardInterrupt:
        raise stop("The same command continues.") from None
    print_parts(console, parts)
    print(f"Wrote {show_path(str(options['output']))}")
