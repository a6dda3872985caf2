"""Splits by content and folds, mostly as properties over random collections."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headstart.dataset import ImageDataset, ImageRecord
from headstart.errors import ConfigError, DataError
from headstart.splits import assign_folds, split_dataset

CLASSES = ("ant", "bee", "cat")


def make_record(number: int, label: int = 0, group: str | None = None, split: str | None = None) -> ImageRecord:
    sha256 = hashlib.sha256(b"%d" % number).hexdigest()
    return ImageRecord(f"{CLASSES[label]}/{number}.jpg", label, split, group, sha256)


def make_dataset(records: Sequence[ImageRecord]) -> ImageDataset:
    return ImageDataset("photos", CLASSES, tuple(records), (), len(records), {})


def split_of(dataset: ImageDataset) -> dict[str, str | None]:
    return {record.path: record.split for record in dataset.records}


def draw(seed: int, key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


@st.composite
def collections(draw_from: st.DrawFn, max_size: int = 40) -> list[ImageRecord]:
    numbers = draw_from(st.lists(st.integers(0, 10_000), unique=True, max_size=max_size))
    groups = st.none() | st.sampled_from(["g1", "g2", "g3", "g\udcff"])
    return [make_record(number, draw_from(st.integers(0, 2)), draw_from(groups)) for number in numbers]


def test_test_pictures_are_those_with_a_low_hash() -> None:
    records = [make_record(number, number % 3) for number in range(600)]
    expected = {record.path: "test" if draw(7, record.sha256) < 0.25 else "train" for record in records}
    assert split_of(split_dataset(make_dataset(records), test_frac=0.25, seed=7)) == expected
    assert 100 < Counter(expected.values())["test"] < 200
    assert split_of(split_dataset(make_dataset(records), test_frac=0.25, seed=8)) != expected
    assert set(split_of(split_dataset(make_dataset(records), test_frac=0)).values()) == {"train"}


@given(collections(), st.integers(0, 5), st.sampled_from([0.05, 0.2, 0.5, 0.95]), st.randoms())
@settings(max_examples=150, deadline=None)
def test_split_properties(records: list[ImageRecord], seed: int, test_frac: float, random: object) -> None:
    result = split_of(split_dataset(make_dataset(records), test_frac=test_frac, seed=seed))
    assert set(result.values()) <= {"train", "test"}
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split_of(split_dataset(make_dataset(shuffled), test_frac=test_frac, seed=seed)) == result
    for group in {record.group for record in records} - {None}:
        assert len({result[record.path] for record in records if record.group == group}) == 1
    for label in range(3):
        members = [record for record in records if record.label == label]
        num_test = sum(result[record.path] == "test" for record in members)
        assert len(members) - num_test >= min(2, len(members))
        if len(members) >= 5 and not any(record.group for record in records):
            assert num_test >= 1


@given(collections(), collections(), st.integers(0, 5), st.sampled_from([0.2, 0.5]))
@settings(max_examples=150, deadline=None)
def test_adding_pictures_moves_none(
    old: list[ImageRecord], new: list[ImageRecord], seed: int, test_frac: float
) -> None:
    """Where no guarantee has to overrule the hash."""
    for label in range(3):
        drawn = [draw_key(seed, record) < test_frac for record in old if record.label == label]
        if not any(drawn) or drawn.count(False) < 2:
            old = [record for record in old if record.label != label]
    classes_of_old = {record.label for record in old}
    taken = {record.path for record in old}
    added = [record for record in new if record.path not in taken and record.label in classes_of_old]
    before = split_of(split_dataset(make_dataset(old), test_frac=test_frac, seed=seed))
    after = split_of(split_dataset(make_dataset([*added, *old]), test_frac=test_frac, seed=seed))
    assert {path: after[path] for path in before} == before


def draw_key(seed: int, record: ImageRecord) -> float:
    key = record.group if record.group is not None else record.sha256
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def test_the_lowest_hash_is_tested_when_none_is_low_enough() -> None:
    records = sorted((make_record(number) for number in range(200)), key=lambda record: draw(0, record.sha256))
    for size, num_test in ((4, 0), (5, 1)):
        chosen = records[100 : 100 + size]
        result = split_of(split_dataset(make_dataset(chosen), test_frac=0.2))
        assert [record.path for record in chosen if result[record.path] == "test"] == [chosen[0].path][:num_test]


def test_two_pictures_stay_for_training() -> None:
    records = sorted((make_record(number) for number in range(200)), key=lambda record: draw(0, record.sha256))[:6]
    result = split_of(split_dataset(make_dataset(records), test_frac=0.2))
    assert [result[record.path] for record in records] == ["test"] * 4 + ["train"] * 2
    alone = split_of(split_dataset(make_dataset(records[:1]), test_frac=0.2))
    assert list(alone.values()) == ["train"]


def test_one_group_per_class_cannot_be_tested() -> None:
    records = [make_record(number, number % 2, group=f"g{number % 2}") for number in range(20)]
    assert set(split_of(split_dataset(make_dataset(records), test_frac=0.5)).values()) == {"train"}


def test_given_splits_stay() -> None:
    for other in ("validation", "test"):
        records = [make_record(number, split="train" if number % 2 else other) for number in range(20)]
        dataset = make_dataset(records)
        assert split_dataset(dataset, test_frac=0.5) == dataset


def test_test_is_taken_out_of_train_when_only_train_is_given() -> None:
    records = [make_record(number, number % 2) for number in range(40)]
    given_train = [replace(record, split="train") for record in records]
    assert split_dataset(make_dataset(given_train)) == split_dataset(make_dataset(records))


def test_split_errors() -> None:
    records = [make_record(number, split="train" if number < 7 else None) for number in range(10)]
    with pytest.raises(DataError) as caught:
        split_dataset(make_dataset(records))
    assert str(caught.value) == (
        "7 of 10 pictures have a split and 3 have none, the first is ant/7.jpg. Give every picture a split, or none."
    )
    with pytest.raises(DataError) as caught:
        split_dataset(make_dataset([make_record(1, split="test")]))
    assert str(caught.value) == "None of the 1 pictures is for training. Name a split train, or no split."
    with pytest.raises(DataError, match=r"^ant/1\.jpg has no hash yet\. Call hash_images before split_dataset\.$"):
        split_dataset(make_dataset([replace(make_record(1), sha256="")]))


@pytest.mark.parametrize("test_frac", [-0.1, 1, 1.5, float("nan"), "0.2", True, None])
def test_test_frac_is_checked(test_frac: object) -> None:
    with pytest.raises(ConfigError) as caught:
        split_dataset(make_dataset([]), test_frac=test_frac)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"test_frac must be at least 0 and less than 1, and is {test_frac!r}. 0 means no test split."
    )


# Folds


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(2, 7), st.integers(0, 5), st.randoms())
@settings(max_examples=150, deadline=None)
def test_folds_without_groups(labels: list[int], num_folds: int, seed: int, random: object) -> None:
    counts = Counter(labels)
    assume(all(count >= 2 for count in counts.values()))
    keys = [f"key{index}" for index in range(len(labels))]
    folds = assign_folds(labels, keys, num_folds=num_folds, seed=seed)
    assert folds.dtype == np.int64
    assert folds.shape == (len(labels),)
    for label in counts:
        sizes = np.bincount(folds[np.array(labels) == label], minlength=num_folds)
        assert len(sizes) == num_folds
        assert sizes.max() - sizes.min() <= 1
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = assign_folds([labels[i] for i in order], [keys[i] for i in order], num_folds=num_folds, seed=seed)
    assert again.tolist() == folds[order].tolist()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), max_size=60), st.integers(2, 5))
@settings(max_examples=150, deadline=None)
def test_folds_keep_groups_together(pictures: list[tuple[int, int]], num_folds: int) -> None:
    labels = [label for label, _ in pictures]
    keys = [f"group{group}" for _, group in pictures]
    try:
        folds = assign_folds(np.array(labels, np.int64), keys, num_folds=num_folds)
    except DataError:
        assume(False)
    by_key: defaultdict[str, set[int]] = defaultdict(set)
    for key, fold in zip(keys, folds.tolist(), strict=True):
        by_key[key].add(fold)
    assert all(len(used) == 1 for used in by_key.values())
    for label in set(labels):
        assert len(set(folds[np.array(labels) == label].tolist())) >= 2


def deal_one_by_one(labels: list[int], keys: list[str], num_folds: int, seed: int) -> list[int]:
    """The rule of `assign_folds`, key after key."""
    members = {key: [i for i, other in enumerate(keys) if other == key] for key in keys}
    counts = {label: [0] * num_folds for label in labels}
    folds = [0] * len(keys)

    def rank(key: str) -> tuple[int, int, bytes, str]:
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        return -len(members[key]), min(labels[i] for i in members[key]), digest, key

    for key in sorted(members, key=rank):
        own = [labels[i] for i in members[key]]

        def cost(fold: int, own: list[int] = own) -> tuple[int, int, int, int]:
            alone = sum(0 < counts[label][fold] == sum(counts[label]) for label in set(own))
            growth = sum(counts[label][fold] for label in own)
            return alone, growth, sum(each[fold] for each in counts.values()), fold

        fold = min(range(num_folds), key=cost)
        for i in members[key]:
            folds[i] = fold
            counts[labels[i]][fold] += 1
    return folds


@pytest.mark.parametrize("num_keys", [5, 40, 100, 10_000])
def test_folds_are_as_if_dealt_one_by_one(num_keys: int) -> None:
    rng = np.random.default_rng(num_keys)
    for seed in range(40):
        num_folds = int(rng.integers(2, 7))
        labels = rng.integers(0, 4, rng.integers(60, 90)).tolist()
        keys = [str(key) for key in rng.integers(0, num_keys, len(labels))]
        expected = deal_one_by_one(labels, keys, num_folds, seed)
        assert assign_folds(labels, keys, num_folds=num_folds, seed=seed).tolist() == expected


def test_folds_level_groups_of_different_sizes() -> None:
    keys = ["big"] * 6 + ["mid"] * 4 + [f"single{index}" for index in range(20)]
    folds = assign_folds([0] * 30, keys, num_folds=5)
    assert np.bincount(folds).tolist() == [6, 6, 6, 6, 6]


def test_whole_folds_have_the_same_size_too() -> None:
    labels = [label for label in range(50) for _ in range(3)]
    folds = assign_folds(labels, [str(index) for index in range(150)], num_folds=5)
    assert np.bincount(folds).tolist() == [30] * 5


def test_no_class_ends_up_in_one_fold_where_that_can_be_avoided() -> None:
    """By size alone the last mixed group would join the fold that has the other picture of class 0."""
    groups = {"a": [0] + [1] * 19, "b": [2] * 12, "c": [2] * 10, "d": [0] + [2] * 6, "e": [1]}
    keys = [key for key, members in groups.items() for _ in members]
    labels = np.array([label for members in groups.values() for label in members])
    folds = assign_folds(labels, keys, num_folds=2)
    assert [len(set(folds[labels == label].tolist())) for label in range(3)] == [2, 2, 2]


def test_folds_depend_on_the_seed() -> None:
    labels, keys = [0] * 50, [str(index) for index in range(50)]
    assert assign_folds(labels, keys, seed=1).tolist() == assign_folds(labels, keys, seed=1).tolist()
    assert assign_folds(labels, keys, seed=1).tolist() != assign_folds(labels, keys, seed=2).tolist()


def test_fold_errors() -> None:
    with pytest.raises(DataError) as caught:
        assign_folds([0, 0, 1, 2, 2], ["a", "b", "c", "d", "d"], num_folds=2)
    assert str(caught.value) == (
        "Cross-validation needs at least 2 pictures per class in different groups. Class number 1, 2 has all its "
        "pictures in one. Add pictures, or use smaller groups."
    )
    with pytest.raises(ConfigError, match=r"^num_folds must be a whole number of at least 2, and is 1\.$"):
        assign_folds([0], ["a"], num_folds=1)
    with pytest.raises(ConfigError, match=r"^There are 1 labels and 2 keys"):
        assign_folds([0], ["a", "b"])
