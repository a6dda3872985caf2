"""The score for unknown pictures: arrays against nodes, the share that is lost, the tail, few pictures."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from headstart.familiarity import FAMILIARITY, MAX_IMAGES, Familiarity, choose_layer, fit_familiarity
from headstart.familiarity import fit_head_familiarity as fit_head
from headstart.features import FeatureLayout
from headstart.graph import GraphBuilder, PooledLayer

TOP = PooledLayer("head", 1)
LAYOUT = FeatureLayout((PooledLayer("stage1", 2), PooledLayer("stage2", 2), TOP), (10, 20, 30))


def draw_pictures(count: int, dim: int, num_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features like those after a ReLU6: classes that overlap in a few directions, noise in all."""
    world, rng = np.random.default_rng(99), np.random.default_rng(seed)
    centres = world.normal(size=(num_classes, dim))
    spread = world.normal(size=(6, dim)) / 2
    labels = rng.integers(0, num_classes, count)
    values = 1.5 + centres[labels] + rng.normal(size=(count, 6)) @ spread + 0.5 * rng.normal(size=(count, dim))
    return values.clip(0, 6).astype(np.float32), labels


def draw_unknown(count: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (1.5 + 2 * rng.normal(size=(count, dim))).clip(0, 6).astype(np.float32)


def draw_folds(count: int, num_folds: int = 5) -> np.ndarray:
    return np.random.default_rng(1).permutation(np.arange(count) % num_folds)


def fit(count: int, dim: int, num_classes: int = 3, seed: int = 0) -> Familiarity:
    features, labels = draw_pictures(count, dim, num_classes, seed)
    return fit_familiarity(features, labels, draw_folds(count), TOP, np.random.default_rng(0))


def run_nodes(familiarity: Familiarity, features: np.ndarray) -> np.ndarray:
    builder = GraphBuilder()
    name = familiarity.add_nodes(builder, "pooled")
    assert name == FAMILIARITY
    model = builder.build(
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, features.shape[1]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])],
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"pooled": row[None]})[0] for row in features])


@pytest.mark.parametrize(("count", "dim", "num_classes"), [(1500, 300, 3), (8, 1280, 2), (60, 7000, 1), (300, 12, 40)])
def test_nodes_give_what_the_arrays_give(count: int, dim: int, num_classes: int) -> None:
    familiarity = fit(count, dim, num_classes)
    seen, _ = draw_pictures(20, dim, num_classes, seed=3)
    features = np.concatenate([seen, draw_unknown(5, dim), np.zeros((1, dim), np.float32), 6e4 * seen[:2]])
    found = run_nodes(familiarity, features)
    expected = familiarity.compute(features)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.dtype == expected.dtype == np.float32
    assert expected.max() - expected.min() > 0.3  # or the comparison would say nothing
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_the_distance_is_the_documented_one() -> None:
    """In double precision from the formula, with the covariance of probabilistic principal components written out."""
    features, labels = draw_pictures(400, 50)
    distance = fit(400, 50).distance
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    axes = distance.components.astype(np.float64)
    best = np.linalg.svd(centred, full_matrices=False)[2][: axes.shape[1]].T
    np.testing.assert_allclose(axes.T @ axes, np.eye(25), atol=1e-5)
    assert np.square(centred @ axes).sum() > 0.99 * np.square(centred @ best).sum()
    means = np.stack([(centred[labels == k] @ axes).mean(axis=0) for k in range(3)])
    inside = centred @ axes
    within = inside - means[labels]
    noise = (np.square(centred).sum() - np.square(inside).sum()) / len(unit) / (50 - axes.shape[1])
    values, turn = np.linalg.eigh(within.T @ within / len(unit))
    inverse = turn @ np.diag(1 / np.maximum(values, noise)) @ turn.T
    steps = inside[:, None] - means
    mahalanobis = np.einsum("nkr,rs,nks->nk", steps, inverse, steps).min(axis=1)
    outside = (np.square(centred).sum(axis=1) - np.square(inside).sum(axis=1)) / noise
    np.testing.assert_allclose(distance.compute(features) / noise, mahalanobis + outside, rtol=1e-3)


@pytest.mark.parametrize(("count", "dim"), [(3000, 200), (400, 1000)])
def test_as_many_good_pictures_are_lost_as_was_asked(count: int, dim: int) -> None:
    """400 pictures in 1000 dimensions: measured on the pictures of the fit itself, far more would be lost."""
    familiarity = fit(count, dim)
    unseen, _ = draw_pictures(20_000, dim, seed=7)
    scores = familiarity.compute(unseen)
    for share in (0.01, 0.02, 0.05, 0.1):
        assert np.mean(scores < share) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / count))
    features, labels = draw_pictures(count, dim)
    same = fit_familiarity(features, labels, draw_folds(count), TOP, np.random.default_rng(0), unseen=features)
    if count == 400:
        assert np.mean(same.compute(unseen) < 0.05) > 0.15


def test_unknown_pictures_get_next_to_nothing_and_keep_their_order() -> None:
    familiarity = fit(1500, 300)
    seen, _ = draw_pictures(500, 300, seed=7)
    unknown = draw_unknown(500, 300)
    assert familiarity.compute(unknown).max() < 1e-4
    # From the least familiar picture towards an unknown one.
    least = seen[familiarity.compute(seen).argmin()]
    steps = familiarity.compute(np.stack([(1 - t) * least + t * unknown[0] for t in np.linspace(0.1, 0.5, 20)]))
    assert (np.diff(steps) < 0).all()


def test_few_pictures() -> None:
    """What 8 and 24 pictures can tell: a share of about a half, on average over many trainings."""
    for count, share, most in ((8, 0.5, 0.2), (24, 0.4, 0.05)):
        lost, unknown = [], []
        for seed in range(40):
            features, labels = draw_pictures(count, 256, seed=seed)
            familiarity = fit_familiarity(features, labels, draw_folds(count, 4), TOP, np.random.default_rng(0))
            assert familiarity.num_images == count
            lost.append(np.mean(familiarity.compute(draw_pictures(200, 256, seed=1000 + seed)[0]) < share))
            unknown.append(np.median(familiarity.compute(draw_unknown(20, 256))))
        assert np.mean(lost) == pytest.approx(share, abs=0.12)
        assert np.median(unknown) < most


@pytest.mark.parametrize("features", [np.ones((10, 40), np.float32), np.zeros((10, 40), np.float32)])
def test_pictures_that_are_all_alike(features: np.ndarray) -> None:
    labels = np.arange(10) % 2
    familiarity = fit_familiarity(features, labels, draw_folds(10), TOP, np.random.default_rng(0))
    other = np.concatenate([features[:1], draw_unknown(3, 40)])
    found = familiarity.compute(other)
    assert np.isfinite(found).all()
    assert found[0] > 0.4
    assert found[1:].max() < 1e-3
    np.testing.assert_allclose(run_nodes(familiarity, other), found, atol=1e-4)


def test_a_class_in_one_fold_alone_and_the_same_again() -> None:
    features, labels = draw_pictures(60, 30)
    folds = draw_folds(60)
    labels[:] = 5
    labels[folds == 2] = 9
    first, second = (
        fit_familiarity(features, labels, folds, TOP, np.random.default_rng(4)).compute(features) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()


def test_pictures_that_a_network_was_not_trained_on_set_the_shares() -> None:
    features, labels = draw_pictures(500, 60)
    unseen = draw_pictures(1000, 60, seed=8)[0] + np.random.default_rng(0).normal(size=(1000, 60)).astype(np.float32)
    folds = np.zeros(500, np.int64)
    familiarity = fit_familiarity(features, labels, folds, TOP, np.random.default_rng(0), unseen=unseen)
    assert familiarity.num_images == 1000
    assert np.mean(familiarity.compute(unseen) < 0.05) == pytest.approx(0.05, abs=0.003)
    with pytest.raises(ValueError, match="at least two folds"):
        fit_familiarity(features, labels, folds, TOP, np.random.default_rng(0))


def test_the_layer_is_the_heads_last() -> None:
    assert choose_layer([PooledLayer("stage2", 2), PooledLayer("stage1", 2)], LAYOUT) == PooledLayer("stage2", 2)
    assert choose_layer([PooledLayer("stage2", 1), PooledLayer("stage2", 2)], LAYOUT) == PooledLayer("stage2", 2)
    large = FeatureLayout((PooledLayer("conv", 7),), (512,))  # a dense head that reads the whole map
    assert choose_layer([PooledLayer("conv", 7)], large) == PooledLayer("conv", 1)


def test_a_heads_familiarity_is_that_of_its_features() -> None:
    count = MAX_IMAGES + 700
    rows = np.random.default_rng(0).random((count, LAYOUT.num_features)).astype(np.float16)
    labels, folds = np.arange(count) % 3, draw_folds(count)
    asked: list[int] = []

    def read_rows(indices: np.ndarray) -> np.ndarray:
        asked.extend(indices.tolist())
        return rows[indices]

    layers = (PooledLayer("stage1", 2), PooledLayer("stage2", 1))
    familiarity = fit_head(layers, read_rows, LAYOUT, labels, folds, np.random.default_rng(0))
    assert (familiarity.layer, familiarity.num_images, familiarity.distance.mean.size) == (layers[1], MAX_IMAGES, 20)
    assert len(set(asked)) == len(asked) == MAX_IMAGES
    assert asked == sorted(asked)
    features = LAYOUT.read_block(rows[:300], layers[1])
    small = fit_head(layers, lambda i: rows[i], LAYOUT, labels[:300], folds[:300], np.random.default_rng(0))
    direct = fit_familiarity(features, labels[:300], folds[:300], layers[1], np.random.default_rng(0))
    np.testing.assert_array_equal(small.compute(features), direct.compute(features))
