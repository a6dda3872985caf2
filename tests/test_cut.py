"""What stands below a cut plus what stands above it is the network itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from drawn_pictures import SHAPES, draw_picture
from PIL import Image

from headstart.backbones.catalog import Layer
from headstart.backbones.network_layers import LayerOutputs, NetworkLayer
from headstart.backbones.torch_network import TorchNetwork, load_network
from headstart.config import FitSettings
from headstart.errors import ConfigError
from headstart.finetuning.augmentation import Augmentation, draw_view
from headstart.finetuning.cut import WHOLE, CutNetwork, _Below, copy_back, cut_network, make_runner, pool_map
from headstart.finetuning.loop import list_modules, make_optimizer
from headstart.finetuning.model import HeadModule, TopModel, draw_dense_head
from headstart.graph import PooledLayer
from headstart.heads.linear import LinearHead

# Name, side, what is trained, the head's layers (raster), and those of them that come with the row.
NETWORKS = [
    (
        "efficientnet-lite0",
        64,
        "stage6",
        [("stage4", 2), ("stage5", 1), ("stage7", 2), ("head", 1)],
        ["stage4", "stage5"],
    ),
    ("efficientnet-lite0", 64, WHOLE, [("stage4", 3), ("head", 1)], []),
    ("timm:vit_tiny_patch16_224", 64, "blocks.10", [("blocks.5", 2), ("norm", 4), ("class token", 1)], ["blocks.5"]),
    (
        "timm:swin_tiny_patch4_window7_224",
        64,
        "layers.2",
        [("layers.0", 2), ("layers.1", 1), ("norm", 2)],
        ["layers.0"],
    ),
    ("inception_v3", 150, "mixed7", [("mixed4", 1), ("mixed7", 7), ("mixed10", 1)], ["mixed4"]),
]


@pytest.fixture(scope="module")
def lite() -> TorchNetwork:
    return load_network("efficientnet-lite0", 64, "none")


def cut_at(network: TorchNetwork, layer: str, *layers: tuple[str, int]) -> CutNetwork:
    entry = layer if layer == WHOLE else network.find_entry(layer)
    return cut_network(network, entry, [PooledLayer(*each) for each in layers])


def draw_all(network: TorchNetwork) -> list[np.ndarray]:
    """A picture of each shape, of the network's own size, so that nothing is resized."""
    side = network.preprocess.input_size_px
    return [np.asarray(Image.fromarray(draw_picture(shape, 0)).resize((side, side))) for shape in SHAPES]


def compute_rows(cut: CutNetwork, pictures: list[np.ndarray], *, in_torch: bool) -> torch.Tensor:
    """As the loop gets them; to export the larger networks takes long, so theirs come from torch."""
    if cut.entry == WHOLE:
        return prepare(cut.network, *pictures).flatten(1)
    if in_torch:
        below = _Below(cut)
        with torch.no_grad():
            return torch.stack([below(prepare(cut.network, each)) for each in pictures])
    runner = make_runner(cut)
    return torch.from_numpy(np.stack([runner.run(each) for each in pictures])).float()


def prepare(network: TorchNetwork, *pictures: np.ndarray) -> torch.Tensor:
    """Normalised pixels (B, 3, S, S)."""
    spec = network.preprocess
    views = np.stack([draw_view(each, Augmentation(), spec, np.random.default_rng(0)) for each in pictures])
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    return ((torch.from_numpy(views).float() / 255 - mean) / std).permute(0, 3, 1, 2)


def make_top(cut: CutNetwork, num_classes: int = 3) -> TopModel:
    size = sum(map(cut.count_features, cut.head_layers))
    rng = np.random.default_rng(0)
    coef = rng.normal(0, 0.1, (size, num_classes)).astype(np.float32)
    return TopModel(cut, HeadModule(LinearHead(cut.head_layers, coef, np.zeros(num_classes, np.float32), 1.0, 1.0)))


def compute_uncut(network: TorchNetwork, pixels: torch.Tensor, layers: list[tuple[str, int]]) -> torch.Tensor:
    """The head's features, taken from maps of the untouched network: means over equal squares of each map."""
    maps = LayerOutputs(network.module, [network.get_layer(name) for name, _ in layers])(pixels)
    return torch.cat(
        [pool_map(each, each.shape[-1], grid) for each, (_, grid) in zip(maps, layers, strict=True)], dim=1
    )


@pytest.mark.parametrize(("name", "side", "layer", "layers", "below"), NETWORKS, ids=lambda each: str(each)[:24])
def test_a_frozen_row_and_the_part_above_are_the_network(
    name: str, side: int, layer: str, layers: list[tuple[str, int]], below: list[str]
) -> None:
    network = load_network(name, side, "none")
    pictures = draw_all(network)
    with torch.no_grad():
        expected = compute_uncut(network, prepare(network, *pictures), layers)
    cut = cut_at(network, layer, *layers)
    assert [pooled.layer for pooled in cut.below] == below
    rows = compute_rows(cut, pictures, in_torch=name not in ("efficientnet-lite0", "timm:vit_tiny_patch16_224"))
    assert rows.shape == (3, cut.row_size)
    top = make_top(cut).eval()
    with torch.no_grad():
        features = top.compute_features(*top.split_rows(rows))
        alone = top.compute_features(*top.split_rows(rows[:1]))
    start = 0
    for pooled in cut.head_layers:
        part = slice(start, start := start + cut.count_features(pooled))
        # Random weights let some maps nearly vanish, so every layer is held to its own scale.
        scale = float(expected[:, part].abs().max())
        np.testing.assert_allclose(features[:, part] / scale, expected[:, part] / scale, atol=1e-3, rtol=0)
        np.testing.assert_allclose(alone[:, part] / scale, expected[:1, part] / scale, atol=1e-3, rtol=0)
    assert start == expected.shape[1]


def test_the_cut_of_vgg16_before_block5_trains_what_the_tutorial_trains() -> None:
    network = load_network("vgg16", 32, "none")
    cut = cut_at(network, "block5", ("block5", 1))
    above = sum(param.numel() for param in cut.above.parameters())
    head = draw_dense_head(
        cut.head_layers, 512, "average", (256, 128), (0.5, 0.7), "sigmoid", 2, np.random.default_rng(0)
    )
    assert (above, above + head.num_params, network.num_params) == (7_079_424, 7_243_777, 14_714_688)


def test_inception_at_150_px_gives_7_x_7_x_768_at_mixed7() -> None:
    layer = load_network("inception_v3", 150, "none").get_layer("mixed7").layer
    assert (layer.channels, layer.size) == (768, 7)


def test_a_cut_above_all_of_the_heads_layers_is_refused(lite: TorchNetwork) -> None:
    with pytest.raises(ConfigError, match=r"from stage5, stage6, which stands before blocks\.6 .* earlier layer"):
        cut_at(lite, "stage7", ("stage5", 1), ("stage6", 1))


def test_a_cut_at_the_very_map_that_the_head_reads_is_refused_in_any_order_of_axes() -> None:
    swin = load_network("timm:swin_tiny_patch4_window7_224", 64, "none")
    with pytest.raises(ConfigError, match=r"which stands before layers\.3"):
        cut_at(swin, "layers.3", ("layers.2", 1))


def test_a_module_that_is_gone_around_is_refused_with_the_layers_that_are_not(lite: TorchNetwork) -> None:
    # A block's second convolution: the block adds its input to what comes out.
    with pytest.raises(ConfigError, match=r"cannot be cut before blocks\.5\.1\.conv_dw: .* goes around .*stage6"):
        cut_at(lite, "blocks.5.1.conv_dw", ("head", 1))


def train_a_little(top: TopModel, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The trained tensors after three steps; those of the batch norms' statistics too."""
    top.train()
    optimizer = make_optimizer(top, FitSettings(learning_rate=1e-3))
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(top(rows), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    top.eval()
    return {name: each.detach().clone() for name, each in [*top.named_parameters(), *top.named_buffers()]}


@pytest.mark.parametrize("layer", ["stage7", WHOLE])
def test_copying_back_changes_exactly_the_trained_tensors(layer: str) -> None:
    network = replace(load_network("efficientnet-lite0", 64, "none"), source="a file")
    pictures = draw_all(network)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    cut = cut_at(network, layer, ("head", 1))
    rows = compute_rows(cut, pictures, in_torch=True)
    top = make_top(cut)
    tensors = train_a_little(top, rows)
    copy_back(cut, {name: each for name, each in tensors.items() if "network." in name})
    after = network.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    prefixes = ("blocks.6", "conv_head", "bn2") if layer == "stage7" else ("",)
    parameters = {name for name, _ in network.module.named_parameters() if name.startswith(prefixes)}
    assert changed == parameters
    with torch.no_grad():
        uncut = compute_uncut(network, prepare(network, *pictures), [("head", 1)])
        own = top.compute_features(*top.split_rows(rows))
    np.testing.assert_allclose(own, uncut, atol=1e-4 * float(uncut.abs().max()), rtol=0)


def test_batch_norm_keeps_its_statistics_unless_the_network_began_at_random() -> None:
    for source, learns in (("a file", False), ("random weights", True)):
        network = replace(load_network("efficientnet-lite0", 64, "none"), source=source)
        top = make_top(cut_at(network, WHOLE, ("head", 1)))
        assert top.cut is not None
        assert top.cut.is_random is learns
        before = {name: each.clone() for name, each in top.named_buffers() if "running" in name}
        train_a_little(top, prepare(network, *draw_all(network)).flatten(1))
        after = dict(top.named_buffers())
        assert len(before) == 98
        assert all(torch.equal(each, after[name]) is not learns for name, each in before.items())


def test_modules_come_in_the_order_of_the_network(lite: TorchNetwork) -> None:
    whole = [f"blocks.{i}" for i in range(7)]
    top = make_top(cut_at(lite, WHOLE, ("head", 1)))
    assert [name for name, _ in list_modules(top)] == ["conv_stem", "bn1", *whole, "conv_head", "bn2", "head"]
    top = make_top(cut_at(lite, "stage5", ("head", 1)))
    assert [name for name, _ in list_modules(top)] == [*whole[4:], "conv_head", "bn2", "head"]


def test_the_whole_network_works_in_place_where_the_heads_map_survives_it() -> None:
    network = load_network("efficientnet-lite0", 64)
    assert network.activations
    assert not any(activation.inplace for activation in network.activations)
    cut_network(network, WHOLE, [PooledLayer("head", 1)])
    assert all(activation.inplace for activation in network.activations)
    # What batch norm gives is overwritten by the ReLU behind it.
    resnet = load_network("timm:resnet18.a1_in1k", 64, "none")
    norm = NetworkLayer(Layer("bn1", 64, 32), "bn1", "bn1", "map")
    cut_network(replace(resnet, layers=(norm, *resnet.layers)), WHOLE, [PooledLayer("bn1", 1)])
    assert resnet.activations
    assert not any(activation.inplace for activation in resnet.activations)
