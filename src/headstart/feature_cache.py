"""What was computed from a picture's bytes, kept on disk: its features by recipe, and the facts about it.

One SQLite file, addressed by content: neither path nor label is in a key, so moving, renaming or relabelling a picture
costs nothing. A kill at any moment loses at most what was not yet committed. Every row carries a checksum; a row that
fails it counts as missing and is computed again. A file that SQLite finds damaged is deleted and begun anew.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from headstart._files import get_cache_folder
from headstart.errors import ConfigError, HeadstartError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

DEFAULT_LIMIT_BYTES = 10 * 10**9
_SCHEMA = """
CREATE TABLE IF NOT EXISTS recipes (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS features (
    id INTEGER PRIMARY KEY, recipe INTEGER NOT NULL, picture BLOB NOT NULL, used_s INTEGER NOT NULL,
    checksum INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE (recipe, picture));
CREATE TABLE IF NOT EXISTS facts (picture BLOB NOT NULL, decoder INTEGER NOT NULL, json TEXT NOT NULL,
    PRIMARY KEY (picture, decoder)) WITHOUT ROWID;
"""
_KEYS_PER_QUERY = 500
_DAY_S = 86_400


@dataclass(frozen=True)
class CacheUsage:
    """How much of the cache one recipe holds."""

    name: str
    num_pictures: int
    size_bytes: int


def parse_size(text: str) -> int:
    """Bytes of a size such as `500MB` or `20 GB`. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)B?\s*", text, re.IGNORECASE)
    if not match:
        raise ConfigError(f"A cache limit of {text!r} is not a size. Write a number with MB, GB or TB, such as 20GB.")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))


def get_cache_file() -> Path:
    return get_cache_folder() / "features.sqlite"


def clear_cache() -> int:
    """Delete the cache; returns the bytes set free."""
    freed = 0
    for suffix in ("", "-wal", "-shm"):
        file = get_cache_file().with_name(get_cache_file().name + suffix)
        if file.exists():
            freed += file.stat().st_size
            file.unlink()
    return freed


class FeatureCache:
    """An open cache. Used by one thread; other processes may use the same file at the same time."""

    def __init__(self) -> None:
        self.path = get_cache_file()
        self.limit_bytes = parse_size(os.environ.get("HEADSTART_CACHE_LIMIT", f"{DEFAULT_LIMIT_BYTES}B"))
        self._recipes: dict[int, tuple[str, str]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.connection = self._open()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._begin_anew(error)
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._explain(error) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            # Rows of about 20 kB fit into a page; the write-ahead log makes commits cheap and safe against a kill.
            connection.execute("PRAGMA page_size = 32768")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """Everything in a damaged file can be computed again. Recipes keep their numbers, which callers hold."""
        logger.warning("The feature cache %s is damaged (%s) and is begun anew.", self.path, error)
        clear_cache()
        self.connection = self._open()
        rows = [(number, *recipe) for number, recipe in self._recipes.items()]
        self.connection.executemany("INSERT INTO recipes (id, key, name) VALUES (?, ?, ?)", rows)

    def _attempt(self, work: Callable[[], Result]) -> Result:
        """What `work` returns. Where it meets damage, the cache is begun anew and the work done on the empty one."""
        try:
            try:
                return work()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self.connection.close()
                self._begin_anew(error)
                return work()
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> HeadstartError:
        return HeadstartError(
            f"The cache {self.path} cannot be used: {error}. "
            "Name a folder that can be written with the environment variable HEADSTART_CACHE."
        )

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.evict()
        finally:
            self.connection.close()

    def get_recipe(self, key: str, name: str) -> int:
        """The number under which the rows of a recipe are kept; `key` holds everything that changes a feature."""

        def find() -> int:
            self.connection.execute("INSERT OR IGNORE INTO recipes (key, name) VALUES (?, ?)", (key, name))
            return int(self.connection.execute("SELECT id FROM recipes WHERE key = ?", (key,)).fetchone()[0])

        number = self._attempt(find)
        self._recipes[number] = (key, name)
        return number

    def find_features(self, recipe: int, pictures: Iterable[str]) -> set[str]:
        """Those of `pictures` (SHA-256 in hex) that have a sound row; marks the rows as used today."""
        keys = list(pictures)
        return self._attempt(lambda: self._find_features(recipe, keys))

    def _find_features(self, recipe: int, pictures: Sequence[str]) -> set[str]:
        found: set[str] = set()
        now = int(time.time())
        for keys in _batched(pictures):
            marks = ",".join("?" * len(keys))
            asked = set(keys)
            rows = self.connection.execute(
                "SELECT id, picture, used_s, checksum, CAST(data AS BLOB) FROM features "
                f"WHERE recipe = ? AND picture IN ({marks})",
                (recipe, *keys),
            )
            stale = []
            for row, picture, used_s, checksum, data in rows:
                if zlib.crc32(data, zlib.crc32(picture)) == checksum and picture in asked:
                    found.add(picture.hex())
                    if now - used_s > _DAY_S:
                        stale.append((now, row))
            if stale:
                self._write("UPDATE features SET used_s = ? WHERE id = ?", stale)
        return found

    def read_features(self, recipe: int, pictures: Sequence[str]) -> np.ndarray:
        """float16 (N, D), one row for each of `pictures`, all of which must be there. Raises HeadstartError."""
        return self._attempt(lambda: self._read_features(recipe, pictures))

    def _read_features(self, recipe: int, pictures: Sequence[str]) -> np.ndarray:
        matrix: np.ndarray | None = None
        positions: dict[bytes, list[int]] = {}
        for index, picture in enumerate(pictures):
            positions.setdefault(bytes.fromhex(picture), []).append(index)
        for keys in _batched([picture.hex() for picture in positions]):
            marks = ",".join("?" * len(keys))
            query = f"SELECT picture, data FROM features WHERE recipe = ? AND picture IN ({marks})"
            for picture, data in self.connection.execute(query, (recipe, *keys)):
                values = np.frombuffer(data, np.float16)
                if matrix is None:
                    matrix = np.empty((len(pictures), len(values)), np.float16)
                rows = positions.pop(picture, [])
                matrix[rows] = values
        if matrix is None or positions:
            raise HeadstartError("Features vanished from the cache while they were in use. Run the command again.")
        return matrix

    def add_features(self, recipe: int, rows: Sequence[tuple[str, np.ndarray]]) -> None:
        """Keep features (float16) by SHA-256; one commit."""
        now = int(time.time())
        values = []
        for picture, features in rows:
            key, data = bytes.fromhex(picture), features.tobytes()
            values.append((recipe, key, now, zlib.crc32(data, zlib.crc32(key)), data))
        self._insert(
            "INSERT OR REPLACE INTO features (recipe, picture, used_s, checksum, data) VALUES (?, ?, ?, ?, ?)", values
        )

    def read_facts(self, decoder: int, pictures: Iterable[str]) -> dict[str, str]:
        """The JSON kept about each of `pictures` that has some."""
        keys = list(pictures)
        return self._attempt(lambda: self._read_facts(decoder, keys))

    def _read_facts(self, decoder: int, pictures: Sequence[str]) -> dict[str, str]:
        found = {}
        for keys in _batched(pictures):
            marks = ",".join("?" * len(keys))
            query = f"SELECT picture, CAST(json AS BLOB) FROM facts WHERE decoder = ? AND picture IN ({marks})"
            for picture, data in self.connection.execute(query, (decoder, *keys)):
                if data[:8] == b"%08x" % zlib.crc32(data[8:]):
                    found[picture.hex()] = data[8:].decode()
        return found

    def add_facts(self, decoder: int, rows: Sequence[tuple[str, str]]) -> None:
        """Keep the JSON about pictures by SHA-256, its checksum before it; one commit."""
        values = [(bytes.fromhex(picture), decoder, f"{zlib.crc32(text.encode()):08x}{text}") for picture, text in rows]
        self._insert("INSERT OR REPLACE INTO facts (picture, decoder, json) VALUES (?, ?, ?)", values)

    def _insert(self, statement: str, values: Sequence[tuple[object, ...]]) -> None:
        self._attempt(lambda: self._write(statement, values))

    def _write(self, statement: str, values: Sequence[tuple[object, ...]]) -> None:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.executemany(statement, values)
            self.connection.execute("COMMIT")
        except BaseException:  # an interrupt too: the next write begins its own transaction
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def measure_usage(self) -> list[CacheUsage]:
        query = (
            "SELECT name, COUNT(*), SUM(LENGTH(data)) FROM features JOIN recipes ON recipes.id = recipe "
            "GROUP BY recipe ORDER BY name, recipe"
        )
        return [CacheUsage(*row) for row in self._attempt(lambda: self.connection.execute(query).fetchall())]

    def measure_size(self) -> int:
        """Bytes in use inside the file."""

        def read(name: str) -> int:
            return int(self.connection.execute(f"PRAGMA {name}").fetchone()[0])

        return self._attempt(lambda: (read("page_count") - read("freelist_count")) * read("page_size"))

    def evict(self) -> int:
        """Delete the least recently used rows until the cache is a tenth below its limit; returns how many."""
        return self._attempt(self._evict)

    def _evict(self) -> int:
        deleted = 0
        if self.measure_size() <= self.limit_bytes:
            return 0
        while self.measure_size() > 0.9 * self.limit_bytes:
            count = self.connection.execute(
                "DELETE FROM features WHERE id IN (SELECT id FROM features ORDER BY used_s, id LIMIT 500)"
            ).rowcount
            if not count:
                break
            deleted += count
        self.connection.executescript("PRAGMA incremental_vacuum")  # execute would free one page only
        logger.info("The feature cache was over its limit: %d rows were deleted.", deleted)
        return deleted


def _batched(pictures: Iterable[str]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for picture in pictures:
        batch.append(bytes.fromhex(picture))
        if len(batch) == _KEYS_PER_QUERY:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is to blame, and not a lock, a full disk or permissions."""
    primary_code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return primary_code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
