"""One table of wrong settings and the messages for them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from headstart.backbones.catalog import PRESETS
from headstart.config import OPTIMIZERS, FitSettings, TrainSettings, apply_preset, make_fit_settings, make_settings
from headstart.errors import ConfigError

KNOWN = (
    "Known: efficientnet-lite0, efficientnet-lite1, efficientnet-lite2, efficientnet-lite0-int8, "
    "efficientnet-lite1-int8, efficientnet-lite2-int8, vgg16, vgg19, resnet50, inception_v3, and every model of timm as timm:NAME, such as timm:convnext_tiny."
)
WRONG = [
    ({"backbone": "resnet"}, f"There is no backbone 'resnet'. Did you mean 'resnet50'? {KNOWN}"),
    (
        {"backbone": "efficientnet-lite9"},
        f"There is no backbone 'efficientnet-lite9'. Did you mean 'efficientnet-lite2'? {KNOWN}",
    ),
    ({"backbone": None}, f"There is no backbone 'None'. {KNOWN}"),
    ({"backbone": ["a"]}, f"There is no backbone '['a']'. {KNOWN}"),
    *(
        ({"layers": value}, f"layers is {value!r}. Expected 'auto', 'top' or the name of a layer.")
        for value in (None, 3, ["stage3"])
    ),
    *(
        ({"input_size_px": value}, f"input_size_px is {value!r}. Expected a whole number from 8 to 4096, or None.")
        for value in (7, 4097, 224.0, "224", True)
    ),
    *(
        ({"weights": value}, f"weights is {value!r}. Expected a file, 'none' for random ones, or None.")
        for value in (5, False, b"x", "")
    ),
    (
        {"head": "svn"},
        "head is 'svn'. Did you mean 'svm'? Expected one of linear, svm, dense.",
    ),
    (
        {"head": "dense", "pooling": "mean"},
        "pooling is 'mean'. Expected one of average, max, flatten.",
    ),
    (
        {"head": "dense", "activation": "sigmoids"},
        "activation is 'sigmoids'. Did you mean 'sigmoid'? Expected one of softmax, sigmoid.",
    ),
    ({"head": None}, "head is None. Expected one of linear, svm, dense."),
    ({"head": 5}, "head is 5. Expected one of linear, svm, dense."),
    *(
        (
            {"head": "dense", "hidden": value},
            f"hidden is {value!r}. Expected a tuple of units from 1 to 65536, such as (256, 128).",
        )
        for value in (100, (0,), (65_537,), (1.5,), (True,), "100", None)
    ),
    *(
        (
            {"head": "dense", "dropout": value},
            f"dropout is {value!r}. Expected a tuple of shares from 0 to below 1, such as (0.5, 0.7).",
        )
        for value in (0.5, (1.0,), (-0.1,), (math.nan,), ("0.5",), None)
    ),
    (
        {"head": "dense", "hidden": (100,), "dropout": (0.5, 0.5)},
        "dropout names 2 shares for 1 hidden layers. "
        "Expected one after each hidden layer, or one before the output where none is hidden.",
    ),
    (
        {"pooling": "max", "hidden": (100,)},
        "pooling, hidden: for dense heads only. Add head 'dense', or leave it out.",
    ),
    (
        {"head": "svm", "dropout": (0.4,), "activation": "sigmoid"},
        "dropout, activation: for dense heads only. Add head 'dense', or leave it out.",
    ),
    *(
        ({"penalty": value}, f"penalty is {value!r}. Expected 'auto' or a number above 0, such as 0.1.")
        for value in (0, -1.0, math.nan, math.inf, 1e6, True, None, "0.1", [1])
    ),
    ({"class_weights": "equal"}, "class_weights is 'equal'. Expected 'none' or 'balanced'."),
    *(
        ({"test_frac": value}, f"test_frac is {value!r}. Expected a share from 0 to below 1, such as 0.2.")
        for value in (-0.1, 1, 1.0, math.nan, "0.2", None, False)
    ),
    *(
        ({"num_folds": value}, f"num_folds is {value!r}. Expected a whole number from 2 to 20.")
        for value in (1, 21, 5.0, "5", True)
    ),
    *(
        ({"seed": value}, f"seed is {value!r}. Expected a whole number from 0 to 4294967295.")
        for value in (-1, 2**32, 0.5, None, True)
    ),
    ({"penalti": 1}, "There is no setting 'penalti'. Did you mean 'penalty'?"),
    ({"epochs": 5}, "There is no setting 'epochs'."),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_setting_is_told_with_what_was_expected(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_settings(values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "values",
    [
        {"penalty": 1e-9, "test_frac": 0, "num_folds": 2, "seed": 0},
        {"penalty": 999_999, "test_frac": 0.999, "num_folds": 20, "seed": 2**32 - 1},
        {"penalty": "auto", "layers": "top", "class_weights": "balanced", "backbone": "efficientnet-lite2"},
        {"penalty": np.float64(0.1), "test_frac": np.float64(0.5)},
        {"backbone": "timm:anything", "input_size_px": 8, "weights": "none", "layers": "any name"},
        {"backbone": "vgg16", "input_size_px": 4096, "weights": "own.pth", "head": "svm"},
        {"head": "dense", "pooling": "flatten", "hidden": (1, 65_536), "dropout": (0, 0.99), "activation": "sigmoid"},
        {"head": "dense", "dropout": (0.4,)},
        {"head": "dense", "hidden": (256, 128), "dropout": (0.5,)},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(values: dict[str, object]) -> None:
    settings = make_settings(values)
    assert {name: getattr(settings, name) for name in values} == values


def test_the_defaults() -> None:
    assert (
        make_settings({})
        == TrainSettings()
        == TrainSettings(
            backbone="efficientnet-lite0",
            layers="auto",
            penalty="auto",
            class_weights="none",
            test_frac=0.2,
            num_folds=5,
            seed=0,
        )
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSettings().seed = 1  # type: ignore[misc]


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_settings({"seeds": 3, "seed": -1, "layers": None})
    assert str(caught.value) == (
        "3 problems:\n"
        "  There is no setting 'seeds'. Did you mean 'seed'?\n"
        "  layers is None. Expected 'auto', 'top' or the name of a layer.\n"
        "  seed is -1. Expected a whole number from 0 to 4294967295."
    )
    with pytest.raises(ConfigError, match=r"^2 problems:\n  num_folds is 0.*\n  seed is -1"):
        TrainSettings(num_folds=0, seed=-1)


FIT_WRONG = [
    (
        {"optimizer": "adm"},
        "optimizer is 'adm'. Did you mean 'adam'? Expected one of adamw, adam, adamax, rmsprop, sgd.",
    ),
    ({"optimizer": None}, "optimizer is None. Expected one of adamw, adam, adamax, rmsprop, sgd."),
    ({"monitor": "val_loss"}, "monitor is 'val_loss'. Did you mean 'loss'? Expected one of loss, accuracy."),
    ({"schedule": "step"}, "schedule is 'step'. Expected one of cosine, constant."),
    ({"class_weights": {}}, "class_weights is {}. Expected one of none, balanced."),
    *(
        ({name: value}, f"{name} is {value!r}. Expected a whole number from 1 to {high}.")
        for name, high, values in (
            ("epochs", "10,000", (0, 10_001, 1.0, "5", True)),
            ("batch_size", "4,096", (0, 4097)),
            ("num_views", "100", (0, 101)),
        )
        for value in values
    ),
    *(
        ({"patience": value}, f"patience is {value!r}. Expected a whole number from 1, or None.")
        for value in (0, 2.0, False)
    ),
    *(
        ({name: value}, f"{name} is {value!r}. Expected {says}.")
        for name, says, values in (
            ("learning_rate", "a number above 0, such as 0.001", (0, -1, math.nan, "0.1", True)),
            ("momentum", "a number from 0 to below 1", (-0.1, 1)),
            ("weight_decay", "a number from 0, such as 0.01", (-0.1, math.inf)),
            ("validation_frac", "a share from 0.001 to 0.5", (0, 0.6)),
            ("label_smoothing", "a share from 0 to below 1", (-0.1, 1)),
            ("warmup_frac", "a share from 0 to below 1", (-0.1, 1)),
            ("layer_decay", "a number from 0.01 to 1", (0, 1.1)),
        )
        for value in values
    ),
    *(({"ema": value}, f"ema is {value!r}. Expected True or False.") for value in ("no", 1, None)),
    *(
        ({"seed": value}, f"seed is {value!r}. Expected a whole number from 0 to 4294967295.")
        for value in (-1, 2**32, 1.0)
    ),
]


@pytest.mark.parametrize(("values", "message"), FIT_WRONG)
def test_a_wrong_fit_setting_is_told_with_what_was_expected(values: dict[str, object], message: str) -> None:
    for make in (make_fit_settings, lambda given: FitSettings(**given)):
        with pytest.raises(ConfigError) as caught:
            make(values)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 1, "batch_size": 1, "num_views": 1, "patience": 1, "momentum": 0, "weight_decay": 0, "seed": 0},
        {"epochs": 10_000, "batch_size": 4096, "num_views": 100, "layer_decay": 1, "validation_frac": 0.5},
        {"label_smoothing": 0, "warmup_frac": 0, "ema": True, "monitor": "accuracy", "schedule": "cosine"},
        *({"optimizer": name} for name in OPTIMIZERS),
    ],
)
def test_the_ends_of_the_ranges_of_fitting_are_allowed(values: dict[str, object]) -> None:
    settings = make_fit_settings(values)
    assert {name: getattr(settings, name) for name in values} == values


def test_fit_settings_stand_over_defaults() -> None:
    assert make_fit_settings({}) == FitSettings()
    settings = make_fit_settings({"epochs": 3}, epochs=5, optimizer="sgd")
    assert (settings.epochs, settings.optimizer, settings.batch_size) == (3, "sgd", 32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 4  # type: ignore[misc]


def test_all_problems_of_fitting_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_fit_settings({"epoch": 3, "optimiser": "adam", "batch_size": 0, "momentum": 2})
    assert str(caught.value) == (
        "4 problems:\n"
        "  There is no setting 'epoch'. Did you mean 'epochs'?\n"
        "  There is no setting 'optimiser'. Did you mean 'optimizer'?\n"
        "  batch_size is 0. Expected a whole number from 1 to 4,096.\n"
        "  momentum is 2. Expected a number from 0 to below 1."
    )
    with pytest.raises(ConfigError) as caught:
        make_fit_settings({"epoch": 3})
    assert str(caught.value) == "There is no setting 'epoch'. Did you mean 'epochs'?"


def test_a_preset_is_a_backbone_and_a_size() -> None:
    assert apply_preset(None, {"seed": 1}) == {"seed": 1}
    for preset, (backbone, size_px) in PRESETS.items():
        given = {"seed": 1, "input_size_px": None, "weights": None}
        expected = {"seed": 1, "backbone": backbone, "input_size_px": size_px, "weights": None}
        assert apply_preset(preset, given) == expected
        assert make_settings(expected).backbone == backbone


@pytest.mark.parametrize(
    ("preset", "values", "message"),
    [
        ("fats", {}, "preset is 'fats'. Did you mean 'fast'? Expected fast or best."),
        (["fast"], {}, "preset is ['fast']. Did you mean 'fast'? Expected fast or best."),
        (
            "fast",
            {"backbone": "vgg16", "input_size_px": 64},
            "The preset 'fast' chooses backbone and input size. Leave backbone and input_size_px out, or the preset.",
        ),
        (
            "best",
            {"weights": "none"},
            "The preset 'best' chooses backbone and input size. Leave weights out, or the preset.",
        ),
    ],
)
def test_a_preset_allows_no_other_choice(preset: Any, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_preset(preset, values)
    assert str(caught.value) == message
