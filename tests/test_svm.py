"""The support vector machine against the conditions of its optimum, and its choice on made-up feature tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.svm import LinearSVC
from test_selection import CANDIDATES, EARLY, LAYOUT, MID, TOP, make_folds, make_labels, make_table

from headstart.calibration import apply_temperature, fit_temperature
from headstart.heads.selection import Selection
from headstart.heads.svm import SVM_PENALTIES, fit_svm, select_svm


def choose(table: np.ndarray, labels: np.ndarray, **options: Any) -> Selection:
    folds = options.pop("folds", None)
    return select_svm(
        lambda indices: table[indices],
        LAYOUT,
        labels,
        make_folds(labels) if folds is None else folds,
        int(labels.max()) + 1,
        rng=np.random.default_rng(options.pop("seed", 0)),
        **options,
    )


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_gradient_is_zero_where_the_fit_is(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = make_labels(300, num_classes)
    rows = (rng.normal(size=(300, 20)) + np.eye(20)[labels]).astype(np.float32)
    weights = rng.random((3, 300)) * (rng.random((3, 300)) < 0.8)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    penalties = np.array([3.0, 0.3, 0.01])
    fits = fit_svm(rows, labels, weights, penalties, num_classes)
    assert fits.shape == (3, 21, num_classes)
    assert fits.dtype == np.float32
    if num_classes == 2:
        np.testing.assert_array_equal(fits[:, :, 0], -fits[:, :, 1])
        fits = 2 * fits  # each column is half of one decision, whose sides are -1 and 1
    for fit, weight, penalty in zip(fits.astype(np.float64), weights, penalties, strict=True):
        for label in range(num_classes):
            sides = np.where(labels == label, 1, -1)
            missing = np.maximum(0, 1 - sides * (rows @ fit[:-1, label] + fit[-1, label]))
            pull = 2 * weight * sides * missing
            np.testing.assert_allclose(penalty * fit[:-1, label], rows.T @ pull, atol=2e-3)
            assert abs(pull.sum()) < 0.02 * np.abs(pull).sum()  # the intercept is all but free


def test_a_class_without_pictures_and_one_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    labels = np.repeat([0, 1], 20)
    weights = np.stack([np.full(40, 1 / 40), np.repeat([1 / 20, 0], 20)]).astype(np.float32)
    both, alone = fit_svm(rows, labels, weights, np.ones(2), 3)
    np.testing.assert_array_equal(both[:, 2], [0, 0, 0, -1])
    np.testing.assert_array_equal(alone, [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, -1, -1]])
    np.testing.assert_array_equal(fit_svm(rows, labels, weights[1:], np.ones(1), 2)[0, -1], [0.5, -0.5])


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_head_is_the_machine_on_standardised_features(num_classes: int) -> None:
    """All components are kept here, so that the projection is a rotation, which changes no solution."""
    labels = make_labels(500, num_classes)
    table = make_table(labels, {"top": 0.5})
    table[:, -150:-100] *= np.float16(30)
    found = choose(table, labels, penalties=(0.3,))
    assert (found.head.layers, found.head.kind, found.head.penalty) == (TOP, "svm", 0.3)
    features = table[:, -150:].astype(np.float64)
    scaled = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + features.var(axis=0).mean())
    scaled /= scaled.std()

    def decide(chosen: np.ndarray, asked: np.ndarray) -> np.ndarray:
        model = LinearSVC(dual=False, C=1 / (0.3 * chosen.sum()), intercept_scaling=10, tol=1e-6)
        values = model.fit(scaled[chosen], labels[chosen]).decision_function(scaled[asked])
        return np.stack([-values, values], axis=1) / 2 if num_classes == 2 else values

    everything = np.ones(500, bool)
    expected = decide(everything, everything)
    np.testing.assert_allclose(found.head.compute_logits(table, LAYOUT), expected, atol=0.01)
    folds = make_folds(labels)[0]
    logits = np.empty((500, num_classes))
    for fold in range(5):
        logits[folds == fold] = decide(folds != fold, folds == fold)
    temperature = fit_temperature(logits, labels)
    assert found.head.temperature == pytest.approx(temperature, rel=0.02)
    np.testing.assert_allclose(found.out_of_fold_probs, apply_temperature(logits, temperature), atol=0.02)


@pytest.mark.parametrize(("strengths", "chosen"), [({"early": 1.0}, EARLY), ({"mid": 1.0}, MID), ({"top": 2.0}, TOP)])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_layer_that_carries_the_signal_is_chosen(
    strengths: dict[str, float], chosen: Any, num_classes: int
) -> None:
    labels = make_labels(240, num_classes)
    found = choose(make_table(labels, strengths), labels, candidates=CANDIDATES, penalties=(3.0, 0.3))
    assert found.head.layers == chosen
    assert {score.layers for score in found.scores} == set(CANDIDATES)
    assert (found.out_of_fold_probs.argmax(axis=1) == labels).mean() > 0.9


def test_without_layers_it_is_the_top_and_the_penalty_is_one_of_the_list() -> None:
    labels = make_labels(200, 3)
    found = choose(make_table(labels, {"early": 2.0, "top": 0.3}), labels)
    assert [score.layers for score in found.scores] == [TOP]
    assert found.head.penalty in SVM_PENALTIES


def test_noise_is_predicted_by_chance_out_of_fold() -> None:
    labels = make_labels(400, 4, seed=3)
    table = make_table(labels, {}, seed=4)
    found = choose(table, labels, penalties=(0.03,))
    assert abs((found.out_of_fold_probs.argmax(axis=1) == labels).mean() - 0.25) < 0.09
    assert found.out_of_fold_probs.max() < 0.9
    assert (found.head.compute_logits(table, LAYOUT).argmax(axis=1) == labels).mean() > 0.6  # half by heart


def test_the_same_seed_gives_the_same_bytes() -> None:
    labels = make_labels(210, 3)
    table = make_table(labels, {"mid": 0.5, "top": 0.3})
    first, second = (choose(table, labels, candidates=[MID, TOP], folds=make_folds(labels, 3, 2)) for _ in range(2))
    assert first.head.coef.tobytes() == second.head.coef.tobytes()
    assert first.out_of_fold_probs.tobytes() == second.out_of_fold_probs.tobytes()
    assert first.scores == second.scores


def test_class_weights_move_the_decision_towards_the_rare_class() -> None:
    labels = (np.arange(400) % 20 == 0).astype(np.int64)
    table = make_table(labels, {"top": 0.25})
    plain = choose(table, labels, penalties=(10.0,))
    balanced = choose(table, labels, penalties=(10.0,), class_weights=400 / (2 * np.bincount(labels)))
    share = [(found.out_of_fold_probs.argmax(axis=1) == 1).mean() for found in (plain, balanced)]
    assert share[0] < 0.05 < share[1]


@pytest.mark.parametrize("num_images", [4, 12, 300])
def test_pictures_that_are_all_alike_are_no_error(num_images: int) -> None:
    labels = np.arange(num_images) % 2
    table = np.tile(make_table(labels, {})[:1], (num_images, 1))
    found = choose(table, labels, folds=make_folds(labels, 2))
    assert np.isfinite(found.head.coef).all()
    np.testing.assert_allclose(found.out_of_fold_probs, 0.5, atol=0.05)
