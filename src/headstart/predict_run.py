"""A run over many pictures: what the journal knows is not predicted again, what is predicted goes there at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from headstart.errors import ImageError
from headstart.predict_journal import Entry, Journal

if TYPE_CHECKING:
    from headstart.prediction import Classifier, Prediction
    from headstart.predictions_output import Row
    from headstart.sorting import Sorter

Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds: a file of which both are as before counts as unchanged."""
GONE: Stamp = (-1, -1)


@dataclass(slots=True)
class Listing:
    """N pictures in the order of the output: their paths and `stamps`, int64 (N, 2).

    `offsets`, int64 (N,), says where in the journal the last entry of each is, -1 where there is none; `is_done`, bool
    (N,), which of them need not be predicted any more.
    """

    paths: Sequence[str]
    stamps: np.ndarray
    offsets: np.ndarray
    is_done: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_done(self) -> int:
        return int(self.is_done.sum())


def read_stamp(path: str) -> Stamp:
    """GONE where there is no such file: whoever reads it will say so."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return GONE
    return found.st_size, found.st_mtime_ns


def make_listing(paths: Sequence[str], stamps: Sequence[Stamp] | None = None) -> Listing:
    """Pictures of which none is done; without `stamps` the files are asked."""
    found = np.empty((len(paths), 2), np.int64)
    for number, path in enumerate(paths):
        found[number] = read_stamp(path) if stamps is None else stamps[number]
    return Listing(paths, found, np.full(len(paths), -1, np.int64), np.zeros(len(paths), np.bool_))


def resume(listing: Listing, journal: Journal, *, retry: bool = False) -> Entry | None:
    """Mark in a listing what the journal says is done; with `retry` not what could not be used.

    A picture of another size or time of change is not done. Returns the journal's last entry, of any picture.
    """
    numbers = {os.path.abspath(path): number for number, path in enumerate(listing.paths)}
    last = None
    for offset, last in journal.read_all():
        number = numbers.get(last.path)
        if number is not None:
            is_same = (last.size_bytes, last.mtime_ns) == tuple(listing.stamps[number])
            listing.offsets[number] = offset
            listing.is_done[number] = is_same and not (retry and isinstance(last.outcome, ImageError))
    return last


def settle(last: Entry | None, journal: Journal, sorter: Sorter) -> None:
    """Sort the picture of the last entry, where the run was killed between writing that and doing it."""
    if last is None or journal.is_complete:
        return
    if sorter.is_taken(last):
        last = replace(last, place=sorter.choose_place(last.path, last.outcome))
        journal.append(last)
    sorter.put(last)


def predict_listing(
    classifier: Classifier,
    listing: Listing,
    journal: Journal | None,
    sorter: Sorter | None,
    on_row: Callable[[str, Prediction | ImageError], None],
) -> None:
    """Predict what is not done: each picture goes into the journal, then to its place, then to `on_row`.

    Without a journal nothing is sorted.
    """
    todo = np.flatnonzero(~listing.is_done).tolist()
    # A list, not a generator: of many pictures the classifier then makes use of a device.
    found = classifier.predict_each([listing.paths[number] for number in todo])
    with closing(
        cast("Generator[Prediction | ImageError, None, None]", found)
    ) as outcomes:  # ends its threads at an interrupt
        for number, outcome in zip(todo, outcomes, strict=True):
            if journal is not None:
                listing.offsets[number] = _record(listing, number, outcome, journal, sorter)
            listing.is_done[number] = True
            on_row(listing.paths[number], outcome)


def _record(
    listing: Listing, number: int, outcome: Prediction | ImageError, journal: Journal, sorter: Sorter | None
) -> int:
    path = os.path.abspath(listing.paths[number])
    size_bytes, mtime_ns = listing.stamps[number].tolist()
    place = None
    if sorter is not None:
        # First, so that the name is free again; a kill after it leaves an old entry, by which all of this is repeated.
        if listing.offsets[number] >= 0:
            sorter.take_away(journal.read(int(listing.offsets[number])))
        place = sorter.choose_place(path, outcome)
    entry = Entry(path, size_bytes, mtime_ns, outcome, place)
    offset = journal.append(entry)
    if sorter is not None:
        sorter.put(entry)
    return offset


def read_rows(listing: Listing, journal: Journal) -> Iterator[Row]:
    """The rows of a listing that is done, in its order."""
    for path, offset in zip(listing.paths, listing.offsets.tolist(), strict=True):
        yield path, journal.read(offset).outcome
