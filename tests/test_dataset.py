"""Trees, tables and lists in awkward forms. Most files are a few bytes: scanning opens no picture."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from headstart.dataset import ImageDataset, list_images, scan_dataset
from headstart.errors import ConfigError, DataError

PNG_HEAD = b"\x89PNG\r\n\x1a\n" + bytes(24)


def make_tree(root: Path, *names: str) -> Path:
    """Files of one byte; a name that ends with / is a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    return root


def get_labels(dataset: ImageDataset, root: Path) -> dict[str, str]:
    """Relative path to class; checks on the way that every picture found is accounted for."""
    left_out = [problem for problem in dataset.problems if problem.severity == "left-out"]
    assert dataset.num_found == len(dataset.records) + len(left_out)
    assert all(problem.path for problem in left_out)
    return {os.path.relpath(record.path, root): dataset.classes[record.label] for record in dataset.records}


def get_problems(dataset: ImageDataset, root: Path) -> set[tuple[str, str, str]]:
    return {
        (problem.code, problem.severity, os.path.relpath(problem.path, root) if problem.path else "")
        for problem in dataset.problems
    }


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A sound tree of two classes to which a test adds what is awkward."""
    return make_tree(tmp_path / "photos", "cats/1.jpg", "cats/2.jpg", "dogs/1.jpg", "dogs/2.jpg")


SOUND = {"cats/1.jpg": "cats", "cats/2.jpg": "cats", "dogs/1.jpg": "dogs", "dogs/2.jpg": "dogs"}


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A folder, and no rights beyond those of its files: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield root
        finally:
            if user == 0:
                os.seteuid(0)


# Folders


def test_folder_per_class(two: Path) -> None:
    dataset = scan_dataset(two)
    assert get_labels(dataset, two) == SOUND
    assert (dataset.source, dataset.classes, dataset.problems, dataset.ignored) == (str(two), ("cats", "dogs"), (), {})
    assert all(record.split is None and record.group is None and not record.sha256 for record in dataset.records)


def test_relative_source_gives_paths_that_open(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two.parent)
    assert [record.path for record in scan_dataset("photos/").records][:1] == ["photos/cats/1.jpg"]
    monkeypatch.chdir(two)
    assert all(os.path.exists(record.path) for record in scan_dataset(".").records)


def test_order_is_that_of_the_bytes_of_the_path(tmp_path: Path) -> None:
    names = ["b/a.jpg", "b/B.jpg", "b/a/z.jpg", "b/é.jpg", "b/a-1.jpg", "a/10.jpg", "a/9.jpg"]
    make_tree(tmp_path, *names)
    paths = [os.path.relpath(record.path, tmp_path) for record in scan_dataset(tmp_path).records]
    assert paths == sorted(names, key=os.fsencode)


def test_number_classes_are_ordered_by_value(tmp_path: Path) -> None:
    make_tree(tmp_path, "10/a.png", "9/a.png", "0/a.png")
    assert scan_dataset(tmp_path).classes == ("0", "9", "10")


def test_nested_folders_belong_to_the_class(two: Path) -> None:
    make_tree(two, "cats/indoor/3.jpg", "cats/indoor/dark/4.jpg", "a/")
    dataset = scan_dataset(two)
    assert get_labels(dataset, two) == SOUND | {"cats/indoor/3.jpg": "cats", "cats/indoor/dark/4.jpg": "cats"}
    assert [problem.message for problem in dataset.problems if problem.code == "nested-folders"] == [
        f"2 pictures lie in folders inside a class folder, the first in {two}/cats/indoor. "
        "They belong to the class of the outer folder."
    ]


def test_every_extension_in_any_case(tmp_path: Path) -> None:
    read = [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".mpo",
        ".apng",
    ]
    refused = [
        ".heic",
        ".heif",
        ".svg",
        ".psd",
        ".jp2",
        ".jxl",
        ".ico",
        ".tga",
        ".ppm",
        ".pgm",
        ".pbm",
        ".eps",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
        ".dcm",
    ]
    names = [f"a/x.y{extension}" for extension in read + refused] + [f"b/X{name.upper()}" for name in read + refused]
    make_tree(tmp_path, *names)
    assert set(get_labels(scan_dataset(tmp_path), tmp_path)) == set(names)


def test_junk_is_ignored_and_counted(two: Path) -> None:
    junk = [".hidden.jpg", "cats/.git/a.jpg", "cats/._1.jpg", "dogs/Thumbs.db", "dogs/.DS_Store", "desktop.ini"]
    junk += ["__MACOSX/cats/1.jpg", "@eaDir/1.jpg", "cats/__pycache__/1.png", ".ipynb_checkpoints/1.jpg", "notes.txt"]
    dataset = scan_dataset(make_tree(two, *junk, "cats/readme.md"))
    assert get_labels(dataset, two) == SOUND
    assert dataset.classes == ("cats", "dogs")
    assert dataset.problems == ()
    assert dataset.ignored == {
        "hidden files and folders": 2,
        "._ files": 1,
        "Thumbs.db": 1,
        ".DS_Store": 1,
        "desktop.ini": 1,
        "__MACOSX": 1,
        "@eaDir": 1,
        "__pycache__": 1,
        ".ipynb_checkpoints": 1,
        "other files": 2,
    }


def test_picture_without_extension_is_named(two: Path) -> None:
    (two / "cats/holiday").write_bytes(PNG_HEAD)
    (two / "cats/empty").touch()
    dataset = scan_dataset(two)
    assert get_labels(dataset, two) == SOUND
    assert get_problems(dataset, two) == {("no-picture-extension", "note", "cats/holiday")}
    assert dataset.problems[0].message == "looks like a picture but has no picture extension, ignored"
    assert dataset.ignored == {"other files": 1, "pictures without a picture extension": 1}


def test_awkward_names_are_used(two: Path) -> None:
    names = [
        "-rf.jpg",
        "a\nb.jpg",
        "$(touch x).jpg",
        "%2e%2e%2f.jpg",
        "{{7*7}}.jpg",
        "CON.jpg",
        "q\"'.jpg",
        "\u202egpj.jpg",
    ]
    names += ["a.b.c.jpg", "A.jpg", "a.jpg", "x" * 251 + ".jpg", unicodedata.normalize("NFC", "é.jpg")]
    names += [unicodedata.normalize("NFD", "é.jpg"), os.fsdecode(b"\xff\xfe.jpg")]
    make_tree(two, *(f"cats/{name}" for name in names))
    dataset = scan_dataset(two)
    assert set(get_labels(dataset, two)) == set(SOUND) | {f"cats/{name}" for name in names}
    assert all(os.path.exists(record.path) for record in dataset.records)


def test_deep_folders(two: Path) -> None:
    deep = "cats/" + "d/" * 120 + "1.jpg"
    assert deep in get_labels(scan_dataset(make_tree(two, deep)), two)


def test_special_files_are_never_opened(two: Path) -> None:
    os.mkfifo(two / "cats/pipe.jpg")
    os.mkfifo(two / "cats/pipe")
    (two / "cats/folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(two / "s.png"))
    dataset = scan_dataset(two)
    assert get_labels(dataset, two) == SOUND
    assert get_problems(dataset, two) == {
        ("not-a-regular-file", "left-out", name) for name in ("cats/pipe.jpg", "cats/folder.jpg", "s.png")
    }
    assert dataset.ignored == {"devices, pipes and sockets": 1}


def test_links(two: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "elsewhere", "far.jpg", "more/1.jpg", "notes.txt")
    make_tree(two, "dogs/inner/3.jpg")
    (two / "cats/near.jpg").symlink_to("../dogs/1.jpg")
    (two / "cats/far.jpg").symlink_to(tmp_path / "elsewhere/far.jpg")
    (two / "cats/more").symlink_to(tmp_path / "elsewhere/more")
    (two / "cats/notes.txt").symlink_to(tmp_path / "elsewhere/notes.txt")
    (two / "cats/gone.jpg").symlink_to("nowhere.jpg")
    (two / "cats/self.jpg").symlink_to("self.jpg")
    (two / "cats/loop").symlink_to("..")
    (two / "cats/again").symlink_to("../dogs/inner")
    inside = SOUND | {"cats/near.jpg": "cats", "dogs/inner/3.jpg": "dogs"}
    always = {
        ("broken-link", "left-out", "cats/gone.jpg"),
        ("broken-link", "left-out", "cats/self.jpg"),
        ("repeated-folder", "warning", "cats/loop"),
        ("repeated-folder", "warning", "cats/again"),
        ("nested-folders", "note", ""),
    }
    dataset = scan_dataset(two)
    assert get_labels(dataset, two) == inside
    assert get_problems(dataset, two) == always | {
        ("link-outside", "left-out", "cats/far.jpg"),
        ("link-outside", "warning", "cats/more"),
    }
    assert dataset.ignored == {"other files": 1, "repeated folders": 2}
    followed = scan_dataset(two, follow_links=True)
    assert get_labels(followed, two) == inside | {"cats/far.jpg": "cats", "cats/more/1.jpg": "cats"}
    assert get_problems(followed, two) == always


def test_class_folder_behind_a_link_is_read_once(tmp_path: Path) -> None:
    make_tree(tmp_path / "photos", ".store/c/1.jpg", "dogs/1.jpg")
    for name in ("cats", "felines"):
        (tmp_path / "photos" / name).symlink_to(".store/c")
    dataset = scan_dataset(tmp_path / "photos")
    assert dataset.classes == ("cats", "dogs")
    assert get_problems(dataset, tmp_path / "photos") == {("repeated-folder", "warning", "felines")}


def test_link_to_the_source_itself_may_be_given(two: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(two)
    assert len(scan_dataset(tmp_path / "link").records) == 4


def test_a_folder_whose_name_starts_like_the_source_is_outside(two: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "photos-old", "1.jpg")
    (two / "cats/old.jpg").symlink_to(tmp_path / "photos-old/1.jpg")
    assert ("link-outside", "left-out", "cats/old.jpg") in get_problems(scan_dataset(two), two)


def test_unreadable_folder_is_named(plain_user: Path) -> None:
    root = make_tree(plain_user / "photos", "cats/1.jpg", "dogs/1.jpg", "owls/1.jpg", "cats/locked/2.jpg")
    for name in ("owls", "cats/locked"):
        (root / name).chmod(0)
    try:
        dataset = scan_dataset(root)
        with pytest.raises(DataError, match=r"^.*/owls cannot be read: permission denied\.$"):
            scan_dataset(root / "owls")
    finally:
        for name in ("owls", "cats/locked"):
            (root / name).chmod(0o700)
    assert set(get_labels(dataset, root)) == {"cats/1.jpg", "dogs/1.jpg"}
    assert get_problems(dataset, root) == {("unreadable", "warning", "owls"), ("unreadable", "warning", "cats/locked")}
    assert {problem.message for problem in dataset.problems} == {
        "permission denied; how many pictures the folder holds is unknown"
    }


def test_nothing_of_the_users_is_changed(two: Path) -> None:
    (two / "cats/holiday").write_bytes(PNG_HEAD)
    (two / "cats/gone.jpg").symlink_to("nowhere")
    (two / "cats/1.jpg").chmod(0o444)

    def snapshot() -> dict[str, tuple[int, int, bytes]]:
        seen = {}
        for path in [two, *sorted(two.rglob("*"))]:
            found = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(found.st_mode) else b""
            seen[str(path)] = (found.st_mode, found.st_mtime_ns, content)
        return seen

    before = snapshot()
    two.chmod(0o555)
    try:
        scan_dataset(two)
        list_images(two)
    finally:
        two.chmod(stat.S_IMODE(before[str(two)][0]))
    assert snapshot() == before


def test_twenty_thousand_files(tmp_path: Path) -> None:
    make_tree(tmp_path, "a/0.jpg", "b/0.jpg")
    for name in "ab":
        for number in range(1, 10_000):
            os.link(tmp_path / name / "0.jpg", tmp_path / name / f"{number}.jpg")
    dataset = scan_dataset(tmp_path)
    assert Counter(record.label for record in dataset.records) == {0: 10_000, 1: 10_000}


# Splits


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "Testing"), ("train", "validation")])
def test_split_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    make_tree(tmp_path, *(f"{split}/{name}/{split}.jpg" for split in names for name in ("cat", "dog")))
    dataset = scan_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.problems == ()
    assert Counter(record.split for record in dataset.records) == dict.fromkeys(
        ("train", "validation", "test")[: len(names)], 2
    )


def test_splits_with_different_classes(tmp_path: Path) -> None:
    make_tree(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "train/owl/1.jpg", "test/cat/2.jpg", "test/emu/2.jpg")
    dataset = scan_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog", "owl")
    assert "test/emu/2.jpg" not in get_labels(dataset, tmp_path)
    assert get_problems(dataset, tmp_path) == {
        ("class-sets-differ", "warning", ""),
        ("class-not-in-train", "left-out", "test/emu/2.jpg"),
    }
    assert dataset.problems[0].message == (
        "train has 3 classes: cat, dog, owl; test has 2: cat, emu. Only in train: dog, owl. Only in test: emu."
    )


def test_train_may_be_a_class(tmp_path: Path) -> None:
    make_tree(tmp_path, "train/1.jpg", "bus/1.jpg", "tram/1.jpg")
    assert scan_dataset(tmp_path).classes == ("bus", "train", "tram")


def test_folders_beside_the_splits_are_left_out(tmp_path: Path) -> None:
    make_tree(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/2.jpg", "test/dog/2.jpg", "new/cat/3.jpg")
    dataset = scan_dataset(tmp_path)
    assert len(get_labels(dataset, tmp_path)) == 4
    assert get_problems(dataset, tmp_path) == {("outside-splits", "left-out", "new/cat/3.jpg")}


# Labels in names


def test_class_in_the_file_name(tmp_path: Path) -> None:
    labels = {
        "cat.0.jpg": "cat",
        "dog_12.png": "dog",
        "american_bulldog_105.jpg": "american_bulldog",
        "Golden retriever (3).jpg": "Golden retriever",
        "été-7.jpg": "été",
    }
    make_tree(tmp_path, *labels, "IMG_0001.jpg", "DSC 12.jpg", "1.jpg", "owl.jpg", "notes/", "notes/a.txt")
    dataset = scan_dataset(tmp_path)
    assert get_labels(dataset, tmp_path) == labels
    assert get_problems(dataset, tmp_path) == {
        ("no-label", "left-out", name) for name in ("IMG_0001.jpg", "DSC 12.jpg", "1.jpg", "owl.jpg")
    }


def test_class_in_the_file_name_inside_splits(tmp_path: Path) -> None:
    make_tree(tmp_path, "train/cat.0.jpg", "train/dog.0.jpg", "test/cat.1.jpg", "test/dog.1.jpg")
    dataset = scan_dataset(tmp_path)
    assert [(dataset.classes[record.label], record.split) for record in dataset.records] == [
        ("cat", "test"),
        ("dog", "test"),
        ("cat", "train"),
        ("dog", "train"),
    ]


def test_pattern_reads_names_at_any_depth(tmp_path: Path) -> None:
    make_tree(tmp_path, "day1/0001_cat.jpg", "day1/0002_dog.jpg", "day2/0003_cat.jpg", "day2/blurred.jpg")
    dataset = scan_dataset(tmp_path, pattern=r"\d+_(?P<label>[a-z]+)\.")
    assert get_labels(dataset, tmp_path) == {
        "day1/0001_cat.jpg": "cat",
        "day1/0002_dog.jpg": "dog",
        "day2/0003_cat.jpg": "cat",
    }
    assert get_problems(dataset, tmp_path) == {("no-label", "left-out", "day2/blurred.jpg")}


# Tables


def write_table(root: Path, text: str | bytes, name: str = "pets.csv") -> Path:
    make_tree(root, "c/1.jpg", "c/2.jpg", "d/1.jpg", "d/2.jpg", "d/a,b.jpg")
    path = root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nc/1.jpg,cat\nd/1.jpg,dog\n",
        "\ufeffFilename;Class\r\nc/1.jpg;cat\r\n\r\nd/1.jpg;dog\r\n",
        "label\timage\ncat\tc/1.jpg\ndog\t d/1.jpg ",
        'note,path,label\n"two\nlines",c/1.jpg,cat\n,"d/1.jpg","dog"\n',
        b"file,category\nc/1.jpg,cat\nd/1.jpg,dog",
    ],
)
def test_csv_in_several_dialects(tmp_path: Path, text: str | bytes) -> None:
    dataset = scan_dataset(write_table(tmp_path, text))
    assert get_labels(dataset, tmp_path) == {"c/1.jpg": "cat", "d/1.jpg": "dog"}


def test_csv_with_splits_and_groups(tmp_path: Path) -> None:
    text = (
        "path;label;set;group\nc/1.jpg;cat;train;p1\nc/2.jpg;cat;Test;\nd/1.jpg;dog;TRAINING;7\nd/2.jpg;dog;test;p2\n"
    )
    dataset = scan_dataset(write_table(tmp_path, text))
    assert [(record.split, record.group) for record in dataset.records] == [
        ("train", "p1"),
        ("test", None),
        ("train", "7"),
        ("test", "p2"),
    ]


def test_csv_lists_every_bad_row(tmp_path: Path) -> None:
    rows = ["c/1.jpg,cat,train", ",cat,train", "c/2.jpg,,", "d/1.jpg,dog", "d/2.jpg,dog,exam", "c/1.jpg,dog,train"]
    path = write_table(tmp_path, "path,label,split\n" + "\n".join(rows))
    with pytest.raises(DataError) as caught:
        scan_dataset(path)
    assert str(caught.value) == f"{path} has 1 bad row:\n  line 5: 2 fields, the header has 3"
    path.write_text(path.read_text().replace("d/1.jpg,dog\n", ""))
    with pytest.raises(DataError) as caught:
        scan_dataset(path)
    assert str(caught.value) == (
        f"{path} has 4 bad rows:\n"
        "  line 3: no path\n"
        "  line 4: no label\n"
        "  line 5: the split 'exam' is none of train, validation, test\n"
        f"  line 6: {tmp_path}/c/1.jpg is 'dog' in train here and 'cat' in train at line 2"
    )


def test_csv_files_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    text = "path,label\nc/1.jpg,cat\nd/1.jpg,dog\nd/gone.jpg,dog\nd,dog\nc/../c/1.jpg,cat\n"
    dataset = scan_dataset(write_table(tmp_path, text))
    assert get_labels(dataset, tmp_path) == {"c/1.jpg": "cat", "d/1.jpg": "dog"}
    assert [(problem.code, problem.message) for problem in dataset.problems] == [
        ("missing", "there is no such file (line 4)"),
        ("not-a-regular-file", "this is no regular file, and is not opened (line 5)"),
        ("duplicate", "line 6 repeats line 2"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{} is empty. Expected a header line with path and label."),
        (
            "picture;kind\n1.jpg;cat\n",
            "{} has no column path and no column label. Its header has 'picture', 'kind'. Expected 'path' and 'label', "
            "and optionally 'split' and 'group'.",
        ),
        ('path,label\nc/1.jpg,cat\n"d/1.jpg,dog\n', "{} has 1 bad row:\n  line 3: a quote is opened and never closed"),
        ("path,label\n".encode("utf-16"), "{} is UTF-16 text. Save it as CSV in UTF-8."),
        (
            "path,label\nx/1.jpg,cat\nx/2.jpg,dog\n",
            "None of the 2 files named in {} exists; the first is {dir}/x/1.jpg. Paths in a table are relative to the "
            "table's folder, paths in a list to the working folder.",
        ),
        (
            b"path,label\nc/1.jpg,caf\xe9\nd/1.jpg,dog\n",
            r"The class name 'caf\xe9' cannot be kept in a classifier: expected 1 to 200 printable characters "
            "in UTF-8. Rename its folder, or save its table in UTF-8.",
        ),
        (
            "path,label\nc/1.jpg,cat\n",
            "{} has only one class, and a classifier needs at least 2. Seen: class 'cat' with 1 picture. "
            "Expected rows of at least two classes in {}.",
        ),
    ],
)
def test_csv_that_cannot_be_used(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write_table(tmp_path, text)
    with pytest.raises(DataError) as caught:
        scan_dataset(path)
    assert str(caught.value) == message.replace("{}", str(path)).replace("{dir}", str(tmp_path))


def test_a_thousand_bad_rows_are_not_all_printed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        scan_dataset(write_table(tmp_path, "path,label\n" + ",cat\n" * 1000))
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (102, "  and 900 more")


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = write_table(tmp_path, b"", "pets.parquet")
    pq.write_table(pa.table({"file_name": ["d/2.jpg", "c/1.jpg"], "label": [1, 0], "size": [2, 3]}), path)
    dataset = scan_dataset(path)
    assert get_labels(dataset, tmp_path) == {"c/1.jpg": "0", "d/2.jpg": "1"}
    pq.write_table(pa.table({"file_name": ["d/2.jpg", None], "label": [1, None]}), path)
    with pytest.raises(DataError) as caught:
        scan_dataset(path)
    assert str(caught.value) == f"{path} has 1 bad row:\n  row 2: no path, no label"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="is not a Parquet file that can be read"):
        scan_dataset(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path) -> None:
    path = write_table(tmp_path, b"", "pets.parquet")
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from headstart.dataset import scan_dataset\n"
        "from headstart.errors import MissingDependencyError\n"
        "try: scan_dataset(sys.argv[1])\n"
        "except MissingDependencyError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout == "Reading .parquet files needs pyarrow. Install it with: pip install 'headstart[parquet]'\n"


# Lists and columns


@pytest.mark.parametrize("column", [list, tuple, np.array, pd.Series, pl.Series, iter])
def test_lists_and_columns(two: Path, column: type) -> None:
    paths = [str(two / name) for name in ("dogs/1.jpg", "cats/1.jpg", "cats/2.jpg")]
    dataset = scan_dataset(column(paths), labels=column(["dog", "cat", "cat"]), groups=column(["a", "b", "b"]))
    assert dataset.source == "a list of 3 pictures"
    assert get_labels(dataset, two) == {"dogs/1.jpg": "dog", "cats/1.jpg": "cat", "cats/2.jpg": "cat"}
    assert [record.group for record in dataset.records] == ["b", "b", "a"]
    assert scan_dataset(column(paths), labels=column([10, 9, 9])).classes == ("9", "10")


def test_splits_of_a_list_and_path_objects(two: Path) -> None:
    paths = [two / name for name in SOUND]
    dataset = scan_dataset(paths, labels=list(SOUND.values()), splits=["train", "val", "train", None])
    assert [record.split for record in dataset.records] == ["train", "validation", "train", None]


def test_bad_list_entries(two: Path) -> None:
    paths = [two / "cats/1.jpg", None, 3, two / "dogs/1.jpg", "\0.jpg", "\ud800.jpg"]
    with pytest.raises(DataError) as caught:
        scan_dataset(paths, labels=["cat", "cat", "dog", 1.5, "x", float("nan")])
    assert str(caught.value) == (
        "the list has 4 bad rows:\n"
        "  index 1: no path\n"
        "  index 2: the path is int, not text\n"
        "  index 3: the label 1.5 is neither text nor a whole number\n"
        "  index 5: no label"
    )
    dataset = scan_dataset([*paths[:1], *paths[3:]], labels=pd.Series(["cat", "dog", "x", "x"]))
    assert [problem.code for problem in dataset.problems] == ["unreadable", "unreadable"]
    with pytest.raises(DataError, match=r"^The labels of the list mix text \(1\) and numbers \(1\)\. Use one kind\.$"):
        scan_dataset([two / "cats/1.jpg", two / "dogs/1.jpg"], labels=["1", 1])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (["a.jpg"], {}, "A list of paths needs `labels`, one per path."),
        (["a.jpg"], {"labels": [1, 2]}, "There are 1 paths and 2 labels. There must be one for each path."),
        (["a.jpg"], {"labels": "a"}, "`labels` must be a list or one column, and is str."),
        (pd.DataFrame({"path": []}), {"labels": []}, "`paths` must be a list or one column, and is DataFrame."),
        (7, {"labels": []}, "`paths` must be a list or one column, and is int."),
        (
            ["a.jpg"],
            {"labels": [1], "pattern": "x"},
            "`pattern` reads labels from the files of a folder. Leave it out with a list of paths.",
        ),
        ("photos", {"labels": [1]}, "`labels` goes with a list of paths, not with photos."),
        ("photos", {"splits": [1]}, "`splits` goes with a list of paths, not with photos."),
        ("photos", {"exclude": ["cat"]}, "There is no class 'cat' to exclude. Did you mean 'cats'?"),
        (
            "photos",
            {"pattern": "(?P<label>"},
            "The pattern '(?P<label>' is not a regular expression: missing ), unterminated subpattern at position 0.",
        ),
        (
            "photos",
            {"pattern": "(.*)_"},
            "The pattern '(.*)_' has no group named 'label'. Write (?P<label>...) round the part that is the class, "
            r"such as (?P<label>[a-z]+)_\d+.",
        ),
    ],
)
def test_arguments_that_make_no_sense(
    two: Path, monkeypatch: pytest.MonkeyPatch, source: object, options: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(two.parent)
    with pytest.raises(ConfigError) as caught:
        scan_dataset(source, **options)
    assert str(caught.value) == message


# Sources that cannot be used


LAYOUT = (
    "Expected photos/<class>/<picture>, such as photos/cats/1.jpg and photos/dogs/2.jpg, or the same inside "
    "photos/train and photos/test, or names that hold the class, such as photos/cat_1.jpg."
)


@pytest.mark.parametrize(
    ("names", "source", "message"),
    [
        (
            [],
            "phtos",
            "phtos does not exist. Did you mean 'photos'?",
        ),
        ([], "more/photo", "more/photo does not exist. Did you mean 'more/photos'?"),
        ([], "mroe/photos", "mroe/photos does not exist. Nor does mroe. Did you mean 'more'?"),
        (["photos.zip"], "photos.zip", "photos.zip is an archive. Unpack it first, and give the folder."),
        (
            [],
            "https://example.org/photos.zip",
            "https://example.org/photos.zip is a web address. Download it first, unpack it, and give the folder.",
        ),
        (
            ["cat.jpg"],
            "cat.jpg",
            "cat.jpg is a file. Expected a folder of pictures, or a .csv, .tsv or .parquet file.",
        ),
        (
            [],
            "photos",
            f"photos has no class, and a classifier needs at least 2. Seen: nothing. {LAYOUT}",
        ),
        (
            ["photos/cats/1.jpg", "photos/dogs/", "photos/a.txt", "photos/.b"],
            "photos",
            "photos has only one class, and a classifier needs at least 2. Seen: class 'cats' with 1 picture, empty "
            f"folder photos/dogs, 1 hidden files and folders, 1 other files. {LAYOUT}",
        ),
        (
            ["photos/pets/cats/1.jpg", "photos/pets/dogs/1.jpg"],
            "photos/",
            "photos/ has only one class, and a classifier needs at least 2. Seen: class 'pets' with 2 pictures. "
            f"{LAYOUT} If its folders are the classes, give photos/pets instead.",
        ),
        (
            ["photos/cats/1.jpg", "photos/dogs/1.jpg", "photos/a.jpg", "photos/b.jpg"],
            "photos",
            f"2 pictures lie beside the class folders, without a class: photos/a.jpg, photos/b.jpg. {LAYOUT}",
        ),
        (
            ["photos/train/cats/1.jpg", "photos/train/dogs/1.jpg", "photos/test/a.jpg"],
            "photos",
            f"1 picture lies beside the class folders, without a class: photos/test/a.jpg. {LAYOUT}",
        ),
        (
            ["photos/train/cats/1.jpg", "photos/val/cats/1.jpg", "photos/valid/cats/2.jpg"],
            "photos",
            "photos has 2 folders for validation: val and valid. Keep one.",
        ),
        (
            ["photos/Cat/1.jpg", "photos/cat/1.jpg", "photos/dog/1.jpg"],
            "photos",
            "The classes 'Cat' and 'cat' differ only in case, and would be one folder on macOS and Windows. "
            "Rename or join them.",
        ),
        (
            ["photos/cafe\u0301/1.jpg", "photos/caf\u00e9/1.jpg"],
            "photos",
            r"The classes 'cafe\u0301' and 'caf\xe9' differ only in Unicode form, and would be one folder on macOS and "
            "Windows. Rename or join them.",
        ),
        (
            ["photos/a\x07/1.jpg", "photos/b\udcff/1.jpg", "photos/c/1.jpg"],
            "photos",
            "2 problems:\n"
            r"  The class name 'a\x07' cannot be kept in a classifier: expected 1 to 200 printable characters "
            "in UTF-8. Rename it.\n"
            r"  The class name 'b\xff' cannot be kept in a classifier: expected 1 to 200 printable characters "
            "in UTF-8. Rename its folder, or save its table in UTF-8.",
        ),
    ],
)
def test_source_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], source: str, message: str
) -> None:
    make_tree(tmp_path, "photos/", "more/photos/", *names)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        scan_dataset(source)
    assert str(caught.value) == message


def test_empty_class_is_named_and_left_out(two: Path) -> None:
    dataset = scan_dataset(make_tree(two, "owls/", "owls/a.txt"))
    assert dataset.classes == ("cats", "dogs")
    assert get_problems(dataset, two) == {("empty-class", "warning", "owls")}
    assert dataset.problems[0].message == f"The folder {two}/owls has no picture. It is not a class here."


def test_excluded_classes_are_accounted_for(two: Path) -> None:
    make_tree(two, "owls/1.jpg", "CATS/1.jpg")
    dataset = scan_dataset(two, exclude=["owls", "CATS"])
    assert get_labels(dataset, two) == SOUND
    assert get_problems(dataset, two) == {
        ("excluded", "left-out", "owls/1.jpg"),
        ("excluded", "left-out", "CATS/1.jpg"),
    }
    assert scan_dataset(make_tree(two.parent / "p", "a/1.jpg", "b/1.jpg", "c/1.jpg"), exclude="c").classes == ("a", "b")


# Pictures without labels


def test_list_images(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(two, "1.jpg", "cats/.hidden.jpg", "cats/notes.txt", "cats/deep/5.png")
    (two / "cats/gone.jpg").symlink_to("nowhere")
    monkeypatch.chdir(two.parent)
    everything = ["photos/1.jpg", "photos/cats/1.jpg", "photos/cats/2.jpg", "photos/cats/deep/5.png"]
    everything += ["photos/dogs/1.jpg", "photos/dogs/2.jpg"]
    paths, problems = list_images("photos")
    assert paths == everything
    assert [(problem.code, problem.path) for problem in problems] == [("broken-link", "photos/cats/gone.jpg")]
    assert list_images(Path("photos/cats/notes.txt")) == (["photos/cats/notes.txt"], [])
    assert list_images(["photos/dogs", "./photos/dogs/1.jpg", "photos/1.jpg"])[0] == [
        "photos/1.jpg",
        "photos/dogs/1.jpg",
        "photos/dogs/2.jpg",
    ]


def test_list_images_names_every_missing_path(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two)
    with pytest.raises(DataError) as caught:
        list_images(["cat", "cats/1.jpg", "dogs/9.jpg"])
    assert str(caught.value) == (
        "2 problems:\n  cat does not exist. Did you mean 'cats'?\n"
        "  dogs/9.jpg does not exist. Did you mean 'dogs/2.jpg'?"
    )
    make_tree(two, "none/a.txt")
    with pytest.raises(DataError) as caught:
        list_images("none")
    assert str(caught.value) == "No picture in none. Expected a folder with pictures, or picture files."
