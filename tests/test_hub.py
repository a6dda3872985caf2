"""Push and pull through the hub's own client, against a hub of this machine; the commands in processes of their own."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Trained
from drawn_pictures import run_python
from hub_server import TOKEN, Hub, run_hub

import headstart

pytest.importorskip("huggingface_hub", minversion="1.0")

COMMAND = (
    "from headstart import cli, cli_hub; cli.app.command()(cli_hub.push); cli.app.command()(cli_hub.pull); cli.main()"
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with run_hub() as running:
        yield running


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    def run_command(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # the hub's newer storage has a protocol of its own, which only its client speaks
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **variables,
        }
        done = run_python("-c", COMMAND, *map(str, arguments), cwd=tmp_path, **settings)
        assert "Traceback" not in done.stderr, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run_command


def test_there_and_back(hub: Hub, run: Run, trained: Trained, classifier: headstart.Classifier, tmp_path: Path) -> None:
    done = run("push", trained.file, "anna/shapes", "--yes")
    assert done.returncode == 0, done.stderr
    assert (
        f"goes as classifier.onnx and README.md to a new private repository {hub.endpoint}/anna/shapes" in done.stdout
    )
    repository = hub.repositories["anna/shapes"]
    assert repository["private"]
    assert {*repository["files"]} == {"classifier.onnx", "README.md"}, "and nothing else"
    assert repository["files"]["classifier.onnx"] == trained.file.read_bytes()
    card = repository["files"]["README.md"].decode()
    assert "# shapes\n" in card
    assert classifier.sha256 in card

    done = run("pull", "anna/shapes", "--sha256", classifier.sha256.upper())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shapes.onnx").read_bytes() == trained.file.read_bytes()
    assert done.stdout.splitlines() == [
        "Wrote shapes.onnx: 3 classes (checks, circles, stripes)",
        f"SHA-256 {classifier.sha256}, commit {repository['commit']}",
    ]
    # No request tells more than the client's name and version.
    agents = {headers.get("user-agent", "") for _, _, headers in hub.requests}
    assert not any(word in agent for agent in agents for word in ("torch", "agent/"))
    asked = {path.split("/")[1] for _, path, _ in hub.requests}
    assert asked <= {"api", "upload", "anna", "anna%2Fshapes"}
    assert not any("telemetry" in path or "agent" in path for _, path, _ in hub.requests)


def test_nothing_is_sent_before_yes(hub: Hub, run: Run, trained: Trained) -> None:
    assert run("push", trained.file, "anna/shapes").returncode == 1
    assert {method for method, _, _ in hub.requests} == {"GET"}
    assert hub.repositories == {}


def test_a_card_that_is_there_is_kept(hub: Hub, run: Run, trained: Trained) -> None:
    hub.repositories["anna/shapes"] = {"private": True, "files": {"README.md": b"mine"}, "commit": "1" * 40}
    assert run("push", trained.file, "anna/shapes", "--yes").returncode == 0
    assert hub.repositories["anna/shapes"]["files"]["README.md"] == b"mine"
    done = run("push", trained.file, "anna/shapes", "--yes", "--replace-card", "--title", "Forms", "--licence", "mit")
    assert done.returncode == 0, done.stderr
    card = hub.repositories["anna/shapes"]["files"]["README.md"].decode()
    assert card.startswith('---\nlicense: "mit"\n')
    assert "# Forms" in card


def test_public_only_when_said(hub: Hub, run: Run, trained: Trained) -> None:
    hub.repositories["anna/open"] = {"private": False, "files": {}, "commit": "1" * 40}
    done = run("push", trained.file, "anna/open", "--yes")
    assert done.returncode == 2
    assert "anna/open is public" in done.stderr
    assert hub.repositories["anna/open"]["files"] == {}
    assert "to the public repository" in run("push", trained.file, "anna/open", "--yes", "--public").stdout
    assert "classifier.onnx" in hub.repositories["anna/open"]["files"]
    assert "a new public repository" in run("push", trained.file, "anna/more", "--yes", "--public").stdout
    assert not hub.repositories["anna/more"]["private"]


def test_tokens(hub: Hub, run: Run, trained: Trained) -> None:
    done = run("push", trained.file, "anna/shapes", "--yes", HF_TOKEN="")
    assert done.returncode == 2
    assert "You are not logged in" in done.stderr
    assert "hf auth login" in done.stderr
    done = run("push", trained.file, "anna/shapes", "--yes", HF_TOKEN="hf_wrong")
    assert done.returncode == 2
    assert "refuses your token (HTTP 401)" in done.stderr
    assert "hf_wrong" not in done.stderr
    hub.repositories["anna/shapes"] = {"private": True, "files": {}, "commit": "1" * 40}
    done = run("pull", "anna/shapes", HF_TOKEN="")
    assert done.returncode == 2
    assert "or it is private and your token may not see it" in done.stderr


def test_what_is_pulled_is_checked(hub: Hub, run: Run, trained: Trained, tmp_path: Path) -> None:
    data = trained.file.read_bytes()
    files = {
        "classifier.onnx": data,
        "edited.onnx": data[:-1] + b"x",
        "pickle.onnx": b"\x80\x04K\x01.",
        "notes.txt": b"",
    }
    hub.repositories["anna/shapes"] = {"private": False, "files": files, "commit": "1" * 40}
    digest = hashlib.sha256(data).hexdigest()
    for options, message in (
        (["--file", "edited.onnx"], "is not the one stored in it"),
        (["--file", "pickle.onnx"], "Python pickle"),
        (["--file", "other.onnx"], "Files that may be a classifier: classifier.onnx, edited.onnx, pickle.onnx."),
        (["--sha256", "0" * 64], f"has the SHA-256 {digest}, and you gave {'0' * 64}"),
        (["--sha256", "abc"], "expected 64 hexadecimal digits"),
    ):
        done = run("pull", "anna/shapes", *options)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    hub.told_sha256 = "1" * 64
    assert f"and the hub tells {'1' * 64}" in run("pull", "anna/shapes").stderr
    assert not (tmp_path / "shapes.onnx").exists()


def test_a_file_that_is_there_is_not_replaced(hub: Hub, run: Run, trained: Trained, tmp_path: Path) -> None:
    files = {"classifier.onnx": trained.file.read_bytes()}
    hub.repositories["anna/shapes"] = {"private": False, "files": files, "commit": "1" * 40}
    (tmp_path / "shapes.onnx").write_text("mine")
    done = run("pull", "anna/shapes")
    assert done.returncode == 2
    assert "shapes.onnx is there already" in done.stderr
    assert (tmp_path / "shapes.onnx").read_text() == "mine"
    assert run("pull", "anna/shapes", "--overwrite").returncode == 0
    assert run("pull", "anna/shapes").returncode == 0, "the same file again"


def test_what_the_hub_says_is_shown_as_text(hub: Hub, run: Run) -> None:
    hub.status = 500
    done = run("pull", "anna/shapes")
    assert done.returncode == 2
    assert "answers HTTP 500" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("name", ["shapes", "a/b/c", "../x", "anna/sha pes", "anna/..", "https://x/y"])
def test_names_that_cannot_be(name: str) -> None:
    from headstart.hub import look_up

    with pytest.raises(headstart.errors.ConfigError, match="The repository is"):
        look_up(name)


def test_offline(run: Run, tmp_path: Path) -> None:
    began = time.monotonic()
    done = run("pull", "anna/shapes", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "http://127.0.0.1:9 cannot be used" in done.stderr
    assert "Check the network" in done.stderr
    assert time.monotonic() - began < 5
    assert "HF_HUB_OFFLINE is set" in run("pull", "anna/shapes", HF_HUB_OFFLINE="1").stderr


def test_a_hub_that_never_answers(run: Run, trained: Trained) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        done = run(
            "push", trained.file, "anna/shapes", "--yes", HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        spent_s = time.monotonic() - began
    assert done.returncode == 2
    assert "cannot be used" in done.stderr
    assert spent_s < 8  # 3.5 for the answer; the rest is the start of a process on a busy machine


def test_without_the_extra(run: Run, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    source = str(Path(headstart.__file__).parents[1])
    done = run("push", trained.file, "anna/shapes", "--yes", PYTHONPATH=f"{tmp_path}:{source}")
    assert done.returncode == 2
    assert "pip install 'headstart[hub]'" in done.stderr
