"""Who is tested on what: a test split that stays put while a collection grows, and folds for cross-validation."""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headstart._files import show_path
from headstart.dataset import ImageDataset, ImageRecord
from headstart.errors import ConfigError, DataError

_MIN_FOR_TEST = 5  # pictures of a class, from which on it gets a test picture in any case
_MIN_TRAIN = 2


def split_dataset(dataset: ImageDataset, *, test_frac: float = 0.2, seed: int = 0) -> ImageDataset:
    """Give every record a split. Splits that the source names stay as they are.

    Where it names none, or only train, a test split is taken out by content: a picture is in it when
    u = first 8 bytes of SHA-256("seed:key") / 2**64 < `test_frac`, key being its group or else its own SHA-256. So the
    verdict on a picture depends on nothing but itself: pictures added later move none, copies and groups stay
    together, and order and names play no part. The price is that the test share of a class of n pictures is binomial
    (expected `test_frac`, standard deviation sqrt(test_frac * (1 - test_frac) / n)), not exact: an exact share would
    have to move old pictures whenever new ones come.

    Two guarantees may overrule u in small classes, where adding a picture can then move another: at least 2 training
    pictures per class, where there are as many (the highest u go back), and after that at least 1 test picture in a
    class of 5 or more (the lowest u that leaves every class 2 training pictures).

    Needs hashed records. Raises ConfigError for a `test_frac` outside 0 <= test_frac < 1, DataError when some records
    have a split and others none, or when none is for training.
    """
    if isinstance(test_frac, bool) or not isinstance(test_frac, (int, float)) or not 0 <= test_frac < 1:
        raise ConfigError(f"test_frac must be at least 0 and less than 1, and is {test_frac!r}. 0 means no test split.")
    records = dataset.records
    without = [record for record in records if record.split is None]
    if without and len(without) < len(records):
        raise DataError(
            f"{len(records) - len(without)} of {len(records)} pictures have a split and {len(without)} have none, the "
            f"first is {show_path(without[0].path)}. Give every picture a split, or none."
        )
    given = {record.split for record in records}
    if given & {"validation", "test"}:
        if "train" not in given:
            text = f"None of the {len(records)} pictures is for training. Name a split train, or no split."
            raise DataError(text)
        return dataset
    in_test = _choose_test_keys(records, test_frac, seed)
    split = tuple(replace(record, split="test" if get_split_key(record) in in_test else "train") for record in records)
    return replace(dataset, records=split)


def get_split_key(record: ImageRecord) -> str:
    """What stays together on every split: the record's group, or else its SHA-256. Raises DataError without either."""
    if record.group is None and not record.sha256:
        raise DataError(f"{show_path(record.path)} has no hash yet. Call hash_images before split_dataset.")
    return record.group if record.group is not None else record.sha256


def _draw(seed: int, key: str) -> int:
    """64 bits that depend on seed and key only."""
    digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _choose_test_keys(records: Sequence[ImageRecord], test_frac: float, seed: int) -> set[str]:
    if test_frac == 0:
        return set()
    sizes: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))  # key -> class -> pictures
    for record in records:
        sizes[get_split_key(record)][record.label] += 1
    draws = {key: _draw(seed, key) for key in sizes}
    by_class: defaultdict[int, list[str]] = defaultdict(list)
    for key in sorted(sizes, key=lambda key: (draws[key], key)):
        for label in sizes[key]:
            by_class[label].append(key)
    in_test = {key for key in sizes if draws[key] / 2**64 < test_frac}
    num_train = {
        label: sum(sizes[key][label] for key in keys if key not in in_test) for label, keys in by_class.items()
    }

    def move(key: str, *, to_test: bool) -> None:
        (in_test.add if to_test else in_test.discard)(key)
        for label, count in sizes[key].items():
            num_train[label] += -count if to_test else count

    for label in sorted(by_class):
        for key in reversed(by_class[label]):
            if num_train[label] >= _MIN_TRAIN:
                break
            if key in in_test:
                move(key, to_test=False)
    for label in sorted(by_class):
        keys = by_class[label]
        if sum(sizes[key][label] for key in keys) < _MIN_FOR_TEST or any(key in in_test for key in keys):
            continue
        for key in keys:
            if all(num_train[other] - count >= _MIN_TRAIN for other, count in sizes[key].items()):
                move(key, to_test=True)
                break
    return in_test


def assign_folds(
    labels: Sequence[int] | NDArray[np.int64], keys: Sequence[str], *, num_folds: int = 5, seed: int = 0
) -> NDArray[np.int64]:
    """Stratified folds for cross-validation: int64 (N,), from 0 to `num_folds` - 1.

    `labels` and `keys` have N entries; pictures with the same key (a group, or the SHA-256 of equal bytes) share a
    fold. Within a class keys are dealt in the order of their hashes, each to the fold with the fewest pictures of the
    class: without groups folds differ by at most one picture per class, and the order of the input plays no part.
    Larger groups are dealt first, and smaller ones level the difference. A fold may be empty when there are fewer keys
    than folds. Raises ConfigError when `num_folds` is under 2, DataError for a class that lies wholly in one fold,
    because the other folds could not train it.
    """
    if isinstance(num_folds, bool) or not isinstance(num_folds, int) or num_folds < 2:
        raise ConfigError(f"num_folds must be a whole number of at least 2, and is {num_folds!r}.")
    if len(labels) != len(keys):
        raise ConfigError(f"There are {len(labels)} labels and {len(keys)} keys. There must be one for each.")
    numbers = np.asarray(labels).tolist()
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    num_per_fold = {label: [0] * num_folds for label in set(numbers)}
    total = [0] * num_folds
    folds = np.zeros(len(keys), np.int64)

    def deal(indices: list[int]) -> None:
        counts = Counter(numbers[index] for index in indices)

        def cost(fold: int) -> tuple[int, int, int, int]:
            # A class must not end up in one fold; then its folds are levelled (growth of the sum of squares), then all.
            alone = sum(0 < num_per_fold[label][fold] == sum(num_per_fold[label]) for label in counts)
            growth = sum(count * num_per_fold[label][fold] for label, count in counts.items())
            return alone, growth, total[fold], fold

        fold = min(range(num_folds), key=cost)
        for label, count in counts.items():
            num_per_fold[label][fold] += count
        total[fold] += len(indices)
        folds[indices] = fold

    groups = [key for key, indices in members.items() if len(indices) > 1]
    # Class after class, so that the folds as a whole stay level too.
    for key in sorted(
        groups, key=lambda key: (-len(members[key]), min(map(numbers.__getitem__, members[key])), _draw(seed, key), key)
    ):
        deal(members[key])
    alone = sorted(
        (numbers[index], _draw(seed, key), key, index) for key, (index, *more) in members.items() if not more
    )
    for label, entries in itertools.groupby(alone, key=operator.itemgetter(0)):
        indices = [index for *_, index in entries]
        start = 0
        while start < len(indices) and len(set(num_per_fold[label])) > 1:
            deal(indices[start : start + 1])
            start += 1
        # Once the folds of a class are level, `deal` would go round them in one order, the emptiest as a whole first.
        order = sorted(range(num_folds), key=total.__getitem__)
        for place, fold in enumerate(order):
            mine = indices[start + place :: num_folds]
            folds[mine] = fold
            num_per_fold[label][fold] += len(mine)
            total[fold] += len(mine)
    together = [label for label, counts in sorted(num_per_fold.items()) if max(counts) == sum(counts)]
    if together:
        raise DataError(
            f"Cross-validation needs at least 2 pictures per class in different groups. Class number "
            f"{', '.join(map(str, together))} has all its pictures in one. Add pictures, or use smaller groups."
        )
    return folds
