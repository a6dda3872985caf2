"""What was computed from a picture's bytes, kept on disk: its features by recipe, and the facts about it.

One SQLite file, addressed by content: neither path nor label is in a key, so moving, renaming or relabelling a picture
costs nothing. A kill at any moment loses at most what was not yet committed. Every row carries a checksum; a row that
fails it counts as missing and is computed again.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart._files import get_cache_folder
from headstart.errors import ConfigError, HeadstartError

logger = logging.getLogger(__name__)

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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._explain(error) from error
            # Damaged: everything in it can be computed again.
            logger.warning("The feature cache %s is damaged (%s) and is begun anew.", self.path, error)
            clear_cache()
            self.connection = self._open()
        except OSError as error:
            raise self._explain(error) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        # Rows of about 20 kB fit into a page; the write-ahead log makes commits cheap and safe against a kill.
        connection.execute("PRAGMA page_size = 32768")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        return connection

    def _explain(self, error: Exception) -> HeadstartError:
        return HeadstartError(
            f"The cache {self.path} cannot be used: {error}. "
            "Name a folder that can be written with the environment variable HEADSTART_CACHE."
        )

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.evict()
        self.connection.close()

    def get_recipe(self, key: str, name: str) -> int:
        """The number under which the rows of a recipe are kept; `key` holds everything that changes a feature."""
        self.connection.execute("INSERT OR IGNORE INTO recipes (key, name) VALUES (?, ?)", (key, name))
        return int(self.connection.execute("SELECT id FROM recipes WHERE key = ?", (key,)).fetchone()[0])

    def find_features(self, recipe: int, pictures: Iterable[str]) -> set[str]:
        """Those of `pictures` (SHA-256 in hex) that have a sound row; marks the rows as used today."""
        found: set[str] = set()
        now = int(time.time())
        for keys in _batched(pictures):
            marks = ",".join("?" * len(keys))
            rows = self.connection.execute(
                f"SELECT id, picture, used_s, checksum, data FROM features WHERE recipe = ? AND picture IN ({marks})",
                (recipe, *keys),
            )
            stale = []
            for row, picture, used_s, checksum, data in rows:
                if zlib.crc32(data) == checksum:
                    found.add(picture.hex())
                    if now - used_s > _DAY_S:
                        stale.append((now, row))
            if stale:
                self._write("UPDATE features SET used_s = ? WHERE id = ?", stale)
        return found

    def read_features(self, recipe: int, pictures: Sequence[str]) -> np.ndarray:
        """float16 (N, D), one row for each of `pictures`, all of which must be there."""
        matrix: np.ndarray | None = None
        positions: dict[bytes, list[int]] = {}
        for index, picture in enumerate(pictures):
            positions.setdefault(bytes.fromhex(picture), []).append(index)
        filled = 0
        for keys in _batched(picture.hex() for picture in positions):
            marks = ",".join("?" * len(keys))
            query = f"SELECT picture, data FROM features WHERE recipe = ? AND picture IN ({marks})"
            for picture, data in self.connection.execute(query, (recipe, *keys)):
                values = np.frombuffer(data, np.float16)
                if matrix is None:
                    matrix = np.empty((len(pictures), len(values)), np.float16)
                matrix[positions[picture]] = values
                filled += len(positions[picture])
        if matrix is None or filled < len(pictures):
            raise HeadstartError("Features vanished from the cache while they were in use. Run the command again.")
        return matrix

    def add_features(self, recipe: int, rows: Sequence[tuple[str, np.ndarray]]) -> None:
        """Keep features (float16) by SHA-256; one commit."""
        now = int(time.time())
        values = []
        for picture, features in rows:
            data = features.tobytes()
            values.append((recipe, bytes.fromhex(picture), now, zlib.crc32(data), data))
        self._write(
            "INSERT OR REPLACE INTO features (recipe, picture, used_s, checksum, data) VALUES (?, ?, ?, ?, ?)", values
        )

    def read_facts(self, decoder: int, pictures: Iterable[str]) -> dict[str, str]:
        """The JSON kept about each of `pictures` that has some."""
        found = {}
        for keys in _batched(pictures):
            marks = ",".join("?" * len(keys))
            query = f"SELECT picture, json FROM facts WHERE decoder = ? AND picture IN ({marks})"
            found.update({row[0].hex(): row[1] for row in self.connection.execute(query, (decoder, *keys))})
        return found

    def add_facts(self, decoder: int, rows: Sequence[tuple[str, str]]) -> None:
        values = [(bytes.fromhex(picture), decoder, text) for picture, text in rows]
        self._write("INSERT OR REPLACE INTO facts (picture, decoder, json) VALUES (?, ?, ?)", values)

    def _write(self, statement: str, values: Sequence[tuple[object, ...]]) -> None:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.executemany(statement, values)
            self.connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise self._explain(error) from error

    def measure_usage(self) -> list[CacheUsage]:
        rows = self.connection.execute(
            "SELECT name, COUNT(*), SUM(LENGTH(data)) FROM features JOIN recipes ON recipes.id = recipe "
            "GROUP BY recipe ORDER BY name, recipe"
        )
        return [CacheUsage(*row) for row in rows]

    def measure_size(self) -> int:
        """Bytes in use inside the file."""
        pages, free, size = (
            self.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def evict(self) -> int:
        """Delete the least recently used rows until the cache is a tenth below its limit; returns how many."""
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
        self.connection.execute("PRAGMA incremental_vacuum").fetchall()
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
