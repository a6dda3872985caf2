"""Learning curves, forecasts and diagnoses, against Gaussians whose best possible error is known."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from headstart.errors import ConfigError, DataError
from headstart.heads.components import fit_projection
from headstart.heads.fitting import fit_logistic
from headstart.insight import learning_curve
from headstart.insight.diagnosis import describe_learning_curve, diagnose
from headstart.insight.forecast import Shape, forecast
from headstart.insight.learning_curve import LearningCurve, compute_learning_curve

PENALTY = 0.1


def draw_gaussians(
    num_images: int, num_features: int, distance: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two round clouds whose centres lie `2 * distance` apart: nothing can do better than Phi(-distance)."""
    labels = np.arange(num_images) % 2
    rows = rng.standard_normal((num_images, num_features)).astype(np.float32)
    rows[:, 0] += np.where(labels == 1, distance, -distance)
    return rows, labels


def make_curve(rows: np.ndarray, labels: np.ndarray, num_classes: int = 2, **options: object) -> LearningCurve:
    settings: dict[str, object] = {"penalty": PENALTY, "rng": np.random.default_rng(0)}
    keys = [str(index) for index in range(len(rows))]
    return compute_learning_curve(rows, labels, keys, num_classes, **(settings | options))  # type: ignore[arg-type]


class Truth:
    """20,000 pictures that no curve sees, on which the error of a head is as good as known."""

    def __init__(self, num_features: int, distance: float, rng: np.random.Generator) -> None:
        rows, self.labels = draw_gaussians(20_000, num_features, distance, rng)
        self.projection, self.inputs = fit_projection(rows, 512, rng)

    def measure(self, rows: np.ndarray, labels: np.ndarray) -> float:
        """The error of a head that learns from these pictures."""
        weights = np.full((1, len(rows)), 1 / len(rows), np.float32)
        fit = fit_logistic(self.projection.apply(rows), labels, weights, np.array([PENALTY]), 2)[0]
        return float(((self.inputs @ fit[:-1] + fit[-1]).argmax(axis=1) != self.labels).mean())


def set_errors(curve: LearningCurve, train: float, unseen: float, num_images: int = 2000) -> LearningCurve:
    """A curve that has come to rest at these errors, counted on `num_images` pictures."""
    num_sizes = len(curve.sizes)
    variance = unseen * (1 - unseen) / num_images
    covariance = np.full((num_sizes, num_sizes), 0.9 * variance) + np.eye(num_sizes) * (0.1 * variance + 1e-7)
    half = 2 * np.sqrt(train * (1 - train) / num_images + 1 / num_images**2)
    return replace(
        curve,
        train_error=np.full(num_sizes, train),
        train_band=np.tile([max(0, train - half), train + half], (num_sizes, 1)),
        unseen_error=np.full(num_sizes, unseen),
        covariance=covariance,
        num_groups=num_images,
        num_images=num_images,
    )


@pytest.fixture(scope="module")
def falling() -> LearningCurve:
    return make_curve(*draw_gaussians(400, 100, 1.5, np.random.default_rng(1)))


@pytest.fixture(scope="module")
def flat() -> LearningCurve:
    return make_curve(*draw_gaussians(1500, 2, 1.0, np.random.default_rng(2)))


@pytest.fixture(scope="module")
def separable() -> LearningCurve:
    return make_curve(*draw_gaussians(200, 5, 20.0, np.random.default_rng(3)))


def test_the_curve_falls_to_the_error_that_really_comes(falling: LearningCurve) -> None:
    assert falling.sizes[-1] == 320
    assert (np.diff(falling.sizes) > 0).all()
    assert falling.unseen_error[0] > falling.unseen_error[-1] + 0.05
    rng = np.random.default_rng(4)
    truth = Truth(100, 1.5, rng)
    for size, (low, high) in zip(falling.sizes, falling.unseen_band, strict=True):
        found = np.mean([truth.measure(*draw_gaussians(round(size), 100, 1.5, rng)) for _ in range(8)])
        assert low - 0.01 <= found <= high + 0.01, size


def test_a_flat_curve_lies_at_the_best_possible_error(flat: LearningCurve) -> None:
    best = NormalDist().cdf(-1.0)
    low, high = flat.unseen_band[-1]
    assert low < best < high
    assert high - low < 0.04
    assert abs(flat.train_error[-1] - best) < 0.02


def test_the_forecast_holds_what_twice_the_pictures_bring() -> None:
    rng = np.random.default_rng(5)
    truth = Truth(40, 1.5, rng)
    near, inside = [], []
    for _ in range(6):
        pictures = draw_gaussians(800, 40, 1.5, rng)
        curve = make_curve(pictures[0][:400], pictures[1][:400])
        expected = forecast(curve, rng=np.random.default_rng(0))
        assert expected.num_images == 800
        found = truth.measure(*pictures)
        near.append(abs(expected.then.error - found) < 0.02)
        inside.append(expected.then.low <= found <= expected.then.high)
    assert sum(near) >= 5
    assert sum(inside) >= 5


def test_more_pictures_are_promised_where_they_help(falling: LearningCurve) -> None:
    expected = forecast(falling, rng=np.random.default_rng(0))
    assert expected.gain.low > 0.005
    assert expected.then.error < expected.now.error
    diagnosis = diagnose(falling, expected)
    assert diagnosis.verdict in ("variance", "both")
    start = "Add pictures: 400 more are expected to lower the error by "
    assert any(text.startswith(start) for text in diagnosis.suggestions)


def test_more_pictures_are_not_promised_where_they_do_not_help(flat: LearningCurve) -> None:
    expected = forecast(flat, rng=np.random.default_rng(0))
    assert expected.gain.error < 0.005
    diagnosis = diagnose(flat, expected, 0.95)
    assert diagnosis.verdict == "bias"
    assert diagnosis.needed is not None
    assert diagnosis.needed.high == np.inf
    assert diagnosis.needed.median > 20 * flat.num_images
    assert not any("Add pictures" in text for text in diagnosis.suggestions)
    assert "Fine-tune" in diagnosis.suggestions[0]


def test_no_error_at_all_is_not_a_promise_of_none(separable: LearningCurve) -> None:
    assert not separable.unseen_error.any()
    low, high = separable.unseen_band[-1]
    assert low == 0
    assert 3 / 200 < high < 4 / 200  # the rule of three, and Wilson's z * z / (n + z * z)
    expected = forecast(separable, rng=np.random.default_rng(0))
    assert 0 <= expected.then.low < 0.001 < 0.005 < expected.then.high < 0.03
    diagnosis = diagnose(separable, expected)
    assert diagnosis.verdict == "neither"
    assert diagnose(separable, expected, 0.9).suggestions == ("Nothing needs to be done for this target.",)


def test_copies_of_a_picture_stay_on_one_side() -> None:
    # Labels by chance: only who has seen a copy can know them.
    rng = np.random.default_rng(6)
    rows = np.repeat(rng.standard_normal((100, 200)).astype(np.float32), 4, axis=0)
    labels = np.repeat(rng.permutation(np.arange(100) % 2), 4)
    keys = [str(index // 4) for index in range(400)]
    curve = compute_learning_curve(rows, labels, keys, 2, penalty=1e-3, rng=rng)
    assert curve.train_error[-1] < 0.01
    assert curve.unseen_error[-1] > 0.35
    assert curve.num_groups == 100
    low, high = curve.unseen_band[-1]
    assert high - low > 0.15  # as of 100 pictures, not of 400


@pytest.mark.parametrize("num_images", [4, 8, 19])
def test_too_few_pictures_are_refused_with_the_number_needed(num_images: int) -> None:
    rows, labels = draw_gaussians(num_images, 5, 1.0, np.random.default_rng(7))
    with pytest.raises(DataError, match=f"There are {num_images} training pictures of 2 classes.*at least 20"):
        make_curve(rows, labels)


def test_the_fewest_pictures_give_a_curve() -> None:
    curve = make_curve(*draw_gaussians(20, 5, 1.0, np.random.default_rng(8)))
    assert len(curve.sizes) == 3
    assert forecast(curve, rng=np.random.default_rng(0)).then.high > 0.15


def test_two_pictures_a_class_are_too_few_however_many_classes() -> None:
    rows = np.random.default_rng(9).standard_normal((60, 5)).astype(np.float32)
    with pytest.raises(DataError, match="60 training pictures of 30 classes.*at least 150"):
        make_curve(rows, np.arange(60) % 30, 30)


def test_a_tiny_class_is_kept_at_every_size_and_its_range_is_wide() -> None:
    rng = np.random.default_rng(10)
    rows, labels = draw_gaussians(300, 5, 2.0, rng)
    tiny = rng.standard_normal((2, 5)).astype(np.float32) + 6
    curve = make_curve(np.concatenate([rows, tiny]), np.concatenate([labels, [2, 2]]), 3)
    assert curve.class_errors[0, 2] < 0.5  # one of its two pictures is learnt from at the smallest size too
    assert curve.class_groups.tolist() == [150, 150, 2]
    expected = forecast(curve, rng=np.random.default_rng(0))
    widths = [each.high - each.low for each in expected.classes_then]
    assert widths[2] > 0.3 > 0.1 > max(widths[:2])


def test_weights_of_classes_reach_the_fits() -> None:
    rng = np.random.default_rng(11)
    rows, labels = draw_gaussians(600, 5, 0.5, rng)
    kept = (labels == 0) | (np.arange(600) < 120)
    plain = make_curve(rows[kept], labels[kept])
    balanced = make_curve(rows[kept], labels[kept], class_weights=np.array([0.6, 3.0]))
    assert balanced.class_errors[-1, 1] < plain.class_errors[-1, 1] - 0.2


def test_errors_by_class_add_up(falling: LearningCurve) -> None:
    np.testing.assert_allclose(falling.class_errors.mean(axis=1), falling.unseen_error, rtol=1e-12)


def test_the_worse_class_has_the_worse_forecast() -> None:
    rng = np.random.default_rng(12)
    rows = rng.standard_normal((600, 4)).astype(np.float32)
    labels = np.arange(600) % 3
    rows[labels == 0, 0] += 8
    rows[labels == 1, 1] += 1
    expected = forecast(make_curve(rows, labels, 3), rng=np.random.default_rng(0))
    easy, *hard = expected.classes_then
    assert easy.high < 0.1 < 0.2 < min(each.low for each in hard)


def test_the_same_input_gives_the_same_curve_and_stays_untouched() -> None:
    rows, labels = draw_gaussians(100, 5, 1.0, np.random.default_rng(13))
    before, calls = rows.copy(), []
    first = make_curve(rows, labels, on_progress=lambda done, total: calls.append((done, total)))
    second = make_curve(rows, labels)
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_array_equal(first.unseen_error, second.unseen_error)
    one, other = (forecast(curve, rng=np.random.default_rng(3)) for curve in (first, second))
    assert (one.then, one.classes_then) == (other.then, other.classes_then)
    assert calls == [(done, 50) for done in range(1, 51)]


def test_of_very_many_pictures_a_part_is_used_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_curve, "_MAX_ROWS", 200)
    rng = np.random.default_rng(14)
    rows, labels = draw_gaussians(1000, 5, 1.0, rng)
    labels[:5] = 2
    curve = make_curve(rows, labels, 3)
    assert (curve.num_images, curve.num_used) == (1000, 203)
    assert curve.class_groups[2] == 4
    expected = forecast(curve, rng=rng)
    assert expected.num_images == 2000
    section = describe_learning_curve(curve, expected, diagnose(curve, expected), ["a", "b", "c"])
    assert "203 of the 1,000 training pictures were used" in section.paragraphs[-1]


def test_blocks_are_projected_each_by_itself() -> None:
    # A loud block without meaning hides a quiet one when both share scale and components.
    rng = np.random.default_rng(15)
    quiet, labels = draw_gaussians(300, 10, 1.5, rng)
    loud = 100 * rng.standard_normal((300, 40)).astype(np.float32)
    rows = np.concatenate([quiet, loud], axis=1)
    together, apart = make_curve(rows, labels), make_curve(rows, labels, block_sizes=[10, 40])
    assert apart.unseen_error[-1] < together.unseen_error[-1] - 0.1


def test_images_needed_are_the_inverse_of_the_forecast() -> None:
    shape = Shape(100.0, np.array([0.2, 0.2, 0.2]), np.array([0.0, 0.5, 1.0]), np.array([0.5, 1.0, 1.0]))
    np.testing.assert_allclose(shape.predict(400), [0.1, 0.125, 0.2])
    np.testing.assert_allclose(shape.count_images(0.125), [256, 400, np.inf])
    assert shape.count_images(0.09)[1] == np.inf
    np.testing.assert_array_equal(shape.count_images(0.25) <= 100, True)


@pytest.mark.parametrize(
    ("train", "unseen", "target", "verdict"),
    [
        (0.10, 0.11, 0.98, "bias"),
        (0.02, 0.12, 0.98, "variance"),
        (0.08, 0.16, 0.98, "both"),
        (0.01, 0.015, 0.98, "neither"),
        (0.02, 0.022, 0.98, "neither"),
    ],
)
def test_the_verdict_follows_from_three_errors(
    falling: LearningCurve, train: float, unseen: float, target: float, verdict: str
) -> None:
    curve = set_errors(falling, train, unseen)
    diagnosis = diagnose(curve, forecast(curve, rng=np.random.default_rng(0)), target)
    assert diagnosis.verdict == verdict
    assert diagnosis.desired_error == pytest.approx(0.02)
    assert diagnosis.bias.error == pytest.approx(train - 0.02)
    assert diagnosis.variance.low < diagnosis.variance.error < diagnosis.variance.high
    assert diagnosis.suggestions


def test_noise_is_not_called_bias(falling: LearningCurve) -> None:
    few, many = (set_errors(falling, 0.05, 0.06, count) for count in (40, 4000))
    verdicts = [diagnose(each, forecast(each, rng=np.random.default_rng(0)), 0.98).verdict for each in (few, many)]
    assert verdicts == ["neither", "bias"]
    few, many = (set_errors(falling, 0.08, 0.25, count) for count in (40, 4000))
    verdicts = [diagnose(each, forecast(each, rng=np.random.default_rng(0)), 0.98).verdict for each in (few, many)]
    assert verdicts == ["variance", "both"]


def test_without_a_target_the_reference_is_named(falling: LearningCurve) -> None:
    diagnosis = diagnose(falling, forecast(falling, rng=np.random.default_rng(0)))
    assert diagnosis.desired_error == 0
    assert "No target was given, so they are compared with no errors at all" in diagnosis.reasons[0]


def test_a_target_within_reach_says_how_many_pictures(falling: LearningCurve) -> None:
    expected = forecast(falling, rng=np.random.default_rng(0))
    target = 1 - expected.then.error
    diagnosis = diagnose(falling, expected, target)
    assert diagnosis.needed is not None
    assert 600 < diagnosis.needed.median < 1100
    assert diagnosis.needed.low < diagnosis.needed.median < diagnosis.needed.high
    assert any("training pictures in all are expected to reach" in text for text in diagnosis.suggestions)


def test_the_section_shows_curves_forecast_and_target(falling: LearningCurve) -> None:
    expected = forecast(falling, 3.0, rng=np.random.default_rng(0))
    section = describe_learning_curve(falling, expected, diagnose(falling, expected, 0.9), ["cat", "dog"])
    plot = section.plots[0]
    assert [line.name for line in plot.lines] == ["training pictures", "unseen pictures", "forecast"]
    for line in plot.lines:
        assert len(line.x) == len(line.y) == len(line.low) == len(line.high)
    assert plot.lines[2].style == "dashed"
    assert (plot.lines[2].x[0], plot.lines[2].x[-1]) == pytest.approx((320, 1200))
    assert plot.x_scale == "log"
    assert [(mark.kind, mark.value) for mark in plot.marks] == [("horizontal", pytest.approx(0.1))]
    assert [row[0] for row in section.tables[0].rows] == ["cat", "dog"]
    assert all(len(row) == len(section.tables[0].columns) for row in section.tables[0].rows)
    assert "With 3 times the training pictures (1,200 instead of 400)" in section.paragraphs[2]


def test_a_class_without_pictures_is_a_dash() -> None:
    rows, labels = draw_gaussians(100, 5, 1.0, np.random.default_rng(16))
    curve = make_curve(rows, labels, 3)
    expected = forecast(curve, rng=np.random.default_rng(0))
    section = describe_learning_curve(curve, expected, diagnose(curve, expected), ["a", "b", "none"])
    assert section.tables[0].rows[2] == ("none", "-", "-", "-", "-")


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_factor_must_be_above_0(flat: LearningCurve, factor: float) -> None:
    with pytest.raises(ConfigError, match="Expected a number above 0"):
        forecast(flat, factor, rng=np.random.default_rng(0))


@pytest.mark.parametrize("target", [0.0, 1.01, 98.0, float("nan")])
def test_a_target_must_be_a_fraction(flat: LearningCurve, target: float) -> None:
    with pytest.raises(ConfigError, match="Expected a fraction above 0"):
        diagnose(flat, forecast(flat, rng=np.random.default_rng(0)), target)
