"""Settings of a training, checked all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from headstart.backbones.catalog import CATALOG, DEFAULT_BACKBONE
from headstart.errors import ConfigError, raise_all, suggest


@dataclass(frozen=True)
class TrainSettings:
    """How a classifier is trained.

    backbone: a name of `headstart backbones`.
    layers: `auto` to choose layers and pooling by cross-validation, `top` for the last layer under global average
        pooling.
    penalty: `auto` to choose it by cross-validation, or the L2 penalty itself, above 0.
    class_weights: `none`, or `balanced` to give every class the same total weight.
    test_frac: share of each class that is put aside for the test, 0 to below 1, where the data name no test part.
    num_folds: folds of the cross-validation, 2 to 20; fewer where a class has fewer pictures.
    seed: of the split, the folds, and everything random, from 0.
    """

    backbone: str = DEFAULT_BACKBONE
    layers: str = "auto"
    penalty: float | str = "auto"
    class_weights: str = "none"
    test_frac: float = 0.2
    num_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        raise_all(ConfigError, self._find_problems())

    def _find_problems(self) -> list[str]:
        problems = []
        if self.backbone not in CATALOG:
            nearest = suggest(str(self.backbone), CATALOG)
            problems.append(f"There is no backbone '{self.backbone}'.{nearest} Known: {', '.join(CATALOG)}.")
        if self.layers not in ("auto", "top"):
            problems.append(f"layers is {self.layers!r}. Expected 'auto' or 'top'.")
        if self.penalty != "auto" and not (_is_number(self.penalty) and 0 < float(self.penalty) < 1e6):
            problems.append(f"penalty is {self.penalty!r}. Expected 'auto' or a number above 0, such as 0.1.")
        if self.class_weights not in ("none", "balanced"):
            problems.append(f"class_weights is {self.class_weights!r}. Expected 'none' or 'balanced'.")
        if not (_is_number(self.test_frac) and 0 <= self.test_frac < 1):
            problems.append(f"test_frac is {self.test_frac!r}. Expected a share from 0 to below 1, such as 0.2.")
        if not (type(self.num_folds) is int and 2 <= self.num_folds <= 20):
            problems.append(f"num_folds is {self.num_folds!r}. Expected a whole number from 2 to 20.")
        if not (type(self.seed) is int and 0 <= self.seed < 2**32):
            problems.append(f"seed is {self.seed!r}. Expected a whole number from 0 to 4294967295.")
        return problems


def make_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Settings from keyword arguments. Raises ConfigError that names every unknown or wrong one."""
    known = [field.name for field in fields(TrainSettings)]
    unknown = [f"There is no setting '{name}'.{suggest(name, known)}" for name in values if name not in known]
    try:
        settings = TrainSettings(**{name: value for name, value in values.items() if name in known})
    except ConfigError as error:
        raise_all(ConfigError, [*unknown, str(error)])
        raise
    raise_all(ConfigError, unknown)
    return settings


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
