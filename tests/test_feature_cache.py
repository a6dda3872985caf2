"""The cache file under damage, limits, other processes and folders that cannot be used."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import headstart
from headstart.errors import ConfigError, HeadstartError
from headstart.feature_cache import FeatureCache, clear_cache, get_cache_file, parse_size

KEYS = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(600)]
DAY_S = 86_400


def make_rows(keys: Sequence[str], size: int = 100) -> list[tuple[str, np.ndarray]]:
    """A row's values depend on its key only."""
    return [(key, np.random.default_rng(int(key[:8], 16)).normal(size=size).astype(np.float16)) for key in keys]


def fill(keys: Sequence[str], size: int = 100) -> int:
    with FeatureCache() as cache:
        recipe = cache.get_recipe("key", "name")
        cache.add_features(recipe, make_rows(keys, size))
        cache.add_facts(1, [(key, f'{{"of": "{key}"}}') for key in keys])
    return recipe


def run_sql(statement: str, *values: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(get_cache_file())
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def assert_serves_all(keys: Sequence[str], size: int = 100) -> set[str]:
    """Use the cache as an extraction does. Whatever is found must be right; returns what was found."""
    with FeatureCache() as cache:
        recipe = cache.get_recipe("key", "name")
        facts = cache.read_facts(1, keys)
        assert all(facts[key] == f'{{"of": "{key}"}}' for key in facts)
        found = cache.find_features(recipe, keys)
        cache.add_features(recipe, make_rows([key for key in keys if key not in found], size))
        rows = cache.read_features(recipe, keys)
        assert rows.tobytes() == b"".join(values.tobytes() for _, values in make_rows(keys, size))
        cache.measure_usage()
    return found & facts.keys()


# What is kept comes back


def test_rows_come_back_in_the_order_asked_for() -> None:
    fill(KEYS)
    with FeatureCache() as cache:
        recipe = cache.get_recipe("key", "name")
        assert cache.find_features(recipe, [*KEYS, "ab" * 32]) == set(KEYS)
        order = [*reversed(KEYS), KEYS[7], KEYS[7]]
        rows = cache.read_features(recipe, order)
        assert rows.dtype == np.float16
        expected = {key: values for key, values in make_rows(KEYS)}
        for key, row in zip(order, rows, strict=True):
            np.testing.assert_array_equal(row, expected[key])
        assert cache.read_facts(1, [KEYS[3], "ab" * 32]) == {KEYS[3]: f'{{"of": "{KEYS[3]}"}}'}


def test_recipes_and_decoders_are_kept_apart() -> None:
    recipe = fill(KEYS[:5])
    with FeatureCache() as cache:
        assert cache.get_recipe("key", "name") == recipe
        other = cache.get_recipe("other key", "name")
        assert other != recipe
        assert cache.find_features(other, KEYS[:5]) == set()
        assert cache.read_facts(2, KEYS[:5]) == {}


def test_a_row_that_is_replaced_is_there_once() -> None:
    recipe = fill(KEYS[:5])
    with FeatureCache() as cache:
        cache.add_features(recipe, [(KEYS[0], np.ones(100, np.float16))])
        assert (cache.read_features(recipe, KEYS[:1]) == 1).all()
        assert [(usage.name, usage.num_pictures, usage.size_bytes) for usage in cache.measure_usage()] == [
            ("name", 5, 5 * 200)
        ]


def test_a_missing_row_is_told() -> None:
    fill(KEYS[:5])
    with FeatureCache() as cache:
        recipe = cache.get_recipe("key", "name")
        for keys in (KEYS[:6], KEYS[10:11], [KEYS[0], KEYS[0], KEYS[20]]):
            with pytest.raises(HeadstartError, match=r"vanished from the cache .* Run the command again"):
                cache.read_features(recipe, keys)


# Damage


def test_a_flipped_byte_in_a_row_makes_that_row_missing() -> None:
    recipe = fill(KEYS[:20])
    data = run_sql("SELECT data FROM features WHERE picture = ?", bytes.fromhex(KEYS[4]))[0][0]
    assert isinstance(data, bytes)
    damaged = data[:57] + bytes([data[57] ^ 8]) + data[58:]
    run_sql("UPDATE features SET data = ? WHERE picture = ?", damaged, bytes.fromhex(KEYS[4]))
    run_sql("UPDATE facts SET json = replace(json, 'of', 'on') WHERE picture = ?", bytes.fromhex(KEYS[5]))
    with FeatureCache() as cache:
        assert cache.find_features(recipe, KEYS[:20]) == {*KEYS[:20]} - {KEYS[4]}
        assert cache.read_facts(1, KEYS[:20]).keys() == {*KEYS[:20]} - {KEYS[5]}
    assert_serves_all(KEYS[:20])
    assert assert_serves_all(KEYS[:20]) == {*KEYS[:20]} - {KEYS[5]}


@pytest.mark.parametrize("content", [b"", b"x" * 4096, b"SQLite format 3\0" + b"\xff" * 50_000])
def test_a_file_that_is_no_database_is_begun_anew(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    get_cache_file().write_bytes(content)
    assert assert_serves_all(KEYS[:20]) == set()
    assert ("is damaged" in caplog.text) == bool(content)
    assert run_sql("PRAGMA integrity_check") == [("ok",)]


def test_damage_in_the_header_is_told_and_the_file_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    fill(KEYS[:20])
    with get_cache_file().open("r+b") as file:
        file.write(random.Random(1).randbytes(100))
    assert assert_serves_all(KEYS[:20]) == set()
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == (
        f"The feature cache {get_cache_file()} is damaged (file is not a database) and is begun anew."
    )


def test_damage_met_while_reading_begins_the_file_anew(caplog: pytest.LogCaptureFixture) -> None:
    """Every page behind the schema is lost: the file opens, and the first query fails."""
    fill(KEYS, size=2000)
    content = get_cache_file().read_bytes()
    pages = len(content) // 32768
    get_cache_file().write_bytes(content[: 4 * 32768] + b"\x55" * 32768 * (pages - 4))
    assert len(assert_serves_all(KEYS, size=2000)) < 600
    assert "(database disk image is malformed) and is begun anew" in caplog.text
    assert_serves_all(KEYS, size=2000)
    assert run_sql("PRAGMA integrity_check") == [("ok",)]


def test_rows_that_changed_places_are_missing() -> None:
    """The checksum covers the picture's hash: a damaged index cannot give one picture the features of another."""
    recipe = fill(KEYS[:6])
    first, second = (bytes.fromhex(key) for key in KEYS[:2])
    run_sql("UPDATE features SET picture = x'00' WHERE picture = ?", first)
    run_sql("UPDATE features SET picture = ? WHERE picture = ?", first, second)
    run_sql("UPDATE features SET picture = ? WHERE picture = x'00'", second)
    with FeatureCache() as cache:
        assert cache.find_features(recipe, KEYS[:6]) == set(KEYS[2:6])


def test_a_file_with_other_tables_is_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    run_sql("CREATE TABLE features (other TEXT)")
    assert assert_serves_all(KEYS[:20]) == set()
    with FeatureCache() as cache:
        assert cache.find_features(cache.get_recipe("key", "name"), KEYS) == set(KEYS[:20])
    assert "is begun anew" in caplog.text


@pytest.mark.parametrize("use", ["find_features", "read_facts", "add_features", "measure_usage", "evict"])
def test_each_use_survives_damage_and_recipes_keep_their_numbers(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(KEYS, size=2000)
    with FeatureCache() as cache:
        cache.get_recipe("first", "x")
        recipe = cache.get_recipe("second", "x")
    content = get_cache_file().read_bytes()
    with FeatureCache() as cache:
        assert cache.get_recipe("second", "x") == recipe
        cache.limit_bytes = 1000 if use == "evict" else 10**9
        get_cache_file().write_bytes(content[:32768] + b"\x55" * (len(content) - 32768))
        row = (KEYS[0], np.ones(3, np.float16))
        arguments = {
            "find_features": (recipe, KEYS),
            "read_facts": (1, KEYS),
            "add_features": (recipe, [row]),
            "measure_usage": (),
            "evict": (),
        }[use]
        getattr(cache, use)(*arguments)
        cache.limit_bytes = 10**9
        cache.add_features(recipe, [row])
        assert (cache.read_features(recipe, KEYS[:1]) == 1).all()
    with FeatureCache() as cache:
        assert cache.get_recipe("second", "x") == recipe
        assert cache.find_features(cache.get_recipe("third", "x"), KEYS[:1]) == set()
        assert cache.find_features(recipe, KEYS[:1]) == {KEYS[0]}


def test_damage_anywhere_never_gives_a_wrong_row_or_another_error() -> None:
    fill(KEYS[:100], size=1500)
    content = get_cache_file().read_bytes()
    rng = random.Random(3)
    num_lossy = 0
    for _ in range(60):
        damaged = bytearray(content)
        kind = rng.choice(["flip", "flip", "block", "cut"])
        if kind == "flip":  # near the start of a page, where its tables of cells are
            page = rng.randrange(len(damaged) // 32768)
            damaged[page * 32768 + rng.choice([rng.randrange(120), rng.randrange(32768)])] ^= 1 << rng.randrange(8)
        elif kind == "block":
            start = rng.randrange(len(damaged) - 500)
            damaged[start : start + 500] = rng.randbytes(500)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        clear_cache()
        get_cache_file().write_bytes(damaged)
        try:
            num_lossy += len(assert_serves_all(KEYS[:100], size=1500)) < 100
        except HeadstartError:  # a row was found, and gone when it was to be read: "Run the command again"
            assert_serves_all(KEYS[:100], size=1500)
    assert num_lossy > 20


# Folders and limits


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "features.sqlite").mkdir(parents=True)
    for folder in (tmp_path / "file" / "cache", tmp_path / "taken", Path("/proc/headstart")):
        monkeypatch.setenv("HEADSTART_CACHE", str(folder))
        with pytest.raises(HeadstartError) as caught:
            FeatureCache()
        text = str(caught.value)
        assert text.startswith(f"The cache {folder / 'features.sqlite'} cannot be used: ")
        assert text.endswith("Name a folder that can be written with the environment variable HEADSTART_CACHE.")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    tmp_path.chmod(0o500)
    with pytest.raises(HeadstartError, match="HEADSTART_CACHE"):
        FeatureCache()


def test_a_full_disk_is_told() -> None:
    with FeatureCache() as cache:
        recipe = cache.get_recipe("key", "name")
        pages = cache.connection.execute("PRAGMA page_count").fetchone()[0]
        cache.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(HeadstartError, match="cannot be used: database or disk is full"):
            cache.add_features(recipe, make_rows(KEYS, 1000))
        cache.add_features(recipe, make_rows(KEYS[:5]))  # the failed write was rolled back whole
        assert cache.find_features(recipe, KEYS) == set(KEYS[:5])


def test_an_interrupt_while_writing_leaves_no_transaction_behind() -> None:
    fill(KEYS[10:20])

    def interrupt() -> Iterator[tuple[object, ...]]:
        yield (bytes.fromhex(KEYS[0]), 1, "half")
        raise KeyboardInterrupt

    with FeatureCache() as cache:
        recipe = cache.get_recipe("key", "name")
        with pytest.raises(KeyboardInterrupt):
            cache._write("INSERT INTO facts (picture, decoder, json) VALUES (?, ?, ?)", interrupt())  # type: ignore[arg-type]
        cache.add_features(recipe, make_rows(KEYS[:5]))
    assert run_sql("SELECT COUNT(*) FROM facts") == [(10,)]
    assert run_sql("SELECT COUNT(*) FROM features") == [(15,)]


def test_over_the_limit_the_least_recently_used_rows_go(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [hashlib.sha256(f"{index}".encode()).hexdigest() for index in range(2000)]
    recipe = fill(keys, size=5000)  # 20 MB
    run_sql(f"UPDATE features SET used_s = used_s - {2 * DAY_S}")
    run_sql(f"UPDATE features SET used_s = used_s - {8 * DAY_S} WHERE id <= 700")
    size = get_cache_file().stat().st_size
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", "1GB")
    with FeatureCache() as cache:
        assert cache.find_features(recipe, keys[:300]) == set(keys[:300])  # used again today
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", f"{size * 0.9 / 1e6:.2f}MB")
    with FeatureCache() as cache:
        pass
    with FeatureCache() as cache:
        left = cache.find_features(recipe, keys)
        assert cache.measure_size() <= 0.9 * cache.limit_bytes
        assert not left & set(keys[300:700])
        assert set(keys[:300]) <= left
        assert len(left) == 1500  # they go by 500, the oldest first
        assert cache.evict() == 0
    assert get_cache_file().stat().st_size < 0.85 * size


def test_below_the_limit_nothing_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    fill(KEYS, size=1000)
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", f"{get_cache_file().stat().st_size + 100_000}")
    assert assert_serves_all(KEYS, size=1000) == set(KEYS)
    assert assert_serves_all(KEYS, size=1000) == set(KEYS)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("3k", 3000),
        ("500MB", 500 * 10**6),
        (" 20 GB ", 20 * 10**9),
        ("1.5tb", 1_500_000_000_000),
        ("2g", 2 * 10**9),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MB", "-1GB", "1e9", "10 GiB", "ten", "1,5GB", "5PB", "nan", "20GB free"])
def test_what_is_no_size_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    expected = f"A cache limit of {text!r} is not a size. Write a number with MB, GB or TB, such as 20GB."
    assert str(caught.value) == expected
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match="is not a size"):
        FeatureCache()


def test_clearing_frees_what_was_there() -> None:
    assert clear_cache() == 0
    fill(KEYS)
    size = get_cache_file().stat().st_size
    assert clear_cache() == size
    assert list(get_cache_file().parent.iterdir()) == []
    assert assert_serves_all(KEYS) == set()


# Several processes


def make_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parents[1])}


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_feature_cache import KEYS, make_rows
from headstart.feature_cache import FeatureCache
print("ready", flush=True)
sys.stdin.readline()
with FeatureCache() as cache:
    recipe = cache.get_recipe("key", "name")
    for start in range(int(sys.argv[2]), 600, 4):
        cache.add_features(recipe, make_rows(KEYS[start : start + 8]))
        cache.add_facts(1, [(key, f'{{"of": "{key}"}}') for key in KEYS[start : start + 8]])
        assert cache.find_features(recipe, KEYS[start : start + 8]) == set(KEYS[start : start + 8])
"""


ENDLESS_WRITER = """
import hashlib, sys
import numpy as np
from headstart.feature_cache import FeatureCache
with FeatureCache() as cache:
    recipe = cache.get_recipe("key", "name")
    cache.connection.execute("PRAGMA cache_size = 8")  # so that pages reach the file long before the commit
    row, number = np.ones(100, np.float16), 0
    while True:
        keys = [hashlib.sha256(f"{number} {index}".encode()).hexdigest() for index in range(1000)]
        cache.add_features(recipe, [(key, row) for key in keys])
        print("committed", flush=True)
        number += 1
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_kill_while_writing_leaves_whole_commits() -> None:
    """Commits of 1000 rows into all pages of the index: nearly every kill comes in the middle of one."""
    rng = random.Random(0)
    for _ in range(6):
        command = [sys.executable, "-c", ENDLESS_WRITER]
        writer = subprocess.Popen(command, env=make_environment(), stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "committed\n"
        time.sleep(rng.uniform(0.02, 0.1))
        writer.kill()
        output, _ = writer.communicate(timeout=30)
        assert run_sql("PRAGMA integrity_check") == [("ok",)]
        count = run_sql("SELECT COUNT(*) FROM features WHERE used_s > 0")[0][0]
        assert isinstance(count, int)
        assert count % 1000 == 0
        assert count >= 1000 * (1 + output.count("committed"))
        clear_cache()


def test_two_processes_may_write_at_once() -> None:
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent)]
    writers = [
        subprocess.Popen(
            [*command, str(offset)], env=make_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for offset in (0, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n", timeout=60)
        assert writer.returncode == 0
    assert assert_serves_all(KEYS) == set(KEYS)
    assert len(run_sql("SELECT * FROM recipes")) == 1


def test_a_cache_that_another_process_keeps_locked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fill(KEYS[:5])
    other = sqlite3.connect(get_cache_file(), isolation_level=None)
    try:
        with FeatureCache() as cache:
            other.execute("BEGIN IMMEDIATE")
            cache.connection.execute("PRAGMA busy_timeout = 50")
            before = time.monotonic()
            with pytest.raises(HeadstartError, match="cannot be used: database is locked"):
                cache.add_features(1, make_rows(KEYS[:1]))
            assert time.monotonic() - before < 5
            assert cache.find_features(1, KEYS[:5]) == set(KEYS[:5])  # readers are not held up
            other.execute("ROLLBACK")
    finally:
        other.close()
