"""The command that predicts: pictures and folders of them, into a table, files or sorted folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart._files import show_path
from headstart.cli_options import (
    LinksOption,
    ModelArgument,
    UnsignedOption,
    check_folder_of,
    check_pyarrow,
    print_problems,
    refuse_inputs,
)
from headstart.errors import ConfigError

if TYPE_CHECKING:
    from headstart.dataset import Problem
    from headstart.predict_journal import Journal
    from headstart.prediction import Classifier
    from headstart.predictions_output import Layout
    from headstart.sorting import Sorter

_FOR_FOLDERS = "Many pictures"
_MAX_LINES = 100  # on a terminal, unless a table is asked for
_KEEP_JOURNAL_FROM = 1_000  # pictures; fewer are done again in a moment


def predict(
    model: ModelArgument,
    pictures: Annotated[list[str], typer.Argument(help="Pictures, or folders with pictures in them.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="table, csv, jsonl or parquet. Default: as --output is called, else a table; "
            f"for more than {_MAX_LINES} pictures on a terminal the counts only."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write instead of the screen.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show for a picture (table, jsonl).")] = 1,
    unknown_below: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Set less familiar pictures apart as none of these; about this share of good ones is lost.",
        ),
    ] = 0.01,
    unsure_below: Annotated[
        float, typer.Option(min=0, max=1, help="Set pictures apart as unsure whose top probability is below this.")
    ] = 0.0,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit code 1 where any picture could not be used, not only where none could."),
    ] = False,
    follow_links: LinksOption = False,
    allow_unsigned: UnsignedOption = False,
    sort_into: Annotated[
        Path | None,
        typer.Option(
            help="Folder for links to the pictures, in a folder for each class.", rich_help_panel=_FOR_FOLDERS
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="With --sort-into: copies, not links.", rich_help_panel=_FOR_FOLDERS)
    ] = False,
    submission: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="Write a competition's file, id,label, to --output: names of files with the probability of LABEL.",
            rich_help_panel=_FOR_FOLDERS,
        ),
    ] = None,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry", help="Going on, try pictures again that could not be used.", rich_help_panel=_FOR_FOLDERS
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Begin anew, whatever was done before.", rich_help_panel=_FOR_FOLDERS),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Wait for new pictures in the folders, until Ctrl-C.", rich_help_panel=_FOR_FOLDERS
        ),
    ] = False,
    watch_for: Annotated[
        float | None,
        typer.Option(min=0, help="Wait for new pictures so many seconds.", rich_help_panel=_FOR_FOLDERS),
    ] = None,
) -> None:
    """Say what pictures show. Pictures that cannot be read are listed and counted; exit code 1 if none could.

    With --output or --sort-into, the same command goes on after a stop, and predicts only what is new or changed.
    """
    from headstart.predictions_output import Doubts, Layout

    is_watching = watch or watch_for is not None
    chosen = _choose_format(format, output, submission, sort_into, is_watching)
    _check_targets(output, sort_into, copy, pictures)
    listing = None
    problems: list[Problem] = []
    if is_watching:
        from headstart.watching import check_watched

        check_watched(pictures)
    else:
        from headstart.dataset import list_images
        from headstart.predict_run import make_listing

        paths, problems = list_images(list(pictures), follow_links=follow_links)
        refuse_inputs([output] if output else [], [str(model), *paths], "--output")
        listing = make_listing(paths)
        if submission is not None:
            from headstart.submission import find_ids

            find_ids(listing.paths)
        if format is None and output is None and len(listing) > _MAX_LINES and sys.stdout.isatty():
            chosen = "counts"
    from headstart.prediction import load

    classifier = load(model, allow_unsigned=allow_unsigned)
    width = min(60, max(len(show_path(path)) for path in listing.paths)) if listing and chosen == "table" else 0
    layout = Layout(chosen, classifier.classes, Doubts(unknown_below, unsure_below), top, width)
    from headstart.cli_predict_task import Task, run_listed, run_watching

    print_problems(problems)
    if submission is not None:
        from headstart.submission import find_class

        find_class(submission, classifier.classes)
    with ExitStack() as stack:
        journal, sorter = _open_targets(stack, classifier, output, sort_into, copy, layout, restart)
        task = Task(classifier, layout, output, journal, sorter, retry)
        if listing is None:
            tally = run_watching(task, pictures, follow_links, watch_for)
        else:
            tally = run_listed(task, listing, submission)
            if journal is not None and sorter is None and len(listing) < _KEEP_JOURNAL_FROM:
                journal.close(remove=True)
    if tally.num_failed:
        count, failed = tally.num_pictures, tally.num_failed
        pictures_text = f"{count:,} {'picture' if count == 1 else 'pictures'}"
        print(f"{pictures_text} = {count - failed:,} predicted + {failed:,} not usable", file=sys.stderr)
    if tally.num_failed and (strict or tally.num_failed == tally.num_pictures):
        raise typer.Exit(1)


# Before any work


def _choose_format(
    format: str | None, output: Path | None, submission: str | None, sort_into: Path | None, is_watching: bool
) -> str:
    """The format that was asked for or suits; `counts` where only they are to be shown."""
    from headstart.predictions_output import FORMATS

    if format is not None and format not in FORMATS:
        raise ConfigError(f"--format is {show_path(format)}. Expected one of {', '.join(FORMATS)}.")
    if submission is not None:
        if output is None or format not in (None, "csv") or is_watching:
            raise ConfigError("--submission writes a CSV file of its own. Give it with --output FILE, without --watch.")
        return "csv"
    if format is None:
        if output is None:
            return "counts" if sort_into is not None and not is_watching else "table"
        format = {"": "table", "txt": "table"}.get(ending := output.suffix.lower().removeprefix("."), ending)
        if format not in FORMATS:
            raise ConfigError(
                f"--output {show_path(str(output))} tells no format. Give it .csv, .jsonl, .parquet or .txt (a table), "
                "or say which with --format."
            )
    if format == "parquet":
        if output is None:
            raise ConfigError("--format parquet needs --output FILE: it is not for a screen.")
        check_pyarrow("--format parquet")
    if is_watching and output is not None and format not in ("csv", "jsonl"):
        raise ConfigError(f"--watch adds rows to a file, which {format} does not allow. Choose --format csv or jsonl.")
    if output is None and sort_into is not None and not is_watching:
        raise ConfigError(f"--format {format} with --sort-into needs --output FILE: the screen shows the counts.")
    return format


def _check_targets(output: Path | None, sort_into: Path | None, copy: bool, sources: Sequence[str]) -> None:
    if output is not None:
        check_folder_of(output)
        if output.is_dir():
            raise ConfigError(f"--output {show_path(str(output))} is a folder. Name a file to write.")
        if output.exists() and not output.is_file():  # such as /dev/stdout, which a finished file would replace
            raise ConfigError(f"--output {show_path(str(output))} is no regular file. Leave it out, and use > or |.")
    if sort_into is not None:
        from headstart.sorting import check_sort_folder

        check_sort_folder(sort_into, sources)
    elif copy:
        raise ConfigError("--copy says how --sort-into sorts. Add --sort-into FOLDER.")


def _open_targets(
    stack: ExitStack,
    classifier: Classifier,
    output: Path | None,
    sort_into: Path | None,
    copy: bool,
    layout: Layout,
    restart: bool,
) -> tuple[Journal | None, Sorter | None]:
    """The journal beside the output or in the sorted folder, which remembers where pictures stand; and the sorter."""
    if output is None and sort_into is None:
        return None, None
    from headstart.predict_journal import Journal

    settings: dict[str, Any] = {"classifier": classifier.sha256}
    if sort_into is None:
        assert output is not None
        path = output.with_name(f"{output.name}.journal")
        journal = stack.enter_context(Journal(path, settings, classifier.classes, restart=restart))
        return journal, None
    from headstart.sorting import JOURNAL_NAME, Sorter, is_unused

    doubts = layout.doubts
    settings |= {"--copy": copy, "--unknown-below": doubts.unknown_below, "--unsure-below": doubts.unsure_below}
    obstacle = None
    if not is_unused(sort_into):
        obstacle = (
            f"--sort-into {show_path(str(sort_into))} is not empty, and what is there was not sorted with this "
            "classifier and these options. Name another folder, or empty it."
        )
    sort_into.mkdir(exist_ok=True)
    path = sort_into / JOURNAL_NAME
    opened = Journal(path, settings, classifier.classes, restart=restart, obstacle=obstacle)
    journal = stack.enter_context(opened)
    sorter = Sorter(sort_into, classifier.classes, doubts, copy=copy)
    if journal.is_new:
        for name, folder in sorter.renamed:
            print(f"Pictures of {show_path(name)} go into the folder {show_path(folder)}.", file=sys.stderr)
    return journal, sorter
