"""A training's folder: optimizers that continue as if never interrupted, saves that a kill cannot tear, damage seen."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from drawn_pictures import snapshot

import headstart
from headstart.errors import ConfigError, DataError, HeadstartError
from headstart.finetuning.checkpoints import (
    check_folder,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    start_folder,
    unpack_optimizer,
)

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, weight_decay=0.05),
    "adam": lambda groups: torch.optim.Adam(groups, amsgrad=True),
    "adamax": lambda groups: torch.optim.Adamax(groups),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, momentum=0.5, centered=True),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "sgd without momentum": lambda groups: torch.optim.SGD(groups),
}


def make_training(optimizer: str, seed: int) -> tuple[Any, Any]:
    """A small network in channels-last order and its optimizer: two groups, one parameter that is never trained."""
    generator = torch.Generator().manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(5, 7, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(7 * 36, 3)
    ).to(memory_format=torch.channels_last)
    for param in network.parameters():
        param.data.copy_(torch.randn(param.shape, generator=generator) * 0.1)
    network[0].bias.requires_grad_(False)
    groups = [{"params": network[0].parameters(), "lr": 0.01}, {"params": network[3].parameters(), "lr": 0.003}]
    return network, OPTIMIZERS[optimizer](groups)


def take_steps(network: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 5, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 1])).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_continues_bit_identically(name: str, tmp_path: Path) -> None:
    straight, optimizer = make_training(name, 0)
    take_steps(straight, optimizer, range(6))

    first, optimizer = make_training(name, 0)
    take_steps(first, optimizer, range(3))
    packed, plain = pack_optimizer(optimizer)
    tensors = {f"network.{key}": value for key, value in first.state_dict().items()}
    save_checkpoint(tmp_path, "last", tensors | {f"optimizer.{key}": value for key, value in packed.items()}, plain)

    saved = load_checkpoint(tmp_path, "last")
    assert saved is not None
    second, optimizer = make_training(name, 1)  # other weights, which the checkpoint replaces
    second.load_state_dict(
        {key[8:]: value for key, value in saved.tensors.items() if key.startswith("network.")}, strict=True
    )
    state = {key[10:]: value for key, value in saved.tensors.items() if key.startswith("optimizer.")}
    assert bool(state) == (name != "sgd without momentum")
    unpack_optimizer(optimizer, state, saved.state)
    take_steps(second, optimizer, range(3, 6))

    for key, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert not torch.equal(straight[0].weight, first[0].weight)


def test_unpacking_keeps_memory_order_and_copies() -> None:
    network, optimizer = make_training("adamw", 0)
    take_steps(network, optimizer, range(1))
    tensors, plain = pack_optimizer(optimizer)
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    other, optimizer = make_training("adamw", 0)
    unpack_optimizer(optimizer, contiguous, plain)
    average = optimizer.state[other[0].weight]["exp_avg"]
    assert average.stride() == other[0].weight.stride() != contiguous["0.exp_avg"].stride()
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    before = contiguous["0.exp_avg"].clone()
    take_steps(other, optimizer, range(1))
    assert torch.equal(contiguous["0.exp_avg"], before)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    network, optimizer = make_training("adam", 0)
    take_steps(network, optimizer, range(1))
    tensors, plain = pack_optimizer(optimizer)
    one_group = torch.optim.Adam(network.parameters())
    with pytest.raises(DataError, match="does not fit: 2 parameter groups were saved"):
        unpack_optimizer(one_group, tensors, plain)
    tensors["0.exp_avg"] = torch.zeros(3)
    with pytest.raises(DataError, match=r"does not fit: \"0.exp_avg\" has the shape \(3,\)"):
        unpack_optimizer(optimizer, tensors, plain)


def test_every_sort_of_tensor_comes_back_exactly(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {
        "whole": base,
        "the same": base,
        "part": base[1],
        "transposed": base.transpose(0, 2),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "bf16": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(0.1),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False]),
        "rng": torch.Generator().manual_seed(3).get_state(),
        "empty": torch.zeros(0, 3),
        "empty too": torch.zeros(0),
        "expanded": torch.tensor([1.5]).expand(4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "odd numbers": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    state = {"epoch": 3, "loss": 0.1 + 0.2, "rows": [{"train_loss": None}], "rng": 2**127 + 1, "text": "Müller \u202e"}
    save_checkpoint(tmp_path, "last", tensors, state)
    saved = load_checkpoint(tmp_path, "last")
    assert saved is not None
    assert saved.state == state
    assert set(saved.tensors) == set(tensors)
    for name, tensor in tensors.items():
        loaded = saved.tensors[name]
        assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape), name
        if tensor.is_floating_point():
            loaded, tensor = (each.detach().float().contiguous().view(torch.int32) for each in (loaded, tensor))
        assert torch.equal(loaded, tensor), name


def test_a_loaded_checkpoint_is_independent_of_its_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "last", {"x": torch.ones(1000)}, {"n": 1})
    first = load_checkpoint(tmp_path, "last")
    assert first is not None
    first.tensors["x"].add_(1)
    again = load_checkpoint(tmp_path, "last")
    assert again is not None
    assert torch.equal(again.tensors["x"], torch.ones(1000))


def test_best_and_last_stand_side_by_side_with_one_file_of_tensors_each(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, "last") is None
    for number in range(4):
        save_checkpoint(tmp_path, "last", {"x": torch.full((3,), number)}, {"n": number})
        if number == 1:
            save_checkpoint(tmp_path, "best", {"x": torch.full((3,), number)}, {"n": number})
    for name, number in (("best", 1), ("last", 3)):
        saved = load_checkpoint(tmp_path, name)
        assert saved is not None
        assert saved.state == {"n": number}
        assert saved.tensors["x"].tolist() == [number] * 3
    names = sorted(os.listdir(tmp_path))
    assert [name.split("-")[0] for name in names] == ["best", "best.json", "last", "last.json"]


def test_a_state_that_json_cannot_hold_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "last", {"x": torch.ones(1)}, {"n": 1})
    before = snapshot(tmp_path)
    for state in ({"loss": float("nan")}, {"path": Path("x")}):
        with pytest.raises(DataError, match="cannot be written as JSON"):
            save_checkpoint(tmp_path, "last", {"x": torch.zeros(1)}, state)
    assert snapshot(tmp_path) == before


def start_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"checkpoint 'last' cannot be written into .*gone: no such file"):
        save_checkpoint(tmp_path / "gone", "last", {"x": torch.ones(1)}, {})
    save_checkpoint(tmp_path, "last", {"x": torch.ones(1)}, {"n": 1})
    (tmp_path / "last-0123456789abcdef.safetensors").write_text("of a save that was killed before it could tidy up")
    limited = f"""
        import resource, signal, torch
        from pathlib import Path
        from headstart.finetuning.checkpoints import save_checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        save_checkpoint(Path({str(tmp_path)!r}), "last", {{"x": torch.ones(100_000)}}, {{"n": 2}})
    """
    done = start_python(limited).communicate(timeout=60)[1]
    assert "The one before it is whole." in done, done
    saved = load_checkpoint(tmp_path, "last")
    assert saved is not None
    assert saved.state == {"n": 1}
    assert len(os.listdir(tmp_path)) == 2  # such files are removed before a save too: kills cannot gather them


# Damage


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def find_tensors(folder: Path) -> Path:
    (path,) = folder.glob("last-*.safetensors")
    return path


def reword(folder: Path, **entries: Any) -> None:
    """last.json with other entries and a SHA-256 that is right again."""
    content = {**json.loads((folder / "last.json").read_bytes()), **entries}
    (folder / "last.json").unlink()
    del content["sha256"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "last.json").write_text(json.dumps(content))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of a tensor": (lambda f: flip_bit(find_tensors(f), -3), "its SHA-256 is not the one in last.json"),
    "a bit of the header": (lambda f: flip_bit(find_tensors(f), 2), "its SHA-256 is not the one in last.json"),
    "cut tensors": (lambda f: os.truncate(find_tensors(f), 60), "its SHA-256 is not the one in last.json"),
    "no tensors": (lambda f: find_tensors(f).unlink(), r"last-[0-9a-f]{16}\.safetensors: no such file"),
    "a cut state": (lambda f: os.truncate(f / "last.json", 60), "last.json: it is not JSON"),
    "an empty state": (lambda f: os.truncate(f / "last.json", 0), "last.json: it is not JSON"),
    "deep nesting": (lambda f: (f / "last.json").write_text("[" * 10**6), "last.json: it is not JSON"),
    "nan": (lambda f: (f / "last.json").write_text('{"a": NaN}'), "last.json: it is not JSON"),
    "something else": (lambda f: (f / "last.json").write_text("[]"), "it does not say 'headstart checkpoint'"),
    "a number of the state": (
        lambda f: (f / "last.json").write_text((f / "last.json").read_text().replace('"n": 1', '"n": 2')),
        "last.json: its content does not match its SHA-256",
    ),
    "another entry": (lambda f: reword(f, more=1), "last.json: it has other entries"),
    "tensors elsewhere": (
        lambda f: reword(f, tensors="../x.safetensors"),
        'it names "../x.safetensors" as its tensors',
    ),
    "a later version": (lambda f: reword(f, version=2), "last.json has format version 2; this headstart reads 1."),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_with_what_to_do(damage: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "last", {"x": torch.arange(50)}, {"n": 1})
    change, message = DAMAGES[damage]
    change(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_checkpoint(tmp_path, "last")
    assert str(caught.value).endswith("Delete the folder to train anew, or choose another with --output.")


def test_a_flipped_bit_anywhere_in_the_state_is_seen_or_means_the_same(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "last", {"x": torch.arange(5)}, {"n": 1, "loss": 0.25})
    good = (tmp_path / "last.json").read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        (tmp_path / "last.json").write_bytes(data)
        try:
            saved = load_checkpoint(tmp_path, "last")
        except DataError:
            continue
        assert saved is not None
        assert saved.state == {"n": 1, "loss": 0.25}


# The folder

RUN = {"data": "abc", "fit": {"learning_rate": 1e-4, "hidden": (100, 100), "augment": None}, "torch": "2.14.1"}


def test_a_new_folder_is_made_and_continued(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "pets.finetune"
    check_folder(folder, RUN)
    assert not folder.exists()
    start_folder(folder, RUN)
    save_checkpoint(folder, "last", {"x": torch.ones(1)}, {})
    save_checkpoint(folder, "best", {"x": torch.ones(1)}, {})
    (folder / "history.csv").write_text("")
    (folder / "views.npy").write_text("")
    before = snapshot(folder)
    start_folder(folder, RUN, own_files=["views*.npy"])
    check_folder(folder, RUN, own_files=["views*.npy"])
    assert snapshot(folder) == before


def test_a_folder_of_another_run_is_refused_with_every_difference(tmp_path: Path) -> None:
    start_folder(tmp_path, RUN)
    save_checkpoint(tmp_path, "last", {"x": torch.ones(1)}, {})
    (tmp_path / ".headstart-1-ab.tmp").write_text("of a killed save")
    before = snapshot(tmp_path)
    other = {"data": "abc", "fit": {"learning_rate": 1e-3, "hidden": [100], "ema": True}, "torch": "2.15.0"}
    with pytest.raises(ConfigError) as caught:
        start_folder(tmp_path, other)
    assert str(caught.value).splitlines() == [
        f"{tmp_path} holds another training, so this one cannot continue it:",
        "  fit.learning_rate was 0.0001, is 0.001",
        "  fit.hidden was [100, 100], is [100]",
        "  fit.augment was null, is not given",
        "  fit.ema was not given, is true",
        '  torch was "2.14.1", is "2.15.0"',
        "Nothing in it was changed. Give the same values to continue it, delete the folder to train anew, or choose "
        "another with --output.",
    ]
    assert snapshot(tmp_path) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    start_folder(tmp_path, RUN)
    for number in range(12):
        (tmp_path / f"best friend {number:02}.jpg").write_text("")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=r"not a training's: best friend 00.jpg, .*09.jpg and 2 more. Nothing in it"):
        start_folder(tmp_path, RUN)
    assert snapshot(tmp_path) == before


def test_what_is_no_folder_or_says_nothing_of_its_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file cannot be used as a training's folder: not a directory"):
        check_folder(tmp_path / "file", RUN)
    with pytest.raises(ConfigError, match="file/below cannot be (made|used)"):
        start_folder(tmp_path / "file" / "below", RUN)
    save_checkpoint(tmp_path, "last", {"x": torch.ones(1)}, {})
    (tmp_path / "file").unlink()
    with pytest.raises(ConfigError, match="holds checkpoints, but no run.json"):
        start_folder(tmp_path, RUN)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match="run.json: it does not say 'headstart run'"):
        start_folder(tmp_path, RUN)


# Kills

KILLED = """
    import os, signal, sys, torch
    from pathlib import Path
    from headstart.finetuning.checkpoints import load_checkpoint, save_checkpoint

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])

    def save_next():
        saved = load_checkpoint(folder, "last")
        number = saved.state["number"] + 1 if saved else 0
        save_checkpoint(folder, "last", {f"x{i}": torch.full((20_000,), number) for i in range(5)}, {"number": number})

    def kill_at(event):  # events are opening, renaming, removing and the like
        left = iter(range(event))
        def count(name, arguments):
            if name.startswith(("open", "os.", "shutil.")) and name != "os.kill" and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)

    for line in sys.stdin:  # an event to be killed at, or nothing: to be killed from outside
        if not (pid := os.fork()):
            if line.strip():
                kill_at(int(line))
                save_next()
                os._exit(0)
            while True:
                save_next()
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
"""


NO_KILL = "1000000"


class Saver:
    """A process that imported torch once, and forks one that saves for every kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = start_python(KILLED, str(folder))

    def ask(self, line: str) -> int:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)
        return self.read()

    def read(self) -> int:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        return int(line)

    def find_number(self) -> int:
        """The number of the checkpoint that is whole; -1 where there is none."""
        saved = load_checkpoint(self.folder, "last")
        if saved is None:
            return -1
        assert len(saved.tensors) == 5
        for tensor in saved.tensors.values():
            assert torch.equal(tensor, torch.full((20_000,), saved.state["number"]))
        return saved.state["number"]


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    started = Saver(tmp_path)
    yield started
    started.process.kill()
    started.process.communicate()


def test_kills_at_random_moments_leave_one_checkpoint_whole(saver: Saver) -> None:
    rng = np.random.default_rng(0)
    saver.ask(NO_KILL)
    began = time.monotonic()
    assert saver.read() == 0
    save_s = time.monotonic() - began
    before, num_torn = 0, 0
    for _ in range(40):
        pid = saver.ask("")
        time.sleep(rng.uniform(0, 3 * save_s))
        os.kill(pid, signal.SIGKILL)
        assert saver.read() == signal.SIGKILL
        number = saver.find_number()
        assert number >= before
        before = number
        names = os.listdir(saver.folder)
        num_torn += len(names) > 2
        assert len(names) <= 4, names
    assert number > 10
    assert num_torn > 5, "the kills came too early or too late to show anything"
    save_checkpoint(saver.folder, "last", {"x": torch.ones(1)}, {})
    assert len(os.listdir(saver.folder)) == 2


def test_a_kill_at_any_step_of_a_save_leaves_one_checkpoint_whole(saver: Saver) -> None:
    before, outcomes = -1, []
    for event in range(100):
        saver.ask(str(event))
        status = saver.read()
        number = saver.find_number()
        assert number in (before, before + 1)
        outcomes.append(number - before)
        before = number
        assert len(os.listdir(saver.folder)) <= 4  # 2, and those of one save that was under way
        if not os.WIFSIGNALED(status):
            break
    assert status == 0
    assert outcomes.count(0) > 5
    assert outcomes.count(1) > 1
    assert len(os.listdir(saver.folder)) == 2
