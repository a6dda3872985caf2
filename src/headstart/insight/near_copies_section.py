"""What the report says of near-copies, and the accuracy without test pictures that have one in training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart._files import show_path
from headstart.dataset import ImageRecord
from headstart.errors import DataError
from headstart.evaluation import Evaluation
from headstart.insight.near_copies import MIN_CORRELATION, TOO_SMALL_PX, NearCopies, NearCopy
from headstart.report.content import Gallery, GalleryItem, Neighbour, Section, Table
from headstart.stats import format_percent, wilson_interval

_MAX_SHOWN, _MAX_BESIDE, _MAX_TOLD = 200, 12, 3
_ORDER = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`num_correct` of `num_pictures` as a fraction, with its Wilson interval; None where there are no pictures."""

    num_pictures: int
    num_correct: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class WithoutCopies:
    """Accuracy on all test pictures, on those without and on those with a near-copy in training."""

    all: Accuracy
    without: Accuracy
    copied: Accuracy


def compare_without(evaluation: Evaluation, copied: npt.ArrayLike) -> WithoutCopies:
    """Accuracy with and without the pictures of `evaluation` that are marked in `copied`, bool (N,).

    A classifier that has seen a near-copy of a test picture may only remember it. `NearCopies.find_copied` marks such
    pictures. Raises DataError where `copied` does not fit.
    """
    marked = np.asarray(copied)
    if marked.shape != evaluation.labels.shape or marked.dtype != np.bool_:
        raise DataError(
            f"copied is {marked.dtype} {marked.shape}. Expected bool ({len(evaluation.labels)},), one for each picture."
        )
    correct = evaluation.correct
    return WithoutCopies(_count(correct), _count(correct[~marked]), _count(correct[marked]))


def _count(correct: npt.NDArray[np.bool_]) -> Accuracy:
    n, num_correct = len(correct), int(correct.sum())
    if not n:
        return Accuracy(0, 0, None, None, None)
    return Accuracy(n, num_correct, num_correct / n, *wilson_interval(num_correct, n))


def describe_near_copies(
    copies: NearCopies,
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    comparison: WithoutCopies | None = None,
) -> Section:
    """The section of the report: counts within and across splits, accuracy without copies, and the pictures.

    `records` are the N pictures in the order in which they were compared. Pictures with a near-copy of another class
    come first, then those with one in another split. Raises DataError where there are not N.
    """
    if len(records) != copies.num_pictures:
        raise DataError(f"There are {len(records)} records and {copies.num_pictures} pictures were compared.")
    paragraphs = [_say_what_was_found(copies), *_say_conflicts(copies, records)]
    tables = []
    if copies.pairs:
        tables.append(_tabulate_pairs(copies, records))
    if comparison is not None and comparison.copied.num_pictures:
        paragraphs.append(_say_comparison(comparison))
        tables.append(_tabulate_accuracy(comparison))
    paragraphs += _say_limits(copies, records)
    items = _collect_items(copies, records, classes)
    galleries: tuple[Gallery, ...] = ()
    if items:
        intro = "Each picture with its near-copies beside it. Different classes come first, then different splits."
        if len(items) > _MAX_SHOWN:
            intro += f" The first {_MAX_SHOWN} of {len(items)} are shown."
        galleries = (Gallery("near-copies", "Near-copies", intro, items[:_MAX_SHOWN]),)
    return Section("near-copies", "Near-copies", tuple(paragraphs), tuple(tables), (), galleries)


def _say_what_was_found(copies: NearCopies) -> str:
    what = "the same photo re-encoded, resized, mirrored, brightened or cropped by a few percent"
    if not copies.pairs:
        return f"No near-copies ({what}) were found among {copies.num_pictures:,} pictures."
    num_members = sum(map(len, copies.groups))
    return (
        f"{num_members:,} of {copies.num_pictures:,} pictures have a near-copy ({what}). "
        f"They form {_say_number(len(copies.groups), 'group')}."
    )


def _say_conflicts(copies: NearCopies, records: Sequence[ImageRecord]) -> list[str]:
    num_groups = sum(len({records[row].label for row in group}) > 1 for group in copies.groups)
    if not num_groups:
        return []
    return [
        f"{_say_number(num_groups, 'group')} of near-copies {'has' if num_groups == 1 else 'have'} different labels: "
        "a label is wrong, or the classes overlap. They come first below."
    ]


def _say_comparison(comparison: WithoutCopies) -> str:
    num_copied = comparison.copied.num_pictures
    begin = (
        f"{num_copied:,} of {_say_number(comparison.all.num_pictures, 'test picture')} "
        f"{'has' if num_copied == 1 else 'have'} a near-copy among the training pictures"
    )
    if not comparison.without.num_pictures:
        return f"{begin}, so nothing tells how the classifier does on pictures that it has not seen."
    return (
        f"{begin}. Accuracy is {_say_accuracy(comparison.all)} with them "
        f"and {_say_accuracy(comparison.without)} without them."
    )


def _say_limits(copies: NearCopies, records: Sequence[ImageRecord]) -> list[str]:
    said = []
    if copies.min_correlation > MIN_CORRELATION:
        said.append(
            f"Different pictures of this collection are much alike, so a correlation of {copies.min_correlation:.3f} "
            f"instead of {MIN_CORRELATION} was asked of near-copies. Cropped ones may be missing."
        )
    if copies.too_small:
        said.append(
            f"{_say_number(len(copies.too_small), 'picture')} under {TOO_SMALL_PX} pixels could not be judged: so "
            "small, different pictures may look the same."
        )
    if copies.unread:
        said.append(
            f"{_say_number(len(copies.unread), 'picture')} could not be read again, the first is "
            f"{show_path(records[copies.unread[0]].path)}."
        )
    return said


def _tabulate_pairs(copies: NearCopies, records: Sequence[ImageRecord]) -> Table:
    """Pairs by where the two pictures are; of kinds, the numbers."""
    where: defaultdict[str, list[NearCopy]] = defaultdict(list)
    for pair in copies.pairs:
        splits = {records[row].split or "all" for row in (pair.first, pair.second)}
        named = [split for split in _ORDER if split in splits] or ["all"]
        where[" and ".join(named) if len(named) > 1 or named == ["all"] else f"within {named[0]}"].append(pair)
    rows = []
    for place, pairs in sorted(where.items(), key=lambda entry: (entry[0].startswith("within"), entry[0])):
        num_conflicts = sum(_is_conflict(pair, records) for pair in pairs)
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in Counter(pair.kind for pair in pairs).most_common())
        rows.append((place, f"{len(pairs):,}", f"{num_conflicts:,}", kinds))
    return Table(("Where", "Pairs", "With different labels", "Kinds"), tuple(rows), numeric=(1, 2))


def _tabulate_accuracy(comparison: WithoutCopies) -> Table:
    named = {
        "all": comparison.all,
        "without a near-copy in training": comparison.without,
        "with a near-copy in training": comparison.copied,
    }
    rows = tuple(
        (
            name,
            f"{each.num_pictures:,}",
            f"{each.num_correct:,}",
            format_percent(each.value),
            "-" if each.value is None else f"{format_percent(each.low)} to {format_percent(each.high)}",
        )
        for name, each in named.items()
    )
    return Table(("Test pictures", "Pictures", "Right", "Accuracy %", "95 % interval"), rows, (1, 2, 3), marked=1)


def _collect_items(
    copies: NearCopies, records: Sequence[ImageRecord], classes: Sequence[str]
) -> tuple[GalleryItem, ...]:
    """One item for a picture with those of its near-copies that no earlier item shows, the most urgent first."""
    partners: defaultdict[int, list[NearCopy]] = defaultdict(list)
    shown: set[int] = set()
    for pair in sorted(copies.pairs, key=lambda pair: (pair.first, pair.second)):
        if pair.second not in shown:
            partners[pair.first].append(pair)
            shown.add(pair.second)
    order = sorted(partners, key=lambda row: (min(_rank(pair, records) for pair in partners[row]), row))
    return tuple(_make_item(row, partners[row], records, classes) for row in order)


def _make_item(
    row: int, pairs: Sequence[NearCopy], records: Sequence[ImageRecord], classes: Sequence[str]
) -> GalleryItem:
    ranked = sorted(pairs, key=lambda pair: _rank(pair, records))
    said = "; ".join(_say_pair(pair, records, classes) for pair in ranked[:_MAX_TOLD])
    if len(ranked) > _MAX_TOLD:
        said += f"; and {len(ranked) - _MAX_TOLD} more"
    split = records[row].split
    return GalleryItem(
        records[row].path,
        records[row].sha256,
        records[row].label,
        note=f"{f'In {split}. ' if split else ''}{said[:1].upper()}{said[1:]}",
        neighbours=tuple(
            Neighbour(records[pair.second].path, records[pair.second].label, pair.similarity)
            for pair in ranked[:_MAX_BESIDE]
        ),
    )


def _say_pair(pair: NearCopy, records: Sequence[ImageRecord], classes: Sequence[str]) -> str:
    first, second = records[pair.first], records[pair.second]
    labelled = f"labelled {classes[second.label]}, not {classes[first.label]}, " * _is_conflict(pair, records)
    split = f"in {second.split}, " * (second.split != first.split)
    return f"{labelled}{split}{pair.kind}, correlation {pair.correlation:.2f}: {show_path(second.path)}"


def _rank(pair: NearCopy, records: Sequence[ImageRecord]) -> tuple[bool, bool, float]:
    across = records[pair.first].split != records[pair.second].split
    return not _is_conflict(pair, records), not across, -pair.correlation


def _is_conflict(pair: NearCopy, records: Sequence[ImageRecord]) -> bool:
    return records[pair.first].label != records[pair.second].label


def _say_accuracy(accuracy: Accuracy) -> str:
    interval = f"between {format_percent(accuracy.low)} and {format_percent(accuracy.high)}"
    return f"{format_percent(accuracy.value)} % ({interval}) of {accuracy.num_pictures:,}"


def _say_number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
