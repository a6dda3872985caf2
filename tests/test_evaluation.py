"""Rows in, figures and files out; the figures against metrics on gathered rows, the files by reading them back."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import evaluation as module
from headstart import metrics
from headstart.csv_text import escape_text, quote_field, unescape_text
from headstart.errors import DataError, HeadstartError, MissingDependencyError
from headstart.evaluation import Confusion, Evaluation
from headstart.evaluation_files import _format_json, load_evaluation, save_evaluation
from headstart.stats import wilson_interval

AWKWARD = (
    "plain.jpg", "with,comma.jpg", 'with "quotes".jpg', "two\nlines.jpg", "a\rreturn.jpg", "not-utf8-\udce9\udcff.jpg",
    r"C:\new\xe9\ud800.jpg", "\\\udce9x5c", " spaces ", "=1+1", "", "แมว/犬.jpg", "\ud800lone.jpg", "#", "-", '"', "\t",
)  # fmt: skip


def make_evaluation(n: int = 200, k: int = 4, seed: int = 0, classes: tuple[str, ...] | None = None) -> Evaluation:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(k, 0.3), n)
    labels = np.where(rng.random(n) < 0.7, probs.argmax(axis=1), rng.integers(0, k, n))
    names = classes or tuple(f"class{i}" for i in range(k))
    paths = tuple(f"photos/{i}.jpg" for i in range(n))
    return Evaluation(names, paths, tuple(f"{i:064x}" for i in range(n)), labels, probs.astype(np.float32))


def make_awkward() -> Evaluation:
    n = len(AWKWARD)
    classes = ("a,b", "line\nbreak", "byte\udce9", "[red]")
    whole = make_evaluation(n, 4, classes=classes)
    return Evaluation(classes, AWKWARD, whole.sha256, whole.labels, whole.probs)


def test_rows_are_copied_checked_and_read_only() -> None:
    labels, probs = np.array([0, 1]), np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)
    rows = Evaluation(("cat", "dog"), ["a", "b"], ["", ""], labels, probs)  # type: ignore[arg-type]
    labels[0] = 1
    probs[0] = 0.5
    assert rows.labels.tolist() == [0, 1]
    assert rows.probs[0, 0] == np.float32(0.9)
    assert Evaluation(("a", "b"), ("",), ("",), np.array([0]), np.array([[0.9, 0.1]])).probs.dtype == np.float32
    assert rows.paths == ("a", "b")
    assert rows.predicted.tolist() == [0, 0]  # the tie goes to the lower class
    assert rows.correct.tolist() == [True, False]
    with pytest.raises(ValueError, match="read-only"):
        rows.probs[0, 0] = 0
    assert rows == Evaluation(("cat", "dog"), ("a", "b"), ("", ""), np.array([0, 1]), rows.probs)
    assert rows != Evaluation(("cat", "dog"), ("a", "c"), ("", ""), np.array([0, 1]), rows.probs)
    assert rows != Evaluation(("cat", "dog"), ("a", "b"), ("", ""), np.array([1, 1]), rows.probs)


def test_everything_that_does_not_fit_is_listed() -> None:
    probs = np.full((2, 2), 0.5)
    with pytest.raises(DataError) as caught:
        Evaluation(("cat", "cat", "dog"), ("a",), ("", ""), np.array([0]), probs)
    message = str(caught.value)
    assert message.startswith("4 problems:")
    for part in (
        "There are 3 class names and probs has 2 columns.",
        "Class names occur twice: cat.",
        "paths has 1 entries and probs has 2 rows.",
        "labels has 1 entries and probs has 2 rows.",
    ):
        assert part in message
    with pytest.raises(DataError, match="There is 1 class"):
        Evaluation(("cat",), ("a",), ("",), np.array([0]), np.ones((1, 1)))
    with pytest.raises(DataError, match="labels holds 2 in row 0"):
        Evaluation(("cat", "dog"), ("a",), ("",), np.array([2]), np.array([[0.5, 0.5]]))


def test_mistakes_and_confusions_by_hand() -> None:
    probs = [[0.9, 0.1, 0], [0.8, 0.2, 0], [0, 0.3, 0.7], [0.1, 0, 0.9], [0, 0.9, 0.1], [0.9, 0, 0.1]]
    rows = Evaluation(tuple("abc"), tuple("123456"), ("",) * 6, np.array([0, 1, 1, 2, 2, 1]), np.array(probs))
    assert rows.mistakes().tolist() == [4, 5, 1, 2]  # 4 and 5 are equally sure and stay in order
    assert rows.most_confused() == [Confusion(1, 0, 2), Confusion(1, 2, 1), Confusion(2, 1, 1)]
    assert rows.most_confused(1) == [Confusion(1, 0, 2)]
    perfect = Evaluation(tuple("ab"), ("1",), ("",), np.array([0]), np.array([[1.0, 0.0]]))
    assert perfect.mistakes().tolist() == []
    assert perfect.most_confused() == []


def test_figures_are_those_of_the_rows() -> None:
    rows = make_evaluation()
    figures = rows.compute_figures()
    scores = metrics.compute_precision_recall_f1(rows.labels, rows.predicted, 4)
    right = int(rows.correct.sum())
    assert figures["n"] == 200
    assert figures["num_correct"] == right
    low, high = wilson_interval(right, 200)
    assert figures["accuracy"] == pytest.approx({"value": right / 200, "low": low, "high": high})
    assert figures["balanced_accuracy"]["value"] == pytest.approx(scores.macro_recall)
    assert figures["macro_f1"]["value"] == pytest.approx(scores.macro_f1)
    assert figures["log_loss"]["value"] == pytest.approx(metrics.compute_log_loss(rows.labels, rows.probs))
    assert figures["ece"]["value"] == pytest.approx(metrics.compute_ece(rows.labels, rows.probs))
    assert np.array_equal(figures["confusion_matrix"], metrics.compute_confusion_matrix(rows.labels, rows.predicted, 4))
    for k, row in enumerate(figures["per_class"]):
        n = int((rows.labels == k).sum())
        hits = int(((rows.labels == k) & rows.correct).sum())
        low, high = wilson_interval(hits, n)
        assert (row["class"], row["n"]) == (f"class{k}", n)
        assert row["recall"] == pytest.approx({"value": hits / n, "low": low, "high": high})
        assert row["precision"] == pytest.approx(scores.precision[k])
        assert row["f1"] == pytest.approx(scores.f1[k])
    for key in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"):
        assert figures[key]["low"] <= figures[key]["value"] <= figures[key]["high"]
    assert figures == rows.compute_figures()
    assert figures["macro_f1"] != rows.compute_figures(seed=1)["macro_f1"]


def test_intervals_hold_a_figure_that_resampling_biases() -> None:
    rows = make_evaluation(3000, 600)
    drawn = np.random.default_rng(0).integers(0, 3000, (200, 3000))
    figure = rows.compute_figures()["macro_f1"]
    # The percentile interval would end below the figure.
    assert np.quantile(module._make_statistics(rows)(drawn)[:, 0], 0.975) < figure["value"]
    assert figure["low"] <= figure["value"] < figure["high"]


@pytest.mark.parametrize(("n", "k"), [(1, 2), (12, 9), (300, 5)])
def test_resampled_statistics_are_the_metrics_of_the_drawn_rows(n: int, k: int) -> None:
    rows = make_evaluation(n, k, seed=3)
    drawn = np.random.default_rng(0).integers(0, n, (20, n))
    values = module._make_statistics(rows)(drawn)
    for chosen, ours in zip(drawn, values, strict=True):
        labels, probs = rows.labels[chosen], rows.probs[chosen]
        guess = probs.argmax(axis=1)
        expected = [
            metrics.compute_precision_recall_f1(labels, guess, k).macro_f1,
            metrics.compute_ece(labels, probs),
        ]
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


def test_figures_hold_no_nan_and_survive_json() -> None:
    # Class c has no picture and is never predicted; b is never predicted.
    rows = Evaluation(tuple("abc"), ("1", "2"), ("", ""), np.array([0, 1]), np.array([[1.0, 0, 0], [1.0, 0, 0]]))
    figures = rows.compute_figures()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["per_class"][1]["precision"] is None
    assert figures["per_class"][2]["recall"] == {"value": None, "low": None, "high": None}


def test_a_calibration_error_within_chance_may_be_zero() -> None:
    probs = np.tile(np.array([[0.8, 0.2]]), (50, 1))
    rows = Evaluation(("a", "b"), ("",) * 50, ("",) * 50, np.array([0] * 39 + [1] * 11), probs)
    figures = rows.compute_figures()
    assert figures["ece"]["value"] == pytest.approx(0.02, abs=1e-6)
    assert figures["ece"]["low"] == 0
    rng = np.random.default_rng(6)  # calibrated rows whose bootstrap interval alone would start at 0.015
    stated = rng.uniform(0.5, 1, 500)
    probs_500 = np.stack([stated, 1 - stated], axis=1)
    right = rng.random(500) < stated
    calibrated = Evaluation(("a", "b"), ("",) * 500, ("",) * 500, (~right).astype(int), probs_500).compute_figures()
    assert calibrated["ece"]["value"] < calibrated["ece_if_calibrated"]["high"]
    assert calibrated["ece"]["low"] == 0
    wrong = Evaluation(("a", "b"), ("",) * 50, ("",) * 50, np.array([0] * 10 + [1] * 40), probs)
    assert wrong.compute_figures()["ece"]["low"] > 0.4


def test_csv_is_one_line_per_picture() -> None:
    rows = Evaluation(
        ("cat", "dog"), ("a.jpg", "b,c.jpg"), ("f" * 64, ""), np.array([0, 0]), np.array([[0.1, 0.9], [1.0, 1e-9]])
    )
    assert rows.to_csv().decode() == (
        "path,sha256,true,predicted,probability_cat,probability_dog,correct\n"
        f"a.jpg,{'f' * 64},cat,dog,0.1,0.9,false\n"
        '"b,c.jpg",,cat,cat,1.0,1e-09,true\n'
    )
    assert rows.mistakes_to_csv().decode() == (
        f"path,sha256,true,predicted,probability,probability_true\na.jpg,{'f' * 64},cat,dog,0.9,0.1\n"
    )


def test_awkward_paths_survive(tmp_path: Path) -> None:
    rows = make_awkward()
    table = list(csv.reader(io.StringIO(rows.to_csv().decode("utf-8"), newline="")))
    assert len(table) == 1 + len(AWKWARD)
    assert {len(line) for line in table} == {9}
    shown = [line[0] for line in table[1:]]
    assert shown[AWKWARD.index("two\nlines.jpg")] == "two\nlines.jpg"
    assert shown[AWKWARD.index("a\rreturn.jpg")] == "a\rreturn.jpg"
    assert shown[AWKWARD.index("not-utf8-\udce9\udcff.jpg")] == r"not-utf8-\xe9\xff.jpg"
    assert shown[AWKWARD.index(r"C:\new\xe9\ud800.jpg")] == r"C:\new\x5cxe9\x5cud800.jpg"
    assert len(set(shown)) == len(shown)
    save_evaluation(rows, tmp_path / "out")
    assert load_evaluation(tmp_path / "out") == rows


@given(st.text(alphabet=st.one_of(st.sampled_from('\\xu5ced89,"\r\n'), st.characters()), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_path_comes_back(path: str) -> None:
    line = quote_field(escape_text(path))
    assert list(csv.reader(io.StringIO((line + ",\n").encode().decode(), newline=""))) == [[escape_text(path), ""]]
    assert unescape_text(escape_text(path)) == path


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_any_probability_comes_back(values: list[float]) -> None:
    first = np.array(values, np.float32)
    rows = Evaluation(("a", "b"), ("",) * len(first), ("",) * len(first), np.zeros(len(first), int),
                      np.stack([first, 1 - first], axis=1))  # fmt: skip
    read = [line.split(",")[4] for line in rows.to_csv().decode().splitlines()[1:]]
    assert np.array_equal(np.array([float(text) for text in read], np.float32), first)


def test_a_saved_folder_is_whole_and_comes_back(tmp_path: Path) -> None:
    rows = make_evaluation()
    extra = {"model": "pets.onnx", "loss": float("nan"), "sizes": (1, np.int64(2)), "when": 1700000000.123456}
    save_evaluation(rows, tmp_path / "deep" / "out", extra=extra)
    folder = tmp_path / "deep" / "out"
    assert sorted(os.listdir(folder)) == ["evaluation.json", "mistakes.csv", "rows.csv"]
    summary = json.loads((folder / "evaluation.json").read_bytes())
    assert summary["figures"] == rows.compute_figures()
    assert list(summary["figures"]) == sorted(summary["figures"])
    assert summary["extra"] == {"model": "pets.onnx", "loss": None, "sizes": [1, 2], "when": 1700000000.123456}
    for name in ("rows.csv", "mistakes.csv"):
        data = (folder / name).read_bytes()
        assert summary["files"][name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert load_evaluation(folder) == rows
    text = (folder / "evaluation.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    row = summary["figures"]["confusion_matrix"][0]
    assert f"[{', '.join(map(str, row))}]" in text  # a row of the matrix is one line
    again = tmp_path / "again"
    save_evaluation(make_evaluation(), again, extra=extra)
    for name in os.listdir(folder):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_json_holds_names_in_any_script(tmp_path: Path) -> None:
    rows = make_evaluation(5, 4, classes=("แมว", "byte\udce9", "[\n 1,\n 2\n]", 'q"'))
    save_evaluation(rows, tmp_path / "out")
    data = (tmp_path / "out" / "evaluation.json").read_bytes()
    assert "แมว".encode() in data
    assert json.loads(data.decode("utf-8"))["figures"]["classes"] == list(rows.classes)
    assert load_evaluation(tmp_path / "out") == rows


def test_parquet_holds_the_same_rows_and_goes_with_its_evaluation(tmp_path: Path) -> None:
    rows = make_awkward()
    save_evaluation(rows, tmp_path / "out", parquet=True)
    table = pyarrow.parquet.read_table(tmp_path / "out" / "rows.parquet")
    lines = list(csv.reader(io.StringIO(rows.to_csv().decode(), newline="")))
    assert table.column_names == lines[0]
    assert table.column("path").to_pylist() == [line[0] for line in lines[1:]]
    assert table.column("predicted").to_pylist() == [line[3] for line in lines[1:]]
    assert table.column("correct").to_pylist() == rows.correct.tolist()
    np.testing.assert_array_equal(np.stack([table.column(i) for i in range(4, 8)], axis=1), rows.probs)
    save_evaluation(rows, tmp_path / "out")
    assert not (tmp_path / "out" / "rows.parquet").exists()


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headstart\[parquet\]'"):
        save_evaluation(make_evaluation(), tmp_path / "out", parquet=True)
    assert not (tmp_path / "out").exists()


def test_other_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "rows.csv").write_text("my own")
    with pytest.raises(DataError, match=r"holds files but no evaluation\.json"):
        save_evaluation(make_evaluation(), theirs)
    for content in ("not json", "{}", "[]", '{"format": "other"}'):
        (theirs / "evaluation.json").write_text(content)
        with pytest.raises(DataError, match=r"evaluation\.json (is not JSON|was not written by headstart)"):
            save_evaluation(make_evaluation(), theirs)
        assert (theirs / "evaluation.json").read_text() == content
    assert (theirs / "rows.csv").read_text() == "my own"
    assert sorted(os.listdir(theirs)) == ["evaluation.json", "rows.csv"]
    with pytest.raises(DataError, match=r"Cannot use .* as a folder: Not a directory"):
        save_evaluation(make_evaluation(), theirs / "rows.csv")


def test_an_empty_folder_is_used_and_an_own_one_replaced(tmp_path: Path) -> None:
    save_evaluation(make_evaluation(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    other = make_evaluation(50, 3)
    save_evaluation(other, tmp_path)
    assert load_evaluation(tmp_path) == other
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_failure_at_any_file_never_shows_a_wrong_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, replacing: bool
) -> None:
    old, new, folder = make_evaluation(20, 3), make_evaluation(30, 3), tmp_path / "out"
    if replacing:
        save_evaluation(old, folder)
    calls = 0
    replace = os.replace

    def fail_once(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(HeadstartError, match="No space left on device"):
        save_evaluation(new, folder)
    assert (folder / "evaluation.json").exists() == replacing
    if replacing and failing == 1:
        assert load_evaluation(folder) == old
    else:
        with pytest.raises(DataError, match=r"does not belong to|Cannot read"):
            load_evaluation(folder)
    if replacing:
        save_evaluation(new, folder)
        assert load_evaluation(folder) == new


def test_damage_is_found(tmp_path: Path) -> None:
    rows = make_evaluation()
    with pytest.raises(DataError, match="Expected a folder that headstart evaluate has saved"):
        load_evaluation(tmp_path / "absent")
    save_evaluation(rows, tmp_path)
    summary = json.loads((tmp_path / "evaluation.json").read_bytes())
    renamed = json.loads(json.dumps(summary))
    renamed["figures"]["classes"][0] = "other"
    for edited, message in (
        (renamed, "are not the classes of"),
        ({key: value for key, value in summary.items() if key != "files"}, "is incomplete: 'files'"),
        (summary | {"files": None}, "is incomplete"),
        (summary | {"format_version": 2}, "has format version 2; this headstart knows 1"),
    ):
        (tmp_path / "evaluation.json").write_text(json.dumps(edited))
        with pytest.raises(DataError, match=message):
            load_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps(summary))
    assert load_evaluation(tmp_path) == rows
    data = (tmp_path / "rows.csv").read_bytes()
    (tmp_path / "rows.csv").write_bytes(data.replace(b"true\n", b"false\n", 1))
    with pytest.raises(DataError, match="does not belong to"):
        load_evaluation(tmp_path)


def test_extra_that_is_not_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of type object cannot be written as JSON"):
        save_evaluation(make_evaluation(), tmp_path / "out", extra={"thing": object()})
    assert not (tmp_path / "out").exists()


def test_figures_are_computed_once_for_a_seed() -> None:
    evaluation = make_evaluation()
    first = evaluation.compute_figures()
    other = evaluation.compute_figures(1)
    first["n"] = 0
    again = evaluation.compute_figures()
    assert again["n"] == 200
    assert again["per_class"] is first["per_class"]
    assert other["macro_f1"] != again["macro_f1"]
    assert make_evaluation().compute_figures() == again
    assert make_evaluation() == evaluation


def test_json_is_that_of_the_standard_library_but_for_lists_of_numbers() -> None:
    value = {
        "b": [[1, 2.5], [None, -1e-9]],
        "a": {"é": [], "[1,\n2]": {}, "c": ["x", 1, True]},
        "d": [[]],
        "e": "\udcff",
    }
    text = _format_json(value).decode()
    assert json.loads(text) == value
    assert '"b": [\n    [1, 2.5],\n    [null, -1e-09]\n  ]' in text
    simple = {"b": ["x", {"c": None}], "a": {"d": True, "e": [], "f": {}}}
    assert _format_json(simple).decode() == json.dumps(simple, indent=2, sort_keys=True) + "\n"
