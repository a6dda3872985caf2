"""Features of a folder: headstart against eager torch with timm, and against what two cores could reach at best.

Ours is hashing, decoding, the network with several layers, and writing a fresh cache. Theirs is a DataLoader with
timm's own transform and the same network's last layer, not kept. Both with the files in the page cache, without
imports and model building. The bound is decoding (bytes in memory) and forward passes (decoded arrays) alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measure import make_parser, report, summarize, work_folder

from headstart.backbones.catalog import CATALOG, DEFAULT_BACKBONE
from headstart.backbones.loading import load_backbone
from headstart.data_check import hash_images
from headstart.dataset import ImageDataset, scan_dataset
from headstart.decode import ImageFacts, decode_image
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features, get_top_layer
from headstart.parallel import count_cpus

# Of this many pictures the last layer is compared with the peer's, as far as they have 256 pixels: smaller ones the
# peer enlarges and crops, while we crop less.
_NUM_COMPARED = 32
_MIN_COMPARED_PX = 256


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("data", help="folder of pictures in class folders")
    parser.add_argument("--torch-python", help="interpreter that has torch and timm; without it the peer is left out")
    parser.add_argument("--peer-images", type=int, help="how many pictures the peer gets (default: all)")
    parser.add_argument("--peer-workers", type=int, default=2, help="DataLoader workers (default 2)")
    parser.add_argument("--batch-size", type=int, default=32, help="of the peer (default 32)")
    parser.add_argument("--bound-images", type=int, default=400, help="pictures for the bound (default 400)")
    args = parser.parse_args()

    extractor = Extractor(load_backbone())
    extractor.run(np.zeros((300, 300, 3), np.uint8))
    dataset = scan_dataset(args.data)
    hash_images(dataset)  # reads every file once, so that the first round finds them in memory too
    rounds: list[dict[str, float]] = []
    peer: dict[str, Any] = {}
    for _ in range(args.repeats):
        with work_folder():
            seconds, extracted, facts = time_extraction(dataset, extractor)
            figures = {"seconds": seconds, "ours": len(extracted) / seconds}
            figures |= measure_bound(sample(extracted, args.bound_images), extractor)
            figures["share_of_bound"] = figures["ours"] / figures["bound"]
            figures["share_of_bound_both"] = figures["ours"] / figures["bound_both"]
            if args.torch_python:
                chosen = sample(extracted, args.peer_images or len(extracted))
                peer = run_peer(args.torch_python, chosen, args.peer_workers, args.batch_size)
                figures["theirs"] = len(chosen) / peer["seconds"]
                figures["ratio"] = figures["ours"] / figures["theirs"]
                peer["cosines"] = compare_features(peer.pop("features"), chosen, facts, extractor)
                peer["num_images"] = len(chosen)
        rounds.append(figures)

    def over_rounds(name: str) -> dict[str, float]:
        return summarize([figures[name] for figures in rounds])

    results: dict[str, Any] = {
        "num_images": len(extracted),
        "ours": {
            "threads": extractor.num_threads,
            "features_per_image": extractor.layout.num_features,
            "seconds": over_rounds("seconds"),
            "images_per_s": over_rounds("ours"),
        },
        "bound": {
            "num_images": min(args.bound_images, len(extracted)),
            "decode_per_core": over_rounds("decode_1"),
            "forward_per_core": over_rounds("forward_1"),
            "decode_all_cores": over_rounds("decode_all"),
            "forward_all_cores": over_rounds("forward_all"),
            "formula": "cores / (1 / decode_per_core + 1 / forward_per_core)",
            "images_per_s": over_rounds("bound"),
            "share_reached": over_rounds("share_of_bound"),
            "images_per_s_from_all_cores": over_rounds("bound_both"),
            "share_reached_from_all_cores": over_rounds("share_of_bound_both"),
        },
    }
    if peer:
        results["timm"] = {
            "num_images": peer["num_images"],
            "workers": args.peer_workers,
            "batch_size": args.batch_size,
            "torch_threads": peer["torch_threads"],
            "input": peer["input"],
            "versions": peer["versions"],
            "images_per_s": over_rounds("theirs"),
            "cosine_of_features_to_ours": summarize(peer["cosines"]) if peer["cosines"] else None,
        }
        results["ours_over_timm"] = over_rounds("ratio")
    report(results)


def time_extraction(dataset: ImageDataset, extractor: Extractor) -> tuple[float, list[Picture], dict[str, ImageFacts]]:
    """Seconds into a fresh cache, the pictures that went through the network, and their facts."""
    began = time.perf_counter()
    hashed = hash_images(dataset, num_threads=count_cpus())
    pictures = {record.sha256: Picture(record.sha256, record.path) for record in hashed.records}
    with FeatureCache() as cache:
        extraction = extract_features(list(pictures.values()), extractor, cache)
    seconds = time.perf_counter() - began
    assert extraction.num_cached == 0
    used = [picture for picture in pictures.values() if picture.sha256 in extraction.facts]
    return seconds, used, extraction.facts


def sample(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """Evenly spaced over the folder, so that every class has its share."""
    places = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int)
    return [pictures[place] for place in places]


def measure_bound(pictures: Sequence[Picture], extractor: Extractor) -> dict[str, float]:
    """Pictures a second of decoding alone and of the network alone, and what both together allow."""
    cores = count_cpus()
    min_side_px = 2 * extractor.backbone.preprocess.input_size_px
    files = [Path(str(picture.source)).read_bytes() for picture in pictures]
    arrays = [decode_image(data, min_side_px=min_side_px).pixels for data in files]

    def decode(data: bytes) -> None:
        decode_image(data, min_side_px=min_side_px)

    def run(pixels: np.ndarray) -> None:
        extractor.run(pixels)

    figures = {
        "decode_1": measure_rate(decode, files, 1),
        "forward_1": measure_rate(run, arrays, 1),
        "decode_all": measure_rate(decode, files, cores),
        "forward_all": measure_rate(run, arrays, cores),
    }
    figures["bound"] = cores / (1 / figures["decode_1"] + 1 / figures["forward_1"])
    figures["bound_both"] = 1 / (1 / figures["decode_all"] + 1 / figures["forward_all"])
    return figures


def measure_rate(function: Callable[[Any], None], items: Sequence[Any], num_threads: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(function, items):
            pass
    return len(items) / (time.perf_counter() - began)


def run_peer(python: str, pictures: Sequence[Picture], num_workers: int, batch_size: int) -> dict[str, Any]:
    task = {
        "pictures": [str(picture.source) for picture in pictures],
        "weights": str(CATALOG[DEFAULT_BACKBONE].find_weights()),
        "num_workers": num_workers,
        "batch_size": batch_size,
        "num_features": _NUM_COMPARED,
    }
    script = Path(__file__).with_name("extraction_timm.py")
    done = subprocess.run([python, str(script)], input=json.dumps(task), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The peer failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def compare_features(
    theirs: list[list[float]], pictures: Sequence[Picture], facts: dict[str, ImageFacts], extractor: Extractor
) -> list[float]:
    """Cosines between both sides' last layer: near 1, or the two do not compute the same network."""
    digests = [picture.sha256 for picture in pictures[: len(theirs)]]
    large = [min(facts[digest].width_px, facts[digest].height_px) >= _MIN_COMPARED_PX for digest in digests]
    with FeatureCache() as cache:
        recipe = cache.get_recipe(extractor.recipe_key, extractor.backbone.name)
        rows = cache.read_features(recipe, digests)
    ours = extractor.layout.read_block(rows, get_top_layer(extractor.layout)[0])
    other = np.array(theirs)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(other, axis=1)
    return [float(cosine) for cosine in ((ours * other).sum(axis=1) / norms)[large]]


if __name__ == "__main__":
    main()
