"""`ImageClassifier`: the recipe under scikit-learn's conventions, so that its tools for selection and scoring work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from headstart.backbones.catalog import DEFAULT_BACKBONE
from headstart.backbones.loading import load_backbone
from headstart.config import make_settings
from headstart.dataset import ImageRecord
from headstart.errors import ConfigError, DataError, ImageError, raise_all
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features
from headstart.heads.cached import compute_probs, fit_head, make_layout
from headstart.parallel import count_cpus, map_bounded
from headstart.pictures import PictureSource, hash_source, name_source


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fit on pictures (paths, bytes, arrays or Pillow images) and labels of any kind that NumPy can sort.

    The parameters are those of TrainSettings, but dense heads are not for it. Features come from the cache, so
    cross_val_score and GridSearchCV run the backbone once per picture. After fitting: `classes_`, `head_` and
    `selection_`.
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        input_size_px: int | None = None,
        weights: str | None = None,
        layers: str = "auto",
        head: str = "linear",
        penalty: float | str = "auto",
        class_weights: str = "none",
        num_folds: int = 5,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.input_size_px = input_size_px
        self.weights = weights
        self.layers = layers
        self.head = head
        self.penalty = penalty
        self.class_weights = class_weights
        self.num_folds = num_folds
        self.seed = seed

    def fit(self, X: Sequence[PictureSource], y: Sequence[Any]) -> ImageClassifier:
        """Choose and fit the head. Raises ConfigError for parameters, DataError that lists all unusable pictures."""
        # A grid made by NumPy holds its scalars.
        params = self.get_params(deep=False).items()
        settings = make_settings({name: v.item() if isinstance(v, np.generic) else v for name, v in params})
        if settings.head == "dense":
            raise ConfigError("ImageClassifier fits linear and svm heads. For a dense head use headstart.train.")
        if len(X) != len(y):
            raise DataError(f"X has {len(X)} pictures and y has {len(y)} labels. Expected one label for each picture.")
        self.classes_, labels = _number_labels(np.asarray(y))
        counts = np.bincount(labels, minlength=len(self.classes_))
        problems = [
            f"Class {name!r} has 1 picture. Training needs at least 2 per class."
            for name, count in zip(self.classes_.tolist(), counts, strict=True)
            if count < 2
        ]
        if len(self.classes_) < 2:
            problems.append(f"y holds {len(self.classes_)} class. Training needs at least 2.")
        raise_all(DataError, problems)
        self._extractor = self._load_extractor()
        make_layout(self._extractor.backbone, settings)  # which knows the layers' names
        with FeatureCache() as cache:
            pictures = self._extract(X, cache)
            records = [
                ImageRecord(path=name_source(picture.source, index), label=int(label), sha256=picture.sha256)
                for index, (picture, label) in enumerate(zip(pictures, labels, strict=True))
            ]
            num_classes = len(self.classes_)
            self.selection_ = fit_head(records, num_classes, self._extractor, cache, settings, lambda *_: None)
        self.head_ = self.selection_.head
        return self

    def predict_proba(self, X: Sequence[PictureSource]) -> np.ndarray:
        """float32 (N, K), columns as `classes_`. Raises DataError that lists all unusable pictures."""
        check_is_fitted(self, "head_")
        with FeatureCache() as cache:
            pictures = self._extract(X, cache)
            return compute_probs(self.head_, [picture.sha256 for picture in pictures], self._extractor, cache)

    def predict(self, X: Sequence[PictureSource]) -> np.ndarray:
        """The most probable class of each picture, (N,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def _extract(self, X: Sequence[PictureSource], cache: FeatureCache) -> list[Picture]:
        if not len(X):
            raise DataError("X holds no picture. Expected at least 1.")
        pictures: dict[int, Picture] = {}
        problems: dict[int, str] = {}
        for (index, source), digest in map_bounded(_hash_or_fail, enumerate(X), count_cpus()):
            if isinstance(digest, ImageError):
                problems[index] = str(digest.at(name_source(source, index)))
            else:
                pictures[index] = Picture(digest, source)
        failures = extract_features([*pictures.values()], self._extractor, cache).failures
        for index, picture in pictures.items():
            if picture.sha256 in failures:
                problems[index] = str(failures[picture.sha256].at(name_source(picture.source, index)))
        raise_all(DataError, [problems[index] for index in sorted(problems)])
        return [*pictures.values()]

    def _load_extractor(self) -> Extractor:
        return Extractor(load_backbone(self.backbone, self.input_size_px, self.weights))

    def __getstate__(self) -> dict[str, Any]:
        # A session of ONNX Runtime cannot be copied; it is made again from the backbone's name.
        return {name: value for name, value in super().__getstate__().items() if name != "_extractor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "head_" in state:
            self._extractor = self._load_extractor()


def _number_labels(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted classes, and each label's number among them."""
    if y.ndim != 1:
        raise DataError(f"y has the shape {y.shape}. Expected one label for each picture, shape (N,).")
    gaps = [index for index, label in enumerate(y.tolist()) if label is None or label != label]
    if gaps:
        raise DataError(f"y has no label for {len(gaps)} of {len(y)} pictures, the first is number {gaps[0]}.")
    try:
        return np.unique(y, return_inverse=True)
    except TypeError:
        kinds = ", ".join(sorted({type(label).__name__ for label in y.tolist()}))
        raise DataError(f"y mixes kinds of labels that have no order: {kinds}. Use one kind.") from None


def _hash_or_fail(item: tuple[int, PictureSource]) -> str | ImageError:
    try:
        return hash_source(item[1])
    except ImageError as error:
        return error
