"""What the loop is fed with: rows of the frozen part from the cache, or freshly augmented pixels."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from headstart.feature_cache import FeatureCache
from headstart.features import GraphRunner, Picture, Progress, extract_features
from headstart.finetuning.augmentation import Augmentation, draw_view
from headstart.graph import PreprocessSpec
from headstart.parallel import count_cpus, map_bounded
from headstart.pictures import load_picture

NO_AUGMENTATION = Augmentation()


class Rows(Protocol):
    """Batches of rows float32 (B, row_size) for batches of picture numbers."""

    def iterate(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[torch.Tensor]: ...


class CachedRows:
    """Rows that ONNX Runtime computed once: `num_views` of every picture, epoch e reads view e modulo `num_views`."""

    def __init__(
        self,
        runner: GraphRunner,
        pictures: Sequence[Picture],
        cache: FeatureCache,
        augmentation: Augmentation = NO_AUGMENTATION,
        num_views: int = 1,
        seed: int = 0,
    ) -> None:
        self._pictures = pictures
        self._cache = cache
        plain = replace(augmentation, mixup_alpha=0.0, cutmix_alpha=0.0) == NO_AUGMENTATION
        views = [_ViewRunner(runner, augmentation, view, seed) for view in range(num_views)]
        self._runners: list[GraphRunner] = [runner] if plain else [*views]

    def compute(self, on_progress: Progress) -> None:
        """See that the cache holds them all."""
        total = len(self._runners) * len(self._pictures)
        for index, runner in enumerate(self._runners):
            report = functools.partial(_report_after, index * len(self._pictures), total, on_progress)
            extract_features(self._pictures, runner, self._cache, report)

    def iterate(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[torch.Tensor]:
        runner = self._runners[epoch % len(self._runners)]
        recipe = self._cache.get_recipe(runner.recipe_key, runner.name)
        for batch in batches:
            rows = self._cache.read_features(recipe, [self._pictures[index].sha256 for index in batch])
            yield torch.from_numpy(rows).float()


def _report_after(before: int, total: int, on_progress: Progress, done: int, _: int) -> None:
    on_progress(before + done, total)


class _ViewRunner(GraphRunner):
    """A runner whose pictures are augmented first; the random numbers follow from picture, view and seed."""

    def __init__(self, runner: GraphRunner, augmentation: Augmentation, view: int, seed: int) -> None:
        # Not the parent's: the session is the one of `runner`.
        self._runner = runner
        self._augmentation = augmentation
        self._seed = [seed, view]
        self.name = runner.name
        self.preprocess = runner.preprocess
        self.num_threads = runner.num_threads
        self.pictures_per_task = runner.pictures_per_task
        # Mixing happens in the loop and changes no view.
        drawn = replace(augmentation, mixup_alpha=0.0, cutmix_alpha=0.0)
        self.recipe_key = f"{runner.recipe_key}/view {view} of seed {seed}, {drawn.to_json()}"

    def run(self, pixels: np.ndarray, sha256: str = "") -> np.ndarray:
        rng = np.random.default_rng([*self._seed, int(sha256[:16], 16)])
        return self._runner.run(draw_view(pixels, self._augmentation, self.preprocess, rng))


class PixelRows:
    """Normalised pixels (B, 3 * S * S), drawn anew in every epoch, by threads, ahead of the training."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        preprocess: PreprocessSpec,
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int = 0,
    ) -> None:
        self._pictures = pictures
        self._preprocess = preprocess
        self._augmentation = augmentation
        self._seed = seed
        self._mean = torch.tensor(preprocess.mean).reshape(3, 1, 1)
        self._std = torch.tensor(preprocess.std).reshape(3, 1, 1)

    def iterate(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[torch.Tensor]:
        def draw(batch: np.ndarray) -> np.ndarray:
            return np.stack([self._draw(self._pictures[index], epoch) for index in batch])

        for _, views in map_bounded(draw, batches, count_cpus()):
            pixels = torch.from_numpy(views).permute(0, 3, 1, 2).float()
            yield (pixels / 255 - self._mean).div_(self._std).flatten(1)

    def _draw(self, picture: Picture, epoch: int) -> np.ndarray:
        decoded = load_picture(picture.source, picture.sha256, 2 * self._preprocess.input_size_px)
        rng = np.random.default_rng([self._seed, epoch, int(picture.sha256[:16], 16)])
        return draw_view(decoded.pixels, self._augmentation, self._preprocess, rng)
