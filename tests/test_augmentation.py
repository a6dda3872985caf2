"""Random views against the network's own preprocessing, trigonometry, SciPy's warp and torchvision's operations."""

from __future__ import annotations

import colorsys
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image
from test_graph import SQUARES, in_grey_levels, make_preprocessor, make_scene, run

from headstart.errors import ConfigError
from headstart.finetuning.augmentation import PRESETS, RANDAUGMENT, Augmentation, draw_view, find_preset, warp

SIZE_PX = 64
WHOLE = in_grey_levels(SIZE_PX, 1.0)
EVERYTHING = Augmentation(True, 40, 0.2, 0.2, 0.2, 0.4, 0.1, 3, 20, 0.3, 0.2, 1.0)


def draw_views(pixels: np.ndarray, count: int, **operations: object) -> list[np.ndarray]:
    augmentation = Augmentation(**operations)
    return [draw_view(pixels, augmentation, WHOLE, np.random.default_rng(seed)) for seed in range(count)]


def draw_dot(x: float, y: float) -> np.ndarray:
    """uint8 (64, 64, 3): a soft white dot, its middle so far to the right of and below the picture's."""
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX] + 0.5 - SIZE_PX / 2
    dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
    return np.repeat(dot[..., None], 3, axis=2).round().astype(np.uint8)


def find_dot(pixels: np.ndarray) -> tuple[float, float]:
    weights = pixels[..., 0].astype(float)
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX] + 0.5 - SIZE_PX / 2
    return float((weights * columns).sum() / weights.sum()), float((weights * rows).sum() / weights.sum())


def covers(values: np.ndarray, low: float, high: float) -> bool:
    """All within low .. high, up to a little, and spread over nearly all of it."""
    margin = 0.1 * (high - low)
    is_within = low - 0.3 * margin <= values.min() and values.max() <= high + 0.3 * margin
    return is_within and values.min() < low + margin and values.max() > high - margin


# Without augmentation


@pytest.mark.parametrize(("height", "width"), [square[:2] for square in SQUARES])
def test_a_view_without_augmentation_is_what_the_graph_makes(height: int, width: int) -> None:
    spec = in_grey_levels(224, 0.875)
    pixels = make_scene(height, width)
    view = draw_view(pixels, Augmentation(), spec, np.random.default_rng(0))
    assert (view.shape, view.dtype) == ((224, 224, 3), np.uint8)
    assert np.abs(run(make_preprocessor(spec), pixels) - view).mean() <= 0.5


@pytest.mark.parametrize("crop_frac", [0.5, 0.75, 0.882, 1.0])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 91), (92, 64), (73, 72)])
def test_the_square_is_the_graphs_to_the_pixel(height: int, width: int, crop_frac: float) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    spec = in_grey_levels(64, crop_frac)
    view = draw_view(pixels, Augmentation(), spec, np.random.default_rng(0))
    found = run(make_preprocessor(spec), pixels)
    assert np.abs(found - view).mean() <= 1, "another square of noise would differ by 50 and more"


# Geometry


def test_a_flip_is_exact_and_comes_half_of_the_time() -> None:
    pixels = make_scene(70, 90)
    (plain,) = draw_views(pixels, 1)
    views = draw_views(pixels, 200, horizontal_flip=True)
    is_flipped = [np.array_equal(view, plain[:, ::-1]) for view in views]
    is_plain = [np.array_equal(view, plain) for view in views]
    assert all(a != b for a, b in zip(is_flipped, is_plain, strict=True))
    assert 70 <= sum(is_flipped) <= 130


def test_rotation_keeps_the_distance_and_turns_within_its_range() -> None:
    views = draw_views(draw_dot(18, 0), 120, rotation_deg=40)
    x, y = np.array([find_dot(view) for view in views]).T
    np.testing.assert_allclose(np.hypot(x, y), 18, atol=0.1)
    assert covers(np.degrees(np.arctan2(y, x)), -40, 40)


def test_shifts_are_shares_of_the_side_in_both_directions_on_their_own() -> None:
    views = draw_views(draw_dot(0, 0), 120, shift_frac=0.2)
    x, y = np.array([find_dot(view) for view in views]).T / SIZE_PX
    assert covers(x, -0.2, 0.2)
    assert covers(y, -0.2, 0.2)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.3


def test_shear_moves_top_and_bottom_apart_by_its_share_of_the_side() -> None:
    top, bottom = (draw_views(draw_dot(0, y), 120, shear_frac=0.2) for y in (-16, 16))
    (x_top, y_top), (x_bottom, y_bottom) = (np.array([find_dot(view) for view in views]).T for views in (top, bottom))
    np.testing.assert_allclose(y_top, -16, atol=0.1)
    np.testing.assert_allclose(y_bottom, 16, atol=0.1)
    np.testing.assert_allclose(x_top, -x_bottom, atol=0.1)
    assert covers((x_bottom - x_top) / 32, -0.2, 0.2)


def test_zoom_magnifies_width_and_height_on_their_own() -> None:
    views = draw_views(draw_dot(16, -16), 120, zoom_frac=0.2)
    x, y = np.array([find_dot(view) for view in views]).T
    assert covers(x / 16, 0.8, 1.2)
    assert covers(y / -16, 0.8, 1.2)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.3


@pytest.mark.parametrize("angle_deg", [-150, -40, 0, 25, 90])
def test_a_warp_moves_points_where_trigonometry_says(angle_deg: float) -> None:
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    matrix = np.array([[cos, sin], [-sin, cos]])
    moved = warp(Image.fromarray(draw_dot(10, -6)), matrix, (0.125, -0.0625))
    expected = (10 * cos - 6 * sin + 8, -10 * sin - 6 * cos - 4)
    np.testing.assert_allclose(find_dot(np.asarray(moved)), expected, atol=0.1)


def test_what_comes_from_outside_is_the_nearest_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    moved = np.asarray(warp(Image.fromarray(pixels), np.eye(2), (16 / 64, -24 / 64)))
    expected = pixels[np.arange(24, 88).clip(0, 63)][:, np.arange(-16, 48).clip(0, 63)]
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("seed", range(12))
def test_a_warp_is_scipys_with_the_nearest_edge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    matrix, shift = np.eye(2) + rng.uniform(-0.4, 0.4, (2, 2)), rng.uniform(-0.5, 0.5, 2)
    found = np.asarray(warp(Image.fromarray(pixels), matrix, (shift[0], shift[1])))
    back = np.linalg.inv(matrix)[::-1, ::-1]  # SciPy counts rows first
    middle = np.array([31.5, 31.5])
    offset = middle - back @ (middle + 64 * shift[::-1])
    for channel in range(3):
        plane = pixels[..., channel].astype(float)
        expected = scipy.ndimage.affine_transform(plane, back, offset, order=1, mode="nearest")
        np.testing.assert_allclose(found[..., channel], expected, atol=1.01)


# Random crop


def draw_ramps(height: int, width: int) -> np.ndarray:
    """Red tells the column, green the row, as shares of the sides."""
    rows, columns = (np.mgrid[:height, :width] + 0.5) / np.array([height, width]).reshape(2, 1, 1)
    return (np.stack([columns, rows, rows], axis=2) * 255).round().astype(np.uint8)


def read_crop(view: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom as shares of the sides, from a view of the ramps."""
    lines = view[SIZE_PX // 2, :, 0] / 255, view[:, SIZE_PX // 2, 1] / 255
    # Between pixels 9 and 54, where the resize does not see the edge, and on from there.
    sizes = np.array([(line[54] - line[9]) / 45 * SIZE_PX for line in lines])
    middles = np.array([(line[54] + line[9]) / 2 for line in lines])
    return np.concatenate([middles - sizes / 2, middles + sizes / 2])


def test_a_crop_has_its_share_of_the_area_and_its_proportions() -> None:
    height, width = 600, 800
    crops = np.array(
        [read_crop(view) for view in draw_views(draw_ramps(height, width), 300, resized_crop_min_frac=0.2)]
    )
    left, top, right, bottom = crops.T
    assert crops.min() > -0.015
    assert crops.max() < 1.015
    area, ratio = (right - left) * (bottom - top), (right - left) * width / ((bottom - top) * height)
    assert covers(area, 0.2, 1.0)
    assert covers(np.log(ratio), math.log(3 / 4), math.log(4 / 3))
    small = area < 0.4
    assert left[small].min() < 0.05
    assert right[small].max() > 0.95
    assert top[small].min() < 0.05
    assert bottom[small].max() > 0.95


@pytest.mark.parametrize(("height", "width", "box"), [(60, 160, (0.25, 0, 0.75, 1)), (160, 60, (0, 0.25, 1, 0.75))])
def test_a_crop_that_never_fits_is_the_widest_in_the_middle(height: int, width: int, box: tuple[float, ...]) -> None:
    for view in draw_views(draw_ramps(height, width), 5, resized_crop_min_frac=0.9):
        np.testing.assert_allclose(read_crop(view), box, atol=0.015)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_the_smallest_pictures_have_views(height: int, width: int) -> None:
    pixels = np.full((height, width, 3), 90, np.uint8)
    for augmentation in (*PRESETS.values(), EVERYTHING):
        for seed in range(5):
            view = draw_view(pixels, augmentation, WHOLE, np.random.default_rng(seed))
            assert view.shape == (SIZE_PX, SIZE_PX, 3)


# Colour


def test_brightness_contrast_and_saturation_are_factors_in_their_range() -> None:
    """Grey stripes give brightness (mean) and contrast (difference), a coloured one what is left: saturation."""
    pixels = np.full((SIZE_PX, SIZE_PX, 3), 100, np.uint8)
    pixels[:, :20], pixels[:, 20:40], pixels[:, 40:60] = 85, 115, (110, 100, 90)
    found = []
    for view in draw_views(pixels, 150, colour_frac=0.4):
        dark, light, coloured = (view[5, column].astype(float) for column in (10, 30, 50))
        brightness = view.mean() / 100
        contrast = (light - dark).mean() / 30 / brightness
        found.append((brightness, contrast, (coloured[0] - coloured[2]) / 20 / brightness / contrast))
    for factors in np.array(found).T:
        assert factors.min() >= 0.5
        assert factors.max() <= 1.55
        assert factors.min() < 0.7
        assert factors.max() > 1.3
    brightness, contrast, saturation = np.array(found).T
    assert covers(brightness, 0.6, 1.4)
    assert abs(np.corrcoef([brightness, contrast, saturation]) - np.eye(3)).max() < 0.4


def test_hue_turns_and_leaves_brightness_and_grey() -> None:
    pixels = np.full((SIZE_PX, SIZE_PX, 3), 100, np.uint8)
    pixels[:32] = (200, 50, 50)
    turns = []
    for view in draw_views(pixels, 100, hue_frac=0.1):
        np.testing.assert_array_equal(view[40:], 100)
        hue, saturation, value = colorsys.rgb_to_hsv(*(view[5, 5] / 255))
        assert saturation == pytest.approx(0.75, abs=0.02)
        assert value == pytest.approx(200 / 255, abs=0.01)
        turns.append((hue + 0.5) % 1 - 0.5)
    assert covers(np.array(turns), -0.1, 0.1)


# RandAugment


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugment_does_what_torchvision_does(magnitude: int, sign: int) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    functional, bilinear = v2.functional, v2.InterpolationMode.BILINEAR
    image, white = Image.fromarray(make_scene(331, 331)), Image.new("RGB", (331, 331), "white")
    strength = magnitude / 30
    size, shear_deg = strength * sign, math.degrees(math.atan(0.3 * strength * sign))

    def move(image: Image.Image, x_px: int = 0, y_px: int = 0, shear: tuple[float, float] = (0, 0)) -> Image.Image:
        return functional.affine(image, 0, [x_px, y_px], 1.0, list(shear), bilinear)

    geometric = {
        "ShearX": lambda image: move(image, shear=(-shear_deg, 0)),  # the sign is drawn anyway
        "ShearY": lambda image: move(image, shear=(0, -shear_deg)),
        "TranslateX": lambda image: move(image, x_px=round(150 * size)),
        "TranslateY": lambda image: move(image, y_px=round(150 * size)),
        "Rotate": lambda image: functional.rotate(image, 30 * size, bilinear),
    }
    in_place = {
        "Identity": lambda image: image,
        "Brightness": lambda image: functional.adjust_brightness(image, 1 + 0.9 * size),
        "Color": lambda image: functional.adjust_saturation(image, 1 + 0.9 * size),
        "Contrast": lambda image: functional.adjust_contrast(image, 1 + 0.9 * size),
        "Sharpness": lambda image: functional.adjust_sharpness(image, 1 + 0.9 * size),
        "Posterize": lambda image: functional.posterize(image, {0: 8, 9: 7, 30: 4}[magnitude]),
        "Solarize": lambda image: functional.solarize(image, 255 * (1 - strength)),
        "AutoContrast": functional.autocontrast,
        "Equalize": functional.equalize,
    }
    assert set(RANDAUGMENT) == {*geometric, *in_place} == set(v2.RandAugment._AUGMENTATION_SPACE)
    for name, expected in in_place.items():
        found = RANDAUGMENT[name](image, strength, sign)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected(image)), err_msg=name)
    for name, expected in geometric.items():
        found = np.asarray(RANDAUGMENT[name](image, strength, sign)).astype(int)
        inside = np.asarray(expected(white)).min(axis=2) == 255
        assert inside.mean() > 0.5
        difference = np.abs(found - np.asarray(expected(image)))[inside]
        assert difference.max() <= 1, name


def test_randaugment_draws_every_operation_in_both_directions() -> None:
    pixels = make_scene(SIZE_PX, SIZE_PX)
    views = draw_views(pixels, 300, randaugment_ops=1, randaugment_magnitude=15)
    image = Image.fromarray(pixels)
    expected = {
        (name, sign): np.asarray(operation(image, 0.5, sign))
        for name, operation in RANDAUGMENT.items()
        for sign in (1, -1)
    }
    counts = {key: sum(np.array_equal(view, each) for view in views) for key, each in expected.items()}
    assert min(counts.values()) >= 2, counts
    assert all(any(np.array_equal(view, each) for each in expected.values()) for view in views)


def test_randaugment_does_as_many_operations_as_are_asked() -> None:
    pixels = make_scene(SIZE_PX, SIZE_PX)
    once, thrice = (
        np.mean([np.abs(view.astype(int) - pixels).mean() for view in draw_views(pixels, 60, randaugment_ops=count)])
        for count in (1, 3)
    )
    assert thrice > 1.5 * once


# Randomness


def test_views_are_the_same_from_any_thread_in_any_order() -> None:
    pictures = [make_scene(80 + 7 * number, 120) for number in range(8)]

    def draw(seed: int) -> bytes:
        return draw_view(pictures[seed % 8], EVERYTHING, WHOLE, np.random.default_rng([3, seed])).tobytes()

    expected = [draw(seed) for seed in range(64)]
    assert len(set(expected)) == 64
    order = np.random.default_rng(0).permutation(64).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(order, pool.map(draw, order), strict=True))
    assert [found[seed] for seed in range(64)] == expected


def test_global_randomness_is_neither_used_nor_moved() -> None:
    pixels = make_scene(80, 120)
    views = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        states = random.getstate(), np.random.get_state()[1].tolist()
        views.append(draw_view(pixels, EVERYTHING, WHOLE, np.random.default_rng(0)))
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    np.testing.assert_array_equal(*views)


def test_the_picture_itself_is_not_changed() -> None:
    pixels = make_scene(SIZE_PX, SIZE_PX)
    before = pixels.copy()
    pixels.flags.writeable = False
    for seed in range(10):
        draw_view(pixels, EVERYTHING, WHOLE, np.random.default_rng(seed))
    np.testing.assert_array_equal(pixels, before)


# Settings


def test_the_text_for_keys_is_equal_for_equals_only() -> None:
    assert Augmentation(rotation_deg=40).to_json() == Augmentation(rotation_deg=40.0).to_json()
    assert Augmentation(resized_crop_min_frac=1).to_json() == Augmentation(resized_crop_min_frac=1.0).to_json()
    changes = {
        **{field.name: 0.3 for field in fields(Augmentation)},
        "horizontal_flip": True,
        "randaugment_ops": 2,
    }
    texts = {replace(Augmentation(), **{name: value}).to_json() for name, value in changes.items()}
    assert len(texts | {Augmentation().to_json()}) == len(fields(Augmentation)) + 1
    read = json.loads(EVERYTHING.to_json())
    assert read.pop("version") == 1
    assert Augmentation(**read) == EVERYTHING


def test_presets_are_found_by_name() -> None:
    assert find_preset("none") == Augmentation()
    tutorial = find_preset("tutorial")
    assert (tutorial.rotation_deg, tutorial.horizontal_flip) == (40, True)
    assert tutorial.shift_frac == tutorial.shear_frac == tutorial.zoom_frac == 0.2
    with pytest.raises(ConfigError) as caught:
        find_preset("stong")
    assert str(caught.value) == (
        "There is no preset 'stong'. Did you mean 'strong'? Known: none, flip, light, tutorial, strong."
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rotation_deg", 181, "rotation_deg is 181. Expected a number from 0 to 180."),
        ("shift_frac", -0.1, "shift_frac is -0.1. Expected a number from 0 to 1."),
        ("zoom_frac", 0.6, "zoom_frac is 0.6. Expected a number from 0 to 0.5."),
        ("colour_frac", float("nan"), "colour_frac is nan. Expected a number from 0 to 1."),
        ("hue_frac", "0.1", "hue_frac is '0.1'. Expected a number from 0 to 0.5."),
        ("randaugment_ops", 2.0, "randaugment_ops is 2.0. Expected a whole number from 0 to 20."),
        ("randaugment_magnitude", 31, "randaugment_magnitude is 31. Expected a number from 0 to 30."),
        ("resized_crop_min_frac", 0, "resized_crop_min_frac is 0. Expected a number from 0.01 to 1."),
        ("mixup_alpha", True, "mixup_alpha is True. Expected a number from 0 to 100."),
        ("cutmix_alpha", None, "cutmix_alpha is None. Expected a number from 0 to 100."),
        ("horizontal_flip", 1, "horizontal_flip is 1. Expected True or False."),
    ],
)
def test_wrong_values_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Augmentation(**{name: value})
    assert str(caught.value) == message


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="2 problems:\n.*shear_frac is 7.*\n.*zoom_frac is -1"):
        Augmentation(shear_frac=7, zoom_frac=-1)
