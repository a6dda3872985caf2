"""Work in threads, with a bounded number of items under way; what those who wait are told."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total is 0 where it is not known."""

_IN_FLIGHT_PER_THREAD = 16


def count_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
