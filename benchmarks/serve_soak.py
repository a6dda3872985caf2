"""`headstart serve` over time: memory under load, files replaced and the server stopped under load, slow senders.

  soak           load from a few callers, or of `--rate` requests a second, for `--minutes`; memory every second.
                 `growth_percent` compares the means of the second and the last tenth, `slope_MB_an_hour` is that of a
                 line through all but the first
  replacements   the served file is replaced (a new file renamed over it) by the other one and back under load; every
                 answer must be one of the two classifiers', by its probabilities, and the one of its version
  stops          SIGTERM at a random moment under load, in fresh servers: every request sent in full before it must be
                 answered; requests sent after it may be refused or find no server
  slow           200 connections that say nothing, send their head or their body a byte every 5 s, and what a normal
                 caller's p99 is before and meanwhile

`MODEL` and `OTHER` are classifiers of the same classes. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from http_load import (
    Client,
    describe_times,
    load_closed,
    load_open,
    make_request,
    percentile,
    read_rss_bytes,
    run_for,
)
from measure import HEADSTART, make_parser, report, round_figure, work_folder
from serve import read_pictures, start_server

from headstart.prediction import load

_PARTS = ("soak", "replacements", "stops", "slow")


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("model", type=Path, help="classifier file")
    parser.add_argument("other", type=Path, help="another with the same classes")
    parser.add_argument("folder", help="folder with pictures below it")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--minutes", type=float, default=5, help="of the soak (default 5)")
    parser.add_argument("--most-growth", type=float, help="per cent of memory: exit code 1 where the soak shows more")
    parser.add_argument("--rate", type=float, default=0, help="of the soak; 0: four callers without pause (default)")
    parser.add_argument("--replacements", type=int, default=20)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments to stop and to send (default 0)")
    args = parser.parse_args()
    pictures = read_pictures(args.folder, enlarge=False)
    requests = [make_request("/predict", picture, "image/jpeg") for picture in pictures]
    results: dict[str, Any] = {}
    with work_folder() as folder:
        if "soak" in args.parts:
            results["soak"] = asyncio.run(soak(args, requests))
        if "replacements" in args.parts:
            results["replacements"] = asyncio.run(replace(args, pictures, requests, folder))
        if "stops" in args.parts:
            rng = np.random.default_rng(args.seed)
            stops = [asyncio.run(stop_once(args.model, requests, rng)) for _ in range(args.stops)]
            results["stops"] = {name: sum(each[name] for each in stops) for name in stops[0]}
            results["stops"]["slowest_exit_s"] = max(each["exit_s"] for each in stops)
            del results["stops"]["exit_s"]
        if "slow" in args.parts:
            results["slow"] = asyncio.run(send_slowly(args, requests))
    report(results)
    if "soak" in results and args.most_growth is not None:
        told = results["soak"]
        # A machine that is busy with other things may make the server refuse, but never be silent.
        if told["growth_percent"] > args.most_growth or set(told["answers"]) - {"200", "503"}:
            sys.exit(f"The soak grew by {told['growth_percent']} %, with the answers {told['answers']}.")


def serve(model: Path, *options: str) -> list[str]:
    return [*HEADSTART, "serve", str(model), "--port", "0", "--log", "events", *options]


async def soak(args: argparse.Namespace, requests: Sequence[bytes]) -> dict[str, Any]:
    memory: list[float] = []
    with start_server(serve(args.model)) as (pid, port):
        client = Client(port)
        until = run_for(60 * args.minutes)

        async def watch() -> None:
            while until():
                memory.append(read_rss_bytes(pid) / 1e6)
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        counts: Counter[str] = Counter()
        rng = np.random.default_rng(args.seed)
        while until():  # in pieces, so that the client itself keeps no long list
            end = time.perf_counter() + 10
            if args.rate:
                load = await load_open(client, requests, args.rate, 10, rng)
            else:
                load = await load_closed(client, requests, 4, lambda end=end: until() and time.perf_counter() < end)  # type: ignore[misc]
            counts.update(load.count())
        await watching
        client.close()
    tenth = len(memory) // 10
    later = np.array(memory[tenth:])
    slope = np.polyfit(np.arange(len(later)), later, 1)[0]
    early, late = np.mean(memory[tenth : 2 * tenth]), np.mean(memory[-tenth:])
    return {
        "minutes": args.minutes,
        "rate": args.rate or "four callers without pause",
        "answers": dict(counts),
        "memory_MB": {
            "at_start": round_figure(memory[0]),
            "second_tenth": round_figure(float(early)),
            "last_tenth": round_figure(float(late)),
            "peak": round_figure(max(memory)),
        },
        "growth_percent": round_figure(100 * (float(late / early) - 1)),
        "slope_MB_an_hour": round_figure(float(slope) * 3600),
    }


async def replace(
    args: argparse.Namespace, pictures: Sequence[bytes], requests: Sequence[bytes], folder: Path
) -> dict[str, Any]:
    """Version 1 is `model`, 2 `other`, 3 `model` again, and so on."""
    expected = [[load(file).predict(picture).probs for picture in pictures] for file in (args.model, args.other)]
    served = folder / "served.onnx"
    shutil.copy(args.model, served)
    seen: Counter[str] = Counter()
    wrong = 0
    is_done = False
    with start_server(serve(served, "--reload", "0.2")) as (pid, port):
        client = Client(port)
        loading = asyncio.create_task(load_closed(client, requests, 6, lambda: not is_done))
        memory = []
        for number in range(args.replacements):
            await asyncio.sleep(2)
            memory.append(read_rss_bytes(pid) / 1e6)
            shutil.copy((args.other, args.model)[number % 2], folder / "new.onnx")
            os.replace(folder / "new.onnx", served)
        await asyncio.sleep(3)
        memory.append(read_rss_bytes(pid) / 1e6)
        is_done = True
        load_done = await loading
        client.close()
    for outcome in load_done.outcomes:
        if outcome.status != 200:
            continue
        answer = json.loads(outcome.body)
        seen[answer["version"]] += 1
        told = answer["predictions"][0]["probabilities"]
        probs = expected[(int(answer["version"]) - 1) % 2][outcome.number]
        wrong += sorted(told.values()) != sorted(map(float, probs))
    return {
        "replacements": args.replacements,
        "versions_seen": len(seen),
        "answers": load_done.count(),
        "answers_of_neither_or_of_another_version": wrong,
        "memory_MB": [round_figure(value) for value in memory],
    }


async def stop_once(model: Path, requests: Sequence[bytes], rng: np.random.Generator) -> dict[str, Any]:
    command = serve(model)
    with start_server(command) as (pid, port):
        client = Client(port)
        loading = asyncio.create_task(load_closed(client, requests, 12, run_for(4)))
        await asyncio.sleep(1 + rng.uniform(0, 1))
        stopped = time.perf_counter()
        os.kill(pid, signal.SIGTERM)
        done = await loading
        client.close()
        while _is_running(pid) and time.perf_counter() < stopped + 40:
            await asyncio.sleep(0.01)
        exit_s = time.perf_counter() - stopped
    before = [outcome for outcome in done.outcomes if outcome.began_s < stopped]
    under_way = [outcome for outcome in before if outcome.began_s + outcome.seconds >= stopped]
    after = [outcome for outcome in done.outcomes if outcome.began_s >= stopped]
    return {
        "sent_before": len(before),
        "under_way": len(under_way),
        "under_way_answered_200": sum(outcome.status == 200 for outcome in under_way),
        "before_refused_503": sum(outcome.status == 503 for outcome in before),
        "before_without_answer": sum(outcome.status <= 0 for outcome in before),
        "after_answered": sum(outcome.status > 0 for outcome in after),
        "after_closed_without_answer": sum(outcome.status == 0 for outcome in after),
        "exit_s": round_figure(exit_s),
    }


def _is_running(pid: int) -> bool:
    """Not so for a process that has ended and waits for its parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def send_slowly(args: argparse.Namespace, requests: Sequence[bytes]) -> dict[str, Any]:
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    kinds = {"silence": b"", "head": b"", "body": head + b"Content-Length: 1000\r\n\r\n"}
    ended: dict[str, list[float]] = {kind: [] for kind in kinds}

    async def be_slow(kind: str, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.perf_counter()
        writer.write(kinds[kind])
        reading = asyncio.create_task(reader.read())
        sent = 0
        while not reading.done() and time.perf_counter() < began + 60:
            if kind != "silence":
                writer.write(b"x" if kind == "body" else head[sent : sent + 1])
                sent += 1
            await asyncio.wait([reading], timeout=5)
        if reading.done():
            ended[kind].append(time.perf_counter() - began)
            reading.exception()
        reading.cancel()
        writer.close()

    with start_server(serve(args.model)) as (pid, port):
        client = Client(port)
        rng = np.random.default_rng(args.seed)
        await load_open(client, requests, 20, 3, rng)
        before = await load_open(client, requests, 20, 30, rng)
        memory = read_rss_bytes(pid)
        slow = [asyncio.create_task(be_slow(kind, port)) for kind in ("silence", "head", "body") for _ in range(67)]
        await asyncio.sleep(0.5)
        meanwhile = await load_open(client, requests, 20, 32, rng)
        await asyncio.gather(*slow, return_exceptions=True)
        after = await load_open(client, requests, 20, 30, rng)
        grown = read_rss_bytes(pid) - memory
        client.close()
    usual = percentile(before.get_seconds() + after.get_seconds(), 99)
    return {
        "connections": len(slow),
        "closed": {kind: len(found) for kind, found in ended.items()},
        "closed_after_s": {kind: round_figure(max(found, default=float("nan"))) for kind, found in ended.items()},
        "normal_before": describe_times(before.get_seconds()),
        "normal_meanwhile": describe_times(meanwhile.get_seconds()),
        "normal_after": describe_times(after.get_seconds()),
        "p99_of_usual": round_figure(percentile(meanwhile.get_seconds(), 99) / usual),
        "not_200": {name: count for name, count in meanwhile.count().items() if name != "200"},
        "memory_grown_MB": round_figure(grown / 1e6),
    }


if __name__ == "__main__":
    main()
