"""How far a collection lies from the pictures that the backbone was pretrained on, without having those pictures.

Batch norm keeps the mean and variance of every channel over the pretraining. The distance compares a collection's
channels with them (the idea of Li et al. 2017, "Revisiting batch normalization for practical domain adaptation").
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headstart.backbones.catalog import CATALOG, find_entry, read_lite_weights
from headstart.backbones.efficientnet_lite import compute_stage_statistics
from headstart.backbones.torch_checkpoint import read_checkpoint
from headstart.features import FeatureLayout
from headstart.graph import PooledLayer

FAR = 0.25
"""Above it a collection counts as unlike ImageNet. Measured: cats and dogs 0.17, ants and bees 0.16; CIFAR-10, enlarged
from 32 pixels, 0.42; handwritten digits 0.65."""
# Early stages see how a picture looks; the later ones follow what it shows, and any two classes move them.
_STAGES = ("stage3", "stage4", "stage5")


def measure_imagenet_distance(backbone: str, rows: np.ndarray, layout: FeatureLayout) -> float | None:
    """Mean over stages 3 to 5 of the root mean square over channels of (mean here - mean there) / deviation there.

    `rows` are float16 (N, layout.num_features) of a sample of the collection. None for a backbone that is not built in,
    whose statistics are not kept, and where the rows do not hold these stages.
    """
    if backbone not in CATALOG or not {*_STAGES} <= {block.layer for block in layout.blocks}:
        return None
    entry = find_entry(backbone)
    known = compute_stage_statistics(read_checkpoint(read_lite_weights(entry)), entry.depth)
    return float(np.mean([_measure_stage(rows, layout, stage, known) for stage in _STAGES]))


def _measure_stage(
    rows: np.ndarray, layout: FeatureLayout, stage: str, known: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> float:
    mean, deviation = known[stage]
    here = layout.read_block(rows, PooledLayer(stage, 1)).mean(axis=0, dtype=np.float64)
    return float(np.sqrt((((here - mean) / deviation) ** 2).mean()))
