"""The checks on real small pictures; the search for near-copies against comparing all pairs."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from headstart.data_check import (
    NEAR_DUPLICATE_BITS,
    DataReport,
    check_classes,
    check_facts,
    check_near_duplicates,
    find_near_duplicates,
    hash_images,
    resolve_duplicates,
)
from headstart.dataset import ImageDataset, ImageRecord, Problem, scan_dataset
from headstart.decode import ImageFacts, decode_image
from headstart.errors import DataError
from headstart.image_files import DecodeLimits


def encode(seed: int, format: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """A picture of smooth random blobs, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, format)
    return stream.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def get_problems(dataset: ImageDataset, root: Path) -> dict[str, str]:
    """Relative path to code, of the pictures left out; checks that every picture found is accounted for."""
    left_out = [problem for problem in dataset.problems if problem.severity == "left-out"]
    assert dataset.num_found == len(dataset.records) + len(left_out)
    return {os.path.relpath(problem.path or "", root): problem.code for problem in left_out}


def get_paths(dataset: ImageDataset, root: Path) -> list[str]:
    return [os.path.relpath(record.path, root) for record in dataset.records]


# Reading


def test_files_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"a/{number}.png", encode(number))
        write(tmp_path / f"b/{number}.jpg", encode(number, "JPEG"))
    write(tmp_path / "a/empty.jpg", b"")
    write(tmp_path / "a/page.jpg", b"<!DOCTYPE html><html><body>Not found</body></html>")
    write(tmp_path / "b/phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    write(tmp_path / "b/gone.jpg", encode(9))
    write(tmp_path / "b/large.jpg", encode(9) + bytes(100_000))
    dataset = scan_dataset(tmp_path)
    (tmp_path / "b/gone.jpg").unlink()
    seen: list[tuple[int, int]] = []
    hashed = hash_images(
        dataset,
        num_threads=2,
        limits=DecodeLimits(max_file_bytes=50_000),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert get_problems(hashed, tmp_path) == {
        "a/empty.jpg": "empty",
        "a/page.jpg": "not-an-image",
        "b/phone.heic": "unsupported-format",
        "b/gone.jpg": "unreadable",
        "b/large.jpg": "too-large",
    }
    assert get_paths(hashed, tmp_path) == [f"a/{n}.png" for n in range(3)] + [f"b/{n}.jpg" for n in range(3)]
    assert hashed.records[0].sha256 == hashlib.sha256(encode(0)).hexdigest()
    assert [record.label for record in hashed.records] == [0, 0, 0, 1, 1, 1]
    assert seen == [(number, 11) for number in range(1, 12)]


def test_more_pictures_than_one_batch(tmp_path: Path) -> None:
    data = encode(0)
    for number in range(700):
        for name in "ab":
            write(tmp_path / name / f"{number}.png", data + b"%d%s" % (number, name.encode()))
    dataset = scan_dataset(tmp_path)
    done: list[int] = []
    hashed = hash_images(dataset, on_progress=lambda count, _: done.append(count))
    assert [record.path for record in hashed.records] == [record.path for record in dataset.records]
    assert len({record.sha256 for record in hashed.records}) == 1400
    assert done == list(range(1, 1401))


def test_nothing_of_the_users_is_changed(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        write(tmp_path / name, encode(1)).chmod(0o444)
    write(tmp_path / "a/empty.jpg", b"")

    def snapshot() -> list[tuple[Path, int, int, bytes]]:
        files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
        kept = [(path, path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()) for path in files]
        return [*kept, *((path, path.stat().st_mode, 0, b"") for path in sorted(tmp_path.rglob("*/")))]

    before = snapshot()
    resolve_duplicates(hash_images(scan_dataset(tmp_path)))
    assert snapshot() == before


# Copies


def resolve(root: Path, files: dict[str, int]) -> ImageDataset:
    for name, seed in files.items():
        write(root / name, encode(seed))
    return resolve_duplicates(hash_images(scan_dataset(root)))


def test_copies_without_splits(tmp_path: Path) -> None:
    files = {"a/1.png": 1, "a/2.png": 1, "a/in/3.png": 1, "b/4.png": 4, "a/5.png": 5, "b/6.png": 5, "b/7.png": 5}
    dataset = resolve(tmp_path, files)
    assert get_paths(dataset, tmp_path) == ["a/1.png", "b/4.png"]
    assert get_problems(dataset, tmp_path) == {
        "a/2.png": "duplicate",
        "a/in/3.png": "duplicate",
        "a/5.png": "conflicting-labels",
        "b/6.png": "conflicting-labels",
        "b/7.png": "conflicting-labels",
    }
    messages = {problem.code: problem.message for problem in dataset.problems}
    assert messages["duplicate"] == f"the same bytes as {tmp_path}/a/1.png"
    assert messages["conflicting-labels"] == (
        f"the same bytes are in several classes: {tmp_path}/a/5.png (a), {tmp_path}/b/6.png (b), "
        f"{tmp_path}/b/7.png (b). Keep the right one"
    )


def test_copies_in_given_splits(tmp_path: Path) -> None:
    files = {
        f"{split}/{name}/own.png": i
        for i, (split, name) in enumerate((s, n) for s in ("train", "val", "test") for n in "ab")
    }
    files |= {"train/a/t.png": 10, "test/a/t.png": 10, "train/a/v.png": 11, "val/a/v.png": 11, "val/b/x.png": 12}
    files |= {"test/b/x.png": 12, "test/b/y.png": 12, "train/b/x.png": 12, "train/a/z.png": 13, "test/b/z.png": 13}
    files |= {"train/b/d.png": 14, "train/b/c.png": 14}
    dataset = resolve(tmp_path, files)
    assert get_problems(dataset, tmp_path) == {
        "train/a/t.png": "leaks-into-test",
        "train/a/v.png": "leaks-into-validation",
        "train/b/x.png": "leaks-into-test",
        "val/b/x.png": "leaks-into-test",
        "test/b/y.png": "duplicate",
        "train/a/z.png": "conflicting-labels",
        "test/b/z.png": "conflicting-labels",
        "train/b/d.png": "duplicate",
    }
    messages = {problem.path: problem.message for problem in dataset.problems}
    assert messages[f"{tmp_path}/train/a/t.png"] == (
        f"the same bytes as {tmp_path}/test/a/t.png in test; this one is in train"
    )


# Classes


def make_dataset(counts: dict[str, int], split: str | None = None, root: str = "photos") -> ImageDataset:
    records = [
        ImageRecord(f"{root}/{name}/{number}.jpg", label, split)
        for label, (name, count) in enumerate(counts.items())
        for number in range(count)
    ]
    return ImageDataset(root, tuple(counts), tuple(records), (), len(records), {})


def test_too_small_classes_are_all_named() -> None:
    with pytest.raises(DataError) as caught:
        check_classes(make_dataset({"cat": 30, "owl": 1}))
    assert str(caught.value) == (
        "Class 'owl' has 1 picture, in photos/owl. Training needs at least 2 per class. "
        "Add pictures, or leave it out with --exclude owl."
    )
    with pytest.raises(DataError) as caught:
        check_classes(make_dataset({"cat": 30, "snowy owl": 3, "emu": 0}, split="train"), min_per_class=4)
    assert str(caught.value) == (
        "2 problems:\n"
        "  Class 'snowy owl' has 3 training pictures, in photos/snowy owl. Training needs at least 4 per class. "
        "Add pictures, or leave it out with --exclude 'snowy owl'.\n"
        "  Class 'emu' has no training pictures that can be used. Training needs at least 4 per class. "
        "Add pictures, or leave it out with --exclude emu."
    )


def test_test_pictures_do_not_count_for_training() -> None:
    train, test = make_dataset({"cat": 30, "owl": 0}, "train"), make_dataset({"cat": 0, "owl": 30}, "test")
    dataset = ImageDataset("photos", train.classes, train.records + test.records, (), 60, {})
    with pytest.raises(DataError, match=r"^Class 'owl' has no training pictures that can be used"):
        check_classes(dataset)


def test_of_many_classes_with_few_pictures_20_are_named() -> None:
    (problem,) = check_classes(make_dataset({f"c{number:03}": 5 for number in range(100)}))
    assert problem.message.startswith("100 classes have fewer than 20 training pictures: 'c000' 5, ")
    assert "'c019' 5" in problem.message
    assert "'c020'" not in problem.message


def test_few_and_uneven_pictures_are_warned_about() -> None:
    assert check_classes(make_dataset({"cat": 20, "dog": 200})) == []
    assert check_classes(make_dataset({"cat": 201, "dog": 20, "owl": 19, "emu": 2})) == [
        Problem(
            "few-pictures",
            "2 classes have fewer than 20 training pictures: 'emu' 2, 'owl' 19. Expect wide intervals.",
            None,
            "warning",
        ),
        Problem(
            "imbalance",
            "The classes are uneven: 'cat' has 201 training pictures and 'emu' 2, more than 10 to 1. "
            "Look at the figures per class, not only at the accuracy.",
            None,
            "warning",
        ),
    ]


# Facts


def make_facts(**changes: object) -> ImageFacts:
    values = {"format": "JPEG", "width_px": 400, "height_px": 300, "notes": (), "dhash": "0" * 64}
    return ImageFacts(**{**values, "is_one_colour": False, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"width_px": 600}, []),
        (
            {"width_px": 1200},
            [
                (
                    "elongated",
                    "note",
                    "1200 x 300 pixels; the centre square that the classifier sees leaves out 81% of it",
                )
            ],
        ),
        ({"width_px": 31}, [("small", "note", "31 x 300 pixels, the short side is under 32")]),
        ({"width_px": 15, "height_px": 15}, [("tiny", "note", "15 x 15 pixels, the short side is under 16")]),
        (
            {"format": "PNG"},
            [("extension-mismatch", "note", "the content is PNG, the extension says otherwise; the content counts")],
        ),
        ({"notes": ("first-frame-of-7",)}, [("first-frame", "note", "only the first of its pictures is used")]),
        ({"notes": ("first-frame",)}, [("first-frame", "note", "only the first of its pictures is used")]),
        ({"is_one_colour": True}, [("one-colour", "warning", "the picture has only one colour")]),
    ],
)
def test_facts_of_one_picture(changes: dict[str, object], expected: list[tuple[str, str, str]]) -> None:
    record = ImageRecord("a/1.jpg", 0, sha256="f")
    problems = check_facts([record], {"f": make_facts(**changes)}, crop_frac=0.875)
    if "width_px" in changes and changes["width_px"] in (15, 31):
        problems = [problem for problem in problems if problem.code != "elongated"]
    assert [(problem.code, problem.severity, problem.message) for problem in problems] == expected
    assert all(problem.path == "a/1.jpg" for problem in problems)


def test_rotated_pictures_are_one_line() -> None:
    records = [ImageRecord(f"a/{number}.jpg", 0, sha256=str(number)) for number in range(5)]
    facts = {str(number): make_facts(notes=("exif-rotated",) if number > 1 else ()) for number in range(4)}
    text = "2 pictures are turned upright by their EXIF data, the first is a/2.jpg."
    assert check_facts(records, facts) == [Problem("exif-rotated", text, None, "note")]


def test_format_unlike_the_others_of_the_class() -> None:
    records = [ImageRecord(f"a/{n}.{'png' if n == 3 else 'jpg'}", 0, sha256=str(n)) for n in range(10)]
    records += [ImageRecord(f"b/{n}.{'png' if n % 2 else 'jpg'}", 1, sha256=str(n)) for n in range(10, 30)]
    facts = {r.sha256: make_facts(format="PNG" if r.path.endswith("png") else "JPEG") for r in records}
    text = "the format is PNG, nearly all others of its class are JPEG"
    assert check_facts(records, facts) == [Problem("unusual-format", text, "a/3.png", "note")]
    assert check_facts(records[:9], facts) == []


# Near-copies


def to_hex(bits: np.ndarray) -> str:
    return np.packbits(bits).tobytes().hex()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3, 12, 16]))
@settings(max_examples=60, deadline=None)
def test_near_copies_are_those_that_comparing_all_pairs_finds(seed: int, max_distance: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (12, 256), np.uint8)[rng.integers(0, 12, 60)]
    for row in bits:  # around 12 centres, from no bit changed to clearly more than allowed
        row[rng.choice(256, rng.integers(0, max_distance + 3), replace=False)] ^= 1
    names = [f"{number:02}" for number in rng.permutation(60)]
    group = np.arange(60)
    for one in range(60):
        for other in range(one):
            if (bits[one] != bits[other]).sum() <= max_distance:
                group[group == group[other]] = group[one]
    expected = {tuple(sorted(names[i] for i in np.flatnonzero(group == g))) for g in group if (group == g).sum() > 1}
    found = find_near_duplicates(names, [to_hex(row) for row in bits], max_distance)
    assert found == sorted(expected)


def test_hashes_without_information_join_nothing() -> None:
    plain = np.zeros(256, np.uint8)
    few = plain.copy()
    few[:40] = 1
    hashes = [to_hex(bits) for bits in (plain, plain, 1 - plain, 1 - plain, few, few)]
    assert find_near_duplicates(list("abcdef"), hashes) == []
    assert find_near_duplicates([], []) == []


def test_near_copies_of_real_encodings(tmp_path: Path) -> None:
    names, hashes = [], []

    def add(name: str, image: Image.Image, **options: object) -> None:
        stream = io.BytesIO()
        image.save(stream, "JPEG", **options)
        names.append(name)
        hashes.append(decode_image(stream.getvalue()).facts.dhash)

    for seed in range(8):
        image = Image.open(io.BytesIO(encode(seed, size=(320, 240))))
        add(f"{seed}a", image, quality=95)
        add(f"{seed}b", image, quality=60)
        add(f"{seed}c", image.resize((160, 120), Image.Resampling.BICUBIC), quality=90)
        add(f"{seed}d", ImageEnhance.Brightness(image).enhance(0.95), quality=90)
    assert find_near_duplicates(names, hashes) == [tuple(f"{seed}{kind}" for kind in "abcd") for seed in range(8)]


def test_photographs_hold_few_near_copies(cats_dogs: Path) -> None:
    paths = sorted((cats_dogs / "train" / "dogs").iterdir())[:150]
    pictures = [decode_image(path.read_bytes(), min_side_px=224) for path in paths]
    names = [path.name for path in paths]
    hashes = [picture.facts.dhash for picture in pictures]
    assert find_near_duplicates(names, hashes) == []
    copies = []
    for picture in pictures:
        stream = io.BytesIO()
        Image.fromarray(picture.pixels).save(stream, "JPEG", quality=60)
        copies.append(decode_image(stream.getvalue()).facts.dhash)
    found = find_near_duplicates(names + [f"{name} copy" for name in names], hashes + copies)
    assert len(found) > 0.9 * len(names)
    assert all(copy == f"{name} copy" for name, copy in found)


def test_near_copies_of_five_thousand_hashes_that_share_much() -> None:
    rng = np.random.default_rng(0)
    bits = (rng.random((5000, 256)) < 0.3).astype(np.uint8)
    bits[4000] = bits[17]
    bits[4000, :NEAR_DUPLICATE_BITS] ^= 1
    assert find_near_duplicates([f"{n:04}" for n in range(5000)], [to_hex(row) for row in bits]) == [("0017", "4000")]


def test_near_copies_are_reported() -> None:
    names = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "a/4.jpg", "a/5.jpg", "a/6.jpg", "a/7.jpg", "a/8.jpg", "a/9.jpg"]
    records = [
        ImageRecord(name, int(name[0] == "b"), "test" if name == "a/4.jpg" else "train", sha256=name[2])
        for name in names
    ]
    groups = [("1", "2"), ("1", "3"), ("2", "4"), ("1", "2", "5", "6", "7", "8", "9"), ("x", "1")]
    assert check_near_duplicates(records, groups) == [
        Problem("near-duplicates", "nearly the same picture: a/2.jpg", "a/1.jpg", "note"),
        Problem(
            "near-duplicates-across-classes",
            "nearly the same picture in several classes: b/3.jpg",
            "a/1.jpg",
            "warning",
        ),
        Problem(
            "near-duplicates-across-splits",
            "nearly the same picture in test and train: a/4.jpg",
            "a/2.jpg",
            "warning",
        ),
        Problem(
            "near-duplicates",
            "nearly the same picture: a/2.jpg, a/5.jpg, a/6.jpg, a/7.jpg, a/8.jpg and 1 more",
            "a/1.jpg",
            "note",
        ),
    ]


# The report


def test_report_counts_and_json(tmp_path: Path) -> None:
    odd = os.fsdecode(b"b/\xff.png")
    for name, seed in {"a/1.png": 1, "a/2.png": 2, "a/copy.png": 1, "b/4.png": 4, odd: 5}.items():
        write(tmp_path / name, encode(seed))
    write(tmp_path / "notes.txt", b"x")
    dataset = resolve_duplicates(hash_images(scan_dataset(tmp_path)))
    report = DataReport(dataset, (Problem("few-pictures", "few", None, "warning"),))
    assert report.counts == {"a": {"unsplit": 2}, "b": {"unsplit": 2}}
    values = json.loads(json.dumps(report.to_json()))
    assert values == {
        "source": str(tmp_path),
        "classes": ["a", "b"],
        "num_found": 5,
        "num_used": 4,
        "num_left_out": 1,
        "counts": {"a": {"unsplit": 2}, "b": {"unsplit": 2}},
        "ignored": {"other files": 1},
        "problems": [
            {
                "code": "duplicate",
                "severity": "left-out",
                "path": f"{tmp_path}/a/copy.png",
                "message": f"the same bytes as {tmp_path}/a/1.png",
            },
            {"code": "few-pictures", "severity": "warning", "path": None, "message": "few"},
        ],
    }
    write(tmp_path / odd, b"")
    left_out = hash_images(scan_dataset(tmp_path))
    values = json.loads(json.dumps(DataReport(left_out).to_json()))
    assert os.fsencode(values["problems"][0]["path"]) == os.fsencode(tmp_path) + b"/b/\xff.png"
