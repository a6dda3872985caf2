"""Settings of a training, checked all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
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
        raise_all(ConfigError, _find_problems(asdict(self)))


def make_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Settings from keyword arguments. Raises ConfigError that names every unknown or wrong one."""
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    unknown = [f"There is no setting '{name}'.{suggest(name, defaults)}" for name in values if name not in defaults]
    raise_all(ConfigError, [*unknown, *_find_problems({**defaults, **values})])
    return TrainSettings(**values)


def _find_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    backbone, penalty, test_frac = values["backbone"], values["penalty"], values["test_frac"]
    if backbone not in list(CATALOG):
        nearest = suggest(str(backbone), CATALOG)
        problems.append(f"There is no backbone '{backbone}'.{nearest} Known: {', '.join(CATALOG)}.")
    if values["layers"] not in ("auto", "top"):
        problems.append(f"layers is {values['layers']!r}. Expected 'auto' or 'top'.")
    if penalty != "auto" and not (_is_number(penalty) and 0 < penalty < 1e6):
        problems.append(f"penalty is {penalty!r}. Expected 'auto' or a number above 0, such as 0.1.")
    if values["class_weights"] not in ("none", "balanced"):
        problems.append(f"class_weights is {values['class_weights']!r}. Expected 'none' or 'balanced'.")
    if not (_is_number(test_frac) and 0 <= test_frac < 1):
        problems.append(f"test_frac is {test_frac!r}. Expected a share from 0 to below 1, such as 0.2.")
    if not (type(values["num_folds"]) is int and 2 <= values["num_folds"] <= 20):
        problems.append(f"num_folds is {values['num_folds']!r}. Expected a whole number from 2 to 20.")
    if not (type(values["seed"]) is int and 0 <= values["seed"] < 2**32):
        problems.append(f"seed is {values['seed']!r}. Expected a whole number from 0 to 4294967295.")
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
