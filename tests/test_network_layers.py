"""Layers of the tutorials' networks and of timm's: names, sizes, parameters, and in which order axes and tokens stand."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("torch")

import timm
import torch

from headstart.backbones.network_layers import (
    CLASS_TOKEN,
    POOLED,
    LayerOutputs,
    count_params_through,
    list_aliases,
    list_layers,
    watch_outputs,
)
from headstart.backbones.torch_network import TorchNetwork, load_network
from headstart.errors import BackboneError


@functools.cache
def load(name: str, side_px: int) -> TorchNetwork:
    return load_network(name, side_px, "none")


def show(network: TorchNetwork) -> list[tuple[str, int, int]]:
    return [(layer.name, layer.layer.channels, layer.layer.size) for layer in network.layers]


@pytest.mark.parametrize(
    ("name", "side_px", "num_params"),
    [("vgg16", 32, 14_714_688), ("vgg19", 32, 20_024_384), ("resnet50", 32, 23_508_032)],
)
def test_trunks_count_as_many_parameters_as_published(name: str, side_px: int, num_params: int) -> None:
    network = load(name, side_px)
    assert network.num_params == num_params
    assert network.layers[-1].layer.num_params == num_params


def test_the_blocks_of_vgg16_end_with_their_pooling() -> None:
    network = load("vgg16", 32)
    assert show(network) == [
        ("block1", 64, 16),
        ("block2", 128, 8),
        ("block3", 256, 4),
        ("block4", 512, 2),
        ("block5", 512, 1),
    ]
    for layer in network.layers:
        assert isinstance(network.module.get_submodule(layer.module), torch.nn.MaxPool2d)
    # Keras's model.summary(): parameters up to the end of each block.
    counts = [layer.layer.num_params for layer in network.layers]
    assert counts == [38_720, 260_160, 1_735_488, 7_635_264, 14_714_688]


def test_inception_at_150_pixels_gives_7_x_7_x_768_at_mixed7() -> None:
    network = load("inception_v3", 150)
    assert show(network) == [
        ("mixed2", 288, 16),
        ("mixed4", 768, 7),
        ("mixed7", 768, 7),
        ("mixed8", 1280, 3),
        ("mixed10", 2048, 3),
    ]


def test_the_tutorials_names_of_modules() -> None:
    vgg16, vgg19, inception = map(list_aliases, ("vgg16", "vgg19", "inception_v3"))
    assert vgg16["block1_conv1"] == "features.0"
    assert vgg16["block5_conv1"] == "features.24"
    assert list(vgg16) == [
        f"block{block}_conv{conv}"
        for block, count in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
        for conv in range(1, count + 1)
    ]
    assert (vgg19["block3_conv4"], vgg19["block5_conv1"], len(vgg19)) == ("features.16", "features.28", 16)
    assert (inception["mixed0"], inception["mixed7"], inception["mixed10"]) == ("Mixed_5b", "Mixed_6e", "Mixed_7c")
    assert len(inception) == 11
    assert list_aliases("resnet50") == {}
    for name in ("vgg16", "vgg19"):
        module = load(name, 32).module
        for path in list_aliases(name).values():
            assert isinstance(module.get_submodule(path), torch.nn.Conv2d)


def test_parameters_are_counted_to_the_end_of_a_module() -> None:
    first, second, last = torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(5, 6), torch.nn.BatchNorm2d(7)
    inner = torch.nn.Sequential(second, torch.nn.Sequential(last))
    network = torch.nn.Sequential(first, inner, torch.nn.Linear(2, 2))
    counted = [count_params_through(network, path) for path in ("0", "1.0", "1.1", "1.1.0", "1", "2")]
    assert counted == [16, 52, 66, 66, 66, 72]
    # The parameters of the network itself, such as position embeddings, stand before all modules.
    network.register_parameter("position", torch.nn.Parameter(torch.zeros(9)))
    assert count_params_through(network, "0") == 25


@pytest.mark.parametrize(
    ("name", "side_px", "further"),
    [
        ("timm:vit_tiny_patch16_224", 32, [CLASS_TOKEN]),  # its classifier reads the class token
        ("timm:vit_medium_patch16_reg4_gap_256", 32, [POOLED]),  # registers and no class token; a norm after the mean
        ("timm:eva02_tiny_patch14_224", 28, [CLASS_TOKEN, POOLED]),
        ("timm:vit_small_patch16_dinov3", 32, [CLASS_TOKEN]),
        ("timm:mobilenetv4_conv_small", 64, [POOLED]),  # a convolution after the mean
        ("timm:convnext_atto", 32, [POOLED]),
        ("timm:resnet18", 32, []),
        ("timm:tf_efficientnetv2_b0", 64, []),
    ],
)
def test_what_the_classifier_reads_is_a_layer(name: str, side_px: int, further: list[str]) -> None:
    network = load(name, side_px)
    names = [layer.name for layer in network.layers]
    assert [each for each in names if each in (CLASS_TOKEN, POOLED)] == further == names[len(names) - len(further) :]
    pixels = torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = LayerOutputs(network.module, network.layers)(pixels)
        last = network.module.forward_features(pixels)
        pooled = network.module.forward_head(last, pre_logits=True)
    for layer, tensor in zip(network.layers, maps, strict=True):
        assert tensor.shape == (2, layer.layer.channels, layer.layer.size, layer.layer.size)
    # Some layer's mean is exactly what the network's own classifier would get.
    means = [tensor.mean(dim=(2, 3)) for tensor in maps]
    assert any(mean.shape == pooled.shape and torch.allclose(mean, pooled, rtol=1e-3, atol=1e-5) for mean in means)
    if CLASS_TOKEN in names:
        torch.testing.assert_close(maps[names.index(CLASS_TOKEN)][:, :, 0, 0], last[:, 0])
    if "norm" in names and last.ndim == 3:  # patches by rows, without class token and registers
        prefix = network.module.num_prefix_tokens
        size = network.get_layer("norm").layer.size
        tokens = maps[names.index("norm")]
        torch.testing.assert_close(tokens[:, :, 1, 0], last[:, prefix + size])


def test_transformers_give_an_early_a_middle_and_a_late_block() -> None:
    network = load("timm:vit_tiny_patch16_224", 32)
    assert [layer.name for layer in network.layers] == ["blocks.2", "blocks.5", "blocks.8", "norm", CLASS_TOKEN]
    assert [layer.entry for layer in network.layers] == ["blocks.2", "blocks.5", "blocks.8", "blocks.11", "blocks.11"]


@pytest.mark.parametrize("side_px", [56, 384])  # at 384 a map is 96 x 96 x 96, and no axis differs
def test_maps_with_channels_last_are_turned(side_px: int) -> None:
    network = timm.create_model("swin_tiny_patch4_window7_224", img_size=side_px, num_classes=0, depths=(1, 1, 1, 1))
    layers = list_layers("swin", "swin_tiny", network.eval(), side_px)
    assert (layers[0].layer.channels, layers[0].layer.size) == (96, side_px // 4)
    pixels = torch.randn(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), watch_outputs(network, [layers[0].module]) as seen:
        found = LayerOutputs(network, layers[:1])(pixels)[0]
    torch.testing.assert_close(found[0, 5, 2, 3], seen[layers[0].module][0, 2, 3, 5])


def test_outputs_are_watched_for_a_while_only() -> None:
    network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 3))
    with watch_outputs(network, ["1", "0", "1"]) as outputs:
        network(torch.ones(1, 2))
    assert sorted(outputs) == ["0", "1"]
    outputs.clear()
    network(torch.ones(1, 2))
    assert not outputs


def test_networks_that_give_no_square_maps_are_refused() -> None:
    with pytest.raises(BackboneError) as caught:  # parameters and no list of layers
        list_layers("plain", "plain", torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), 8)
    assert str(caught.value) == "timm does not say which layers plain has, so no features can be taken from it."
    with pytest.raises(BackboneError, match=r"^timm:mixer_b32_224 does not take pictures of 64 pixels: "):
        list_layers("timm:mixer_b32_224", "mixer_b32_224", timm.create_model("mixer_b32_224", num_classes=0), 64)
