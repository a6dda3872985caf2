"""Networks of torch: what a name stands for, weights, preprocessing as timm has it, where training may begin."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch")

import timm
import torch
from drawn_pictures import draw_picture
from PIL import Image
from safetensors.torch import save_file
from test_graph import make_preprocessor, make_scene
from timm.data import create_transform, resolve_data_config

from headstart.backbones.catalog import CATALOG, Backbone
from headstart.backbones.network_layers import LayerOutputs
from headstart.backbones.torch_network import (
    TorchNetwork,
    create_model,
    find_model,
    get_source,
    load_network,
    make_preprocess,
)
from headstart.errors import BackboneError
from headstart.graph import IMAGE


@functools.cache
def load(name: str, side_px: int | None) -> TorchNetwork:
    return load_network(name, side_px, "none")


@pytest.mark.parametrize(
    ("name", "full_name"),
    [
        ("vgg16", "vgg16.tv_in1k"),
        ("resnet50", "resnet50.tv_in1k"),
        ("inception_v3", "inception_v3.tv_in1k"),
        ("timm:resnet50", "resnet50.a1_in1k"),  # timm's own default
        ("timm:resnet50.tv2_in1k", "resnet50.tv2_in1k"),
        ("efficientnet-lite1", "tf_efficientnet_lite1.in1k"),
    ],
)
def test_names_stand_for_timms(name: str, full_name: str) -> None:
    found, cfg = find_model(name)
    assert found == full_name
    assert get_source(cfg) == f"https://huggingface.co/timm/{full_name}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm:resnet5",
            f"timm {timm.__version__} has no model 'resnet5'. Did you mean 'resnet50'? headstart backbones 'timm:*' lists them.",
        ),
        ("timm:", f"timm {timm.__version__} has no model ''. headstart backbones 'timm:*' lists them."),
        (
            "timm:vgg16.tv_in1",
            "timm has no weights 'tv_in1' of vgg16. Did you mean 'tv_in1k'? Known: tv_in1k.",
        ),
    ],
)
def test_unknown_models_are_told_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(BackboneError) as caught:
        find_model(name)
    assert str(caught.value) == message


def test_random_weights_are_those_of_the_seed() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (load_network("timm:resnet10t", 32, "none", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    values = [network.module.state_dict()["conv1.0.weight"] for network in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert first.sha256 == again.sha256 != other.sha256
    assert (first.source, first.licence) == ("random weights", "apache-2.0")
    assert not any(module.training or getattr(module, "inplace", False) for module in first.module.modules())


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    other = timm.create_model("resnet10t", pretrained=False)
    file = tmp_path / "own.safetensors"
    save_file(other.state_dict(), file)
    network = load_network("timm:resnet10t", 32, str(file))
    assert torch.equal(network.module.state_dict()["conv1.0.weight"], other.state_dict()["conv1.0.weight"])
    assert network.source == "the file own.safetensors"
    with pytest.raises(BackboneError, match=r"own\.safetensors does not fit resnet18"):
        load_network("timm:resnet18", 32, str(file))


def test_without_network_and_weights_the_file_to_fetch_is_named(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(own_cache / "hub"))
    began = time.perf_counter()
    with pytest.raises(BackboneError) as caught:
        load_network("timm:resnet10t", 32)
    assert time.perf_counter() - began < 10
    message = str(caught.value)
    assert message.startswith("The weights of resnet10t.c3_in1k are not on this machine")
    assert "https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors" in message
    assert str(own_cache / "weights" / "resnet10t.c3_in1k.safetensors") in message


def test_a_model_that_nobody_published_weights_of() -> None:
    with pytest.raises(BackboneError, match=r"^No weights of botnet50ts_256\b.* are published\. Pass your own"):
        load_network("timm:botnet50ts_256")


def test_sides_that_a_network_does_not_take() -> None:
    with pytest.raises(BackboneError, match=r"^vgg16 does not take pictures of 8 pixels: "):
        load_network("vgg16", 8, "none")
    with pytest.raises(BackboneError, match=r"8 pixels: "):
        load_network("timm:vit_tiny_patch16_224", 8, "none")
    assert load("timm:vit_tiny_patch16_224", 48).get_layer("norm").layer.size == 3
    assert create_model("resnet10t", 40)(torch.zeros(1, 3, 40, 40)).shape == (1, 512)


# Where training begins


def test_training_begins_with_a_layer_an_alias_or_a_module() -> None:
    network = load("vgg16", 32)
    assert network.find_entry("block5") == network.find_entry("block5_conv1") == "features.24"
    assert network.find_entry("block5_conv3") == network.find_entry("features.28") == "features.28"
    inception = load("inception_v3", 107)
    assert inception.find_entry("mixed7") == "Mixed_6e"
    assert inception.find_entry("mixed0") == "Mixed_5b"  # a name that gives no features
    assert load("timm:vit_tiny_patch16_224", 48).find_entry("norm") == "blocks.11"


def test_an_unknown_layer_is_told_with_the_nearest() -> None:
    network = load("vgg16", 32)
    with pytest.raises(BackboneError) as caught:
        network.find_entry("block5_con1")
    message = str(caught.value)
    assert message.startswith(
        "vgg16 has no layer 'block5_con1'. Did you mean 'block5_conv1'? Its layers: block1, block2, "
    )
    assert "block5_conv3; and timm's names of its modules, such as " in message
    with pytest.raises(BackboneError, match=r"^vgg16 has no layer ''\. Its layers"):
        network.find_entry("")


# Preprocessing


def test_a_crop_that_is_not_known_here_is_refused() -> None:
    _, cfg = find_model("timm:deepseek_vit_412m")
    with pytest.raises(BackboneError) as caught:
        make_preprocess("timm:deepseek_vit_412m", cfg, 224)
    assert str(caught.value) == (
        "timm:deepseek_vit_412m prepares its pictures by 'border', which headstart cannot. Choose another."
    )


def test_a_share_above_1_is_the_whole_picture() -> None:
    _, cfg = find_model("timm:volo_d4_448")
    assert cfg.crop_pct > 1
    assert make_preprocess("timm:volo_d4_448", cfg, 448).crop_frac == 1


# Kind of crop and interpolation; shares that leave a fraction of a pixel, and whole ones.
PREPARED = {
    "timm:resnet50.tv_in1k": ("after-resize", "linear", 0.875),
    "timm:convnext_tiny": ("after-resize", "cubic", 0.95),
    "timm:vit_small_patch14_dinov2": ("after-resize", "cubic", 1.0),
    "timm:vit_base_patch16_siglip_224": ("after-resize", "cubic", 0.9),
    "timm:vit_base_patch16_clip_384.openai_ft_in12k_in1k": ("squash", "cubic", 0.95),
    "timm:convnext_base.fb_in22k_ft_in1k_384": ("squash", "cubic", 1.0),
    "timm:vit_base_patch16_sapiens2": ("squash", "linear", 1.0),
}
# Rows and columns: short sides from the input's to a large picture's, odd and even.
SHAPES = [(224, 224), (225, 341), (333, 226), (375, 500), (499, 374), (641, 427), (900, 1201)]


@pytest.mark.parametrize("name", PREPARED)
def test_the_graph_prepares_pictures_as_timm_does(name: str) -> None:
    _, cfg = find_model(name)
    side = 224
    spec = make_preprocess(name, cfg, side)
    assert (spec.crop, spec.interpolation, spec.crop_frac) == PREPARED[name]
    config = resolve_data_config({"input_size": (3, side, side)}, pretrained_cfg=cfg.to_dict())
    transform = create_transform(**config)
    session = make_preprocessor(spec)
    std = np.array(spec.std).reshape(3, 1, 1)
    for height, width in SHAPES:
        if spec.crop != "squash" and min(height, width) < side / spec.crop_frac:
            continue  # there timm enlarges
        pixels = make_scene(height, width)
        ours = session.run(None, {IMAGE: pixels})[0][0]
        theirs = transform(Image.fromarray(pixels)).numpy()
        assert np.abs((ours - theirs) * 255 * std).mean() < 0.5, (height, width)


# The built-in network


def test_the_built_in_network_is_the_same_in_torch(backbone: Backbone) -> None:
    network = load_network("efficientnet-lite0")
    assert network.preprocess == backbone.preprocess
    assert network.sha256 == backbone.sha256
    shapes = [
        [(layer.name, layer.channels, layer.size) for layer in layers]
        for layers in ([each.layer for each in network.layers], backbone.layers)
    ]
    assert shapes[0] == shapes[1]
    pixels = np.tile(draw_picture("circles", 1), (5, 5, 1))[:224, :224]
    tensor = torch.from_numpy((pixels / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)[None])
    with torch.no_grad():
        expected = LayerOutputs(network.module, network.layers)(tensor)
    session = onnxruntime.InferenceSession(backbone.model.SerializeToString(), providers=["CPUExecutionProvider"])
    for layer, ours, theirs in zip(backbone.layers, session.run(None, {IMAGE: pixels}), expected, strict=True):
        scale = float(theirs.abs().max())
        assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * scale, layer.name


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if not entry.is_int8])
def test_built_in_preprocessing_is_timms(name: str) -> None:
    entry = CATALOG[name]
    _, cfg = find_model(name)
    spec = make_preprocess(name, cfg, entry.input_size_px)
    assert (cfg.input_size[1], spec.crop_frac, spec.crop) == (entry.input_size_px, entry.crop_frac, "centre")


def test_8_bits_are_not_trained() -> None:
    with pytest.raises(BackboneError) as caught:
        load_network("efficientnet-lite0-int8", None, "none")
    assert str(caught.value) == (
        "efficientnet-lite0-int8 is in 8 bits, which cannot be trained and takes no other weights. "
        "Train a classifier with backbone efficientnet-lite0 first, and fine-tune that."
    )
