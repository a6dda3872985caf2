"""What `headstart serve` costs over the work itself: pictures a second, latency at half load, ten times its load.

Measured in turn, on the same pictures in memory, each side in a process of its own:
  bare     decoding and ONNX Runtime in a loop, in as many threads as the server has workers; no HTTP
  plain    a FastAPI endpoint that takes an upload, decodes it with Pillow and runs the same file, in one thread
           (serve_plain.py)
  ours     `headstart serve`, one picture a request as the raw body
The client (http_load.py) shares the processors with the servers; `client_cpu_ms_a_request` is what it takes from them.
`of_bare` is ours / bare, `of_bare_without_client` counts the client's time as if it had been the server's,
`of_bare_by_processor_time` is what stays true while others use the machine.

Then: Poisson arrivals at half of what ours bore, and at ten times that. There `lost` counts requests without any
answer, and refusals are timed. Memory is that of the server's process.

Needs fastapi, uvicorn and python-multipart beside headstart[serve].
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from http_load import (
    Client,
    Load,
    describe_times,
    load_closed,
    load_open,
    make_request,
    read_cpu_s,
    read_rss_bytes,
    run_for,
)
from measure import HEADSTART, make_parser, report, round_figure, summarize, work_folder

_NUM_PICTURES = 200
_BOUNDARY = "headstart-benchmark"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", help="classifier file")
    parser.add_argument("folder", help=f"folder with pictures below it; {_NUM_PICTURES} of them are taken")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default 10)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads of bare and ours")
    parser.add_argument("--connections", type=int, default=8, help="callers at full load (default 8)")
    parser.add_argument("--overload", type=float, default=10, help="times the load it bears (default 10)")
    parser.add_argument("--phone", action="store_true", help="enlarge the pictures to 4000 x 3000 pixels first")
    parser.add_argument("--bare", action="store_true", help="only the bare loop (used by the run)")
    args = parser.parse_args()
    if args.bare:
        run_bare(args)
        return
    os.environ["HEADSTART_THREADS"] = str(args.workers)
    with work_folder():
        report(asyncio.run(measure(args)))


def read_pictures(folder: str, enlarge: bool) -> list[bytes]:
    """Up to 200 pictures, evenly from all below the folder."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        sys.exit(f"There are no pictures in {folder}.")
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, min(_NUM_PICTURES, len(paths))).astype(int)]
    if not enlarge:
        return [path.read_bytes() for path in chosen]
    from PIL import Image

    large = []
    for path in chosen[:20]:
        stream = io.BytesIO()
        Image.open(path).convert("RGB").resize((4000, 3000)).save(stream, "JPEG", quality=85)
        large.append(stream.getvalue())
    return large


def run_bare(args: argparse.Namespace) -> None:
    """Print pictures a second in `--workers` threads, and the seconds of single pictures in one."""
    from headstart.decode import decode_image
    from headstart.prediction import load

    pictures = read_pictures(args.folder, args.phone)
    classifier = load(args.model)
    min_side_px = 2 * int(classifier.metadata.preprocess["input_size_px"])

    def predict(index: int) -> None:
        classifier.run_all(decode_image(pictures[index % len(pictures)], min_side_px=min_side_px).pixels)

    def time_one(index: int) -> float:
        began = time.perf_counter()
        predict(index)
        return time.perf_counter() - began

    predict(0)
    single = [time_one(index) for index in range(min(len(pictures), 100))]
    counts = [0] * args.workers
    end = time.perf_counter() + args.seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            predict(number + args.workers * counts[number])
            counts[number] += 1

    began, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(args.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"rate": sum(counts) / seconds, "cpu_s": cpu_s / sum(counts), "single_s": single}))


@contextmanager
def start_server(command: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Process id and port of a server that prints its address once it is ready."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if found := re.search(r"http://[^\s/]+:(\d+)", line):
                yield child.pid, int(found[1])
                break
        else:
            sys.exit(f"The server did not start: {' '.join(command)}")
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def wrap_multipart(picture: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    return head.encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    pictures = read_pictures(args.folder, args.phone)
    raw = [make_request("/predict", picture, "image/jpeg") for picture in pictures]
    form = f"multipart/form-data; boundary={_BOUNDARY}"
    uploads = [make_request("/predict", wrap_multipart(picture), form) for picture in pictures]
    again = [sys.executable, __file__, args.model, args.folder, "--seconds", str(args.seconds)]
    again += ["--workers", str(args.workers), *(["--phone"] if args.phone else [])]
    serve_plain = [sys.executable, str(Path(__file__).with_name("serve_plain.py")), args.model]
    serve = [*HEADSTART, "serve", args.model, "--port", "0"]
    with start_server(serve_plain) as plain, start_server(serve) as ours:
        rounds: dict[str, list[dict[str, float]]] = {"bare": [], "plain": [], "ours": []}
        for server, requests in ((plain, uploads), (ours, raw)):  # both warm
            await load_full(server, requests, 2.0, args.connections)
        for _ in range(args.repeats):
            done = subprocess.run([*again, "--bare"], capture_output=True, text=True, check=True)
            rounds["bare"].append(json.loads(done.stdout))
            for name, server, requests in (("plain", plain, uploads), ("ours", ours, raw)):
                rounds[name].append(await load_full(server, requests, args.seconds, args.connections))
        single_s = [second for each in rounds["bare"] for second in each.pop("single_s")]  # type: ignore[misc, attr-defined]
        bearable = statistics.median(each["rate"] for each in rounds["ours"])
        half = [await load_half(ours[1], raw, bearable / 2, args.seconds, seed) for seed in range(args.repeats)]
        overload = await load_over(ours, raw, bearable, args)
    bare_s = statistics.median(single_s)
    return {
        "pictures": {
            "count": len(pictures),
            "mean_kB": round_figure(statistics.mean(map(len, pictures)) / 1000),
            "bare_ms_of_one": {
                "median": round_figure(1000 * bare_s),
                "p99": round_figure(1000 * float(np.percentile(single_s, 99))),
            },
        },
        "pictures_a_second": {name: summarize([each["rate"] for each in found]) for name, found in rounds.items()},
        "cpu_ms_a_picture": {
            name: summarize([1000 * each["cpu_s"] for each in found]) for name, found in rounds.items()
        },
        "client_cpu_ms_a_request": summarize([1000 * each["client_cpu_s"] for each in rounds["ours"]]),
        "of_bare": compare(rounds, "bare"),
        "of_bare_without_client": summarize(
            [
                mine["rate"] * (1 + mine["client_cpu_s"] / mine["cpu_s"]) / bare["rate"]
                for mine, bare in zip(rounds["ours"], rounds["bare"], strict=True)
            ]
        ),
        "of_bare_by_processor_time": summarize(
            [bare["cpu_s"] / mine["cpu_s"] for mine, bare in zip(rounds["ours"], rounds["bare"], strict=True)]
        ),
        "of_plain": compare(rounds, "plain"),
        "half_load": {
            "rate": round_figure(bearable / 2),
            "answers": [each.count() for each in half],
            "p99_of_bare_median": summarize([float(np.percentile(each.get_seconds(), 99)) / bare_s for each in half]),
            "latency": [describe_times(each.get_seconds()) for each in half],
        },
        "overload": overload,
    }


def compare(rounds: dict[str, list[dict[str, float]]], other: str) -> dict[str, float]:
    """Ours / the other's rate, round by round."""
    return summarize([mine["rate"] / its["rate"] for mine, its in zip(rounds["ours"], rounds[other], strict=True)])


async def load_full(
    server: tuple[int, int], requests: Sequence[bytes], seconds: float, num_connections: int
) -> dict[str, float]:
    """Rate, and processor seconds a picture of the server and of the client."""
    pid, port = server
    client = Client(port)
    cpu = read_cpu_s(pid)
    load = await load_closed(client, requests, num_connections, run_for(seconds))
    cpu = read_cpu_s(pid) - cpu
    client.close()
    if set(load.count()) != {"200"}:
        sys.exit(f"At full load the server answered {load.count()}.")
    num = len(load.outcomes)
    return {"rate": load.rate, "cpu_s": cpu / num, "client_cpu_s": load.client_cpu_s / num}


async def load_half(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> Load:
    client = Client(port)
    load = await load_open(client, requests, rate, seconds, np.random.default_rng(seed))
    client.close()
    return load


async def load_over(
    server: tuple[int, int], requests: Sequence[bytes], bearable: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Several stretches of too much; memory after each."""
    pid, port = server
    memory, loads = [read_rss_bytes(pid)], []
    stop = asyncio.Event()
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, read_rss_bytes(pid))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    for seed in range(args.repeats):
        client = Client(port)
        rng = np.random.default_rng(seed)
        loads.append(await load_open(client, requests, args.overload * bearable, args.seconds, rng))
        client.close()
        await asyncio.sleep(1)
        memory.append(read_rss_bytes(pid))
    stop.set()
    await watching
    return {
        "times_the_load": args.overload,
        "asked_a_second": [round_figure(len(load.outcomes) / load.seconds) for load in loads],
        "answers": [load.count() for load in loads],
        "lost": sum(outcome.status <= 0 for load in loads for outcome in load.outcomes),
        "pictures_a_second": [round_figure(load.rate) for load in loads],
        "latency_of_200": [describe_times(load.get_seconds(200)) for load in loads],
        "latency_of_503": [describe_times(load.get_seconds(503)) for load in loads],
        "client_cpu_share": [round_figure(load.client_cpu_s / load.seconds) for load in loads],
        "memory_MB": {
            "before_and_after_each": [round_figure(value / 1e6) for value in memory],
            "peak": round_figure(peak / 1e6),
        },
    }


if __name__ == "__main__":
    main()
