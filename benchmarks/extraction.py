"""Features of a folder: headstart against what the cores could reach at best.

Ours, the road, is hashing, decoding, the network with several layers, and writing a fresh cache. Files are in the page
cache; imports and model building are not in it. The bound is cores / (1 / decode + 1 / forward), of the rates per core
of two things measured apart: from bytes in memory to an RGB array, as cheaply as Pillow does it and with nothing
checked; and the network with its pooling on decoded arrays. Both run on all cores at once, for cores share caches,
memory and clock. Pictures go by blocks, and each block is decoded, run and sent down the road in turn, so that
what else the machine does falls on all three. Shares are given by the clock, and by processor time, which other work on
the machine disturbs less.

The profile says where the road's processor time goes that is not in the bound: each part alone, on all cores.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from measure import make_parser, report, summarize, work_folder

from headstart._files import compute_sha256
from headstart.backbones.loading import load_backbone
from headstart.data_check import hash_images
from headstart.dataset import ImageDataset, ImageRecord, scan_dataset
from headstart.decode import DECODER_VERSION, ImageFacts, decode_image
from headstart.execution import open_session
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, build_feature_graph, extract_features
from headstart.graph import FEATURES, IMAGE
from headstart.image_files import read_image_file
from headstart.parallel import count_cpus

_ROWS_PER_COMMIT = 64


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("data", help="folder of pictures in class folders")
    parser.add_argument("--images", type=int, help="how many pictures, evenly spaced (default: all)")
    parser.add_argument("--block-images", type=int, default=200, help="pictures in a block (default 200)")
    args = parser.parse_args()

    bench = Bench(Extractor(load_backbone()))
    dataset = scan_dataset(args.data)
    dataset = hash_images(replace(dataset, records=tuple(sample(dataset.records, args.images or len(dataset.records)))))
    unique = {record.sha256: record for record in dataset.records}
    dataset = replace(dataset, records=tuple(unique.values()))
    rounds: list[dict[str, float]] = []
    for _ in range(args.repeats):
        with work_folder():
            figures, num_images = bench.measure_round(dataset, args.block_images)
        rounds.append(figures)

    def over_rounds(*names: str) -> dict[str, Any]:
        return {name: summarize([figures[name] for figures in rounds]) for name in names}

    results: dict[str, Any] = {
        "num_images": num_images,
        "block_images": args.block_images,
        "load_average": [round(each, 2) for each in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "ours": {
            "threads": bench.extractor.num_threads,
            "features_per_image": bench.extractor.layout.num_features,
            **over_rounds("images_per_s", "cpu_ms_per_image", "idle_frac"),
        },
        "bound": {
            "formula": "cores / (1 / decode_per_core + 1 / forward_per_core)",
            **over_rounds("decode_per_core", "forward_per_core", "bound", "bound_cpu_ms_per_image"),
            **over_rounds("share_of_bound", "share_of_bound_by_cpu_time"),
            "one_core_alone": over_rounds("decode_alone", "forward_alone", "share_of_bound_alone"),
        },
        "profile_cpu_ms_per_image": over_rounds(*(name for name in rounds[0] if name.startswith("cpu: "))),
    }
    report(results)


@dataclass
class Spent:
    """Seconds by the clock, and of the processor in all threads."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


class Bench:
    """An extractor, and the same network bare."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.min_side_px = 2 * extractor.preprocess.input_size_px
        self.session = open_session(build_feature_graph(extractor.backbone, extractor.layout).SerializeToString())
        for run in (extractor.run, self.forward):
            run(np.zeros((300, 300, 3), np.uint8))

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        features: np.ndarray = self.session.run([FEATURES], {IMAGE: pixels})[0]
        return features

    def decode(self, data: bytes) -> np.ndarray:
        image = PIL.Image.open(io.BytesIO(data))
        if min(image.size) >= 2 * self.min_side_px:
            image.draft(None, (self.min_side_px, self.min_side_px))  # as our decoder allows itself
        return np.asarray(image.convert("RGB"))

    def measure_round(self, dataset: ImageDataset, block_size: int) -> tuple[dict[str, float], int]:
        """Figures of one round in a fresh cache, and how many pictures went through the network."""
        spent: defaultdict[str, Spent] = defaultdict(Spent)
        facts: dict[str, ImageFacts] = {}
        records = dataset.records
        num_blocks = max(1, round(len(records) / block_size))
        with FeatureCache() as cache:
            for number in range(num_blocks):
                # Every n-th picture: each block has its share of every class.
                self._measure_block(replace(dataset, records=records[number::num_blocks]), number, cache, spent, facts)
            began = time.perf_counter()
        spent["road"].wall_s += time.perf_counter() - began  # closing writes what is still in the log
        return self._compute_figures(spent, len(facts)), len(facts)

    def _measure_block(
        self,
        block: ImageDataset,
        number: int,
        cache: FeatureCache,
        spent: dict[str, Spent],
        facts: dict[str, ImageFacts],
    ) -> None:
        def go() -> None:
            hashed = hash_images(block, num_threads=count_cpus())
            pictures = [Picture(record.sha256, record.path) for record in hashed.records]
            found = extract_features(pictures, self.extractor, cache)
            facts.update(found.facts)

        # In turn, so that none of the three always comes first or after the same one.
        files = [data for record in block.records if (data := self._read(record)) is not None]
        arrays = [self.decode(data) for data in files]
        steps: list[tuple[str, Callable[[], object]]] = [
            ("road", go),
            ("decode", lambda: keep_busy(self.decode, files)),
            ("forward", lambda: keep_busy(self.forward, arrays)),
        ]
        for name, step in [*steps[number % 3 :], *steps[: number % 3]]:
            measure(spent[name], step)
        few = slice(None, None, 5)
        measure(spent["decode alone"], lambda: keep_busy(self.decode, files[few], 1))
        measure(spent["forward alone"], lambda: keep_busy(self.forward, arrays[few], 1))
        spent["alone"].cpu_s += len(files[few])

        kept = [record for record in block.records if record.sha256 in facts]
        measure(spent["reading and hashing first"], lambda: hash_images(block, num_threads=count_cpus()))
        measure(spent["reading"], lambda: keep_busy(lambda record: read_image_file(record.path), kept))
        measure(spent["hashing"], lambda: keep_busy(compute_sha256, files))
        decode = functools.partial(decode_image, min_side_px=self.min_side_px)
        measure(spent["decode_image"], lambda: keep_busy(decode, files))
        measure(spent["run"], lambda: keep_busy(self.extractor.run, arrays))
        recipe = cache.get_recipe("written once more", "benchmark")
        rows = [(record.sha256, self.extractor.run(arrays[0])) for record in kept]
        texts = [(record.sha256, facts[record.sha256].to_json()) for record in kept]

        def write() -> None:
            for start in range(0, len(rows), _ROWS_PER_COMMIT):
                cache.add_features(recipe, rows[start : start + _ROWS_PER_COMMIT])
                cache.add_facts(DECODER_VERSION + 1000, texts[start : start + _ROWS_PER_COMMIT])

        measure(spent["writing"], write)

    def _read(self, record: ImageRecord) -> bytes | None:
        data = Path(record.path).read_bytes()
        try:
            self.decode(data)
        except Exception:  # what Pillow cannot decode is in neither rate
            return None
        return data

    def _compute_figures(self, spent: dict[str, Spent], count: int) -> dict[str, float]:
        cores = count_cpus()
        road, decode, forward = (spent[name] for name in ("road", "decode", "forward"))
        num_alone = spent["alone"].cpu_s
        alone = (spent["decode alone"].wall_s + spent["forward alone"].wall_s) / num_alone
        figures = {
            "images_per_s": count / road.wall_s,
            "cpu_ms_per_image": 1e3 * road.cpu_s / count,
            "idle_frac": 1 - road.cpu_s / (cores * road.wall_s),
            "decode_per_core": count / decode.wall_s / cores,
            "forward_per_core": count / forward.wall_s / cores,
            "bound_cpu_ms_per_image": 1e3 * (decode.cpu_s + forward.cpu_s) / count,
            "share_of_bound_by_cpu_time": (decode.cpu_s + forward.cpu_s) / road.cpu_s,
            "decode_alone": num_alone / spent["decode alone"].wall_s,
            "forward_alone": num_alone / spent["forward alone"].wall_s,
        }
        figures["bound"] = cores / (1 / figures["decode_per_core"] + 1 / figures["forward_per_core"])
        figures["share_of_bound"] = figures["images_per_s"] / figures["bound"]
        figures["share_of_bound_alone"] = figures["images_per_s"] / (cores / alone)
        parts = {
            "bound: decode": decode.cpu_s,
            "bound: forward": forward.cpu_s,
            "reading and hashing first": spent["reading and hashing first"].cpu_s,
            "reading again": spent["reading"].cpu_s,
            "hashing again": spent["hashing"].cpu_s,
            "checks and facts of the decoder": spent["decode_image"].cpu_s - decode.cpu_s,
            "half precision, session call": spent["run"].cpu_s - forward.cpu_s,
            "writing the cache": spent["writing"].cpu_s,
        }
        parts["threads, interpreter, colder caches"] = road.cpu_s - sum(parts.values())
        return figures | {f"cpu: {name}": 1e3 * seconds / count for name, seconds in parts.items()}


def measure(spent: Spent, step: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    spent.wall_s += time.perf_counter() - wall
    spent.cpu_s += time.process_time() - cpu


def keep_busy(function: Callable[[Any], object], items: Iterable[Any], num_threads: int | None = None) -> None:
    """Threads that each take the next item as soon as they are done with one; nothing is handed to and fro."""
    shared = iter(items)

    def work() -> None:
        for item in shared:
            function(item)

    threads = [threading.Thread(target=work) for _ in range(num_threads or count_cpus())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def sample(items: Sequence[Any], count: int) -> list[Any]:
    """Evenly spaced over the folder, so that every class has its share."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


if __name__ == "__main__":
    main()
