"""The solver against finite differences, scikit-learn, itself one problem at a time, and hostile data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from headstart.heads import fitting
from headstart.heads.fitting import fit_logistic


def make_rows(num_rows: int, num_columns: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes in centred columns of falling spread, like principal components; every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_rows - num_classes)])
    centres = rng.normal(0, 0.7, (num_classes, num_columns))
    rows = (centres[labels] + rng.normal(0, 1, (num_rows, num_columns))) / np.sqrt(1 + np.arange(num_columns))
    return (rows - rows.mean(axis=0)).astype(np.float32), labels


def spread_evenly(num_problems: int, num_rows: int) -> np.ndarray:
    return np.full((num_problems, num_rows), 1 / num_rows, np.float32)


def compute_objective(
    rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, penalty: float, solution: np.ndarray
) -> float:
    """The sum of the module's docstring in float64, written out."""
    logits = rows.astype(np.float64) @ solution[:-1].astype(np.float64) + solution[-1].astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return float(weights.astype(np.float64) @ losses + penalty / 2 * (solution[:-1].astype(np.float64) ** 2).sum())


def compute_probs(rows: np.ndarray, solution: np.ndarray) -> np.ndarray:
    logits = rows.astype(np.float64) @ solution[:-1] + solution[-1]
    logits -= logits.max(axis=1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_objective_and_gradient_are_those_of_the_formula() -> None:
    rows, labels = make_rows(40, 6, 3)
    rng = np.random.default_rng(1)
    weights = rng.random((2, 40)).astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    penalties = np.array([0.3, 2.0])
    ridge = np.zeros((2, 7, 1), np.float32)
    ridge[:, :-1, 0] = penalties[:, None]
    scale = fitting._compute_scale(rows, penalties, 3)
    params = rng.normal(size=(2, 7, 3)).astype(np.float32)
    objective, gradient = fitting._evaluate(rows, labels, weights.T.copy(), ridge, params, scale)
    for problem in range(2):

        def measure(scaled: np.ndarray, problem: int = problem) -> float:
            coefs = scaled / scale[problem]
            return compute_objective(rows, labels, weights[problem], penalties[problem], coefs)

        start = params[problem].astype(np.float64)
        assert objective[problem] == pytest.approx(measure(start), rel=1e-5)
        for row, column in np.ndindex(7, 3):
            step = np.zeros((7, 3))
            step[row, column] = 1e-4
            slope = (measure(start + step) - measure(start - step)) / 2e-4
            assert gradient[problem, row, column] == pytest.approx(slope, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("num_classes", "penalty"), [(2, 0.03), (2, 1.0), (3, 0.1), (10, 0.01), (10, 3.0)])
def test_solutions_are_scikit_learns(num_classes: int, penalty: float) -> None:
    """With all rows, with weights, and with folds left out."""
    rows, labels = make_rows(300, 20, num_classes)
    rng = np.random.default_rng(2)
    weights = np.stack([np.ones(300), rng.uniform(0.2, 3, 300), rng.random(300) > 0.3, np.arange(300) % 5 != 0])
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    # Two classes: scikit-learn fits one vector where we fit two of half its length, which halves the penalty's sum.
    c = 1 / penalty if num_classes > 2 else 2 / penalty
    for tolerance, atol in ((1e-4, 1e-3), (1e-3, 4e-3)):
        solutions = fit_logistic(rows, labels, weights, np.full(4, penalty), num_classes, tolerance)
        assert solutions.shape == (4, 21, num_classes)
        assert solutions.dtype == np.float32
        for solution, given in zip(solutions, weights, strict=True):
            # Its objective is C * sum_i s_i loss_i + ||w||^2 / 2, here with our weights as s.
            model = LogisticRegression(C=c, tol=1e-8, max_iter=5000)
            model.fit(rows.astype(np.float64), labels, sample_weight=given.astype(np.float64))
            np.testing.assert_allclose(compute_probs(rows, solution), model.predict_proba(rows), atol=atol)


def test_the_weights_of_all_rows_alike_are_c_of_one_over_penalty_times_rows() -> None:
    rows, labels = make_rows(300, 20, 4)
    solution = fit_logistic(rows, labels, spread_evenly(1, 300), np.array([0.05]), 4, tolerance=1e-4)[0]
    model = LogisticRegression(C=1 / (0.05 * 300), tol=1e-8, max_iter=5000).fit(rows.astype(np.float64), labels)
    np.testing.assert_allclose(compute_probs(rows, solution), model.predict_proba(rows), atol=1e-3)
    np.testing.assert_allclose(solution[:-1], model.coef_.T, atol=5e-3)


def test_many_problems_at_once_are_one_at_a_time() -> None:
    rows, labels = make_rows(200, 15, 5)
    weights = np.stack([(np.arange(200) % 5 != fold).astype(np.float32) / 160 for fold in range(5)])
    weights = np.tile(weights, (3, 1))
    penalties = np.repeat([10.0, 0.3, 0.01], 5)
    together = fit_logistic(rows, labels, weights, penalties, 5)
    for problem in range(15):
        alone = fit_logistic(rows, labels, weights[problem : problem + 1], penalties[problem : problem + 1], 5)[0]
        np.testing.assert_allclose(compute_probs(rows, together[problem]), compute_probs(rows, alone), atol=1e-3)


def test_a_row_of_weight_0_has_no_say() -> None:
    rows, labels = make_rows(100, 8, 3)
    weights = np.where(np.arange(100) < 80, 1 / 80, 0).astype(np.float32)[None]
    disturbed, other = rows.copy(), labels.copy()
    disturbed[80:] = disturbed[80:][::-1]  # the same rows, so that the scale of the columns stays
    other[80:] = (other[80:] + 1) % 3
    first = fit_logistic(rows, labels, weights, np.array([0.1]), 3)[0]
    second = fit_logistic(disturbed, other, weights, np.array([0.1]), 3)[0]
    np.testing.assert_allclose(first, second, atol=1e-4)


def make_separable() -> tuple[np.ndarray, np.ndarray, int]:
    labels = np.arange(60) % 3
    return (100 * np.eye(3)[labels] - 100 / 3).astype(np.float32), labels, 3


def make_constant() -> tuple[np.ndarray, np.ndarray, int]:
    rows, labels = make_rows(50, 6, 3)
    rows[:, [0, 4]] = 0
    return rows, labels, 3


def make_all_constant() -> tuple[np.ndarray, np.ndarray, int]:
    return np.zeros((30, 4), np.float32), np.arange(30) % 2, 2


def make_wide() -> tuple[np.ndarray, np.ndarray, int]:
    return (*make_rows(12, 300, 4), 4)


def make_single() -> tuple[np.ndarray, np.ndarray, int]:
    return np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32), np.arange(7), 7


def make_uneven() -> tuple[np.ndarray, np.ndarray, int]:
    rows, _ = make_rows(200, 5, 2)
    return rows * np.float32(1e3), (np.arange(200) == 0).astype(int), 3  # one row of class 1, none of class 2


HOSTILE = [make_separable, make_constant, make_all_constant, make_wide, make_single, make_uneven]


@pytest.mark.parametrize("make", HOSTILE)
@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0, 1e4])
def test_hostile_data_give_finite_solutions_near_the_optimum(make, penalty: float) -> None:  # type: ignore[no-untyped-def]
    """Without a warning: pytest turns each into an error."""
    rows, labels, num_classes = make()
    weights = spread_evenly(1, len(rows))
    solution = fit_logistic(rows, labels, weights, np.array([penalty]), num_classes)[0]
    assert np.isfinite(solution).all()
    reached = compute_objective(rows, labels, weights[0], penalty, solution)
    start = compute_objective(rows, labels, weights[0], penalty, np.zeros_like(solution))
    exact = fit_logistic(rows, labels, weights, np.array([penalty]), num_classes, tolerance=1e-6)[0]
    least = compute_objective(rows, labels, weights[0], penalty, exact)
    assert reached - least <= 0.01 * (start - least) + 1e-6
    present = np.unique(labels)
    if len(present) == num_classes > 2:
        model = LogisticRegression(C=1 / penalty, tol=1e-6, max_iter=20_000)
        model.fit(rows.astype(np.float64), labels, sample_weight=weights[0].astype(np.float64))
        best = compute_objective(rows, labels, weights[0], penalty, np.vstack([model.coef_.T, model.intercept_]))
        assert reached - best <= 0.01 * (start - best) + 1e-6


def test_a_strong_penalty_leaves_the_frequencies_and_a_weak_one_separates() -> None:
    rows, labels = make_rows(90, 4, 3)
    labels = np.repeat([0, 0, 0, 1, 1, 2], 15)
    strong = fit_logistic(rows, labels, spread_evenly(1, 90), np.array([1e4]), 3)[0]
    np.testing.assert_allclose(compute_probs(rows, strong), np.tile([1 / 2, 1 / 3, 1 / 6], (90, 1)), atol=2e-3)
    rows, labels, _ = make_separable()
    weak = fit_logistic(rows, labels, spread_evenly(1, 60), np.array([1e-4]), 3)[0]
    assert (compute_probs(rows, weak)[np.arange(60), labels] > 0.99).all()


def test_halves_in_threads_solve_the_same_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = make_rows(150, 12, 3)
    penalties = np.array([1.0, 0.3, 0.1, 0.03, 0.01])
    weights = spread_evenly(5, 150)
    together = fit_logistic(rows, labels, weights, penalties, 3, tolerance=1e-4)
    monkeypatch.setattr(fitting, "_WORTH_THREADS", 0)
    sizes: list[int] = []
    fit_together = fitting._fit_together

    def note(*args: Any) -> np.ndarray:
        sizes.append(len(args[3]))
        return fit_together(*args)

    monkeypatch.setattr(fitting, "_fit_together", note)
    apart = [fit_logistic(rows, labels, weights, penalties, 3, tolerance=1e-4)]
    monkeypatch.setenv("HEADSTART_THREADS", "1")
    apart.append(fit_logistic(rows, labels, weights, penalties, 3, tolerance=1e-4))
    assert sorted(sizes) == [2, 2, 3, 3]
    np.testing.assert_allclose(apart[0], together, atol=2e-3)
    assert apart[0].tobytes() == apart[1].tobytes()  # however many threads there are
