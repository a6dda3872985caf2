"""A backbone by its name: built-in or of torch, at other input sizes, with other weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstart.backbones import catalog
from headstart.backbones.catalog import Backbone
from headstart.backbones.loading import load_backbone
from headstart.errors import BackboneError


def test_the_built_in_network_takes_another_side(backbone: Backbone) -> None:
    small = load_backbone("efficientnet-lite0", 96)
    assert [(layer.name, layer.channels) for layer in small.layers] == [
        (layer.name, layer.channels) for layer in backbone.layers
    ]
    assert [layer.size for layer in small.layers] == [48, 24, 12, 6, 6, 3, 3, 3]
    assert (small.preprocess.input_size_px, small.preprocess.crop_frac) == (96, 0.875)
    assert small.sha256 == backbone.sha256  # of the weights
    assert load_backbone("efficientnet-lite0", 224).model == backbone.model


@pytest.mark.parametrize("name", ["resnet", "efficientnet-lite9", "", "timm", "convnext_tiny"])
def test_an_unknown_name_is_refused_whatever_the_weights(name: str) -> None:
    for weights in (None, "none", "nowhere.pth"):
        with pytest.raises(BackboneError) as caught:
            load_backbone(name, None, weights)
        assert str(caught.value) == catalog.say_unknown_backbone(name)


def test_weights_are_looked_for_first(tmp_path: Path) -> None:
    for name in ("efficientnet-lite0", "vgg16"):
        with pytest.raises(BackboneError, match=r"none\.pth cannot be read: No such file"):
            load_backbone(name, None, str(tmp_path / "none.pth"))


def test_the_built_in_network_with_random_weights(backbone: Backbone) -> None:
    pytest.importorskip("torch")
    random = load_backbone("efficientnet-lite0", 64, "none")
    assert [(layer.name, layer.channels) for layer in random.layers] == [
        (layer.name, layer.channels) for layer in backbone.layers
    ]
    assert random.sha256 != backbone.sha256
    assert random.source == "random weights"
    assert random.preprocess.crop == "centre"
