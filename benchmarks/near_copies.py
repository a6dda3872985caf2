"""Near-copies planted in a folder of pictures: how many are found, and what else is called one.

Pictures drawn at random are re-encoded (JPEG quality 40 to 90), resized (0.5 to 0.8), cropped by 5 % somewhere or 5 %
on every side, mirrored, brightened, or several of these. `recall` counts planted pictures that are paired with their
original. `precision` counts every other pair as false, those between two pictures of the folder too; these are listed,
so that one can look whether they are real. `precision_planted` counts only pairs with a planted picture. `seconds` are
those of the search, with the features cached.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from measure import make_parser, report, round_figure, summarize, work_folder
from PIL import Image

from headstart.backbones.loading import load_backbone
from headstart.data_check import hash_images, leave_out, resolve_duplicates
from headstart.dataset import scan_dataset
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features, get_top_layer
from headstart.insight.near_copies import find_near_copies
from headstart.parallel import count_cpus
from headstart.pictures import hash_source, load_picture

_CHANGES = {
    "re-encoded": (),
    "resized": ("resize",),
    "cropped": ("crop",),
    "cropped all round": ("crop_all_round",),
    "mirrored": ("mirror",),
    "brightened": ("brighten",),
    "mirrored, re-encoded": ("mirror", "encode"),
    "cropped, mirrored": ("crop", "mirror"),
    "cropped, resized, re-encoded": ("crop", "resize", "encode"),
    "cropped, mirrored, resized, brightened, re-encoded": ("crop", "mirror", "resize", "brighten", "encode"),
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("data", help="folder of pictures in class folders")
    parser.add_argument("--planted", type=int, default=300, help="how many near-copies to plant (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="draws pictures and changes (default 0)")
    args = parser.parse_args()
    with work_folder() as folder:
        report({"folder": args.data, **measure(args.data, folder, args.planted, args.seed, args.repeats)})


def measure(source: str, folder: Path, num_planted: int, seed: int, repeats: int) -> dict[str, Any]:
    extractor = Extractor(load_backbone())
    with FeatureCache() as cache:
        dataset = resolve_duplicates(hash_images(scan_dataset(source), num_threads=count_cpus()))
        pictures = [Picture(record.sha256, record.path) for record in dataset.records]
        dataset = leave_out(dataset, extract_features(pictures, extractor, cache).failures)
        pictures = [Picture(record.sha256, record.path) for record in dataset.records]
        num_originals = len(pictures)

        rng = np.random.default_rng(seed)
        drawn = rng.choice(num_originals, min(num_planted, num_originals), replace=False)
        kinds = [list(_CHANGES)[index % len(_CHANGES)] for index in range(len(drawn))]
        for number, (row, kind) in enumerate(zip(drawn, kinds, strict=True)):
            path = plant(pictures[row], kind, rng, folder / f"{number:04}.jpg")
            pictures.append(Picture(hash_source(path), str(path)))
        extract_features(pictures, extractor, cache)
        recipe = cache.get_recipe(extractor.recipe_key, extractor.name)
        rows = cache.read_features(recipe, [picture.sha256 for picture in pictures])
    (top,) = get_top_layer(extractor.layout)
    features = extractor.layout.read_block(rows, top)

    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        copies = find_near_copies(pictures, features)
        seconds.append(time.perf_counter() - began)
    origin = np.concatenate([np.arange(num_originals), drawn])
    true = [pair for pair in copies.pairs if origin[pair.first] == origin[pair.second]]
    others = [pair for pair in copies.pairs if origin[pair.first] != origin[pair.second]]
    others_planted = [pair for pair in others if pair.second >= num_originals]
    found = {pair.second - num_originals for pair in true}
    by_kind, found_by_kind = Counter(kinds), Counter(kinds[index] for index in found)
    return {
        "pictures": num_originals,
        "planted": len(drawn),
        "recall": round_figure(len(found) / len(drawn)),
        "precision": round_figure(len(true) / len(copies.pairs)) if copies.pairs else None,
        "precision_planted": round_figure(len(true) / (len(true) + len(others_planted))) if true else None,
        "found_by_kind": {kind: f"{found_by_kind[kind]} of {count}" for kind, count in by_kind.items()},
        "pairs": len(copies.pairs),
        "candidates": copies.num_candidates,
        "min_correlation": round_figure(copies.min_correlation),
        "too_small": len(copies.too_small),
        "seconds": summarize(seconds),
        "other_pairs": [
            [str(pictures[pair.first].source), str(pictures[pair.second].source), round_figure(pair.correlation)]
            for pair in others
        ],
    }


def plant(picture: Picture, kind: str, rng: np.random.Generator, path: Path) -> Path:
    """A changed picture as JPEG; quality 95 where it is not said to be re-encoded."""
    image = Image.fromarray(load_picture(picture.source).pixels)
    changes = _CHANGES[kind]
    for change in changes:
        width, height = image.size
        if change == "crop":
            size = max(1, round(0.95 * width)), max(1, round(0.95 * height))
            left, top = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(image.size, size, strict=True))
            image = image.crop((left, top, left + size[0], top + size[1]))
        elif change == "crop_all_round":
            x, y = round(0.05 * width), round(0.05 * height)
            image = image.crop((x, y, width - x, height - y))
        elif change == "resize":
            scale = rng.uniform(0.5, 0.8)
            size = max(1, round(scale * width)), max(1, round(scale * height))
            image = image.resize(size, Image.Resampling.LANCZOS)
        elif change == "mirror":
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        elif change == "brighten":
            levels = np.asarray(image, np.float32) * rng.uniform(0.85, 1.2) + rng.uniform(-15, 15)
            image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    image.save(path, quality=int(rng.integers(40, 91)) if "encode" in changes or not changes else 95)
    return path


if __name__ == "__main__":
    main()
