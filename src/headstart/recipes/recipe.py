"""What a tutorial did, as settings of headstart, and what it published about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Stage = Literal["frozen", "fine-tuned"]

KERAS_FIT: Mapping[str, Any] = MappingProxyType(
    {
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_frac": 0.0,
        "label_smoothing": 0.0,
        "layer_decay": 1.0,
        "ema": False,
    }
)
"""Fit settings with which headstart trains as plainly as `model.fit` did: each is on by default or may be."""

CATS_AND_DOGS = "Cats and dogs of Kaggle's Dogs vs. Cats (25,000 photographs)"


@dataclass(frozen=True)
class Source:
    """Where a tutorial stands. `address` names the stored version that was read."""

    title: str
    author: str
    address: str


@dataclass(frozen=True)
class PublishedFigure:
    """One accuracy as the tutorial states it: 0 .. 1, a range (low, high), or None where none was found."""

    stage: Stage
    what: str
    value: float | tuple[float, float] | None
    conditions: str


@dataclass(frozen=True)
class FinetuneStage:
    """The second stage: `from_layer` and everything after it is trained, with these fit settings."""

    from_layer: str
    fit: Mapping[str, Any]


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters as torch counts them: weights and biases, not the statistics of batch norm.

    `head` is trained and `frozen` is not in the first stage; `unfrozen` is trained, head included, in the second.
    """

    head: int
    frozen: int
    unfrozen: int | None = None


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    name: of its file, and on the command line.
    source: None where the tutorial was not found; its figures are then None too.
    data: the pictures that the tutorial used.
    num_classes: as published; the counts of parameters hold for it.
    backbone: a name of `headstart backbones`.
    train: settings of TrainSettings without the backbone.
    fit: settings of FitSettings for the first stage.
    finetune: the second stage, or None.
    feature_map: height, width and channels of what the head takes, before pooling.
    """

    name: str
    title: str
    source: Source | None
    data: str
    num_classes: int
    backbone: str
    train: Mapping[str, Any]
    fit: Mapping[str, Any]
    finetune: FinetuneStage | None
    feature_map: tuple[int, int, int]
    parameters: ParameterCounts
    published: tuple[PublishedFigure, ...]
    notes: tuple[str, ...]
