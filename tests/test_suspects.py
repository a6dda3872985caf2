"""Labels changed on purpose are found and counted; doubtful pictures and right labels are left alone."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained

import headstart
from headstart.errors import DataError
from headstart.evaluation import Evaluation
from headstart.insight.suspects import (
    Suspect,
    Suspects,
    _compute_own,
    _find_root,
    _fit_mixture,
    _fit_rates,
    _take_log,
    describe_suspects,
    find_suspects,
    read_suspects,
    suspects_to_csv,
)

HOSTILE = ("a,b", 'line\n"break"\r', "byte\udce9\x1b[31m", "<script>")


def make_rows(labels: np.ndarray, probs: np.ndarray) -> Evaluation:
    n, k = probs.shape
    names = tuple(f"class{i}" for i in range(k))
    return Evaluation(names, tuple(map(str, range(n))), tuple(f"{i:064x}" for i in range(n)), labels, probs)


def draw_rows(n: int, k: int, seed: int, sharpness: float = 5) -> tuple[np.ndarray, np.ndarray]:
    """True classes drawn from the probabilities themselves: doubtful pictures, and not one wrong label."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, k)) * sharpness
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    return (probs.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1).clip(max=k - 1), probs.astype(np.float32)


def change_labels(labels: np.ndarray, rows: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    changed = labels.copy()
    changed[rows] = (labels[rows] + np.random.default_rng(seed).integers(1, k, len(rows))) % k
    return changed


def list_rows(suspects: Suspects) -> list[int]:
    return [int(item.path) for item in suspects.items]


@pytest.mark.parametrize(("n", "k", "sharpness"), [(1000, 2, 4.0), (2000, 10, 4.0), (1000, 40, 6.0)])
def test_right_labels_of_doubtful_pictures_are_left_alone(n: int, k: int, sharpness: float) -> None:
    estimates = []
    for seed in range(4):
        labels, probs = draw_rows(n, k, seed, sharpness)
        assert 0.6 < (probs.argmax(axis=1) == labels).mean() < 0.93
        suspects = find_suspects(make_rows(labels, probs))
        estimates.append(suspects.num_wrong)
        assert suspects.low <= suspects.num_wrong <= suspects.high < 0.03 * n
        assert len(suspects.items) == round(suspects.num_wrong)
    assert np.mean(estimates) < 0.003 * n


@pytest.mark.parametrize("timid", [1.0, 0.4])
@pytest.mark.parametrize(("n", "k"), [(1000, 2), (1000, 10), (25_000, 5)])
def test_changed_labels_are_counted_and_come_first(n: int, k: int, timid: float) -> None:
    labels, probs = draw_rows(n, k, seed=1, sharpness=8)
    rows = np.random.default_rng(2).choice(n, n // 20, replace=False)
    probs = probs**timid  # a head that was fitted to wrong labels is less sure than it should be
    probs /= probs.sum(axis=1, keepdims=True)
    evaluation = make_rows(change_labels(labels, rows, k), probs)
    suspects = find_suspects(evaluation)
    assert suspects.low < len(rows) < suspects.high
    assert suspects.num_wrong == pytest.approx(len(rows), rel=0.2)
    listed = list_rows(suspects)
    assert len(listed) == round(suspects.num_wrong)
    assert np.isin(listed, rows).mean() > 0.8
    scores = [item.score for item in suspects.items]
    assert scores == sorted(scores, reverse=True)
    assert 0.5 < np.mean(scores) <= 1


def test_labels_wrong_in_one_direction_are_found() -> None:
    labels, probs = draw_rows(3000, 3, seed=5, sharpness=8)
    rows = np.flatnonzero(labels == 2)[:60]
    labels[rows] = 1
    suspects = find_suspects(make_rows(labels, probs))
    assert suspects.num_wrong == pytest.approx(60, rel=0.3)
    assert np.isin(list_rows(suspects), rows).mean() > 0.8


def test_what_a_suspect_says() -> None:
    labels, probs = draw_rows(300, 4, seed=3)
    evaluation = make_rows(labels, probs)
    suspects = find_suspects(evaluation, num_listed=300)
    assert sorted(list_rows(suspects)) == list(range(300))
    assert (suspects.classes, suspects.num_images) == (evaluation.classes, 300)
    for item in suspects.items:
        row = int(item.path)
        assert item.sha256 == evaluation.sha256[row]
        assert item.label == labels[row] != item.suggested
        assert item.probability_label == probs[row, item.label]
        assert item.probability_suggested == max(np.delete(probs[row], item.label))


def test_the_least_probable_labels_come_first_where_no_label_looks_wrong() -> None:
    labels, probs = draw_rows(500, 2, seed=0)
    labels = probs.argmax(axis=1)
    suspects = find_suspects(make_rows(labels, probs), num_listed=20)
    assert suspects.num_wrong < 0.5
    assert list_rows(suspects) == np.argsort(probs.max(axis=1))[:20].tolist()


def test_labels_decided_on_take_no_part() -> None:
    labels, probs = draw_rows(1000, 4, seed=4, sharpness=8)
    evaluation = make_rows(change_labels(labels, np.arange(40), 4), probs)
    before = find_suspects(evaluation)
    assert round(before.num_wrong) > 30
    pairs = {(item.sha256, evaluation.classes[item.label]) for item in before.items}
    after = find_suspects(evaluation, settled=pairs)
    assert after.num_settled == len(pairs)
    assert after.num_wrong < 3
    assert not set(list_rows(after)) & set(list_rows(before))
    others = {(sha256, "another label") for sha256, _ in pairs}
    assert find_suspects(evaluation, settled=others) == before
    everything = zip(evaluation.sha256, (evaluation.classes[label] for label in evaluation.labels), strict=True)
    nothing = find_suspects(evaluation, settled=set(everything))
    assert (nothing.num_wrong, nothing.high, nothing.items, nothing.num_settled) == (0, 0, (), 1000)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_pictures_say_little(n: int) -> None:
    suspects = find_suspects(make_rows(np.zeros(n, np.int64), np.tile(np.array([[1, 0]], np.float32), (n, 1))))
    assert suspects.num_wrong < 0.5
    assert suspects.items == ()
    assert suspects.high > 0.3 * n
    assert "No label looks wrong" in describe_suspects(suspects).intro


def test_the_same_rows_give_the_same_suspects_in_threads() -> None:
    labels, probs = draw_rows(600, 5, seed=6)
    evaluation = make_rows(change_labels(labels, np.arange(30), 5), probs)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(find_suspects, [evaluation] * 6))
    assert results[1:] == results[:-1]


def test_trained_on_wrong_labels_the_wrong_ones_come_first(trained: Trained, warm_cache: Path) -> None:
    paths = sorted(map(str, trained.shapes.rglob("*.png")))
    labels = [Path(path).parent.name for path in paths]
    wrong = [3, 17, 30]
    for row in wrong:
        labels[row] = {"circles": "stripes", "stripes": "checks", "checks": "circles"}[labels[row]]
    classifier = headstart.train(paths, labels=labels, layers="top", test_frac=0.0)
    assert classifier.training is not None
    suspects = find_suspects(classifier.training.out_of_fold, num_listed=3)
    assert {item.path for item in suspects.items} == {paths[row] for row in wrong}


def make_hostile() -> Suspects:
    items = [
        Suspect(f"pictures/{name}\\xe9.jpg", f"{number:064x}", number, (number + 1) % 4, 0.125, 0.75, 0.1 + number / 8)
        for number, name in enumerate(HOSTILE)
    ]
    return Suspects(HOSTILE, tuple(items), 1000, 14.3, 9.6, 20.2, 2)


def test_the_table_reads_back(tmp_path: Path) -> None:
    suspects = make_hostile()
    data = suspects_to_csv(suspects)
    assert data.startswith(b"rank,path,sha256,label,suggested,probability_label,probability_suggested,score\n1,")
    (tmp_path / "suspects.csv").write_bytes(data)
    read = read_suspects(tmp_path / "suspects.csv", HOSTILE)
    assert [replace(item, score=0) for item in read] == [replace(item, score=0) for item in suspects.items]
    assert [item.score for item in read] == pytest.approx([item.score for item in suspects.items])


def test_a_wrong_table_is_refused_with_every_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "suspects.csv"
    with pytest.raises(DataError, match=r"suspects.csv cannot be read: no such file"):
        read_suspects(file, ("cat", "dog"))
    for text in ("", "path,label\n"):
        file.write_text(text)
        with pytest.raises(DataError, match="is not a list of suspects. Expected the columns rank,path,sha256"):
            read_suspects(file, ("cat", "dog"))
    header = suspects_to_csv(Suspects(("cat", "dog"), (), 0, 0, 0, 0)).decode()
    good = f"1,a.jpg,{'0' * 64},cat,dog,0.1,0.9,0.5\n"
    file.write_text(
        header + good + good.replace("dog", "cow") + good.replace("0.9", "x") + "short\n" + good[:-1] + ",1\n"
    )
    with pytest.raises(DataError) as caught:
        read_suspects(file, ("cat", "dog"))
    assert "4 bad rows" in str(caught.value)
    for text in ("row 2: 'cow' is no class", "row 3: expected 8 fields", "row 4: expected", "row 5: expected"):
        assert text in str(caught.value)


def test_the_gallery_says_it_in_words() -> None:
    suspects = make_hostile()
    gallery = describe_suspects(suspects)
    assert gallery.decides
    assert gallery.intro.startswith("About 14 labels look wrong, of 1,000 (95 % interval 10 to 20).")
    assert "2 that you have decided on are not listed again" in gallery.intro
    assert [item.path for item in gallery.items] == [item.path for item in suspects.items]
    first = gallery.items[0]
    assert (first.label, first.predicted, first.probability) == (0, 1, 0.75)
    assert gallery.items[2].note == "The label is wrong with a probability of 35.0 %."
    one = describe_suspects(replace(suspects, num_wrong=1.2, low=0, high=3.4))
    assert one.intro.startswith("About 1 label looks wrong, of 1,000 (95 % interval 0 to 3).")


def test_what_every_training_asks_loads_neither_scipy_nor_scikit_learn() -> None:
    code = (
        "import sys, headstart.insight.suspects, headstart.insight.mismatch, headstart.insight.near_copies\n"
        "print({name.split('.')[0] for name in sys.modules} & {'scipy', 'sklearn', 'pandas'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_root_is_found_in_few_steps_where_the_curve_is_steep(sign: int, is_mirrored: bool) -> None:
    asked = []

    def compute(x: float) -> float:
        asked.append(x)
        return sign * (100 * (1 - x if is_mirrored else x) ** 20 - 3)

    root = _find_root(compute, 0.0, 1.0)
    assert abs(compute(root)) <= 0.02
    assert len(asked) < 60


def test_the_sharpness_is_the_best_of_all_steps() -> None:
    for seed, sharpness in ((0, 1.0), (1, 2.0), (2, 5.0)):
        labels, probs = draw_rows(300, 3, seed, sharpness)
        labels = np.where(np.arange(300) % 15 == 0, (labels + 1) % 3, labels)
        logs = _take_log(probs.astype(np.float32))

        def own_at(step: int, logs: np.ndarray = logs, labels: np.ndarray = labels) -> np.ndarray:
            return _compute_own(logs, labels, float(np.exp(step * 0.02)))

        found = _fit_mixture(own_at, labels, 3, shared=True, total=None)
        losses = {step: _fit_rates(own_at(step), labels, 3, True, None)[0] for step in range(-70, 171)}
        best = min(losses, key=lambda step: losses[step])
        assert found.loss == pytest.approx(losses[best], abs=1e-7)
        assert found.sharpness == pytest.approx(np.exp(best * 0.02), rel=0.021)
