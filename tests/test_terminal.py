"""What the commands print, as text."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from rich.console import Console
from tiny_models import make_tiny_metadata

import headstart
from headstart.backbones.catalog import CATALOG
from headstart.backbones.listing import list_backbones
from headstart.data_check import DataReport
from headstart.dataset import ImageDataset, ImageRecord, Problem
from headstart.errors import HeadstartError
from headstart.graph import PooledLayer
from headstart.heads.linear import LinearHead
from headstart.heads.selection import CandidateScore, Selection
from headstart.terminal import (
    make_console,
    print_parts,
    render_backbones,
    render_metadata,
    render_problems,
    render_report,
    render_selection,
    track_progress,
)


def show(parts: Iterable[Any], width: int = 80, **options: Any) -> str:
    stream = io.StringIO()
    print_parts(Console(file=stream, width=width, highlight=False, **options), parts)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def make_report(num_classes: int = 2, **changes: Any) -> DataReport:
    classes = tuple(f"class{number:02}" for number in range(num_classes))
    records = [ImageRecord(f"d/{name}/{i}.png", k, "train") for k, name in enumerate(classes) for i in range(3)]
    records += [ImageRecord(f"d/{classes[0]}/9.png", 0, "test")]
    dataset = ImageDataset("d", classes, tuple(records), (), len(records), {})
    return DataReport(dataclasses.replace(dataset, **changes))


def test_a_report() -> None:
    problems = (
        Problem("small", "30 x 30 pixels, the short side is under 32", "d/class00/1.png", "note"),
        Problem("truncated", "the file ends early", "d/class01/[red]x\n.png"),
        Problem("few-pictures", "2 classes have fewer than 20 training pictures.", None, "warning"),
    )
    report = make_report(problems=problems, num_found=8, ignored={"other files": 2, "Thumbs.db": 1})
    assert show(render_report(report)) == (
        "class    train  test\n"
        "class00      3     1\n"
        "class01      3     0\n"
        "\n"
        "8 pictures found = 7 used + 1 left out, 2 classes\n"
        "ignored, not counted: 1 Thumbs.db, 2 other files\n"
        "left out: truncated\n"
        "  d/class01/[red]x\\n.png: the file ends early\n"
        "warning: few-pictures\n"
        "  2 classes have fewer than 20 training pictures.\n"
        "note: small\n"
        "  d/class00/1.png: 30 x 30 pixels, the short side is under 32"
    )


def test_pictures_without_a_split_and_many_classes() -> None:
    report = make_report()
    records = tuple(dataclasses.replace(record, split=None) for record in report.dataset.records)
    assert show(render_report(make_report(records=records))).splitlines()[:2] == [
        "class    pictures",
        "class00         4",
    ]
    assert show(render_report(make_report(51))) == "154 pictures found = 154 used + 0 left out, 51 classes"
    assert "class49" in show(render_report(make_report(50)))


def test_problems_are_shortened_and_nothing_is_markup() -> None:
    problems = [Problem("empty", "the file is empty", f"d/[bold]{number}.png") for number in range(5)]
    assert show(render_problems(problems)) == (
        "left out: empty, 5 times\n"
        "  d/[bold]0.png: the file is empty\n"
        "  d/[bold]1.png: the file is empty\n"
        "  d/[bold]2.png: the file is empty\n"
        "  and 2 more (headstart check --all lists them)"
    )
    assert show(render_problems(problems, shown=9)).splitlines()[-1] == "  d/[bold]4.png: the file is empty"
    assert show(render_problems([])) == ""


def test_paths_are_not_broken_over_lines() -> None:
    path = "/".join(["folder"] * 30) + "/picture.png"
    assert f"  {path}: the file is empty" in show(render_problems([Problem("empty", "the file is empty", path)]))


def make_selection(chosen: tuple[PooledLayer, ...], *others: tuple[PooledLayer, ...], rejected: int = 0) -> Selection:
    def score(layers: tuple[PooledLayer, ...], is_finalist: bool = True) -> CandidateScore:
        return CandidateScore(layers, 100 * sum(p.grid**2 for p in layers), 0.1, 0.9, 0.25, 40, is_finalist)

    head = LinearHead(chosen, np.zeros((1, 2), np.float32), np.zeros(2, np.float32), 0.1, 1.0)
    scores = [score(layers) for layers in (*others, chosen)]
    scores += [score((PooledLayer(f"low{number}", 1),), False) for number in range(rejected)]
    return Selection(head, tuple(scores), np.zeros((4, 2), np.float32), (PooledLayer("head", 1),), 5)


def test_a_selection() -> None:
    top, middle = (PooledLayer("head", 1),), (PooledLayer("stage5", 4), PooledLayer("head", 1))
    assert show(render_selection(make_selection(middle, top, rejected=17))) == (
        "               layers and pooling     features  cross-validated  log loss\n"
        "chosen         stage5 4x4 + head 1x1     1,700           90.0 %     0.250\n"
        "the top layer  head 1x1                    100           90.0 %     0.250\n"
        "Chosen from 19 by 5-fold cross-validation; a simpler one stays unless it is worse by more than one standard "
        "error."
    )
    assert show(render_selection(make_selection(top))) == (
        "                       layers and pooling  features  cross-validated  log loss\n"
        "chosen: the top layer  head 1x1                 100           90.0 %     0.250"
    )


def test_metadata_of_a_classifier(trained: Trained) -> None:
    metadata = headstart.load(trained.file).metadata
    shown = show(render_metadata(metadata, 1234567, "ab" * 32), width=120).splitlines()
    names = [line.split("  ")[0] for line in shown if not line.startswith(" ")]
    assert names == [
        "classes",
        "backbone",
        "weights",
        "layers",
        "head",
        "input",
        "pictures",
        "accuracy",
        "balanced",
        "macro F1",
        "log loss",
        "ECE",
        "settings",
        "data",
        "file",
    ]
    assert shown[0] == "classes   3: checks, circles, stripes"
    assert f"SHA-256 {CATALOG['efficientnet-lite0'].sha256}" in shown[2]
    num_train, num_test = metadata.data["num_train"], metadata.data["num_test"]
    assert f"pictures  {num_train} train, {num_test} test" in shown
    assert any("1,234,567 bytes" in line for line in shown)


def test_metadata_without_evaluation_and_of_a_foreign_file() -> None:
    metadata = dataclasses.replace(make_tiny_metadata(("cat", "dog")), evaluation=None)
    assert "accuracy  not measured: no picture was put aside" in show(render_metadata(metadata, 1, "")).splitlines()
    foreign = dataclasses.replace(metadata, format_version=0, labels=("0", "1"))
    assert show(render_metadata(foreign, 1, "")) == (
        "classes  2: 0, 1\nA foreign ONNX file: it says nothing else about itself."
    )


def test_labels_are_escaped() -> None:
    metadata = dataclasses.replace(make_tiny_metadata(("[red]cat", "do\u202eg")), evaluation=None)
    assert "classes   2: [red]cat, do\\u202eg" in show(render_metadata(metadata, 1, "")).splitlines()


def test_backbones() -> None:
    lite, *_ = list_backbones("efficientnet-lite0")
    unknown = dataclasses.replace(lite, name="timm:x[y]", num_params=None, num_features=None, weights="fetched")
    shown = show(render_backbones([lite, unknown], {}), width=120).splitlines()
    assert shown[0].split() == ["name", "parameters", "features", "input", "licence", "weights"]
    assert shown[1].split() == ["efficientnet-lite0", "3.4", "M", "1280", "224", "px", "Apache-2.0", "here"]
    assert shown[2].split() == ["timm:x[y]", "224", "px", "Apache-2.0", "fetched"]
    assert len(shown) == 3


def test_backbones_say_what_int8_is_and_how_to_install() -> None:
    rows = list_backbones("efficientnet-lite0*")
    rows.append(dataclasses.replace(rows[0], name="vgg16", weights="pip install 'headstart[torch]'"))
    shown = show(render_backbones(rows, {}), width=120).splitlines()
    assert shown[-2].endswith("pip install 'headstart[torch]'")
    assert shown[-1].startswith("int8: the same weights in 8 bits")


def test_backbones_with_what_was_measured() -> None:
    rows = list_backbones("efficientnet-lite*")
    speeds = {rows[0].name: 123.45, rows[1].name: HeadstartError("It is not here.")}
    shown = show(render_backbones(rows[:2], speeds), width=120).splitlines()
    assert shown[0].split()[4] == "pictures/s"
    assert shown[1].split()[6] == "123.5"
    assert shown[2].split()[6] == "-"
    assert shown[-1] == "efficientnet-lite1: It is not here."


# Progress


def test_progress_is_silent_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with track_progress(Console(file=stream)) as report:
        report("reading files", 1, 2)
        report("reading files", 2, 2)
    assert stream.getvalue() == ""


def test_progress_on_a_terminal() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, legacy_windows=False, _environ={"TERM": "xterm"})
    with track_progress(console) as report:
        report("extracting features", 0, 0)
        report("extracting features", 40, 80)
        report("fitting the head", 0, 0)
    drawn = stream.getvalue()
    assert "fitting the head" in drawn
    assert drawn.endswith("\x1b[2K"), "the bars are wiped away at the end"


def test_consoles_write_where_they_should(capsys: pytest.CaptureFixture[str]) -> None:
    make_console().print("[1] to the screen", markup=False)
    make_console(stderr=True).print("to the side")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("[1] to the screen\n", "to the side\n")
