"""The commands that ask questions of a classifier: from the pictures to the page and the journal."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import SHAPES, Done, run_command, snapshot, write_picture, write_shapes
from flipped_shapes import FLIPPED, FLIPPED_TEST, NUM_TEST, NUM_TRAIN, write_flipped
from PIL import Image
from test_cli import assert_harmless, count_rows, read_csv, start
from test_report_page import Reader, find_gallery
from tiny_models import make_tiny_classifier

import headstart
from headstart.cli_options import read_candidates
from headstart.insight.suspects import read_suspects
from headstart.review import read_decisions

QUICK = ("--layers", "top", "--penalty", "0.1")
ALL = NUM_TRAIN + NUM_TEST


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained, warm_cache: Path) -> Path:
    """The working folder: shapes/ with 3 x 5 known pictures, and shapes.onnx trained on them and others."""
    write_shapes(tmp_path / "shapes", 5)
    shutil.copy(trained.file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")  # no cell of a table is broken
    return tmp_path


@pytest.fixture(scope="module")
def trained_on_flipped(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """flipped/ with some pictures in wrong folders, and what training on it writes."""
    folder = tmp_path_factory.mktemp("trained-on-flipped")
    write_flipped(folder / "flipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(trained.cache))  # which holds these very pictures
        patch.chdir(folder)
        assert run_command("train", "flipped", "--layers", "top").code == 0
    return folder


@pytest.fixture
def flipped(work: Path, trained_on_flipped: Path) -> Path:
    """The same in the working folder."""
    shutil.copytree(trained_on_flipped, work, dirs_exist_ok=True)
    return work / "flipped"


def run_with_input(monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str) -> Done:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return run_command(*arguments)


def read_page(path: str) -> Reader:
    return Reader(Path(path).read_text("utf-8"))


def drop_numbers(item: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers of pictures in the page."""
    near = [each[1:] for each in item.get("near", [])]
    return {name: each for name, each in item.items() if name != "picture"} | {"near": near}


# From labels that look wrong to a training without them


def test_train_finds_flipped_labels_and_a_review_mends_them(flipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(flipped)
    rows = read_csv(Path("flipped.evaluation/suspects.csv").read_bytes())
    assert {Path(row["path"]).stem: row["label"] for row in rows} == FLIPPED
    page = read_page("flipped.evaluation/report.html")
    shown = find_gallery(page.data, "suspects")
    assert shown["decides"]
    assert [item["path"] for item in shown["items"]] == [row["path"] for row in rows]
    mistakes = find_gallery(page.data, "mistakes")["items"]
    assert len(mistakes) == len(headstart.load_evaluation("flipped.evaluation").mistakes())
    assert {*FLIPPED_TEST} <= {Path(item["path"]).stem for item in mistakes}
    assert all("heat" in item and len(item["near"]) == 4 for item in mistakes)

    done = run_with_input(monkeypatch, "r\nx\nk\n", "review", "flipped.onnx")
    assert (done.code, done.stderr) == (0, "")
    assert "3 of 3 suspects to decide on." in done.lines[0]
    assert done.lines[-1].endswith(
        "1 relabel, 1 leave-out, 1 keep. Decisions are in flipped.review.jsonl, and count at the next training."
    )
    relabelled, left_out, kept = [row["path"] for row in rows]
    taken = [(each.path, each.decision, each.new_label) for each in read_decisions("flipped.review.jsonl").decisions]
    right = rows[0]["suggested"]
    assert right == Path(relabelled).stem[:-2]
    assert taken == [(relabelled, "relabel", right), (left_out, "leave-out", None), (kept, "keep", None)]

    done = run_command("train", "flipped", "--layers", "top")
    assert (done.code, done.stderr) == (0, "")
    assert f"{ALL} pictures found = {ALL - 1} used + 1 left out, 3 classes" in done.lines
    assert "  3 decisions of the review applied: 1 kept, 1 relabelled, 1 left out" in done.lines
    assert re.search(
        rf"^  {left_out}: left out by a decision of the review, \d{{4}}-\d\d-\d\d$", done.out, re.MULTILINE
    )
    extra = json.loads(Path("flipped.evaluation/evaluation.json").read_bytes())["extra"]
    counts = {name: sum(parts.values()) for name, parts in extra["data"]["counts"].items()}
    folders = {name: len([*flipped.glob(f"*/{name}/*.png")]) for name in SHAPES}
    folders[rows[0]["label"]] -= 1
    folders[right] += 1
    folders[rows[1]["label"]] -= 1
    assert counts == folders
    assert read_csv(Path("flipped.evaluation/suspects.csv").read_bytes()) == []
    assert run_with_input(monkeypatch, "", "review", "flipped.onnx").lines[0].startswith("0 of 0 suspects")

    # What is taken back is suspected again, what was decided before it still holds.
    for path, decision in ((kept, "keep"), (left_out, "leave-out")):
        assert run_command("review", "flipped.onnx", "--undo").out == f"Taken back: {decision}, {path}\n"
    listed = run_command("review", "flipped.onnx", "--list")
    assert re.fullmatch(rf"\S+  relabel {right}  {relabelled} \(labelled {rows[0]['label']}\)\n", listed.out)
    done = run_command("train", "flipped", "--layers", "top")
    assert f"{ALL} pictures found = {ALL} used + 0 left out, 3 classes" in done.lines
    again = read_csv(Path("flipped.evaluation/suspects.csv").read_bytes())
    assert {row["path"] for row in again} == {left_out, kept}
    assert snapshot(flipped) == before


def test_decisions_of_the_page_are_imported(flipped: Path) -> None:
    rows = read_csv(Path("flipped.evaluation/suspects.csv").read_bytes())
    with open("decisions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "sha256", "label", "decision", "new_label"])
        table.writerow([rows[0]["path"], rows[0]["sha256"], rows[0]["label"], "relabel", rows[0]["suggested"]])
        table.writerow([rows[1]["path"], rows[1]["sha256"], rows[1]["label"], "leave-out", ""])
    done = run_command("review", "flipped.onnx", "--import", "decisions.csv")
    assert done.out == "2 decisions. They count at the next training that writes flipped.onnx.\n"
    assert len(read_decisions("flipped.review.jsonl").decisions) == 2
    # The report sees them before the next training does, and a training under another name does not.
    assert run_command("report", "flipped.onnx", "flipped", "--output", "page.html").code == 0
    text = read_page("page.html").text
    assert "2 decisions of the review applied: 1 relabelled, 1 left out" in text
    assert "These are not exactly the pictures, labels and parts" in text
    other = run_command("train", "flipped", "--output", "other.onnx", *QUICK)
    assert f"{ALL} pictures found = {ALL} used + 0 left out, 3 classes" in other.lines
    Path("decisions.csv").write_text("path,sha256,label,decision,new_label\nx,y,checks,relabel,owl\n")
    before = snapshot(flipped.parent)
    done = run_command("review", "flipped.onnx", "--import", "decisions.csv")
    assert done.code == 2
    assert "sha256 is 'y'" in done.stderr
    assert snapshot(flipped.parent) == before


def test_a_class_is_named_by_bytes_that_are_no_text(flipped: Path) -> None:
    process = start(
        *("review", "flipped.onnx"),
        cwd=flipped.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONIOENCODING": "utf-8:strict"},
    )
    out, err = process.communicate(b"c caf\xe9\nq\n", timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert rb"'caf\xe9' is no class." in out
    assert not Path("flipped.review.jsonl").exists()


def test_review_without_suspects_says_so(work: Path) -> None:
    done = run_command("review", "shapes.onnx")
    assert done.code == 2
    assert done.stderr == "Error: shapes.suspects.csv cannot be read: no such file or directory.\n"
    assert run_command("review", "shapes.onnx", "--undo").code == 2
    assert run_command("review", "nothing.onnx").code == 2
    assert [path.name for path in work.iterdir() if "review" in path.name] == []


def test_suspects_of_a_training_without_test_part_come_from_the_report(work: Path) -> None:
    write_flipped(work / "flipped")
    shutil.rmtree("flipped/test")
    done = run_command("train", "flipped/train", "--output", "f.onnx", "--layers", "top", "--test-frac", "0")
    assert (done.code, done.stderr) == (0, "")
    assert "What to do next" not in done.out
    assert not Path("f.evaluation").exists()
    done = run_command("report", "f.onnx", "flipped/train")
    assert (done.code, done.stderr) == (0, "")
    assert "headstart review f.onnx" in done.out
    assert done.lines[-1] == "Wrote f.html, f.suspects.csv"
    assert {Path(each.path).stem for each in read_suspects("f.suspects.csv", SHAPES)} == {*FLIPPED}
    assert run_command("review", "f.onnx", "--list").code == 0
    # Nothing of it is in the way of the next training.
    assert run_command("train", "flipped/train", "--output", "f.onnx", *QUICK).code == 0


# Report


def test_report_tells_what_it_wrote_and_what_to_do(flipped: Path) -> None:
    first = read_page("flipped.evaluation/report.html")
    done = run_command("report", "flipped.onnx", "flipped")
    assert (done.code, done.stderr) == (0, "")
    assert done.lines[0] == "What to do next"
    assert done.lines[1].startswith("1. Review 3 labels first. So many of 27 training pictures (11.1 %) look")
    assert "   headstart review flipped.onnx" in done.lines
    assert done.lines[-1] == "Wrote flipped.evaluation/report.html, flipped.evaluation/suspects.csv"
    page = read_page("flipped.evaluation/report.html")
    for key in ("mistakes", "unsure", "suspects", "sheet"):
        items, known = (
            [drop_numbers(item) for item in find_gallery(each.data, key)["items"]] for each in (page, first)
        )
        assert items == known != []
    assert "not exactly the pictures" not in page.text
    # The folder is still an evaluation, that the next training replaces.
    assert headstart.load_evaluation("flipped.evaluation").paths
    assert run_command("train", "flipped", *QUICK).code == 0
    assert run_command("report", "flipped.onnx", "flipped", "--output", "again.html").lines[-1] == "Wrote again.html"


def test_report_from_elsewhere_on_what_became_of_the_pictures(flipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (flipped / "test" / "checks" / "checks11.png").unlink()
    write_picture(flipped / "train" / "circles" / "new.png", "circles", 40)
    (flipped.parent / "elsewhere").mkdir()
    monkeypatch.chdir(flipped.parent / "elsewhere")
    done = run_command("report", "../flipped.onnx", "../flipped", "--output", "page.html", "--target-accuracy", "0.99")
    assert (done.code, done.stderr) == (0, "")
    page = read_page("page.html")
    assert f"{NUM_TRAIN + 1} training and {NUM_TEST - 1} test pictures of 3 classes." in page.text
    assert "These are not exactly the pictures, labels and parts" in page.text
    assert sum(count for _, _, count in page.data["counts"]) == NUM_TEST - 1
    assert [path.name for path in Path().iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report nothing.onnx shapes", "nothing.onnx: There is no such file."),
        ("report foreign.onnx shapes", "foreign.onnx: "),
        ("report shapes.onnx nowhere", "nowhere does not exist."),
        ("report shapes.onnx two", "Class 'circles' has no training pictures that can be used"),
        ("report shapes.onnx owls", "The classifier has no class 'owls'."),
        ("report shapes.onnx shapes --output page.pdf", "--output is page.pdf. Expected a page to write"),
        ("report shapes.onnx shapes --output no/page.html", "The folder no does not exist. Make it first"),
        ("report shapes.onnx shapes --png no/plots", "The folder no does not exist. Make it first, or choose another --png"),
        ("report shapes.onnx shapes --png notes.txt", "--png is notes.txt, which is no folder."),
        ("report taken.onnx shapes", "The folder taken.evaluation holds files but no evaluation.json"),
        ("show nowhere", "nowhere does not exist."),
        ("show shapes --output sheet.png", "--output is sheet.png. Expected a page to write"),
        ("learning-curve shapes.onnx nowhere", "nowhere does not exist."),
        ("learning-curve shapes.onnx shapes --png curve.txt", "--png is curve.txt. Expected a name that ends in .png."),
        ("compare shapes.onnx shapes", "Name two or more classifiers and then the pictures"),
        ("compare shapes --backbone efficientnet-lite0", "Name two or more classifiers and then the pictures"),
        ("compare shapes --backbone efficientnet-lite0,resnet5", "resnet5"),
        ("compare shapes.onnx nothing.onnx shapes", "nothing.onnx: There is no such file."),
        ("compare shapes.onnx taken.onnx shapes --output no/c.html", "The folder no does not exist."),
        ("compare shapes.onnx taken.onnx owls", "The classifier has no class 'owls'."),
        ("explain shapes.onnx shapes --class stripe", "The classifier has no class 'stripe'. Did you mean 'stripes'?"),
        ("explain shapes.onnx nowhere", "nowhere does not exist."),
        ("explain foreign.onnx shapes", "foreign.onnx: "),
        ("train shapes --budget nonsense", "--budget is nonsense. Expected a time such as 60s, 5min or 1h."),
        ("train shapes --backbone auto --budget 0s", "The budget is 0.0 s. Expected a number above 0."),
        ("train shapes --budget 5min", "A budget is for choosing a backbone."),
        ("predict shapes.onnx shapes --unknown-below 2", ""),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_anything_is_written(work: Path, command: str, message: str) -> None:
    Path("foreign.onnx").write_bytes(make_tiny_classifier(SHAPES).SerializeToString())
    write_shapes(work / "two", 4, ["checks", "stripes"])
    write_shapes(work / "owls", 2)
    Path("owls/circles").rename("owls/owls")
    Path("notes.txt").write_text("my notes")
    shutil.copy("shapes.onnx", "taken.onnx")
    Path("taken.evaluation").mkdir()
    Path("taken.evaluation/thesis.txt").write_text("my thesis")
    before = snapshot(work)
    done = run_command(*command.split())
    assert done.code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(work) == before


def test_ctrl_c_leaves_no_half_page(work: Path, own_cache: Path) -> None:
    write_shapes(work / "many", 60)
    (own_cache / "features.sqlite").unlink()
    Path("page.html").write_text("the page of before")
    before = snapshot(work)
    arguments = ("report", "shapes.onnx", "many", "--output", "page.html")
    process = start(*arguments, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while count_rows(own_cache) == 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"Stopped. Nothing was written.\n")
    assert snapshot(work) == before


def test_the_library_writes_the_same_page_or_none(flipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "embedding pictures":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        headstart.write_report("flipped.onnx", "flipped", "page.html", on_progress=stop)
    assert not [path for path in flipped.parent.iterdir() if path.suffix in (".html", ".tmp")]
    shutil.rmtree("flipped.evaluation")  # the command would take the candidates of the choice from there
    headstart.write_report("flipped.onnx", "flipped", "page.html")
    assert run_command("report", "flipped.onnx", "flipped", "--output", "by-command.html").code == 0
    assert Path("page.html").read_bytes() == Path("by-command.html").read_bytes()


def test_a_training_leaves_nothing_of_the_one_before(flipped: Path) -> None:
    """A report that cannot be finished must not leave that of another classifier."""
    Path("flipped.evaluation/report.html").unlink()
    Path("flipped.evaluation/report.html").mkdir()
    done = run_command("train", "flipped", "--seed", "3", *QUICK)
    assert done.code == 2
    assert "report.html" in done.stderr
    assert headstart.load("flipped.onnx").metadata.settings["seed"] == 3


# Compare


def read_pair(done: Done) -> list[str]:
    """Cells of the last line of the last table."""
    lines = [line for line in done.lines if line.strip() and not line.startswith("Wrote ")]
    return re.split(r"\s{2,}", lines[-1].strip())


def test_a_classifier_ties_with_itself(work: Path) -> None:
    done = run_command("compare", "shapes.onnx", "shapes.onnx", "shapes", "--output", "c.html")
    assert (done.code, done.stderr) == (0, "")
    told = "shapes.onnx and shapes.onnx (2) are tied. No number of pictures would tell them apart"
    assert told in done.out
    assert told in read_page("c.html").text
    shutil.copy("shapes.onnx", "copy.onnx")
    Path("sub").mkdir()
    shutil.copy("shapes.onnx", "sub/copy.onnx")
    named = run_command("compare", "shapes.onnx", "copy.onnx", "sub/copy.onnx", "shapes").out
    assert "On 15 pictures shapes has the most right, 100.0 %." in named
    assert "sub/copy.onnx" in named


def test_the_counts_of_two_classifiers_sum(flipped: Path) -> None:
    done = run_command("compare", "shapes.onnx", "flipped.onnx", "flipped", "--split", "train")
    assert (done.code, done.stderr) == (0, "")
    rows = [headstart.load(name).evaluate("flipped", split="train").correct for name in ("shapes.onnx", "flipped.onnx")]
    assert rows[0].sum() != rows[1].sum()
    shapes = next(line.split() for line in done.lines if line.startswith("shapes  "))  # that of the first table
    assert shapes[1] == f"{100 * rows[0].mean():.1f}"
    assert str(int((~rows[0]).sum())) in shapes[3:7]
    cells = read_pair(done)
    first, second = (rows[0], rows[1]) if cells[0] == "shapes" else (rows[1], rows[0])
    assert cells[2:4] == [str(int((first & ~second).sum())), str(int((second & ~first).sum()))]
    assert f"On {NUM_TRAIN} pictures" in done.out


def test_backbones_are_compared_on_one_folder(work: Path) -> None:
    write_shapes(work / "few", 4, ["checks", "stripes"], first=8)
    names = "efficientnet-lite0, efficientnet-lite1"
    done = run_command("compare", "few", "--backbone", names, "--output", "c.html")
    assert (done.code, done.stderr) == (0, "")
    assert re.search(r"^On \d pictures? efficientnet-lite", done.out, re.MULTILINE)
    assert read_pair(done)[:2] in (
        ["efficientnet-lite0", "efficientnet-lite1"],
        ["efficientnet-lite1", "efficientnet-lite0"],
    )
    assert "efficientnet-lite1" in read_page("c.html").text
    assert {path.name for path in work.iterdir()} == {"shapes", "shapes.onnx", "few", "c.html"}


# Learning curve


def test_learning_curve(flipped: Path) -> None:
    done = run_command("learning-curve", "flipped.onnx", "flipped", "--target-accuracy", "0.9")
    assert (done.code, done.stderr) == (0, "")
    assert done.lines[0] == "Learning curve"
    assert "With twice the training pictures (54 instead of 27)" in done.out
    assert {line.split()[0] for line in done.lines[-5:] if line.strip()} >= {*SHAPES}


def test_learning_curve_says_why_there_is_none(work: Path) -> None:
    write_shapes(work / "few", 3)
    assert run_command("train", "few", "--output", "few.onnx", "--test-frac", "0", *QUICK).code == 0
    before = snapshot(work)
    done = run_command("learning-curve", "few.onnx", "few")
    assert (done.code, done.out) == (2, "")
    assert done.stderr == (
        "Error: There are 9 training pictures of 3 classes. A learning curve needs at least 20, to see errors fall. "
        "Add pictures.\n"
    )
    assert snapshot(work) == before


def test_plots_as_png(flipped: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run_command("learning-curve", "flipped.onnx", "flipped", "--png", "curve.png")
    assert (done.code, done.stderr) == (0, "")
    with Image.open("curve.png") as image:
        assert image.size == (960, 600)
    victim = "flipped/train/checks/checks02.png"
    before = Path(victim).read_bytes()
    done = run_command("learning-curve", "flipped.onnx", "flipped", "--png", victim)
    assert done.code == 2
    assert f"--png would replace {victim}, which is an input." in done.stderr
    assert Path(victim).read_bytes() == before
    done = run_command("report", "flipped.onnx", "flipped", "--output", "page.html", "--png", "plots")
    assert (done.code, done.stderr) == (0, "")
    drawn = {path.name for path in Path("plots").iterdir()}
    assert {"calibration-1.png", "learning-curve-1.png"} <= drawn
    assert all(f"plots/{name}" in done.lines[-1] for name in drawn)


def test_plots_as_png_need_matplotlib(work: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        before = snapshot(work)
        for command in ("report shapes.onnx shapes --png plots", "learning-curve shapes.onnx shapes --png c.png"):
            done = run_command(*command.split())
            assert (done.code, done.stderr) == (
                2,
                "Error: --png needs matplotlib. Install it with: pip install 'headstart[plots]'\n",
            )
        assert snapshot(work) == before


# Explain


def test_explain_draws_every_picture(work: Path, classifier: headstart.Classifier) -> None:
    Path("shapes/checks/page.jpg").write_text("<html>")
    before = snapshot(work / "shapes")
    done = run_command("explain", "shapes.onnx", "shapes", "--output", "deep/heat")
    assert done.code == 0
    assert done.stderr == "shapes/checks/page.jpg: not-an-image: this is HTML text, not a picture\n"
    assert len(done.lines) == 15
    pictures = sorted(Path("shapes").rglob("*.png"))
    assert snapshot(work / "shapes") == before
    for line, path in zip(done.lines, pictures, strict=True):
        prediction = classifier.predict(path)
        told = re.fullmatch(rf"{path}: (\w+) ([\d.]+) %, (deep/heat/\d{{4}}-{path.stem}\.png)", line)
        assert told is not None
        assert told[1] == prediction.label
        assert float(told[2]) == pytest.approx(100 * prediction.probability, abs=0.06)
        with Image.open(told[3]) as image:
            assert image.size == (48, 48)
    assert len([*Path("deep/heat").iterdir()]) == 15
    one = run_command("explain", "shapes.onnx", "shapes/checks/00.png", "--class", "stripes")
    assert re.fullmatch(r"shapes/checks/00\.png: stripes [\d.]+ %, heat-maps/0001-00\.png\n", one.out)


def test_explain_returns_1_where_nothing_could_be_explained(work: Path) -> None:
    Path("page.jpg").write_text("<html>")
    done = run_command("explain", "shapes.onnx", "page.jpg")
    assert (done.code, done.out) == (1, "")
    assert done.stderr == "page.jpg: not-an-image: this is HTML text, not a picture\n"
    assert not Path("heat-maps").exists()


def test_explain_never_replaces_an_input(work: Path) -> None:
    Path("heat").mkdir()
    shutil.copy("shapes/checks/00.png", "heat/x.png")
    shutil.copy("shapes/checks/01.png", "heat/0002-x.png")
    before = snapshot(work)
    done = run_command("explain", "shapes.onnx", "heat/x.png", "heat/0002-x.png", "--output", "heat")
    assert (done.code, done.out) == (2, "")
    assert done.stderr == "Error: --output would replace heat/0002-x.png, which is an input. Name another place.\n"
    assert snapshot(work) == before
    # Its own pictures of an earlier run are replaced.
    for _ in range(2):
        assert run_command("explain", "shapes.onnx", "heat/x.png", "--output", "drawn").code == 0
    assert [path.name for path in Path("drawn").iterdir()] == ["0001-x.png"]


def test_explain_a_name_as_long_as_names_can_be(work: Path) -> None:
    name = "é" * 120 + "x" * 11 + ".png"  # 255 bytes
    shutil.copy("shapes/checks/00.png", name)
    done = run_command("explain", "shapes.onnx", name, "--output", "drawn")
    assert (done.code, done.stderr) == (0, "")
    assert len([*Path("drawn").iterdir()]) == 1


# Show


def test_show_draws_every_class_and_what_is_wrong(work: Path) -> None:
    Path("shapes/checks/page.jpg").write_text("<html>")
    done = run_command("show", "shapes")
    assert (done.code, done.out, done.stderr) == (0, "Wrote shapes.html\n", "")
    page = read_page("shapes.html")
    for name in SHAPES:
        assert name in page.text
    assert "16 found, 15 used." in page.text
    assert "not-an-image" in page.text
    items = find_gallery(page.data, "sheet")["items"]
    assert {item["path"] for item in items} == {str(path) for path in Path("shapes").rglob("*.png")}


# Other options


def test_backbone_auto_with_a_budget(work: Path) -> None:
    done = run_command(
        "train", "shapes", "--output", "new.onnx", "--backbone", "auto", "--budget", "2s", "--input-size", "64"
    )
    assert (done.code, done.stderr) == (0, "")
    page = read_page("new.evaluation/report.html").text
    assert "Backbones tried" in page
    assert "efficientnet-lite0" in page
    assert "efficientnet-lite1" in page
    assert headstart.load("new.onnx").metadata.backbone["name"].startswith("efficientnet-lite")


def test_unknown_pictures_are_marked(work: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save("noise.png")
    for share, expected in (("1", 16), ("0", 0)):
        done = run_command("predict", "shapes.onnx", "shapes", "noise.png", "--unknown-below", share)
        assert sum(line.endswith("none of these?") for line in done.lines) == expected
    found = headstart.load("shapes.onnx").predict("noise.png").familiarity
    for share, is_marked in ((found * 0.9, False), (min(1, found * 1.1), True)):
        done = run_command("predict", "shapes.onnx", "noise.png", "--unknown-below", str(share))
        assert done.lines[0].endswith("none of these?") is is_marked
    (row,) = read_csv(run_command("predict", "shapes.onnx", "noise.png", "--format", "csv").stdout)
    assert float(row["familiarity"]) == pytest.approx(found, rel=1e-4)


def test_evaluate_writes_a_report(flipped: Path) -> None:
    done = run_command("evaluate", "shapes.onnx", "flipped", "--output", "measured")
    assert (done.code, done.stderr) == (0, "")
    mistakes = find_gallery(read_page("measured/report.html").data, "mistakes")["items"]
    assert {Path(item["path"]).stem for item in mistakes} == {*FLIPPED_TEST}
    assert all("heat" in item for item in mistakes)


@pytest.mark.skipif(sys.platform != "linux", reason="not every file system keeps such names")
def test_hostile_names_survive_the_whole_road(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, bold = "<img src=x onerror=alert(1)>", "[bold]\"&'{{ 7*7 }}"
    names = {"checks": image, "stripes": bold}
    for shape, name in names.items():
        for number in range(8):
            path = work / "odd" / "train" / name / f"{shape}<script>\u202ealert({number}).png"
            write_picture(path, shape, number)
    wrong = work / "odd" / "train" / bold / "caf\udce9[red]\n</script>x.png".replace("/", "\u2215")
    write_picture(wrong, "checks", 8)
    write_picture(work / "odd" / "test" / bold / "=1+1\n.png", "checks", 9)
    write_picture(work / "odd" / "test" / image / "fine.png", "checks", 10)
    runs = [run_command("train", "odd", "--layers", "top"), run_command("report", "odd.onnx", "odd")]
    assert [each.code for each in runs] == [0, 0], runs[0].stderr
    text = Path("odd.evaluation/report.html").read_text("utf-8")
    page = Reader(text)
    assert page.data["names"] == sorted(names.values())
    assert not [values for tag, values in page.elements if tag == "img" and "onerror" in values]
    assert len(page.inline["script"]) == 1
    assert "\u202e" not in text
    (mistake,) = find_gallery(page.data, "mistakes")["items"]
    assert mistake["path"].endswith(r"=1+1\n.png")
    (suspect,) = find_gallery(page.data, "suspects")["items"]
    assert suspect["path"].endswith("x.png")
    runs.append(run_with_input(monkeypatch, "r\n", "review", "odd.onnx"))
    (decision,) = read_decisions("odd.review.jsonl").decisions
    assert (decision.path, decision.label, decision.new_label) == (str(wrong.relative_to(work)), bold, image)
    runs.append(run_command("train", "odd", "--layers", "top"))
    assert "  1 decision of the review applied: 1 relabelled" in runs[-1].lines
    runs += [
        run_command("compare", "odd.onnx", "odd.onnx", "odd"),
        run_command("explain", "odd.onnx", "odd"),
        run_command("review", "odd.onnx", "--list"),
        run_command("review", "odd.onnx", "--undo"),
        run_command("show", "odd"),
    ]
    for each in runs:
        assert each.code == 0, each.stderr
        assert_harmless(each.out)
        assert_harmless(each.stderr)
    assert len([*Path("heat-maps").iterdir()]) == 19


def test_the_report_tells_the_choice_of_layers_of_the_training_and_no_other(work: Path) -> None:
    assert run_command("train", "shapes", "--output", "chosen.onnx").code == 0
    scores = read_candidates(headstart.load("chosen.onnx"), Path("chosen.onnx"))
    assert len(scores) > 5
    assert run_command("report", "chosen.onnx", "shapes").code == 0
    assert "Layers and pooling" in read_page("chosen.evaluation/report.html").text
    assert read_candidates(headstart.load("shapes.onnx"), Path("chosen.onnx")) == ()
    Path("chosen.evaluation", "evaluation.json").write_text('{"extra": []}')
    assert read_candidates(headstart.load("chosen.onnx"), Path("chosen.onnx")) == ()
