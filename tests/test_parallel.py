"""Order, bounds and early ends of work in threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from headstart.parallel import count_cpus, map_bounded


def test_results_come_in_order_with_their_items() -> None:
    delays = [0.01, 0.0, 0.005, 0.0, 0.002] * 10

    def work(index: int) -> int:
        time.sleep(delays[index])
        return -index

    assert list(map_bounded(work, range(50), 4)) == [(index, -index) for index in range(50)]
    assert list(map_bounded(work, [], 4)) == []


def test_what_is_under_way_is_bounded() -> None:
    drawn = 0

    def draw() -> Iterator[int]:
        nonlocal drawn
        for index in range(10_000):
            drawn = index + 1
            yield index

    for num_seen, _ in enumerate(map_bounded(lambda item: item, draw(), 2), start=1):
        assert drawn - num_seen <= 32
        if num_seen == 500:
            break
    assert drawn <= 532


def test_as_many_threads_work_at_once_as_asked_for() -> None:
    for num_threads in (1, 3):
        barrier = threading.Barrier(num_threads)  # breaks, and raises, unless that many wait at it together
        list(map_bounded(lambda _, barrier=barrier: barrier.wait(timeout=5), range(2 * num_threads), num_threads))
    names = {name for _, name in map_bounded(lambda _: threading.current_thread().name, range(50), 3)}
    assert len(names) <= 3


def test_an_error_comes_out_and_drops_what_has_not_begun() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        if item == 5:
            raise ZeroDivisionError
        return item

    seen = []

    def consume() -> None:
        for item, _ in map_bounded(work, range(1000), 2):
            seen.append(item)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert seen == [0, 1, 2, 3, 4]
    count = len(begun)
    assert count < 24  # of the 32 that wait
    time.sleep(0.05)
    assert len(begun) == count


def test_an_interrupt_in_the_consumer_stops_the_threads() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        return item

    def consume() -> None:
        for item, _ in map_bounded(work, range(1000), 2):
            if item == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    count = len(begun)
    assert count < 28  # 3 more have been put in line
    time.sleep(0.05)
    assert len(begun) == count


def test_only_the_processors_this_process_may_use_are_counted() -> None:
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert count_cpus() == 1
        finally:
            os.sched_setaffinity(0, allowed)
        assert count_cpus() == len(allowed)
