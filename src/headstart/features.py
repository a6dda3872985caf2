"""Pictures through a backbone: all layers from one pass, pooled, kept in the feature cache.

Worker threads each read, decode and run ONNX Runtime with one thread a run; on a CPU that beats batches (devices:
execution.py). What is in flight is bounded, so memory does not grow with the number of pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from headstart._files import compute_sha256
from headstart.backbones.catalog import CLASS_TOKEN, POOLED, Backbone, Layer
from headstart.decode import DECODER_VERSION, DecodedImage, ImageFacts
from headstart.errors import ConfigError, ImageError, suggest
from headstart.execution import PROCESSOR, Runner, choose_device, open_device
from headstart.feature_cache import FeatureCache
from headstart.graph import (
    FEATURES,
    GraphBuilder,
    PooledLayer,
    PreprocessSpec,
    add_pooling,
    extend_graph,
    narrow_output,
)
from headstart.parallel import count_cpus, map_bounded
from headstart.pictures import PictureSource, load_picture

if TYPE_CHECKING:
    import onnx

# A block of more numbers than this was never chosen by cross-validation; layers of fewer channels neither.
_MAX_BLOCK_FEATURES = 1800
_MIN_CHANNELS = 32
_MIN_BLOCK_FEATURES = 128
_MAX_GRID = 4
_ROWS_PER_COMMIT = 64
_PICTURES_PER_TASK = 8
_LARGE_MODEL_BYTES = 64 * 2**20
# Of decoded pictures that wait for the network in one thread.
_MAX_WAITING_BYTES = 16 * 2**20


@dataclass(frozen=True)
class FeatureLayout:
    """Which pooled layers a row holds, side by side, and where each begins.

    Only the finest raster of a layer and the one that does not divide it are kept: 4x4 gives 2x2 and 1x1 as exact
    means, and so does any raster 1x1.
    """

    blocks: tuple[PooledLayer, ...]
    channels: tuple[int, ...]

    @property
    def num_features(self) -> int:
        return sum(self._sizes())

    def _sizes(self) -> list[int]:
        return [count * block.grid**2 for block, count in zip(self.blocks, self.channels, strict=True)]

    def count_features(self, pooled: PooledLayer) -> int:
        return self.channels[self._find(pooled)] * pooled.grid**2

    def _find(self, pooled: PooledLayer) -> int:
        """The stored block that is `pooled` or that its cells subdivide."""
        for index, block in enumerate(self.blocks):
            if block.layer == pooled.layer and block.grid % pooled.grid == 0:
                return index
        raise KeyError(f"{pooled} is not kept")

    def read_block(self, rows: np.ndarray, pooled: PooledLayer) -> np.ndarray:
        """float32 (N, C * grid * grid) of one pooled layer from rows float16 (N, num_features)."""
        index = self._find(pooled)
        start = sum(self._sizes()[:index])
        stored, channels = self.blocks[index].grid, self.channels[index]
        block = rows[:, start : start + channels * stored**2].astype(np.float32)
        if stored == pooled.grid:
            return block
        factor = stored // pooled.grid
        cells = block.reshape(len(rows), channels, pooled.grid, factor, pooled.grid, factor)
        return np.ascontiguousarray(cells.mean(axis=(3, 5)).reshape(len(rows), -1))


def plan_layout(backbone: Backbone) -> FeatureLayout:
    """What to keep of a backbone's layers, as few numbers as selection needs (about 11,000 a picture)."""
    blocks, channels = [], []
    for layer in backbone.layers:
        finest = _find_finest_grid(layer.channels, layer.size)
        if layer.channels < _MIN_CHANNELS:
            continue
        for grid in (finest, finest - 1) if finest > 2 else (finest,):
            blocks.append(PooledLayer(layer.name, grid))
            channels.append(layer.channels)
    return FeatureLayout(tuple(blocks), tuple(channels))


def _find_finest_grid(channels: int, size: int) -> int:
    fitting = [g for g in range(1, _MAX_GRID + 1) if g <= size and channels * g**2 <= _MAX_BLOCK_FEATURES]
    return max(fitting, default=1)


def plan_single_layout(backbone: Backbone, name: str, pooling: str) -> FeatureLayout:
    """One layer for a dense head: its mean (`average`), or its whole map. `name` may be `auto` or `top`: the last map.

    Raises ConfigError for a layer that the backbone does not have.
    """
    if name in ("auto", "top"):
        layer = next(each for each in reversed(backbone.layers) if each.name not in (CLASS_TOKEN, POOLED))
    else:
        layer = find_layer(backbone, name)
    grid = 1 if pooling == "average" else layer.size
    return FeatureLayout((PooledLayer(layer.name, grid),), (layer.channels,))


def find_layer(backbone: Backbone, name: str) -> Layer:
    """The layer of that name. Raises ConfigError with the nearest name."""
    names = [layer.name for layer in backbone.layers]
    if name not in names:
        raise ConfigError(
            f"layers is '{name}'.{suggest(name, names)} {backbone.name} has the layers {', '.join(names)}; "
            "'auto' chooses, 'top' is the last."
        )
    return backbone.get_layer(name)


def list_candidates(layout: FeatureLayout) -> list[tuple[PooledLayer, ...]]:
    """What selection chooses from: every layer on every raster, and the last 2, 3, 4 and 5 layers side by side."""
    single: list[tuple[PooledLayer, ...]] = []
    finest: dict[str, int] = {}
    for block in layout.blocks:
        finest[block.layer] = max(block.grid, finest.get(block.layer, 1))
    for layer, grid in finest.items():
        pooled = [PooledLayer(layer, g) for g in range(1, grid + 1)]
        kept = [block for block in pooled if layout.count_features(block) >= _MIN_BLOCK_FEATURES]
        single.extend((block,) for block in kept or pooled[-1:])
    layers = list(finest)
    together = [
        tuple(PooledLayer(layer, min(finest[layer], 3)) for layer in layers[-count:])
        for count in range(2, min(len(layers), 5) + 1)
    ]
    return [*single, *together]


def get_top_layer(layout: FeatureLayout) -> tuple[PooledLayer, ...]:
    """What every tutorial uses: the last layer under global average pooling."""
    return (PooledLayer(layout.blocks[-1].layer, 1),)


class GraphRunner:
    """A graph from `image` to `features`, ready to run; `recipe_key` names everything that changes a feature.

    `name` is what the cache shows its rows under.
    """

    def __init__(
        self, model: onnx.ModelProto, name: str, preprocess: PreprocessSpec, num_threads: int | None = None
    ) -> None:
        self.name = name
        self.preprocess = preprocess
        key = compute_sha256(model.SerializeToString(deterministic=True))
        self.recipe_key = f"{key}/decoder-{DECODER_VERSION}/float16"
        self._model = model
        self._lock = threading.Lock()
        self._graph: Runner | None = None
        if choose_device() != PROCESSOR:
            self._graph = open_device(self._serialize(), preprocess.input_size_px)
        if self._graph:
            self.recipe_key += f"/{self._graph.device_name}"  # whose last digits differ
        self.num_threads = num_threads or (self._graph.num_threads if self._graph else count_cpus())
        # Large networks may take a second a picture: neither an interrupt nor the progress should wait for several.
        is_slow = model.ByteSize() > _LARGE_MODEL_BYTES
        self.pictures_per_task = 1 if self._graph or is_slow else _PICTURES_PER_TASK

    def run(self, pixels: np.ndarray, sha256: str = "") -> np.ndarray:
        """Features float16 (D,) of one RGB picture uint8 (H, W, 3); what draws views of it needs its SHA-256."""
        graph = self._graph or self._open()
        return graph.run(pixels)[0]

    def _open(self) -> Runner:
        """On the processor only when the first picture comes: where the cache holds all, none does."""
        with self._lock:
            if self._graph is None:
                self._graph = Runner(self._serialize())
            return self._graph

    def _serialize(self) -> bytes:
        # Half precision reaches 65,504; a network that goes beyond is cut there rather than made infinite. Done in the
        # graph, that costs a fraction of what NumPy takes.
        return narrow_output(self._model, FEATURES, "features_half").SerializeToString()


class Extractor(GraphRunner):
    """A backbone with its pooling, ready to run. `layout` is what to keep of it, by default what selection needs."""

    def __init__(self, backbone: Backbone, num_threads: int | None = None, layout: FeatureLayout | None = None) -> None:
        self.backbone = backbone
        self.layout = layout or plan_layout(backbone)
        model = build_feature_graph(backbone, self.layout)
        super().__init__(model, backbone.name, backbone.preprocess, num_threads)


def build_feature_graph(backbone: Backbone, layout: FeatureLayout) -> onnx.ModelProto:
    """Picture to one vector float32 (D,) in the layout's order."""
    builder = GraphBuilder(prefix="pool_")
    pooled = [(block, backbone.get_layer(block.layer)) for block in layout.blocks]
    row = add_pooling(builder, [(block, layer.channels, layer.size) for block, layer in pooled])
    builder.add("Reshape", row, builder.int_constant(-1), output=FEATURES)
    layers = list(dict.fromkeys(block.layer for block in layout.blocks))
    # Not checked here: ONNX Runtime does when it is run, and where the cache holds all it need not be.
    return extend_graph(backbone.model, layers, builder, FEATURES, layout.num_features, is_checked=False)


@dataclass(frozen=True)
class Picture:
    """A picture to extract: the SHA-256 of its content, and where its bytes or pixels come from."""

    sha256: str
    source: PictureSource


@dataclass
class Extraction:
    """What a pass found: facts of the pictures that decode, verdicts on the others, how many were run."""

    facts: dict[str, ImageFacts] = field(default_factory=dict)
    failures: dict[str, ImageError] = field(default_factory=dict)
    num_forward: int = 0
    num_cached: int = 0


Progress = Callable[[int, int], None]


def extract_features(
    pictures: Sequence[Picture], extractor: GraphRunner, cache: FeatureCache, on_progress: Progress | None = None
) -> Extraction:
    """See that the cache holds the features of every picture that decodes; run only those that are missing.

    `on_progress` is called with (done, total) after each picture. An interrupt keeps what was finished.
    """
    recipe = cache.get_recipe(extractor.recipe_key, extractor.name)
    unique = {picture.sha256: picture for picture in pictures}
    result = Extraction()
    facts = cache.read_facts(DECODER_VERSION, unique)
    known = cache.find_features(recipe, facts)
    result.facts = {sha256: ImageFacts.from_json(facts[sha256]) for sha256 in known}
    missing = [picture for sha256, picture in unique.items() if sha256 not in known]
    result.num_cached = len(unique) - len(missing)
    min_side_px = 2 * extractor.preprocess.input_size_px

    def decode(picture: Picture) -> DecodedImage | ImageError:
        try:
            return load_picture(picture.source, picture.sha256, min_side_px)
        except ImageError as error:
            return error

    def run(picture: Picture, decoded: DecodedImage | ImageError) -> tuple[ImageFacts, np.ndarray] | ImageError:
        if isinstance(decoded, ImageError):
            return decoded
        return decoded.facts, extractor.run(decoded.pixels, picture.sha256)

    def compute(part: Sequence[Picture]) -> list[tuple[ImageFacts, np.ndarray] | ImageError]:
        # Some pictures are decoded, then run: in turn, each would find the caches of its core full of the other's.
        outcomes, waiting, num_bytes = [], [], 0
        for picture in part:
            decoded = decode(picture)
            waiting.append((picture, decoded))
            num_bytes += 0 if isinstance(decoded, ImageError) else decoded.pixels.nbytes
            if num_bytes > _MAX_WAITING_BYTES or picture is part[-1]:
                outcomes += [run(*each) for each in waiting]
                waiting, num_bytes = [], 0
        return outcomes

    pending: list[tuple[str, ImageFacts, np.ndarray]] = []

    def commit() -> None:
        cache.add_features(recipe, [(sha256, features) for sha256, _, features in pending])
        cache.add_facts(DECODER_VERSION, [(sha256, facts.to_json()) for sha256, facts, _ in pending])
        pending.clear()

    size = extractor.pictures_per_task
    parts = [missing[start : start + size] for start in range(0, len(missing), size)]
    computed = map_bounded(compute, parts, extractor.num_threads)
    outcomes = (pair for part, found in computed for pair in zip(part, found, strict=True))
    try:
        for done, (picture, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, ImageError):
                result.failures[picture.sha256] = outcome
            else:
                pending.append((picture.sha256, *outcome))
                result.facts[picture.sha256] = outcome[0]
                result.num_forward += 1
            if len(pending) == _ROWS_PER_COMMIT:
                commit()
            if on_progress:
                on_progress(done, len(missing))
    finally:
        commit()
    return result
