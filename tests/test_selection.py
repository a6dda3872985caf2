"""The choice of layers and penalty on made-up feature tables, where it is known what should be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from headstart.features import FeatureLayout, list_candidates
from headstart.graph import PooledLayer
from headstart.heads import comparison, components, cross_validation, selection
from headstart.heads.cross_validation import Fitter, Result, Sample
from headstart.heads.fitting import fit_logistic
from headstart.heads.selection import PENALTIES, Selection, select_head

EARLY = (PooledLayer("early", 2),)
MID = (PooledLayer("mid", 1),)
MID_CELLS = (PooledLayer("mid", 2),)
TOP = (PooledLayer("top", 1),)
LAYOUT = FeatureLayout((*EARLY, *MID_CELLS, *TOP), (40, 130, 150))
CANDIDATES = list_candidates(LAYOUT)
FEW: dict[str, Any] = {"candidates": [EARLY, MID_CELLS, TOP], "penalties": (0.3,)}


def make_table(labels: np.ndarray, strengths: dict[str, float], seed: int = 0) -> np.ndarray:
    """float16 (N, 830): noise in every block, and class centres `strengths` apart in the layers named.

    `mid cells` puts the signal into the cells of a layer so that it vanishes from their mean.
    """
    rng = np.random.default_rng(seed)
    num_classes = labels.max() + 1
    parts = []
    for block, channels in zip(LAYOUT.blocks, LAYOUT.channels, strict=True):
        cells = rng.normal(0, 1, (len(labels), channels, block.grid**2))
        centres = rng.normal(0, 1, (num_classes, channels)) * rng.permutation(np.arange(channels) < 8)
        cells += strengths.get(block.layer, 0) * centres[labels][:, :, None]
        if f"{block.layer} cells" in strengths:
            pattern = np.array([1, -1, -1, 1])
            cells += strengths[f"{block.layer} cells"] * centres[labels][:, :, None] * pattern
        parts.append(cells.reshape(len(labels), -1))
    return np.concatenate(parts, axis=1).astype(np.float16)


def make_labels(num_images: int, num_classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.arange(num_images) % num_classes)


def make_folds(labels: np.ndarray, num_folds: int = 5, repeats: int = 1, seed: int = 0) -> np.ndarray:
    """Each class spread over the folds."""
    folds = np.zeros((repeats, len(labels)), np.int64)
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            folds[repeat, members] = (np.arange(len(members)) + rng.integers(num_folds)) % num_folds
    return folds


def choose(table: np.ndarray, labels: np.ndarray, **options: Any) -> Selection:
    folds = options.pop("folds", None)
    return select_head(
        lambda indices: table[indices],
        options.pop("layout", LAYOUT),
        labels,
        make_folds(labels) if folds is None else folds,
        options.pop("num_classes", int(labels.max()) + 1),
        rng=np.random.default_rng(options.pop("seed", 0)),
        **options,
    )


# What is chosen


def test_the_candidates_of_the_table() -> None:
    assert CANDIDATES == [EARLY, MID, MID_CELLS, TOP, MID_CELLS + TOP, EARLY + MID_CELLS + TOP]


@pytest.mark.parametrize(
    ("strengths", "chosen"),
    [
        ({"top": 2.0}, TOP),
        ({"early": 1.0}, EARLY),
        ({"mid": 1.0}, MID),
        ({"mid cells": 1.0}, MID_CELLS),
        ({"early": 6.0, "mid": 6.0, "top": 6.0}, TOP),  # equally good: the top stays
    ],
)
@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_layer_that_carries_the_signal_is_chosen(
    strengths: dict[str, float], chosen: tuple[PooledLayer, ...], num_classes: int
) -> None:
    labels = make_labels(240, num_classes)
    table = make_table(labels, strengths, seed=num_classes)
    found = choose(table, labels, penalties=(1.0, 0.1))
    assert found.head.layers == chosen
    assert (found.out_of_fold_probs.argmax(axis=1) == labels).mean() > 0.9
    scores = {score.layers: score for score in found.scores}
    assert set(scores) == set(CANDIDATES)
    assert sum(score.is_finalist for score in found.scores) == (1 if chosen == TOP else 5)
    assert scores[chosen].is_finalist
    assert scores[TOP].is_finalist  # always among them
    for layers, score in scores.items():
        assert score.num_features == sum(LAYOUT.count_features(pooled) for pooled in layers)
        assert score.num_images == 240


def test_two_weak_layers_together_beat_each_alone() -> None:
    labels = make_labels(400, 3)
    found = choose(make_table(labels, {"mid cells": 0.35, "top": 0.35}), labels, penalties=(1.0,))
    assert found.head.layers == MID_CELLS + TOP


def make_result(layers: tuple[PooledLayer, ...], errors: Sequence[float], losses: Sequence[float]) -> Result:
    """`errors` and `losses` a penalty, over 100 pictures; losses vary between pictures but alike for all results."""
    pictures = np.arange(100)
    wrong = np.stack([(pictures < 100 * share).astype(float) for share in errors])
    varying = np.stack([loss + 0.1 * np.sin(pictures) for loss in losses])
    return Result(layers, (10.0, 1.0, 0.1), wrong, varying)


@pytest.mark.parametrize(
    ("top", "other", "expected"),
    [
        # The standard error of 10 errors in 100 is 3 percentage points, of 4 it is 1.96.
        (([0.10, 0.10, 0.10], [1, 1, 1]), ([0.08, 0.09, 0.10], [0.5, 0.5, 0.5]), (TOP, 10.0)),
        (([0.15, 0.12, 0.10], [1, 1, 1]), ([0.20, 0.20, 0.20], [1, 1, 1]), (TOP, 1.0)),  # strongest within 0.13
        (([0.13, 0.12, 0.10], [1, 1, 1]), ([0.20, 0.20, 0.20], [1, 1, 1]), (TOP, 10.0)),
        (([0.20, 0.10, 0.07], [1, 1, 1]), ([0.04, 0.20, 0.20], [0.5, 1, 1]), (EARLY, 10.0)),  # 0.07 over 0.0596
        (([0.20, 0.10, 0.05], [1, 1, 1]), ([0.04, 0.20, 0.20], [0.5, 1, 1]), (TOP, 0.1)),  # 0.05 is within
        (([0.01, 0.01, 0.01], [1, 1, 1]), ([0.00, 0.00, 0.00], [0.5, 0.5, 0.5]), (TOP, 10.0)),  # one error is chance
        (([0.02, 0.02, 0.02], [1, 1, 1]), ([0.00, 0.00, 0.00], [0.5, 0.5, 0.5]), (EARLY, 10.0)),
        (([0.30, 0.30, 0.30], [1, 1, 1]), ([0.04, 0.04, 0.04], [0.9, 0.5, 0.5]), (EARLY, 1.0)),
        (([0.30, 0.30, 0.30], [1, 1, 1]), ([0.04, 0.04, 0.04], [0.9, 0.6, 0.5]), (EARLY, 0.1)),
    ],
)
def test_the_rules_of_one_standard_error(top: Any, other: Any, expected: Any) -> None:
    results = [make_result(EARLY, *other), make_result(TOP, *top)]
    chosen, penalty = comparison.choose(results, LAYOUT)
    assert (chosen.layers, chosen.penalties[penalty]) == expected


def test_beyond_the_top_the_fewest_features_within_one_standard_error_win() -> None:
    rng = np.random.default_rng(0)
    base, noise = rng.normal(1, 0.5, (1, 400)), rng.normal(0, 0.2, (1, 400))
    noise -= noise.mean()  # its standard error is 0.01
    wrong = {layers: np.full((1, 400), 0.1) for layers in CANDIDATES} | {TOP: np.ones((1, 400))}

    def make(layers: tuple[PooledLayer, ...], excess: float) -> Result:
        return Result(layers, (1.0,), wrong[layers], base + noise * (excess > 0) + excess)

    top, best = make(TOP, 0.5), make(MID_CELLS, 0.0)
    for excess, expected in ((0.005, EARLY), (0.02, MID_CELLS)):
        chosen, _ = comparison.choose([best, make(EARLY, excess), top], LAYOUT)
        assert chosen.layers == expected


def test_given_candidates_and_penalties_are_kept_to() -> None:
    labels = make_labels(120, 3)
    table = make_table(labels, {"early": 2.0})
    found = choose(table, labels, candidates=[TOP], penalties=(0.7,))
    assert (found.head.layers, found.head.penalty) == (TOP, 0.7)
    assert [score.layers for score in found.scores] == [TOP]
    assert choose(table, labels, candidates=[TOP]).head.penalty in PENALTIES


@pytest.mark.parametrize(("is_hidden", "penalties"), [(False, {10.0, 3.0}), (True, {0.3, 0.1, 0.03, 0.01})])
def test_the_penalty_is_as_strong_as_the_signal_allows(is_hidden: bool, penalties: set[float]) -> None:
    """What most features share is learned under any penalty; what few tell beside it needs a weak one."""
    rng = np.random.default_rng(0)
    shared, hidden = rng.normal(0, 1, (2, 300))
    table = np.zeros((300, LAYOUT.num_features), np.float16)
    table[:, -150:] = 5 * np.outer(shared, rng.choice([-1, 1], 150)) + rng.normal(0, 0.1, (300, 150))
    table[:, -10:] += hidden[:, None]
    labels = ((hidden if is_hidden else shared) > 0).astype(np.int64)
    found = choose(table, labels, candidates=[TOP])
    assert found.head.penalty in penalties
    assert found.scores[0].accuracy > 0.93


# What comes out of the final fit


def test_the_head_is_the_regression_on_standardised_features() -> None:
    """All components are kept here, so that the projection is a rotation, which changes no solution."""
    labels = make_labels(500, 4)
    table = make_table(labels, {"top": 0.5})
    table[:, -150:-100] *= np.float16(30)
    found = choose(table, labels, candidates=[TOP], penalties=(0.03,))
    features = table[:, -150:].astype(np.float64)
    scaled = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + features.var(axis=0).mean())
    scaled /= scaled.std()
    model = LogisticRegression(C=1 / (0.03 * 500), tol=1e-8, max_iter=5000).fit(scaled, labels)
    logits = found.head.compute_logits(table, LAYOUT)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs, model.predict_proba(scaled), atol=5e-3)
    folds = make_folds(labels)[0]
    for fold in range(5):
        model.C = 1 / (0.03 * (folds != fold).sum())
        model.fit(scaled[folds != fold], labels[folds != fold])
        expected = model.decision_function(scaled[folds == fold]) / found.head.temperature
        expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found.out_of_fold_probs[folds == fold], expected, atol=5e-3)


def test_pictures_predicted_out_of_fold_had_no_say_in_it() -> None:
    """Other labels in fold 0 change nothing about the predictions in fold 0 but their common temperature."""
    labels = make_labels(200, 3)
    table = make_table(labels, {"top": 0.6})
    folds = make_folds(labels)
    other = labels.copy()
    other[folds[0] == 0] = (other[folds[0] == 0] + 1) % 3
    logs, temperatures = [], []
    for given in (labels, other):
        found = choose(table, given, folds=folds, candidates=[TOP + MID_CELLS], penalties=(0.1,))
        values = np.log(found.out_of_fold_probs[folds[0] == 0].astype(np.float64)) * found.head.temperature
        logs.append(values - values.mean(axis=1, keepdims=True))
        temperatures.append(found.head.temperature)
    assert temperatures[1] > 1.2 * temperatures[0]
    np.testing.assert_allclose(logs[0], logs[1], atol=1e-3)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_noise_is_predicted_by_chance_out_of_fold(num_classes: int) -> None:
    labels = make_labels(400, num_classes, seed=3)
    table = make_table(labels, {}, seed=4)
    found = choose(table, labels, candidates=[EARLY, MID_CELLS, TOP], penalties=(1.0, 0.01))
    chance = 1 / num_classes
    accuracy = (found.out_of_fold_probs.argmax(axis=1) == labels).mean()
    assert abs(accuracy - chance) < 4 * np.sqrt(chance * (1 - chance) / 400)
    np.testing.assert_allclose(found.out_of_fold_probs.mean(axis=0), chance, atol=0.05)
    assert found.out_of_fold_probs.max() < 0.9  # the temperature has taken the false confidence away
    fitted = choose(table, labels, candidates=[EARLY + MID_CELLS + TOP], penalties=(0.01,))
    memorised = fitted.head.compute_logits(table, LAYOUT).argmax(axis=1)
    assert (memorised == labels).mean() > 0.95  # while the fit on all of them knows them by heart


def test_the_same_seed_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MAX_COMPONENTS", 80)  # so few that the range finder has to find them
    labels = make_labels(210, 3)
    table = make_table(labels, {"mid": 0.5, "top": 0.3})
    folds = make_folds(labels, 3, repeats=2)
    first, second, other = (choose(table, labels, seed=seed, folds=folds, penalties=(0.3,)) for seed in (5, 5, 6))
    assert first.head.coef.tobytes() == second.head.coef.tobytes()
    assert first.head.intercept.tobytes() == second.head.intercept.tobytes()
    assert first.out_of_fold_probs.tobytes() == second.out_of_fold_probs.tobytes()
    assert first.scores == second.scores
    assert other.head.layers == first.head.layers
    assert other.scores != first.scores  # the range finder draws: the generator is used
    assert np.abs(other.out_of_fold_probs - first.out_of_fold_probs).mean() < 0.05


def test_class_weights_move_the_decision_towards_the_rare_class() -> None:
    labels = (np.arange(400) % 20 == 0).astype(np.int64)
    table = make_table(labels, {"top": 0.25})
    options: dict[str, Any] = {"candidates": [TOP], "penalties": (1.0,)}
    plain = choose(table, labels, **options)
    balanced = choose(table, labels, class_weights=400 / (2 * np.bincount(labels)), **options)
    same = choose(table, labels, class_weights=np.ones(2), **options)
    share = [(found.out_of_fold_probs.argmax(axis=1) == 1).mean() for found in (plain, balanced)]
    assert share[0] < 0.05 < share[1]
    assert same.head.coef.tobytes() == plain.head.coef.tobytes()


def test_the_order_of_classes_changes_only_the_order() -> None:
    labels = make_labels(250, 5)
    table = make_table(labels, {"mid": 0.5})
    order = np.array([3, 0, 4, 1, 2])
    first = choose(table, labels, folds=make_folds(labels), penalties=(1.0, 0.1))
    second = choose(table, order[labels], folds=make_folds(labels), penalties=(1.0, 0.1))
    assert second.head.layers == first.head.layers
    assert second.head.penalty == first.head.penalty
    np.testing.assert_allclose(second.out_of_fold_probs[:, order], first.out_of_fold_probs, atol=2e-3)


@pytest.mark.parametrize("num_classes", [2, 17, 50])
def test_from_2_to_50_classes(num_classes: int) -> None:
    labels = make_labels(max(60, 8 * num_classes), num_classes)
    found = choose(make_table(labels, {"top": 8.0}), labels, folds=make_folds(labels, 3), **FEW)
    assert found.head.layers == TOP
    assert found.out_of_fold_probs.shape == (len(labels), num_classes)
    np.testing.assert_allclose(found.out_of_fold_probs.sum(axis=1), 1, rtol=1e-5)
    assert (found.out_of_fold_probs.argmax(axis=1) == labels).mean() > 0.6


def test_a_class_of_two_pictures_and_two_folds() -> None:
    labels = np.array([0] * 30 + [1] * 30 + [2] * 2)
    found = choose(make_table(labels, {"top": 3.0}), labels, folds=make_folds(labels, 2))
    assert (found.out_of_fold_probs.argmax(axis=1) == labels).mean() > 0.9
    found = choose(make_table(labels[-4:] % 2, {"top": 3.0}), labels[-4:] % 2, folds=np.array([[0, 0, 1, 1]]))
    assert found.out_of_fold_probs.shape == (4, 2)


@pytest.mark.parametrize("num_images", [4, 12, 300])
def test_pictures_that_are_all_alike_are_no_error(num_images: int) -> None:
    """One-colour pictures, or a thousand copies saved anew: nothing to learn, and nothing to divide by."""
    labels = np.arange(num_images) % 2
    table = np.tile(make_table(labels, {})[:1], (num_images, 1))
    found = choose(table, labels, folds=make_folds(labels, 2), **FEW)
    assert np.isfinite(found.head.coef).all()
    np.testing.assert_allclose(found.out_of_fold_probs, 0.5, atol=0.05)
    table[:, -150:] = make_table(labels, {"top": 2.0})[:, -150:]  # and one layer that does tell
    assert choose(table, labels, folds=make_folds(labels, 2), **FEW).head.layers == TOP


# Parts


@pytest.mark.parametrize("shape", [(200, 90), (100, 400), (800, 400)])  # each Gram matrix, and the range finder
def test_components_span_what_the_exact_decomposition_spans(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rank = min(shape)
    rows = rng.normal(size=(shape[0], rank)) * np.exp(-np.arange(rank) / 40) @ rng.normal(size=(rank, shape[1]))
    rows += 0.3 * rng.normal(size=shape)
    rows = (rows - rows.mean(axis=0)).astype(np.float32)
    axes, projected = components.find_components(rows, 80, np.random.default_rng(1))
    assert axes.shape == (shape[1], 80)
    np.testing.assert_allclose(projected, rows @ axes, atol=1e-3)
    np.testing.assert_allclose(axes.T @ axes, np.eye(80), atol=1e-3)
    exact = np.linalg.svd(rows, full_matrices=False)[1][:80] ** 2
    kept = ((rows @ axes) ** 2).sum(axis=0)
    assert kept.sum() >= 0.98 * exact.sum()
    assert kept.sum() <= 1.0001 * exact.sum()
    np.testing.assert_allclose(kept[:20], exact[:20], rtol=0.02)  # the leading first, one by one


def test_components_are_at_most_what_there_is() -> None:
    rng = np.random.default_rng(0)
    for shape, most in (((5, 40), 4), ((40, 5), 5), ((2, 300), 1), ((3, 300), 2)):
        rows = rng.normal(size=shape)
        rows = (rows - rows.mean(axis=0)).astype(np.float32)
        axes, _ = components.find_components(rows, 128, rng)
        assert axes.shape == (shape[1], most)
        np.testing.assert_allclose(((rows @ axes) ** 2).sum(), (rows**2).sum(), rtol=1e-3)


def test_a_part_has_every_class_and_fold_by_its_share() -> None:
    labels = np.repeat([0, 1, 2, 3], [600, 300, 95, 5])
    folds = make_folds(labels)
    sample, rng = Sample(labels, np.ones(1000), folds, 4), np.random.default_rng(0)
    part = cross_validation.draw_part(sample, 200, rng)
    assert list(part) == sorted(set(part))
    np.testing.assert_array_equal(np.bincount(labels[part]), [120, 60, 19, 2])
    by_fold = np.bincount(folds[0, part][labels[part] == 0], minlength=5)
    assert by_fold.min() >= 23
    assert by_fold.max() <= 25
    np.testing.assert_array_equal(cross_validation.draw_part(sample, 1000, rng), np.arange(1000))
    assert set(cross_validation.draw_part(sample, 200, rng)) != set(part)  # drawn by the generator


def test_least_squares_out_of_fold_are_fits_without_the_fold() -> None:
    """Against scikit-learn's ridge regression on the other folds, with weights."""
    rng = np.random.default_rng(0)
    labels = make_labels(120, 3)
    rows = (rng.normal(size=(120, 7)) + np.eye(7)[labels]).astype(np.float32)
    importance, folds = rng.uniform(0.5, 2, 120), make_folds(labels, 4, repeats=2)
    found = cross_validation.predict_by_least_squares(rows, Sample(labels, importance, folds, 3), (2.0, 0.1))
    assert found.shape == (2, 2, 120, 3)
    for way, number, fold in np.ndindex(2, 2, 4):
        held = folds[way] == fold
        weights = importance[~held] / importance[~held].sum()
        model = Ridge((2.0, 0.1)[number]).fit(rows[~held], 10 * np.eye(3)[labels[~held]], sample_weight=weights)
        # Its objective is this one: the weights sum to 1.
        np.testing.assert_allclose(found[way, number, held], model.predict(rows[held]), atol=1e-3)


def test_least_squares_of_small_folds_are_the_same_fits() -> None:
    rng = np.random.default_rng(0)
    labels = make_labels(120, 3)
    rows = (rng.normal(size=(120, 90)) + np.eye(90)[labels]).astype(np.float32)
    folds = np.stack([rng.permutation(np.arange(120) % 4), rng.permutation(np.arange(120) % 6)])
    found = cross_validation.predict_by_least_squares(rows, Sample(labels, np.ones(120), folds, 3), (2.0, 0.1))
    for way, number in np.ndindex(2, 2):
        for fold in np.unique(folds[way]):
            held = folds[way] == fold
            model = Ridge((2.0, 0.1)[number] * (~held).sum()).fit(rows[~held], 10 * np.eye(3)[labels[~held]])
            np.testing.assert_allclose(found[way, number, held], model.predict(rows[held]), atol=1e-3)


def test_the_winner_is_refined_by_the_neighbours_of_its_best_penalty() -> None:
    labels = make_labels(150, 3)
    table = make_table(labels, {"mid": 0.4})
    sample = Sample(labels, np.ones(150), make_folds(labels), 3)
    whole = comparison.Table(table, LAYOUT, sample, fit_logistic)
    blocks = whole.project_all(MID, np.random.default_rng(0))
    first = comparison.compare(whole, MID, blocks, 100, PENALTIES[1::2])
    refined = comparison.refine(whole, first, PENALTIES)
    best = PENALTIES.index(first.result.penalties[first.result.best])
    expected = {*PENALTIES[1::2], PENALTIES[best - 1], PENALTIES[best + 1]}
    assert refined.result.penalties == tuple(sorted(expected, reverse=True))
    complete = comparison.compare(whole, MID, blocks, 100, refined.result.penalties)
    assert refined.logits is not None
    assert complete.logits is not None
    np.testing.assert_allclose(refined.logits, complete.logits, atol=0.02)
    np.testing.assert_allclose(refined.result.losses, complete.result.losses, atol=0.02)
    assert comparison.refine(whole, refined, refined.result.penalties) is refined


def record_widths(widths: list[tuple[int, int]]) -> Fitter:
    """fit_logistic, which notes the columns and the number of its problems."""

    def fit(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, *rest: Any, **start: Any) -> np.ndarray:
        widths.append((rows.shape[1], len(weights)))
        return fit_logistic(rows, labels, weights, *rest, **start)

    return fit


def test_candidates_keep_as_many_components_a_layer_as_they_can_afford(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = make_labels(400, 3)
    table = make_table(labels, {"mid cells": 0.35, "top": 0.35})
    # 400 pictures, 5 fits, 3 classes, 5 layers: 100 components a layer.
    monkeypatch.setattr(comparison, "_MAX_WORK_OF_CANDIDATE", 400 * 5 * 3 * 5 * 100)
    widths: list[tuple[int, int]] = []
    found = choose(table, labels, penalties=(1.0,), fit=record_widths(widths))
    assert sorted(widths)[:-1] == [(100, 5), (100, 5), (150, 5), (200, 5), (300, 5)]  # the top layer is tried in full
    assert widths[-1] == (399 + 150, 6)
    assert found.head.layers == MID_CELLS + TOP


def test_many_classes_leave_two_finalists_and_fewer_components(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = make_labels(400, 3)
    table = make_table(labels, {"mid cells": 0.35, "top": 0.35})
    monkeypatch.setattr(comparison, "_MAX_WORK_OF_CANDIDATE", 400 * 5 * 3 * 5 * 15)
    monkeypatch.setattr(selection, "_MAX_FIT_WORK", 400 * 6 * 3 * 2 * 70)
    widths: list[tuple[int, int]] = []
    found = choose(table, labels, penalties=(1.0,), fit=record_widths(widths))
    assert {score.layers for score in found.scores if score.is_finalist} == {TOP, MID_CELLS + TOP}
    assert widths == [(150, 5), (128, 5), (140, 6)]
    assert found.head.layers == MID_CELLS + TOP
    assert (found.out_of_fold_probs.argmax(axis=1) == labels).mean() > 0.7


def test_kept_logits_are_those_of_the_final_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = make_labels(240, 3)
    table = make_table(labels, {"mid": 0.5})
    table[:, LAYOUT.num_features - 150 - 520 : -150] *= np.linspace(0.2, 4, 520).astype(np.float16)
    kept = choose(table, labels, candidates=[MID])
    assert kept.head.penalty != PENALTIES[0]
    monkeypatch.setattr(comparison, "_MAX_KEPT_LOGITS", 0)
    anew = choose(table, labels, candidates=[MID])
    np.testing.assert_allclose(kept.head.coef, anew.head.coef, atol=1e-3)
    np.testing.assert_allclose(kept.out_of_fold_probs, anew.out_of_fold_probs, atol=1e-2)
    monkeypatch.setattr(selection, "_MAX_TEMPERATURE_NUMBERS", 240)
    part = choose(table, labels, candidates=[MID]).head.temperature
    assert part != anew.head.temperature
    assert part == pytest.approx(anew.head.temperature, rel=0.3)


@pytest.mark.parametrize("limit", [60, 512])
def test_the_final_fit_starts_from_the_folds_of_the_comparison(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    labels = make_labels(400, 3)
    table = make_table(labels, {"mid cells": 0.35, "top": 0.35})
    monkeypatch.setattr(comparison, "_MAX_WORK_OF_CANDIDATE", 400 * 5 * 3 * 5 * 100)
    monkeypatch.setattr(selection, "MAX_COMPONENTS", limit)  # of the final fit: fewer and more than were compared
    monkeypatch.setattr(selection, "MIN_COMPONENTS", 1)
    distances: list[float] = []

    def fit(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, *rest: Any, **start: Any) -> np.ndarray:
        solution = fit_logistic(rows, labels, weights, *rest, **start)
        if start:
            cold = np.zeros_like(start["start"])
            distances.extend(np.linalg.norm(solution - each) for each in (start["start"], cold))
            anew = fit_logistic(rows, labels, weights, *rest)
            np.testing.assert_allclose(solution, anew, atol=0.02 * np.abs(anew).max())
        return solution

    choose(table, labels, penalties=(1.0,), fit=fit)
    near, far = distances
    assert near < 0.6 * far


def test_errors_and_losses_are_means_over_the_ways_to_divide() -> None:
    rng = np.random.default_rng(0)
    labels = make_labels(90, 3)
    logits = (np.eye(3)[labels] + rng.normal(0, 1, (2, 4, 90, 3))).astype(np.float32)
    result = cross_validation.judge(TOP, PENALTIES[:4], logits, labels)
    assert result.errors.shape == result.losses.shape == (4, 90)
    for number in range(4):
        both = np.concatenate(logits[:, number])
        losses = cross_validation.compute_calibrated_losses(both, np.concatenate([labels, labels]))
        np.testing.assert_allclose(result.losses[number], (losses[:90] + losses[90:]) / 2)
        wrong = [logits[way, number].argmax(axis=1) != labels for way in range(2)]
        np.testing.assert_allclose(result.errors[number], (wrong[0].astype(float) + wrong[1]) / 2)


def test_many_classes_take_some_rows_for_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = make_labels(900, 3)
    logits = (3 * np.eye(3)[labels] + np.random.default_rng(0).normal(0, 3, (900, 3))).astype(np.float32)
    exact = cross_validation.compute_calibrated_losses(logits, labels)
    monkeypatch.setattr(cross_validation, "_MAX_TEMPERATURE_NUMBERS", 900)
    assert exact.mean() < cross_validation.compute_calibrated_losses(logits, labels).mean() < 1.02 * exact.mean()


def test_wide_candidates_keep_the_columns_that_vary_most() -> None:
    first, second = np.diag([3.0, 1, 0.1]).astype(np.float32), np.diag([2.0, 0.5, 0.2]).astype(np.float32)
    kept = comparison._join([first, second], 3)
    np.testing.assert_array_equal(kept, np.stack([first[:, 0], first[:, 1], second[:, 0]], axis=1))
    assert comparison._join([first, second], 6).shape == (3, 6)


@pytest.mark.parametrize(("excess", "expected"), [(-5, True), (8, True), (9, False), (30, False)])
def test_a_top_layer_near_the_best_ends_the_comparison(excess: int, expected: bool) -> None:
    errors = (np.arange(3000) < 300).astype(float)
    more = (np.arange(3000) < 300 + excess).astype(float)
    # The standard error of 300 in 3000 is 16.4 pictures, half of it 8.2.
    results = [Result(EARLY, (1.0,), errors[None], errors[None]), Result(TOP, (1.0,), more[None], more[None])]
    assert comparison.is_decided(results, LAYOUT) is expected
    assert not comparison.is_decided(results[:1], LAYOUT)


def test_large_tables_are_screened_on_a_part_and_fitted_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_SCREEN_ROWS", 120)
    for name, value in {"_CHOICE_ROWS": 200, "_ROWS_PER_READ": 70, "_ROWS_PER_TASK": 20}.items():
        monkeypatch.setattr(selection, name, value)
    labels = make_labels(500, 3)
    table = make_table(labels, {"mid": 0.8})
    reads: list[int] = []

    def read(indices: np.ndarray) -> np.ndarray:
        reads.append(len(indices))
        return table[indices]

    found = select_head(read, LAYOUT, labels, make_folds(labels), 3, rng=np.random.default_rng(0))
    assert max(reads) <= 70  # never more rows in memory than asked for at once
    assert sum(reads) == 200 + 500  # once to compare, and once to fit
    assert {score.num_images for score in found.scores if score.is_finalist} == {200}
    assert {score.num_images for score in found.scores if not score.is_finalist} == {120}
    assert found.head.layers == MID
    assert (found.out_of_fold_probs.argmax(axis=1) == labels).mean() > 0.9


# The other penalties of the winner


def test_the_other_penalties_of_the_winner_are_as_if_compared_from_the_start() -> None:
    labels = make_labels(120, 3)
    sample = Sample(labels, np.ones(120, np.float32), make_folds(labels), 3)
    table = comparison.Table(make_table(labels, {"top": 0.5}), LAYOUT, sample, fit_logistic)
    penalties = (30.0, 3.0, 0.3, 0.03, 0.003)
    blocks = table.project_all(TOP, np.random.default_rng(0))
    coarse = comparison.compare(table, TOP, blocks, 64, penalties[1::2])
    refined = comparison.refine(table, coarse, penalties).result
    best = penalties.index(coarse.result.penalties[coarse.result.best])
    assert set(refined.penalties) == {penalties[best - 1], penalties[best + 1], *penalties[1::2]}
    direct = comparison.compare(table, TOP, blocks, 64, refined.penalties).result
    np.testing.assert_array_equal(refined.errors, direct.errors)
    np.testing.assert_allclose(refined.losses, direct.losses, atol=1e-4)
    assert len(np.unique(refined.losses.mean(axis=1))) == len(refined.penalties)


def test_a_winner_gets_the_best_of_all_penalties() -> None:
    labels = make_labels(240, 2)
    found = choose(make_table(labels, {"early": 1.0}), labels, penalties=(1.0, 10.0, 0.1, 20.0, 0.3))
    assert found.head.layers == EARLY
    assert found.head.penalty in (1.0, 0.3, 0.1)  # 10 and 20 are tried first
