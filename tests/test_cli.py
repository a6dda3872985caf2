"""The commands: what they print, write and return."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import SHAPES, run_command, run_python, snapshot, write_picture, write_shapes

import headstart
from headstart.csv_text import unescape_text

TWO = ("checks", "stripes")
QUICK = ("--layers", "top", "--penalty", "0.1")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained, warm_cache: Path) -> Path:
    """The working folder: shapes/ with 3 x 5 known pictures, and shapes.onnx trained on them and others."""
    write_shapes(tmp_path / "shapes", 5)
    shutil.copy(trained.file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_csv(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


# The commands at their usual work


def test_train_writes_a_classifier_and_its_evaluation(work: Path) -> None:
    done = run_command("train", "shapes", "--output", "new.onnx", "--layers", "top")
    assert (done.code, done.stderr) == (0, "")
    assert done.lines[0].split() == ["class", "train", "test"]
    assert "15 pictures found = 15 used + 0 left out, 3 classes" in done.lines
    assert any(line.startswith("chosen: the top layer  head 1x1") for line in done.lines)
    assert re.fullmatch(
        r"15 pictures, 0 through the network, [\d.]+ s\. Wrote new\.onnx and new\.evaluation", done.lines[-1]
    )
    classifier = headstart.load("new.onnx")
    assert classifier.classes == SHAPES
    evaluation = headstart.load_evaluation("new.evaluation")
    direct = headstart.train("shapes", layers="top")
    assert direct.sha256 == classifier.sha256
    assert direct.training is not None
    assert evaluation == direct.training.evaluation
    assert f"accuracy, {len(evaluation.paths)} picture" in done.out
    assert {path.name for path in Path("new.evaluation").iterdir()} == {
        "evaluation.json",
        "mistakes.csv",
        "report.html",
        "rows.csv",
        "run.json",
        "suspects.csv",
    }
    extra = json.loads(Path("new.evaluation/evaluation.json").read_bytes())["extra"]
    assert extra["classifier"] == {"file": "new.onnx", "sha256": classifier.sha256}
    assert extra["data"]["num_found"] == 15
    assert [each["layers"] for each in extra["candidates"]] == [[["head", 1]]]
    assert json.loads(Path("new.evaluation/run.json").read_bytes())["num_forward"] == 0


def test_train_hands_on_every_option(work: Path) -> None:
    options = (
        *("--backbone", "efficientnet-lite0", "--class-weights", "balanced", "--test-frac", "0.5"),
        *("--num-folds", "2", "--seed", "3", "--exclude", "circles", "--parquet", *QUICK),
    )
    done = run_command("train", "shapes", "--output", "new.onnx", *options)
    assert (done.code, done.stderr) == (0, "")
    metadata = headstart.load("new.onnx").metadata
    assert metadata.settings == {
        "backbone": "efficientnet-lite0",
        "layers": "top",
        "head": "linear",
        "penalty": 0.1,
        "class_weights": "balanced",
        "test_frac": 0.5,
        "num_folds": 2,
        "seed": 3,
    }
    assert metadata.labels == TWO
    assert Path("new.evaluation/rows.parquet").is_file()
    assert "left out: excluded, 5 times" in done.out


def test_train_names_its_files_after_the_source(work: Path) -> None:
    Path("shapes.onnx").unlink()
    assert run_command("train", "shapes/", *QUICK).code == 0
    assert Path("shapes.onnx").is_file()
    rows = "".join(f"{path},{path.parent.name}\n" for path in sorted(Path("shapes").rglob("*.png")))
    Path("table.csv").write_text(f"path,label\n{rows}")
    assert run_command("train", "table.csv", *QUICK).code == 0
    assert headstart.load("table.onnx").sha256 == headstart.load("shapes.onnx").sha256
    (work / "flat").mkdir()
    for path in Path("shapes").rglob("*.png"):
        shutil.copy(path, work / "flat" / f"{path.parent.name}-{path.name}")
    assert run_command("train", "flat", "--pattern", r"^(?P<label>\w+)-", *QUICK).code == 0
    assert headstart.load("flat.onnx").sha256 == headstart.load("shapes.onnx").sha256


def test_train_without_a_test_part(work: Path) -> None:
    done = run_command("train", "shapes", "--output", "new.onnx", "--test-frac", "0", *QUICK)
    assert (done.code, done.stderr) == (0, "")
    told = "Not evaluated: no picture was put aside. The cross-validated accuracy stands above."
    assert told in " ".join(done.out.split())
    assert done.lines[-1].endswith("Wrote new.onnx")
    assert not Path("new.evaluation").exists()


def test_train_again_replaces_its_own_files_only(work: Path) -> None:
    assert run_command("train", "shapes", *QUICK).code == 0
    first = snapshot(work / "shapes.evaluation")
    assert run_command("train", "shapes", "--seed", "1", *QUICK).code == 0
    assert headstart.load("shapes.onnx").metadata.settings["seed"] == 1
    assert snapshot(work / "shapes.evaluation") != first
    assert {path.name for path in work.iterdir()} == {"shapes", "shapes.onnx", "shapes.evaluation"}


def test_predict_as_a_table(work: Path, classifier: headstart.Classifier) -> None:
    done = run_command("predict", "shapes.onnx", "shapes/stripes", "shapes/checks/00.png", "--top", "2")
    assert (done.code, done.stderr) == (0, "")
    assert len(done.lines) == 6
    (first, p), (second, q) = classifier.predict("shapes/checks/00.png").get_top(2)
    familiarity = classifier.predict("shapes/checks/00.png").familiarity
    assert done.lines[0] == (
        f"shapes/checks/00.png   {first} {100 * p:5.1f} %   {second} {100 * q:5.1f} %"
        f"   familiarity {100 * familiarity:5.1f} %"
    )
    assert done.lines[5].startswith("shapes/stripes/04.png  stripes ")


@pytest.mark.parametrize("to_file", [False, True])
def test_predict_as_csv(work: Path, classifier: headstart.Classifier, to_file: bool) -> None:
    output = ("--output", "answers.csv") if to_file else ()
    done = run_command("predict", "shapes.onnx", "shapes", "--format", "csv", *output)
    assert (done.code, done.stderr) == (0, "")
    rows = read_csv(Path("answers.csv").read_bytes() if to_file else done.stdout)
    assert done.stdout == b"" or not to_file
    paths = sorted(map(str, Path("shapes").rglob("*.png")))
    assert [row["path"] for row in rows] == paths
    for row, prediction in zip(rows, classifier.predict(paths), strict=True):
        assert row["predicted"] == prediction.label
        assert row["error"] == ""
        probs = np.array([row[f"probability_{name}"] for name in SHAPES]).astype(np.float32)
        assert np.array_equal(probs, prediction.probs)
        assert np.float32(row["probability"]) == prediction.probs.max()


def test_predict_as_json_lines(work: Path, classifier: headstart.Classifier) -> None:
    done = run_command("predict", "shapes.onnx", "shapes", "--format", "jsonl", "--top", "3")
    assert (done.code, done.stderr) == (0, "")
    for line in done.lines:
        row = json.loads(line)
        prediction = classifier.predict(row["path"])
        assert row["predicted"] == prediction.label
        assert row["probability"] == round(prediction.probability, 6)
        assert list(row["top"].items()) == [(name, round(prob, 6)) for name, prob in prediction.get_top(3)]


def test_predict_as_parquet(work: Path, classifier: headstart.Classifier) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    Path("shapes/cut.png").write_bytes(Path("shapes/checks/00.png").read_bytes()[:500])
    done = run_command("predict", "shapes.onnx", "shapes", "--format", "parquet", "--output", "answers.parquet")
    assert (done.code, done.stderr) == (0, "16 pictures = 15 predicted + 1 not usable\n")
    *rows, cut = sorted(parquet.read_table("answers.parquet").to_pylist(), key=lambda row: row["error"] is not None)
    assert cut["path"] == "shapes/cut.png"
    assert cut["error"] == "truncated: the file ends early (copy or download it again)"
    assert cut["predicted"] is None
    assert np.isnan([cut[f"probability_{name}"] for name in SHAPES]).all()
    for row, prediction in zip(rows, classifier.predict([row["path"] for row in rows]), strict=True):
        assert (row["predicted"], row["error"]) == (prediction.label, None)
        assert np.array_equal(np.float32([row[f"probability_{name}"] for name in SHAPES]), prediction.probs)


def test_predict_counts_what_it_cannot_use(work: Path) -> None:
    Path("shapes/page.jpg").write_text("<html>")
    Path("shapes/gone.png").symlink_to("nowhere")
    done = run_command("predict", "shapes.onnx", "shapes", "--format", "csv")
    assert done.code == 0
    assert done.stderr == (
        "shapes/gone.png: broken-link: the link leads nowhere\n16 pictures = 15 predicted + 1 not usable\n"
    )
    (row,) = (row for row in read_csv(done.stdout) if row["error"])
    assert row["path"] == "shapes/page.jpg"
    assert row["error"] == "not-an-image: this is HTML text, not a picture"
    assert {row["predicted"], row["probability"], row["probability_checks"]} == {""}


@pytest.mark.parametrize("format", ["table", "csv", "jsonl"])
def test_predict_returns_1_where_nothing_could_be_predicted(work: Path, format: str) -> None:
    Path("page.jpg").write_text("<html>")
    done = run_command("predict", "shapes.onnx", "page.jpg", "--format", format)
    assert (done.code, done.stderr) == (1, "1 picture = 0 predicted + 1 not usable\n")
    assert "page.jpg" in done.out
    assert "this is HTML text, not a picture" in done.out


def test_evaluate_agrees_with_the_library(work: Path, classifier: headstart.Classifier) -> None:
    done = run_command("evaluate", "shapes.onnx", "shapes", "--output", "measured", "--parquet")
    assert (done.code, done.stderr) == (0, "")
    evaluation = classifier.evaluate("shapes")
    assert headstart.load_evaluation("measured") == evaluation
    assert "100.0 % accuracy, 15 pictures, 0 mistakes" in done.out
    assert done.lines[-1] == "Wrote measured"
    saved = json.loads(Path("measured/evaluation.json").read_bytes())
    assert saved["extra"]["classifier"] == {"file": "shapes.onnx", "sha256": classifier.sha256}
    assert Path("measured/rows.parquet").is_file()
    # A second run replaces it, without the rows that would be stale.
    assert run_command("evaluate", "shapes.onnx", "shapes", "--output", "measured").code == 0
    assert not Path("measured/rows.parquet").exists()


def test_evaluate_counts_what_it_cannot_use(work: Path) -> None:
    cut = Path("shapes/checks/cut.png")
    cut.write_bytes(Path("shapes/checks/00.png").read_bytes()[:900])  # only decoding tells
    Path("shapes/checks/empty.png").touch()  # its length tells
    done = run_command("evaluate", "shapes.onnx", "shapes", "--output", "measured")
    assert done.code == 0
    assert done.lines[:4] == [
        "left out: empty",
        "  shapes/checks/empty.png: the file is empty",
        "left out: truncated",
        "  shapes/checks/cut.png: the file ends early (copy or download it again)",
    ]
    data = json.loads(Path("measured/evaluation.json").read_bytes())["extra"]["data"]
    assert (data["num_found"], data["num_used"], data["num_left_out"]) == (17, 15, 2)
    assert len(headstart.load_evaluation("measured").paths) == 15


def test_evaluate_a_split(work: Path) -> None:
    for split, first in (("train", 0), ("test", 3)):
        write_shapes(work / "splits" / split, 1 + 2 * (split == "train"), SHAPES, first)
    assert "accuracy, 3 pictures" in run_command("evaluate", "shapes.onnx", "splits").out
    assert "accuracy, 9 pictures" in run_command("evaluate", "shapes.onnx", "splits", "--split", "train").out


def test_inspect(work: Path, classifier: headstart.Classifier) -> None:
    done = run_command("inspect", "shapes.onnx")
    assert (done.code, done.stderr) == (0, "")
    assert done.lines[0].split() == ["classes", "3:", "checks,", "circles,", "stripes"]
    assert classifier.sha256 in done.out
    metadata = json.loads(run_command("inspect", "shapes.onnx", "--json").out)
    assert metadata["labels"] == list(SHAPES)
    assert metadata["evaluation"] == classifier.metadata.evaluation
    assert metadata["data"] == classifier.metadata.data


def test_check(work: Path) -> None:
    for number in range(5):
        Path(f"shapes/checks/bad{number}.jpg").write_text(f"text {number}")
    done = run_command("check", "shapes")
    assert (done.code, done.stderr) == (0, "")
    assert done.lines[0].split() == ["class", "pictures"]
    assert "20 pictures found = 15 used + 5 left out, 3 classes" in done.lines
    assert "left out: not-an-image, 5 times" in done.lines
    assert "  and 2 more (headstart check --all lists them)" in done.lines
    assert sum("bad" in line for line in done.lines) == 3
    assert sum("bad" in line for line in run_command("check", "shapes", "--all").lines) == 5
    report = json.loads(run_command("check", "shapes", "--json").out)
    assert (report["num_found"], report["num_used"], report["num_left_out"]) == (20, 15, 5)
    assert report["counts"] == {name: {"unsplit": 5} for name in SHAPES}


def test_backbones_version_and_help(work: Path) -> None:
    assert "efficientnet-lite0" in run_command("backbones").out
    assert run_command("--version").out == f"headstart {headstart.__version__}\n"
    listed = run_command("--help").out
    for name in (
        "train",
        "finetune",
        "augment",
        "recipe",
        "predict",
        "evaluate",
        "inspect",
        "check",
        "backbones",
        "verify",
    ):
        assert re.search(rf"\b{name}\b", listed)
        assert run_command(name, "--help").code == 0


def test_verify(work: Path) -> None:
    Path("shapes/checks/page.jpg").write_text("<html>")
    done = run_command("verify", "shapes.onnx", "shapes")
    assert done.code == 0
    assert done.stderr == "shapes/checks/page.jpg: not-an-image: this is HTML text, not a picture\n"
    assert done.lines[:2] == ["15 pictures compared, 1 cannot be decoded", "same class: 15 of 15"]
    assert re.fullmatch(
        r"largest difference of a probability: \d\.\d\de[-+]\d\d at shapes/\w+/\d\d\.png", done.lines[2]
    )
    nothing = run_command("verify", "shapes.onnx", "shapes/checks/page.jpg")
    assert (nothing.code, nothing.out) == (1, "0 pictures compared, 1 cannot be decoded\n")


def test_cache_show_and_clear(work: Path, warm_cache: Path) -> None:
    shown = run_command("cache", "show")
    assert (shown.code, shown.stderr) == (0, "")
    assert shown.lines[0].startswith(f"{warm_cache}/features.sqlite: ")
    assert shown.lines[0].endswith(" MB of 10,000 MB")
    assert shown.lines[1].startswith("  efficientnet-lite0: 36 pictures, 0.8 MB")
    cleared = run_command("cache", "clear", "--yes")
    assert (cleared.code, cleared.stderr) == (0, "")
    assert re.fullmatch(r"\d\.\d MB freed\n", cleared.out)
    assert not (warm_cache / "features.sqlite").exists()
    assert run_command("cache", "show").lines[1:] == []


def test_cache_clear_asks(work: Path, warm_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    done = run_command("cache", "clear")
    assert done.code == 1
    assert f"Delete {warm_cache}/features.sqlite?" in done.out + done.stderr
    assert (warm_cache / "features.sqlite").exists()


# What is never replaced


def count_rows(cache: Path) -> int:
    file = cache / "features.sqlite"
    if not file.exists():
        return 0
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM features").fetchone()[0])
    except sqlite3.OperationalError:  # being made
        return 0
    finally:
        connection.close()


def test_a_foreign_target_is_refused_before_any_work(work: Path, own_cache: Path) -> None:
    (own_cache / "features.sqlite").unlink()
    Path("notes.onnx").write_text("my notes")
    (work / "other.evaluation").mkdir()
    Path("other.evaluation/thesis.txt").write_text("my thesis")
    before = snapshot(work)
    for name in ("notes.onnx", "other.onnx"):
        assert run_command("train", "shapes", "--output", name).code == 2
        assert count_rows(own_cache) == 0
    assert run_command("evaluate", "shapes.onnx", "shapes", "--output", "other.evaluation").code == 2
    assert snapshot(work) == before


@pytest.mark.parametrize("victim", ["shapes.onnx", "shapes/checks/00.png"])
def test_an_input_is_never_the_output(work: Path, victim: str) -> None:
    before = snapshot(work)
    done = run_command("predict", "shapes.onnx", "shapes", "--format", "csv", "--output", victim)
    assert (done.code, done.out) == (2, "")
    assert done.stderr == f"Error: --output would replace {victim}, which is an input. Name another place.\n"
    assert snapshot(work) == before


# Names


ODD_NAMES = [
    "[red]x[/].png",
    'quote".png',
    "new\nline.png",
    "rtl\u202egnp.png",
    "caf\udce9.png",
    "a,b;c.png",
    "=1+1.png",
]


@pytest.fixture
def odd(work: Path) -> Path:
    if sys.platform != "linux":
        pytest.skip("not every file system keeps such names")
    for number, name in enumerate(ODD_NAMES):
        write_picture(work / "odd" / "[bold]" / name, "checks", number)
        write_picture(work / "odd" / "plain" / f"{number}.png", "stripes", number)
    cut = work / "odd" / "plain" / "cut\udcff[red]\n.png"
    cut.write_bytes(Path("shapes/checks/00.png").read_bytes()[:700])
    return work / "odd"


def assert_harmless(text: str) -> None:
    """Nothing that moves a cursor, turns the direction of writing or breaks a line in a name."""
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\udc80-\udcff]", text)
    assert "\nline.png" not in text


def test_odd_names_are_shown_escaped(odd: Path) -> None:
    done = run_command("train", "odd", *QUICK)
    assert done.code == 0
    assert "  odd/plain/cut\\xff[red]\\n.png: the file ends early (copy or download it again)" in done.lines
    assert any(line.startswith("[bold] ") for line in done.lines)
    table = run_command("predict", "odd.onnx", "odd")
    for name in ("[red]x[/]", 'quote"', r"new\nline", r"rtl\u202egnp", r"caf\xe9", "a,b;c", "=1+1"):
        assert re.search(rf"^odd/\[bold\]/{re.escape(name)}\.png +\[bold\] ", table.out, re.MULTILINE), name
    assert len(table.lines) == 15
    everything = [
        done,
        table,
        run_command("evaluate", "odd.onnx", "odd"),
        run_command("check", "odd", "--all"),
        run_command("inspect", "odd.onnx"),
        run_command("verify", "odd.onnx", "odd"),
    ]
    for each in everything:
        assert_harmless(each.out)
        assert_harmless(each.stderr)


def test_odd_names_come_back_from_every_format(odd: Path) -> None:
    assert run_command("train", "odd", *QUICK).code == 0
    paths = {f"odd/[bold]/{name}" for name in ODD_NAMES} | {f"odd/plain/{n}.png" for n in range(len(ODD_NAMES))}
    expected = paths | {"odd/plain/cut\udcff[red]\n.png"}
    rows = read_csv(run_command("predict", "odd.onnx", "odd", "--format", "csv").stdout)
    assert {unescape_text(row["path"]) for row in rows} == expected
    assert "probability_[bold]" in rows[0]
    done = run_command("predict", "odd.onnx", "odd", "--format", "jsonl")
    assert_harmless(done.out)
    lines = done.lines
    assert {json.loads(line)["path"] for line in lines} == expected
    assert run_command("evaluate", "odd.onnx", "odd", "--output", "measured").code == 0
    assert set(headstart.load_evaluation("measured").paths) == paths
    assert {p for split in ("odd.evaluation",) for p in headstart.load_evaluation(split).paths} <= paths
    report = json.loads(run_command("check", "odd", "--json").out)
    assert [p["path"] for p in report["problems"] if p["severity"] == "left-out"] == ["odd/plain/cut\udcff[red]\n.png"]


def test_odd_names_of_outputs(odd: Path) -> None:
    name = "m\udcff[red]\n"
    done = run_command("train", "odd", "--output", f"{name}.onnx", *QUICK)
    assert done.code == 0
    assert done.lines[-1].endswith(r"Wrote m\xff[red]\n.onnx and m\xff[red]\n.evaluation")
    for command in ("inspect", "verify", "predict"):
        assert run_command(command, f"{name}.onnx", *(["odd"] if command != "inspect" else [])).code == 0
    missing = run_command("predict", f"{name}.onnx", "odd", "--format", "csv", "--output", f"{name}/x.csv")
    assert missing.code == 2
    assert_harmless(missing.stderr)


# Processes


def start(*arguments: object, cwd: Path, **options: Any) -> subprocess.Popen[bytes]:
    # A shell may have started the tests with Ctrl-C ignored, which children inherit.
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from headstart.cli import main
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parents[1]), **options.pop("env", {})}
    environment.pop("PYTHONUNBUFFERED", None)  # buffered as usual, so that failures show late
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment, **options)


def test_ctrl_c_keeps_the_features_and_the_next_run_goes_on(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 200
    write_shapes(tmp_path / "many", total // 2, TWO)
    process = start("train", "many", *QUICK, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while count_rows(own_cache) == 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.decode() == "Stopped. The features computed so far are kept; the same command continues.\n"
    assert out == b""
    assert [path.name for path in tmp_path.iterdir()] == ["many"]
    kept = count_rows(own_cache)
    assert 64 <= kept < total
    monkeypatch.chdir(tmp_path)
    assert run_command("train", "many", *QUICK).code == 0
    assert json.loads(Path("many.evaluation/run.json").read_bytes())["num_forward"] == total - kept


@pytest.mark.parametrize(
    ("command", "num_read"),
    [
        (["train", "shapes", "--output", "new.onnx", *QUICK], 1),
        (["predict", "shapes.onnx", "shapes", "--format", "csv"], 1),
        (["inspect", "shapes.onnx", "--json"], 0),  # all of it fits into a buffer, which fails when it is emptied
    ],
    ids=["train", "predict", "inspect"],
)
def test_a_reader_that_leaves_early(work: Path, command: list[str], num_read: int) -> None:
    process = start(*command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(num_read)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) in ({0, 1} if num_read else {1})  # 0: all was written before the reader left
    if command[0] == "train":
        assert headstart.load("new.onnx").classes == SHAPES
        assert Path("new.evaluation/run.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["predict shapes.onnx shapes", "inspect shapes.onnx --json"])
def test_a_full_disk_behind_the_output(work: Path, command: str) -> None:
    with open("/dev/full", "wb") as full:
        process = start(*command.split(), cwd=work, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.decode() == (
        "Error: standard output cannot be used: No space left on device. Check the disk and permissions.\n"
    )


def test_a_closed_output(work: Path) -> None:
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = ("-m", "headstart.cli", "predict", "shapes.onnx", "shapes/checks/00.png")
    done = run_python("-c", code, *command, cwd=work)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_the_names(work: Path, encoding: str) -> None:
    Path("shapes/checks").rename("shapes/日本")
    Path("shapes/circles").rename("shapes/café")
    commands = """
        import sys
        from headstart.cli import main
        for command in ("train shapes --output new.onnx --layers top", "check shapes", "predict new.onnx shapes"):
            sys.argv = ["headstart", *command.split()]
            try:
                main()
            except SystemExit as stop:
                assert not stop.code
    """
    code = "\n".join(line[8:] for line in commands.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(headstart.__file__).parents[1])},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u65e5\u672c" in done.stdout
    assert (rb"caf\xe9" if encoding == "ascii" else "café".encode("latin-1")) in done.stdout


# Terminals


def run_in_terminal(work: Path, *arguments: str, **variables: str) -> tuple[str, str]:
    """What a command writes where both its outputs are terminals; stdout and stderr."""
    pty = pytest.importorskip("pty")
    written = []
    pairs = [pty.openpty() for _ in range(2)]
    environment = {"TERM": "xterm-256color", "COLUMNS": "100", **variables}
    process = start(*arguments, cwd=work, stdout=pairs[0][1], stderr=pairs[1][1], env=environment)
    for _, inner in pairs:
        os.close(inner)
    for outer, _ in pairs:
        data = b""
        while True:
            try:
                chunk = os.read(outer, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not chunk:
                break
            data += chunk
        os.close(outer)
        written.append(data.decode())
    assert process.wait(timeout=60) == 0
    return written[0], written[1]


COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-8]|4[0-8]|9[0-7])[;m]")


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_progress_goes_to_stderr_and_colours_can_be_switched_off(work: Path, own_cache: Path) -> None:
    (own_cache / "features.sqlite").unlink()
    out, err = run_in_terminal(work, "train", "shapes", "--output", "new.onnx", *QUICK)
    assert "extracting features" in err
    assert "15/15" in err
    assert "extracting features" not in out
    assert "15 pictures found = 15 used + 0 left out" in out
    assert COLOUR.search(out)
    assert COLOUR.search(err)
    out, err = run_in_terminal(work, "train", "shapes", "--output", "new.onnx", *QUICK, NO_COLOR="1")
    assert "15 pictures found" in out
    assert not COLOUR.search(out)
    assert not COLOUR.search(err)
    out, err = run_in_terminal(work, "train", "shapes", "--output", "new.onnx", *QUICK, TERM="dumb")
    assert "15 pictures found" in out
    assert "\x1b" not in out
    assert "\x1b" not in err
