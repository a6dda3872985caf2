"""What the documents say is what the program does."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REPORT = (ROOT / "docs" / "report.md").read_text()
COMMAND = [sys.executable, "-m", "headstart.cli"]


def find_blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """The folders that the README speaks of, with drawn pictures: stripes are cats, checks are dogs."""
    rng = np.random.default_rng(0)
    for folder, count in (("pets", 16), ("more_pets", 6)):
        for name in ("cat", "dog"):
            place = tmp_path / folder / name
            place.mkdir(parents=True)
            for number in range(count):
                rows, columns = np.mgrid[:64, :64] // int(rng.integers(3, 9))
                pattern = rows % 2 if name == "cat" else (rows + columns) % 2
                pixels = np.clip(pattern[..., None] * 150 + rng.integers(0, 100, 3), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    shutil.copytree(tmp_path / "more_pets" / "cat", tmp_path / "new")
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "rex.jpg")
    return tmp_path


def test_the_commands_of_the_readme_run(pets: Path) -> None:
    block = next(block for block in find_blocks("sh") if "headstart check pets/" in block)
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    commands = [line.split()[1:] for line in lines if line.startswith("headstart ")]
    assert {"train", "predict", "evaluate", "inspect", "check", "verify"} <= {command[0] for command in commands}
    for command in commands:
        done = subprocess.run([*COMMAND, *command], cwd=pets, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout, command
    assert (pets / "pets.onnx").is_file()
    assert (pets / "pets.evaluation" / "evaluation.json").is_file()


def test_the_python_of_the_readme_runs(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pets)
    paths = sorted(str(path) for path in Path("pets").rglob("*.png"))
    names = {"paths": paths, "labels": [Path(path).parent.name for path in paths]}
    blocks = [*find_blocks("python"), *find_blocks("python", REPORT)]
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # our own text, run as a reader would
    assert "<!doctype html>" in Path("report.html").read_text()[:20].lower()


def test_the_command_reference_is_fresh() -> None:
    spec = importlib.util.spec_from_file_location("make_cli_reference", ROOT / "docs" / "make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.make_reference(), "run make docs"


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == headstart.__version__
    assert f"## {headstart.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_and_files_named_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    missing = [
        path.name
        for path in (ROOT / "src" / "headstart").rglob("*.py")
        if path.name != "__init__.py" and f"`{path.name}`" not in text
    ]
    assert not missing
