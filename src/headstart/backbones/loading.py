"""How to get a backbone by its name."""

from __future__ import annotations

from headstart.backbones.catalog import (
    CATALOG,
    DEFAULT_BACKBONE,
    Backbone,
    CatalogEntry,
    Layer,
    find_entry,
    is_known_backbone,
    read_lite_weights,
    say_unknown_backbone,
)
from headstart.backbones.efficientnet_lite import build_efficientnet_lite
from headstart.backbones.efficientnet_lite_int8 import build_efficientnet_lite_int8
from headstart.backbones.exported import load_exported
from headstart.backbones.torch_checkpoint import read_checkpoint
from headstart.errors import BackboneError
from headstart.graph import PreprocessSpec


def load_backbone(
    name: str = DEFAULT_BACKBONE, input_size_px: int | None = None, weights: str | None = None
) -> Backbone:
    """A pretrained network as a graph: a built-in one is written from its weights (0.1 s), any other comes by torch.

    `input_size_px` replaces the side that the network was trained at; `weights` is a file with other weights, or "none"
    for random ones. Raises BackboneError for an unknown name or weights that are not the network's,
    MissingDependencyError where a package is not installed.
    """
    if name in CATALOG and weights is None:
        return _load_lite(find_entry(name), input_size_px)
    if not is_known_backbone(name):
        raise BackboneError(say_unknown_backbone(name))
    return load_exported(name, input_size_px, weights)


def _load_lite(entry: CatalogEntry, input_size_px: int | None) -> Backbone:
    data = read_lite_weights(entry)
    half = (0.5, 0.5, 0.5)
    preprocess = PreprocessSpec(input_size_px or entry.input_size_px, entry.crop_frac, mean=half, std=half)
    build = build_efficientnet_lite_int8 if entry.is_int8 else build_efficientnet_lite
    model = build(read_checkpoint(data), preprocess, entry.depth)
    layers = []
    for output in model.graph.output:
        _, channels, size, _ = (dimension.dim_value for dimension in output.type.tensor_type.shape.dim)
        layers.append(Layer(output.name, channels, size))
    return Backbone(entry.name, entry.sha256, entry.licence, entry.source, preprocess, tuple(layers), model)
