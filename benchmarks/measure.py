"""What the benchmarks share: arguments, a folder of their own, medians with spread, and the one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What the console script `headstart` does, with this interpreter.
HEADSTART = [sys.executable, "-c", "from headstart.cli import main; main()"]

_NOTE = "Other work may share this machine: trust ratios within a run more than seconds."


def make_parser(description: str | None, repeats: int | None = 3) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats:
        parser.add_argument("--repeats", type=int, default=repeats, help=f"how often to measure (default {repeats})")
    return parser


@contextmanager
def work_folder() -> Iterator[Path]:
    """A temporary folder, removed at the end, with an empty feature cache in it. TMPDIR says where."""
    before = os.environ.get("HEADSTART_CACHE")
    with tempfile.TemporaryDirectory(prefix="headstart-benchmark-") as name:
        os.environ["HEADSTART_CACHE"] = str(Path(name) / "cache")
        try:
            yield Path(name)
        finally:
            os.environ.pop("HEADSTART_CACHE")
            if before is not None:
                os.environ["HEADSTART_CACHE"] = before


def run_headstart(*arguments: str | Path) -> float:
    """Seconds that the command took from start to exit; its messages are shown only when it fails."""
    began = time.perf_counter()
    done = subprocess.run([*HEADSTART, *map(str, arguments)], capture_output=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"headstart {shlex.join(map(str, arguments))} failed:\n{done.stderr.decode(errors='replace')}")
    return seconds


def read_run(output: Path) -> dict[str, Any]:
    """run.json of a training that wrote `output`."""
    run: dict[str, Any] = json.loads(output.with_suffix(".evaluation").joinpath("run.json").read_text())
    return run


def summarize(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least, greatest and number of repeated measurements, rounded to `digits` significant digits."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {**{name: round_figure(value, digits) for name, value in figures.items()}, "n": len(values)}


def round_figure(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def list_versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def report(results: dict[str, Any]) -> None:
    """Print everything as one JSON object: how it was run, on what, and the results."""
    document = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "versions": list_versions("headstart", "onnxruntime", "numpy", "pillow"),
        "machine": {
            "cpu": _find_cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "note": _NOTE,
        **results,
    }
    print(json.dumps(document, indent=2))


def _find_cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
