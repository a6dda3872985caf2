"""The experiments of the Keras tutorials by name, one file each. Listing them imports neither torch nor NumPy."""

from __future__ import annotations

import importlib
from typing import cast

from headstart.errors import ConfigError, suggest
from headstart.recipes.recipe import Recipe

NAMES = (
    "vgg16_dense100",
    "vgg19_dense100",
    "resnet50_dense100",
    "vgg16_average",
    "inception_v3_mixed7",
    "inception_v3_average",
    "resnet50_cifar10",
)
"""Files of this folder, each with a RECIPE."""

TRANSFER_GAIN = "transfer_gain"
"""The comparison of from scratch, frozen and fine-tuned: three runs, so not a Recipe. No recipe may have its name."""


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ConfigError with the nearest name and all names."""
    if name not in NAMES:
        raise ConfigError(f"There is no recipe '{name}'.{suggest(name, NAMES)} Known: {', '.join(NAMES)}.")
    return cast(Recipe, importlib.import_module(f"headstart.recipes.{name}").RECIPE)


def list_recipes() -> tuple[Recipe, ...]:
    """All recipes, in the order of NAMES."""
    return tuple(find_recipe(name) for name in NAMES)
