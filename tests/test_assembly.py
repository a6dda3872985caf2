"""A report says what the evaluation and the pictures say."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import SHAPES, write_picture, write_shapes
from flipped_shapes import FLIPPED, NUM_TEST, NUM_TRAIN, write_flipped
from test_report_page import Reader, find_gallery

import headstart
from headstart.backbone_choice import Trial
from headstart.data_check import check_dataset
from headstart.dataset import scan_dataset
from headstart.errors import DataError
from headstart.feature_cache import FeatureCache
from headstart.insight.subject import Subject, open_subject
from headstart.insight.suspects import Suspects
from headstart.report import assembly, galleries
from headstart.report.assembly import (
    Request,
    build_evaluation_report,
    build_report,
    build_sheet_report,
    describe_growth,
)
from headstart.report.content import Gallery, Report, Section
from headstart.report.page import render_page

QUIET = lambda *_: None  # noqa: E731


def open_all(classifier: headstart.Classifier, source: Any, **options: Any) -> Subject:
    return open_subject(classifier, source, FeatureCache(), QUIET, **options)


def build(subject: Subject, **request: Any) -> tuple[Report, Suspects]:
    report, suspects = build_report(subject, Request("my pets.onnx", "shapes/", **request), QUIET)
    assert suspects is not None
    return report, suspects


def get_gallery(report: Report, key: str) -> Gallery:
    (gallery,) = [each for each in report.galleries if each.key == key]
    return gallery


def get_section(report: Report, key: str) -> Section:
    (section,) = [each for each in report.sections if each.key == key]
    return section


@pytest.fixture(scope="module")
def flipped(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, headstart.Classifier]:
    """Pictures of which some are in a wrong folder, and the classifier that was trained on them."""
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "cache").mkdir()
    shutil.copy(trained.cache / "features.sqlite", folder / "cache")
    root = write_flipped(folder / "flipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(folder / "cache"))
        return root, headstart.train(root, layers="top")


@pytest.fixture
def subject(flipped: tuple[Path, headstart.Classifier], warm_cache: Path) -> Subject:
    root, classifier = flipped
    return open_all(classifier, root)


def test_mistakes_are_the_evaluations_with_neighbours_and_heat(subject: Subject) -> None:
    evaluation = subject.evaluation
    assert evaluation is not None
    report, _ = build(subject)
    assert report.evaluation is evaluation
    mistakes = get_gallery(report, "mistakes")
    rows = evaluation.mistakes().tolist()
    assert len(rows) >= 2
    assert [item.path for item in mistakes.items] == [evaluation.paths[row] for row in rows]
    assert [item.sha256 for item in mistakes.items] == [evaluation.sha256[row] for row in rows]
    train = {record.path: record for record in subject.records["train"]}
    by_path = {record.path: record for record in subject.tested}
    logits = np.log(evaluation.probs[rows])
    logits -= logits.mean(axis=1, keepdims=True)
    for item, row, centred in zip(mistakes.items, rows, logits, strict=True):
        # The nearest training pictures by cosine of the centred means of the top layer, found here by brute force.
        others = subject.read_top(list(train.values()))
        top = subject.read_top([by_path[item.path]])[0] - others.mean(axis=0)
        others -= others.mean(axis=0)
        cosine = others @ top / np.linalg.norm(others, axis=1) / np.linalg.norm(top)
        nearest = [list(train)[index] for index in np.argsort(-cosine)[:4]]
        assert [each.path for each in item.neighbours] == nearest
        assert [each.label for each in item.neighbours] == [train[path].label for path in nearest]
        assert [each.similarity for each in item.neighbours] == pytest.approx(np.sort(cosine)[::-1][:4], abs=1e-3)
        assert item.heat is not None
        assert item.heat.sum() == pytest.approx(centred[evaluation.predicted[row]], abs=0.02)
    data = Reader(render_page(report)).data
    shown = find_gallery(data, "mistakes")["items"]
    assert len(shown) == (~evaluation.correct).sum()
    assert all(len(item["near"]) == 4 and item["heat"] for item in shown)


def test_only_so_many_are_explained_but_all_are_shown(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (assembly, galleries):
        monkeypatch.setattr(module, "MAX_EXPLAINED", 1)
    report, _ = build(subject)
    assert len(get_gallery(report, "mistakes").items) == 1
    assert subject.evaluation is not None
    shown = find_gallery(Reader(render_page(report)).data, "mistakes")["items"]
    assert len(shown) == (~subject.evaluation.correct).sum() > 1
    assert ["heat" in item for item in shown] == [True] + [False] * (len(shown) - 1)


def test_of_very_many_pictures_a_share_is_searched(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "_MAX_HELD", 9)
    report, _ = build(subject)
    assert NUM_TRAIN == 27
    searched = {record.path for record in subject.records["train"][::3]}
    near = [each.path for item in get_gallery(report, "mistakes").items for each in item.neighbours]
    assert near
    assert set(near) <= searched
    assert sum(len(items) for _, _, items in report.sheet) == NUM_TRAIN


def test_the_least_sure_are_right_ones(subject: Subject) -> None:
    report, _ = build(subject)
    evaluation = subject.evaluation
    assert evaluation is not None
    items = get_gallery(report, "unsure").items
    assert len(items) == evaluation.correct.sum()
    assert all(item.label == item.predicted for item in items)
    sure = [item.probability for item in items]
    assert sure == sorted(sure)


def test_flipped_labels_are_the_suspects(subject: Subject) -> None:
    report, suspects = build(subject)
    assert {Path(each.path).stem for each in suspects.items} == {*FLIPPED}
    gallery = get_gallery(report, "suspects")
    assert gallery.decides
    assert [item.path for item in gallery.items] == [each.path for each in suspects.items]
    first = report.advice[0]
    assert first.action == "Review 3 labels first"
    assert first.command == "headstart review 'my pets.onnx'"
    settled = frozenset((each.sha256, subject.classifier.classes[each.label]) for each in suspects.items)
    again, none = build(subject, settled=settled)
    assert none.items == ()
    (listed,) = [each for each in again.galleries if each.key == "suspects"]
    assert listed.items == ()
    assert "3 that you have decided on are not listed again" in listed.intro
    assert not [each for each in again.advice if "Review" in each.action]


def test_what_stands_above_and_below(subject: Subject) -> None:
    report, _ = build(subject)
    assert subject.out_of_fold is not None
    right = int(subject.out_of_fold.correct.sum())
    assert report.headline[0].startswith(
        f"Cross-validated on the training pictures: {100 * right / NUM_TRAIN:.1f} % (between "
    )
    assert report.headline[1] == (
        f"{NUM_TRAIN} training and {NUM_TEST} test pictures of 3 classes. Backbone efficientnet-lite0, layers head 1x1."
    )
    assert [(name, count) for name, count, _ in report.sheet] == [
        (name, sum(each.label == number for each in subject.records["train"])) for number, name in enumerate(SHAPES)
    ]
    assert report.figures == subject.evaluation.compute_figures(0)  # type: ignore[union-attr]
    assert report.details["classifier, SHA-256"] == subject.classifier.sha256
    assert report.details["setting: layers"] == "top"
    assert [each.key for each in report.sections] == ["calibration", "learning-curve"]


def test_a_thorough_report_holds_more(subject: Subject) -> None:
    report, _ = build(subject, thorough=True, target_accuracy=0.9)
    assert {each.key for each in report.sections} == {"calibration", "learning-curve", "near-copies", "mismatch"}
    page = Reader(render_page(report))
    assert "near-cop" in page.text.lower()


def test_what_was_tried_is_in_it(flipped: tuple[Path, headstart.Classifier], subject: Subject) -> None:
    root, _ = flipped
    trials = (Trial("winner", "chosen", 27, 0.98, 0.1, 12.5, 3.0), Trial("loser", "cannot be used: gone"))
    report, _ = build(subject, trials=trials)
    (table,) = get_section(report, "backbones").tables
    assert table.rows[0] == ("winner", "27", "98.0", "0.100", "12.5", "3.0", "chosen")
    assert table.rows[1] == ("loser", "", "", "", "", "0.0", "cannot be used: gone")
    assert table.marked == 0
    chosen = headstart.train(root, layers="auto", penalty=1.0).training
    assert chosen is not None
    scores = chosen.selection.scores  # type: ignore[union-attr]
    (table,) = get_section(build(replace(subject, scores=scores))[0], "layers").tables
    assert len(table.rows) == len(scores) > 10
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_pictures_that_changed_are_told(flipped: tuple[Path, headstart.Classifier], tmp_path: Path) -> None:
    root, classifier = flipped
    copy = shutil.copytree(root, tmp_path / "copy")
    told = "These are not exactly the pictures, labels and parts that the classifier was made with."
    assert told not in build(open_all(classifier, copy))[0].headline
    (copy / "test" / "checks" / "checks10.png").unlink()
    write_picture(copy / "train" / "circles" / "new.png", "circles", 40)
    report, _ = build(open_all(classifier, copy), thorough=True)
    assert told in report.headline
    assert f"{NUM_TRAIN + 1} training and {NUM_TEST - 1} test pictures" in report.headline[-1]
    assert report.evaluation is not None
    assert len(report.evaluation.labels) == NUM_TEST - 1


def test_nothing_put_aside(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 4)
    classifier = headstart.train(root, layers="top", penalty=1.0, test_frac=0)
    report, suspects = build(open_all(classifier, root), thorough=True)
    assert report.evaluation is None
    assert report.figures is None
    assert not {"mistakes", "unsure"} & {gallery.key for gallery in report.galleries}
    assert suspects.num_images == 12
    assert report.advice[-1].action == "Put pictures aside for a test"
    assert "Cross-validated" in Reader(render_page(report)).text


def test_a_single_test_picture_and_no_mistake(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "one" / "train", 8).parent
    write_picture(root / "test" / "checks" / "x.png", "checks", 11)
    subject = open_all(headstart.train(root, layers="top", penalty=1.0), root)
    report, _ = build(subject, thorough=True)
    assert subject.evaluation is not None
    assert subject.evaluation.correct.tolist() == [True]
    assert get_gallery(report, "mistakes").items == ()
    assert len(get_gallery(report, "unsure").items) == 1
    page = Reader(render_page(report))
    assert find_gallery(page.data, "mistakes")["items"] == []


def test_a_mistake_whose_file_is_gone_is_still_counted(
    flipped: tuple[Path, headstart.Classifier], tmp_path: Path, warm_cache: Path
) -> None:
    root, classifier = flipped
    copy = shutil.copytree(root, tmp_path / "copy")
    subject = open_all(classifier, copy)
    assert subject.evaluation is not None
    row = int(subject.evaluation.mistakes()[0])
    Path(subject.evaluation.paths[row]).unlink()
    first = get_gallery(build(subject)[0], "mistakes").items[0]
    assert (first.path, first.heat) == (subject.evaluation.paths[row], None)
    assert len(first.neighbours) == 4


def test_the_learning_curve_alone(subject: Subject, tmp_path: Path, warm_cache: Path) -> None:
    section = describe_growth(subject, Request("m.onnx", "shapes", target_accuracy=0.9), QUIET)
    assert section.key == "learning-curve"
    assert section.plots
    tiny = write_shapes(tmp_path / "tiny", 3)
    few = open_all(headstart.train(tiny, layers="top", penalty=1.0, test_frac=0), tiny)
    with pytest.raises(DataError, match="There are 9 training pictures of 3 classes. A learning curve needs at least"):
        describe_growth(few, Request("m.onnx", "tiny"), QUIET)


def test_an_evaluation_on_other_pictures(classifier: headstart.Classifier, tmp_path: Path) -> None:
    """Of two of the classes, beside a split with a class that the classifier does not know."""
    root = write_shapes(tmp_path / "new" / "test", 2, ["circles", "stripes"], first=9).parent
    write_shapes(root / "train", 2, first=6)
    (root / "train" / "checks").rename(root / "train" / "owls")
    dataset = headstart.scan_dataset(root)
    data = check_dataset(dataset, 0.875, 224, num_threads=1)
    evaluation = classifier.evaluate(root)
    assert len(evaluation.labels) == 4
    report = build_evaluation_report(classifier, evaluation, data, "new", QUIET)
    assert [(name, count) for name, count, _ in report.sheet] == [("checks", 0), ("circles", 2), ("stripes", 2)]
    for number, (name, _, items) in enumerate(report.sheet):
        assert all(item.label == number and Path(item.path).parent.name == name for item in items)
    render_page(report)


def test_the_sheet_holds_every_class(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 3)
    (root / "checks" / "page.jpg").write_text("<html>")
    report = build_sheet_report(check_dataset(scan_dataset(root), 0.875, 224, num_threads=1))
    assert [(name, count, len(items)) for name, count, items in report.sheet] == [(name, 3, 3) for name in SHAPES]
    text = Reader(render_page(report)).text
    assert all(name in text for name in SHAPES)
    assert "10 found, 9 used" in text
