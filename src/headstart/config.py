"""Settings of a training, checked all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from headstart.backbones.catalog import DEFAULT_BACKBONE, PRESETS, is_known_backbone, say_unknown_backbone
from headstart.errors import ConfigError, raise_all, suggest


@dataclass(frozen=True)
class TrainSettings:
    """How a classifier is trained.

    backbone: a name of `headstart backbones`, or `timm:NAME` for any model of timm.
    input_size_px: side of the square that the network sees; None is the side that it was trained at.
    weights: a file of weights instead of the published ones, or `none` for random ones; None is the published.
    layers: `auto` to choose layers and pooling by cross-validation, `top` for the last layer under global average
        pooling, or the name of a layer.
    head: `linear` (logistic regression), `svm` (linear support vector machine), or `dense`.
    penalty: `auto` to choose it by cross-validation, or the L2 penalty itself, above 0. For linear heads.
    pooling, hidden, dropout, activation: of a dense head. `average`, `max` or `flatten`; units of each hidden layer
        (ReLU); share dropped after each hidden layer, or before the output where none is hidden; `softmax`, or
        `sigmoid` for two classes.
    class_weights: `none`, or `balanced` to give every class the same total weight.
    test_frac: share of each class that is put aside for the test, 0 to below 1, where the data name no test part.
    num_folds: folds of the cross-validation, 2 to 20; fewer where a class has fewer pictures.
    seed: of the split, the folds, and everything random, from 0.
    """

    backbone: str = DEFAULT_BACKBONE
    input_size_px: int | None = None
    weights: str | None = None
    layers: str = "auto"
    head: str = "linear"
    penalty: float | str = "auto"
    pooling: str = "average"
    hidden: tuple[int, ...] = ()
    dropout: tuple[float, ...] = ()
    activation: str = "softmax"
    class_weights: str = "none"
    test_frac: float = 0.2
    num_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        raise_all(ConfigError, _find_problems(asdict(self)))


@dataclass(frozen=True)
class FitSettings:
    """How a dense head is trained, or a network fine-tuned.

    optimizer: `adamw`, `adam`, `adamax`, `rmsprop` or `sgd`.
    learning_rate: of the head (of everything, with layer_decay 1), above 0.
    momentum: of sgd, 0 to below 1.
    weight_decay: decoupled for adamw, otherwise added to the gradient, from 0.
    epochs: passes over the training pictures, 1 to 10,000.
    batch_size: pictures a step, 1 to 4096.
    patience: epochs without a better validation value after which training stops; None never stops.
    monitor: `loss` or `accuracy` of the validation pictures; the best epoch by it is kept.
    validation_frac: share of the training pictures that is put aside for that, above 0 to 0.5.
    augment: a preset of `headstart augment`: none, flip, light, tutorial, strong.
    num_views: how many augmented views of a picture the frozen part of the network computes and keeps, 1 to 100; where
        the whole network is trained, every epoch draws new ones.
    label_smoothing: share of the target that is spread over all classes, 0 to below 1.
    class_weights: `none`, or `balanced` to give every class the same total weight.
    warmup_frac: share of the steps in which the rate rises from 0, 0 to below 1.
    schedule: `cosine` lets the rate fall to nothing, `constant` keeps it.
    layer_decay: the rate of each module is that of the one above it times this, above 0 to 1.
    ema: average the weights over the last steps and judge and keep the average.
    seed: of everything random, from 0.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 10
    batch_size: int = 32
    patience: int | None = None
    monitor: str = "loss"
    validation_frac: float = 0.15
    augment: str = "none"
    num_views: int = 4
    label_smoothing: float = 0.0
    class_weights: str = "none"
    warmup_frac: float = 0.0
    schedule: str = "constant"
    layer_decay: float = 1.0
    ema: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        raise_all(ConfigError, _find_fit_problems(asdict(self)))


OPTIMIZERS = ("adamw", "adam", "adamax", "rmsprop", "sgd")


def _find_fit_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name, known in (
        ("optimizer", OPTIMIZERS),
        ("monitor", ("loss", "accuracy")),
        ("schedule", ("cosine", "constant")),
        ("class_weights", ("none", "balanced")),
    ):
        if (value := values[name]) not in known:
            yield f"{name} is {value!r}.{suggest(str(value), known)} Expected one of {', '.join(known)}."
    for name, low, high in (("epochs", 1, 10_000), ("batch_size", 1, 4096), ("num_views", 1, 100)):
        value = values[name]
        if not (type(value) is int and low <= value <= high):
            yield f"{name} is {value!r}. Expected a whole number from {low} to {high:,}."
    if values["patience"] is not None and not (type(values["patience"]) is int and values["patience"] >= 1):
        yield f"patience is {values['patience']!r}. Expected a whole number from 1, or None."
    ranges: tuple[tuple[str, float, float, str], ...] = (
        ("learning_rate", 1e-12, 100, "a number above 0, such as 0.001"),
        ("momentum", 0, 0.999999, "a number from 0 to below 1"),
        ("weight_decay", 0, 100, "a number from 0, such as 0.01"),
        ("validation_frac", 0.001, 0.5, "a share from 0.001 to 0.5"),
        ("label_smoothing", 0, 0.999, "a share from 0 to below 1"),
        ("warmup_frac", 0, 0.999, "a share from 0 to below 1"),
        ("layer_decay", 0.01, 1, "a number from 0.01 to 1"),
    )
    for name, least, most, says in ranges:
        value = values[name]
        if not (_is_number(value) and least <= value <= most):
            yield f"{name} is {value!r}. Expected {says}."
    if not isinstance(values["ema"], bool):
        yield f"ema is {values['ema']!r}. Expected True or False."
    if type(values["seed"]) is not int or not 0 <= values["seed"] < 2**32:
        yield f"seed is {values['seed']!r}. Expected a whole number from 0 to 4294967295."


def make_fit_settings(values: Mapping[str, Any], **defaults: Any) -> FitSettings:
    """Settings from keyword arguments over `defaults`. Raises ConfigError that names every unknown or wrong one."""
    known = {field.name: field.default for field in fields(FitSettings)}
    unknown = [f"There is no setting '{name}'.{suggest(name, known)}" for name in values if name not in known]
    raise_all(ConfigError, [*unknown, *_find_fit_problems({**known, **defaults, **values})])
    return FitSettings(**{**defaults, **values})


def make_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Settings from keyword arguments. Raises ConfigError that names every unknown or wrong one."""
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    unknown = [f"There is no setting '{name}'.{suggest(name, defaults)}" for name in values if name not in defaults]
    raise_all(ConfigError, [*unknown, *_find_problems({**defaults, **values})])
    return TrainSettings(**values)


def apply_preset(preset: str | None, values: dict[str, Any]) -> dict[str, Any]:
    """The settings with the preset's backbone and input size, as `PRESETS` names them; None changes nothing.

    Raises ConfigError for an unknown preset, and where a setting is given that the preset is to choose.
    """
    if preset is None:
        return values
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"preset is {preset!r}.{suggest(str(preset), PRESETS)} Expected {' or '.join(PRESETS)}.")
    if given := [name for name in ("backbone", "input_size_px", "weights") if values.get(name) is not None]:
        raise ConfigError(
            f"The preset '{preset}' chooses backbone and input size. Leave {' and '.join(given)} out, or the preset."
        )
    backbone, input_size_px = PRESETS[preset]
    return {**values, "backbone": backbone, "input_size_px": input_size_px}


def _find_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    backbone, penalty, test_frac = values["backbone"], values["penalty"], values["test_frac"]
    if not (isinstance(backbone, str) and is_known_backbone(backbone)):
        problems.append(say_unknown_backbone(str(backbone)))
    size = values["input_size_px"]
    if size is not None and not (type(size) is int and 8 <= size <= 4096):
        problems.append(f"input_size_px is {size!r}. Expected a whole number from 8 to 4096, or None.")
    weights = values["weights"]
    if weights is not None and not (isinstance(weights, str) and weights):
        problems.append(f"weights is {weights!r}. Expected a file, 'none' for random ones, or None.")
    if not isinstance(values["layers"], str):
        problems.append(f"layers is {values['layers']!r}. Expected 'auto', 'top' or the name of a layer.")
    problems += _find_head_problems(values)
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


def _find_head_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name, known in (
        ("head", ("linear", "svm", "dense")),
        ("pooling", ("average", "max", "flatten")),
        ("activation", ("softmax", "sigmoid")),
    ):
        if values[name] not in known:
            yield f"{name} is {values[name]!r}.{suggest(str(values[name]), known)} Expected one of {', '.join(known)}."
    hidden, dropout = values["hidden"], values["dropout"]
    if not (isinstance(hidden, tuple) and all(type(units) is int and 1 <= units <= 65_536 for units in hidden)):
        yield f"hidden is {hidden!r}. Expected a tuple of units from 1 to 65536, such as (256, 128)."
        hidden = ()
    if not (isinstance(dropout, tuple) and all(_is_number(share) and 0 <= share < 1 for share in dropout)):
        yield f"dropout is {dropout!r}. Expected a tuple of shares from 0 to below 1, such as (0.5, 0.7)."
    elif len(dropout) > max(1, len(hidden)):
        yield (
            f"dropout names {len(dropout)} shares for {len(hidden)} hidden layers. "
            "Expected one after each hidden layer, or one before the output where none is hidden."
        )
    if values["head"] != "dense":
        dense = {"pooling": "average", "hidden": (), "dropout": (), "activation": "softmax"}
        given = [name for name, default in dense.items() if values[name] != default]
        if given:
            yield f"{', '.join(given)}: for dense heads only. Add head 'dense', or leave it out."


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
