"""`--fast` and `--best` through the command and as a keyword."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_pictures import run_command, write_shapes

import headstart
from headstart.backbones.catalog import PRESETS

QUICK = ("--layers", "top", "--penalty", "0.1")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_shapes(tmp_path / "shapes", 5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_in_the_file_as_what_it_stands_for(work: Path, preset: str) -> None:
    assert run_command("train", "shapes", f"--{preset}", *QUICK).code == 0
    classifier = headstart.load("shapes.onnx")
    settings = classifier.metadata.settings
    assert (settings["backbone"], settings["input_size_px"]) == PRESETS[preset]
    assert "preset" not in settings
    direct = headstart.train("shapes", preset=preset, layers="top", penalty=0.1)
    assert direct.sha256 == classifier.sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fast", "--best"), "--fast and --best are two presets. Choose one."),
        (
            ("--fast", "--backbone", "efficientnet-lite0"),
            "The preset 'fast' chooses backbone and input size. Leave backbone out, or the preset.",
        ),
        (
            ("--best", "--input-size", "96"),
            "The preset 'best' chooses backbone and input size. Leave input_size_px out, or the preset.",
        ),
    ],
)
def test_a_preset_allows_no_other_choice(work: Path, options: tuple[str, ...], message: str) -> None:
    done = run_command("train", "shapes", *options)
    assert (done.code, message in done.stderr) == (2, True), done.stderr
    assert not Path("shapes.onnx").exists()
