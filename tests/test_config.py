"""One table of wrong settings and the messages for them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from headstart.config import TrainSettings, make_settings
from headstart.errors import ConfigError

KNOWN = "Known: efficientnet-lite0, efficientnet-lite1, efficientnet-lite2."
WRONG = [
    ({"backbone": "resnet"}, f"There is no backbone 'resnet'. {KNOWN}"),
    (
        {"backbone": "efficientnet-lite9"},
        f"There is no backbone 'efficientnet-lite9'. Did you mean 'efficientnet-lite2'? {KNOWN}",
    ),
    ({"backbone": None}, f"There is no backbone 'None'. {KNOWN}"),
    ({"backbone": ["a"]}, f"There is no backbone '['a']'. {KNOWN}"),
    ({"layers": "bottom"}, "layers is 'bottom'. Expected 'auto' or 'top'."),
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
        make_settings({"seeds": 3, "seed": -1, "layers": "x"})
    assert str(caught.value) == (
        "3 problems:\n"
        "  There is no setting 'seeds'. Did you mean 'seed'?\n"
        "  layers is 'x'. Expected 'auto' or 'top'.\n"
        "  seed is -1. Expected a whole number from 0 to 4294967295."
    )
    with pytest.raises(ConfigError, match=r"^2 problems:\n  num_folds is 0.*\n  seed is -1"):
        TrainSettings(num_folds=0, seed=-1)
