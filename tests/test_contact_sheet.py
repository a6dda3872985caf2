"""The sheet shows every class, the same pictures again, what is typical and what is not."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from headstart.contact_sheet import choose_sheet
from headstart.dataset import ImageRecord
from headstart.errors import DataError


def make_records(n: int, k: int = 2) -> list[ImageRecord]:
    return [ImageRecord(f"photos/{i}.jpg", i % k, sha256=hashlib.sha256(str(i).encode()).hexdigest()) for i in range(n)]


def test_every_picture_stands_in_its_class_once() -> None:
    records = make_records(100, 3)
    by_path = {record.path: record for record in records}
    rng = np.random.default_rng(0)
    for features in (None, rng.standard_normal((100, 8)).astype(np.float32)):
        sheet = choose_sheet(records, ("a", "b", "c"), features=features)
        assert [(name, count) for name, count, _ in sheet] == [("a", 34), ("b", 33), ("c", 33)]
        for k, (_, _, items) in enumerate(sheet):
            assert len({item.path for item in items}) == len(items) == 12
            for item in items:
                assert (item.label, item.sha256) == (by_path[item.path].label, by_path[item.path].sha256)
                assert item.label == k


def test_few_pictures_and_none() -> None:
    records = [ImageRecord("a.jpg", 0, sha256="1"), ImageRecord("b.jpg", 2, sha256="2")]
    for features in (None, np.ones((2, 3), np.float32)):
        sheet = choose_sheet(records, ("a", "empty", "c"), features=features)
        assert [(count, len(items)) for _, count, items in sheet] == [(1, 1), (0, 0), (1, 1)]
    assert choose_sheet([], ()) == []


@pytest.mark.parametrize(("num_classes", "expected"), [(2, 12), (50, 12), (60, 10), (200, 3), (700, 1)])
def test_many_classes_get_fewer_each(num_classes: int, expected: int) -> None:
    records = make_records(20 * num_classes, num_classes)
    sheet = choose_sheet(records, [str(k) for k in range(num_classes)])
    assert {len(items) for *_, items in sheet} == {expected}


def test_the_choice_does_not_hang_on_order_or_names_and_hardly_on_new_pictures() -> None:
    records = make_records(200)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 8)).astype(np.float32)
    order = rng.permutation(200)
    shuffled = [records[i] for i in order]
    for rows, again in ((None, None), (features, features[order])):
        one, other = (
            choose_sheet(records, ("a", "b"), features=rows),
            choose_sheet(shuffled, ("a", "b"), features=again),
        )
        assert [[item.path for item in items] for *_, items in one] == [
            [item.path for item in items] for *_, items in other
        ]
    [(_, _, before), _] = choose_sheet(records, ("a", "b"))
    [(_, _, after), _] = choose_sheet(make_records(204), ("a", "b"))
    assert len({item.sha256 for item in before} & {item.sha256 for item in after}) >= 10


def test_the_draw_is_not_the_one_that_chose_the_test_part() -> None:
    records = make_records(2000)
    shares = [int(item.sha256[:8], 16) / 2**32 for *_, items in choose_sheet(records, ("a", "b")) for item in items]
    assert 0.25 < np.mean(shares) < 0.75


def make_groups() -> tuple[list[ImageRecord], np.ndarray, list[str]]:
    """One class: 300 pictures in four groups of very different size, and two that are like nothing else."""
    rng = np.random.default_rng(0)
    directions = np.eye(6, 32)
    groups = [*("w" * 200), *("x" * 70), *("y" * 20), *("z" * 8), "odd", "odder"]
    which = np.array([["w", "x", "y", "z", "odd", "odder"].index(group) for group in groups])
    features = 3 * directions[which] + 0.2 * rng.standard_normal((300, 32))
    return make_records(300, 1), features.astype(np.float32), groups


def test_all_kinds_are_shown_the_commonest_first_and_outliers_last() -> None:
    records, features, groups = make_groups()
    [(_, _, items)] = choose_sheet(records, ("a",), per_class=6, features=features)
    shown = [groups[int(item.path.removeprefix("photos/").removesuffix(".jpg"))] for item in items]
    assert shown[0] == "w"
    assert set("wxyz") == set(shown[:4])
    assert {"odd", "odder"} == set(shown[4:])


def test_length_of_a_row_does_not_matter_and_zeros_are_allowed() -> None:
    records, features, _ = make_groups()
    scaled = features * np.random.default_rng(1).uniform(0.5, 2, (300, 1)).astype(np.float32)
    chosen = [{item.path for item in choose_sheet(records, ("a",), features=rows)[0][2]} for rows in (features, scaled)]
    assert chosen[0] == chosen[1]
    [(_, _, items)] = choose_sheet(records, ("a",), features=np.zeros_like(features))
    assert len({item.path for item in items}) == 12


def test_features_that_do_not_fit_are_refused() -> None:
    records = make_records(4)
    with pytest.raises(DataError, match=r"features has shape \(3, 2\). Expected \(4, D\)"):
        choose_sheet(records, ("a", "b"), features=np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match="nan or infinity"):
        choose_sheet(records, ("a", "b"), features=np.full((4, 2), np.nan, np.float32))
