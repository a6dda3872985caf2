"""Work in threads, with a bounded number of items under way; what those who wait are told."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from headstart.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total is 0 where it is not known."""

_IN_FLIGHT_PER_THREAD = 16


def count_cpus() -> int:
    """Processors that this process may use: by its affinity, and by the CPU quota of its control groups, rounded up.

    Rounded up, because threads that are one too many wait a little, and one too few leave time unused.
    HEADSTART_THREADS overrules both. Raises ConfigError where that is not a whole number above 0.
    """
    if chosen := os.environ.get("HEADSTART_THREADS"):
        if not chosen.isdecimal() or not int(chosen):
            raise ConfigError(f"HEADSTART_THREADS is {chosen!r}. Expected a whole number above 0, or nothing.")
        return int(chosen)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, read_cpu_quota())))


def read_cpu_quota(mounts: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """How many processors' time Linux' control groups leave to this process; infinite without a limit.

    `membership` names its groups, `mounts` is the folder where both versions lie. A group's limit holds for all below
    it, so the least of them all counts. Inside a container the names may be those of the host, of which only the
    mount's own root is seen.
    """
    try:
        lines = membership.read_text().splitlines()
    except (OSError, ValueError):  # not Linux
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, _, line = line.partition(":")
        controllers, _, path = line.partition(":")
        if not controllers:
            roots = [mounts, mounts / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [mounts / controllers, mounts / "cpu"]
        else:
            continue
        names = [name for name in path.split("/") if name]
        if ".." in names:  # it lies outside of what this process sees
            names = []
        groups = [root.joinpath(*names[:depth]) for root in roots for depth in range(len(names) + 1)]
        quotas += [_read_quota(group) for group in groups]
    return min(quotas)


def _read_quota(group: Path) -> float:
    """Of one group: version 2 has `cpu.max`, version 1 two files; `max` or a value below 0 is no limit."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota != "max" and int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return math.inf


def map_bounded(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[tuple[Item, Result]]:
    """Items with their results, in order. An interrupt or error drops what has not begun."""
    waiting: collections.deque[tuple[Item, Future[Result]]] = collections.deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) >= _IN_FLIGHT_PER_THREAD * num_threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
