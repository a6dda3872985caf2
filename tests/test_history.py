"""The course of a training: a CSV that any reader understands, and pictures whose lines are the numbers."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_pictures import run_python
from PIL import Image

from headstart.errors import DataError
from headstart.finetuning.history import (
    EpochRow,
    describe_curves,
    describe_history,
    draw_curves,
    draw_history,
    plot_curves,
    plot_history,
    read_history,
    summarize_curves,
    write_history,
)
from headstart.plot_axes import make_axes
from headstart.stats import wilson_interval

HEADER = "epoch,step,train_loss,train_accuracy,validation_loss,validation_accuracy,learning_rate,seconds"


def make_rows(accuracies: list[float], num_steps: int = 7) -> list[EpochRow]:
    return [
        EpochRow(
            epoch=epoch,
            step=epoch * num_steps,
            train_loss=0.8 / (epoch + 1) if epoch else None,
            train_accuracy=accuracy - 1 / 64 if epoch else None,
            validation_loss=1 / (epoch + 1),
            validation_accuracy=accuracy,
            learning_rate=0.1 / 3,
            seconds=1.5,
        )
        for epoch, accuracy in enumerate(accuracies)
    ]


# The CSV


def test_csv_module_reads_every_number_to_the_last_digit(tmp_path: Path) -> None:
    rows = make_rows([0.1, 1 / 3, 2 / 3])
    path = write_history(tmp_path, rows)
    assert path == tmp_path / "history.csv"
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [int(line["epoch"]) for line in found] == [0, 1, 2]
    assert [int(line["step"]) for line in found] == [0, 7, 14]
    assert found[0]["train_loss"] == found[0]["train_accuracy"] == ""
    assert [float(line["validation_accuracy"]) for line in found] == [0.1, 1 / 3, 2 / 3]
    assert float(found[2]["train_loss"]) == 0.8 / 3
    assert float(found[1]["learning_rate"]) == 0.1 / 3
    assert read_history(path) == rows


def test_numpy_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    row = EpochRow(0, 0, None, None, np.float64(0.25), np.float64(0.5), np.float64(0.001), 1.0)  # type: ignore[arg-type]
    assert write_history(tmp_path, [row]).read_text().splitlines()[1] == "0,0,,,0.25,0.5,0.001,1.0"


def test_lines_once_written_stay_as_they_are(tmp_path: Path) -> None:
    rows = make_rows([0.1, 0.3, 0.7, 0.9])
    before = b""
    for count in range(len(rows) + 1):
        now = write_history(tmp_path, rows[:count]).read_bytes()
        assert now.startswith(before)
        assert now.count(b"\n") == count + 1
        assert b"\r" not in now
        before = now
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_losses_that_diverged_are_kept(tmp_path: Path) -> None:
    row = EpochRow(0, 0, None, None, math.inf, 0.5, 0.001, 1.0)
    assert read_history(write_history(tmp_path, [row])) == [row]


@pytest.mark.parametrize("epochs", [(1, 2), (0, 2), (0, 1, 1), (1, 0)])
def test_gaps_and_doubles_are_refused(tmp_path: Path, epochs: tuple[int, ...]) -> None:
    rows = [EpochRow(epoch, 0, None, None, 1.0, 0.5, 0.1, 1.0) for epoch in epochs]
    with pytest.raises(DataError, match=f"epochs {', '.join(map(str, epochs))}. Expected each once, from 0 on."):
        write_history(tmp_path, rows)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path} is not a training's history. Expected the header " + HEADER + "."),
        (b"epoch,loss\n0,1\n", "{path} is not a training's history. Expected the header " + HEADER + "."),
        (b"\x89PNG\xff\xfe", "{path} is not a training's history. Expected the header " + HEADER + "."),
        (HEADER.encode() + b"\n1,0,,,1.0,0.5,0.1,1.0\n", "{path} has the epochs 1. Expected each once, from 0 on."),
        (
            HEADER.encode()
            + b"\n0,0,,,1.0,0.5,0.1,1.0\n1,7\n2,x,,,1,0.5,1,1\n3,9,,,1,nan,1,1\n4,9,,,1,1.5,1,1\n5,9,,,,0.5,1,1\x1b\n",
            "{path} has 5 bad rows:\n"
            "  line 3: 2 fields, expected 8\n"
            "  line 4: step is 'x', expected a number\n"
            "  line 5: validation_accuracy is 'nan', expected 0 to 1\n"
            "  line 6: validation_accuracy is '1.5', expected 0 to 1\n"
            "  line 7: validation_loss is '', expected a number",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_history(path)
    assert str(caught.value) == message.format(path=path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"history\.csv cannot be read: no such file or directory\."):
        read_history(tmp_path / "history.csv")


# The course of one training


def get_points(x: Any, y: Any) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(x, y, strict=True) if not math.isnan(y)]


@pytest.fixture
def figures() -> None:
    pytest.importorskip("matplotlib")


@pytest.mark.parametrize("num_epochs", [0, 1, 6, 60])
def test_lines_are_the_numbers(num_epochs: int) -> None:
    rows = make_rows([(epoch + 1) / (epoch + 2) for epoch in range(num_epochs + 1)])
    plots = describe_history(rows, best_epoch=num_epochs)
    for plot, what in zip(plots, ("loss", "accuracy"), strict=True):
        validation, train, best = plot.lines
        assert get_points(train.x, train.y) == [(row.epoch, getattr(row, f"train_{what}")) for row in rows[1:]]
        assert get_points(validation.x, validation.y) == [(r.epoch, getattr(r, f"validation_{what}")) for r in rows]
        assert get_points(best.x, best.y) == [(num_epochs, getattr(rows[-1], f"validation_{what}"))]
        assert plot.y_label == what
        assert plot.y_is_percent == (what == "accuracy")
        low, high = (axis := make_axes(plot, 400, 300)[0]).low, axis.high
        assert low < 0
        assert high > num_epochs
        assert 0 in axis.ticks
        assert all(tick == round(tick) for tick in axis.ticks)
        assert not validation.low  # without the number of pictures there is no interval


def test_figure_shows_the_plots(figures: None) -> None:
    rows = make_rows([0.5, 0.75, 0.95])
    figure = draw_history(rows, title="a $training", best_epoch=2, num_validation=20)
    assert figure.get_suptitle() == "a $training"
    for axes, plot in zip(figure.axes, describe_history(rows, best_epoch=2, num_validation=20), strict=True):
        assert [get_points(*line.get_xydata().T) for line in axes.lines] == [
            get_points(line.x, line.y) for line in plot.lines
        ]
        assert axes.get_ylabel() == plot.y_label
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == [
        "validation",
        "95 % interval (20 pictures)",
        "training",
        "best: epoch 2, 95.0 %",
    ]


def test_band_is_the_wilson_interval() -> None:
    loss, accuracy = describe_history(make_rows([0.5, 0.75, 0.95]), num_validation=20)
    assert not loss.lines[0].low
    line = accuracy.lines[0]
    assert list(zip(line.low, line.high, strict=True)) == [wilson_interval(hits, 20) for hits in (10, 15, 19)]
    assert line.band_name == "95 % interval (20 pictures)"


def test_legend_says_which_epoch_is_the_best() -> None:
    loss, accuracy = describe_history(make_rows([0.5, 0.9, 0.8]), best_epoch=1)
    assert [line.name for line in loss.lines] == ["validation", "training", "best: epoch 1, 0.500"]
    assert [line.name for line in accuracy.lines] == ["validation", "training", "best: epoch 1, 90.0 %"]


def test_history_is_read_and_described_without_torch_and_matplotlib(tmp_path: Path) -> None:
    write_history(tmp_path, make_rows([0.5, 0.9]))
    code = """
import sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "matplotlib"):
            raise ModuleNotFoundError(f"{name} is blocked by the test")

sys.meta_path.insert(0, Blocker())
from headstart.errors import MissingDependencyError
from headstart.finetuning.history import describe_history, plot_history, read_history
rows = read_history(Path("history.csv"))
print(describe_history(rows)[1].lines[0].y)
try:
    plot_history(rows, Path("history.png"), title="")
except MissingDependencyError as error:
    print(error)
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "(0.5, 0.9)",
        "Drawing PNG files and figures needs matplotlib, which is not installed. Run: pip install 'headstart[plots]'",
    ]
    assert not (tmp_path / "history.png").exists()


def test_a_history_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The history has no row yet"):
        plot_history([], tmp_path / "history.png", title="")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("best", [-1, 2])
def test_a_best_epoch_outside_is_refused(best: int) -> None:
    with pytest.raises(DataError, match=f"The best epoch is {best}, but the history has the epochs 0 to 1."):
        describe_history(make_rows([0.5, 0.6]), best_epoch=best)


def test_png_is_the_same_for_the_same_rows(figures: None, tmp_path: Path) -> None:
    rows = make_rows([0.5, 0.7, 0.8])
    for name in ("one", "two"):
        plot_history(rows, tmp_path / name, title="a training", best_epoch=2, num_validation=50)
        plot_curves({"a": rows}, tmp_path / f"curves {name}", title="a training", num_validation=50)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "curves one").read_bytes() == (tmp_path / "curves two").read_bytes()
    with Image.open(tmp_path / "one") as image:
        assert (image.format, image.size) == ("PNG", (1350, 630))
        image.load()
    plot_history(rows, tmp_path / "two", title="a training", best_epoch=1, num_validation=50)
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("title", ["$\\frac$", "[bold]", "猫と犬", "a\x1b[31mb\n", "x" * 500])
def test_any_title_and_name_can_be_drawn(figures: None, tmp_path: Path, title: str) -> None:
    rows = make_rows([0.5, 0.7])
    plot_history(rows, tmp_path / "history.png", title=title)
    plot_curves({title: rows, f"_{title}": rows}, tmp_path / "curves.png", title=title, num_validation=50)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width == 1350


def test_diverged_losses_can_be_drawn(figures: None, tmp_path: Path) -> None:
    rows = [EpochRow(epoch, 0, math.nan, 0.5, math.inf, 0.5, 0.1, 1.0) for epoch in range(3)]
    plot_history(rows, tmp_path / "history.png", title="", best_epoch=0, num_validation=10)
    assert (tmp_path / "history.png").stat().st_size > 0


# Several trainings

CURVES = {
    "from scratch": make_rows([0.5, 0.52, 0.56, 0.62, 0.7]),
    "frozen network, new head": make_rows([0.48, 0.8, 0.88, 0.9]),
    "fine-tuned": make_rows([0.9, 0.92, 0.95, 0.96, 0.97, 0.96]),
}


def test_three_numbers_of_each_training() -> None:
    scratch, frozen, tuned = summarize_curves(CURVES)
    assert (scratch.name, scratch.start, scratch.asymptote, scratch.num_first) == ("from scratch", 0.52, 0.7, 3)
    assert scratch.slope == pytest.approx((0.62 - 0.5) / 3)
    assert (frozen.start, frozen.asymptote) == (0.8, 0.9)
    assert frozen.slope == pytest.approx((0.9 - 0.48) / 3)
    assert (tuned.start, tuned.asymptote) == (0.92, 0.96)
    assert tuned.slope == pytest.approx(0.02)


def test_slopes_are_taken_over_equally_many_epochs() -> None:
    long, short = summarize_curves({"long": make_rows([0.1, 0.4, 0.5, 0.55]), "short": make_rows([0.1, 0.2, 0.4])})
    assert (long.num_first, short.num_first) == (2, 2)
    assert long.slope == pytest.approx(0.2)
    assert short.slope == pytest.approx(0.15)


def test_a_curve_of_one_row_has_no_slope_and_leaves_the_others_theirs() -> None:
    alone, other = summarize_curves({"alone": make_rows([0.9]), "other": make_rows([0.1, 0.2, 0.3, 0.4])})
    assert (alone.start, alone.slope, alone.asymptote) == (0.9, None, 0.9)
    assert (other.num_first, other.slope) == (3, pytest.approx(0.1))


def test_curves_and_bands_are_the_numbers() -> None:
    plot = describe_curves(CURVES, title="what transfer bought", num_validation=50)
    assert [line.name for line in plot.lines] == list(CURVES)
    for line, rows in zip(plot.lines, CURVES.values(), strict=True):
        assert get_points(line.x, line.y) == [(row.epoch, row.validation_accuracy) for row in rows]
        ends = [wilson_interval(round(row.validation_accuracy * 50), 50) for row in rows]
        assert list(zip(line.low, line.high, strict=True)) == ends


def test_curves_can_be_told_apart(figures: None) -> None:
    axes, _ = draw_curves(CURVES, title="what transfer bought", num_validation=50).axes
    assert [get_points(*line.get_xydata().T) for line in axes.lines] == [
        [(row.epoch, row.validation_accuracy) for row in rows] for rows in CURVES.values()
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(CURVES)
    assert len({line.get_color() for line in axes.lines}) == 3
    assert len({line.get_marker() for line in axes.lines}) == 3


def test_table_below_the_curves(figures: None) -> None:
    _, below = draw_curves(CURVES, title="", num_validation=50).axes
    [table] = below.tables
    cells = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    lines = [[cells[row, column] for column in range(4)] for row in range(4)]
    assert lines == [
        [
            "",
            "start: after\nepoch 1",
            "slope: points an epoch\nup to epoch 3",
            "asymptote: after the\nlast epoch (95 % interval)",
        ],
        ["from scratch", "52.0 %", "+4.0", "70.0 % (56.2 to 80.9)"],
        ["frozen network, new head", "80.0 %", "+14.0", "90.0 % (78.6 to 95.7)"],
        ["fine-tuned", "92.0 %", "+2.0", "96.0 % (86.5 to 98.9)"],
    ]


def test_table_and_axis_do_not_overlap(figures: None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_curves(CURVES, title="", num_validation=50)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    axes, below = figure.axes
    [table] = below.tables
    assert table.get_window_extent(renderer).y1 < axes.xaxis.label.get_window_extent(renderer).y0
    for cell in table.get_celld().values():
        inner, outer = cell.get_text().get_window_extent(renderer), cell.get_window_extent(renderer)
        assert inner.height <= outer.height
        assert inner.width <= outer.width


@pytest.mark.parametrize("number", [0, 6])
def test_too_many_curves_and_none_are_refused(number: int) -> None:
    with pytest.raises(DataError, match=f"{number} curves cannot be drawn in one picture. Expected 1 to 5."):
        describe_curves({str(i): make_rows([0.5]) for i in range(number)}, title="", num_validation=10)


def test_a_curve_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="has no row yet"):
        describe_curves({"one": make_rows([0.5]), "two": []}, title="", num_validation=10)
