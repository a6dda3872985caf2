"""Arrows change their meaning in the mirror, rings do not: seen through classifiers of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from headstart.errors import DataError
from headstart.finetuning.flip_check import check_flip

ARROWS = ("left", "right", "up", "down")
Picture = tuple[np.ndarray, int]


def draw_arrow(direction: str, rng: np.random.Generator) -> np.ndarray:
    """uint8 (24, 24, 3): a head that points there, in two colours, moved a little, with noise."""
    ink = np.zeros((24, 24), bool)
    for column in range(4, 14):
        half = (column - 4) * 0.8
        ink[int(12 - half) : int(12 + half) + 1, column] = True
    ink[10:14, 12:21] = True
    ink = np.roll(ink, rng.integers(-2, 3, 2), axis=(0, 1))
    ink = {"left": ink, "right": ink[:, ::-1], "up": ink.T, "down": ink.T[::-1]}[direction]
    colours = np.where(ink[..., None], rng.integers(150, 256, 3), rng.integers(0, 100, 3))
    return (colours + rng.integers(-15, 16, (24, 24, 3))).clip(0, 255).astype(np.uint8)


def draw_ring(radius_px: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (24, 24, 3): a ring somewhere, with so much noise that small and large are not always told apart."""
    rows, columns = np.mgrid[:24, :24]
    middle = rng.integers(9, 15, 2)
    ink = np.abs(np.hypot(rows - middle[0], columns - middle[1]) - radius_px) < 1.2
    return (ink[..., None] * 90 + rng.normal(80, 70, (24, 24, 3))).clip(0, 255).astype(np.uint8)


def draw_arrows(count: int, seed: int, classes: tuple[str, ...] = ARROWS) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [(draw_arrow(name, rng), label) for label, name in enumerate(classes) for _ in range(count)]


def draw_rings(count: int, seed: int) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [(draw_ring(radius, rng), label) for label, radius in enumerate((4, 6, 8)) for _ in range(count)]


def fit(pictures: list[Picture]) -> Callable[[np.ndarray], np.ndarray]:
    pixels, labels = zip(*pictures, strict=True)
    model = LogisticRegression(C=0.01, max_iter=200)
    model.fit(np.stack([picture[..., 0].ravel() for picture in pixels]) / 255, labels)
    return lambda picture: model.predict_proba(picture[..., 0].reshape(1, -1) / 255)[0]


def test_left_and_right_are_found_and_named() -> None:
    pictures = draw_arrows(50, seed=1)
    check = check_flip(fit(draw_arrows(100, seed=0)), pictures, ARROWS)
    assert check.num_pictures == 200
    assert check.num_right >= 190
    assert check.right_to_wrong - check.wrong_to_right == check.num_right - check.num_right_mirrored
    assert check.right_to_wrong >= 90
    assert check.p_value < 1e-6
    (exchange,) = check.exchanges
    assert exchange.classes == ("left", "right")
    (left, right), (num_left, num_right) = exchange.num_exchanged, exchange.num_recognised
    assert min(left, right) >= 45
    assert check.warning == (
        f"Mirrored, 'left' becomes 'right' in {left} of {num_left} pictures and 'right' becomes 'left' in {right} of "
        f"{num_right} pictures: a flip changes what these classes mean. Augment without the flip "
        "(horizontal_flip=False)."
    )


def test_up_and_down_alone_are_the_same_in_the_mirror() -> None:
    names = ("up", "down")
    check = check_flip(fit(draw_arrows(100, 0, names)), draw_arrows(50, 1, names), names)
    assert check.num_right_mirrored >= 90
    assert check.exchanges == ()
    assert check.warning is None


def test_a_classifier_that_wavers_gives_no_warning() -> None:
    check = check_flip(fit(draw_rings(150, seed=0)), draw_rings(100, seed=1), ("small", "middle", "large"))
    assert check.num_right >= 150
    assert check.right_to_wrong >= 5, "too good to show anything"
    assert check.warning is None


def test_guessing_gives_no_warning() -> None:
    """100 runs of a classifier that knows nothing: at a level of 5 % of all runs not more than a few may warn."""
    warned = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        pictures = [(np.full((2, 2, 3), 9, np.uint8), number % 4) for number in range(60)]
        warned += check_flip(lambda _, rng=rng: rng.random(4), pictures, ARROWS).warning is not None
    assert warned <= 5


def run_by_table(classes_by_corner: dict[int, int], num_classes: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda picture: np.eye(num_classes)[classes_by_corner[int(picture[0, 0, 0])]]


def make_pairs(outcomes: list[tuple[int, int, int, int]]) -> tuple[list[Picture], dict[int, int]]:
    """Two-pixel pictures of (count, label, class of the picture, class of its mirror image)."""
    pictures, table = [], {}
    for number, (count, label, plain, mirrored) in enumerate(outcomes):
        pixels = np.array([[[2 * number] * 3, [2 * number + 1] * 3]], np.uint8)
        table.update({2 * number: plain, 2 * number + 1: mirrored})
        pictures += [(pixels, label)] * count
    return pictures, table


def check_pairs(outcomes: list[tuple[int, int, int, int]], num_classes: int):  # type: ignore[no-untyped-def]
    pictures, table = make_pairs(outcomes)
    return check_flip(run_by_table(table, num_classes), pictures, tuple("abcdef"[:num_classes]))


def test_counts_by_hand() -> None:
    check = check_pairs([(20, 0, 0, 0), (5, 0, 0, 1), (2, 1, 0, 1), (10, 1, 1, 1), (1, 1, 1, 2), (3, 2, 0, 1)], 3)
    assert (check.num_pictures, check.num_right, check.num_right_mirrored) == (41, 36, 32)
    assert (check.right_to_wrong, check.wrong_to_right) == (6, 2)
    assert check.p_value == pytest.approx(2 * (1 + 8 + 28) / 2**8)
    assert check.warning is None


def test_one_way_is_enough_and_other_pairs_are_named() -> None:
    check = check_pairs([(12, 0, 0, 1), (20, 1, 1, 1), (15, 2, 2, 3), (15, 3, 3, 2)], 4)
    assert [exchange.classes for exchange in check.exchanges] == [("c", "d"), ("a", "b")]
    assert check.exchanges[1].p_value == pytest.approx(6 * 2 / 2**12)
    assert check.exchanges[1].exchanged_frac == pytest.approx(12 / 32)
    assert check.warning is not None
    assert "'c' becomes 'd' in 15 of 15 pictures and 'd' becomes 'c' in 15 of 15" in check.warning
    assert "Also exchanged: 'a' and 'b'." in check.warning
    alone = check_pairs([(12, 0, 0, 1), (20, 1, 1, 1)], 2).warning
    assert alone is not None
    assert alone.startswith("Mirrored, 'a' becomes 'b' in 12 of 12 pictures: ")


@pytest.mark.parametrize(
    "outcomes",
    [
        [(4, 0, 0, 1), (1, 1, 1, 1)],  # too few to be sure: p = 0.125
        [(20, 0, 0, 1), (90, 0, 0, 0), (90, 1, 1, 1)],  # sure, but a tenth only
        [(8, 0, 0, 1), (10, 1, 1, 1), (40, 1, 0, 1)],  # mirror images are recognised more often
    ],
)
def test_no_warning(outcomes: list[tuple[int, int, int, int]]) -> None:
    assert check_pairs(outcomes, 2).warning is None


def test_the_number_of_pairs_counts() -> None:
    """6 of 6 exchanged have p = 0.031: enough for two classes, not for four."""
    outcomes = [(6, 0, 0, 1)]
    assert check_pairs(outcomes, 2).warning is not None
    assert check_pairs(outcomes, 4).warning is None


def test_bad_input_is_refused() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)

    def endless() -> Iterator[Picture]:
        yield pixels, 0
        yield pixels, 2

    with pytest.raises(DataError) as caught:
        check_flip(lambda _: np.array([1.0, 0.0]), endless(), ("a", "b"))
    assert str(caught.value) == "Picture 1 has the label 2. Expected 0 to 1."
    with pytest.raises(DataError) as caught:
        check_flip(lambda _: np.array([1.0, 0.0]), [], ("a", "b"))
    assert str(caught.value) == "There are no pictures to mirror. Pass at least one."
