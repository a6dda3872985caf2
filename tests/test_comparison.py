"""Comparing classifiers: figures by an independent route, no winner among equals, what cannot be compared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats as reference

from headstart.errors import DataError
from headstart.evaluation import Evaluation
from headstart.insight.comparison import Comparison, compare_evaluations
from headstart.insight.comparison_section import describe_comparison, find_front
from headstart.insight.speed import Speed

CLASSES = ("ant", "bee", "cat")


def make_evaluation(
    correct: np.ndarray, classes: tuple[str, ...] = CLASSES, confidence: float = 0.9, first: int = 0
) -> Evaluation:
    """Pictures first, first + 1, ... of class `number % 3`, right where `correct` says; names as in CLASSES' order."""
    numbers = first + np.arange(len(correct))
    true = numbers % 3
    guess = np.where(correct, true, (true + 1) % 3)
    probs = np.full((len(correct), 3), (1 - confidence) / 2, np.float32)
    probs[np.arange(len(correct)), guess] = confidence
    order = [CLASSES.index(name) for name in classes]
    place = np.argsort(order)
    return Evaluation(
        classes,
        tuple(f"{number}.jpg" for number in numbers),
        tuple(f"{number:064x}" for number in numbers),
        place[true],
        probs[:, order],
    )


def make_correct(only_a: int, only_b: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (only_a, only_b, both, neither)
    return np.repeat([True, False, True, False], counts), np.repeat([False, True, True, False], counts)


def compare_two(only_a: int, only_b: int, both: int, neither: int) -> Comparison:
    a, b = make_correct(only_a, only_b, both, neither)
    return compare_evaluations({"a": make_evaluation(a), "b": make_evaluation(b)})


def test_a_clear_winner_is_named() -> None:
    comparison = compare_two(30, 8, 150, 12)
    (pair,) = comparison.pairs
    assert (comparison.num_images, comparison.num_left_out) == (200, {"a": 0, "b": 0})
    assert [model.num_correct for model in comparison.models] == [180, 158]
    assert (pair.num_only_a, pair.num_only_b, pair.better, pair.num_needed) == (30, 8, "a", None)
    assert pair.p_value == pytest.approx(reference.binomtest(8, 38).pvalue)
    assert pair.p_corrected == pair.p_value  # one pair: nothing to correct
    assert pair.accuracy_difference == pytest.approx(0.11)
    low, high = pair.accuracy_difference_interval
    assert 0 < low < 0.11 < high
    assert pair.log_loss_difference < pair.log_loss_difference_interval[1] < 0


def test_the_order_of_the_two_does_not_matter() -> None:
    a, b = make_correct(30, 8, 150, 12)
    pair = compare_evaluations({"b": make_evaluation(b), "a": make_evaluation(a)}).pairs[0]
    other = compare_two(30, 8, 150, 12).pairs[0]
    assert pair.better == "b"
    np.testing.assert_allclose(pair.accuracy_difference_interval, np.negative(other.accuracy_difference_interval)[::-1])


def test_a_difference_that_may_be_chance_is_a_tie_with_a_number() -> None:
    (pair,) = compare_two(12, 6, 170, 12).pairs
    assert pair.better is None
    assert pair.num_needed is not None
    assert pair.num_needed > 200
    low, high = pair.accuracy_difference_interval
    assert low < 0 < high


def test_holm_corrects_for_all_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(400) < 0.8
    better = base.copy()
    better[np.flatnonzero(~base)[:12]] = True
    better[np.flatnonzero(base)[:3]] = False  # 12 against 3: p = 0.035, too much where ten pairs are looked at
    equals = [np.roll(base, 3 * k) for k in range(4)]
    models = {f"m{k}": make_evaluation(correct) for k, correct in enumerate([better, *equals])}
    comparison = compare_evaluations(models)
    raw = sorted(pair.p_value for pair in comparison.pairs)
    corrected = sorted(pair.p_corrected for pair in comparison.pairs)
    expected = np.minimum(1, np.maximum.accumulate([p * (10 - rank) for rank, p in enumerate(raw)]))
    np.testing.assert_allclose(corrected, expected)
    assert any(pair.p_value < 0.05 <= pair.p_corrected and pair.better is None for pair in comparison.pairs)


@pytest.mark.parametrize("num_models", [2, 5])
def test_equal_models_are_rarely_told_apart(num_models: int) -> None:
    rng = np.random.default_rng(num_models)
    named = 0
    for _ in range(120):
        hard = rng.random(300) < 0.3  # all fail on the same kind of picture, each by its own luck
        models = {str(k): make_evaluation(rng.random(300) < np.where(hard, 0.5, 0.97)) for k in range(num_models)}
        named += any(pair.better is not None for pair in compare_evaluations(models).pairs)
    assert named <= 12  # 6 are expected at most; the chance of more than 12 is under 1 %


def test_rows_are_matched_and_what_is_not_shared_is_counted() -> None:
    a, b = make_correct(30, 8, 150, 12)
    whole = compare_evaluations({"a": make_evaluation(a), "b": make_evaluation(b)})
    order = np.random.default_rng(1).permutation(200)
    full, longer = make_evaluation(b), make_evaluation(np.r_[a, np.ones(20, bool)])
    shuffled = Evaluation(
        full.classes, [full.paths[i] for i in order], [full.sha256[i] for i in order], full.labels[order],
        full.probs[order],
    )  # fmt: skip
    comparison = compare_evaluations({"a": longer, "b": shuffled})
    assert comparison.num_left_out == {"a": 20, "b": 0}
    assert comparison.models == whole.models
    assert comparison.pairs == whole.pairs
    assert "20 of a" in describe_comparison(comparison).paragraphs[-1]


def test_a_changed_file_is_not_the_same_picture() -> None:
    a, b = make_evaluation(np.ones(10, bool)), make_evaluation(np.ones(10, bool))
    changed = Evaluation(b.classes, b.paths, ("f" * 64, *b.sha256[1:]), b.labels, b.probs)
    assert compare_evaluations({"a": a, "b": changed}).num_left_out == {"a": 1, "b": 1}


def test_classes_are_matched_by_name() -> None:
    a, b = make_correct(30, 8, 150, 12)
    same = compare_two(30, 8, 150, 12)
    other = compare_evaluations({"a": make_evaluation(a), "b": make_evaluation(b, ("cat", "ant", "bee"))})
    assert other.models == same.models
    assert other.pairs == same.pairs


def test_what_cannot_be_compared_is_refused() -> None:
    good = make_evaluation(np.ones(10, bool))
    owls = Evaluation(("ant", "bee", "owl"), good.paths, good.sha256, good.labels, good.probs)
    with pytest.raises(DataError, match="a and b have other classes: cat only in a; owl only in b"):
        compare_evaluations({"a": good, "b": owls})
    with pytest.raises(DataError, match="There is 1 evaluation to compare"):
        compare_evaluations({"a": good})
    with pytest.raises(DataError, match="No picture was evaluated by all"):
        compare_evaluations({"a": good, "b": make_evaluation(np.ones(10, bool), first=10)})
    relabelled = Evaluation(good.classes, good.paths, good.sha256, (good.labels + 1) % 3, good.probs)
    with pytest.raises(
        DataError, match=r"10 pictures are labelled differently in the evaluations; the first is 0\.jpg"
    ):
        compare_evaluations({"a": good, "b": relabelled})


def test_models_that_agree_on_every_picture() -> None:
    comparison = compare_two(0, 0, 90, 10)
    assert comparison.pairs[0].num_needed is None
    assert "No number of pictures would tell them apart" in " ".join(describe_comparison(comparison).paragraphs)
    equal = compare_two(5, 5, 80, 10)
    assert equal.pairs[0].better is None
    assert "At equal rates no number" in " ".join(describe_comparison(equal).paragraphs)


def make_speed(ms: float, size_bytes: int) -> Speed:
    return Speed(ms, 0.9 * ms, 1.1 * ms, 0.8 * ms, 20, 1, size_bytes)


def test_the_section_tells_all() -> None:
    a, b = make_correct(30, 8, 150, 12)
    models = {"big": make_evaluation(a), "small": make_evaluation(b), "slow": make_evaluation(b)}
    comparison = compare_evaluations(models)
    speeds = {"big": make_speed(40, 90_000_000), "small": make_speed(9, 13_000_000), "slow": make_speed(60, 5_000_000)}
    section = describe_comparison(comparison, speeds)
    assert section.paragraphs[0] == (
        "On 200 pictures big has the most right, 90.0 %. It is better than small and slow."
    )
    assert "fastest first: small, big." in section.paragraphs[-1]
    rows, costs, pairs, counts = section.tables
    assert [row[0] for row in rows.rows] == ["big", "small", "slow"]
    assert rows.marked == 0
    for table in section.tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [row[4] for row in costs.rows] == ["90.0", "13.0", "5.0"]
    assert [row[2] for row in pairs.rows] == ["first", "first", "a tie"]
    assert counts.rows[0][2:4] == ("30", "8")
    by_time, by_size = section.plots
    assert by_time.lines[0].x == (9, 40)
    assert by_time.lines[1].texts == ("big", "small", "slow")
    assert by_size.lines[0].x == (5.0, 90.0)
    assert not describe_comparison(comparison).plots


def test_times_that_cannot_be_told_apart_are_one() -> None:
    a, b = make_correct(30, 8, 150, 12)
    comparison = compare_evaluations({"right": make_evaluation(a), "wrong": make_evaluation(b)})
    near = {"right": make_speed(10.5, 5), "wrong": make_speed(10, 5)}  # 9.45 to 11.55 and 9 to 11
    assert "fastest first: right." in describe_comparison(comparison, near).paragraphs[-1]
    assert describe_comparison(comparison, near).plots[0].lines[0].x == (10.5,)
    far = {"right": make_speed(20, 5), "wrong": make_speed(10, 5)}
    assert "fastest first: wrong, right." in describe_comparison(comparison, far).paragraphs[-1]


def test_the_front_holds_what_nothing_beats() -> None:
    rng = np.random.default_rng(2)
    costs = {str(k): float(rng.integers(1, 12)) for k in range(40)}
    accuracies = {name: float(rng.integers(1, 12)) for name in costs}
    front = find_front(costs, accuracies)
    for name, other in itertools.product(front, costs):
        assert not (costs[other] < costs[name] and accuracies[other] >= accuracies[name])
        assert not (costs[other] <= costs[name] and accuracies[other] > accuracies[name])
    for name in costs.keys() - set(front):
        assert any(costs[f] <= costs[name] and accuracies[f] >= accuracies[name] for f in front)
    assert [costs[name] for name in front] == sorted(costs[name] for name in front)
