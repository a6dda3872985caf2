"""How much a picture resembles the training pictures: a score for "none of these classes", as arrays and as ONNX nodes.

On cats and dogs against other animals and vehicles, the distance below told known from unknown pictures better than the
largest logit, the energy (Liu 2020) and the Mahalanobis distance alone, and as well as the nearest of all training
pictures, which would have to be in the file (benchmarks/unknown_pictures.py). What lies outside the principal subspace
does most of it; the part inside helps where unknown pictures resemble the known ones (digits: AUROC 0.970, not 0.963).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import threadpoolctl

from headstart.graph import GraphBuilder, PooledLayer
from headstart.heads.components import find_components
from headstart.parallel import count_cpus, map_bounded

if TYPE_CHECKING:
    from headstart.features import FeatureLayout

FAMILIARITY = "familiarity"
"""The output's name."""

MAX_IMAGES = 5000
"""Of more training pictures so many are drawn: the distance that 1 % exceed is then known to about 0.14 points."""

_MAX_COMPONENTS = 64
_IMAGES_PER_COMPONENT = 8
_MAX_FEATURES = 8192
_ROWS_PER_READ = 500
_SHARES = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
_ENOUGH_IN_TAIL = 10
_LEAST_LENGTH = 1e-6


@dataclass(frozen=True, eq=False)
class Distance:
    """How far features lie from those of the training pictures.

    With x the features over their length, minus `mean` (D,), z = x @ components (D, r) and z_k the class's row of
    `class_means` (C, r), the squared distance is |x|^2 - |z|^2 + min_k sum((z - z_k)^2 * weights): what lies outside
    the principal subspace (as in ViM, Wang et al. 2022) counts in full, a direction inside it by the ratio of the
    variance outside to its variance within a class (Mahalanobis distance, Lee et al. 2018, with the covariance of
    probabilistic principal components, Tipping and Bishop 1999). All are float32.
    """

    mean: np.ndarray
    components: np.ndarray
    class_means: np.ndarray
    weights: np.ndarray

    def compute(self, features: np.ndarray) -> np.ndarray:
        """Squared distances float32 (M,) of features float32 (M, D)."""
        return self.compute_of_units(_normalise(features))

    def compute_of_units(self, units: np.ndarray) -> np.ndarray:
        """The same of features over their length."""
        centred = units - self.mean
        inside = centred @ self.components
        nearest = np.full(len(units), np.inf, np.float32)
        for mean in self.class_means:
            nearest = np.minimum(nearest, np.square(inside - mean) @ self.weights)
        return np.asarray(nearest + np.einsum("nd,nd->n", centred, centred) - np.einsum("nd,nd->n", inside, inside))

    def add_nodes(self, builder: GraphBuilder, pooled: str) -> str:
        """Nodes from features, a tensor (1, D), to their squared distance (1, 1)."""
        length = builder.add("Sqrt", builder.add("Gemm", pooled, pooled, transB=1))
        length = builder.add("Max", length, builder.constant(np.array([[_LEAST_LENGTH]], np.float32)))
        mean = builder.constant(self.mean[None], "familiarity.mean")
        centred = builder.add("Sub", builder.add("Div", pooled, length), mean)
        inside = builder.add("MatMul", centred, builder.constant(self.components, "familiarity.components"))
        outside = builder.add(
            "Sub", builder.add("Gemm", centred, centred, transB=1), builder.add("Gemm", inside, inside, transB=1)
        )
        from_class = builder.add("Sub", inside, builder.constant(self.class_means, "familiarity.class_means"))
        weights = builder.constant(self.weights[:, None], "familiarity.weights")
        squares = builder.add("MatMul", builder.add("Mul", from_class, from_class), weights)
        nearest = builder.add("ReduceMin", squares, builder.int_constant(0), keepdims=1)
        return builder.add("Add", outside, nearest)


@dataclass(frozen=True, eq=False)
class Familiarity:
    """The share of unseen pictures of the known classes that lie at least as far from the training pictures.

    `shares` (Q,) of them lie beyond `distances` (Q,), increasing. In between, the share's logit is interpolated; beyond
    the last the share falls exponentially, by e for each `tail_width`. `num_images` is the number of pictures that were
    measured.
    """

    layer: PooledLayer
    distance: Distance
    distances: np.ndarray
    shares: np.ndarray
    tail_width: float
    num_images: int

    def compute(self, features: np.ndarray) -> np.ndarray:
        """Familiarity float32 (M,), 0 .. 1, of the features of `layer`, float32 (M, D)."""
        start, slope, bends = self._get_curve()
        excess = self.distance.compute(features)[:, None] - self.distances.astype(np.float32)
        logits = start + excess[:, 0] * slope + np.maximum(excess, 0) @ bends
        return np.asarray(1 / (1 + np.exp(-logits.clip(-80, 80))), np.float32)

    def _get_curve(self) -> tuple[np.float32, np.float32, np.ndarray]:
        """Logit at the first distance, slope before it, change of slope (Q,) at each distance."""
        logits = np.log(self.shares / (1 - self.shares))
        slopes = np.append(np.diff(logits) / np.diff(self.distances), -1 / self.tail_width)
        bends = np.append(0, np.diff(slopes))
        return np.float32(logits[0]), np.float32(slopes[0]), bends.astype(np.float32)

    def add_nodes(self, builder: GraphBuilder, pooled: str) -> str:
        """Nodes from the pooled features of `layer`, a tensor (1, D), to the output `familiarity` (1,)."""
        start, slope, bends = self._get_curve()
        distances = builder.constant(self.distances[None].astype(np.float32), "familiarity.distances")
        excess = builder.add("Sub", self.distance.add_nodes(builder, pooled), distances)
        # Before the first distance no bend counts; the line there goes on for all.
        line = np.zeros((len(bends), 1), np.float32)
        line[0] = slope
        straight = builder.add("Gemm", excess, builder.constant(line), builder.constant(np.array([start])))
        bent = builder.add("MatMul", builder.add("Relu", excess), builder.constant(bends[:, None]))
        share = builder.add("Sigmoid", builder.add("Add", straight, bent))
        return builder.add("Reshape", share, builder.int_constant(1), output=FAMILIARITY)

    def to_json(self) -> dict[str, Any]:
        """What the classifier file says under `headstart.familiarity`."""
        return {
            "layer": [self.layer.layer, self.layer.grid],
            "num_components": len(self.distance.weights),
            "num_images": self.num_images,
            "shares": self.shares.tolist(),
            "distances": [float(f"{each:.6g}") for each in self.distances],
            "tail_width": float(f"{self.tail_width:.6g}"),
        }


def fit_head_familiarity(
    head_layers: Sequence[PooledLayer],
    read_rows: Callable[[np.ndarray], np.ndarray],
    layout: FeatureLayout,
    labels: np.ndarray,
    folds: np.ndarray,
    rng: np.random.Generator,
) -> Familiarity:
    """Familiarity on the last of a head's layers, from cached rows; `read_rows` is as `select_head` takes it.

    The graph computes that layer anyway, and it told known from unknown better than all of the head's layers side by
    side (CIFAR-10, 5 classes against the other 5: AUROC 0.67 and 0.61).
    `labels` and `folds` are int64 (N,).
    """
    layer = choose_layer(head_layers, layout)
    part = np.arange(len(labels))
    if len(part) > MAX_IMAGES:
        part = np.sort(rng.choice(part, MAX_IMAGES, replace=False))
    features = np.empty((len(part), layout.count_features(layer)), np.float32)
    for start in range(0, len(part), _ROWS_PER_READ):
        rows = read_rows(part[start : start + _ROWS_PER_READ])
        features[start : start + len(rows)] = layout.read_block(rows, layer)
    return fit_familiarity(features, labels[part], folds[part], layer, rng)


def choose_layer(head_layers: Sequence[PooledLayer], layout: FeatureLayout) -> PooledLayer:
    """The last of the layers in the backbone's order, on the head's raster while that is small, else as its mean."""
    order = [block.layer for block in layout.blocks]
    last = max(head_layers, key=lambda pooled: (order.index(pooled.layer), pooled.grid))
    return last if layout.count_features(last) <= _MAX_FEATURES else PooledLayer(last.layer, 1)


def fit_familiarity(
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    layer: PooledLayer,
    rng: np.random.Generator,
    unseen: np.ndarray | None = None,
) -> Familiarity:
    """Fit on the features float32 (N, D) of training pictures.

    The distances of a fold, by `folds` int64 (N,), are those to the pictures of the other folds, so that pictures that
    were never seen behave the same. Where the network itself was trained on these pictures that does not suffice:
    then `unseen` float32 (M, D) are pictures of the known classes that it was not trained on, and theirs count instead.
    Raises ValueError for fewer than two folds without `unseen`.

    What is not measured is extrapolated: with 8 pictures a share of 0.5, with 250 one of 0.04, from 1000 on one of 0.01
    is the least that stands on pictures of its own.
    """
    present, sizes = np.unique(folds, return_counts=True)
    num_fitted = len(features)
    if unseen is None:
        if len(present) < 2:
            raise ValueError("fit_familiarity needs at least two folds")
        num_fitted -= int(sizes.max())
    # More components would follow single pictures, or leave nothing outside; and other counts in the folds than at last
    # would make distances that do not compare.
    count = max(1, min(_MAX_COMPONENTS, num_fitted // _IMAGES_PER_COMPONENT, features.shape[1] // 2))
    units = _normalise(features)

    def fit_without(task: tuple[np.ndarray, np.random.Generator]) -> tuple[Distance, np.ndarray]:
        left_out, own_rng = task
        distance = _fit_distance(units[~left_out], labels[~left_out], count, own_rng)
        return distance, distance.compute_of_units(units[left_out])

    everything = np.zeros(len(units), bool)
    left_out = [everything, *(folds == fold for fold in present if unseen is None)]
    # Fits are independent of each other; threads inside their products would make sums depend on their number.
    with threadpoolctl.threadpool_limits(1):
        tasks = zip(left_out, rng.spawn(len(left_out)), strict=True)
        (distance, _), *others = [fitted for _, fitted in map_bounded(fit_without, tasks, count_cpus())]
    if unseen is not None:
        return _fit_curve(layer, distance, distance.compute(unseen))
    found = np.empty(len(units), np.float32)
    for held_out, (_, distances) in zip(left_out[1:], others, strict=True):
        found[held_out] = distances
    return _fit_curve(layer, distance, found)


def _normalise(features: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
    return np.asarray(features / np.maximum(lengths, np.float32(_LEAST_LENGTH))[:, None])


def _fit_distance(units: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> Distance:
    mean = units.mean(axis=0)
    centred = units - mean
    num_images, num_features = centred.shape
    components, inside = find_components(centred, count, rng, num_iterations=2)
    # Where the pictures vary in fewer directions, the others are empty ones.
    components, inside = (np.pad(each, ((0, 0), (0, count - each.shape[1]))) for each in (components, inside))
    _, numbers = np.unique(labels, return_inverse=True)
    sums = np.zeros((numbers.max() + 1, count), np.float32)
    np.add.at(sums, numbers, inside)
    class_means = sums / np.bincount(numbers)[:, None].astype(np.float32)
    within = inside - class_means[numbers]
    variances, turn = np.linalg.eigh(within.T @ within / num_images)
    outside = float(np.square(centred).sum() - np.square(inside).sum()) / num_images
    floor = max(outside / max(1, min(num_features, num_images - 1) - count), 1e-12)
    return Distance(
        mean=mean,
        components=np.ascontiguousarray(components @ turn),
        class_means=class_means @ turn,
        weights=(floor / np.maximum(variances, floor)).astype(np.float32),
    )


def _fit_curve(layer: PooledLayer, distance: Distance, found: np.ndarray) -> Familiarity:
    """The shares that exceed a distance, as far as `found`, the distances (n,) of unseen pictures, tell."""
    count = len(found)
    least = max(_SHARES[-1], min(0.5, _ENOUGH_IN_TAIL / (count + 1)))
    measured = np.array([share for share in _SHARES if least <= share <= 1 - 1 / (count + 1)] or [0.5])
    # The i-th largest of n is exceeded by i / (n + 1) of all, on average.
    quantiles = np.quantile(found.astype(np.float64), 1 - measured, method="weibull")
    # Pictures that are nearly alike must not make steps of the curve.
    gap = max(0.01 * float(quantiles[-1] - quantiles[0]), 1e-5)
    kept = [0]
    for index in range(1, len(measured)):
        if quantiles[index] - quantiles[kept[-1]] >= gap:
            kept.append(index)
    excess = found[found > quantiles[kept[-1]]] - quantiles[kept[-1]]
    return Familiarity(
        layer=layer,
        distance=distance,
        distances=quantiles[kept],
        shares=measured[kept],
        tail_width=max(float(excess.mean()) if len(excess) else 0.0, gap),
        num_images=count,
    )
