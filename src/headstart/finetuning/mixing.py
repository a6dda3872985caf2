"""Mixup and cutmix: training pictures of a batch mixed with others of it, and their targets with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.finetuning.augmentation import Augmentation


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """How a batch is mixed: picture i keeps the share `kept_frac` and gets the rest from picture `permutation[i]`.

    With a `box` (top, left, bottom, right as shares of the sides) the rest is pasted into the box, else laid over
    all. The box is not rounded to cells: a cell on its edge is mixed by the share that the box covers. So the part that
    is pasted is 1 - kept_frac exactly, on maps of any size, and targets, maps and vectors agree.
    """

    permutation: NDArray[np.int64]
    kept_frac: float
    box: tuple[float, float, float, float] | None = None

    def apply_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """Pixels or feature maps, floating (B, C, h, w), mixed; the argument is not changed."""
        if self.box is None:
            return self._blend(maps)
        top, left, bottom, right = self.box
        height, width = maps.shape[2:]
        covered = np.outer(_cover(top, bottom, height), _cover(left, right, width))
        return torch.lerp(maps, self._take_others(maps), torch.from_numpy(covered).to(maps))

    def apply_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """Pooled features, floating (B, D): they know no places, so a box mixes them by its area."""
        return self._blend(vectors)

    def apply_targets(self, targets: torch.Tensor) -> torch.Tensor:
        """One-hot or smoothed targets, floating (B, K): rows keep their sum."""
        return self._blend(targets)

    def _blend(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.lerp(rows, self._take_others(rows), 1 - self.kept_frac)

    def _take_others(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[torch.from_numpy(self.permutation).to(rows.device)]


def _cover(low: float, high: float, size: int) -> NDArray[np.float64]:
    """float64 (size,): the share of each cell that lies between two shares of the side."""
    cell = np.arange(size)
    return np.clip(np.minimum(high * size, cell + 1) - np.maximum(low * size, cell), 0, 1)


def draw_mix(batch_size: int, augmentation: Augmentation, rng: np.random.Generator) -> Mix | None:
    """How to mix a batch, or None where mixing is off or there is nothing to mix with.

    One share for the whole batch, as in both papers: mixup (Zhang et al. 2018) keeps Beta(alpha, alpha) or 1 less it,
    whichever is more (the same pairs, but a picture stays in its own row); cutmix (Yun et al. 2019) draws a box of
    the picture's proportions with 1 - Beta(alpha, alpha) of its area, its middle anywhere, and what lies outside is
    cut off. With both on, each is drawn for half of the batches.
    """
    alphas = augmentation.mixup_alpha, augmentation.cutmix_alpha
    if batch_size < 2 or not any(alphas):
        return None
    is_cutmix = alphas[0] == 0 or (alphas[1] > 0 and rng.random() < 0.5)
    alpha = alphas[is_cutmix]
    permutation = rng.permutation(batch_size)
    kept_frac = float(rng.beta(alpha, alpha))
    if not is_cutmix:
        return Mix(permutation, max(kept_frac, 1 - kept_frac))
    half = math.sqrt(1 - kept_frac) / 2
    middle = rng.random(2)
    top, left = np.maximum(middle - half, 0).tolist()
    bottom, right = np.minimum(middle + half, 1).tolist()
    return Mix(permutation, 1 - (bottom - top) * (right - left), (top, left, bottom, right))
