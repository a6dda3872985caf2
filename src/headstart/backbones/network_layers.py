"""Which layers of a torch network features are taken from, what they are called, and how to get at their outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from headstart.backbones.catalog import CATALOG, CLASS_TOKEN, POOLED, Layer
from headstart.errors import BackboneError

# The pooling layers that end the five blocks of convolutions.
_VGG_POOLS = {"vgg16": (4, 9, 16, 23, 30), "vgg19": (4, 9, 18, 27, 36)}
_INCEPTION_BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
# What the tutorials take off with include_top=False.
_HEADLESS = (*_VGG_POOLS, "inception_v3")
_INCEPTION_FEATURES = ("mixed2", "mixed4", "mixed7", "mixed8", "mixed10")
# A transformer's blocks are alike; these shares of its depth stand for early, middle and late.
_TOKEN_DEPTHS = (0.25, 0.5, 0.75)


class _Place(NamedTuple):
    name: str
    module: str
    entry: str


@dataclass(frozen=True)
class NetworkLayer:
    """A feature map of a network, its size for pictures of the network's side.

    `module` is the path of the module that gives it, `entry` that of the first module of its stage. `part` says what
    of the module's output it is: all of it (`map`), the patches' tokens as a map (`patches`), or the `class token`;
    `pooled` is what the network's own classifier reads, where that is more than the mean of the last map.
    """

    layer: Layer
    module: str
    entry: str
    part: str

    @property
    def name(self) -> str:
        return self.layer.name


@contextmanager
def watch_outputs(network: torch.nn.Module, paths: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """While it lasts, the dictionary receives the output of every submodule of `paths` that runs."""
    got: dict[str, torch.Tensor] = {}
    hooks = [
        network.get_submodule(path).register_forward_hook(lambda _, __, output, path=path: got.update({path: output}))
        for path in dict.fromkeys(paths)
    ]
    try:
        yield got
    finally:
        for hook in hooks:
            hook.remove()


def list_layers(name: str, architecture: str, network: torch.nn.Module, side_px: int) -> tuple[NetworkLayer, ...]:
    """The layers to take features from, the top one last. Raises BackboneError where the network refuses the size."""
    places = _name_places(name, architecture, network)
    pixels = torch.linspace(-1, 1, 3 * side_px**2).reshape(1, 3, side_px, side_px)
    try:
        with torch.no_grad(), watch_outputs(network, [place.module for place in places]) as outputs:
            last = network.forward_features(pixels)
            pooled = None if architecture in _HEADLESS else network.forward_head(last, pre_logits=True).flatten(1)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise BackboneError(f"{name} does not take pictures of {side_px} pixels: {error}") from error
    prefix = count_prefix_tokens(network)
    layers = []
    for place in places:
        tensor = outputs[place.module]
        if tensor.ndim != 4 and not (tensor.ndim == 3 and _is_square(tensor.shape[1] - prefix)):
            raise BackboneError(f"{name}: {place.module} gives {list(tensor.shape)}, neither a square map nor tokens.")
        _, channels, size, _ = to_map(network, tensor).shape
        part = "map" if tensor.ndim == 4 else "patches"
        layer = Layer(place.name, channels, size, count_params_through(network, place.module))
        layers.append(NetworkLayer(layer, place.module, place.entry, part))
    top = layers[-1]
    if getattr(network, "cls_token", None) is not None and top.part == "patches":  # registers are prefixes too
        token = Layer(CLASS_TOKEN, top.layer.channels, 1, top.layer.num_params)
        layers.append(NetworkLayer(token, top.module, top.entry, CLASS_TOKEN))
    known = [to_map(network, outputs[top.module]).mean(dim=(2, 3)), outputs[top.module][:, 0]]
    if pooled is not None and not any(_is_same(pooled, each) for each in known):
        total = sum(param.numel() for param in network.parameters())
        layers.append(NetworkLayer(Layer(POOLED, pooled.shape[1], 1, total), top.module, top.entry, POOLED))
    return tuple(layers)


def count_params_through(network: torch.nn.Module, path: str) -> int:
    """Parameters of the modules up to the end of `path`; timm defines modules in the order in which they run."""
    total, begun = 0, False
    for name, module in network.named_modules():
        inside = name == path or name.startswith(f"{path}.")
        if begun and not inside:
            break
        begun = begun or inside
        total += sum(param.numel() for param in module.parameters(recurse=False))
    return total


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def list_aliases(architecture: str) -> dict[str, str]:
    """Further names that the tutorials have for modules: mixed0 to mixed10, block1_conv1 to block5_conv4."""
    if architecture == "inception_v3":
        return {f"mixed{i}": f"Mixed_{block}" for i, block in enumerate(_INCEPTION_BLOCKS)}
    if architecture in _VGG_POOLS:
        return {
            f"block{block}_conv{1 + (index - start) // 2}": f"features.{index}"
            for block, (start, pool) in enumerate(_list_vgg_blocks(architecture), start=1)
            for index in range(start, pool, 2)
        }
    return {}


def _list_vgg_blocks(architecture: str) -> list[tuple[int, int]]:
    """(first convolution, pooling) of each block."""
    pools = _VGG_POOLS[architecture]
    return [(start, pool) for start, pool in zip((0, *(pool + 1 for pool in pools[:-1])), pools, strict=True)]


def _name_places(name: str, architecture: str, network: torch.nn.Module) -> list[_Place]:
    if name in CATALOG:  # the names that the graph without torch has
        stages = [_Place(f"stage{i + 1}", f"blocks.{i}", f"blocks.{i}") for i in range(7)]
        return [*stages, _Place("head", "bn2", "conv_head")]
    if architecture in _VGG_POOLS:
        blocks = enumerate(_list_vgg_blocks(architecture), start=1)
        return [_Place(f"block{i}", f"features.{pool}", f"features.{start}") for i, (start, pool) in blocks]
    if architecture == "inception_v3":
        mixed = list_aliases(architecture)
        return [_Place(each, mixed[each], mixed[each]) for each in _INCEPTION_FEATURES]
    info = getattr(network, "feature_info", None) or []
    paths = [each["module"] for each in getattr(info, "info", info)]
    children = dict(network.named_children())
    if paths and "patch_embed" in children and all(re.fullmatch(r"blocks\.\d+", path) for path in paths):
        chosen = list(dict.fromkeys(paths[max(round(depth * len(paths)), 1) - 1] for depth in _TOKEN_DEPTHS))
        top = "norm" if "norm" in children else paths[-1]
        return [*(_Place(path, path, path) for path in chosen), _Place(top, top, paths[-1])]
    places = [_Place(path, path, path) for path in paths]
    if "conv_head" in children and "bn2" in children:
        places.append(_Place("head", "bn2", "conv_head"))
    elif "norm" in children:
        places.append(_Place("norm", "norm", paths[-1] if paths else "norm"))
    if not places:
        raise BackboneError(f"timm does not say which layers {name} has, so no features can be taken from it.")
    return places


def count_prefix_tokens(network: torch.nn.Module) -> int:
    """Class and register tokens, which stand before the patches' tokens."""
    return int(getattr(network, "num_prefix_tokens", 0) or 0)


def to_map(network: torch.nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """(B, C, h, h) of a map in either order of axes, or of tokens (B, prefix + h * h, C)."""
    if tensor.ndim == 4:
        # Maps are square, so the axis that differs holds the channels; timm says it where all three are equal.
        _, first, second, third = tensor.shape
        channels_last = getattr(network, "output_fmt", "") == "NHWC" if first == third else second != third
        return tensor.permute(0, 3, 1, 2) if channels_last else tensor
    num_prefix_tokens = count_prefix_tokens(network)
    size = math.isqrt(tensor.shape[1] - num_prefix_tokens)
    return tensor[:, num_prefix_tokens:].transpose(1, 2).unflatten(2, (size, size))


class LayerOutputs(torch.nn.Module):
    """The network as a function from normalised pixels (B, 3, S, S) to maps (B, C, h, h), one for each of `layers`."""

    def __init__(self, network: torch.nn.Module, layers: Sequence[NetworkLayer]) -> None:
        super().__init__()
        self.network = network
        self.layers = tuple(layers)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        with watch_outputs(self.network, [layer.module for layer in self.layers]) as outputs:
            last = self.network.forward_features(pixels)
        maps = []
        for layer in self.layers:
            if layer.part == POOLED:
                maps.append(self.network.forward_head(last, pre_logits=True).reshape(-1, layer.layer.channels, 1, 1))
            elif layer.part == CLASS_TOKEN:
                maps.append(outputs[layer.module][:, 0, :, None, None])
            else:
                maps.append(to_map(self.network, outputs[layer.module]))
        return maps
