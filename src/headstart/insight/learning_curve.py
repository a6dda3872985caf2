"""Error on training and on unseen pictures against the number of training pictures, from cached features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import threadpoolctl

from headstart.errors import DataError
from headstart.heads.components import fit_projection
from headstart.heads.fitting import fit_logistic
from headstart.parallel import count_cpus, map_bounded
from headstart.splits import assign_folds
from headstart.stats import CONFIDENCE

# Time and memory stay bounded however many pictures there are: of more pictures a random part is used, of many classes
# fewer components. 2**26 numbers are 256 MiB of features, and 2**29 numbers to multiply once for each fit take 30 s.
_MAX_ROWS = 20_000
_MAX_FEATURE_NUMBERS = 2**26
_MAX_FIT_WORK = 2**29
_MIN_COMPONENTS, _MAX_COMPONENTS = 64, 512
_MAX_SIZES = 8
_MIN_SIZE = 8
_MIN_RATIO = 2.0
# About this many out-of-fold predictions a size, in 2 to 10 draws.
_ENOUGH_PREDICTIONS = 6000


@dataclass(frozen=True, eq=False, slots=True)
class LearningCurve:
    """Errors, as fractions, at S numbers of training pictures, for K classes.

    `sizes` float64 (S,), ascending: training pictures of a fit, averaged over folds and draws. `train_error`,
    `unseen_error` (S,) and their 95 % bands (S, 2). `class_errors` (S, K): unseen pictures of a class, nan where it has
    none. `covariance` (S, S) of `unseen_error` and `class_covariances` (K, S, S): chance of the pictures and of the
    draws. `num_groups` is how many independent pictures (keys) stand behind `unseen_error`, `class_groups` (K,) behind
    each class.

    `num_images` training pictures there are, `num_used` of them were used, with `num_components` principal components.
    """

    sizes: np.ndarray
    train_error: np.ndarray
    train_band: np.ndarray
    unseen_error: np.ndarray
    unseen_band: np.ndarray
    class_errors: np.ndarray
    covariance: np.ndarray
    class_covariances: np.ndarray
    num_groups: int
    class_groups: np.ndarray
    num_images: int
    num_used: int
    num_draws: int
    num_components: int
    penalty: float


def compute_learning_curve(
    features: np.ndarray,
    labels: np.ndarray,
    keys: Sequence[str],
    num_classes: int,
    *,
    penalty: float,
    block_sizes: Sequence[int] = (),
    class_weights: np.ndarray | None = None,
    rng: np.random.Generator,
    on_progress: Callable[[int, int], None] | None = None,
) -> LearningCurve:
    """Fit the head on ever more pictures and count its errors on those of the fold that was left out.

    `features` float32 or float16 (N, D), of which only the rows used are indexed; `labels` int64 (N,); `keys` has N
    entries, and pictures that share one stay on one side; `class_weights` (K,) multiply the pictures' weights.
    `penalty` is the head's, an average over pictures as in `fit_logistic`: at that scale the best one hardly moves
    with the number of pictures, so it is kept. `block_sizes`, summing to D, says how many features each of the
    head's pooled layers has where there are several: each is projected by itself, as in training.

    A draw divides all pictures into 5 folds and puts those of every class in an order of its own; the training pictures
    of a size are the first of each class outside the fold, by its share but at least one. Every picture is therefore
    predicted at every size, and sizes differ by the number of training pictures alone. Scale and principal components
    see all pictures, but no labels. At most 20,000 pictures are used (fewer of very many features), a part drawn class
    by class: then the curve ends earlier, and time and memory stay bounded.

    Raises DataError where the pictures are too few for the largest size to be at least twice the smallest, which has 2
    pictures a class and 8 in all, or where a class lies in one fold (`assign_folds`).
    """
    part = _draw_part(labels, num_classes, _count_rows(len(labels), features.shape[1]), rng)
    keys = [keys[index] for index in part]
    used = labels[part]
    smallest = max(2 * num_classes, _MIN_SIZE)
    if len(part) * 0.8 < _MIN_RATIO * smallest:
        raise DataError(
            f"There are {len(part)} training pictures of {num_classes} classes. A learning curve needs at least "
            f"{int(np.ceil(_MIN_RATIO * smallest / 0.8))}, to see errors fall. Add pictures."
        )
    num_draws = int(np.clip(round(_ENOUGH_PREDICTIONS / len(part)), 2, 10))
    folds = np.stack([assign_folds(used, keys, seed=int(rng.integers(2**31))) for _ in range(num_draws)])
    steps = min(_MAX_SIZES - 1, max(2, round(np.log2(0.8 * len(part) / smallest))))
    shares = np.geomspace(max(smallest / (0.8 * len(part)), 0.5**steps), 1, steps + 1)
    groups = np.unique(np.asarray(keys), return_inverse=True)[1]
    orders = [rng.random(groups.max() + 1)[groups] for _ in range(num_draws)]

    ends = np.cumsum(block_sizes or [features.shape[1]])
    wanted = int(np.clip(_MAX_FIT_WORK // (len(part) * num_classes * len(ends)), _MIN_COMPONENTS, _MAX_COMPONENTS))
    wrong = np.zeros((num_draws, len(shares), len(part)), bool)
    train_errors, num_rows = np.zeros((2, num_draws, len(shares)))
    importance = np.ones(len(part), np.float32) if class_weights is None else class_weights[used].astype(np.float32)
    tasks = [(draw, fold) for draw in range(num_draws) for fold in np.unique(folds[draw])]

    with threadpoolctl.threadpool_limits(1):  # small fits: a thread for each keeps the cores busy
        blocks = np.split(features[part], ends[:-1], axis=1)
        inputs = np.concatenate(
            [fit_projection(each.astype(np.float32, copy=False), wanted, rng)[1] for each in blocks], axis=1
        )

        def run(task: tuple[int, int]) -> Iterator[tuple[np.ndarray, float, int]]:
            draw, fold = task
            held_out = folds[draw] == fold
            outside = np.flatnonzero(~held_out)
            outside = outside[np.argsort(orders[draw][outside], kind="stable")]
            results = []
            for share in shares:
                rows = _take_share(outside, used, num_classes, share)
                weights = importance[rows] / importance[rows].sum(dtype=np.float64)
                fit = fit_logistic(
                    inputs[rows], used[rows], weights[None].astype(np.float32), np.array([penalty]), num_classes
                )[0]
                predicted = [(inputs[which] @ fit[:-1] + fit[-1]).argmax(axis=1) for which in (held_out, rows)]
                results.append((predicted[0] != used[held_out], float((predicted[1] != used[rows]).mean()), len(rows)))
            return iter(results)

        for done, ((draw, fold), results) in enumerate(map_bounded(run, tasks, count_cpus())):
            num_folds = len(np.unique(folds[draw]))
            for index, (missed, train_error, count) in enumerate(results):
                wrong[draw, index, folds[draw] == fold] = missed
                train_errors[draw, index] += train_error / num_folds
                num_rows[draw, index] += count / num_folds
            if on_progress:
                on_progress(done + 1, len(tasks))

    unseen, covariance, num_groups = _summarize(wrong, groups)
    per_class = [_summarize(wrong[:, :, used == label], groups[used == label]) for label in range(num_classes)]
    sizes, train_error = num_rows.mean(axis=0), train_errors.mean(axis=0)
    return LearningCurve(
        sizes=sizes,
        train_error=train_error,
        train_band=_make_bands(train_error, np.minimum(sizes, num_groups)),
        unseen_error=unseen,
        unseen_band=_make_bands(unseen, count_effective(unseen, covariance.diagonal(), num_groups)),
        class_errors=np.stack([errors for errors, _, _ in per_class], axis=1),
        covariance=covariance,
        class_covariances=np.stack([each for _, each, _ in per_class]),
        num_groups=num_groups,
        class_groups=np.array([count for _, _, count in per_class]),
        num_images=len(labels),
        num_used=len(part),
        num_draws=num_draws,
        num_components=inputs.shape[1],
        penalty=penalty,
    )


def count_effective(errors: np.ndarray, variances: np.ndarray, most: int) -> np.ndarray:
    """How many independent pictures would give `errors` that variance, at most `most`: float64, as `errors`."""
    smoothed = (errors * most + 0.5) / (most + 1)
    return np.clip(smoothed * (1 - smoothed) / np.maximum(variances, 1e-12), 1, most)


def _count_rows(num_images: int, num_features: int) -> int:
    return min(num_images, _MAX_ROWS, max(1000, _MAX_FEATURE_NUMBERS // num_features))


def _draw_part(labels: np.ndarray, num_classes: int, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of about `num_rows` pictures, of each class its share, but at least 4 where it has them."""
    if len(labels) <= num_rows:
        return np.arange(len(labels))
    parts = []
    for label in range(num_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        parts.append(members[: max(4, round(len(members) * num_rows / len(labels)))])
    return np.sort(np.concatenate(parts))


def _take_share(rows: np.ndarray, labels: np.ndarray, num_classes: int, share: float) -> np.ndarray:
    """The first of `rows` of each class, by its share, at least one."""
    parts = []
    for label in range(num_classes):
        members = rows[labels[rows] == label]
        parts.append(members[: max(1, round(share * len(members)))])
    return np.concatenate(parts)


def _summarize(wrong: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Error (S,), its covariance (S, S), and the number of groups, from bool (draws, S, n).

    The covariance is that of a mean over groups, as drawn at random (Cochran 1977, section 9), plus what differs from
    draw to draw, plus half an error, because none among n does not mean that there will be none.
    """
    num_draws, num_sizes, num_images = wrong.shape
    if not num_images:
        return np.full(num_sizes, np.nan), np.full((num_sizes, num_sizes), np.nan), 0
    by_picture = wrong.mean(axis=0, dtype=np.float64)
    errors = by_picture.mean(axis=1)
    members = np.unique(groups, return_inverse=True)[1]
    num_groups = int(members.max()) + 1
    excess = np.stack([np.bincount(members, row, num_groups) for row in by_picture - errors[:, None]])
    covariance = excess @ excess.T / num_images**2
    draws = wrong.mean(axis=2, dtype=np.float64)
    covariance += np.diag(draws.var(axis=0, ddof=1) / num_draws + 0.25 / num_groups**2)
    return errors, covariance, num_groups


def _make_bands(errors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(S, 2): Wilson's interval, for counts that need not be whole."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (errors + z * z / (2 * counts)) / (1 + z * z / counts)
    half = z * np.sqrt(errors * (1 - errors) / counts + z * z / (4 * counts**2)) / (1 + z * z / counts)
    low = np.where(errors == 0, 0, np.maximum(0, middle - half))
    return np.stack([low, np.where(errors == 1, 1, np.minimum(1, middle + half))], axis=1)
