"""Pictures through a backbone: what is kept of it, what costs a forward pass, interrupts and kills."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_backbone import LAYERS, make_pictures, make_tiny_backbone

import headstart
from headstart import features
from headstart.backbones.catalog import Backbone, Layer
from headstart.decode import decode_image
from headstart.errors import ConfigError, HeadstartError
from headstart.feature_cache import FeatureCache, get_cache_file
from headstart.features import (
    Extraction,
    Extractor,
    FeatureLayout,
    Picture,
    extract_features,
    find_layer,
    get_top_layer,
    list_candidates,
    plan_layout,
    plan_single_layout,
)
from headstart.graph import IMAGE, PooledLayer


@pytest.fixture(scope="module")
def tiny() -> Extractor:
    return Extractor(make_tiny_backbone(), num_threads=2)


def extract(pictures: list[Picture], extractor: Extractor) -> Extraction:
    with FeatureCache() as cache:
        return extract_features(pictures, extractor, cache)


def read_rows(pictures: list[Picture], extractor: Extractor) -> np.ndarray:
    with FeatureCache() as cache:
        recipe = cache.get_recipe(extractor.recipe_key, extractor.backbone.name)
        return cache.read_features(recipe, [picture.sha256 for picture in pictures])


# What is kept of the layers


def test_the_layout_of_the_built_in_backbone(extractor: Extractor) -> None:
    layout = extractor.layout
    kept = [f"{block} {channels}" for block, channels in zip(layout.blocks, layout.channels, strict=True)]
    assert kept == [
        "stage3 4x4 40",
        "stage3 3x3 40",
        "stage4 4x4 80",
        "stage4 3x3 80",
        "stage5 4x4 112",
        "stage5 3x3 112",
        "stage6 3x3 192",
        "stage6 2x2 192",
        "stage7 2x2 320",
        "head 1x1 1280",
    ]
    assert layout.num_features == 25 * (40 + 80 + 112) + 13 * 192 + 4 * 320 + 1280 == 10856
    assert layout.count_features(PooledLayer("stage5", 2)) == 448
    assert get_top_layer(layout) == (PooledLayer("head", 1),)


def test_the_candidates_of_the_built_in_backbone(extractor: Extractor) -> None:
    shown = [" + ".join(map(str, layers)) for layers in list_candidates(extractor.layout)]
    singles = [f"stage{stage} {grid}x{grid}" for stage in (3, 4, 5) for grid in (2, 3, 4)]
    assert shown == [
        *singles,
        *("stage6 1x1", "stage6 2x2", "stage6 3x3", "stage7 1x1", "stage7 2x2", "head 1x1"),
        "stage7 2x2 + head 1x1",
        "stage6 3x3 + stage7 2x2 + head 1x1",
        "stage5 3x3 + stage6 3x3 + stage7 2x2 + head 1x1",
        "stage4 3x3 + stage5 3x3 + stage6 3x3 + stage7 2x2 + head 1x1",
    ]
    for layers in list_candidates(extractor.layout):  # every one can be read
        assert all(extractor.layout.count_features(block) >= 128 for block in layers)


def test_small_maps_and_few_layers_have_a_layout_too() -> None:
    layers = (Layer("few", 31, 8), Layer("one", 64, 1), Layer("wide", 2000, 4))
    layout = plan_layout(make_tiny_backbone(layers=layers))
    assert [str(block) for block in layout.blocks] == ["one 1x1", "wide 1x1"]
    assert list_candidates(layout) == [
        (PooledLayer("one", 1),),
        (PooledLayer("wide", 1),),
        (PooledLayer("one", 1), PooledLayer("wide", 1)),
    ]
    with pytest.raises(KeyError, match="wide 2x2 is not kept"):
        layout.count_features(PooledLayer("wide", 2))


def test_a_dense_head_keeps_one_layer() -> None:
    layers = (*LAYERS, Layer("class token", 160, 1))
    tiny = dataclasses.replace(make_tiny_backbone(), layers=layers)
    top, second = PooledLayer("top", 4), PooledLayer("second", 4)
    for name in ("auto", "top"):  # the last map, not the class token after it
        assert plan_single_layout(tiny, name, "flatten") == FeatureLayout((top,), (160,))
        assert plan_single_layout(tiny, name, "average") == FeatureLayout((PooledLayer("top", 1),), (160,))
    for pooling in ("flatten", "max"):
        assert plan_single_layout(tiny, "second", pooling) == FeatureLayout((second,), (48,))
    assert plan_single_layout(tiny, "class token", "flatten").blocks == (PooledLayer("class token", 1),)
    small = dataclasses.replace(tiny, layers=(Layer("a", 32, 1), Layer("b", 64, 1)))  # no map at all
    assert plan_single_layout(small, "top", "max").blocks == (PooledLayer("b", 1),)


def test_an_unknown_layer_is_told_with_the_nearest() -> None:
    tiny = make_tiny_backbone()
    assert find_layer(tiny, "second") == LAYERS[1]
    for find in (find_layer, lambda backbone, name: plan_single_layout(backbone, name, "average")):
        with pytest.raises(ConfigError) as caught:
            find(tiny, "secnd")
        assert str(caught.value) == (
            "layers is 'secnd'. Did you mean 'second'? tiny has the layers first, second, top; "
            "'auto' chooses, 'top' is the last."
        )


def average_cells(maps: np.ndarray, grid: int) -> np.ndarray:
    """Maps (C, h, h) enlarged until the cells divide them, then plain means: (C * grid * grid,)."""
    size = maps.shape[1]
    large = maps.repeat(grid, axis=1).repeat(grid, axis=2)
    return large.reshape(len(maps), grid, size, grid, size).mean(axis=(2, 4)).ravel()


def test_blocks_are_the_pooled_maps_of_the_network(extractor: Extractor, backbone: Backbone) -> None:
    rng = np.random.default_rng(0)
    scene = 128 + 70 * np.sin(np.arange(260) / 7)[:, None, None] * np.cos(np.arange(300) / 11)[:, None]
    pixels = np.clip(scene + rng.normal(0, 30, (260, 300, 3)), 0, 255).astype(np.uint8)
    session = onnxruntime.InferenceSession(backbone.model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [layer.name for layer in backbone.layers]
    maps = dict(zip(names, session.run(names, {IMAGE: pixels}), strict=True))
    row = extractor.run(pixels)
    assert row.shape == (10856,)
    assert row.dtype == np.float16
    rows = np.stack([np.zeros_like(row), row])
    for block in {block for layers in list_candidates(extractor.layout) for block in layers}:
        found = extractor.layout.read_block(rows, block)
        expected = average_cells(maps[block.layer][0].astype(np.float64), block.grid)
        assert found.dtype == np.float32
        assert found.shape == (2, len(expected))
        assert not found[0].any()
        np.testing.assert_allclose(
            found[1], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max(), err_msg=str(block)
        )


def test_beyond_half_precision_features_are_cut_not_infinite() -> None:
    backbone = make_tiny_backbone()
    for tensor in backbone.model.graph.initializer:
        if list(tensor.dims)[1:] == [3, 1, 1]:
            kernel = 1e9 * np.frombuffer(tensor.raw_data, np.float32)
            tensor.raw_data = kernel.tobytes()
    row = Extractor(backbone, 1).run(np.full((16, 16, 3), 255, np.uint8))
    assert np.isfinite(row).all()
    assert row.max() == 65504


# What costs a forward pass


def test_a_second_run_costs_nothing(tiny: Extractor, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 30)
    progress: list[tuple[int, int]] = []
    with FeatureCache() as cache:
        first = extract_features(pictures, tiny, cache, lambda done, total: progress.append((done, total)))
    assert (first.num_forward, first.num_cached, first.failures) == (30, 0, {})
    assert progress == [(done, 30) for done in range(1, 31)]
    second = extract(pictures, tiny)
    assert (second.num_forward, second.num_cached) == (0, 30)
    assert second.facts == first.facts
    for picture in pictures:
        decoded = decode_image(Path(str(picture.source)).read_bytes())
        assert first.facts[picture.sha256] == decoded.facts
        np.testing.assert_array_equal(read_rows([picture], tiny)[0], tiny.run(decoded.pixels))


def test_where_the_cache_holds_all_no_session_is_opened(
    tiny: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = make_pictures(tmp_path, 3)
    extract(pictures, tiny)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("a session was opened")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    again = Extractor(make_tiny_backbone())
    assert extract(pictures, again).num_cached == 3
    with pytest.raises(RuntimeError, match="a session was opened"):
        extract(make_pictures(tmp_path, 4), again)


def test_renaming_moving_and_touching_costs_nothing_and_ten_more_cost_ten(tiny: Extractor, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "a", 30)
    extract(pictures, tiny)
    (tmp_path / "b").mkdir()
    moved = []
    for index, picture in enumerate(pictures):
        target = tmp_path / "b" / f"renamed {index}.jpg"
        shutil.move(str(picture.source), target)
        os.utime(target, (index, index))
        moved.append(Picture(picture.sha256, target))
    assert extract(moved, tiny).num_forward == 0
    more = make_pictures(tmp_path / "a", 40)
    assert [picture.sha256 for picture in more[:30]] == [picture.sha256 for picture in pictures]
    found = extract(more, tiny)
    assert (found.num_forward, found.num_cached) == (10, 30)


def test_copies_go_through_the_network_once(tiny: Extractor, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 5)
    found = extract([*pictures, *pictures, *pictures], tiny)
    assert (found.num_forward, found.num_cached, len(found.facts)) == (5, 0, 5)


def test_a_picture_that_cannot_be_used_is_a_failure_each_time(tiny: Extractor, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 6)
    changed, gone, cut = (Path(str(picture.source)) for picture in pictures[:3])
    changed.write_bytes(Path(str(pictures[5].source)).read_bytes())
    gone.unlink()
    data = cut.read_bytes()[:300]
    cut.write_bytes(data)
    pictures[2] = Picture(features.compute_sha256(data), str(cut))
    for num_forward in (3, 0):
        found = extract(pictures, tiny)
        assert found.num_forward == num_forward
        codes = {sha256: error.code for sha256, error in found.failures.items()}
        assert [codes[picture.sha256] for picture in pictures[:3]] == [
            "changed-while-reading",
            "unreadable",
            "truncated",
        ]
        assert found.failures[pictures[0].sha256].path == str(changed)
        assert found.facts.keys() == {picture.sha256 for picture in pictures[3:]}
    with pytest.raises(HeadstartError):
        read_rows(pictures[:1], tiny)


def test_a_damaged_row_costs_one_pass(tiny: Extractor, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 10)
    extract(pictures, tiny)
    expected = read_rows(pictures, tiny)
    connection = sqlite3.connect(get_cache_file())
    with connection:
        connection.execute("UPDATE features SET data = zeroblob(LENGTH(data)) WHERE id = 4")
    connection.close()
    assert extract(pictures, tiny).num_forward == 1
    np.testing.assert_array_equal(read_rows(pictures, tiny), expected)


@pytest.mark.parametrize("stop_at", [1, 9, 64, 100])
def test_an_interrupt_keeps_what_was_finished(tiny: Extractor, tmp_path: Path, stop_at: int) -> None:
    pictures = make_pictures(tmp_path, 110)

    def interrupt(done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with FeatureCache() as cache, pytest.raises(KeyboardInterrupt):
        extract_features(pictures, tiny, cache, interrupt)
    connection = sqlite3.connect(get_cache_file())
    counts = [connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("features", "facts")]
    connection.close()
    assert counts == [stop_at, stop_at]
    rest = extract(pictures, tiny)
    assert (rest.num_forward, rest.num_cached) == (110 - stop_at, stop_at)


def test_the_number_of_threads_changes_no_bit(backbone: Backbone, extractor: Extractor, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 12)
    matrices = []
    for num_threads in (1, 4):
        other = Extractor(backbone, num_threads)
        assert other.recipe_key == extractor.recipe_key
        with FeatureCache() as cache:
            cache.connection.execute("DELETE FROM features")
        assert extract(pictures, other).num_forward == 12
        matrices.append(read_rows(pictures, other))
    assert matrices[0].tobytes() == matrices[1].tobytes()
    assert len(np.unique(matrices[0], axis=0)) == 12


# What changes the key

CHANGES = {
    "input size": {"input_size_px": 17, "layers": tuple(Layer(layer.name, layer.channels, 17) for layer in LAYERS)},
    "crop": {"crop_frac": 0.9},
    "weights": {"seed": 1},
    "layers": {"layers": LAYERS[:2]},
    "order of layers": {"layers": (LAYERS[0], Layer("second", 48, 4), Layer("other", 160, 4))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_feature_misses_the_cache(tiny: Extractor, tmp_path: Path, change: str) -> None:
    pictures = make_pictures(tmp_path, 4)
    extract(pictures, tiny)
    other = Extractor(make_tiny_backbone(**CHANGES[change]))
    assert extract(pictures, other).num_forward == 4
    assert extract(pictures, other).num_forward == 0
    assert extract(pictures, tiny).num_forward == 0
    assert extract(pictures, Extractor(make_tiny_backbone())).num_forward == 0  # made anew, the same


@pytest.mark.parametrize("name", ["_MAX_GRID", "_MAX_BLOCK_FEATURES", "_MIN_CHANNELS"])
def test_another_pooling_misses_the_cache(
    tiny: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pictures = make_pictures(tmp_path, 4)
    extract(pictures, tiny)
    monkeypatch.setattr(features, name, {"_MAX_GRID": 3, "_MAX_BLOCK_FEATURES": 700, "_MIN_CHANNELS": 40}[name])
    other = Extractor(make_tiny_backbone())
    assert other.layout != tiny.layout
    assert extract(pictures, other).num_forward == 4


def test_another_decoder_misses_the_cache(tiny: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = make_pictures(tmp_path, 4)
    extract(pictures, tiny)
    monkeypatch.setattr(features, "DECODER_VERSION", features.DECODER_VERSION + 1)
    other = Extractor(make_tiny_backbone())
    assert other.recipe_key != tiny.recipe_key
    assert extract(pictures, other).num_forward == 4
    assert extract(pictures, other).num_forward == 0


# Kills

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tiny_backbone import make_tiny_backbone
from headstart import features
from headstart.feature_cache import FeatureCache
from headstart.pictures import hash_source
features._ROWS_PER_COMMIT = 2  # so that most kills come near a commit
extractor = features.Extractor(make_tiny_backbone(), num_threads=2)
print("ready", flush=True)
for line in sys.stdin:
    files = sorted(Path(sys.argv[2]).iterdir(), key=lambda file: int(file.stem))[: int(line)]
    pictures = [features.Picture(hash_source(file), file) for file in files]
    with FeatureCache() as cache:
        print("go", flush=True)
        features.extract_features(pictures, extractor, cache)
    print("done", flush=True)
"""


def start_child(folder: Path, cache: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(headstart.__file__).parents[1]),
        "HEADSTART_CACHE": str(cache),
    }
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(folder)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(child: subprocess.Popen[str], count: int) -> None:
    """Have the child extract the first `count` pictures; returns when it begins."""
    assert child.stdin is not None
    child.stdin.write(f"{count}\n")
    child.stdin.flush()
    assert hear(child) == "go"


def hear(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_kills_at_any_moment_lose_little_and_leave_nothing_wrong(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 kills into one cache, each while the extraction of new pictures is under way, then a run to the end."""
    num_rounds, num_new = 20, 16
    folder = tmp_path / "pictures"
    pictures = make_pictures(folder, num_rounds * num_new)
    measured = start_child(folder, tmp_path / "measured")
    assert hear(measured) == "ready"
    begin = time.perf_counter()
    tell(measured, num_new)
    assert hear(measured) == "done"
    duration_s = time.perf_counter() - begin
    measured.communicate("", timeout=30)
    rng = random.Random(0)
    counts, num_killed = [0], 0
    following = start_child(folder, own_cache)
    for number in range(1, num_rounds + 1):
        child, following = following, start_child(folder, own_cache)  # the next one starts meanwhile
        assert hear(child) == "ready"
        tell(child, number * num_new)
        time.sleep(rng.uniform(0, duration_s))
        child.kill()
        output, _ = child.communicate(timeout=30)
        # Other load on the machine changes how long it takes.
        duration_s *= 0.7 if "done" in output else 1.15
        num_killed += "done" not in output
        connection = sqlite3.connect(own_cache / "features.sqlite")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counts.append(connection.execute("SELECT COUNT(*) FROM facts").fetchone()[0])
        connection.close()
    following.kill()
    following.communicate(timeout=30)
    assert counts == sorted(counts)  # what was committed stays
    assert num_killed >= 8
    assert len(set(counts)) >= 6
    tiny = Extractor(make_tiny_backbone())
    rest = extract(pictures, tiny)
    assert rest.num_cached == counts[-1]
    assert rest.num_forward == len(pictures) - counts[-1]
    survived = read_rows(pictures, tiny)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "fresh"))
    assert extract(pictures, tiny).num_forward == len(pictures)
    assert survived.tobytes() == read_rows(pictures, tiny).tobytes()


def test_pixels_in_memory_are_kept_by_their_content(tiny: Extractor) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (20, 20, 3), dtype=np.uint8) for _ in range(3)]
    pictures = [Picture(features.compute_sha256(array.tobytes()), array) for array in arrays]
    assert extract(pictures, tiny).num_forward == 3
    copies = [Picture(picture.sha256, array.copy()) for picture, array in zip(pictures, arrays, strict=True)]
    assert extract(copies, tiny).num_cached == 3


def test_a_layout_reads_only_what_it_keeps() -> None:
    layout = FeatureLayout((PooledLayer("a", 4), PooledLayer("a", 3), PooledLayer("b", 2)), (2, 2, 3))
    assert layout.num_features == 2 * 16 + 2 * 9 + 3 * 4
    rows = np.arange(62, dtype=np.float16)[None]
    np.testing.assert_array_equal(layout.read_block(rows, PooledLayer("a", 3))[0], np.arange(32, 50))
    np.testing.assert_array_equal(layout.read_block(rows, PooledLayer("b", 1))[0], [51.5, 55.5, 59.5])
    np.testing.assert_array_equal(layout.read_block(rows, PooledLayer("a", 2))[0][:4], [2.5, 4.5, 10.5, 12.5])
    for block in (PooledLayer("b", 4), PooledLayer("c", 1)):
        with pytest.raises(KeyError):
            layout.read_block(rows, block)


def test_threads_that_come_first_together_open_one_session() -> None:
    extractor = Extractor(make_tiny_backbone(), num_threads=8)
    barrier = threading.Barrier(8)

    def open_one(_: int) -> object:
        barrier.wait(timeout=5)
        return extractor._open()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, list(pool.map(open_one, range(8)))))) == 1


def test_rows_and_verdicts_do_not_depend_on_how_many_go_together(
    extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the decoded pictures that wait for the network take more memory than is allowed."""
    pictures = make_pictures(tmp_path / "pictures", 11)
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(str(pictures[4].source)).read_bytes()[:-40])
    pictures[4] = Picture(hashlib.sha256(broken.read_bytes()).hexdigest(), str(broken))
    found = []
    for size, limit in ((1, 2**20), (8, 2**20), (8, 1), (4, 5000)):
        monkeypatch.setattr(extractor, "pictures_per_task", size)
        monkeypatch.setattr(features, "_MAX_WAITING_BYTES", limit)
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / f"{size}-{limit}"))
        done: list[int] = []
        with FeatureCache() as cache:
            outcome = extract_features(pictures, extractor, cache, lambda count, total, done=done: done.append(count))
            recipe = cache.get_recipe(extractor.recipe_key, extractor.name)
            found.append((list(outcome.facts), cache.read_features(recipe, list(outcome.facts)).tobytes()))
        assert done == list(range(1, 12))
        assert list(outcome.failures) == [pictures[4].sha256]
    assert len(found[0][0]) == 10
    assert all(each == found[0] for each in found)
