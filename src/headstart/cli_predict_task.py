"""What the command that predicts does: a run over a list of pictures, or a watch over folders that fill."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headstart._files import show_path
from headstart.cli_options import stop
from headstart.errors import ImageError
from headstart.predict_journal import Entry, Journal
from headstart.predict_run import Listing, Stamp, make_listing, predict_listing, read_rows, resume, settle
from headstart.prediction import Classifier, Prediction
from headstart.predictions_output import Doubts, Layout, Row, Tally, write_rows
from headstart.sorting import Sorter
from headstart.submission import find_class, find_ids, write_submission
from headstart.watching import open_appended, watch_folders

if TYPE_CHECKING:
    from headstart.dataset import Problem
    from headstart.parallel import Progress


@dataclass(frozen=True, slots=True)
class Task:
    """The classifier, and where its predictions go: `output` is None for the screen.

    Without a journal nothing is remembered. `retry` tries pictures again that could not be used.
    """

    classifier: Classifier
    layout: Layout
    output: Path | None = None
    journal: Journal | None = None
    sorter: Sorter | None = None
    retry: bool = False


def run_listed(task: Task, listing: Listing, submission: str | None = None) -> Tally:
    """Predict what is not done, write the output whole (a submission of a class), and show the counts.

    Raises typer.Exit where Ctrl-C ends it.
    """
    journal, layout, output = task.journal, task.layout, task.output
    tally, doubts = Tally(), layout.doubts
    show = _print_line if journal is None and layout.format != "counts" else None
    if show and (header := layout.make_header()) is not None:
        show(header)
    try:
        if journal is not None:
            last = resume(listing, journal, retry=task.retry)
            if task.sorter is not None:
                settle(last, journal, task.sorter)
            _say_resumed(listing, journal)
        total, done = len(listing) - listing.num_done, 0
        with _track(not show or not sys.stdout.isatty()) as progress:

            def take(path: str, outcome: Prediction | ImageError) -> None:
                nonlocal done
                done += 1
                if journal is None:
                    tally.add(outcome, doubts)
                if show:
                    show(layout.make_line(path, outcome))
                progress("predicting", done, total)

            predict_listing(task.classifier, listing, journal, task.sorter, take)
        if journal is not None:
            rows = _count(read_rows(listing, journal), tally, doubts)
            if output is None:
                for _ in rows:
                    pass
            elif submission is None:
                write_rows(output, rows, layout)
            else:
                write_submission(output, find_ids(listing.paths), rows, find_class(submission, layout.classes))
            journal.complete(len(listing))
    except KeyboardInterrupt:
        note = f"{listing.num_done:,} of {len(listing):,} pictures are done; the same command goes on."
        raise stop(note if journal else "") from None
    if layout.format == "counts" or (output is not None and sys.stdout.isatty()):
        for line in tally.describe():
            print(line)
    return tally


def _say_resumed(listing: Listing, journal: Journal) -> None:
    shown = show_path(str(journal.path))
    if journal.replaced:
        print(f"{shown} was of another run; all pictures are predicted anew.", file=sys.stderr)
    elif listing.num_done:
        print(f"{listing.num_done:,} of {len(listing):,} pictures were done before ({shown}).", file=sys.stderr)


def _count(rows: Iterable[Row], tally: Tally, doubts: Doubts) -> Iterator[Row]:
    for path, outcome in rows:
        tally.add(outcome, doubts)
        yield path, outcome


def _print_line(line: str) -> None:
    sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
    sys.stdout.buffer.flush()


@contextmanager
def _track(is_shown: bool) -> Iterator[Progress]:
    """A bar with the time left, where it does not run into what is printed."""
    if not is_shown or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from headstart.terminal import make_console, track_progress

    with track_progress(make_console(stderr=True)) as progress:
        yield progress


def run_watching(task: Task, folders: Sequence[str], follow_links: bool, seconds: float | None) -> Tally:
    """Predict what comes into the folders, and add its rows to the output or the screen at once.

    Returns what came in this run. Raises typer.Exit where Ctrl-C ends it.
    """
    journal, layout = task.journal, task.layout
    tally = Tally()
    known: dict[str, Stamp] = {}
    offsets: dict[str, int] = {}
    last = None
    said: set[Problem] = set()
    try:
        if journal is not None:
            for offset, last in journal.read_all():
                offsets[last.path] = offset
                known[last.path] = (last.size_bytes, last.mtime_ns)
                if task.retry and isinstance(last.outcome, ImageError):
                    del known[last.path]
            if task.sorter is not None:
                settle(last, journal, task.sorter)
            if known:
                shown = show_path(str(journal.path))
                print(f"{len(known):,} pictures were done before ({shown}).", file=sys.stderr)
        with _open_lines(task, last, folders) as add:

            def take(path: str, outcome: Prediction | ImageError) -> None:
                tally.add(outcome, layout.doubts)
                add(layout.make_line(path, outcome))

            def say(problems: Sequence[Problem]) -> None:
                print_problems([problem for problem in problems if problem not in said])
                said.update(problems)

            found = watch_folders(folders, known, follow_links=follow_links, seconds=seconds, on_problems=say)
            for paths, stamps in found:
                listing = make_listing(paths, stamps)
                absolute = [os.path.abspath(path) for path in paths]
                listing.offsets[:] = [offsets.get(path, -1) for path in absolute]
                predict_listing(task.classifier, listing, journal, task.sorter, take)
                offsets.update(zip(absolute, listing.offsets.tolist(), strict=True))
        if journal is not None:
            journal.complete(len(offsets))
    except KeyboardInterrupt:
        raise stop(f"{tally.num_pictures:,} pictures were new.") from None
    return tally


@contextmanager
def _open_lines(task: Task, last: Entry | None, folders: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """A function that adds a line to the output or the screen; a kill may have taken the line of the `last` entry."""
    header, journal = task.layout.make_header(), task.journal
    if task.output is None or journal is None:
        if header is not None:
            _print_line(header)
        yield _print_line
        return
    line = None
    if last is not None and not journal.is_complete and (listed := _find_listed(last.path, folders)) is not None:
        line = task.layout.make_line(listed, last.outcome)
    with open_appended(task.output, header, line, is_new=journal.is_new) as add:
        yield add


def _find_listed(path: str, folders: Sequence[str]) -> str | None:
    """An absolute path as it is listed when one of the folders is walked."""
    for folder in folders:
        root = os.path.join(os.path.abspath(folder), "")
        if path.startswith(root):
            return os.path.join(folder, path.removeprefix(root))
    return None


def print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print(f"{show_path(problem.path or '')}: {problem.code}: {problem.message}", file=sys.stderr)
