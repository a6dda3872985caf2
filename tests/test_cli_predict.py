"""`headstart predict` over folders: going on after a stop, sorting, watching, counts and exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import SHAPES, Done, run_command, snapshot, write_picture, write_shapes
from test_cli import run_in_terminal

import headstart
from headstart import cli_predict
from headstart.errors import ImageError
from headstart.predictions_output import Doubts, Tally

SORTED = ("--sort-into", "sorted")
JOURNAL = Path("sorted", ".headstart-predictions.jsonl")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained) -> Path:
    """The working folder: in/ with 3 x 4 pictures, one that is cut, and shapes.onnx. Every journal is kept."""
    write_shapes(tmp_path / "in", 4)
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in/checks/00.png").read_bytes()[:500])
    shutil.copy(trained.file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_predict, "_KEEP_JOURNAL_FROM", 1)
    return tmp_path


def predict(*arguments: object) -> Done:
    return run_command("predict", "shapes.onnx", "in", *arguments)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_bytes().decode(), newline="")))


def list_sorted() -> dict[str, str]:
    """Place to picture."""
    return {str(path.relative_to("sorted")): os.path.relpath(path.readlink()) for path in Path("sorted").glob("*/*")}


def rewrite(path: str, shape: str = "circles", number: int = 9) -> None:
    """Another picture under the same name, with another time of change."""
    write_picture(Path(path), shape, number)
    os.utime(path, ns=(1, 10**18))


# Going on


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "table"])
def test_a_run_cut_at_any_point_ends_as_an_undisturbed_one(work: Path, format: str) -> None:
    """What a kill leaves is the journal up to some byte, and no output."""
    if format == "parquet":
        pytest.importorskip("pyarrow")
    target = Path("a.out")
    options = ("--format", format, "--output", target)
    first = predict(*options)
    assert first.stderr == "13 pictures = 12 predicted + 1 not usable\n"
    journal = Path("a.out.journal")
    expected, whole = target.read_bytes(), journal.read_bytes()
    for size in random.Random(0).sample(range(len(whole)), 3):
        target.unlink()
        journal.write_bytes(whole[:size])
        done = predict(*options)
        assert done.code == 0
        assert target.read_bytes() == expected
        num_kept = max(0, whole[:size].count(b"\n") - 1)
        assert done.stderr.startswith(f"{num_kept} of 13 pictures were done before (a.out.journal).") == (num_kept > 0)


def test_a_finished_run_predicts_only_what_is_new_or_has_changed(work: Path) -> None:
    assert predict("--output", "a.csv").code == 0
    before = read_csv("a.csv")
    size = Path("a.csv.journal").stat().st_size
    assert predict("--output", "a.csv").stderr.startswith("13 of 13 pictures were done before (a.csv.journal).\n")
    assert Path("a.csv.journal").stat().st_size == size
    rewrite("in/checks/01.png", "stripes")
    write_picture(Path("in/checks/00a.png"), "circles", 3)
    Path("in/stripes/03.png").unlink()
    done = predict("--output", "a.csv")
    assert done.stderr.startswith("11 of 13 pictures were done before (a.csv.journal).\n")
    after = {row["path"]: row for row in read_csv("a.csv")}
    assert list(after) == sorted(after), "the order of the listing, not of the work"
    assert after.pop("in/checks/01.png")["predicted"] == "stripes"
    assert after.pop("in/checks/00a.png")["predicted"] == "circles"
    assert [*after.values()] == [row for row in before if row["path"] not in ("in/checks/01.png", "in/stripes/03.png")]


def test_pictures_that_failed_are_tried_again_when_asked(work: Path) -> None:
    predict("--output", "a.csv")
    stamp = os.stat("in/cut.png")
    Path("in/cut.png").write_bytes(b"x" * stamp.st_size)
    os.utime("in/cut.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert predict("--output", "a.csv").stderr.startswith("13 of 13 ")
    assert read_csv("a.csv")[-5]["error"].startswith("truncated")
    assert predict("--output", "a.csv", "--retry").stderr.startswith("12 of 13 ")
    assert read_csv("a.csv")[-5]["error"].startswith("not-an-image")


def test_other_options_need_no_new_predictions(work: Path) -> None:
    predict("--output", "a.jsonl")
    done = predict("--output", "a.jsonl", "--top", "3", "--unsure-below", "1")
    assert done.stderr.startswith("13 of 13 ")
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert {len(row["top"]) for row in rows if "top" in row} == {3}
    assert {row["doubt"] for row in rows if "top" in row} <= {"unsure", "none of these"}


def test_another_classifier(work: Path) -> None:
    predict("--output", "a.csv")
    model = headstart.load("shapes.onnx")
    Path("in/cut.png").unlink()
    headstart.train("in", layers="top", exclude=["circles"], test_frac=0).save("shapes.onnx")
    done = predict("--output", "a.csv")
    assert done.stderr.startswith("a.csv.journal was of another run; all pictures are predicted anew.\n")
    assert "probability_circles" not in read_csv("a.csv")[0]
    journal = Path("a.csv.journal").read_bytes().splitlines(keepends=True)
    Path("a.csv.journal").write_bytes(b"".join(journal[:5]))
    model.save("shapes.onnx")
    done = predict("--output", "a.csv")
    assert (done.code, done.out) == (2, "")
    assert done.stderr == (
        "Error: a.csv.journal is of an unfinished run with another classifier. Give the same again to go on with it, "
        "--restart to begin anew, or another --output.\n"
    )
    assert predict("--output", "a.csv", "--restart").code == 0
    assert "probability_circles" in read_csv("a.csv")[0]


def test_of_a_few_pictures_no_journal_is_left(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        assert predict("--output", "a.csv").code == 0
        assert {path.name for path in work.iterdir()} == {"in", "shapes.onnx", "a.csv"}


def start(*arguments: object) -> subprocess.Popen[bytes]:
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from headstart.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parents[1])}
    command = [sys.executable, "-c", code, "predict", "shapes.onnx", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_and_kill_keep_what_is_done(work: Path) -> None:
    Path("many").mkdir()
    for number in range(150):
        os.link("in/checks/00.png", f"many/{number:03}.png")
    journal = Path("a.csv.journal")
    process = start("many", "--output", "a.csv")
    wait_for_lines(journal, 20, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    num_done = journal.read_bytes().count(b"\n") - 1
    assert (process.returncode, out) == (130, b"")
    assert err.decode() == f"Stopped. {num_done} of 150 pictures are done; the same command goes on.\n"
    assert not Path("a.csv").exists()
    process = start("many", "--output", "a.csv")
    wait_for_lines(journal, num_done + 20, process)
    process.kill()
    out, err = process.communicate(timeout=30)
    assert err.decode() == f"{num_done} of 150 pictures were done before (a.csv.journal).\n"
    assert not Path("a.csv").exists()
    num_killed = journal.read_bytes().count(b"\n") - 1
    assert num_killed >= num_done + 19
    done = run_command("predict", "shapes.onnx", "many", "--output", "a.csv")
    assert done.stderr.startswith(f"{num_killed} of 150 ")
    assert [row["path"] for row in read_csv("a.csv")] == [f"many/{number:03}.png" for number in range(150)]


# Sorting


def test_sorting_by_class(work: Path) -> None:
    done = predict(*SORTED)
    assert (done.code, done.stderr) == (0, "13 pictures = 12 predicted + 1 not usable\n")
    found = list_sorted()
    assert sorted(found.values()) == sorted(map(str, Path("in").glob("*/*.png")))
    model = headstart.load("shapes.onnx")
    for place, picture in found.items():
        prediction = model.predict(picture)
        assert place.split("/")[0] == ("none of these" if prediction.is_unknown() else prediction.label)
    counts = dict(line.rsplit(maxsplit=3)[:2] for line in done.lines[:-1])
    assert sum(map(int, counts.values())) == 12
    assert done.lines[-1].split() == ["(not", "usable)", "1", "7.7", "%", "truncated", "1"]


@pytest.mark.parametrize("copy", [False, True])
def test_sorting_cut_at_any_entry_ends_as_an_undisturbed_one(work: Path, copy: bool) -> None:
    options = (*SORTED, *(["--copy"] if copy else []))
    predict(*options)

    def look() -> dict[str, object]:
        return {str(path): path.is_symlink() or path.read_bytes() for path in Path("sorted").glob("*/*")}

    expected, lines = look(), JOURNAL.read_bytes().splitlines(keepends=True)
    places = [json.loads(line).get("place") for line in lines[1:14]]
    for kept in (0, 3, 13):
        for is_last_put in (True, False):
            shutil.rmtree("sorted")
            Path("sorted").mkdir()
            JOURNAL.write_bytes(b"".join(lines[: 1 + kept]))
            for number, place in enumerate(places[:kept]):
                if place and (is_last_put or number < kept - 1):
                    target = Path("sorted", place)
                    target.parent.mkdir(exist_ok=True)
                    source = Path(json.loads(lines[1 + number])["path"])
                    shutil.copy2(source, target) if copy else target.symlink_to(source)
            assert predict(*options).code == 0
            assert look() == expected


def test_a_picture_that_changes_moves(work: Path) -> None:
    predict(*SORTED)
    assert [p for p in list_sorted().items() if p[1] == "in/checks/01.png"]
    rewrite("in/checks/01.png", "stripes")
    before = {p: q for p, q in list_sorted().items() if q != "in/checks/01.png"}
    predict(*SORTED)
    after = list_sorted()
    assert {p: q for p, q in after.items() if q != "in/checks/01.png"} == before
    (place,) = (place for place, picture in after.items() if picture == "in/checks/01.png")
    assert place.split("/")[0] != "checks"
    rewrite("in/checks/01.png", "checks")
    Path("in/checks/01.png").write_bytes(b"")
    predict(*SORTED)
    assert list_sorted() == before


def test_what_a_person_took_away_does_not_come_back(work: Path) -> None:
    predict(*SORTED)
    before = list_sorted()
    last = json.loads(JOURNAL.read_bytes().splitlines()[-2])["place"]
    for place in {last, next(iter(before))}:
        del before[place]
        Path("sorted", place).unlink()
    predict(*SORTED)
    assert list_sorted() == before


def test_doubts_are_set_apart(work: Path) -> None:
    predict(*SORTED, "--unsure-below", "1", "--unknown-below", "0", "--output", "a.csv")
    assert {place.split("/")[0] for place in list_sorted()} == {"unsure"}
    assert {row["doubt"] for row in read_csv("a.csv") if not row["error"]} == {"unsure"}
    assert not Path("a.csv.journal").exists(), "the sorted folder has it"
    table = predict("--unsure-below", "1", "--unknown-below", "0", "--top", "1").lines
    assert all(line.endswith("unsure") for line in table if "cut.png" not in line)


def test_a_second_folder_is_sorted_beside_the_first(work: Path) -> None:
    predict(*SORTED)
    write_shapes(Path("more"), 1)
    done = run_command("predict", "shapes.onnx", "more", *SORTED)
    assert (done.code, done.stderr) == (0, "")
    assert len(list_sorted()) == 12 + 3


def test_folders_that_are_not_sorted_into(work: Path) -> None:
    for options in (["--copy"], ["--unsure-below", "0.7"], ["--restart"]):
        predict(*SORTED)
        before = snapshot(Path("sorted"))
        done = predict(*SORTED, *options)
        assert done.code == 2
        assert done.stderr == (
            "Error: --sort-into sorted is not empty, and what is there was not sorted with this classifier and these "
            "options. Name another folder, or empty it.\n"
        )
        assert snapshot(Path("sorted")) == before
    assert predict("--sort-into", "in/sorted").code == 2
    assert not Path("in/sorted").exists()


def test_a_folder_with_other_things_is_left_as_it_was(work: Path) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("precious")
    before = snapshot(Path("mine"))
    assert predict("--sort-into", "mine").code == 2
    assert snapshot(Path("mine")) == before


def test_classes_that_are_paths(work: Path) -> None:
    """Class names are anybody's: none leads out of the folder."""
    names = ("../up", "CON", "a\\b")
    for old, new in zip(SHAPES, ("up", "CON", "ab"), strict=True):
        Path("in", old).rename(Path("in", new))
    paths = sorted(path for path in Path("in").glob("*/*.png"))
    labels = [names[("up", "CON", "ab").index(path.parent.name)] for path in paths]
    headstart.train([str(path) for path in paths], labels=labels, layers="top", test_frac=0).save("shapes.onnx")
    done = predict(*SORTED, "--unknown-below", "0")
    assert done.code == 0
    assert done.stderr.splitlines()[:3] == [
        *("Pictures of ../up go into the folder __up.", "Pictures of CON go into the folder CON_."),
        r"Pictures of a\b go into the folder a_b.",
    ]
    assert {place.split("/")[0] for place in list_sorted()} == {"__up", "CON_", "a_b"}
    assert {path.name for path in work.iterdir()} == {"in", "shapes.onnx", "sorted"}


# Submissions


def test_a_submission(work: Path) -> None:
    Path("test").mkdir()
    for number in range(11):
        write_picture(Path(f"test/{number}.png"), SHAPES[number % 3], number)
    arguments = ("predict", "shapes.onnx", "test", "--submission", "stripes", "--output", "s.csv")
    assert run_command(*arguments).code == 0
    rows = read_csv("s.csv")
    assert [row["id"] for row in rows] == [str(number) for number in range(11)]
    model = headstart.load("shapes.onnx")
    assert [row["label"] for row in rows] == [
        str(p.probs[2]) for p in model.predict([f"test/{n}.png" for n in range(11)])
    ]
    wrong = run_command("predict", "shapes.onnx", "test", "--submission", "stripe", "--output", "w.csv")
    assert (wrong.code, wrong.stderr) == (
        2,
        "Error: --submission is stripe, which is no class of this classifier. Did you mean 'stripes'? "
        "Its classes: checks, circles, stripes.\n",
    )
    Path("test/5.png").write_bytes(b"")
    done = run_command(*arguments)
    assert (done.code, len(read_csv("s.csv"))) == (2, 11)
    assert "Error: s.csv is not written: a submission needs every picture, and 1 of 11" in done.stderr
    write_picture(Path("test/5.png"), "checks", 5)
    done = run_command(*arguments)
    assert (done.code, done.stderr) == (0, "10 of 11 pictures were done before (s.csv.journal).\n")


# Watching


def test_watching_a_folder(work: Path) -> None:
    for path in Path("in").rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    arguments = ("--watch-for", "1.5", "--output", "a.csv", *SORTED)
    done = predict(*arguments)
    assert (done.code, done.stderr) == (0, "13 pictures = 12 predicted + 1 not usable\n")
    assert [row["path"] for row in read_csv("a.csv")] == sorted(map(str, Path("in").rglob("*.png")))
    assert len(list_sorted()) == 12
    write_picture(Path("in/new.png"), "checks", 8)
    os.utime("in/new.png", ns=(10**18, 10**18))
    done = predict(*arguments)
    assert done.stderr.startswith("13 pictures were done before")
    assert [row["path"] for row in read_csv("a.csv")][13:] == ["in/new.png"]
    assert len(list_sorted()) == 13


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_watch_that_is_killed_goes_on(work: Path) -> None:
    for path in Path("in").rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    process = start("in", "--watch", "--output", "a.csv")
    wait_for_lines(Path("a.csv.journal"), 5, process)
    process.kill()
    process.communicate(timeout=30)
    with open("a.csv", "r+b") as file:  # as if the kill had come a line earlier, and within it
        file.truncate(Path("a.csv").stat().st_size - 10)
    Path("in/late.png").write_bytes(Path("in/checks/00.png").read_bytes())
    process = start("in", "--watch", "--output", "a.csv")
    wait_for_lines(Path("a.csv"), 15, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "pictures were done before (a.csv.journal).\nStopped. " in err.decode()
    assert sorted(row["path"] for row in read_csv("a.csv")) == sorted(map(str, Path("in").rglob("*.png")))


def test_watching_on_the_screen(work: Path) -> None:
    for path in Path("in").rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    done = predict("--watch-for", "1.5", "--format", "jsonl")
    assert (done.code, len(done.lines)) == (0, 13)
    assert not list(work.glob("*.journal"))


# Options and exit codes


def test_the_format_follows_the_name_of_the_output(work: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.txt"):
        predict("--output", name)
    assert len(read_csv("a.csv")) == 13
    assert json.loads(Path("a.jsonl").read_text().splitlines()[0])["path"] == "in/checks/00.png"
    assert Path("a.txt").read_text().splitlines()[0].startswith("in/checks/00.png   checks ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_many_pictures_are_counted_on_a_terminal(work: Path) -> None:
    for number in range(101):
        os.link("in/checks/00.png", f"in/{number}.png")
    out, err = run_in_terminal(work, "predict", "shapes.onnx", "in")
    assert "114/114" in err
    lines = [line.split() for line in out.splitlines()]
    assert sum(int(line[-3]) for line in lines if "usable)" not in line) == 113
    assert len(lines) <= 5
    out, err = run_in_terminal(work, "predict", "shapes.onnx", "in", "--format", "table")
    assert len(out.splitlines()) == 114
    assert "114/114" not in err, "the bar would run into the rows"


def test_counts_of_many_classes() -> None:
    tally, doubts = Tally(), Doubts(0.01, 0.5)
    classes = tuple(f"c{number:02}" for number in range(25))
    for number in range(25):
        for _ in range(25 - number):
            probs = np.full(25, 0.01, np.float32)
            probs[number] = 0.9
            tally.add(headstart.Prediction("x", classes, probs), doubts)
    tally.add(headstart.Prediction("x", classes, np.full(25, 0.04, np.float32)), doubts)
    tally.add(ImageError("empty", "the file is empty"), doubts)
    lines = [*tally.describe()]
    assert (tally.num_pictures, tally.num_failed) == (327, 1)
    assert lines[0] == "c00                    25    7.6 %"
    assert lines[-3:] == [
        "5 more classes         15    4.6 %",
        "(unsure)                1    0.3 %",
        "(not usable)            1    0.3 %   empty 1",
    ]
    assert len(lines) == 20 + 3


def test_exit_codes(work: Path) -> None:
    assert predict().code == 0
    assert predict("--strict").code == 1
    assert predict("--strict", "--output", "a.csv").code == 1
    Path("in/cut.png").unlink()
    assert predict("--strict").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--copy", "--copy says how --sort-into sorts. Add --sort-into FOLDER."),
        (
            "--submission stripes",
            "--submission writes a CSV file of its own. Give it with --output FILE, without --watch.",
        ),
        (
            "--format csv --sort-into sorted",
            "--format csv with --sort-into needs --output FILE: the screen shows the counts.",
        ),
        (
            "--output answers.json",
            "--output answers.json tells no format. Give it .csv, .jsonl, .parquet or .txt (a table), or say which "
            "with --format.",
        ),
        (
            "--watch --output a.txt",
            "--watch adds rows to a file, which table does not allow. Choose --format csv or jsonl.",
        ),
        pytest.param(
            *("--output /dev/null", "--output /dev/null is no regular file. Leave it out, and use > or |."),
            marks=pytest.mark.skipif(sys.platform == "win32", reason="devices have other names there"),
        ),
        ("--sort-into shapes.onnx", "--sort-into shapes.onnx is a file. Name a folder."),
        (
            "--sort-into .",
            "--sort-into . and in lie one inside the other, so that sorted pictures would be sorted again. Name a "
            "folder outside.",
        ),
    ],
)
def test_options_that_do_not_fit(work: Path, options: str, message: str) -> None:
    before = snapshot(work)
    done = predict(*options.split())
    assert (done.code, done.out, done.stderr) == (2, "", f"Error: {message}\n")
    assert snapshot(work) == before


def test_a_file_in_the_journals_place_stays(work: Path) -> None:
    Path("a.csv.journal").write_text("my diary")
    done = predict("--output", "a.csv")
    assert done.code == 2
    assert "a.csv.journal exists and is not a journal of predictions" in done.stderr
    assert Path("a.csv.journal").read_text() == "my diary"
    assert not Path("a.csv").exists()
