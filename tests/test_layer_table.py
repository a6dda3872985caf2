"""The table of layers: parameters add up, shapes are those of the outputs, and what is trained is said."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

pytest.importorskip("torch")

import torch
from rich.console import Console

from headstart.backbones.torch_network import TorchNetwork, load_network
from headstart.errors import BackboneError
from headstart.finetuning.layer_table import LayerRow, list_layers, render_layers

SIZES_PX = {"vgg16": 64, "resnet50": 64, "inception_v3": 150, "timm:vit_tiny_patch16_224": 64, "timm:convnext_atto": 64}


@pytest.fixture(scope="module")
def networks() -> dict[str, TorchNetwork]:
    return {name: load_network(name, size, "none") for name, size in SIZES_PX.items()}


def make_example(network: TorchNetwork) -> torch.Tensor:
    size = network.preprocess.input_size_px
    return torch.zeros(1, 3, size, size)


def list_rows(network: TorchNetwork, trained: Sequence[str] = ()) -> dict[str, LayerRow]:
    return {row.name: row for row in list_layers(network.module, make_example(network), trained)}


def render(rows: Sequence[LayerRow]) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    for part in render_layers(rows):
        console.print(part)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SIZES_PX)
def test_parameters_add_up(name: str, networks: dict[str, TorchNetwork]) -> None:
    module = networks[name].module
    every = [each for each, _ in module.named_parameters()]
    total = sum(param.numel() for param in module.parameters())
    rows = list_rows(networks[name], every)
    assert sum(row.num_params for row in rows.values()) == total
    assert sum(row.num_trained for row in rows.values()) == total
    assert {row.trainable for row in rows.values() if row.num_params} == {"all"}
    assert {row.trainable for row in list_rows(networks[name]).values()} == {"none"}


@pytest.mark.parametrize("name", SIZES_PX)
def test_last_shape_is_that_of_the_networks_output(name: str, networks: dict[str, TorchNetwork]) -> None:
    network = networks[name]
    with torch.no_grad():
        output = network.module.forward_features(make_example(network))
    shapes = [row.output_shape for row in list_rows(network).values() if row.output_shape]
    assert shapes[-1] == tuple(output.shape[1:])


def test_vgg16_from_block5(networks: dict[str, TorchNetwork]) -> None:
    # Three convolutions of 3 x 3 from 512 to 512 channels, as Keras counts them.
    trained = [
        f"features.{int(number)}.{what}"
        for number in (networks["vgg16"].aliases[f"block5_conv{i}"].partition(".")[2] for i in (1, 2, 3))
        for what in ("weight", "bias")
    ]
    rows = list_layers(networks["vgg16"].module, make_example(networks["vgg16"]), trained)
    assert sum(row.num_trained for row in rows) == 3 * (9 * 512 + 1) * 512 == 7_079_424
    assert [row.name for row in rows if row.trainable == "all"] == ["features.24", "features.26", "features.28"]
    assert [row.kind for row in rows].count("Conv2d") == 13
    assert [row.kind for row in rows].count("MaxPool2d") == 5
    assert len(rows) == 18
    assert rows[0] == LayerRow("features.0", "Conv2d", (64, 64, 64), 1792, 0)
    assert rows[2] == LayerRow("features.4", "MaxPool2d", (64, 32, 32), 0, 0)
    assert rows[-1] == LayerRow("features.30", "MaxPool2d", (512, 2, 2), 0, 0)
    assert render(rows)[-1] == "14,714,688 parameters: 7,079,424 trained, 7,635,264 frozen"


def test_resnet50_shows_its_blocks(networks: dict[str, TorchNetwork]) -> None:
    rows = list_rows(networks["resnet50"])
    blocks = [f"layer{stage}.{i}" for stage, number in ((1, 3), (2, 4), (3, 6), (4, 3)) for i in range(number)]
    assert list(rows) == ["conv1", "bn1", "maxpool", *blocks]
    assert rows["layer4.0"].output_shape == (2048, 2, 2)
    # 1 x 1, 3 x 3 and 1 x 1 convolutions and the shortcut's, each with the two parameters a channel of its norm.
    assert rows["layer4.0"].num_params == 512 * (1024 + 9 * 512 + 2048) + 2048 * 1024 + 2 * (512 + 512 + 2048 + 2048)


def test_inception_v3_shows_its_mixed_blocks(networks: dict[str, TorchNetwork]) -> None:
    rows = list_rows(networks["inception_v3"])
    assert rows["Mixed_6e"].output_shape == (768, 7, 7)  # mixed7 at 150 pixels
    assert rows["Pool1"] == LayerRow("Pool1", "MaxPool2d", (64, 35, 35), 0, 0)
    assert len([name for name in rows if name.startswith("Mixed_")]) == 11


def test_transformers_show_parameters_that_stand_alone(networks: dict[str, TorchNetwork]) -> None:
    rows = list_rows(networks["timm:vit_tiny_patch16_224"], ["pos_embed"])
    assert rows["cls_token"] == LayerRow("cls_token", "Parameter", None, 192, 0)
    assert rows["pos_embed"] == LayerRow("pos_embed", "Parameter", None, 17 * 192, 17 * 192)
    assert rows["blocks.11"].output_shape == (17, 192)
    assert [name for name in rows if name.startswith("blocks.")] == [f"blocks.{i}" for i in range(12)]


def test_stages_that_are_no_sequential_are_opened(networks: dict[str, TorchNetwork]) -> None:
    rows = list_rows(networks["timm:convnext_atto"])
    assert rows["stages.2.blocks.5"].kind == "ConvNeXtBlock"
    assert rows["stages.1.downsample.1"].output_shape == (80, 8, 8)
    assert rows["head"].output_shape is None  # its norm belongs to the pooled output, which does not run here


def test_a_block_trained_in_part() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 1))
    rows = list_layers(network, torch.zeros(1, 3, 6, 6), ["0.bias"])
    assert rows == [LayerRow("0", "Conv2d", (4, 6, 6), 16, 4), LayerRow("2", "Conv2d", (5, 6, 6), 25, 0)]
    assert [row.trainable for row in rows] == ["part", "none"]
    assert [line.split() for line in render(rows)] == [
        ["layer", "kind", "output", "parameters", "trained"],
        ["0", "Conv2d", "4", "×", "6", "×", "6", "16", "part"],
        ["2", "Conv2d", "5", "×", "6", "×", "6", "25", "none"],
        ["41", "parameters:", "4", "trained,", "37", "frozen"],
    ]


def test_shared_parameters_count_once() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    network[1].weight = network[0].weight
    rows = list_layers(network, torch.zeros(1, 3), ["1.weight"])
    assert [(row.num_params, row.num_trained) for row in rows] == [(12, 9), (3, 0)]


def test_the_network_is_left_as_it_was() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Dropout())
    network[2].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.random.get_rng_state()
    list_layers(network, torch.ones(2, 3, 5, 5))
    assert [each.training for each in network.modules()] == [True, True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not any(each._forward_hooks for each in network.modules())


def test_hooks_and_modes_are_undone_where_the_network_fails() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        list_layers(network, torch.zeros(1, 3))
    assert all(each.training and not each._forward_hooks for each in network.modules())


def test_unknown_names_are_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(BackboneError) as caught:
        list_layers(network, torch.zeros(1, 3), ["0.weight", "0.wieght", "x\n"])
    assert str(caught.value) == "The network has no parameter 0.wieght, x\\n. Did you mean '0.weight'?"


def test_names_are_printed_as_they_stand() -> None:
    rows = [LayerRow("[bold]a[/bold]", "Conv2d", (1,), 2, 0), LayerRow("b\x1b[31m", "[red]", None, 0, 0)]
    lines = render(rows)
    assert lines[1].split() == ["[bold]a[/bold]", "Conv2d", "1", "2", "none"]
    assert lines[2].split() == ["b\\x1b[31m", "[red]", "-", "0"]
