"""The command that takes decisions on labels, and where it finds the labels to decide on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart._files import show_path
from headstart.cli_options import ModelArgument, name_evaluation

SUSPECTS = "suspects.csv"


def find_suspects_file(model: Path) -> Path:
    """Where suspects are listed: in the folder of the evaluation, or beside the classifier where there is none."""
    folder = name_evaluation(model)
    return folder / SUSPECTS if folder.is_dir() else model.with_suffix(f".{SUSPECTS}")


def review(
    model: ModelArgument,
    suspects: Annotated[
        Path | None, typer.Option(help="Labels to decide on. Default: those that train and report list.")
    ] = None,
    decisions: Annotated[
        Path | None, typer.Option("--import", help="Take over decisions.csv, as the report page saves it.")
    ] = None,
    take_back: Annotated[bool, typer.Option("--undo", help="Take back the last decision.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List the decisions that hold.")] = False,
) -> None:
    """Decide on labels that look wrong. No picture is touched.

    Decisions are kept in MODEL.review.jsonl and count at the next training that writes MODEL.
    """
    from headstart.insight.suspects import read_suspects
    from headstart.prediction import load
    from headstart.review import append_decisions, find_journal, import_decisions, read_decisions, undo
    from headstart.review_terminal import review_suspects
    from headstart.terminal import make_console, print_parts, render_problems

    journal = find_journal(model)
    classes = load(model).classes
    known = read_decisions(journal)
    console = make_console()
    print_parts(console, render_problems(known.problems))
    if list_all:
        for each in known.decisions:
            new = f" {show_path(each.new_label)}" if each.new_label else ""
            print(f"{each.time}  {each.decision}{new}  {show_path(each.path)} (labelled {show_path(each.label)})")
        return
    if take_back:
        taken = undo(journal)
        print(f"Taken back: {taken.decision}, {show_path(taken.path)}")
        return
    if decisions is not None:
        imported = import_decisions(decisions, classes)
        append_decisions(journal, imported)
        print(f"{len(imported):,} decisions. They count at the next training that writes {show_path(model.name)}.")
        return
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # a class may be named by bytes that are no text
    listed = read_suspects(suspects or find_suspects_file(model), classes)
    counts = review_suspects(listed, classes, journal, iter(sys.stdin.readline, ""), console)
    said = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no decision"
    print(f"{said}. Decisions are in {show_path(str(journal))}, and count at the next training.")
