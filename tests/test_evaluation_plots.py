"""Reliability and confidence counted again picture by picture, and an evaluation in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from headstart.evaluation import Evaluation
from headstart.evaluation_plots import describe_confidence, describe_reliability
from headstart.plots import Plot
from headstart.stats import format_percent, wilson_interval


def make_evaluation(n: int = 300, k: int = 4, seed: int = 0, names: tuple[str, ...] | None = None) -> Evaluation:
    """Calibrated: the label is drawn from the probabilities."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(k, 0.3), n)
    labels = (rng.random(n)[:, None] > probs.cumsum(axis=1)).sum(axis=1).clip(max=k - 1)
    return Evaluation(
        names or tuple(f"class{i}" for i in range(k)), ("p",) * n, ("",) * n, labels, probs.astype(np.float32)
    )


def test_reliability_counts_every_picture() -> None:
    evaluation = make_evaluation()
    bars, points = describe_reliability(evaluation).lines
    confidence = evaluation.probs.max(axis=1).astype(float)
    assert sum(bars.y) == pytest.approx(1)
    found = 0
    for m, (x, share) in enumerate(zip(bars.x, bars.y, strict=True)):
        members = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        assert x == pytest.approx((m + 0.5) / 15)
        assert share == pytest.approx(members.mean())
        if not members.any():
            continue
        hits, n = int(evaluation.correct[members].sum()), int(members.sum())
        assert points.x[found] == pytest.approx(confidence[members].mean())
        assert points.y[found] == pytest.approx(hits / n)
        assert (points.low[found], points.high[found]) == wilson_interval(hits, n)
        assert points.texts[found] == f"{n:,}"
        found += 1
    assert found == len(points.x) > 5


def read_title(plot: Plot) -> list[float]:
    return [
        float(part)
        for part in plot.title.replace("(", "").replace(")", "").replace(",", "").split()
        if part[0].isdigit()
    ]


def test_title_states_the_figures_or_nearly_the_same() -> None:
    for seed in range(3):
        evaluation = make_evaluation(400, seed=seed)
        figures = evaluation.compute_figures()
        ece, chance = figures["ece"], figures["ece_if_calibrated"]["high"]
        stated = [float(format_percent(value)) for value in (ece["value"], ece["low"], ece["high"], chance)]
        assert read_title(describe_reliability(evaluation, figures)) == stated
        quick = read_title(describe_reliability(evaluation))
        assert quick[0] == stated[0]
        assert quick == pytest.approx(stated, abs=1.0)


def test_confidence_keeps_the_surest() -> None:
    evaluation = make_evaluation(500)
    [line] = describe_confidence(evaluation).lines
    confidence = evaluation.probs.max(axis=1)
    assert line.x[0] == pytest.approx(0.1)
    assert line.x[-1] == 1
    assert line.y[-1] == pytest.approx(evaluation.correct.mean())
    for share, accuracy, low, high in zip(line.x, line.y, line.low, line.high, strict=True):
        n = round(share * 500)
        kept = confidence >= np.sort(confidence)[-n]
        assert kept.sum() == n
        hits = int(evaluation.correct[kept].sum())
        assert accuracy == pytest.approx(hits / n)
        assert (low, high) == wilson_interval(hits, n)


def test_equally_sure_pictures_are_kept_together_whatever_their_order() -> None:
    probs = np.array([[0.9, 0.1]] * 50 + [[0.6, 0.4]] * 50, np.float32)
    labels = np.array([0] * 48 + [1] * 2 + [0] * 25 + [1] * 25)
    order = np.random.default_rng(0).permutation(100)
    for rows in (np.arange(100), order):
        evaluation = Evaluation(("a", "b"), ("p",) * 100, ("",) * 100, labels[rows], probs[rows])
        [line] = describe_confidence(evaluation).lines
        assert line.x == (0.5, 1.0)
        assert line.y == (0.96, 0.73)


@pytest.mark.parametrize("probs", [[[1.0, 0.0]], [[1.0, 0.0]] * 40, [[0.5, 0.5]] * 3])
def test_few_and_equal_pictures(probs: list[list[float]]) -> None:
    n = len(probs)
    evaluation = Evaluation(("a", "b"), ("p",) * n, ("",) * n, np.zeros(n, np.int64), np.array(probs, np.float32))
    assert describe_confidence(evaluation).lines[0].x == (1.0,)
    assert sum(map(bool, describe_reliability(evaluation).lines[0].y)) == 1
    assert "Accuracy 100.0 %" in evaluation._repr_html_()


class Reader(HTMLParser):
    """Tags, attributes and the cells of every table."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data


def read_html(evaluation: Evaluation) -> Reader:
    reader = Reader()
    reader.feed(evaluation._repr_html_())
    return reader


def test_notebook_shows_matrix_and_recalls() -> None:
    evaluation = make_evaluation()
    figures = evaluation.compute_figures()
    reader = read_html(evaluation)
    assert reader.rows[0] == ["labelled \\ predicted", *evaluation.classes, "recall"]
    for row, name, counts, per_class in zip(
        reader.rows[1:], evaluation.classes, figures["confusion_matrix"], figures["per_class"], strict=True
    ):
        recall = [format_percent(per_class["recall"][key]) for key in ("value", "low", "high")]
        assert row == [name, *map(str, counts), f"{recall[0]} % ({recall[1]} to {recall[2]})"]
    accuracy = [format_percent(figures["accuracy"][key]) for key in ("value", "low", "high")]
    assert f"Accuracy {accuracy[0]} % ({accuracy[1]} to {accuracy[2]})" in evaluation._repr_html_()
    assert "svg" in reader.tags


def test_many_classes_show_the_worst() -> None:
    evaluation = make_evaluation(3000, 50, seed=1)
    rows = read_html(evaluation).rows
    assert len(rows) == 2 * 21
    pairs = evaluation.most_confused(20)
    assert [row[:2] for row in rows[1:21]] == [
        [evaluation.classes[pair.true], evaluation.classes[pair.predicted]] for pair in pairs
    ]
    assert [int(row[2].split(" of ")[0]) for row in rows[1:21]] == [pair.count for pair in pairs]
    recalls = sorted(each["recall"]["value"] for each in evaluation.compute_figures()["per_class"])
    assert [row[1].split(" %")[0] for row in rows[22:]] == [format_percent(value) for value in recalls[:20]]


HOSTILE = ("</td></table><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x00\ud800\u202e", "c" * 500)


def test_names_stay_text() -> None:
    for evaluation in (
        make_evaluation(names=HOSTILE),
        make_evaluation(800, 40, names=(*HOSTILE, *(f"<b>{i}" for i in range(36)))),
    ):
        reader = read_html(evaluation)
        expected = {"div", "p", "b", "br", "table", "thead", "tbody", "tr", "th", "td"}
        assert set(reader.tags) <= expected | {"svg", "title", "desc", "g", "path", "rect", "text"}
        assert reader.tags.count("b") == 1
        assert not [name for name, _ in reader.attributes if name.startswith("on") or name in ("src", "href")]
        evaluation._repr_html_().encode()


def test_what_a_notebook_holds_does_not_grow_with_the_rows() -> None:
    assert len(make_evaluation(10_000, 200)._repr_html_()) < 100_000


def test_figures_for_notebooks() -> None:
    pytest.importorskip("matplotlib")
    evaluation = make_evaluation()
    [axes] = evaluation.plot_confidence().axes
    [line] = describe_confidence(evaluation).lines
    assert axes.lines[0].get_xydata().tolist() == [list(place) for place in zip(line.x, line.y, strict=True)]
    [axes] = evaluation.plot_reliability().axes
    [points] = [each for each in axes.lines if each.get_gid() == "line 1"]
    shown = describe_reliability(evaluation).lines[1]
    assert points.get_xydata().tolist() == [list(place) for place in zip(shown.x, shown.y, strict=True)]
