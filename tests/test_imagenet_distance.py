from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Trained

from headstart.backbones.catalog import CATALOG, find_entry, read_lite_weights
from headstart.backbones.efficientnet_lite import compute_stage_statistics
from headstart.backbones.torch_checkpoint import read_checkpoint
from headstart.features import Extractor, plan_layout, plan_single_layout
from headstart.insight.imagenet_distance import FAR, measure_imagenet_distance
from headstart.pictures import load_picture


def extract(extractor: Extractor, pictures: list[Path]) -> np.ndarray:
    return np.stack([extractor.run(load_picture(str(path)).pixels) for path in pictures])


def test_photographs_are_near_and_drawings_are_far(cats_dogs: Path, trained: Trained, extractor: Extractor) -> None:
    photographs = sorted((cats_dogs / "train").rglob("*.jpg"))[::100]
    drawings = sorted(trained.shapes.rglob("*.png"))[::2]
    near, far = (
        measure_imagenet_distance("efficientnet-lite0", extract(extractor, each), extractor.layout)
        for each in (photographs, drawings)
    )
    assert near is not None
    assert far is not None
    assert near < 0.2 < FAR < 0.4 < far


def test_the_pretraining_itself_has_distance_0_and_one_deviation_is_1(extractor: Extractor) -> None:
    entry = find_entry("efficientnet-lite0")
    known = compute_stage_statistics(read_checkpoint(read_lite_weights(entry)), entry.depth)
    layout = plan_layout(extractor.backbone)
    for shift in (0.0, 1.0):
        rows = np.zeros((3, layout.num_features), np.float16)
        start = 0
        for block, channels in zip(layout.blocks, layout.channels, strict=True):
            if block.layer in known:
                mean, deviation = known[block.layer]
                rows[:, start : start + channels * block.grid**2] = np.repeat(mean + shift * deviation, block.grid**2)
            start += channels * block.grid**2
        distance = measure_imagenet_distance("efficientnet-lite0", rows, layout)
        assert distance == pytest.approx(shift, abs=2e-3)


def test_statistics_stand_for_every_stage_and_follow_the_depth() -> None:
    for name in ("efficientnet-lite0", "efficientnet-lite1"):
        entry = CATALOG[name]
        known = compute_stage_statistics(read_checkpoint(read_lite_weights(entry)), entry.depth)
        assert list(known) == [f"stage{number}" for number in range(1, 8)]
        assert [len(mean) for mean, _ in known.values()] == [16, 24, 40, 80, 112, 192, 320]
        assert all((deviation > 0).all() for _, deviation in known.values())


def test_other_networks_are_not_measured(extractor: Extractor) -> None:
    assert measure_imagenet_distance("resnet50", np.zeros((1, 5)), extractor.layout) is None


def test_rows_without_the_stages_are_not_measured(extractor: Extractor) -> None:
    layout = plan_single_layout(extractor.backbone, "head", "average")
    assert measure_imagenet_distance("efficientnet-lite0", np.zeros((2, 1280), np.float16), layout) is None
