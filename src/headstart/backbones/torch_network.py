"""A pretrained network in torch: any model of timm, with its weights, its preprocessing and its layers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models import PretrainedCfg

from headstart._files import compute_file_sha256
from headstart.backbones.catalog import CATALOG, RANDOM_WEIGHTS, TIMM_PREFIX, TORCHVISION_NAMES
from headstart.backbones.network_layers import NetworkLayer, list_aliases, list_layers
from headstart.backbones.weights import fit_weights, load_lite_weights
from headstart.backbones.weights_download import fetch_weights
from headstart.backbones.weights_file import read_weights
from headstart.errors import BackboneError, suggest
from headstart.graph import PreprocessSpec

RANDOM_SOURCE = "random weights"


@dataclass(frozen=True, eq=False)
class TorchNetwork:
    """A network without its classifier, in evaluation mode, for normalised pixels float32 (B, 3, S, S).

    `aliases` are further names for modules that training may begin with, as the tutorials know them.
    """

    name: str
    sha256: str
    licence: str
    source: str
    preprocess: PreprocessSpec
    module: torch.nn.Module
    layers: tuple[NetworkLayer, ...]
    aliases: dict[str, str]
    activations: tuple[torch.nn.Module, ...] = ()

    def set_inplace(self, inplace: bool) -> None:
        """Whether `activations` may overwrite what they get, as timm has them: faster, but a layer's output may be gone
        when the next has run."""
        for activation in self.activations:
            activation.inplace = inplace

    @property
    def num_params(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    def get_layer(self, name: str) -> NetworkLayer:
        return next(layer for layer in self.layers if layer.name == name)

    def find_entry(self, name: str) -> str:
        """The path of the module where training from layer `name` begins. Raises BackboneError with a near name."""
        known = {**{layer.name: layer.entry for layer in self.layers}, **self.aliases}
        if name in known:
            return known[name]
        paths = [path for path, _ in self.module.named_modules() if path]
        if name in paths:
            return name
        raise BackboneError(
            f"{self.name} has no layer '{name}'.{suggest(name, [*known, *paths])} "
            f"Its layers: {', '.join(known)}; and timm's names of its modules, such as {paths[-1]}."
        )


def load_network(
    name: str, input_size_px: int | None = None, weights: str | None = None, seed: int = 0
) -> TorchNetwork:
    """The network `name` (as `headstart backbones` lists it) with its pretrained weights.

    `weights` is a file to read instead of the published one, or "none" for random weights drawn from `seed`.
    `input_size_px` replaces the side that the network was trained at. Raises BackboneError.
    """
    full_name, cfg = find_model(name)
    architecture = full_name.partition(".")[0]
    size = input_size_px or cfg.input_size[1]
    module = create_model(full_name, size if input_size_px else None, seed)
    if weights == RANDOM_WEIGHTS:
        digest = hashlib.sha256(f"random weights of {architecture}, seed {seed}".encode()).hexdigest()
        source = RANDOM_SOURCE
    elif weights is not None:
        fit_weights(module, read_weights(Path(weights)), Path(weights))
        digest, source = compute_file_sha256(Path(weights)), f"the file {Path(weights).name}"
    elif name in CATALOG:
        load_lite_weights(module, name)
        digest, source = CATALOG[name].sha256, CATALOG[name].source
    else:
        file = fetch_weights(full_name)
        fit_weights(module, read_weights(file), file)
        digest, source = compute_file_sha256(file), get_source(cfg)
    activations = tuple(child for child in module.modules() if getattr(child, "inplace", False))
    for activation in activations:
        activation.inplace = False  # a layer's output must still be there after the next layer ran
    layers = list_layers(name, architecture, module, size)
    preprocess = make_preprocess(name, cfg, size)
    aliases = list_aliases(architecture)
    licence = cfg.license or "unknown"
    return TorchNetwork(name, digest, licence, source, preprocess, module, layers, aliases, activations)


def find_model(name: str) -> tuple[str, PretrainedCfg]:
    """timm's full name, such as vgg16.tv_in1k, and its configuration.

    Raises BackboneError with the nearest name for an unknown one, and for 8 bits.
    """
    if name in CATALOG and CATALOG[name].is_int8:
        raise BackboneError(
            f"{name} is in 8 bits, which cannot be trained and takes no other weights. "
            f"Train a classifier with backbone {CATALOG[name].float_name} first, and fine-tune that."
        )
    full_name = name.removeprefix(TIMM_PREFIX)
    if name in CATALOG:
        full_name = f"tf_{name.replace('-', '_')}.in1k"
    elif name in TORCHVISION_NAMES:
        full_name = TORCHVISION_NAMES[name]
    architecture, _, tag = full_name.partition(".")
    if not timm.is_model(architecture):
        raise BackboneError(
            f"timm {timm.__version__} has no model '{architecture}'.{suggest(architecture, timm.list_models())} "
            "headstart backbones 'timm:*' lists them."
        )
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise BackboneError(
            f"timm has no weights '{tag}' of {architecture}.{suggest(tag, tags)} Known: {', '.join(tags) or 'none'}."
        )
    cfg = timm.models.get_pretrained_cfg(full_name)
    if cfg is None:
        raise BackboneError(f"timm knows no pretrained weights of {architecture}. Choose another model.")
    return f"{architecture}.{cfg.tag}" if cfg.tag else architecture, cfg


def get_source(cfg: PretrainedCfg) -> str:
    """The address of the published weights."""
    return f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else str(cfg.url or cfg.origin_url or "unknown")


def make_preprocess(name: str, cfg: PretrainedCfg, side_px: int) -> PreprocessSpec:
    """timm's configuration as ours. Raises BackboneError for a kind of cropping that is not known here."""
    if cfg.crop_mode not in ("center", "squash"):
        raise BackboneError(
            f"{name} prepares its pictures by '{cfg.crop_mode}', which headstart cannot. Choose another."
        )
    crop = "centre" if name in CATALOG else "after-resize"  # the graph without torch cuts first
    return PreprocessSpec(
        input_size_px=side_px,
        crop_frac=min(float(cfg.crop_pct), 1.0),  # VOLO's is 1.15: a black margin, which nothing is gained by
        mean=tuple(map(float, cfg.mean)),  # type: ignore[arg-type]
        std=tuple(map(float, cfg.std)),  # type: ignore[arg-type]
        interpolation="linear" if cfg.interpolation == "bilinear" else "cubic",
        crop="squash" if cfg.crop_mode == "squash" else crop,
    )


def create_model(full_name: str, side_px: int | None = None, seed: int = 0) -> torch.nn.Module:
    """timm's model without classifier, with random weights drawn from `seed`. Raises BackboneError for a wrong side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            try:
                sized = {"img_size": side_px} if side_px else {}
                model = timm.create_model(full_name, pretrained=False, num_classes=0, **sized)
            except TypeError:  # convolutional networks take any side, and no such argument
                model = timm.create_model(full_name, pretrained=False, num_classes=0)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise BackboneError(f"{full_name} cannot be built for pictures of {side_px} pixels: {error}") from error
    if hasattr(model, "pre_logits"):
        model.pre_logits = torch.nn.Identity()  # VGG's dense layers of 4096, which belong to the classifier
    return model.eval()
