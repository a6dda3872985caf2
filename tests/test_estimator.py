"""`ImageClassifier` under scikit-learn's conventions and tools."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_pictures import draw_picture, write_picture, write_shapes
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.utils.validation import check_is_fitted

import headstart
from headstart.feature_cache import FeatureCache

QUICK = {"layers": "top", "penalty": 0.1}


@pytest.fixture
def shapes(tmp_path: Path, warm_cache: Path) -> tuple[list[str], list[str]]:
    """Paths and class names of 2 x 8 pictures whose features are known."""
    paths = sorted(map(str, write_shapes(tmp_path / "shapes", 8, ("checks", "stripes")).rglob("*.png")))
    return paths, [Path(path).parent.name for path in paths]


@pytest.fixture
def new(tmp_path: Path) -> list[Path]:
    return [write_picture(tmp_path / f"{shape}.png", shape, 20) for shape in ("stripes", "checks")]


def test_parameters_follow_the_conventions() -> None:
    estimator = headstart.ImageClassifier(penalty=0.3)
    assert estimator.get_params() == {
        "backbone": "efficientnet-lite0",
        "input_size_px": None,
        "weights": None,
        "layers": "auto",
        "head": "linear",
        "penalty": 0.3,
        "class_weights": "none",
        "num_folds": 5,
        "seed": 0,
    }
    assert estimator.set_params(layers="top", seed=4) is estimator
    copy = clone(estimator)
    assert copy is not estimator
    assert copy.get_params() == estimator.get_params()
    assert (copy.layers, copy.seed) == ("top", 4)
    assert is_classifier(estimator)
    assert repr(copy) == "ImageClassifier(layers='top', penalty=0.3, seed=4)"


def test_defaults_are_those_of_the_settings() -> None:
    settings = headstart.TrainSettings()
    for name, value in headstart.ImageClassifier().get_params().items():
        assert getattr(settings, name) == value


def test_fit_predict_and_score(shapes: tuple[list[str], list[str]], new: list[Path]) -> None:
    estimator = headstart.ImageClassifier(**QUICK)
    assert estimator.fit(*shapes) is estimator
    check_is_fitted(estimator)
    assert estimator.classes_.tolist() == ["checks", "stripes"]
    assert estimator.predict(new).tolist() == ["stripes", "checks"]
    probs = estimator.predict_proba(new)
    assert probs.shape == (2, 2)
    assert probs.dtype == np.float32
    assert np.allclose(probs.sum(axis=1), 1)
    assert probs[0, 1] > 0.8 > 0.2 > probs[1, 1]
    assert estimator.score(*shapes) == 1
    assert estimator.head_ is estimator.selection_.head


def test_agrees_with_train(shapes: tuple[list[str], list[str]], new: list[Path]) -> None:
    paths, labels = shapes
    estimator = headstart.ImageClassifier(**QUICK).fit(paths, labels)
    classifier = headstart.train(paths, labels=labels, test_frac=0, **QUICK)
    saved = np.stack([each.probs for each in classifier.predict(new)])
    assert np.abs(estimator.predict_proba(new) - saved).max() < 1e-3


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([10, 9], [9, 10]), (["b", "a"], ["a", "b"]), ([True, False], [False, True]), ([-1.5, 2.5], [-1.5, 2.5])],
)
def test_labels_of_any_kind(
    shapes: tuple[list[str], list[str]], new: list[Path], labels: list[object], classes: list[object]
) -> None:
    """The first label is of checks, the second of stripes; classes come sorted and predictions in their own type."""
    paths, names = shapes
    estimator = headstart.ImageClassifier(**QUICK).fit(paths, [labels[name == "stripes"] for name in names])
    assert estimator.classes_.tolist() == classes
    predicted = estimator.predict(new)
    assert predicted.tolist() == [labels[1], labels[0]]
    assert predicted.dtype == np.asarray(labels).dtype


def test_every_kind_of_picture(shapes: tuple[list[str], list[str]], new: list[Path]) -> None:
    paths, labels = shapes
    estimator = headstart.ImageClassifier(**QUICK).fit(np.array(paths), np.array(labels))
    expected = estimator.predict_proba(new)
    pixels = np.stack([draw_picture("stripes", 20), draw_picture("checks", 20)])
    for sources in (
        [str(path) for path in new],
        np.array([str(path) for path in new]),
        np.array(new, dtype=object),
        [path.read_bytes() for path in new],
        pixels,
        [Image.fromarray(each) for each in pixels],
    ):
        assert np.allclose(estimator.predict_proba(sources), expected, atol=1e-6)
    from_pixels = headstart.ImageClassifier(**QUICK).fit([np.asarray(Image.open(path)) for path in paths], labels)
    assert np.allclose(from_pixels.predict_proba(pixels), expected, atol=1e-2)  # other keys, so other folds


def test_cross_validation_and_grid_search_run_the_backbone_once(tmp_path: Path) -> None:
    paths = sorted(map(str, write_shapes(tmp_path / "shapes", 6, ("checks", "stripes")).rglob("*.png")))
    labels = [Path(path).parent.name for path in paths]
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    scores = cross_val_score(headstart.ImageClassifier(**QUICK), paths, labels, cv=folds)
    assert scores.tolist() == [1, 1]

    def count_rows() -> int:
        with FeatureCache() as cache:
            return sum(usage.num_pictures for usage in cache.measure_usage())

    assert count_rows() == 12
    penalties = [0.01, 1.0]
    search = GridSearchCV(
        headstart.ImageClassifier(layers="top"), {"penalty": penalties}, cv=folds, scoring="neg_log_loss"
    )
    search.fit(paths, labels)
    assert count_rows() == 12
    results = search.cv_results_["mean_test_score"]
    assert search.best_params_["penalty"] == penalties[int(np.argmax(results))]
    assert results[0] != results[1]
    assert search.best_estimator_.head_.penalty == search.best_params_["penalty"]
    assert search.predict(paths).tolist() == labels


def test_parameters_from_a_grid_of_numpy(shapes: tuple[list[str], list[str]]) -> None:
    grid = {"num_folds": np.arange(2, 4), "penalty": np.array([0.1, 1], np.float32), "seed": np.array([5])}
    search = GridSearchCV(headstart.ImageClassifier(layers="top"), grid, cv=2, error_score="raise").fit(*shapes)
    assert search.best_estimator_.head_.penalty == pytest.approx(search.best_params_["penalty"])


def test_not_fitted(new: list[Path]) -> None:
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError, match="This ImageClassifier instance is not fitted yet"):
            getattr(headstart.ImageClassifier(), method)(new)


def test_a_pickle_predicts_the_same(shapes: tuple[list[str], list[str]], new: list[Path]) -> None:
    estimator = headstart.ImageClassifier(**QUICK).fit(*shapes)
    data = pickle.dumps(estimator)
    assert len(data) < 1_000_000  # the head, not the backbone
    copy = pickle.loads(data)
    assert np.array_equal(copy.predict_proba(new), estimator.predict_proba(new))
    unfitted = pickle.loads(pickle.dumps(headstart.ImageClassifier(penalty=2)))
    assert unfitted.get_params() == headstart.ImageClassifier(penalty=2).get_params()


def test_all_unusable_pictures_are_named(shapes: tuple[list[str], list[str]], tmp_path: Path) -> None:
    paths, labels = shapes
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[0]).read_bytes()[:600])
    mixed = [*paths, str(cut), tmp_path / "none.png", b""]
    with pytest.raises(headstart.DataError) as caught:
        headstart.ImageClassifier(**QUICK).fit(mixed, [*labels, "checks", "checks", "stripes"])
    assert str(caught.value) == (
        f"3 problems:\n  {cut}: truncated: the file ends early (copy or download it again)\n"
        f"  {tmp_path}/none.png: unreadable: there is no such file\n"
        "  picture 18: empty: the file is empty"
    )
    estimator = headstart.ImageClassifier(**QUICK).fit(paths, labels)
    with pytest.raises(headstart.DataError) as caught:
        estimator.predict([paths[0], cut, b"no picture"])
    assert str(caught.value) == (
        f"2 problems:\n  {cut}: truncated: the file ends early (copy or download it again)\n"
        "  picture 2: not-an-image: this is text, not a picture"
    )


def test_columns_of_pandas(shapes: tuple[list[str], list[str]], new: list[Path]) -> None:
    """Their index, which plays no part, is not 0, 1, 2, ... in the parts of a cross-validation."""
    pandas = pytest.importorskip("pandas")
    paths, labels = (pandas.Series(values, index=range(100, 116)) for values in shapes)
    estimator = headstart.ImageClassifier(**QUICK).fit(paths, labels)
    assert estimator.predict(pandas.Series(new, index=[7, 5])).tolist() == ["stripes", "checks"]
    with pytest.raises(headstart.DataError, match=r"^nowhere\.png: unreadable"):
        estimator.predict(pandas.Series(["nowhere.png"], index=[7]))


@pytest.mark.parametrize(
    ("num_pictures", "labels", "message"),
    [
        (3, ["a", "b"], "X has 3 pictures and y has 2 labels. Expected one label for each picture."),
        (2, ["a", "a"], "y holds 1 class. Training needs at least 2."),
        (0, [], "y holds 0 class. Training needs at least 2."),
        (
            4,
            ["a", "b", "c", "c"],
            "2 problems:\n  Class 'a' has 1 picture. Training needs at least 2 per class.\n"
            "  Class 'b' has 1 picture. Training needs at least 2 per class.",
        ),
        (
            3,
            ["a", None, float("nan")],
            "y has no label for 2 of 3 pictures, the first is number 1.",
        ),
        (2, [["a"], ["b"]], "y has the shape (2, 1). Expected one label for each picture, shape (N,)."),
        (2, np.array(["a", 1], object), "y mixes kinds of labels that have no order: int, str. Use one kind."),
    ],
)
def test_labels_that_cannot_be_used(num_pictures: int, labels: Any, message: str) -> None:
    with pytest.raises(headstart.DataError) as caught:
        headstart.ImageClassifier().fit(["x.png"] * num_pictures, labels)
    assert str(caught.value) == message


def test_parameters_are_checked_when_fitting() -> None:
    with pytest.raises(headstart.ConfigError) as caught:
        headstart.ImageClassifier(backbone="efficientnet-lit0", num_folds=1).fit(["a", "b"], ["a", "b"])
    assert str(caught.value) == (
        "2 problems:\n"
        "  There is no backbone 'efficientnet-lit0'. Did you mean 'efficientnet-lite0'? Known: efficientnet-lite0, "
        "efficientnet-lite1, efficientnet-lite2, efficientnet-lite0-int8, efficientnet-lite1-int8, "
        "efficientnet-lite2-int8, vgg16, vgg19, resnet50, inception_v3, and every model of timm as timm:NAME, such as timm:convnext_tiny.\n"
        "  num_folds is 1. Expected a whole number from 2 to 20."
    )


def test_a_dense_head_is_for_train() -> None:
    with pytest.raises(headstart.ConfigError) as caught:
        headstart.ImageClassifier(head="dense").fit(["a", "b"], ["a", "b"])
    assert str(caught.value) == ("ImageClassifier fits linear and svm heads. For a dense head use headstart.train.")


@pytest.mark.parametrize("layers", ["stage3", "auto"])
def test_other_layers_heads_and_sides(shapes: tuple[list[str], list[str]], new: list[Path], layers: str) -> None:
    estimator = headstart.ImageClassifier(layers=layers, head="svm", input_size_px=64, num_folds=2).fit(*shapes)
    assert estimator.head_.kind == "svm"
    assert layers == "auto" or {pooled.layer for pooled in estimator.head_.layers} == {layers}
    assert estimator.predict(new).tolist() == ["stripes", "checks"]
    copy = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(copy.predict_proba(new), estimator.predict_proba(new))


def test_a_layer_that_the_backbone_has_not(shapes: tuple[list[str], list[str]]) -> None:
    with pytest.raises(headstart.ConfigError, match=r"^layers is 'stage9'\. Did you mean 'stage7'\?"):
        headstart.ImageClassifier(layers="stage9").fit(*shapes)
    with pytest.raises(headstart.ConfigError) as caught:
        headstart.ImageClassifier(layers="stage2").fit(*shapes)
    assert str(caught.value) == (
        "layers is 'stage2', which has only 24 channels. For a linear head choose one of stage3, stage4, stage5, "
        "stage6, stage7, head."
    )


def test_nothing_to_predict(shapes: tuple[list[str], list[str]]) -> None:
    estimator = headstart.ImageClassifier(**QUICK).fit(*shapes)
    with pytest.raises(headstart.DataError, match=r"^X holds no picture"):
        estimator.predict([])


def test_a_class_of_one_picture_twice_is_named(tmp_path: Path, warm_cache: Path) -> None:
    paths = sorted(map(str, write_shapes(tmp_path / "shapes", 3, ("checks", "stripes")).rglob("*.png")))
    with pytest.raises(
        headstart.DataError, match=r"one group, or are the same picture: those of the class of .*checks/00"
    ):
        headstart.ImageClassifier(**QUICK).fit([paths[0], paths[0], *paths[3:]], ["a", "a", "b", "b", "b"])
