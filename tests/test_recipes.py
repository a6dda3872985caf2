"""The recipes say what the tutorials did: settings that exist, counts that follow, a source for every figure."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from drawn_pictures import run_python, write_shapes
from rich.console import Console

from headstart.errors import ConfigError
from headstart.recipes import NAMES, TRANSFER_GAIN, find_recipe, list_recipes
from headstart.recipes.recipe import Recipe
from headstart.recipes.runner import (
    MeasuredFigure,
    RecipeResult,
    StageResult,
    format_published,
    render_result,
    take_first,
)

TRAIN = {"input_size_px", "layers", "head", "pooling", "hidden", "dropout", "activation"}
FIT = {
    *("optimizer", "learning_rate", "momentum", "weight_decay", "epochs", "batch_size", "patience", "validation_frac"),
    *("augment", "num_views", "label_smoothing", "class_weights", "warmup_frac", "schedule", "layer_decay", "ema"),
    *("monitor", "seed"),
}

# (trained, frozen, trained after unfreezing), as the tutorials' summaries or torch give them
COUNTS = {
    "vgg16_dense100": (2_529_302, 14_714_688, None),
    "vgg19_dense100": (2_529_302, 20_024_384, None),
    "resnet50_dense100": (10_055_702, 23_508_032, None),
    "vgg16_average": (164_353, 14_714_688, 7_243_777),
    "inception_v3_mixed7": (38_537_217, 8_965_856, 40_679_169),
    "inception_v3_average": (4_098, 21_785_568, None),
    "resnet50_cifar10": (20_490, 23_508_032, None),
}

each_recipe = pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)


def test_names_are_the_files() -> None:
    recipes = list_recipes()
    assert tuple(recipe.name for recipe in recipes) == NAMES
    folder = Path(__file__).parents[1] / "src" / "headstart" / "recipes"
    others = {"__init__", "recipe", "runner", TRANSFER_GAIN}
    assert {path.stem for path in folder.glob("*.py")} - others == set(NAMES)
    assert TRANSFER_GAIN not in NAMES
    page = (Path(__file__).parents[1] / "docs" / "from-keras.md").read_text()
    assert not [name for name in (*NAMES, TRANSFER_GAIN) if f"`{name}`" not in page]


def test_an_unknown_recipe_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        find_recipe("vgg16_dense10")
    assert str(caught.value) == (
        "There is no recipe 'vgg16_dense10'. Did you mean 'vgg16_dense100'? Known: " + ", ".join(NAMES) + "."
    )


def test_recipes_are_listed_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from headstart.recipes import list_recipes; print(len(list_recipes())); "
        "print(*{'torch', 'torchvision', 'timm', 'numpy', 'onnx'} & set(sys.modules))"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.stdout == f"{len(NAMES)}\n\n", done.stderr


@each_recipe
def test_settings_exist(recipe: Recipe) -> None:
    assert set(recipe.train) == TRAIN
    stages = [recipe.fit] + ([recipe.finetune.fit] if recipe.finetune else [])
    for fit in stages:
        assert set(fit) <= FIT
        assert {"optimizer", "learning_rate", "epochs", "batch_size", "patience", "validation_frac", "augment"} <= set(
            fit
        )
        assert fit["optimizer"] in ("adam", "adamax", "rmsprop", "sgd")
        assert ("momentum" in fit) == (fit["optimizer"] == "sgd")
        assert 0 < fit["validation_frac"] < 0.5
        assert (fit["num_views"] > 1) == (fit["augment"] != "none")


def count_head(recipe: Recipe) -> int:
    """Weights and biases of the dense layers, from the size of what they take."""
    height, width, channels = recipe.feature_map
    inputs = height * width * channels if recipe.train["pooling"] == "flatten" else channels
    outputs = 1 if recipe.train["activation"] == "sigmoid" else recipe.num_classes
    sizes = (inputs, *recipe.train["hidden"], outputs)
    return sum((before + 1) * after for before, after in pairwise(sizes))


@each_recipe
def test_parameter_counts(recipe: Recipe) -> None:
    counts = recipe.parameters
    assert (counts.head, counts.frozen, counts.unfrozen) == COUNTS[recipe.name]
    assert count_head(recipe) == counts.head
    assert (counts.unfrozen is None) == (recipe.finetune is None)


def test_what_is_unfrozen() -> None:
    """Block 5 of VGG16: three convolutions of 3 x 3, 512 to 512 channels."""
    counts = find_recipe("vgg16_average").parameters
    assert counts.unfrozen == counts.head + 3 * (512 * 512 * 9 + 512)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("vgg16_dense100", None),
        ("vgg19_dense100", None),
        ("resnet50_dense100", None),
        ("inception_v3_average", None),
        ("inception_v3_mixed7", "Mixed_6e"),
    ],
)
def test_counts_and_maps_are_those_of_timm(name: str, node: str | None) -> None:
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    recipe = find_recipe(name)
    side = recipe.train["input_size_px"]
    with torch.device("meta"):  # shapes and counts without numbers
        network = timm.create_model(recipe.backbone, pretrained=False, num_classes=0).eval()
        shapes = []
        last = network.get_submodule(node) if node else None
        if last is not None:
            last.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        shapes.append(network.forward_features(torch.zeros(1, 3, side, side)).shape)
    height, width, channels = recipe.feature_map
    assert tuple(shapes[0]) == (1, channels, height, width)
    modules = dict(network.named_children())
    modules.pop("pre_logits", None)
    names = list(modules)
    kept = names[: names.index(node) + 1] if node else names
    assert sum(p.numel() for n in kept for p in modules[n].parameters()) == recipe.parameters.frozen
    if last is not None:
        unfrozen = sum(p.numel() for p in last.parameters())
        assert recipe.parameters.unfrozen == recipe.parameters.head + unfrozen


@each_recipe
def test_every_figure_has_its_source_and_conditions(recipe: Recipe) -> None:
    assert recipe.published
    for figure in recipe.published:
        assert figure.conditions
        assert figure.stage == "frozen" or recipe.finetune is not None
        values = figure.value if isinstance(figure.value, tuple) else (figure.value,)
        assert all(value is None or 0.5 < value < 1 for value in values)
    if recipe.source is None:
        assert all(figure.value is None for figure in recipe.published)
    else:
        assert recipe.source.title
        assert recipe.source.author
        assert recipe.source.address.startswith("https://")
        assert any(figure.value is not None for figure in recipe.published)


def test_published_figures_keep_their_digits() -> None:
    first, *_ = find_recipe("vgg16_dense100").published
    assert format_published(first) == "98.44"
    assert format_published(replace(first, value=(0.88, 0.9))) == "88 to 90"
    assert format_published(replace(first, value=0.95)) == "95"
    assert format_published(replace(first, value=None)) == "not found"


def render(result: RecipeResult) -> str:
    console = Console(file=io.StringIO(), width=160)
    for part in render_result(result):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_published_stands_beside_measured() -> None:
    figures = (MeasuredFigure("validation accuracy", 90, 100, "epoch 3, which was chosen by these pictures"),)
    stages = (
        StageResult("frozen", figures, 164_353, 14_714_688, 12.4),
        StageResult("fine-tuned", (MeasuredFigure("test accuracy", 19, 20, "x"),), 7_243_777, None, 3.0, "It is kept."),
    )
    text = render(RecipeResult(find_recipe("vgg16_average"), stages, "weights none, epochs 1"))
    lines = [line.split() for line in text.splitlines()]
    (measured,) = (line for line in lines if line[:2] == ["measured", "frozen"])
    assert measured[2:5] == ["validation", "accuracy", "90.0"]
    low, high = figures[0].interval
    assert math.isclose(low, 0.826, abs_tol=1e-3)
    assert math.isclose(high, 0.945, abs_tol=1e-3)
    assert "82.6 to 94.5 at 95 % confidence, 100 pictures; epoch 3, which was chosen by" in " ".join(measured)
    assert "measured with: weights none, epochs 1" in text
    assert "It is kept." in text
    assert ["published", "frozen", "validation", "accuracy", "89.38"] in [line[:5] for line in lines]
    assert ["published", "fine-tuned", "test", "accuracy", "not"] in [line[:5] for line in lines]
    assert ["frozen", "164,353", "164,353", "14,714,688", "14,714,688", "12"] in lines
    assert ["fine-tuned", "7,243,777", "7,243,777", "7,635,264", "-", "3"] in lines
    assert "dudeperf3ct" in text


def test_only_the_stages_that_ran_are_shown() -> None:
    stages = (StageResult("frozen", (), 4_098, 21_785_568, 1.0),)
    text = render(RecipeResult(find_recipe("inception_v3_average"), stages, "x"))
    assert "The tutorial was not found." in text
    assert "fine-tuned" not in text


def test_counts_that_differ_are_explained() -> None:
    recipe = find_recipe("vgg16_dense100")
    says = "The recipe's counts are those at 224 pixels and with 2 classes."
    for trained, is_said in ((2_529_302, False), (71_702, True)):
        stages = (StageResult("frozen", (), trained, 14_714_688, 1.0),)
        assert (says in render(RecipeResult(recipe, stages, "x"))) == is_said


def test_the_first_pictures_of_each_class_and_split_are_taken(tmp_path: Path) -> None:
    plain = write_shapes(tmp_path / "plain", 5, ("checks", "stripes"))
    few = take_first(plain, 2)
    assert [Path(path).relative_to(plain).as_posix() for path in few["source"]] == [
        *("checks/00.png", "checks/01.png", "stripes/00.png", "stripes/01.png"),
    ]
    assert few["labels"] == ["checks", "checks", "stripes", "stripes"]
    assert few["splits"] is None
    for split in ("train", "validation"):
        write_shapes(tmp_path / "parts" / split, 4, ("checks", "stripes"))
    parts = take_first(tmp_path / "parts", 3)
    assert len(parts["source"]) == 12
    assert sorted(parts["splits"]) == ["train"] * 6 + ["validation"] * 6
    with pytest.raises(ConfigError, match="max_per_class is 1"):
        take_first(plain, 1)
