"""Pictures sorted into folders: names that are no tricks, and nothing that is replaced."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from headstart.errors import ConfigError, HeadstartError, ImageError
from headstart.predict_journal import Entry, Journal
from headstart.predict_run import settle
from headstart.prediction import Prediction
from headstart.predictions_output import Doubts
from headstart.sorting import JOURNAL_NAME, Sorter, check_sort_folder, is_unused, name_folders

CLASSES = ("cat", "dog")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "in" / folder / "a.png" for folder in "123"]
    for number, path in enumerate(found):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"%d" % number * 10)
        os.utime(path, ns=(10**18, 10**18 + number * 10**11))
    return found


def make_entry(path: Path, sorter: Sorter, cat: float = 0.9, familiarity: float | None = 0.5) -> Entry:
    outcome = Prediction(str(path), CLASSES, np.array([cat, 1 - cat], np.float32), familiarity)
    found = path.stat()
    place = sorter.choose_place(str(path), outcome)
    return Entry(str(path), found.st_size, found.st_mtime_ns, outcome, place)


def put(path: Path, sorter: Sorter, **options: Any) -> str:
    entry = make_entry(path, sorter, **options)
    sorter.put(entry)
    assert entry.place is not None
    return entry.place


def make_sorter(folder: Path, **options: Any) -> Sorter:
    folder.mkdir(exist_ok=True)
    return Sorter(folder, CLASSES, Doubts(0.01, 0.6), **options)


# Names


def test_folder_names() -> None:
    names = ["cat", "Cat", "../x", "a/b", "a\\b", "CON", "nul.txt", "com1", "..", ".", " x ", "x.", "", "a\nb", "-rf"]
    assert name_folders(names) == [
        *("cat", "Cat (2)", "_/x".replace("/", "_"), "a_b", "a_b (2)", "CON_", "nul.txt_", "com1_"),
        *("_", "_ (2)", "_x_", "x_", "_ (3)", "a_b (3)", "-rf"),
    ]
    assert name_folders(["é", unicodedata.normalize("NFD", "é"), "É"]) == [
        "é",
        unicodedata.normalize("NFD", "é") + " (2)",
        "É (3)",
    ]


@hypothesis.given(st.lists(st.text(st.characters(codec=None), max_size=200), max_size=8))
def test_folder_names_are_plain_and_differ(names: list[str]) -> None:
    folders = name_folders(names)
    keys = {unicodedata.normalize("NFKC", folder).casefold() for folder in folders}
    assert len(keys) == len(names) == len(folders)
    for folder in folders:
        assert folder
        assert not set(folder) & set('<>:"/\\|?*\0')
        assert folder.isprintable()
        assert folder[0] not in ". "
        assert folder[-1] not in ". "
        assert len(os.fsencode(folder)) <= 255


def test_a_class_named_as_what_is_apart_has_another_folder(tmp_path: Path) -> None:
    sorter = Sorter(tmp_path, ("unsure", "None of these"), Doubts(0.01, 0.6))
    assert sorter.renamed == [("unsure", "unsure (2)"), ("None of these", "None of these (2)")]


# Places


@pytest.mark.parametrize("copy", [False, True])
def test_where_pictures_go(tmp_path: Path, pictures: list[Path], copy: bool) -> None:
    sorter = make_sorter(tmp_path / "out", copy=copy)
    assert put(pictures[0], sorter) == "cat/a.png"
    assert put(pictures[1], sorter) == "cat/a (2).png"
    assert put(pictures[2], sorter) == "cat/a (3).png"
    assert put(pictures[0], sorter, cat=0.2) == "dog/a.png"
    assert put(pictures[0], sorter, cat=0.55) == "unsure/a.png"
    assert put(pictures[0], sorter, familiarity=0.001) == "none of these/a.png"
    assert put(pictures[0], sorter, familiarity=None) == "cat/a (4).png"
    assert sorter.choose_place("x", ImageError("empty", "the file is empty")) is None
    for number, name in enumerate(["a.png", "a (2).png", "a (3).png"]):
        place = tmp_path / "out" / "cat" / name
        assert place.is_symlink() != copy
        assert place.read_bytes() == pictures[number].read_bytes()
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["cat", "dog", "none of these", "unsure"]


def test_long_names_are_shortened(tmp_path: Path) -> None:
    sorter = make_sorter(tmp_path / "out")
    path = tmp_path / ("é" * 125 + ".png")
    path.write_bytes(b"x")
    first, second = put(path, sorter), put(path, sorter)
    assert first.endswith("é.png")
    assert second.endswith("é (2).png")


@pytest.mark.parametrize("copy", [False, True])
def test_nothing_is_replaced(tmp_path: Path, pictures: list[Path], copy: bool) -> None:
    sorter = make_sorter(tmp_path / "out", copy=copy)
    entry = make_entry(pictures[0], sorter)
    other = tmp_path / "out" / "cat" / "a.png"
    other.parent.mkdir()
    other.write_bytes(b"mine")
    assert sorter.is_taken(entry)
    with pytest.raises(HeadstartError, match=r"Cannot sort .*a\.png: file exists"):
        sorter.put(entry)
    sorter.take_away(entry)
    assert other.read_bytes() == b"mine"
    assert put(pictures[0], sorter) == "cat/a (2).png"


@pytest.mark.parametrize("copy", [False, True])
def test_what_was_put_is_put_once_and_can_be_taken_away(tmp_path: Path, pictures: list[Path], copy: bool) -> None:
    sorter = make_sorter(tmp_path / "out", copy=copy)
    entry = make_entry(pictures[0], sorter)
    sorter.put(entry)
    sorter.put(entry)
    assert not sorter.is_taken(entry)
    assert len(list((tmp_path / "out" / "cat").iterdir())) == 1
    make_sorter(tmp_path / "out", copy=copy).take_away(entry)
    assert not list((tmp_path / "out" / "cat").iterdir())
    sorter.take_away(entry)
    assert pictures[0].exists()


def test_a_copy_that_was_changed_stays(tmp_path: Path, pictures: list[Path]) -> None:
    sorter = make_sorter(tmp_path / "out", copy=True)
    entry = make_entry(pictures[0], sorter)
    sorter.put(entry)
    (tmp_path / "out" / "cat" / "a.png").write_bytes(b"edited")
    sorter.take_away(entry)
    assert (tmp_path / "out" / "cat" / "a.png").read_bytes() == b"edited"


def test_a_copy_whose_picture_is_gone_is_left_out(tmp_path: Path, pictures: list[Path]) -> None:
    sorter = make_sorter(tmp_path / "out", copy=True)
    entry = make_entry(pictures[0], sorter)
    pictures[0].unlink()
    sorter.put(entry)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_class_folder_that_is_a_link_is_not_written_through(tmp_path: Path, pictures: list[Path]) -> None:
    sorter = make_sorter(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "cat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link, and nothing is written through it"):
        put(pictures[0], sorter)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("place", ["../x.png", "cat/../../x.png", "/etc/x", "cat/", "bird/x.png", "cat/..", "x.png"])
def test_a_journal_with_places_elsewhere_is_refused(tmp_path: Path, pictures: list[Path], place: str) -> None:
    sorter = make_sorter(tmp_path / "out")
    entry = make_entry(pictures[0], sorter)
    entry = Entry(entry.path, entry.size_bytes, entry.mtime_ns, entry.outcome, place)
    for act in (sorter.put, sorter.take_away):
        with pytest.raises(ConfigError, match="is none of this classifier's folders"):
            act(entry)


# The folder


def test_folders_to_sort_into(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    source = str(tmp_path / "in")
    check_sort_folder(tmp_path / "new", [source])
    check_sort_folder(tmp_path / "in2", [source, str(tmp_path / "file")])
    for wrong in (tmp_path / "in", tmp_path / "in" / "deep", tmp_path / "in" / "new", tmp_path):
        with pytest.raises(ConfigError, match="lie one inside the other"):
            check_sort_folder(wrong, [source])
    with pytest.raises(ConfigError, match="is a file"):
        check_sort_folder(tmp_path / "file", [source])
    with pytest.raises(ConfigError, match="does not exist"):
        check_sort_folder(tmp_path / "a" / "b", [source])


def test_unused_folders(tmp_path: Path) -> None:
    assert is_unused(tmp_path / "none")
    assert is_unused(tmp_path)
    (tmp_path / JOURNAL_NAME).write_text("x")
    assert is_unused(tmp_path)
    (tmp_path / "cat").mkdir()
    assert not is_unused(tmp_path)


def test_a_place_that_was_taken_before_a_run_goes_on(pictures: list[Path], tmp_path: Path) -> None:
    """Killed between the journal's entry and the link, and somebody put a file of that name there since."""
    folder = tmp_path / "out"
    sorter = make_sorter(folder)
    with Journal(folder / JOURNAL_NAME, {}, CLASSES) as journal:
        entry = make_entry(pictures[0], sorter)
        journal.append(entry)
        (folder / "cat").mkdir()
        (folder / "cat/a.png").write_text("precious")
        settle(entry, journal, sorter)
        assert [each.place for _, each in journal.read_all()] == ["cat/a.png", "cat/a (2).png"]
    assert (folder / "cat/a.png").read_text() == "precious"
    assert os.readlink(folder / "cat/a (2).png") == str(pictures[0])
