"""What more pictures would bring: a learning curve carried on, with the doubt about its shape and its level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headstart.errors import ConfigError
from headstart.insight.learning_curve import LearningCurve, count_effective
from headstart.stats import CONFIDENCE

# err(n) = level * (share + (1 - share) * (n / n_last) ** -exponent): the shapes that are weighed.
_SHARES = np.linspace(0, 1, 11)
_EXPONENTS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0])
_MISFIT = 0.03  # of the error: no curve is exactly a power law
_LAST_SIZES = 5
_NUM_SAMPLES = 4000


@dataclass(frozen=True, eq=False, slots=True)
class Shape:
    """M plausible curves: errors at `last` training pictures, what share of them stays, how fast the rest falls."""

    last: float
    levels: np.ndarray
    shares: np.ndarray
    exponents: np.ndarray

    def predict(self, num_images: float) -> np.ndarray:
        """Errors (M,) with `num_images` training pictures."""
        falling = (1 - self.shares) * (num_images / self.last) ** -self.exponents
        return np.minimum(1, self.levels * (self.shares + falling))

    def count_images(self, error: float) -> np.ndarray:
        """float64 (M,): with how many training pictures each curve comes down to `error`, inf where it never does."""
        wanted = error / np.maximum(self.levels, 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (wanted - self.shares) / (1 - self.shares)
            counts = self.last * np.where(ratio > 0, ratio, 0) ** (-1 / self.exponents)
        counts = np.where((self.shares < 1) & (ratio > 0), counts, np.inf)
        return np.where(wanted >= 1, np.minimum(counts, self.last), counts)


@dataclass(frozen=True, slots=True)
class Expected:
    """An error as a fraction with its 95 % interval."""

    error: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, slots=True)
class Forecast:
    """Unseen errors with `num_images` training pictures, `factor` times those there are, in total and by class.

    `now` and `classes_now` are the same curves at the pictures there are, `gain` is by how much the error falls. A
    class without pictures has nan. The intervals are for the error over very many unseen pictures; one counted on n
    pictures varies by chance beyond them.
    """

    factor: float
    num_images: int
    now: Expected
    then: Expected
    gain: Expected
    classes_now: tuple[Expected, ...]
    classes_then: tuple[Expected, ...]
    shape: Shape

    def predict(self, num_images: float) -> Expected:
        """The unseen error in total with another number of training pictures, at least those of the last fit."""
        return summarize(self.shape.predict(num_images))


def forecast(curve: LearningCurve, factor: float = 2.0, *, rng: np.random.Generator) -> Forecast:
    """The unseen error expected with `factor` times the training pictures, drawn from the same source.

    Power laws with an asymptote (Hestness et al. 2017; Rosenfeld et al. 2020), err(n) = a n^-b + c, over a grid of
    shapes, each weighed by how well it fits the last 5 sizes: generalised least squares with the curve's covariance,
    the level free, all shapes equally likely beforehand, "more pictures do not help" among them. A class starts from
    equal parts of these weights and of none. The interval holds the doubt about the shape and about the level, which
    has a beta distribution, so that no error among n pictures does not become a promise of none.
    Raises ConfigError for a factor that is not above 0.
    """
    if not factor > 0:
        raise ConfigError(f"factor is {factor}. Expected a number above 0, such as 2 for twice the pictures.")
    even = np.full(len(_SHARES) * len(_EXPONENTS), 1 / (len(_SHARES) * len(_EXPONENTS)))
    total, weights = _sample(curve.sizes, curve.unseen_error, curve.covariance, curve.num_groups, even, rng)
    then = curve.num_images * factor
    classes = [
        _sample(curve.sizes, errors, covariance, int(count), (even + weights) / 2, rng)[0] if count else None
        for errors, covariance, count in zip(
            curve.class_errors.T, curve.class_covariances, curve.class_groups, strict=True
        )
    ]
    return Forecast(
        factor=factor,
        num_images=round(then),
        now=summarize(total.predict(curve.num_images)),
        then=summarize(total.predict(then)),
        gain=summarize(total.predict(curve.num_images) - total.predict(then)),
        classes_now=tuple(_predict(each, curve.num_images) for each in classes),
        classes_then=tuple(_predict(each, then) for each in classes),
        shape=total,
    )


def summarize(values: np.ndarray) -> Expected:
    """Mean and 95 % interval of samples."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Expected(float(values.mean()), float(low), float(high))


def _predict(shape: Shape | None, num_images: float) -> Expected:
    return summarize(shape.predict(num_images)) if shape else Expected(np.nan, np.nan, np.nan)


def _sample(
    sizes: np.ndarray,
    errors: np.ndarray,
    covariance: np.ndarray,
    num_groups: int,
    prior: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Shape, np.ndarray]:
    """Plausible curves, and the weights of the grid of shapes, which sum to 1."""
    sizes, errors, covariance = sizes[-_LAST_SIZES:], errors[-_LAST_SIZES:], covariance[-_LAST_SIZES:, -_LAST_SIZES:]
    precision = np.linalg.inv(covariance + np.diag((_MISFIT * errors) ** 2))
    shares, exponents = (axis.ravel() for axis in np.meshgrid(_SHARES, _EXPONENTS, indexing="ij"))
    curves = shares[:, None] + (1 - shares[:, None]) * (sizes / sizes[-1]) ** -exponents[:, None]
    information = np.einsum("gs,st,gt->g", curves, precision, curves)
    levels = np.clip(curves @ precision @ errors / information, 0, 1)
    residuals = errors - levels[:, None] * curves
    log_weights = -0.5 * np.einsum("gs,st,gt->g", residuals, precision, residuals) - 0.5 * np.log(information)
    weights = prior * np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    chosen = rng.choice(len(weights), _NUM_SAMPLES, p=weights)
    counts = count_effective(levels, 1 / information, num_groups)[chosen]
    # With Jeffreys' prior: half an error and half a success more.
    drawn = rng.beta(levels[chosen] * counts + 0.5, (1 - levels[chosen]) * counts + 0.5)
    return Shape(float(sizes[-1]), drawn, shares[chosen], exponents[chosen]), weights
