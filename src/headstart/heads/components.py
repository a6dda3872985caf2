"""Principal components of many rows, exact where that is cheap, and the standardised projection on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_OVERSAMPLING = 32


@dataclass(frozen=True, eq=False)
class Projection:
    """rows @ coef + offset, for one block of features: standardisation and projection in one."""

    coef: np.ndarray
    offset: np.ndarray

    def apply(self, block: np.ndarray) -> np.ndarray:
        projected = block @ self.coef
        projected += self.offset
        return np.asarray(projected)

    def keep(self, count: int) -> Projection:
        """The first `count` components."""
        return Projection(self.coef[:, :count], self.offset[:count])


def fit_projection(block: np.ndarray, num_components: int, rng: np.random.Generator) -> tuple[Projection, np.ndarray]:
    """Standardise with a floor under the variance, then the leading principal components; also the projected rows.

    `block` float32 (N, D) is overwritten.
    The floor, the mean variance, keeps features that rarely move from being blown up; it lowered the log loss on all
    collections it was tried on (0.125 to 0.115 on ants and bees, 0.711 to 0.701 on CIFAR-10, top layer).
    """
    mean = block.mean(axis=0, dtype=np.float64).astype(np.float32)
    block -= mean
    variance = np.einsum("nd,nd->d", block, block) / len(block)
    scale = 1 / np.sqrt(variance + max(float(variance.mean()), 1e-12))
    scale /= max(float(np.sqrt((variance * scale**2).mean())), 1e-6)
    block *= scale
    components, projected = find_components(block, num_components, rng)
    coef = scale[:, None] * components
    return Projection(coef, -(mean @ coef)), projected


def find_components(
    rows: np.ndarray, count: int, rng: np.random.Generator, num_iterations: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Leading principal axes float32 (D, r) of centred rows (N, D), r at most `count`, N - 1 and D; rows @ axes.

    Exact from the smaller of the two Gram matrices while that is small, otherwise by a randomised range finder with
    `num_iterations` power iterations (Halko, Martinsson and Tropp 2011). Directions in which nothing varies are left
    out, so r may be 0.
    """
    num_rows, num_columns = rows.shape
    count = min(count, num_rows - 1, num_columns)
    if num_columns <= 1.5 * count:
        axes = np.ascontiguousarray(np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :count])
        return axes, rows @ axes
    if num_rows <= 1.5 * count:
        values, vectors = np.linalg.eigh(rows @ rows.T)
        kept = values[::-1][:count] > 1e-6 * values[-1]
        basis = _orthonormalise(rows.T @ vectors[:, ::-1][:, :count][:, kept])
    else:
        basis = rng.standard_normal((num_columns, count + _OVERSAMPLING), dtype=np.float32)
        for _ in range(num_iterations):
            basis = _orthonormalise(rows.T @ (rows @ basis))
    inner = rows @ basis
    turn = np.ascontiguousarray(np.linalg.eigh(inner.T @ inner)[1][:, ::-1][:, :count])
    return basis @ turn, inner @ turn


def _orthonormalise(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns' span, empty where all are 0.

    Through their Gram matrix, which is much faster than QR for tall matrices.
    """
    lengths = np.linalg.norm(columns, axis=0)
    columns = columns[:, lengths > 0] / lengths[lengths > 0]
    if not columns.size:
        return columns
    values, vectors = np.linalg.eigh(columns.T @ columns)
    kept = values > 1e-5 * values[-1]
    return np.asarray(columns @ (vectors[:, kept] / np.sqrt(values[kept])), np.float32)
