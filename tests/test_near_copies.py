"""Near-copies: planted ones are found with their kind, others that are as near are not, and the report says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.dataset import ImageRecord
from headstart.errors import DataError
from headstart.evaluation import Evaluation
from headstart.features import Picture
from headstart.insight import near_copies
from headstart.insight.alignment import compare_thumbnails, make_thumbnail
from headstart.insight.near_copies import NearCopies, NearCopy, find_near_copies
from headstart.insight.near_copies_section import compare_without, describe_near_copies
from headstart.pictures import hash_source

SIDE_PX = 160


def draw_scene(number: int, side_px: int = SIDE_PX) -> Image.Image:
    """Blurred noise at several sizes: as much structure as a photo, and no two alike."""
    rng = np.random.default_rng([7, number])
    levels = np.zeros((side_px, side_px, 3))
    for size in (3, 6, 12, 24):
        noise = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
        levels += np.asarray(noise.resize((side_px, side_px), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(((levels - levels.min()) / np.ptp(levels) * 255).astype(np.uint8))


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def crop(image: Image.Image) -> Image.Image:
    return image.crop((0, 3, 150, 156))


def brighten(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) * 1.15 + 10).clip(0, 255).astype(np.uint8))


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "resized": (lambda image: image.resize((100, 90)), "same view"),
    "brightened": (brighten, "same view"),
    "cropped": (crop, "cropped"),
    "mirrored": (mirror, "mirrored"),
    "all": (lambda image: mirror(crop(brighten(image))).resize((90, 90)), "mirrored and cropped"),
}


def save(image: Image.Image, path: Path, quality: int = 60) -> Picture:
    image.save(path, quality=quality)
    return Picture(hash_source(path), str(path))


def make_features(origin: list[int], rng: np.random.Generator, noise: float = 0.05) -> np.ndarray:
    """Positive features (N, 400) in which pictures of one origin lie close together."""
    scenes = rng.random((max(origin) + 1, 400))
    return (scenes[origin] + noise * rng.random((len(origin), 400))).astype(np.float32)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Picture], np.ndarray]:
    """30 scenes and, from row 30 on, each change of one of scenes 0 to 4; features say that 10 .. 19 are in pairs too."""
    folder = tmp_path_factory.mktemp("scenes")
    pictures = [save(draw_scene(number), folder / f"{number:02}.jpg", 95) for number in range(30)]
    for number, (name, (change, _)) in enumerate(CHANGES.items()):
        pictures.append(save(change(draw_scene(number)), folder / f"{name}.jpg"))
    near = [number - number % 2 if 10 <= number < 20 else number for number in range(30)]
    return pictures, make_features([*near, *range(len(CHANGES))], np.random.default_rng(0))


def test_planted_copies_are_found_and_near_features_do_not_suffice(planted: tuple[list[Picture], np.ndarray]) -> None:
    pictures, features = planted
    found = find_near_copies(pictures, features, num_threads=1)
    kinds = {(pair.first, pair.second): pair.kind for pair in found.pairs}
    assert kinds == {(number, 30 + number): kind for number, (_, kind) in enumerate(CHANGES.values())}
    assert found.groups == tuple((number, 30 + number) for number in range(5))
    assert found.num_candidates == 20  # the five pairs, and the ten pictures that only features bring together
    assert all(0.85 <= pair.correlation <= 1 and 0.8 < pair.similarity <= 1 for pair in found.pairs)
    assert (found.num_pictures, found.min_correlation, found.too_small, found.unread) == (35, 0.85, (), ())


def test_threads_change_nothing_and_progress_reaches_its_end(planted: tuple[list[Picture], np.ndarray]) -> None:
    pictures, features = planted
    told: list[tuple[int, int]] = []
    one = find_near_copies(pictures, features, 1, lambda done, total: told.append((done, total)))
    assert one == find_near_copies(pictures, features, 3)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]


def test_many_pictures_are_searched_by_components(
    planted: tuple[list[Picture], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, features = planted
    expected = find_near_copies(pictures, features)
    monkeypatch.setattr(near_copies, "_MANY_PICTURES", 34)
    monkeypatch.setattr(near_copies, "_NUM_COMPONENTS", 25)
    monkeypatch.setattr(near_copies, "_ROWS_AT_ONCE", 10)
    found = find_near_copies(pictures, features.astype(np.float16))
    assert found.groups == expected.groups
    assert found.pairs[0].similarity != expected.pairs[0].similarity


def test_far_features_are_not_read(planted: tuple[list[Picture], np.ndarray]) -> None:
    pictures, _ = planted
    missing = [Picture(picture.sha256, "none.jpg") for picture in pictures[:30]]
    apart = np.random.default_rng(1).random((30, 400)).astype(np.float32)
    assert find_near_copies(missing, apart).num_candidates == 0


def test_a_picture_that_changed_or_went_is_named(
    planted: tuple[list[Picture], np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    pictures, features = planted
    pictures = [*pictures[:31], Picture("0" * 64, pictures[31].source), Picture("", "gone.jpg"), *pictures[33:]]
    with caplog.at_level(logging.WARNING):
        found = find_near_copies(pictures, features)
    assert found.unread == (31, 32)
    assert [pair.second for pair in found.pairs] == [30, 33, 34]
    assert "gone.jpg" in caplog.text


@pytest.mark.parametrize(("side_px", "num_found"), [(20, 0), (40, 12), (90, 12)])
def test_small_pictures(side_px: int, num_found: int) -> None:
    scenes = [np.asarray(draw_scene(number).resize((side_px, side_px))) for number in range(12)]
    pictures = [Picture("", pixels) for pixels in (*scenes, *(scene[:, ::-1] for scene in scenes))]
    features = make_features([*range(12), *range(12)], np.random.default_rng(0))
    found = find_near_copies(pictures, features)
    assert [pair.kind for pair in found.pairs] == ["mirrored"] * num_found
    assert found.too_small == (() if num_found else tuple(range(24)))


def test_agreement_must_be_nearly_everywhere() -> None:
    """The same but for a pale quarter of the picture: it moves the correlation little."""
    one, other = (np.array(draw_scene(number)) for number in (0, 1))
    edge = SIDE_PX * 73 // 100
    other[:, :edge] = one[:, :edge]
    for pixels in (one, other):
        pixels[:, edge:] = 128 + 0.3 * (pixels[:, edge:] - 128.0)
    assert compare_thumbnails(*(make_thumbnail(pixels)[None] for pixels in (one, other))).correlation > 0.9
    assert find_near_copies([Picture("", one), Picture("", other)], np.ones((2, 3), np.float32)).pairs == ()


def test_the_same_shape_in_other_colours_is_another_picture() -> None:
    shape = np.asarray(draw_scene(0))[..., 0] > 128
    red, blue = (
        np.where(shape[..., None], colour, (255, 255, 255)).astype(np.uint8) for colour in ((200, 0, 0), (0, 0, 200))
    )
    pictures = [Picture("", red), Picture("", blue), Picture("", brighten(Image.fromarray(red)))]
    found = find_near_copies(pictures, np.ones((3, 4), np.float32))
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 2)]


def test_pictures_without_details_are_no_copies() -> None:
    faint = np.rint((np.asarray(draw_scene(0)) - 128.0) / 128) + 128  # the same pattern, one level deep
    flat = [Picture("", (faint + shade).astype(np.uint8)) for shade in (0, 30)]
    assert find_near_copies(flat, np.ones((2, 4), np.float32)).pairs == ()


def test_where_pictures_are_much_alike_more_is_asked() -> None:
    """One scene under different noise: unlike pictures correlate by 0.9, and only true copies by more."""
    rng = np.random.default_rng(5)
    base = np.asarray(draw_scene(0, 64), np.float64)
    alike = [
        (0.75 * base + 0.25 * np.asarray(draw_scene(100 + number, 64))).clip(0, 255).astype(np.uint8)
        for number in range(40)
    ]
    copies = [np.asarray(brighten(Image.fromarray(alike[number]))) for number in range(5)]
    pictures = [Picture("", pixels) for pixels in (*alike, *copies)]
    # Pairs 20 | 21, 22 | 23, ... have near features as well.
    origin = [number - number % 2 if number >= 20 else number for number in range(40)]
    found = find_near_copies(pictures, make_features([*origin, *range(5)], rng))
    assert found.min_correlation > 0.95
    assert [(pair.first, pair.second) for pair in found.pairs] == [(number, 40 + number) for number in range(5)]


def test_many_copies_of_one_picture_form_one_group() -> None:
    """Their tenth neighbours are copies too, so no copy stands out from the others."""
    scenes = [np.asarray(draw_scene(number)) for number in range(200)]
    pictures = [Picture("", pixels) for pixels in (*scenes, *[scenes[0]] * 14)]
    features = make_features([*range(200), *[0] * 14], np.random.default_rng(0), noise=0.4)
    found = find_near_copies(pictures, features)
    assert max(pair.similarity for pair in found.pairs) < 0.95
    assert found.groups == ((0, *range(200, 214)),)


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_second_picture_there_is_nothing(count: int) -> None:
    found = find_near_copies([Picture("", np.zeros((9, 9, 3), np.uint8))] * count, np.ones((count, 3), np.float32))
    assert (found.pairs, found.groups, found.num_pictures) == ((), (), count)


def test_features_must_fit() -> None:
    with pytest.raises(DataError, match=r"shape \(3, 2\).*each of 1 pictures"):
        find_near_copies([Picture("", "a.jpg")], np.ones((3, 2), np.float32))


# What is said of them

COPIES = NearCopies(
    num_pictures=8,
    num_candidates=7,
    pairs=(
        NearCopy(0, 1, "same view", 0.99, 0.97),
        NearCopy(2, 5, "cropped", 0.93, 0.9),
        NearCopy(3, 6, "mirrored", 0.95, 0.91),
        NearCopy(6, 7, "same view", 0.98, 0.96),
    ),
    groups=((0, 1), (2, 5), (3, 6, 7)),
    min_correlation=0.85,
)
SPLITS = ("train",) * 4 + ("validation",) + ("test",) * 3
LABELS = (1, 0, 1, 1, 0, 1, 1, 1)  # 0 | 1 have different classes
RECORDS = tuple(
    ImageRecord(f"{number}.jpg", label, split, None, f"{number:064}")
    for number, (label, split) in enumerate(zip(LABELS, SPLITS, strict=True))
)


def make_evaluation(right: tuple[bool, ...]) -> Evaluation:
    labels = np.arange(len(right)) % 2
    said = np.where(right, labels, 1 - labels)
    names = tuple(f"{number}.jpg" for number in range(len(right)))
    return Evaluation(("cat", "dog"), names, ("",) * len(right), labels, np.eye(2, dtype=np.float32)[said])


def test_copies_across_splits_are_found_through_their_group() -> None:
    assert np.flatnonzero(COPIES.find_copied(SPLITS, "test")).tolist() == [5, 6, 7]
    assert np.flatnonzero(COPIES.find_copied(SPLITS, "train", "test")).tolist() == [2, 3]
    assert not COPIES.find_copied(SPLITS, "validation").any()


def test_accuracy_without_copies() -> None:
    evaluation = make_evaluation((True, True, True, False, False))
    found = compare_without(evaluation, np.array([True, True, False, False, False]))
    assert (found.all.num_correct, found.all.num_pictures, found.all.value) == (3, 5, 0.6)
    assert (found.without.num_correct, found.without.num_pictures) == (1, 3)
    assert (found.copied.num_correct, found.copied.num_pictures, found.copied.value) == (2, 2, 1.0)
    assert found.without.low is not None
    assert found.without.high is not None
    assert 0.05 < found.without.low < 1 / 3 < found.without.high < 0.8
    assert compare_without(evaluation, np.zeros(5, bool)).copied.value is None
    for wrong in (np.zeros(4, bool), np.zeros(5, int)):
        with pytest.raises(DataError, match=r"Expected bool \(5,\)"):
            compare_without(evaluation, wrong)


def test_the_section_counts_within_and_across_splits() -> None:
    evaluation = make_evaluation((True, True, True, False, False))
    comparison = compare_without(evaluation, np.array([True, True, False, False, False]))
    section = describe_near_copies(COPIES, RECORDS, ("cat", "dog"), comparison)
    text = " ".join(section.paragraphs)
    assert "7 of 8 pictures have a near-copy" in text
    assert "3 groups" in text
    assert "1 group of near-copies has different labels" in text
    assert "2 of 5 test pictures have a near-copy among the training pictures" in text
    assert "60.0 % (between 23.1 and 88.2) of 5 with them and 33.3 % (between 6.1 and 79.2) of 3 without them" in text
    where, accuracy = section.tables
    assert where.rows == (
        ("train and test", "2", "0", "cropped 1, mirrored 1"),
        ("within test", "1", "0", "same view 1"),
        ("within train", "1", "1", "same view 1"),
    )
    assert [row[:3] for row in accuracy.rows] == [
        ("all", "5", "3"),
        ("without a near-copy in training", "3", "1"),
        ("with a near-copy in training", "2", "2"),
    ]


def test_different_labels_come_first_then_different_splits() -> None:
    (gallery,) = describe_near_copies(COPIES, RECORDS, ("cat", "dog")).galleries
    assert [(item.path, [each.path for each in item.neighbours]) for item in gallery.items] == [
        ("0.jpg", ["1.jpg"]),
        ("3.jpg", ["6.jpg"]),
        ("2.jpg", ["5.jpg"]),
        ("6.jpg", ["7.jpg"]),
    ]
    first = gallery.items[0]
    assert first.note == "In train. Labelled cat, not dog, same view, correlation 0.99: 1.jpg"
    assert (first.sha256, first.label, first.neighbours[0].label) == (f"{0:064}", 1, 0)
    assert first.neighbours[0].similarity == 0.97
    assert gallery.items[1].note == "In train. In test, mirrored, correlation 0.95: 6.jpg"


def test_each_copy_is_shown_once_and_long_lists_are_cut() -> None:
    pairs = tuple(
        NearCopy(first, second, "same view", 0.99, 0.9) for first in range(20) for second in range(first + 1, 20)
    )
    copies = NearCopies(20, 20, pairs, (tuple(range(20)),), 0.85)
    records = [ImageRecord(f"{number}.jpg", 0) for number in range(20)]
    section = describe_near_copies(copies, records, ("cat", "dog"))
    ((item,),) = (gallery.items for gallery in section.galleries)
    assert item.note.endswith("and 16 more")
    assert len(item.neighbours) == 12
    assert section.tables[0].rows == (("all", "190", "0", "same view 190"),)


def test_nothing_found_is_said_and_what_was_not_judged() -> None:
    none = NearCopies(8, 0, (), (), 0.98, too_small=(1, 2), unread=(3,))
    section = describe_near_copies(none, RECORDS, ("cat", "dog"), compare_without(make_evaluation((True,)), [False]))
    text = " ".join(section.paragraphs)
    assert text.startswith("No near-copies")
    assert "2 pictures under 24 pixels" in text
    assert "correlation of 0.980 instead of 0.85" in text
    assert "the first is 3.jpg" in text
    assert (section.tables, section.galleries) == ((), ())


def test_all_test_pictures_copied() -> None:
    comparison = compare_without(make_evaluation((True, True)), np.array([True, True]))
    text = " ".join(describe_near_copies(COPIES, RECORDS, ("cat", "dog"), comparison).paragraphs)
    assert "nothing tells how the classifier does" in text


def test_records_must_fit() -> None:
    with pytest.raises(DataError, match="3 records and 8 pictures"):
        describe_near_copies(COPIES, RECORDS[:3], ("cat", "dog"))
