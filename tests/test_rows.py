"""Rows are computed once a view and are the same in every run; pixels are what the network's own graph would see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("torch")

from test_graph import make_preprocessor, make_scene, run
from tiny_backbone import INPUT_SIZE_PX, make_pictures, make_tiny_backbone

from headstart._files import compute_sha256
from headstart.data_check import hash_images
from headstart.dataset import scan_dataset
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture
from headstart.finetuning import rows as rows_module
from headstart.finetuning.augmentation import PRESETS, Augmentation
from headstart.finetuning.rows import NO_AUGMENTATION, CachedRows, PixelRows, Rows
from headstart.graph import PreprocessSpec

SPEC = PreprocessSpec(INPUT_SIZE_PX, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NUM_PICTURES = 5


class CountingExtractor(Extractor):
    """The tiny network, and how many pictures went through it."""

    def __init__(self) -> None:
        super().__init__(make_tiny_backbone(), num_threads=2)
        self.num_runs = 0

    def run(self, pixels: np.ndarray, sha256: str = "") -> np.ndarray:
        self.num_runs += 1
        return super().run(pixels, sha256)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return make_pictures(tmp_path, NUM_PICTURES)


def read(rows: Rows, epoch: int = 0, sizes: tuple[int, ...] = (2, 3)) -> np.ndarray:
    ends = np.cumsum(sizes)
    batches = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    found = [each.numpy() for each in rows.iterate(batches, epoch)]
    assert tuple(map(len, found)) == sizes
    return np.concatenate(found)


def ignore(done: int, total: int) -> None:
    return None


MakeRows = Callable[..., CachedRows]


@pytest.fixture
def make_rows(pictures: list[Picture]) -> MakeRows:
    """Cached rows, computed; every call opens the cache anew."""

    def make(
        augmentation: Augmentation = PRESETS["tutorial"],
        num_views: int = 3,
        seed: int = 0,
        extractor: CountingExtractor | None = None,
    ) -> CachedRows:
        rows = CachedRows(extractor or CountingExtractor(), pictures, FeatureCache(), augmentation, num_views, seed)
        rows.compute(ignore)
        return rows

    return make


def test_a_view_is_the_same_in_every_run(make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = make_rows()
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "empty"))
    other = CountingExtractor()
    second = make_rows(extractor=other)
    assert other.num_runs == 3 * NUM_PICTURES
    for view in range(3):
        np.testing.assert_array_equal(read(first, view), read(second, view))


def test_views_differ_from_each_other_and_with_the_seed(make_rows: MakeRows) -> None:
    rows = make_rows()
    found = [read(rows, view) for view in range(3)] + [read(make_rows(seed=1), 0), read(make_rows(NO_AUGMENTATION))]
    for index, one in enumerate(found):
        for other in found[:index]:
            assert (one != other).any(axis=1).all()


def test_equal_pixels_in_two_files_are_augmented_each_in_its_own_way(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    for level in (1, 9):
        (tmp_path / "one").mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).save(tmp_path / "one" / f"{level}.png", compress_level=level)
    (tmp_path / "two").mkdir()
    PIL.Image.fromarray(pixels).save(tmp_path / "two" / "0.png")
    records = hash_images(scan_dataset(str(tmp_path))).records
    pictures = [Picture(record.sha256, record.path) for record in records if "one" in record.path]
    rows = CachedRows(CountingExtractor(), pictures, FeatureCache(), PRESETS["tutorial"], 1, 0)
    rows.compute(ignore)
    one, other = read(rows, 0, (2,))
    assert (one != other).any()


def test_nothing_is_run_twice(make_rows: MakeRows) -> None:
    extractor = CountingExtractor()
    make_rows(num_views=2, extractor=extractor)
    assert extractor.num_runs == 2 * NUM_PICTURES
    make_rows(num_views=2, extractor=extractor)
    assert extractor.num_runs == 2 * NUM_PICTURES
    rows = make_rows(num_views=3, extractor=extractor)  # the first two are there
    assert extractor.num_runs == 3 * NUM_PICTURES
    read(rows, 7)
    assert extractor.num_runs == 3 * NUM_PICTURES


def test_mixing_changes_no_view(make_rows: MakeRows) -> None:
    extractor = CountingExtractor()
    plain = make_rows(extractor=extractor)
    mixed = make_rows(replace(PRESETS["tutorial"], mixup_alpha=0.4, cutmix_alpha=1.0), extractor=extractor)
    assert extractor.num_runs == 3 * NUM_PICTURES
    np.testing.assert_array_equal(read(plain, 1), read(mixed, 1))


def test_where_only_batches_are_mixed_the_plain_features_serve(make_rows: MakeRows) -> None:
    extractor = CountingExtractor()
    plain = make_rows(NO_AUGMENTATION, extractor=extractor)
    mixed = make_rows(Augmentation(mixup_alpha=0.4), num_views=3, extractor=extractor)
    assert extractor.num_runs == NUM_PICTURES
    np.testing.assert_array_equal(read(plain, 0), read(mixed, 2))


def test_an_epoch_reads_the_view_of_its_number_and_begins_again(make_rows: MakeRows) -> None:
    rows = make_rows(num_views=3)
    views = [read(rows, epoch) for epoch in range(3)]
    for epoch in range(3, 9):
        np.testing.assert_array_equal(read(rows, epoch), views[epoch % 3])


def test_a_row_is_its_pictures_whatever_the_batches(make_rows: MakeRows) -> None:
    rows = make_rows()
    whole = read(rows, 0, (5,))
    np.testing.assert_array_equal(read(rows, 0, (1, 1, 3)), whole)
    [swapped] = [each.numpy() for each in rows.iterate([np.array([3, 0, 3])], 0)]
    np.testing.assert_array_equal(swapped, whole[[3, 0, 3]])


def test_progress_counts_all_views(pictures: list[Picture]) -> None:
    seen: list[tuple[int, int]] = []
    rows = CachedRows(CountingExtractor(), pictures, FeatureCache(), PRESETS["flip"], 2, 0)
    rows.compute(lambda done, total: seen.append((done, total)))
    assert seen == [(done, 2 * NUM_PICTURES) for done in range(1, 2 * NUM_PICTURES + 1)]


# Pixels


def test_pixels_are_the_same_bytes_whatever_the_threads(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for num_threads in (1, 2, 7):
        monkeypatch.setattr(rows_module, "count_cpus", lambda num=num_threads: num)
        found.append(read(PixelRows(pictures, SPEC, PRESETS["strong"], 3), 2))
    assert found[0].shape == (NUM_PICTURES, 3 * INPUT_SIZE_PX**2)
    assert found[0].dtype == np.float32
    assert all(each.tobytes() == found[0].tobytes() for each in found)


def test_every_epoch_draws_new_pixels_and_the_same_epoch_the_same(pictures: list[Picture]) -> None:
    rows = PixelRows(pictures, SPEC, PRESETS["tutorial"], 0)
    np.testing.assert_array_equal(read(rows, 1), read(rows, 1))
    assert (read(rows, 1) != read(rows, 2)).any(axis=1).all()
    assert (read(rows, 1) != read(PixelRows(pictures, SPEC, PRESETS["tutorial"], 1), 1)).any(axis=1).all()
    plain = PixelRows(pictures, SPEC)
    np.testing.assert_array_equal(read(plain, 1), read(plain, 2))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (200, 130), (90, 300), (40, 33)])
@pytest.mark.parametrize("crop", ["centre", "squash"])
def test_pixels_are_those_of_the_networks_own_graph(tmp_path: Path, height: int, width: int, crop: str) -> None:
    spec = replace(SPEC, input_size_px=64, crop=crop)
    path = tmp_path / "scene.png"
    PIL.Image.fromarray(make_scene(height, width)).save(path)
    picture = Picture(compute_sha256(path.read_bytes()), str(path))
    expected = run(make_preprocessor(spec), make_scene(height, width))
    [row] = read(PixelRows([picture], spec), 0, (1,))
    std, mean = (np.array(each).reshape(3, 1, 1) * 255 for each in (spec.std, spec.mean))
    grey = row.reshape(3, 64, 64) * std + mean
    expected_grey = expected.reshape(64, 64, 3).transpose(2, 0, 1) * std + mean
    assert np.abs(grey - expected_grey).mean() < 0.5
    # Pillow rounds and clips between the two directions; only a few pixels show it.
    assert np.quantile(np.abs(grey - expected_grey), 0.99) <= 2
    assert grey.std() > 20
