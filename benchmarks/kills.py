"""Extraction killed (SIGKILL) again and again: what is kept, and whether all of it is right.

Every second kill comes at a random moment, the others as soon as the cache's write-ahead log is seen to change after
a random moment, so that they fall into a commit. After each, the cache as it lies there is copied and its rows are
compared bit by bit with those of an undisturbed run (features and facts); at the end one run goes through.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import make_parser, report, round_figure, work_folder

_POLL_S = 0.0002


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("data", help="folder of pictures in class folders")
    parser.add_argument("--rounds", type=int, default=20, help="kills (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument(
        "--extract", action="store_true", help="only extract, into HEADSTART_CACHE (used by the rounds)"
    )
    args = parser.parse_args()
    if args.extract:
        extract(args.data)
        return
    runs = [measure_run(args.data, args.rounds, args.seed + number) for number in range(args.repeats)]
    report({"runs": runs, "all_identical": all(run["identical"] and not run["rows_wrong"] for run in runs)})


def extract(source: str) -> None:
    from headstart.backbones.loading import load_backbone
    from headstart.data_check import hash_images
    from headstart.dataset import scan_dataset
    from headstart.feature_cache import FeatureCache
    from headstart.features import Extractor, Picture, extract_features

    dataset = hash_images(scan_dataset(source))
    extractor = Extractor(load_backbone())
    print("ready", flush=True)
    with FeatureCache() as cache:
        extraction = extract_features([Picture(r.sha256, r.path) for r in dataset.records], extractor, cache)
    print(extraction.num_forward, extraction.num_cached, flush=True)


def measure_run(source: str, num_rounds: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    with work_folder() as folder:
        expected, startup_s, extraction_s = run_undisturbed(source, folder / "reference")
        cache = folder / "killed"
        # On average all kills together leave time for half a run, so that nearly all of them hit one that works.
        longest_s = extraction_s / num_rounds
        kept: list[int] = []
        cut = 0
        kinds = {"at a random moment": 0, "in a commit": 0, "during start": 0, "after the end": 0}
        wrong = 0
        for number in range(num_rounds):
            kind = kill_once(source, cache, rng, startup_s, longest_s, in_commit=number % 2 == 1)
            kinds[kind] += 1
            found = read_rows(cache, folder / "copy")
            wrong += sum(expected.get(key) != digest for key, digest in found.items())
            num_kept = count_features(found)
            cut += kind == "in a commit" and num_kept == (kept[-1] if kept else 0)
            kept.append(num_kept)
        done = subprocess.run(
            make_command(source), env=make_environment(cache), capture_output=True, text=True, check=True
        )
        num_forward, num_cached = map(int, done.stdout.splitlines()[-1].split())
        final = read_rows(cache, folder / "copy")
    return {
        "seed": seed,
        "rounds": num_rounds,
        "kills": kinds,
        "commits_begun_and_not_kept": cut,
        "undisturbed_extraction_s": round_figure(extraction_s),
        "rows_kept": kept,
        "rows_wrong": wrong,
        "last_run": {"forward_passes": num_forward, "from_cache": num_cached},
        "rows": count_features(expected),
        "identical": final == expected,
    }


def make_command(source: str) -> list[str]:
    return [sys.executable, __file__, source, "--extract"]


def make_environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "HEADSTART_CACHE": str(cache)}


def run_undisturbed(source: str, cache: Path) -> tuple[dict[tuple[Any, ...], bytes], float, float]:
    """Rows of a run in a fresh cache, the seconds until it began to extract, and those that extracting took."""
    began = time.perf_counter()
    child = subprocess.Popen(make_command(source), env=make_environment(cache), stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    ready = time.perf_counter()
    if child.wait():
        sys.exit("The undisturbed run failed; its message stands above.")
    ended = time.perf_counter()
    return read_rows(cache, cache.with_name("copy")), ready - began, ended - ready


def kill_once(source: str, cache: Path, rng: random.Random, startup_s: float, longest_s: float, in_commit: bool) -> str:
    """Kill a run, and say when it was hit."""
    log = cache / "features.sqlite-wal"
    child = subprocess.Popen(
        make_command(source), env=make_environment(cache), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    if in_commit:
        child.stdout.readline()
        time.sleep(rng.uniform(0, longest_s / 2))
        state = describe(log)
        while child.poll() is None and describe(log) == state:
            time.sleep(_POLL_S)
        kind = "in a commit"
    else:
        # One in ten of these falls into imports and hashing, before the cache is open.
        wait_s = rng.uniform(0, startup_s) if rng.random() < 0.1 else None
        if wait_s is None:
            child.stdout.readline()
            time.sleep(rng.uniform(0, longest_s))
        else:
            time.sleep(wait_s)
        kind = "at a random moment" if wait_s is None else "during start"
    if child.poll() is not None:
        kind = "after the end"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    return kind


def describe(path: Path) -> tuple[int, int]:
    """Size and time of the last write; the log is also written from its start again, and then does not grow."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def count_features(rows: dict[tuple[Any, ...], bytes]) -> int:
    return sum(key[0] == "features" for key in rows)


def read_rows(cache: Path, copy: Path) -> dict[tuple[Any, ...], bytes]:
    """Digests of all features and facts, read from a copy so that the cache stays as the killed process left it."""
    shutil.rmtree(copy, ignore_errors=True)
    if not cache.exists():
        return {}
    shutil.copytree(cache, copy)
    connection = sqlite3.connect(copy / "features.sqlite")
    try:
        rows: dict[tuple[Any, ...], bytes] = {}
        query = "SELECT key, picture, data FROM features JOIN recipes ON recipes.id = recipe"
        for recipe, picture, data in connection.execute(query):
            rows["features", recipe, picture] = hashlib.sha256(data).digest()
        for picture, decoder, text in connection.execute("SELECT picture, decoder, json FROM facts"):
            rows["facts", decoder, picture] = hashlib.sha256(text.encode()).digest()
        return rows
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return {}
        raise
    finally:
        connection.close()


if __name__ == "__main__":
    main()
