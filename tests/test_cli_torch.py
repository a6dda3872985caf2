"""The commands that need the extra torch: what they print, write and return."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from conftest import Trained
from drawn_pictures import run_command, snapshot, write_shapes
from PIL import Image
from test_report_page import Reader, find_gallery

import headstart
from headstart.backbones.catalog import TORCHVISION_NAMES
from headstart.backbones.listing import list_backbones

TWO = ("checks", "stripes")
DENSE = "--head dense --hidden 8 --dropout 0.2 --optimizer adam --input-size 64"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained, warm_cache: Path) -> Path:
    """The working folder: shapes/ with 3 x 12 known pictures, two/ with two of the classes, and shapes.onnx."""
    write_shapes(tmp_path / "shapes", 12)
    write_shapes(tmp_path / "two", 12, TWO)
    shutil.copy(trained.file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_epochs(folder: str) -> list[int]:
    with open(f"{folder}/history.csv", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_a_dense_head_is_trained_and_trained_on(work: Path) -> None:
    done = run_command("train", "two", *shlex.split(DENSE), "--activation", "sigmoid", "--epochs", "2")
    assert (done.code, done.stderr) == (0, "")
    assert "Dense head on head 1x1: average pooling, 8 units, sigmoid" in done.lines
    assert "Parameters: 10,257 trained" in done.lines  # 1280 * 8 + 8, and 8 + 1 to the output
    assert read_epochs("two.training") == [0, 1, 2]
    assert Path("two.training/history.png").read_bytes().startswith(b"\x89PNG")
    metadata = headstart.load("two.onnx").metadata
    assert metadata.head["kind"] == "dense"
    assert metadata.settings["fit"]["optimizer"] == "adam"
    assert metadata.preprocess["input_size_px"] == 64
    rows = headstart.load_evaluation("two.evaluation")
    again = headstart.load("two.onnx").evaluate("two", split=None)
    assert set(rows.sha256) <= set(again.sha256)
    before = Path("two.training/history.csv").read_text()
    done = run_command("train", "two", *shlex.split(DENSE), "--activation", "sigmoid", "--epochs", "3")
    assert done.code == 0
    assert Path("two.training/history.csv").read_text().startswith(before)
    assert read_epochs("two.training") == [0, 1, 2, 3]


def test_a_folder_of_another_training_is_left_alone(work: Path) -> None:
    assert run_command("train", "two", *shlex.split(DENSE), "--epochs", "1").code == 0
    before = snapshot(work / "two.training")
    done = run_command("train", "two", *shlex.split(DENSE), "--epochs", "1", "--learning-rate", "0.5")
    assert done.code == 2
    assert "two.training holds another training" in done.stderr
    assert "0.5" in done.stderr
    assert snapshot(work / "two.training") == before


def test_finetune(work: Path) -> None:
    before = Path("shapes.onnx").read_bytes()
    options = "--from stage7 --epochs 1 --augment flip --num-views 1 --summary --output new.onnx"
    done = run_command("finetune", "shapes.onnx", "shapes", *shlex.split(options))
    assert (done.code, done.stderr) == (0, "")
    assert Path("shapes.onnx").read_bytes() == before
    assert "3,371,008 parameters: 1,017,600 trained, 2,353,408 frozen" in done.lines
    assert any(line.startswith("Trained from stage7 on. Parameters: 1,021,443 trained") for line in done.lines)
    tuning = headstart.load("new.onnx").metadata.evaluation["finetune"]
    assert tuning["reason"] in done.out.replace("\n", " ")
    assert {"frozen", "tuned", "p_value", "is_tuned_kept"} <= set(tuning)
    assert read_epochs("new.training") == [0, 1]
    extra = json.loads(Path("new.evaluation/evaluation.json").read_bytes())["extra"]
    assert extra["settings"]["finetune"]["from"] == "stage7"
    shown = run_command("inspect", "new.onnx").out
    assert "fine-tuning" in shown


@pytest.mark.parametrize("options", ["--pooling average --activation sigmoid", "--pooling max", "--pooling flatten"])
def test_a_dense_head_has_a_report_too(work: Path, options: str) -> None:
    command = f"train two --output d.onnx {DENSE} --epochs 2 --learning-rate 1e-6 {options}"
    done = run_command(*shlex.split(command))
    assert (done.code, done.stderr) == (0, "")
    first = Reader(Path("d.evaluation/report.html").read_text("utf-8"))
    assert "The course of the training" in first.text
    classifier = headstart.load("d.onnx")
    assert classifier.metadata.familiarity is not None
    assert all(0 <= each.familiarity <= 1 for each in classifier.predict(["two/checks/00.png", "two/stripes/03.png"]))

    done = run_command("report", "d.onnx", "two")
    assert (done.code, done.stderr) == (0, "")
    again = Reader(Path("d.evaluation/report.html").read_text("utf-8"))
    num_wrong = len(headstart.load_evaluation("d.evaluation").mistakes())
    for page in (first, again):
        mistakes = find_gallery(page.data, "mistakes")["items"]
        assert len(mistakes) == num_wrong
        assert all("heat" in item and len(item["near"]) == 4 for item in mistakes)
    # Another head stands in for it where pictures must not have been seen, and is not taken for it.
    assert "A linear head in its place, cross-validated on the training pictures" in again.text
    assert "harder than unseen training pictures" not in again.text + done.out
    done = run_command("learning-curve", "d.onnx", "two")
    assert done.code == 2
    assert "That tells nothing of a dense head" in done.stderr


def test_a_fine_tuned_classifier_has_a_report(work: Path) -> None:
    options = "--from stage7 --epochs 1 --augment none --num-views 1 --output new.onnx"
    assert run_command("finetune", "shapes.onnx", "shapes", *shlex.split(options)).code == 0
    page = Reader(Path("new.evaluation/report.html").read_text("utf-8"))
    assert "The course of the training" in page.text
    assert run_command("report", "new.onnx", "shapes").code == 0
    again = Reader(Path("new.evaluation/report.html").read_text("utf-8"))
    assert "The course of the training" in again.text
    assert find_gallery(again.data, "mistakes")["items"] == find_gallery(page.data, "mistakes")["items"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "finetune shapes.onnx shapes --output shapes.onnx",
            "--output shapes.onnx is the classifier to fine-tune. Name another file.",
        ),
        (
            "finetune shapes.onnx two",
            "The pictures have the classes checks, stripes; the classifier knows checks, circles, stripes. "
            "Fine-tune it on the classes that it was trained on.",
        ),
        (
            "finetune shapes.onnx shapes --optimizer adan --epochs 0",
            "2 problems:\n  optimizer is 'adan'. Did you mean 'adam'? Expected one of adamw, adam, adamax, rmsprop, sgd.\n"
            "  epochs is 0. Expected a whole number from 1 to 10,000.",
        ),
        (
            "finetune shapes.onnx nowhere --augment strang",
            "There is no preset 'strang'. Did you mean 'strong'? Known: none, flip, light, tutorial, strong.",
        ),
        (
            "train nowhere --head dense --augment strang",
            "There is no preset 'strang'. Did you mean 'strong'? Known: none, flip, light, tutorial, strong.",
        ),
        (
            "train shapes --head dense --activation sigmoid",
            "activation is 'sigmoid', which is for 2 classes; there are 3. Use 'softmax'.",
        ),
        (
            "train shapes --head dense --hidden 8,x",
            "--hidden is 8,x. Expected numbers with commas, such as 256,128.",
        ),
        (
            "train shapes --epochs 3",
            "A linear head is not trained in epochs. Leave `fit` out, or use head 'dense'.",
        ),
        (
            "augment shapes --preset strange",
            "There is no preset 'strange'. Did you mean 'strong'? Known: none, flip, light, tutorial, strong.",
        ),
        ("augment shapes --output views.gif", "--output is views.gif. Expected a name that ends in .png or .jpg."),
        (
            "augment shapes/checks/00.png --output shapes/checks/00.png",
            "--output shapes/checks/00.png is also an input, and is not replaced. Name another file.",
        ),
        (
            "recipe vgg16_dense shapes",
            "There is no recipe 'vgg16_dense'. Did you mean 'vgg16_dense100'? Known: vgg16_dense100, vgg19_dense100, "
            "resnet50_dense100, vgg16_average, inception_v3_mixed7, inception_v3_average, resnet50_cifar10.",
        ),
        ("recipe transfer_gain", "Which pictures? headstart recipe transfer_gain PICTURES."),
        (
            "recipe vgg16_average shapes --backbone resnet50",
            "--backbone is for transfer_gain; the recipe vgg16_average has its own.",
        ),
        ("backbones 'nothing*'", None),
        ("backbones timm:nothing_like_it", None),
    ],
)
def test_bad_input(work: Path, command: str, message: str | None) -> None:
    before = snapshot(work)
    done = run_command(*shlex.split(command))
    assert done.code == 2
    if message is None:
        assert re.match(r"Error: (No backbone matches|timm .* has no pretrained network that matches) '", done.stderr)
    else:
        assert done.stderr == f"Error: {message}\n"
    assert snapshot(work) == before


def test_augment_draws_a_picture(work: Path) -> None:
    done = run_command("augment", "shapes", "--preset", "strong", "--output", "views.png", "--input-size", "64")
    assert (done.code, done.out) == (0, "Wrote views.png: 6 pictures, preset strong\n")
    with Image.open("views.png") as image:
        assert image.width > 1000


def test_recipes_are_listed() -> None:
    listed = run_command("recipe").out
    for name in ("vgg16_dense100", "inception_v3_mixed7", "transfer_gain"):
        assert name in listed


def test_what_is_written_down_of_the_tutorials_networks_is_what_timm_says() -> None:
    for name, full_name in TORCHVISION_NAMES.items():
        [written], [counted] = list_backbones(name), list_backbones(f"timm:{full_name}")
        assert written == replace(counted, name=name)


def test_backbones_of_timm_and_their_speed() -> None:
    done = run_command("backbones", "timm:resnet18.*")
    assert done.code == 0
    assert any(line.startswith("timm:resnet18.a1_in1k") and "11.2 M" in line for line in done.lines)
    measured = run_command("backbones", "efficientnet-lite0", "--measure").lines
    assert measured[0].split()[4] == "pictures/s"
    assert float(measured[1].split()[6].replace(",", "")) > 1
