"""The head in torch is the head in arrays, and what is drawn at random is what Keras draws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from headstart.features import FeatureLayout
from headstart.finetuning.model import Head, HeadModule, TopModel, draw_dense_head
from headstart.graph import PooledLayer
from headstart.heads.dense import DenseHead
from headstart.heads.linear import LinearHead

CHANNELS, GRID = 6, 3
LAYERS = (PooledLayer("top", GRID),)
LAYOUT = FeatureLayout(LAYERS, (CHANNELS,))


def draw_rows(count: int = 7) -> np.ndarray:
    """float16 (count, 54)."""
    return np.random.default_rng(1).normal(size=(count, CHANNELS * GRID**2)).astype(np.float16)


def draw_linear() -> LinearHead:
    rng = np.random.default_rng(0)
    coef, intercept = rng.normal(size=(CHANNELS * GRID**2, 4)), rng.normal(size=4)
    return LinearHead(LAYERS, coef.astype(np.float32), intercept.astype(np.float32), 0.3, 1.7)


def draw_dense(
    pooling: str = "flatten",
    hidden: tuple[int, ...] = (5, 4),
    activation: str = "softmax",
    dropout: tuple[float, ...] = (),
    num_classes: int = 3,
) -> DenseHead:
    """With biases that are not 0."""
    rng = np.random.default_rng(0)
    head = draw_dense_head(LAYERS, CHANNELS, pooling, hidden, dropout, activation, num_classes, rng)
    weights = tuple((coef, rng.normal(size=bias.shape).astype(np.float32)) for coef, bias in head.weights)
    return replace(head, weights=weights)


def run(module: HeadModule, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return TopModel(None, module)(torch.from_numpy(rows).float()).numpy()


def make_heads() -> list[Head]:
    dense = [draw_dense(pooling, hidden) for pooling in ("max", "flatten") for hidden in ((), (5,), (5, 4))]
    return [draw_linear(), *dense]


@pytest.mark.parametrize("head", make_heads(), ids=lambda head: f"{getattr(head, 'pooling', 'linear')}")
def test_logits_are_those_of_the_arrays(head: Head) -> None:
    rows = draw_rows()
    expected = head.compute_logits(rows, LAYOUT)
    np.testing.assert_allclose(run(HeadModule(head), rows), expected, rtol=1e-5, atol=1e-5)
    assert run(TopModel(None, HeadModule(head)).train().head, rows).shape == expected.shape


def test_the_scale_changes_no_logit_but_the_weights_that_are_trained() -> None:
    head, rows = draw_linear(), draw_rows()
    scale = np.geomspace(0.01, 100, CHANNELS * GRID**2).astype(np.float32)
    module = HeadModule(head, scale)
    np.testing.assert_allclose(run(module, rows), head.compute_logits(rows, LAYOUT), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(module.layers[0].weight.detach().numpy().T, head.coef / scale[:, None], rtol=1e-6)


def test_a_sigmoid_has_one_logit_that_is_the_second_classes() -> None:
    head, rows = draw_dense(activation="sigmoid", num_classes=2), draw_rows()
    logits = run(HeadModule(head), rows)
    assert logits.shape == (7, 1)
    expected = head.compute_logits(rows, LAYOUT)
    np.testing.assert_allclose(logits[:, 0], expected[:, 1], rtol=1e-5)
    np.testing.assert_array_equal(expected[:, 0], 0)


@pytest.mark.parametrize("head", [*make_heads(), draw_dense(activation="sigmoid", num_classes=2)], ids=lambda _: "head")
@pytest.mark.parametrize("is_scaled", [False, True])
def test_a_head_goes_to_torch_and_back(head: Head, is_scaled: bool) -> None:
    pooled = isinstance(head, DenseHead) and head.pooling == "max"
    size = CHANNELS if pooled else CHANNELS * GRID**2
    scale = np.geomspace(0.1, 10, size).astype(np.float32) if is_scaled else None
    again = HeadModule(head, scale).to_head(2.5)
    assert again.temperature == 2.5
    assert replace(again, temperature=1.0).to_json() == replace(head, temperature=1.0).to_json()
    rows = draw_rows()
    np.testing.assert_allclose(
        again.compute_logits(rows, LAYOUT), head.compute_logits(rows, LAYOUT), rtol=1e-5, atol=1e-5
    )


def find_dropped(module: HeadModule) -> list[tuple[str, float]]:
    """In training: the share of zeros in what every dense layer is given, by the layer's place."""
    shares: dict[int, list[float]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, index=index: shares.setdefault(index, []).append(float((inputs[0] == 0).float().mean()))
        )
        for index, layer in enumerate(module.layers)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module.train()(torch.ones(4000, module.layers[0].in_features) + 1)
    for hook in hooks:
        hook.remove()
    return [(f"before {index}", found[0]) for index, found in shares.items()]


def make_positive(hidden: tuple[int, ...], dropout: tuple[float, ...]) -> HeadModule:
    """A head whose hidden units are all above 0, so that a zero was dropped."""
    head = draw_dense_head(
        (PooledLayer("top", 1),), 20, "average", hidden, dropout, "softmax", 3, np.random.default_rng(0)
    )
    return HeadModule(replace(head, weights=tuple((abs(coef), bias) for coef, bias in head.weights)))


@pytest.mark.parametrize(
    ("hidden", "dropout", "expected"),
    [
        ((), (0.4,), [0.4]),
        ((), (), [0]),
        ((30,), (0.5,), [0, 0.5]),
        ((30, 20), (0.5, 0.7), [0, 0.5, 0.7]),
        ((30, 20), (0.5,), [0, 0.5, 0]),
        ((30, 20), (), [0, 0, 0]),
    ],
)
def test_dropout_stands_where_it_is_named(
    hidden: tuple[int, ...], dropout: tuple[float, ...], expected: list[float]
) -> None:
    found = find_dropped(make_positive(hidden, dropout))
    assert [place for place, _ in found] == [f"before {index}" for index in range(len(expected))]
    np.testing.assert_allclose([share for _, share in found], expected, atol=0.02)


def test_nothing_is_dropped_in_prediction() -> None:
    module = make_positive((30,), (0.5,)).eval()
    rows = torch.ones(3, 20)
    assert torch.equal(module(rows), module(rows))


@pytest.mark.parametrize(("activation", "last"), [("softmax", 3), ("sigmoid", 1)])
def test_weights_are_drawn_uniformly_within_glorots_limits(activation: str, last: int) -> None:
    num_classes = 3 if last == 3 else 2
    head = draw_dense_head(LAYERS, 40, "flatten", (300, 50), (), activation, num_classes, np.random.default_rng(0))
    sizes = [(360, 300), (300, 50), (50, last)]
    assert [coef.shape for coef, _ in head.weights] == sizes
    for (coef, bias), (fan_in, fan_out) in zip(head.weights, sizes, strict=True):
        limit = math.sqrt(6 / (fan_in + fan_out))
        assert 0.9 * limit < abs(coef).max() <= limit
        assert coef.std() == pytest.approx(limit / math.sqrt(3), rel=0.1)
        assert coef.dtype == np.float32
        assert not bias.any()


def test_a_head_drawn_anew_from_its_seed_is_the_same() -> None:
    one, other = (draw_dense() for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.weights[0], other.weights[0], strict=True))


@pytest.mark.parametrize(
    ("channels", "grid", "pooling", "hidden", "activation", "num_classes", "expected"),
    [
        # The published ones: VGG16 flattened at 224 px, VGG16 averaged, and ResNet50 flattened.
        (512, 7, "flatten", (100, 100, 100), "softmax", 2, 2_529_302),
        (512, 1, "average", (256, 128), "sigmoid", 2, 164_353),
        (512, 4, "max", (256, 128), "sigmoid", 2, 164_353),
        (2048, 7, "flatten", (100, 100, 100), "softmax", 2, 10_055_702),
    ],
)
def test_parameters_are_counted(
    channels: int, grid: int, pooling: str, hidden: tuple[int, ...], activation: str, num_classes: int, expected: int
) -> None:
    head = draw_dense_head(
        (PooledLayer("top", grid),),
        channels,
        pooling,
        hidden,
        (),
        activation,
        num_classes,
        np.random.default_rng(0),
    )
    module = HeadModule(head)
    assert head.num_params == sum(param.numel() for param in module.parameters()) == expected
