"""The picture of an augmentation: what stands in its cells."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from drawn_pictures import draw_picture
from PIL import Image

from headstart.finetuning.augmentation import PRESETS, Augmentation, draw_view
from headstart.finetuning.augmentation_picture import render_grid
from headstart.graph import PreprocessSpec

SPEC = PreprocessSpec(160, 1.0, mean=(0, 0, 0), std=(1, 1, 1))  # a cell's size: nothing is resized
PICTURES = [(f"{shape}.png", draw_picture(shape, 0)) for shape in ("circles", "stripes", "checks")]
GAP_PX, STEP_PX, ROW_PX, TOP_PX = 8, 168, 188, 76


def render(augmentation: Augmentation, count: int = 3, seed: int = 0) -> Image.Image:
    return render_grid(PICTURES[:count], augmentation, SPEC, seed)


def cut_cell(grid: Image.Image, row: int, column: int) -> np.ndarray:
    left, top = GAP_PX + STEP_PX * column, TOP_PX + ROW_PX * row
    return np.asarray(grid.crop((left, top, left + 160, top + 160)))


def view_plainly(row: int) -> np.ndarray:
    return draw_view(PICTURES[row][1], Augmentation(), SPEC, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "count", "num_columns"),
    [("none", 3, 1), ("light", 3, 7), ("tutorial", 3, 10), ("strong", 3, 10), ("strong", 1, 8)],
)
def test_a_column_for_each_operation_that_is_on(name: str, count: int, num_columns: int) -> None:
    grid = render(PRESETS[name], count)
    assert grid.size == (GAP_PX + STEP_PX * num_columns, TOP_PX - 20 + ROW_PX * count)
    for row in range(count):
        np.testing.assert_array_equal(cut_cell(grid, row, 0), view_plainly(row))
        for column in range(num_columns):
            assert cut_cell(grid, row, column).std() > 10
    captions = np.asarray(grid)[: TOP_PX - 22]
    for column in range(num_columns):
        left = GAP_PX + STEP_PX * column
        assert (captions[:, left : left + 160] < 100).any()
        assert (captions[:, left + 160 : left + STEP_PX] == 255).all(), "a caption runs into the next column"


def test_operations_stand_alone_and_then_together() -> None:
    grid = render(Augmentation(horizontal_flip=True, mixup_alpha=0.2, cutmix_alpha=1.0))
    plain = [view_plainly(row) for row in range(3)]
    for row in range(3):
        own, other = plain[row].astype(float), plain[(row + 1) % 3].astype(float)
        np.testing.assert_array_equal(cut_cell(grid, row, 1), plain[row][:, ::-1])
        np.testing.assert_allclose(cut_cell(grid, row, 2), 0.6 * own + 0.4 * other, atol=0.51)
        cut = cut_cell(grid, row, 3)
        np.testing.assert_array_equal(cut[60:140, 60:140], plain[(row + 1) % 3][60:140, 60:140])
        np.testing.assert_array_equal(cut[:, :40], plain[row][:, :40])
    together = [cut_cell(grid, 0, column).tobytes() for column in range(4, 8)]
    assert len(set(together)) == 4


def test_the_seed_decides() -> None:
    first, again, other = (render(PRESETS["tutorial"], seed=seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    for column in range(2, 10):
        assert cut_cell(first, 0, column).tobytes() != cut_cell(other, 0, column).tobytes()
    assert len({cut_cell(first, 0, column).tobytes() for column in range(10)}) == 10


def test_six_rows_at_most() -> None:
    grid = render_grid(PICTURES * 3, PRESETS["light"], SPEC, 0)
    assert grid.height == TOP_PX - 20 + ROW_PX * 6
