"""Every recipe runs to the end, with random weights on few pictures, and is what it says it is."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED_DATA
from drawn_pictures import draw_picture, write_shapes
from rich.console import Console

pytest.importorskip("torch")

import headstart
from headstart.errors import ConfigError
from headstart.finetuning.history import EpochRow
from headstart.recipes import NAMES, find_recipe
from headstart.recipes.recipe import Recipe
from headstart.recipes.runner import RecipeResult, render_result, run_recipe
from headstart.recipes.transfer_gain import Estimate, measure_curve, render_gain, run_transfer_gain, subtract

# Side of the pictures, and of the map that the head then takes. The first two stand at the tutorial's own size, so that
# their counts are the published ones.
SIDES = {
    "vgg16_dense100": (224, 7),
    "resnet50_dense100": (224, 7),
    "vgg19_dense100": (64, 2),
    "vgg16_average": (32, 1),
    "inception_v3_mixed7": (75, 3),
    "inception_v3_average": (75, 1),
    "resnet50_cifar10": (32, 1),
}
PER_CLASS = 6


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes-cache")


@pytest.fixture(autouse=True)
def kept_networks(own_cache: Path, module_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all tests here: recipes share networks, and exporting one takes seconds."""
    monkeypatch.setenv("HEADSTART_CACHE", str(module_cache))


def get_pictures(recipe: Recipe, folder: Path) -> Path:
    """The collection that the recipe is for, where it is there; else drawn pictures. Both name a part to measure on."""
    collection = SHARED_DATA / ("cifar10" if recipe.num_classes == 10 else "cats_dogs")
    if collection.is_dir():
        return collection
    write_shapes(folder / "train", PER_CLASS, ("checks", "stripes"))
    write_shapes(folder / "test", PER_CLASS, ("checks", "stripes"), first=PER_CLASS)
    return folder


def count_head(recipe: Recipe, map_side: int, num_classes: int) -> int:
    cells = map_side**2 if recipe.train["pooling"] == "flatten" else 1
    outputs = 1 if recipe.train["activation"] == "sigmoid" else num_classes
    sizes = (recipe.feature_map[2] * cells, *recipe.train["hidden"], outputs)
    return sum((before + 1) * after for before, after in pairwise(sizes))


def run_small(name: str, pictures: Path, output: Path, epochs: int = 1) -> RecipeResult:
    return run_recipe(
        find_recipe(name),
        pictures,
        output=output,
        weights="none",
        epochs=epochs,
        input_size_px=SIDES[name][0],
        max_per_class=PER_CLASS,
    )


def read_epochs(folder: Path) -> list[str]:
    with open(folder / "history.csv", newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def render(parts: object) -> str:
    console = Console(file=io.StringIO(), width=180)
    for part in parts:  # type: ignore[attr-defined]
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_to_the_end(name: str, tmp_path: Path) -> None:
    recipe, counts = find_recipe(name), find_recipe(name).parameters
    side, map_side = SIDES[name]
    output = tmp_path / "out"
    result = run_small(name, get_pictures(recipe, tmp_path / "pictures"), output)
    suffixes = {"frozen": "", "fine-tuned": "-finetuned"}
    assert [stage.stage for stage in result.stages] == [*suffixes][: 1 if recipe.finetune is None else 2]

    text = render(render_result(result))
    for stage in result.stages:
        file = output / f"{name}{suffixes[stage.stage]}.onnx"
        classifier = headstart.load(file)
        head = count_head(recipe, map_side, len(classifier.classes))
        unfrozen = 0 if stage.stage == "frozen" else (counts.unfrozen or 0) - counts.head
        assert (stage.trained, stage.frozen) == (head + unfrozen, counts.frozen - unfrozen)
        if side == recipe.train["input_size_px"] and len(classifier.classes) == recipe.num_classes:
            assert stage.trained == (counts.head if stage.stage == "frozen" else counts.unfrozen)
        assert classifier.metadata.preprocess["input_size_px"] == side
        prediction = classifier.predict(draw_picture("checks", 0))
        assert prediction.label in classifier.classes
        assert np.isclose(prediction.probs.sum(), 1, atol=1e-5)

        folder = file.with_suffix(".training")
        assert read_epochs(folder) == ["0", "1"]
        assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")

        *_, held_out = stage.figures
        assert held_out.conditions == "nothing was chosen by these pictures"
        assert held_out.num_images == PER_CLASS * len(classifier.classes)
        lines = [line.split() for line in text.splitlines()]
        measured = [line for line in lines if line[:2] == ["measured", stage.stage]]
        assert [" ".join(line[2:4]) for line in measured] == [figure.what for figure in stage.figures]
        assert [line[2:4] for line in lines if line[:2] == ["published", stage.stage]] == [
            figure.what.split() for figure in recipe.published if figure.stage == stage.stage
        ]
        (row,) = (line for line in lines if line[0:1] == [stage.stage] and len(line) == 6)
        assert (row[2], row[4]) == (f"{stage.trained:,}", f"{stage.frozen:,}")
    assert "measured with: weights none, epochs 1" in text


def test_a_recipe_goes_on_where_it_stopped(tmp_path: Path) -> None:
    name = "resnet50_cifar10"
    pictures = write_shapes(tmp_path / "pictures", 2 * PER_CLASS)
    run_small(name, pictures, tmp_path / "out")
    folder = tmp_path / "out" / f"{name}.training"
    before = (folder / "history.csv").read_text()
    result = run_small(name, pictures, tmp_path / "out", epochs=2)
    assert (folder / "history.csv").read_text().startswith(before)
    assert read_epochs(folder) == ["0", "1", "2"]
    assert result.conditions == "weights none, epochs 2, input size 32, pictures per class 6, classes 3"


def test_an_output_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        run_small("resnet50_cifar10", tmp_path, tmp_path / "out" / "deeper")


def test_a_difference_has_the_published_interval() -> None:
    """Newcombe (1998), table II: 56 of 70 less 48 of 80 by method 10."""
    one, other = Estimate(56 / 70, 0.6918, 0.8766), Estimate(48 / 80, 0.4904, 0.7003)
    difference = subtract(one, other)
    found = (difference.value, difference.low, difference.high)
    assert np.allclose(found, (0.2, 0.0524, 0.3339), atol=2e-4)


def test_start_slope_and_last_of_a_curve() -> None:
    accuracies = (0.5, 0.6, 0.65, 0.8, 0.75)
    rows = tuple(EpochRow(epoch, epoch, None, None, 1.0, value, 0.1, 1.0) for epoch, value in enumerate(accuracies))
    curve = measure_curve("x", rows, 100, num_first=3)
    assert (curve.start.value, curve.last.value) == (0.6, 0.75)
    assert np.isclose(curve.slope.value, 0.1)
    assert curve.slope.low < 0.1 < curve.slope.high
    assert np.allclose((curve.last.low, curve.last.high), (0.657, 0.825), atol=1e-3)


def test_what_transfer_learning_bought(tmp_path: Path) -> None:
    pictures = write_shapes(tmp_path / "pictures", 12, ("checks", "stripes"))
    gain = run_transfer_gain(pictures, output=tmp_path / "out", epochs=1, input_size_px=64)
    scratch, frozen, tuned = gain.curves
    assert (gain.num_train, gain.num_validation, gain.num_first) == (16, 8, 1)
    assert all([row.epoch for row in curve.history] == [0, 1] for curve in gain.curves)
    # The same pictures and the same head: fine-tuning begins with the loss at which the frozen one ended.
    best = min(row.validation_loss for row in frozen.history)
    assert np.isclose(tuned.history[0].validation_loss, best, atol=5e-3)
    assert not np.isclose(scratch.history[0].validation_loss, frozen.history[0].validation_loss, atol=5e-3)
    assert scratch.history[1].validation_loss != scratch.history[0].validation_loss
    assert gain.figure.read_bytes().startswith(b"\x89PNG")
    text = render(render_gain(gain))
    for curve in gain.curves:
        (line,) = (line for line in text.splitlines() if line.startswith(f"{curve.name}  "))
        assert line.split()[-1] == "8"
        assert f"{100 * curve.last.value:.1f} (" in line
    assert len([line for line in text.splitlines() if ": gain, points" in line]) == 2
    assert "Every figure is of the same 8 validation pictures" in text
