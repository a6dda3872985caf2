"""Mixup and cutmix against sums and areas worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from headstart.finetuning.augmentation import Augmentation  # noqa: E402
from headstart.finetuning.mixing import Mix, draw_mix  # noqa: E402

NEXT = np.array([1, 2, 0])
BOX = (0.25, 0.5, 0.625, 1.0)  # rows 1 and half of row 2 of four, columns 2 and 3
BOX_MIX = Mix(NEXT, 1 - 0.375 * 0.5, BOX)


def draw_mixes(count: int, batch_size: int = 4, **alphas: float) -> list[Mix]:
    drawn = [draw_mix(batch_size, Augmentation(**alphas), np.random.default_rng([1, seed])) for seed in range(count)]
    return [mix for mix in drawn if mix is not None]


def test_mixup_by_hand() -> None:
    mix = Mix(NEXT, 0.75)
    rows = torch.tensor([[0.0, 8.0], [4.0, 0.0], [8.0, 4.0]])
    expected = torch.tensor([[1.0, 6.0], [5.0, 1.0], [6.0, 5.0]])
    torch.testing.assert_close(mix.apply_vectors(rows), expected)
    torch.testing.assert_close(mix.apply_targets(rows), expected)
    maps = rows[:, :, None, None].expand(3, 2, 5, 7)
    torch.testing.assert_close(mix.apply_maps(maps), expected[:, :, None, None].expand(3, 2, 5, 7))


def test_cutmix_by_hand() -> None:
    maps = torch.tensor([0.0, 1.0, 10.0])[:, None, None, None].expand(3, 1, 4, 4)
    pasted = BOX_MIX.apply_maps(maps)[0, 0]
    expected = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0, 0]], dtype=torch.float32)
    torch.testing.assert_close(pasted, expected)
    torch.testing.assert_close(BOX_MIX.apply_maps(maps)[1, 0], 1 + 9 * expected)
    targets = BOX_MIX.apply_targets(torch.eye(3))
    torch.testing.assert_close(targets[0], torch.tensor([0.8125, 0.1875, 0.0]))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (14, 9), (224, 224)])
def test_the_pasted_part_is_the_same_at_every_size(size: tuple[int, int]) -> None:
    for mix in draw_mixes(20, batch_size=2, cutmix_alpha=1):
        if mix.permutation[0] == 0:
            continue
        maps = torch.stack([torch.zeros(5, *size), torch.ones(5, *size)])
        pasted = mix.apply_maps(maps).mean(dim=(2, 3))
        np.testing.assert_allclose(pasted[0], 1 - mix.kept_frac, atol=1e-5)
        np.testing.assert_allclose(pasted, mix.apply_vectors(maps.mean(dim=(2, 3))), atol=1e-5)


def test_pixels_outside_of_the_box_stay_and_inside_are_the_others() -> None:
    maps = torch.from_numpy(np.random.default_rng(0).random((3, 2, 8, 8), dtype=np.float32))
    before = maps.clone()
    mixed = BOX_MIX.apply_maps(maps)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:5, 4:8] = True
    assert torch.equal(mixed[:, :, inside], maps[torch.from_numpy(NEXT)][:, :, inside])
    assert torch.equal(mixed[:, :, ~inside], maps[:, :, ~inside])
    assert torch.equal(maps, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mix", [BOX_MIX, Mix(NEXT, 0.75)])
def test_kind_and_memory_layout_are_kept(mix: Mix, dtype: torch.dtype) -> None:
    maps = torch.rand(3, 4, 6, 6).to(dtype).to(memory_format=torch.channels_last)
    mixed = mix.apply_maps(maps)
    assert mixed.dtype == dtype
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert mix.apply_targets(torch.eye(3, dtype=dtype)).dtype == dtype


def test_mixup_draws_its_share_from_the_beta_distribution() -> None:
    uniform, narrow = (np.array([mix.kept_frac for mix in draw_mixes(400, mixup_alpha=a)]) for a in (1.0, 50.0))
    assert uniform.min() >= 0.5
    assert uniform.max() <= 1
    assert uniform.mean() == pytest.approx(0.75, abs=0.03)  # Beta(1, 1) is uniform
    assert uniform.std() == pytest.approx(0.5 / 12**0.5, abs=0.02)
    assert narrow.max() < 0.68  # Beta(50, 50) has a standard deviation of 0.05
    assert all(mix.box is None for mix in draw_mixes(20, mixup_alpha=1.0))


def test_cutmix_draws_boxes_within_the_picture() -> None:
    mixes = draw_mixes(600, cutmix_alpha=1.0)
    boxes = np.array([mix.box for mix in mixes])
    top, left, bottom, right = boxes.T
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    np.testing.assert_allclose([mix.kept_frac for mix in mixes], 1 - (bottom - top) * (right - left))
    is_whole = (boxes > 0).all(axis=1) & (boxes < 1).all(axis=1)
    np.testing.assert_allclose((bottom - top)[is_whole], (right - left)[is_whole])
    assert 0.1 < is_whole.mean() < 0.6
    # Of a side c an interval with its middle anywhere keeps c - c * c / 4 on average; c * c is uniform.
    share = np.sqrt(np.random.default_rng(0).random(100_000))
    assert np.mean((bottom - top) * (right - left)) == pytest.approx(np.mean((share - share**2 / 4) ** 2), abs=0.03)


def test_with_both_on_each_is_drawn_for_half_of_the_batches() -> None:
    boxes = [mix.box is not None for mix in draw_mixes(300, mixup_alpha=0.2, cutmix_alpha=1.0)]
    assert 110 <= sum(boxes) <= 190


def test_partners_are_a_permutation_and_the_seed_decides() -> None:
    mixes = draw_mixes(30, batch_size=16, mixup_alpha=0.2, cutmix_alpha=1.0)
    assert all(sorted(mix.permutation) == list(range(16)) for mix in mixes)
    assert len({tuple(mix.permutation) for mix in mixes}) == 30
    again = draw_mixes(30, batch_size=16, mixup_alpha=0.2, cutmix_alpha=1.0)
    for mix, same in zip(mixes, again, strict=True):
        assert (mix.kept_frac, mix.box) == (same.kept_frac, same.box)
        np.testing.assert_array_equal(mix.permutation, same.permutation)


def test_nothing_is_mixed_when_off_or_alone() -> None:
    rng = np.random.default_rng(0)
    assert draw_mix(8, Augmentation(), rng) is None
    assert draw_mix(1, Augmentation(mixup_alpha=1, cutmix_alpha=1), rng) is None
    assert rng.random() == np.random.default_rng(0).random()
