"""Variance against mismatch where the truth is known, and the property that was changed is the one that is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_pictures import write_shapes
from PIL import Image, ImageEnhance

from headstart.errors import DataError
from headstart.insight.mismatch import Side, measure_mismatch
from headstart.insight.mismatch_section import describe_mismatch


def make_side(
    rng: np.random.Generator,
    counts: tuple[int, int],
    errors: tuple[float, float],
    shift: float = 0.0,
    apart: float = 3.0,
) -> Side:
    """Two classes `apart` in the first of 20 features, all of them `shift`ed; class k is wrong in `errors[k]`."""
    labels = np.repeat([0, 1], counts)
    wrong = rng.random(len(labels)) < np.array(errors)[labels]
    probs = np.full((len(labels), 2), 0.1, np.float32)
    probs[np.arange(len(labels)), np.where(wrong, 1 - labels, labels)] = 0.9
    features = rng.normal(size=(len(labels), 20)).astype(np.float32)
    features[:, 0] += apart * labels
    features[:, 1] += shift
    return Side(labels, probs, features, [f"{rng.integers(2**60):x}" for _ in labels])


def make_right(side: Side) -> np.ndarray:
    """Probabilities of a head without a mistake on these pictures."""
    return np.eye(2, dtype=np.float32)[side.labels]


def test_no_mismatch_is_seen_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    mismatched = told_apart = covered = 0
    for _ in range(24):
        train, test = (make_side(rng, (150, 150), (0.1, 0.1)) for _ in range(2))
        found = measure_mismatch(train, test, make_right(train), rng)
        mismatched += found.is_mismatched
        told_apart += found.is_told_apart
        covered += found.variance.low <= 0.1 <= found.variance.high
    assert mismatched <= 3  # 0.6 is expected, 2.5 % on this side
    assert told_apart <= 5  # 1.2 are expected
    assert covered >= 20


def test_harder_test_pictures_are_mismatch_and_not_variance() -> None:
    rng = np.random.default_rng(1)
    train, test = make_side(rng, (300, 300), (0.05, 0.05)), make_side(rng, (200, 200), (0.2, 0.2), shift=1)
    found = measure_mismatch(train, test, train.probs, rng)
    assert found.is_mismatched
    assert found.mismatch.low < 0.15 < found.mismatch.high
    assert found.variance.value == 0
    assert found.variance.low < 0 < found.variance.high
    assert found.is_told_apart
    assert found.source_auroc is not None
    assert found.source_auroc.low < 0.76 < found.source_auroc.high  # of two normals one apart: Phi(1 / sqrt 2)
    assert describe_mismatch(found).paragraphs[0].startswith("Mismatch: the 400 test pictures are harder")


def test_an_overfitted_head_is_variance_and_not_mismatch() -> None:
    rng = np.random.default_rng(2)
    train, test = (make_side(rng, (300, 300), (0.15, 0.15)) for _ in range(2))
    found = measure_mismatch(train, test, make_right(train), rng)
    assert not found.is_mismatched
    assert found.variance.low > 0.1
    assert found.train_error.value == 0
    assert "Variance: unseen training pictures" in describe_mismatch(found).paragraphs[0]


def test_other_shares_of_the_classes_are_no_mismatch() -> None:
    rng = np.random.default_rng(3)
    train, test = make_side(rng, (900, 300), (0.02, 0.2)), make_side(rng, (50, 450), (0.02, 0.2))
    found = measure_mismatch(train, test, train.probs, rng)
    plain = (test.probs.argmax(axis=1) != test.labels).mean() - (train.probs.argmax(axis=1) != train.labels).mean()
    assert plain > 0.08  # what a comparison of the plain errors would take for mismatch
    assert not found.is_mismatched
    assert not found.is_told_apart  # though the classes, which lie apart, would tell the sources apart
    assert found.source_auroc is not None
    assert found.source_auroc.value < 0.65


def test_a_class_that_one_source_lacks_is_left_out() -> None:
    rng = np.random.default_rng(4)
    train, test = make_side(rng, (100, 100), (0.0, 0.5)), make_side(rng, (100, 0), (0.0, 0.5))
    found = measure_mismatch(train, test, train.probs, rng)
    assert (found.num_train, found.num_test) == (100, 100)
    assert found.out_of_fold_error.value == 0


def test_pictures_that_share_a_key_do_not_tell_the_source() -> None:
    rng = np.random.default_rng(5)

    def make_series(side: Side, name: str) -> Side:
        scenes = rng.normal(scale=3, size=(30, 20))
        scene = np.arange(len(side.labels)) % 30
        features = (scenes[scene] + 0.1 * rng.normal(size=(len(scene), 20))).astype(np.float32)
        return replace(side, features=features, keys=[f"{name} {k}" for k in scene])

    sides = [make_side(rng, (150, 150), (0.1, 0.1)) for _ in range(2)]
    apart = [replace(make_series(side, name), keys=side.keys) for side, name in zip(sides, "ab", strict=True)]
    together = [make_series(side, name) for side, name in zip(sides, "ab", strict=True)]
    without, with_keys = (measure_mismatch(*pair, pair[0].probs, rng) for pair in (apart, together))
    assert without.source_auroc is not None
    assert with_keys.source_auroc is not None
    assert with_keys.source_auroc.value < without.source_auroc.value


def test_same_input_same_output() -> None:
    train, test = (make_side(np.random.default_rng(k), (60, 60), (0.1, 0.1)) for k in range(2))
    first, second = (measure_mismatch(train, test, train.probs, np.random.default_rng(7)) for _ in range(2))
    assert first == second


def test_few_pictures_and_no_paths() -> None:
    rng = np.random.default_rng(6)
    train, test = make_side(rng, (30, 30), (0.1, 0.1)), make_side(rng, (3, 3), (0.1, 0.1))
    found = measure_mismatch(train, test, train.probs, rng)
    assert found.source_auroc is None
    assert found.properties == ()
    section = describe_mismatch(found)
    assert "too few pictures" in section.paragraphs[1]
    assert len(section.tables) == 1


def test_what_does_not_fit_is_refused() -> None:
    rng = np.random.default_rng(7)
    train, test = make_side(rng, (30, 30), (0.1, 0.1)), make_side(rng, (20, 20), (0.1, 0.1))
    wrong = replace(test, keys=test.keys[1:], features=test.features[:5])
    with pytest.raises(DataError, match=r"(?s)2 problems.*test\.features has 5.*test\.keys has 39"):
        measure_mismatch(train, wrong, train.probs, rng)
    with pytest.raises(DataError, match=r"fitted_probs has shape \(40, 2\)"):
        measure_mismatch(train, test, test.probs, rng)
    ants, bees = make_side(rng, (30, 0), (0.1, 0.1)), make_side(rng, (0, 30), (0.1, 0.1))
    with pytest.raises(DataError, match="No class has pictures in both sources"):
        measure_mismatch(ants, bees, ants.probs, rng)


def darken(image: Image.Image, path: Path) -> None:
    ImageEnhance.Brightness(image).enhance(0.5).save(path, quality=95)


def recompress(image: Image.Image, path: Path) -> None:
    image.save(path, quality=30)


def downscale(image: Image.Image, path: Path) -> None:
    # Small pictures hold more detail in a pixel; at this quality they take about as many bytes for it as the large.
    image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(path, quality=55)


def keep(image: Image.Image, path: Path) -> None:
    """The file's own bytes, without decoding."""
    path.write_bytes(Path(image.filename).read_bytes())  # type: ignore[attr-defined]


def list_paths(folder: Path, suffix: str, count: int) -> tuple[list[str], np.ndarray]:
    """`count` pictures of each class, and their labels."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    paths = [sorted(map(str, place.glob(f"*.{suffix}")))[:count] for place in classes]
    return [path for part in paths for path in part], np.repeat(np.arange(len(paths)), [len(part) for part in paths])


def compare_pictures(
    train: tuple[list[str], np.ndarray], test: tuple[list[str], np.ndarray], change: Callable, folder: Path, suffix: str
) -> list[str]:
    """The names of the properties, the most telling first, that differ after `change` of the test pictures."""
    folder.mkdir()
    changed = []
    for number, path in enumerate(test[0]):
        changed.append(str(folder / f"{number}.{suffix}"))
        with Image.open(path) as image:
            change(image if change is keep else image.convert("RGB"), Path(changed[-1]))
    rng = np.random.default_rng(0)
    sides = [
        Side(labels, np.eye(3, dtype=np.float32)[labels], rng.normal(size=(len(labels), 4)).astype(np.float32), paths, paths)
        for paths, labels in (train, (changed, test[1]))
    ]  # fmt: skip
    found = measure_mismatch(sides[0], sides[1], sides[0].probs, rng)
    return [gap.name for gap in found.properties if gap.p_value < 0.05]


@pytest.mark.parametrize(
    ("change", "name"), [(darken, "brightness"), (recompress, "bytes per pixel"), (downscale, "short side in pixels")]
)
def test_the_property_that_was_changed_is_named_first(
    change: Callable, name: str, cats_dogs: Path, tmp_path: Path
) -> None:
    train = list_paths(cats_dogs / "train", "jpg", 45)
    # The collection's own validation pictures are compressed less than its training pictures; so other training ones.
    paths, labels = list_paths(cats_dogs / "train", "jpg", 90)
    rows = np.r_[45:90, 135:180]
    test = [paths[row] for row in rows], labels[rows]
    assert compare_pictures(train, test, change, tmp_path / "changed", "jpg")[0] == name


def test_nothing_is_named_where_nothing_was_changed(hymenoptera: Path, tmp_path: Path) -> None:
    train, test = list_paths(hymenoptera / "train", "jpg", 45), list_paths(hymenoptera / "validation", "jpg", 45)
    assert compare_pictures(train, test, keep, tmp_path / "same", "jpg") == []


def test_properties_of_drawn_pictures(tmp_path: Path) -> None:
    train = list_paths(write_shapes(tmp_path / "a", 15), "png", 15)
    test = list_paths(write_shapes(tmp_path / "b", 15, first=60), "png", 15)
    assert compare_pictures(train, test, keep, tmp_path / "same", "png") == []
    named = compare_pictures(train, test, darken, tmp_path / "dark", "png")
    assert "brightness" in named
    other_format = compare_pictures(train, test, recompress, tmp_path / "jpg", "jpg")
    assert {"JPEG file", "PNG file"} <= set(other_format)
