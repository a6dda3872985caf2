"""Order, bounds and early ends of work in threads."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.errors import ConfigError
from headstart.parallel import count_cpus, map_bounded, read_cpu_quota


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


def test_only_the_processors_this_process_may_use_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSTART_THREADS", raising=False)
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert count_cpus() == 1
        finally:
            os.sched_setaffinity(0, allowed)
        assert count_cpus() == len(allowed)


# Control groups


def write_groups(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


QUOTAS = {
    "no limit": ("0::/a\n", {"a/cpu.max": "max 100000\n"}, math.inf),
    "one group": ("0::/a\n", {"a/cpu.max": "150000 100000\n"}, 1.5),
    "the group above is tighter": ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 0.5),
    "the group below is tighter": ("0::/a/b\n", {"a/cpu.max": "max 100000\n", "a/b/cpu.max": "200000 100000\n"}, 2.0),
    "inside a container": ("0::/\n", {"cpu.max": "300000 100000\n"}, 3.0),
    "a container with the host's names": ("0::/docker/123\n", {"cpu.max": "300000 100000\n"}, 3.0),
    "outside of what is seen": ("0::/../b\n", {"cpu.max": "300000 100000\n", "../b/cpu.max": "1 100000\n"}, 3.0),
    "no files": ("0::/a\n", {}, math.inf),
    "not numbers": ("0::/a\n", {"a/cpu.max": "much\n"}, math.inf),
    "version 1": (
        "5:devices:/x\n4:cpu,cpuacct:/a\n",
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "version 1 alone, nested": (
        "1:cpu:/a/b\n",
        {
            "cpu/a/cpu.cfs_quota_us": "100000\n",
            "cpu/a/cpu.cfs_period_us": "100000\n",
            "cpu/a/b/cpu.cfs_quota_us": "-1\n",
            "cpu/a/b/cpu.cfs_period_us": "100000\n",
        },
        1.0,
    ),
    "both versions": (
        "3:cpuset:/\n1:cpu:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n", "unified/cpu.max": "70000 20000\n"},
        3.5,
    ),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_the_quota_of_control_groups(case: str, tmp_path: Path) -> None:
    membership, files, expected = QUOTAS[case]
    mounts = write_groups(tmp_path / "mounts", files)
    found = tmp_path / "cgroup"
    found.write_text(membership)
    assert read_cpu_quota(mounts, found) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert read_cpu_quota(tmp_path, tmp_path / "none") == math.inf


def test_the_environment_overrules_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_THREADS", "37")
    assert count_cpus() == 37
    for wrong in ("0", "-2", "2.5", "all"):
        monkeypatch.setenv("HEADSTART_THREADS", wrong)
        with pytest.raises(ConfigError, match=f"HEADSTART_THREADS is '{wrong}'. Expected a whole number above 0"):
            count_cpus()
