"""The recipe as a whole: what is used, what is chosen by what, what repeats, what stays untouched."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Trained
from drawn_pictures import run_obeying_permissions, snapshot, write_picture, write_shapes

import headstart
from headstart.config import TrainSettings
from headstart.dataset import ImageRecord
from headstart.graph import PooledLayer
from headstart.heads.cached import fit_head
from headstart.review import Decision
from headstart.training import TrainingRecord

TWO = ("checks", "stripes")


def train(source: Any, **options: Any) -> headstart.Classifier:
    """With the quick settings, where the choice plays no part."""
    return headstart.train(source, **{"layers": "top", "penalty": 0.1, **options})


def get_record(classifier: headstart.Classifier) -> TrainingRecord:
    assert classifier.training is not None
    return classifier.training


def get_graph(classifier: headstart.Classifier) -> bytes:
    """The network with its head, without metadata."""
    return onnx.load_from_string(classifier.data).graph.SerializeToString(deterministic=True)


def name_paths(paths: Any, root: Path) -> set[str]:
    return {str(Path(path).relative_to(root)) for path in paths}


# What is used


def test_found_is_used_plus_left_out(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 6)
    (root / "checks" / "cut.png").write_bytes((root / "checks" / "00.png").read_bytes()[:900])
    (root / "checks" / "page.jpg").write_text("<!doctype html><p>not found")
    (root / "circles" / "empty.png").touch()
    shutil.copy(root / "circles" / "01.png", root / "circles" / "again.png")
    shutil.copy(root / "circles" / "02.png", root / "stripes" / "which.png")
    (root / "stripes" / ".hidden.png").touch()
    (root / "stripes" / "notes.txt").write_text("no picture")
    record = get_record(train(root, penalty="auto"))
    report = record.report
    left_out = {problem.path: problem.code for problem in report.all_problems if problem.severity == "left-out"}
    assert {str(Path(path).relative_to(root)): code for path, code in left_out.items() if path} == {
        "checks/cut.png": "truncated",
        "checks/page.jpg": "not-an-image",
        "circles/empty.png": "empty",
        "circles/again.png": "duplicate",
        "circles/02.png": "conflicting-labels",
        "stripes/which.png": "conflicting-labels",
    }
    assert report.dataset.num_found == 23
    assert len(report.dataset.records) == 17
    assert report.dataset.ignored == {"hidden files and folders": 1, "other files": 1}
    assert report.counts.keys() == {"checks", "circles", "stripes"}
    assert sum(sum(counts.values()) for counts in report.counts.values()) == 17
    # Every picture used is either trained on or evaluated, once.
    rows = [*record.out_of_fold.paths, *record.evaluations["test"].paths]
    assert sorted(rows) == sorted(each.path for each in report.dataset.records)


def test_given_splits_are_used_as_they_are(tmp_path: Path, warm_cache: Path) -> None:
    root = tmp_path / "splits"
    for split, first, count in (("train", 0, 6), ("validation", 6, 3), ("test", 9, 3)):
        write_shapes(root / split, count, TWO, first)
    classifier = train(root, test_frac=0.9, seed=7)
    record = get_record(classifier)
    for split, rows in (("train", record.out_of_fold), *record.evaluations.items()):
        expected = {f"{split}/{shape}/{path.name}" for shape in TWO for path in (root / split / shape).iterdir()}
        assert name_paths(rows.paths, root) == expected
        assert [rows.classes[label] for label in rows.labels] == [Path(path).parent.name for path in rows.paths]
    assert list(record.evaluations) == ["validation", "test"]
    assert record.evaluation is record.evaluations["test"]
    data = classifier.metadata.data
    assert (data["num_train"], data["num_validation"], data["num_test"]) == (12, 6, 6)
    assert data["num_train_per_class"] == [6, 6]


def test_no_test_part_no_evaluation(tmp_path: Path, warm_cache: Path) -> None:
    classifier = train(write_shapes(tmp_path / "shapes", 6, TWO), test_frac=0)
    record = get_record(classifier)
    assert record.evaluation is None
    assert record.evaluations == {}
    assert classifier.metadata.evaluation is None
    assert len(record.out_of_fold.paths) == 12


def test_two_pictures_of_two_classes_are_enough(tmp_path: Path, warm_cache: Path) -> None:
    classifier = train(write_shapes(tmp_path / "shapes", 2, TWO), penalty="auto")
    assert get_record(classifier).selection.num_folds == 2
    assert [p.label for p in classifier.predict(sorted((tmp_path / "shapes").rglob("*.png")))] == [
        "checks",
        "checks",
        "stripes",
        "stripes",
    ]


def test_groups_stay_together(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 12, TWO)
    paths = sorted(map(str, root.rglob("*.png")))
    labels = [Path(path).parent.name for path in paths]
    groups = [f"{label} {int(Path(path).stem) // 3}" for path, label in zip(paths, labels, strict=True)]
    records = get_record(train(paths, labels=labels, groups=groups, seed=1)).report.dataset.records
    splits = {group: {record.split for record in records if record.group == group} for group in groups}
    assert len(splits) == 8
    assert all(len(names) == 1 for names in splits.values())
    assert {name for names in splits.values() for name in names} == {"train", "test"}


def test_a_class_in_one_group_is_named(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 4, TWO)
    paths = sorted(map(str, root.rglob("*.png")))
    labels = [Path(path).parent.name for path in paths]
    groups = ["one" if label == "checks" else path for path, label in zip(paths, labels, strict=True)]
    with pytest.raises(headstart.DataError) as caught:
        train(paths, labels=labels, groups=groups, test_frac=0)
    assert str(caught.value) == (
        "All training pictures of a class are in one group, or are the same picture: those of the class of "
        f"{root}/checks/00.png. Cross-validation needs at least 2 groups per class, so that one can test the other. "
        "Add pictures, or use smaller groups."
    )


def test_all_sources_give_the_same_classifier(tmp_path: Path, warm_cache: Path) -> None:
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    root = write_shapes(tmp_path / "shapes", 6, TWO)
    paths = sorted(root.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    table = tmp_path / "shapes.csv"
    table.write_text("file;class\n" + "".join(f"shapes/{p.parent.name}/{p.name};{p.parent.name}\n" for p in paths))
    columns = {"path": [str(path) for path in paths], "label": labels}
    frames = [pandas.DataFrame(columns), polars.DataFrame(columns)]
    frames[0].to_parquet(tmp_path / "shapes.parquet")
    for path, label in zip(paths, labels, strict=True):
        write_picture(tmp_path / "renamed" / label / f"of-{path.stem}.png", label, int(path.stem))
    expected = train(root).data
    for classifier in (
        train(tmp_path / "renamed"),
        train(paths, labels=labels),
        train(np.array(columns["path"]), labels=np.array(labels)),
        train(table),
        train(str(tmp_path / "shapes.parquet")),
        *(train(frame["path"], labels=frame["label"]) for frame in frames),
    ):
        assert classifier.data == expected


# What is chosen by what


def test_the_test_part_selects_nothing(tmp_path: Path, warm_cache: Path) -> None:
    folders = []
    for name, labels in (("right", TWO), ("wrong", TWO[::-1])):
        root = tmp_path / name
        write_shapes(root / "train", 8, TWO)
        for shape, label in zip(TWO, labels, strict=True):
            for number in range(8, 12):
                write_picture(root / "test" / label / f"{number}.png", shape, number)
        folders.append(headstart.train(root))
    right, wrong = folders
    records = get_record(right), get_record(wrong)
    assert records[0].evaluation is not None
    assert records[1].evaluation is not None
    assert records[0].evaluation.correct.all()
    assert not records[1].evaluation.correct.any()
    assert get_graph(right) == get_graph(wrong)
    assert records[0].selection.scores == records[1].selection.scores
    assert len(records[0].selection.scores) > 10
    assert np.array_equal(records[0].out_of_fold.probs, records[1].out_of_fold.probs)
    for name in ("labels", "preprocess", "backbone", "head", "settings", "created_with"):
        assert getattr(right.metadata, name) == getattr(wrong.metadata, name)
    assert right.metadata.data != wrong.metadata.data


def test_layers_auto_compares_and_top_does_not(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 4, TWO)
    top = get_record(train(root, penalty="auto")).selection
    assert top.head.layers == top.top_layer == (PooledLayer("head", 1),)
    assert [score.layers for score in top.scores] == [(PooledLayer("head", 1),)]
    auto = get_record(headstart.train(root)).selection
    assert len(auto.scores) == 19
    assert auto.head.layers in [score.layers for score in auto.scores if score.is_finalist]
    assert auto.top_layer in [score.layers for score in auto.scores if score.is_finalist]


def test_a_given_penalty_is_used(tmp_path: Path, warm_cache: Path) -> None:
    classifier = train(write_shapes(tmp_path / "shapes", 4, TWO), penalty=0.25)
    assert get_record(classifier).selection.head.penalty == 0.25
    assert classifier.metadata.head["penalty"] == classifier.metadata.settings["penalty"] == 0.25


def test_class_weights_raise_the_rare_class(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 12, ("checks",))
    write_shapes(root, 2, ("stripes",))
    plain, balanced = (
        get_record(train(root, class_weights=weights, penalty=3.0, test_frac=0)) for weights in ("none", "balanced")
    )
    rare = plain.out_of_fold.classes.index("stripes")
    assert balanced.selection.head.intercept[rare] > plain.selection.head.intercept[rare]
    is_rare = plain.out_of_fold.labels == rare
    before, after = (record.out_of_fold.probs[is_rare, rare].mean() for record in (plain, balanced))
    assert after > before + 0.1
    even = write_shapes(tmp_path / "even", 4, TWO)
    same = [get_record(train(even, class_weights=weights)).selection.head.coef for weights in ("none", "balanced")]
    assert np.allclose(*same, atol=1e-6)


def test_settings_are_checked_all_at_once_before_anything_is_read() -> None:
    with pytest.raises(headstart.ConfigError) as caught:
        headstart.train(
            "nowhere", layers="midle", penalty=0, test_frac=1, num_folds=1, seed=-1, class_weight="balanced"
        )
    assert str(caught.value) == (
        "5 problems:\n"
        "  There is no setting 'class_weight'. Did you mean 'class_weights'?\n"
        "  penalty is 0. Expected 'auto' or a number above 0, such as 0.1.\n"
        "  test_frac is 1. Expected a share from 0 to below 1, such as 0.2.\n"
        "  num_folds is 1. Expected a whole number from 2 to 20.\n"
        "  seed is -1. Expected a whole number from 0 to 4294967295."
    )


# What repeats


def test_the_same_pictures_and_seed_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_shapes(tmp_path / "shapes", 8, TWO)
    saved = []
    for name in ("first", "second"):
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / name / "cache"))
        classifier = train(root, penalty="auto")
        record = get_record(classifier)
        assert record.num_forward == 16
        assert record.evaluation is not None
        headstart.save_evaluation(record.evaluation, tmp_path / name / "evaluation", extra=record.report.to_json())
        classifier.save(tmp_path / name / "shapes.onnx")
        saved.append({p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.*") if "cache" not in str(p)})
    assert saved[0].keys() == {"shapes.onnx", "evaluation.json", "rows.csv", "mistakes.csv"}
    assert saved[0] == saved[1]


def test_the_seed_decides_what_chance_decides(own_cache: Path) -> None:
    """Beyond 192 pictures the principal axes are found by random projections. The features are made up here."""
    extractor = headstart.Extractor(headstart.load_backbone())
    names = [f"{number:064x}" for number in range(200)]
    labels = [number % 2 for number in range(200)]
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, extractor.layout.num_features), np.float32) + np.array(labels)[:, None] / 20
    records = [ImageRecord(name, label, "train", sha256=name) for name, label in zip(names, labels, strict=True)]
    with headstart.FeatureCache() as cache:
        recipe = cache.get_recipe(extractor.recipe_key, "made up")
        cache.add_features(recipe, list(zip(names, rows.astype(np.float16), strict=True)))
        scores = [
            fit_head(records, 2, extractor, cache, TrainSettings(num_folds=2, seed=seed), lambda *_: None).scores
            for seed in (0, 0, 1)
        ]
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 5, TWO)
    assert get_record(train(root)).num_forward == 10
    again = get_record(train(root))
    assert again.num_forward == 0
    # Moved between classes, renamed, in another folder, with other settings.
    (root / "checks" / "00.png").rename(root / "stripes" / "moved.png")
    shutil.move(root, tmp_path / "elsewhere")
    moved = get_record(train(tmp_path / "elsewhere", seed=3, class_weights="balanced"))
    assert moved.num_forward == 0
    assert Counter(record.label for record in moved.report.dataset.records) == {0: 4, 1: 6}
    write_picture(tmp_path / "elsewhere" / "checks" / "new.png", "checks", 11)
    assert get_record(train(tmp_path / "elsewhere")).num_forward == 1


def test_an_interrupt_keeps_what_was_computed(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 12, TWO)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "extracting features" and done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(root, on_progress=interrupt)
    assert get_record(train(root)).num_forward == 24 - 9


def test_progress_is_told_by_stage(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    train(write_shapes(tmp_path / "shapes", 3, TWO), on_progress=lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == [
        "finding pictures",
        "reading files",
        "extracting features",
        "choosing layers and penalty",
        "fitting the head",
        "evaluating",
        "checking the classifier",
    ]
    for stage in stages[1:3]:
        assert [step[1:] for step in told if step[0] == stage] == [(done, 6) for done in range(1, 7)]


def test_cached_features_agree_with_the_saved_graph(trained: Trained, warm_cache: Path) -> None:
    classifier = headstart.train(trained.shapes, layers="top")
    record = get_record(classifier)
    assert record.num_forward == 0
    assert record.evaluation is not None
    direct = np.stack([prediction.probs for prediction in classifier.predict(record.evaluation.paths)])
    assert np.abs(direct - record.evaluation.probs).max() < 1e-3


def test_the_file_says_what_was_measured(trained: Trained, warm_cache: Path) -> None:
    classifier = headstart.train(trained.shapes, layers="top")
    record = get_record(classifier)
    assert record.evaluation is not None
    figures = record.evaluation.compute_figures(0)
    assert classifier.metadata.evaluation is not None
    assert classifier.metadata.evaluation["accuracy"] == figures["accuracy"]
    assert classifier.metadata.evaluation.items() <= figures.items()
    assert classifier.metadata.data["num_test"] == len(record.evaluation.paths) == figures["n"]
    assert classifier.metadata.labels == classifier.classes == ("checks", "circles", "stripes")


# Files that change, and files that must not


def vanish(victims: list[Path], act: Callable[[Path], object]) -> Callable[[str, int, int], None]:
    """A progress callback that acts on the files once all have been read for their hashes."""

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage == "reading files" and done == total:
            for path in victims:
                act(path)

    return on_progress


def test_pictures_that_vanish_or_change_are_left_out(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 5, TWO)
    gone, other = root / "checks" / "01.png", root / "stripes" / "02.png"

    def act(path: Path) -> None:
        path.unlink() if path == gone else write_picture(path, "circles", 0)

    record = get_record(train(root, on_progress=vanish([gone, other], act)))
    problems = {p.path: (p.code, p.message) for p in record.report.all_problems if p.severity == "left-out"}
    assert problems == {
        str(gone): ("unreadable", "there is no such file"),
        str(other): ("changed-while-reading", "the file changed during the run (run again)"),
    }
    assert record.report.dataset.num_found == 10
    assert len(record.report.dataset.records) == 8


def test_a_class_that_is_too_small_after_decoding_is_named(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 4, TWO)
    for number in (1, 2, 3):
        path = root / "stripes" / f"{number:02}.png"
        data = bytearray(path.read_bytes())
        data[2000:2040] = bytes(40)  # damaged inside: only decoding tells
        path.write_bytes(data)
    with pytest.raises(headstart.DataError) as caught:
        train(root)
    assert str(caught.value) == (
        f"Class 'stripes' has 1 training picture, in {root}/stripes (headstart check lists what was left out, and "
        "why). Training needs at least 2 per class. Add pictures, or leave it out with --exclude stripes."
    )


ALL_COMMANDS = """
import sys
from headstart.cli import main

results = sys.argv[1]
try:
    open("shapes/checks/new.png", "w")
    sys.exit("the folder can be written to")
except PermissionError:
    pass
for command in (
    "train shapes --layers top --output {0}/s.onnx",
    "predict {0}/s.onnx shapes --format csv --output {0}/s.csv",
    "evaluate {0}/s.onnx shapes --output {0}/evaluation",
    "check shapes --all",
    "verify {0}/s.onnx shapes",
    "inspect {0}/s.onnx",
):
    sys.argv = ["headstart", *command.format(results).split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
"""


def test_the_users_files_are_never_touched(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_shapes(home / "shapes", 5, TWO)
    (home / "shapes" / "checks" / "cut.png").write_bytes((home / "shapes/checks/00.png").read_bytes()[:500])
    for path in (*home.rglob("*"), home):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(home)
    results = tmp_path / "results"
    results.mkdir()
    try:
        done = run_obeying_permissions(
            "-c", ALL_COMMANDS, str(results), cwd=home, HEADSTART_CACHE=str(tmp_path / "cache")
        )
        assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
        assert snapshot(home) == before
    finally:
        for path in (home, *home.rglob("*")):
            path.chmod(0o755)
    assert {path.name for path in results.iterdir()} == {"s.onnx", "s.csv", "evaluation", "s.evaluation"}


# Decisions of a review, a budget, familiarity


def decide(record: ImageRecord, label: str, decision: str, new_label: str | None = None) -> Decision:
    assert record.sha256
    return Decision(record.sha256, record.path, label, decision, new_label, "2026-01-02T03:04:05+00:00")


def test_decisions_change_labels_and_leave_out_as_if_the_folders_had_changed(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 8)
    wrong = write_picture(root / "stripes" / "wrong.png", "checks", 9)
    before = snapshot(root)
    first = get_record(train(root)).report.dataset
    records = {record.path: record for record in first.records}
    gone = str(root / "circles" / "03.png")
    decisions = [
        decide(records[str(wrong)], "stripes", "relabel", "checks"),
        decide(records[gone], "circles", "leave-out"),
        decide(records[str(root / "checks" / "00.png")], "checks", "keep"),
    ]
    reviewed = train(root, decisions=decisions)
    report = get_record(reviewed).report
    assert report.dataset.num_found == 25
    left_out = [problem.path for problem in report.all_problems if problem.severity == "left-out"]
    assert left_out == [gone]
    assert len(report.dataset.records) == 24
    assert {name: sum(counts.values()) for name, counts in report.counts.items()} == {
        "checks": 9,
        "circles": 7,
        "stripes": 8,
    }
    assert snapshot(root) == before
    wrong.rename(root / "checks" / "wrong.png")
    Path(gone).unlink()
    mended = train(root)
    assert get_graph(mended) == get_graph(reviewed)
    assert mended.metadata.data == reviewed.metadata.data
    assert get_graph(train(root, decisions=decisions)) == get_graph(mended)  # which hold for no picture any more


def test_a_class_that_decisions_empty_is_refused(tmp_path: Path, warm_cache: Path) -> None:
    root = write_shapes(tmp_path / "shapes", 2)
    records = [each for each in get_record(train(root)).report.dataset.records if "circles" in each.path]
    decisions = [decide(record, "circles", "leave-out") for record in records]
    with pytest.raises(headstart.HeadstartError, match="'circles'"):
        train(root, decisions=decisions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_s": 5.0}, "A budget is for choosing a backbone"),
        ({"backbone": "auto", "budget_s": 0.0}, "The budget is 0.0 s. Expected a number above 0"),
        ({"backbone": "auto", "budget_s": -1.0}, "Expected a number above 0"),
        ({"backbone": "auto", "budget_s": float("nan")}, "Expected a number above 0"),
        ({"backbone": "auto", "weights": "none"}, "`weights` is for one backbone"),
        ({"backbone": "efficientnet-lite0,efficientnet-lite9"}, "efficientnet-lite9"),
        ({"backbone": ","}, "''"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(
    tmp_path: Path, warm_cache: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(headstart.HeadstartError, match=message):
        train(write_shapes(tmp_path / "shapes", 2), **options)


@pytest.mark.parametrize("options", [{}, {"head": "svm"}, {"layers": "stage5"}, {"test_frac": 0.0}], ids=str)
def test_every_classifier_tells_familiarity(tmp_path: Path, warm_cache: Path, options: dict[str, Any]) -> None:
    root = write_shapes(tmp_path / "shapes", 8)
    classifier = train(root, **options)
    told = classifier.metadata.familiarity
    assert told is not None
    assert told["num_images"] == sum(r.split == "train" for r in get_record(classifier).report.dataset.records)
    loaded = headstart.load(classifier.data)
    for prediction in loaded.predict(sorted(map(str, root.rglob("*.png")))[::5]):
        assert prediction.familiarity is not None
        assert 0 <= prediction.familiarity <= 1
